CREATE TABLE agents (
    tenant_id     varchar(64) COLLATE "C" NOT NULL,
    agent_id      varchar(256) COLLATE "C" NOT NULL,
    list_position bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT agents_pkey PRIMARY KEY (tenant_id, agent_id),
    CONSTRAINT agents_agent_id_form CHECK (agent_id ~ '^[A-Za-z0-9._-]+$')
);
-- Lists alone use this index: they ask in the collation "POSIX". On a table without statistics the planner considers it as
-- good as the primary key for finding one row, and would keep that plan while the table grows. The same holds for the
-- other indexes with this collation.
CREATE INDEX agents_list ON agents (tenant_id COLLATE "POSIX", list_position);
COMMENT ON TABLE agents IS 'One row per agent of a tenant that has used at least one service.';
COMMENT ON COLUMN agents.tenant_id IS 'The tenant that the agent belongs to.';
COMMENT ON COLUMN agents.agent_id IS 'The agent''s id, chosen by the tenant.';
COMMENT ON COLUMN agents.list_position IS 'Lists show agents in this order, the order of their first records.';

-- Half of each page is left free, so that an update finds room beside the row it replaces and touches no index.
CREATE TABLE usage_counters (
    tenant_id   varchar(64) COLLATE "C" NOT NULL,
    agent_id    varchar(256) COLLATE "C" NOT NULL,
    service_id  varchar(128) COLLATE "C" NOT NULL,
    pair_id     bigint GENERATED ALWAYS AS IDENTITY,
    outstanding bigint NOT NULL,
    settled     bigint NOT NULL DEFAULT 0,
    reset       bigint NOT NULL DEFAULT 0,
    version     bigint NOT NULL,
    CONSTRAINT usage_counters_pkey PRIMARY KEY (tenant_id, agent_id, service_id),
    CONSTRAINT usage_counters_pair_id_key UNIQUE (pair_id),
    CONSTRAINT usage_counters_agent_id_fkey FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, agent_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX usage_counters_list ON usage_counters (tenant_id COLLATE "POSIX", pair_id);
CREATE INDEX usage_counters_by_service ON usage_counters
    (tenant_id COLLATE "POSIX", service_id COLLATE "POSIX", pair_id);
COMMENT ON TABLE usage_counters IS 'One row per pair: what one agent of one tenant used of one service. Requests ever recorded = outstanding + settled + reset.';
COMMENT ON COLUMN usage_counters.tenant_id IS 'The tenant that the usage belongs to.';
COMMENT ON COLUMN usage_counters.agent_id IS 'The agent that made the requests.';
COMMENT ON COLUMN usage_counters.service_id IS 'The service that was used. It need not be registered.';
COMMENT ON COLUMN usage_counters.pair_id IS 'Number of the pair. Lists show pairs in this order, the order of their first records.';
COMMENT ON COLUMN usage_counters.outstanding IS 'Requests recorded and not yet settled or reset.';
COMMENT ON COLUMN usage_counters.settled IS 'Requests billed: the sum of this pair''s rows in settlements.';
COMMENT ON COLUMN usage_counters.reset IS 'Requests cleared without billing.';
COMMENT ON COLUMN usage_counters.version IS 'Drawn at random by every write. A commit that was decided on another version is rolled back and decided again. Change it whenever you change a row by hand.';
