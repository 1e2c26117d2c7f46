-- PostgreSQL checks these again with every row that is written or updated, and a pattern is dear. What they refuse is the
-- same as before: an agent's form is checked in agents, which every counter's agent refers to.
ALTER TABLE usage_counters DROP CONSTRAINT usage_counters_agent_form;
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_caller_form,
    ADD CONSTRAINT idempotency_keys_caller_form
        CHECK ((starts_with(caller, 'tenant:') OR starts_with(caller, 'ip:')) AND length(caller) <= 128) NOT VALID;
