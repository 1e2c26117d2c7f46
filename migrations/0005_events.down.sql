DROP TABLE event_runs;
DROP SEQUENCE event_positions;
