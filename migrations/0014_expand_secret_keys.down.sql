-- Run `agentpay-billing secrets decrypt` first: an encrypted secret violates the constraints.
ALTER TABLE webhooks
    DROP CONSTRAINT webhooks_secret_length,
    DROP CONSTRAINT webhooks_previous_secret_length,
    DROP COLUMN secret_key_id,
    DROP COLUMN previous_secret_key_id,
    ADD CONSTRAINT webhooks_secret_length CHECK (octet_length(secret) = 32),
    ADD CONSTRAINT webhooks_previous_secret_length CHECK (octet_length(previous_secret) = 32);
COMMENT ON COLUMN webhooks.secret IS
    'Key that deliveries are signed with. The API shows it once, in the response that creates the webhook.';
