COMMENT ON TABLE verification IS
    'One row: the last complete background run of verify, and which replica may begin the next one.';
COMMENT ON COLUMN verification.finished_at IS
    'When the last complete run ended. The next one begins VERIFY_INTERVAL_MS later. NULL: there was none.';
ALTER TABLE verification DROP COLUMN cancelled_steps;
