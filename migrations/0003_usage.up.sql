CREATE TABLE agents (
    tenant_id     varchar(64) COLLATE "C" NOT NULL,
    agent_id      varchar(256) COLLATE "C" NOT NULL,
    list_position bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT agents_pkey PRIMARY KEY (tenant_id, agent_id),
    CONSTRAINT agents_agent_id_form CHECK (agent_id ~ '^[A-Za-z0-9._-]+$')
);
-- The collation keeps this index for lists, whose queries ask for it. On a table without statistics the planner
-- considers an index by tenant as good as the primary key for finding one row, and a cached plan would keep using it
-- while the table grows. The same holds for the other indexes with this collation.
CREATE INDEX agents_list ON agents (tenant_id COLLATE "POSIX", list_position);
COMMENT ON TABLE agents IS
    'Agents of each tenant that have used at least one service. No foreign key to tenants: it would lock the '
    'tenant''s row in every commit that adds an agent.';
COMMENT ON COLUMN agents.tenant_id IS 'The tenant that the agent belongs to.';
COMMENT ON COLUMN agents.agent_id IS 'Id of the agent, chosen by the tenant.';
COMMENT ON COLUMN agents.list_position IS
    'Ascending number. Lists show agents in this order, the order of their first usage.';
COMMENT ON INDEX agents_pkey IS 'Finds an agent by tenant and id.';
COMMENT ON INDEX agents_list IS
    'Lists the agents of a tenant. Used only by queries that ask for the collation "POSIX".';

-- Half of each page is left free: an update then finds space on the page of the row it replaces, and changes no index.
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
COMMENT ON TABLE usage_counters IS
    'One row per pair: the requests of one agent to one service. Requests ever recorded = outstanding + settled + '
    'reset. No foreign key to services: a service need not be registered to be used, and its usage outlives it.';
COMMENT ON COLUMN usage_counters.tenant_id IS 'The tenant that the usage belongs to.';
COMMENT ON COLUMN usage_counters.agent_id IS 'The agent that made the requests.';
COMMENT ON COLUMN usage_counters.service_id IS 'The service that was used. It need not be registered.';
COMMENT ON COLUMN usage_counters.pair_id IS
    'Number of the pair, ascending. Lists show pairs in this order, the order of their first usage.';
COMMENT ON COLUMN usage_counters.outstanding IS 'Requests recorded and neither settled nor reset.';
COMMENT ON COLUMN usage_counters.settled IS 'Requests billed: the sum of settlements.requests of this pair.';
COMMENT ON COLUMN usage_counters.reset IS 'Requests cleared without a bill.';
COMMENT ON COLUMN usage_counters.version IS
    'Random number that each write draws. A commit that was decided on another version is rolled back and decided '
    'again. Set it to another value whenever you change a row by hand.';
COMMENT ON INDEX usage_counters_pkey IS 'Finds a pair by name, and the pairs of an agent.';
COMMENT ON INDEX usage_counters_pair_id_key IS 'Finds the row to update or lock. Commits lock pairs in this order.';
COMMENT ON INDEX usage_counters_list IS
    'Exports the pairs of a tenant. Used only by queries that ask for the collation "POSIX".';
COMMENT ON INDEX usage_counters_by_service IS
    'Lists the pairs of a service. Used only by queries that ask for the collation "POSIX".';
