-- The background verification: when it last ran and what it found. Every replica reads this row, so the result outlives
-- the process that ran it.
CREATE TABLE verification (
    only_row    boolean NOT NULL DEFAULT true,
    not_before  timestamptz,
    finished_at timestamptz,
    duration_ms bigint,
    findings    jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT verification_pkey PRIMARY KEY (only_row),
    CONSTRAINT verification_only_row CHECK (only_row),
    CONSTRAINT verification_findings_object CHECK (jsonb_typeof(findings) = 'object')
);
COMMENT ON TABLE verification IS
    'One row: the last complete background run of verify, and which replica may begin the next one.';
COMMENT ON COLUMN verification.only_row IS 'Always true. The primary key allows no second row.';
COMMENT ON COLUMN verification.not_before IS
    'No replica begins a run before: the lease of the replica that runs it now, renewed at every step, or the pause '
    'after a run that failed. NULL: none.';
COMMENT ON COLUMN verification.finished_at IS
    'When the last complete run ended. The next one begins VERIFY_INTERVAL_MS later. NULL: there was none.';
COMMENT ON COLUMN verification.duration_ms IS 'Duration of that run in milliseconds, with its pauses.';
COMMENT ON COLUMN verification.findings IS
    'What that run found: the number of inconsistencies for each check, for example {"pairs": 0, "totals": 1}.';
COMMENT ON INDEX verification_pkey IS 'Allows one row.';
INSERT INTO verification DEFAULT VALUES;
