ALTER TABLE record_changes DROP CONSTRAINT record_changes_pkey;
ALTER TABLE record_changes DROP COLUMN change_id;
