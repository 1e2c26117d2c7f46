ALTER TABLE record_changes RENAME TO changes_of_commits;
CREATE TABLE record_changes (
    kind   record_kind NOT NULL,
    owner  record_owner NOT NULL,
    change bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, vacuum_truncate = off);
COMMENT ON TABLE record_changes IS 'What commits added to and prunings removed from capped tables, not yet folded into record_counts. Appended without waiting for anyone, emptied by the janitor.';
COMMENT ON COLUMN record_changes.kind IS 'caller_replies: rows of idempotency_keys per caller; tenant_events: rows of events per tenant.';
COMMENT ON COLUMN record_changes.owner IS 'The caller or tenant.';
COMMENT ON COLUMN record_changes.change IS 'Rows added (positive) or removed (negative).';
INSERT INTO record_changes (kind, owner, change)
SELECT kind, owner, change FROM changes_of_commits, unnest(kinds, owners, changes) AS part (kind, owner, change);
DROP TABLE changes_of_commits;
