-- Cells on Citus. Each node of Citus has sequences of its own, so that a number could be smaller after the schema has moved
-- to another node. A row moves with the schema.

CREATE TABLE citus_positions (
    only_row      boolean NOT NULL DEFAULT true,
    cell_number   smallint NOT NULL,
    last_position bigint NOT NULL,
    CONSTRAINT citus_positions_pkey PRIMARY KEY (only_row),
    CONSTRAINT citus_positions_only_row CHECK (only_row),
    CONSTRAINT citus_positions_cell_number_range CHECK (cell_number BETWEEN 0 AND 1023),
    CONSTRAINT citus_positions_last_position_range CHECK (last_position BETWEEN 0 AND 8796093022207)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE citus_positions IS
    'One row in a cell on Citus, whose schema is distributed: it takes the place of the sequences of events, agents, services '
    'and pairs. Empty in any other cell.';
COMMENT ON COLUMN citus_positions.only_row IS 'Always true. The primary key allows no second row.';
COMMENT ON COLUMN citus_positions.cell_number IS 'Number of the cell: cells.number in the home cell.';
COMMENT ON COLUMN citus_positions.last_position IS
    'The last number that was drawn. A list position is the number, the position of an event run is the number times 256, '
    'and a pair_id is the number times 1024 plus the number of the cell.';
COMMENT ON INDEX citus_positions_pkey IS 'Allows one row.';

-- A function of the row type of a table exists only on the coordinator of Citus, so this one takes the columns.
CREATE FUNCTION idempotency_record_bytes(caller text, key text, path text, request_id text, response text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT 200 + octet_length($1) + octet_length($2) + octet_length($3) + octet_length($4) + coalesce(octet_length($5), 0)
$$;
COMMENT ON FUNCTION idempotency_record_bytes IS
    'Bytes that a record counts towards its caller''s cap; the same as idempotency_key_bytes.';
