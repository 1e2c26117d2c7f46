DROP FUNCTION refuse_commit;
DROP TYPE new_idempotency_key, new_event_run, caller_change, totals_change, counter_change;
