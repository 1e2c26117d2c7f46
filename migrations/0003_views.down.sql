DROP VIEW billing_overview;
DROP VIEW recent_replies;
DROP VIEW idempotency_overview;
