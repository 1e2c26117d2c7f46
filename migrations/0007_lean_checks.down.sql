ALTER TABLE usage_counters ADD CONSTRAINT usage_counters_agent_form
    CHECK (agent !~ '[^A-Za-z0-9._-]' AND length(agent) BETWEEN 1 AND 256);
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_caller_form,
    ADD CONSTRAINT idempotency_keys_caller_form CHECK (caller ~ '^(tenant|ip):' AND length(caller) <= 128);
