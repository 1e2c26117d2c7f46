DROP TABLE usage_counters, agents;
