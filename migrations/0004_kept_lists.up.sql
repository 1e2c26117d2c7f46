-- What lists and sums show is kept by the commits that change it, so that no read has to count or search.

ALTER TABLE usage_counters ADD COLUMN version bigint NOT NULL DEFAULT 1;
ALTER TABLE usage_counters ALTER COLUMN version DROP DEFAULT;
COMMENT ON COLUMN usage_counters.version IS 'How often the row was written. A commit that decided on an older version is rolled back and decides again; add 1 whenever you change a row by hand.';
CREATE INDEX usage_counters_list ON usage_counters (tenant, list_position);
-- The other collation keeps this index to those who ask for it: on an empty table the planner takes it to be as good as
-- the primary key for finding one pair, and would keep that plan while the table grows.
CREATE INDEX usage_counters_by_service ON usage_counters (tenant, service_id COLLATE "POSIX", list_position);

CREATE TABLE agents (
    tenant        text COLLATE "C" NOT NULL,
    agent         text COLLATE "C" NOT NULL,
    list_position bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT agents_pkey PRIMARY KEY (tenant, agent),
    CONSTRAINT agents_agent_form CHECK (agent !~ '[^A-Za-z0-9._-]' AND length(agent) BETWEEN 1 AND 256)
);
CREATE INDEX agents_list ON agents (tenant, list_position);
COMMENT ON TABLE agents IS 'One row is one agent of a tenant that has at least one pair.';
COMMENT ON COLUMN agents.tenant IS 'The tenant the agent belongs to.';
COMMENT ON COLUMN agents.agent IS 'The agent''s id.';
COMMENT ON COLUMN agents.list_position IS 'Lists show agents in this order: the order in which they were first seen.';
INSERT INTO agents (tenant, agent)
SELECT tenant, agent FROM usage_counters GROUP BY tenant, agent ORDER BY min(list_position);
ALTER TABLE usage_counters ADD CONSTRAINT usage_counters_agent_fkey FOREIGN KEY (tenant, agent)
    REFERENCES agents (tenant, agent);

CREATE TABLE service_totals (
    tenant           text COLLATE "C" NOT NULL,
    service_id       text COLLATE "C" NOT NULL,
    shard            smallint NOT NULL,
    outstanding      bigint NOT NULL DEFAULT 0,
    pairs_above_zero bigint NOT NULL DEFAULT 0,
    CONSTRAINT service_totals_pkey PRIMARY KEY (tenant, service_id, shard),
    CONSTRAINT service_totals_service_id_length CHECK (length(service_id) BETWEEN 1 AND 128),
    CONSTRAINT service_totals_shard_range CHECK (shard BETWEEN 0 AND 15)
) WITH (fillfactor = 50);
COMMENT ON TABLE service_totals IS 'Kept counts of what is outstanding per service, registered or not. A service''s figure is the sum over its rows; a single row may be negative.';
COMMENT ON COLUMN service_totals.tenant IS 'The tenant of the service.';
COMMENT ON COLUMN service_totals.service_id IS 'The service.';
COMMENT ON COLUMN service_totals.shard IS 'Writers spread over 16 rows per service, so that they do not wait for each other.';
COMMENT ON COLUMN service_totals.outstanding IS 'Requests recorded and not yet settled or reset, over all agents.';
COMMENT ON COLUMN service_totals.pairs_above_zero IS 'Agents with something outstanding.';
INSERT INTO service_totals (tenant, service_id, shard, outstanding, pairs_above_zero)
SELECT tenant, service_id, 0, sum(outstanding), count(*) FILTER (WHERE outstanding > 0)
FROM usage_counters GROUP BY tenant, service_id;

ALTER TABLE tenant_totals
    ADD COLUMN agents   bigint NOT NULL DEFAULT 0,
    ADD COLUMN events   bigint NOT NULL DEFAULT 0,
    ADD COLUMN webhooks bigint NOT NULL DEFAULT 0,
    ADD COLUMN api_keys bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE tenant_totals IS 'Kept counts, so that nothing is recounted. A tenant''s figure is the sum over its rows; a single row may be negative. The tenant * stands for all tenants together.';
COMMENT ON COLUMN tenant_totals.agents IS 'Rows in agents.';
COMMENT ON COLUMN tenant_totals.events IS 'Rows in events, those beyond limits.event_log_cap that are not pruned yet included.';
COMMENT ON COLUMN tenant_totals.webhooks IS 'Rows in webhooks; limits.webhook_store_max_keys bounds it.';
COMMENT ON COLUMN tenant_totals.api_keys IS 'Rows in api_keys.';
INSERT INTO tenant_totals AS total (tenant, shard, agents, events, api_keys)
SELECT tenant, 0,
       (SELECT count(*) FROM agents WHERE agents.tenant = tenants.tenant),
       (SELECT count(*) FROM events WHERE events.tenant = tenants.tenant),
       (SELECT count(*) FROM api_keys WHERE api_keys.tenant = tenants.tenant)
FROM tenants
ON CONFLICT (tenant, shard) DO UPDATE
SET agents = excluded.agents, events = excluded.events, api_keys = excluded.api_keys;
INSERT INTO tenant_totals (tenant, shard, pairs, pairs_above_zero, outstanding, lifetime, settlements, settled_stroops,
                           services, agents, events, api_keys)
SELECT '*', 0, sum(pairs), sum(pairs_above_zero), sum(outstanding), sum(lifetime), sum(settlements),
       sum(settled_stroops), sum(services), sum(agents), sum(events), sum(api_keys)
FROM tenant_totals;
