-- What the background verification left out.

ALTER TABLE verification
    ADD COLUMN cancelled_steps jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT verification_cancelled_steps_object CHECK (jsonb_typeof(cancelled_steps) = 'object');
COMMENT ON COLUMN verification.cancelled_steps IS
    'What that run left out: for each check the number of steps that were cancelled, because they took longer than five '
    'minutes or a person ended them.';
COMMENT ON COLUMN verification.finished_at IS
    'When the last run ended. The next one begins VERIFY_INTERVAL_MS later. NULL: there was none.';
COMMENT ON TABLE verification IS
    'One row: the last background run of verify, and which replica may begin the next one.';
