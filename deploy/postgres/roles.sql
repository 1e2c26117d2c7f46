-- The roles of an AgentPay database. Run it as a superuser in a new database, before the first migration; it can be repeated:
--     psql -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql agentpay
-- Then give agentpay_owner and agentpay_app their passwords (\password), or let pg_hba.conf ask for certificates. Run
-- `agentpay-billing migrate --grants` as agentpay_owner.
--
-- agentpay_owner     owns the schema and migrates it
-- agentpay_app       the service; it cannot change the schema, the ledger or stored responses
-- agentpay_reset     may delete the ledger. Only for test systems with ALLOW_ADMIN_RESET: GRANT agentpay_reset TO agentpay_app
-- agentpay_readonly  for DBAs: reads everything but secrets and the hashes of API keys
-- agentpay_auditor   reads what is billed, and runs `agentpay-billing verify`
-- The last three have no login. People have logins of their own: CREATE ROLE alice LOGIN IN ROLE agentpay_readonly

BEGIN;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['agentpay_owner', 'agentpay_app', 'agentpay_reset', 'agentpay_readonly', 'agentpay_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I', role);
        END IF;
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO agentpay_owner, agentpay_app, agentpay_readonly, agentpay_auditor',
                   current_database());
END $$;

ALTER ROLE agentpay_owner LOGIN;
ALTER ROLE agentpay_app LOGIN;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO agentpay_owner;
GRANT USAGE ON SCHEMA public TO agentpay_app, agentpay_readonly, agentpay_auditor;

-- A migration that waits for a table names the session that keeps it. DBAs see what all sessions do.
GRANT pg_read_all_stats TO agentpay_owner, agentpay_readonly;

-- A table of a new migration can be used at once: the service need not wait for grants.sql, which narrows these rights.
ALTER DEFAULT PRIVILEGES FOR ROLE agentpay_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO agentpay_app;
ALTER DEFAULT PRIVILEGES FOR ROLE agentpay_owner IN SCHEMA public GRANT USAGE ON SEQUENCES TO agentpay_app;

COMMIT;
