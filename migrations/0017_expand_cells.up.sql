-- Cells: the whole schema in several databases, each with the data of some tenants. The first cell, the home cell, also
-- has the API keys of all tenants and knows where each lives. With one database these tables stay empty.

ALTER TABLE tenants
    ADD COLUMN residence varchar(9) COLLATE "C" NOT NULL DEFAULT 'here',
    -- The table has one row per tenant: the scan is short.
    -- squawk-ignore constraint-missing-not-valid
    ADD CONSTRAINT tenants_residence_known CHECK (residence IN ('here', 'departing', 'leaving', 'elsewhere'));
COMMENT ON COLUMN tenants.residence IS
    'Whether this cell has the tenant''s data. here: yes; departing: the same, but no deliveries are begun, because the '
    'tenant is about to be moved; leaving: it is being moved to another cell, and writes are refused; elsewhere: another '
    'cell has its data. Draw a new terms_revision with each change.';

CREATE TABLE cells (
    cell_id          varchar(32) COLLATE "C" NOT NULL,
    number           smallint NOT NULL,
    accepts_tenants  boolean NOT NULL DEFAULT true,
    added_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cells_pkey PRIMARY KEY (cell_id),
    CONSTRAINT cells_number_key UNIQUE (number),
    CONSTRAINT cells_number_range CHECK (number BETWEEN 0 AND 1023),
    CONSTRAINT cells_cell_id_form CHECK (cell_id ~ '^[a-z0-9][a-z0-9-]*$')
);
COMMENT ON TABLE cells IS 'The cells, in the home cell. Empty while there is one.';
COMMENT ON COLUMN cells.cell_id IS 'Id of the cell, as in CELLS_FILE.';
COMMENT ON COLUMN cells.number IS
    'Number of the cell; 0 is the home cell. Each pair_id that a cell draws has this remainder when divided by 1024, so '
    'that no two cells draw the same one.';
COMMENT ON COLUMN cells.accepts_tenants IS 'Whether new tenants may be created in the cell.';
COMMENT ON COLUMN cells.added_at IS 'When the cell was added.';
COMMENT ON INDEX cells_pkey IS 'Finds a cell by its id.';
COMMENT ON INDEX cells_number_key IS 'No two cells have the same number.';

CREATE TABLE cell_identity (
    only_row      boolean NOT NULL DEFAULT true,
    cell_id       varchar(32) COLLATE "C" NOT NULL,
    deployment_id varchar(36) COLLATE "C" NOT NULL,
    CONSTRAINT cell_identity_pkey PRIMARY KEY (only_row),
    CONSTRAINT cell_identity_only_row CHECK (only_row)
);
COMMENT ON TABLE cell_identity IS
    'One row: which cell this is. A service whose CELLS_FILE has another id for this database does not use it, nor does '
    'one whose home cell has another deployment_id. Empty while there is one cell.';
COMMENT ON COLUMN cell_identity.only_row IS 'Always true. The primary key allows no second row.';
COMMENT ON COLUMN cell_identity.cell_id IS 'Id of the cell: cells.cell_id in the home cell.';
COMMENT ON COLUMN cell_identity.deployment_id IS
    'Random id, drawn when the home cell is founded. All cells of a home cell have it, so that a cell of another home cell '
    'with the same cell_id is not used.';
COMMENT ON INDEX cell_identity_pkey IS 'Allows one row.';

CREATE TABLE tenant_cells (
    tenant_id varchar(64) COLLATE "C" NOT NULL,
    cell_id   varchar(32) COLLATE "C" NOT NULL,
    CONSTRAINT tenant_cells_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT tenant_cells_cell_id_fkey FOREIGN KEY (cell_id) REFERENCES cells (cell_id)
);
CREATE INDEX tenant_cells_by_cell ON tenant_cells (cell_id, tenant_id);
COMMENT ON TABLE tenant_cells IS
    'In the home cell: where each tenant lives that does not live in the home cell. Increase runtime_config.keys_revision '
    'with each change, so that replicas look up the keys of the tenant again.';
COMMENT ON COLUMN tenant_cells.tenant_id IS 'The tenant.';
COMMENT ON COLUMN tenant_cells.cell_id IS 'The cell that has its data.';
COMMENT ON INDEX tenant_cells_pkey IS 'Finds the cell of a tenant.';
COMMENT ON INDEX tenant_cells_by_cell IS 'Lists the tenants of a cell.';

CREATE TABLE tenant_moves (
    tenant_id  varchar(64) COLLATE "C" NOT NULL,
    from_cell  varchar(32) COLLATE "C" NOT NULL,
    to_cell    varchar(32) COLLATE "C" NOT NULL,
    step       varchar(16) COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenant_moves_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT tenant_moves_from_cell_fkey FOREIGN KEY (from_cell) REFERENCES cells (cell_id),
    CONSTRAINT tenant_moves_to_cell_fkey FOREIGN KEY (to_cell) REFERENCES cells (cell_id),
    CONSTRAINT tenant_moves_cells_differ CHECK (from_cell <> to_cell),
    CONSTRAINT tenant_moves_step_known CHECK (step IN ('copying', 'fenced', 'copied', 'switched'))
);
COMMENT ON TABLE tenant_moves IS
    'In the home cell: the moves of tenants that are not complete. The same command continues a move that was interrupted.';
COMMENT ON COLUMN tenant_moves.tenant_id IS 'The tenant that is moved.';
COMMENT ON COLUMN tenant_moves.from_cell IS 'The cell that it leaves.';
COMMENT ON COLUMN tenant_moves.to_cell IS 'The cell that it is moved to.';
COMMENT ON COLUMN tenant_moves.step IS
    'How far the move got. copying: writes go on in from_cell; fenced: writes are refused; copied: to_cell has the data; '
    'switched: tenant_cells names to_cell, and what is left in from_cell is deleted.';
COMMENT ON COLUMN tenant_moves.started_at IS 'When the move began.';
COMMENT ON INDEX tenant_moves_pkey IS 'A tenant has at most one move.';

-- A program that does not know of cells decides on the revision alone. The comparison refuses it where the tenant does not live.
CREATE OR REPLACE FUNCTION refuse_changed_terms(tenant_ids text[], revisions bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(tenant_ids, revisions) AS decided (tenant_id, terms_revision)
        LEFT JOIN LATERAL (
            SELECT terms_revision, residence FROM tenants WHERE tenants.tenant_id = decided.tenant_id LIMIT 1
        ) AS tenant ON true
        WHERE tenant.terms_revision IS DISTINCT FROM decided.terms_revision
           OR tenant.residence NOT IN ('here', 'departing')
    ) THEN
        RETURN refuse_commit('OC003');
    END IF;
    RETURN false;
END $$;
COMMENT ON FUNCTION refuse_changed_terms IS
    'Rolls back a commit with OC003 if a tenant''s terms_revision differs from the one that the commit was decided '
    'on, or if the tenant does not live in this cell. The comparison is in a function because the calling statement may '
    'have waited for a reset or a move: queries in a function see what is committed when they run.';
