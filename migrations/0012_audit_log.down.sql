DROP VIEW recent_changes;
DROP TABLE audit_log;
