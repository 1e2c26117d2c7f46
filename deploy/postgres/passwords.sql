-- Sets the passwords of the roles that log in, from the files of compose.yaml. Run it as a superuser, after roles.sql.
\set owner_password `cat /run/secrets/owner_password`
\set app_password `cat /run/secrets/app_password`

BEGIN;
-- The server's log would repeat them.
SET LOCAL log_statement = 'none';
SET LOCAL log_min_duration_statement = -1;
SET LOCAL log_min_error_statement = 'panic';
ALTER ROLE agentpay_owner PASSWORD :'owner_password';
ALTER ROLE agentpay_app PASSWORD :'app_password';
COMMIT;
