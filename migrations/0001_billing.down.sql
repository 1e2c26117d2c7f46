DROP TABLE limits;
DROP TABLE tenant_totals;
DROP TABLE events;
DROP TABLE settlements;
DROP TABLE usage_counters;
DROP TABLE services;
DROP TABLE api_keys;
DROP TABLE tenants;
