-- What operators change while the service runs stands in the one row of limits. Its two revisions tell replicas, which
-- read that row several times a second, what to take over and what to forget.
ALTER TABLE limits
    ADD COLUMN paused        boolean NOT NULL DEFAULT false,
    ADD COLUMN revision      bigint NOT NULL DEFAULT 0,
    ADD COLUMN keys_revision bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE limits IS 'One row: the limits of the running system and whether it is paused. Every replica follows a change within a second.';
COMMENT ON COLUMN limits.paused IS 'True while writes are refused.';
COMMENT ON COLUMN limits.revision IS 'Grows with every change of this row, so that a replica never goes back to an older state.';
COMMENT ON COLUMN limits.keys_revision IS 'Grows with every API key made or revoked; replicas then look all keys up again.';
