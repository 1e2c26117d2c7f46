-- Apart from the migration that made it, so that nobody waits while the rows are looked at.
ALTER TABLE idempotency_keys VALIDATE CONSTRAINT idempotency_keys_caller_form;
