DROP VIEW recent_responses, idempotency_overview, billing_overview, events;
