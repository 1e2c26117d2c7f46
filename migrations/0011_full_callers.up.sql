CREATE TABLE full_callers (
    caller     varchar(128) COLLATE "C" NOT NULL,
    full_since timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT full_callers_pkey PRIMARY KEY (caller)
);
COMMENT ON TABLE full_callers IS 'Callers whose requests with a new Idempotency-Key are refused: they are over a cap, and none of their rows in idempotency_keys may be deleted yet. The janitor maintains it, every replica reads it.';
COMMENT ON COLUMN full_callers.caller IS 'As in idempotency_keys.caller.';
COMMENT ON COLUMN full_callers.full_since IS 'When the janitor found it full.';

COMMENT ON COLUMN caller_totals.shard IS 'Writers use 16 rows per sum, 0 to 15, so that they do not wait for each other. The janitor subtracts in row -1.';
