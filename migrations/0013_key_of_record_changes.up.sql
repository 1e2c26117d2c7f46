-- Without a primary key a table cannot be part of a publication: PostgreSQL then refuses to delete from it.
ALTER TABLE record_changes ADD COLUMN change_id bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE record_changes ADD CONSTRAINT record_changes_pkey PRIMARY KEY (change_id);
COMMENT ON COLUMN record_changes.change_id IS 'Identifies the row.';
