DROP FUNCTION refuse_changed_terms, refuse_commit;
DROP TYPE new_idempotency_key, new_event_run, caller_change, totals_change, counter_change;
