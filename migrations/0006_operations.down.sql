ALTER TABLE limits
    DROP COLUMN paused,
    DROP COLUMN revision,
    DROP COLUMN keys_revision;
COMMENT ON TABLE limits IS 'One row: the limits of the running system. Every replica follows a change within a second.';
