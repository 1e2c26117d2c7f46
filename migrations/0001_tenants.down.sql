DROP TABLE api_keys, tenants;
