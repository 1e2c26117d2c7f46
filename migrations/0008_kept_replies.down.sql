ALTER TABLE tenant_totals DROP COLUMN replies;
COMMENT ON COLUMN usage_counters.version IS 'How often the row was written. A commit that decided on an older version is rolled back and decides again; add 1 whenever you change a row by hand.';
