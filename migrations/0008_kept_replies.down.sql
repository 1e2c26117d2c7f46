ALTER TABLE tenant_totals DROP COLUMN replies;
