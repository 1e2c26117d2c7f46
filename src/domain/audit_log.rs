//! The audit log: who changed what. A change of configuration is one entry, written in the transaction of the change.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::caller::{ClientAddress, Tenant};
use super::identifiers::KeyPrefix;
use super::timestamp::Timestamp;

/// Who makes a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The holder of the admin key.
    Admin,
    /// A request without a recognised key.
    Anonymous,
    /// A command.
    Cli,
    ApiKey(KeyPrefix),
    /// The service itself, which gives up webhooks.
    Service,
}

impl fmt::Display for Actor {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str(match self {
            Self::Admin => "admin",
            Self::Anonymous => "anonymous",
            Self::Cli => "cli",
            Self::ApiKey(prefix) => prefix.as_str(),
            Self::Service => "service",
        })
    }
}

/// Where a change comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub actor: Actor,
    /// None if no request makes the change.
    pub address: Option<ClientAddress>,
}

impl Origin {
    pub const CLI: Self = Self { actor: Actor::Cli, address: None };
    pub const SERVICE: Self = Self { actor: Actor::Service, address: None };
}

/// What is done, as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    ServiceCreated,
    ServiceUpdated,
    ServiceDisabled,
    ServiceEnabled,
    ServiceDeleted,
    ApiKeyCreated,
    ApiKeyRotated,
    ApiKeyRotationCancelled,
    ApiKeyRevoked,
    WebhookCreated,
    WebhookUpdated,
    WebhookSecretRotated,
    WebhookDisabled,
    WebhookDeleted,
    DeliveriesRequested,
    SecretsEncrypted,
    SecretsDecrypted,
    ConfigUpdated,
    WritesPaused,
    WritesResumed,
    DataReset,
}

impl Operation {
    pub const ALL: [Self; 21] = [
        Self::ServiceCreated,
        Self::ServiceUpdated,
        Self::ServiceDisabled,
        Self::ServiceEnabled,
        Self::ServiceDeleted,
        Self::ApiKeyCreated,
        Self::ApiKeyRotated,
        Self::ApiKeyRotationCancelled,
        Self::ApiKeyRevoked,
        Self::WebhookCreated,
        Self::WebhookUpdated,
        Self::WebhookSecretRotated,
        Self::WebhookDisabled,
        Self::WebhookDeleted,
        Self::DeliveriesRequested,
        Self::SecretsEncrypted,
        Self::SecretsDecrypted,
        Self::ConfigUpdated,
        Self::WritesPaused,
        Self::WritesResumed,
        Self::DataReset,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceCreated => "service.created",
            Self::ServiceUpdated => "service.updated",
            Self::ServiceDisabled => "service.disabled",
            Self::ServiceEnabled => "service.enabled",
            Self::ServiceDeleted => "service.deleted",
            Self::ApiKeyCreated => "api_key.created",
            Self::ApiKeyRotated => "api_key.rotated",
            Self::ApiKeyRotationCancelled => "api_key.rotation_cancelled",
            Self::ApiKeyRevoked => "api_key.revoked",
            Self::WebhookCreated => "webhook.created",
            Self::WebhookUpdated => "webhook.updated",
            Self::WebhookSecretRotated => "webhook.secret_rotated",
            Self::WebhookDisabled => "webhook.disabled",
            Self::WebhookDeleted => "webhook.deleted",
            Self::DeliveriesRequested => "webhook.deliveries_requested",
            Self::SecretsEncrypted => "secrets.encrypted",
            Self::SecretsDecrypted => "secrets.decrypted",
            Self::ConfigUpdated => "config.updated",
            Self::WritesPaused => "writes.paused",
            Self::WritesResumed => "writes.resumed",
            Self::DataReset => "data.reset",
        }
    }
}

/// One change. What it shows of the object holds no secret.
#[derive(Clone, Debug)]
pub struct Change {
    pub operation: Operation,
    /// None: the whole service.
    pub tenant: Option<Tenant>,
    /// Id of the service or webhook, or prefix of the key. None: the runtime configuration, or all data.
    pub object_id: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
}

impl Change {
    /// Of an object of a tenant.
    pub fn of(operation: Operation, tenant: &Tenant, object_id: impl Into<String>) -> Self {
        Self { operation, tenant: Some(tenant.clone()), object_id: Some(object_id.into()), before: None, after: None }
    }

    /// Of the whole service.
    pub fn of_service(operation: Operation) -> Self {
        Self { operation, tenant: None, object_id: None, before: None, after: None }
    }

    /// The object before the change.
    pub fn from(self, before: impl Serialize) -> Self {
        Self { before: Some(shown(before)), ..self }
    }

    /// The object after the change.
    pub fn to(self, after: impl Serialize) -> Self {
        Self { after: Some(shown(after)), ..self }
    }

    pub fn before(&self) -> Option<String> {
        self.before.as_ref().map(Value::to_string)
    }

    pub fn after(&self) -> Option<String> {
        self.after.as_ref().map(Value::to_string)
    }
}

/// A change as it is read.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "AuditEntry")]
pub struct Entry {
    pub id: String,
    pub changed_at: Timestamp,
    pub actor: String,
    pub address: Option<String>,
    pub request_id: Option<String>,
    pub operation: String,
    pub tenant_id: Option<String>,
    pub object_id: Option<String>,
    pub before: Option<Map<String, Value>>,
    pub after: Option<Map<String, Value>>,
}

fn shown(object: impl Serialize) -> Value {
    serde_json::to_value(object).expect("what is shown of an object is JSON")
}
