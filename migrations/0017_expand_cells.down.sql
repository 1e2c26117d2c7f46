CREATE OR REPLACE FUNCTION refuse_changed_terms(tenant_ids text[], revisions bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(tenant_ids, revisions) AS decided (tenant_id, terms_revision)
        LEFT JOIN LATERAL (
            SELECT terms_revision FROM tenants WHERE tenants.tenant_id = decided.tenant_id LIMIT 1
        ) AS tenant ON true
        WHERE tenant.terms_revision IS DISTINCT FROM decided.terms_revision
    ) THEN
        RETURN refuse_commit('OC003');
    END IF;
    RETURN false;
END $$;
COMMENT ON FUNCTION refuse_changed_terms IS
    'Rolls back a commit with OC003 if a tenant''s terms_revision differs from the one that the commit was decided '
    'on. The comparison is in a function because the calling statement may have waited for a reset: queries in a '
    'function see what is committed when they run.';
DROP TABLE tenant_moves, tenant_cells, cell_identity, cells;
ALTER TABLE tenants DROP COLUMN residence;
