DROP VIEW events;
DROP TABLE event_runs;
DROP SEQUENCE event_positions;
