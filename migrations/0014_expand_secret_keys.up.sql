-- The key that each secret of a webhook is encrypted with. A program of the release before cannot read an encrypted secret: its
-- lease fails, for all webhooks that it leases together. Set ENCRYPTION_KEYS when no such program runs any more.
ALTER TABLE webhooks
    ADD COLUMN secret_key_id          varchar(32) COLLATE "C",
    ADD COLUMN previous_secret_key_id varchar(32) COLLATE "C",
    -- Both permit more afterwards.
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT webhooks_secret_length,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT webhooks_previous_secret_length,
    -- 32 bytes, or a nonce of 12 bytes, 32 encrypted bytes and a tag of 16 bytes.
    ADD CONSTRAINT webhooks_secret_length
        CHECK (octet_length(secret) = CASE WHEN secret_key_id IS NULL THEN 32 ELSE 60 END) NOT VALID,
    ADD CONSTRAINT webhooks_previous_secret_length
        CHECK (octet_length(previous_secret) = CASE WHEN previous_secret_key_id IS NULL THEN 32 ELSE 60 END) NOT VALID;
COMMENT ON COLUMN webhooks.secret IS
    'Key that deliveries are signed with, encrypted with the key secret_key_id. The API shows it once, in the response that '
    'creates the webhook.';
COMMENT ON COLUMN webhooks.secret_key_id IS
    'Id of the key in ENCRYPTION_KEYS that secret is encrypted with (AES-256-GCM). NULL: it is plain text.';
COMMENT ON COLUMN webhooks.previous_secret_key_id IS
    'Id of the key in ENCRYPTION_KEYS that previous_secret is encrypted with. NULL: it is plain text, or there is none.';
