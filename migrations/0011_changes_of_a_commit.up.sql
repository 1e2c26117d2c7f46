-- One row is now what one commit changed, for all owners together: where many tenants write, a row for each of them cost
-- more than what it counted.
-- Whoever still writes it must be done before it is added up.
LOCK TABLE record_changes IN ACCESS EXCLUSIVE MODE;
INSERT INTO record_counts AS counts (kind, owner, records)
SELECT kind, owner, sum(change) FROM (
    SELECT kind::text, owner::text, change FROM record_changes
    UNION ALL SELECT 'all_replies', '*', change FROM record_changes WHERE kind = 'caller_replies'
) AS changes GROUP BY kind, owner
ON CONFLICT (kind, owner) DO UPDATE SET records = counts.records + excluded.records;
DROP TABLE record_changes;

CREATE TABLE record_changes (
    kinds   record_kind[] NOT NULL,
    owners  record_owner[] NOT NULL,
    changes bigint[] NOT NULL,
    CONSTRAINT record_changes_belong_together
        CHECK (cardinality(kinds) = cardinality(owners) AND cardinality(kinds) = cardinality(changes)),
    CONSTRAINT record_changes_whole CHECK (array_position(kinds, NULL) IS NULL AND array_position(owners, NULL) IS NULL
        AND array_position(changes, NULL) IS NULL)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, vacuum_truncate = off);
COMMENT ON TABLE record_changes IS 'One row is what one commit added to, or one pruning removed from, capped tables, not yet folded into record_counts. Appended without waiting for anyone, emptied by the janitor.';
COMMENT ON COLUMN record_changes.kinds IS 'caller_replies: rows of idempotency_keys per caller; tenant_events: rows of events per tenant.';
COMMENT ON COLUMN record_changes.owners IS 'For each of the kinds its caller or tenant.';
COMMENT ON COLUMN record_changes.changes IS 'For each of them the rows added (positive) or removed (negative).';
