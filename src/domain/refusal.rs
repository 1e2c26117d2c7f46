//! Every reason to refuse a request, with its status, code and message (HTTP contract, sections 5.2 and 5.3).

use std::fmt;

use super::api_key::{Scope, Scopes};
use super::echo::Echo;
use super::names::ServiceId;
use super::usage::Pair;

/// Why a request was refused. [`fmt::Display`] gives the message for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    // The request head, and what is held for its client.
    MalformedHead,
    HeadTimeout,
    HeadTooLarge,
    TargetTooLong,
    Host,
    TransferEncoding,
    TransferCoding,
    TooManyConnections,
    TooManyBytesHeld,
    // The body, the query and the path.
    MalformedJson,
    MediaType,
    Encoding,
    Charset,
    Decompression,
    BodyTooLarge,
    BodyTimeout,
    BodyNotObject,
    NulCharacter,
    UnexpectedField(String),
    UnexpectedParameter(String),
    PathEscape,
    CursorMalformed,
    CursorExpired,
    ListTooLong {
        items_max: i64,
    },
    // The route and access.
    NoRoute {
        method: String,
        path: String,
    },
    MethodNotAllowed {
        method: String,
        path: String,
    },
    AdminKeyForWrites,
    AdminKeyForReads,
    ApiKeyForWrites,
    KeyForMetrics,
    /// A write without required API keys, from another site or to another host name.
    Foreign,
    /// Usage and settlements of a tenant that the operator named.
    OperatorMeters,
    /// The API key lacks a scope; the route needs one of these.
    MissingScope(Scopes),
    Paused,
    /// More than `limit` requests within `window_ms`.
    RateLimited {
        limit: i64,
        window_ms: i64,
    },
    // Idempotency.
    KeySyntax,
    KeyRepeated,
    KeyConflict,
    KeyInFlight,
    KeyUnknown,
    /// The caller is over a cap, and none of its records may be evicted.
    TooManyRecords,
    // Identifiers and numbers.
    Agent,
    Service,
    AgentAndService,
    Requests,
    UsageItems {
        bulk_max_items: i64,
    },
    Price,
    ServiceItems {
        bulk_max_items: i64,
    },
    Description,
    Owner,
    Disabled,
    Label,
    TenantId,
    CellName,
    NoCells,
    CellNotFound(String),
    CellClosed(String),
    CellOfTenant {
        tenant: String,
        cell: String,
    },
    KeyOwner,
    Prefix,
    ScopeNames,
    KeyExpiry,
    KeyLifetime,
    Overlap,
    WebhookUrl,
    WebhookTarget,
    WebhookEvents,
    WebhookEventType(String),
    WebhookNothing,
    Redelivery,
    ConfigKeys(Vec<String>),
    ConfigValue {
        key: &'static str,
        max: i64,
    },
    // Objects that do not exist, are not allowed, or are too many.
    ServiceNotRegistered(ServiceId),
    ServiceDisabled(ServiceId),
    NoMetadata(ServiceId),
    NoUsage(Pair),
    SettlementNotFound(String),
    TenantNotFound(String),
    ApiKeyNotFound(String),
    ApiKeyRotated(String),
    WebhookNotFound(String),
    AdminResetDisabled,
    UsageCapacity,
    ServiceCapacity,
    WebhookCapacity,
    ApiKeyCapacity,
    /// The receiver did not accept a test. `reason` is `status <n>`, `timeout`, `connection failed` or `private
    /// address`.
    WebhookFailed {
        id: String,
        reason: String,
    },
    // The state of the service.
    Starting,
    /// The tenant is being moved to another cell.
    TenantMoving,
    /// The tenant does not live in this cell: the directory that led here is old.
    TenantElsewhere,
    StoreUnavailable,
    QueueFull,
    OutcomeUnknown,
    Internal,
}

impl Refusal {
    /// HTTP status and error code (HTTP contract, section 5.2).
    pub fn status_and_code(&self) -> (u16, &'static str) {
        use Refusal::*;
        match self {
            MalformedHead
            | Host
            | TransferEncoding
            | MalformedJson
            | Decompression
            | BodyNotObject
            | NulCharacter
            | UnexpectedField(_)
            | UnexpectedParameter(_)
            | PathEscape
            | CursorMalformed
            | CursorExpired
            | ListTooLong { .. }
            | Agent
            | Service
            | AgentAndService
            | Requests
            | UsageItems { .. }
            | Price
            | ServiceItems { .. }
            | Description
            | Owner
            | Disabled
            | Label
            | TenantId
            | CellName
            | NoCells
            | CellNotFound(_)
            | CellClosed(_)
            | CellOfTenant { .. }
            | KeyOwner
            | Prefix
            | ScopeNames
            | KeyExpiry
            | KeyLifetime
            | Overlap
            | WebhookUrl
            | WebhookTarget
            | WebhookEvents
            | WebhookEventType(_)
            | WebhookNothing
            | Redelivery
            | ConfigKeys(_)
            | ConfigValue { .. } => (400, "invalid_request"),
            KeySyntax | KeyRepeated => (400, "invalid_idempotency_key"),
            AdminKeyForWrites | AdminKeyForReads | ApiKeyForWrites | KeyForMetrics => (401, "unauthorized"),
            Foreign | OperatorMeters => (403, "forbidden"),
            MissingScope(_) => (403, "insufficient_scope"),
            NoRoute { .. }
            | KeyUnknown
            | ServiceNotRegistered(_)
            | NoMetadata(_)
            | NoUsage(_)
            | SettlementNotFound(_)
            | TenantNotFound(_)
            | ApiKeyNotFound(_)
            | WebhookNotFound(_)
            | AdminResetDisabled => (404, "not_found"),
            MethodNotAllowed { .. } => (405, "method_not_allowed"),
            BodyTimeout | HeadTimeout => (408, "request_timeout"),
            ServiceDisabled(_) => (409, "service_disabled"),
            ApiKeyRotated(_) => (409, "already_rotated"),
            KeyConflict => (409, "idempotency_conflict"),
            KeyInFlight => (409, "idempotency_in_flight"),
            BodyTooLarge => (413, "payload_too_large"),
            TargetTooLong => (414, "uri_too_long"),
            MediaType | Encoding | Charset => (415, "unsupported_media_type"),
            RateLimited { .. } => (429, "rate_limited"),
            UsageCapacity | ServiceCapacity | WebhookCapacity | ApiKeyCapacity => (429, "store_capacity_exceeded"),
            HeadTooLarge => (431, "request_header_fields_too_large"),
            Internal => (500, "internal_error"),
            TransferCoding => (501, "not_implemented"),
            WebhookFailed { .. } => (502, "webhook_failed"),
            Paused => (503, "service_paused"),
            TenantMoving | TenantElsewhere => (503, "tenant_moving"),
            Starting | StoreUnavailable | QueueFull | OutcomeUnknown | TooManyConnections | TooManyBytesHeld
            | TooManyRecords => (503, "service_unavailable"),
        }
    }

    /// Whether the request certainly had no effect.
    pub fn changed_nothing(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown | Self::Internal)
    }

    /// `Retry-After` in seconds.
    pub fn retry_after(&self) -> Option<u16> {
        match self {
            Self::KeyInFlight
            | Self::Starting
            | Self::TenantMoving
            | Self::TenantElsewhere
            | Self::StoreUnavailable
            | Self::QueueFull
            | Self::OutcomeUnknown
            | Self::TooManyConnections
            | Self::TooManyBytesHeld => Some(1),
            Self::TooManyRecords => Some(60),
            _ => None,
        }
    }

    /// Whether the response is stored under an idempotency key.
    pub fn is_stored(&self) -> bool {
        match self.status_and_code() {
            (400, "invalid_request") | (404, _) => true,
            (409, code) => code == "service_disabled",
            _ => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Refusal::*;
        let message = match self {
            UnexpectedField(name) => return write!(text, "unexpected field: {}", Echo(name)),
            UnexpectedParameter(name) => return write!(text, "unexpected query parameter: {}", Echo(name)),
            NoRoute { method, path } => return write!(text, "No route for {} {}", Echo(method), Echo(path)),
            MethodNotAllowed { method, path } => {
                return write!(text, "method {} is not allowed for {}", Echo(method), Echo(path));
            }
            ListTooLong { items_max } => {
                return write!(text, "the list has more than {items_max} items: read it with page and limit");
            }
            UsageItems { bulk_max_items } => {
                return write!(text, "items must be a non-empty array of up to {bulk_max_items} entries");
            }
            ServiceItems { bulk_max_items } => return write!(text, "items must be 1-{bulk_max_items} entries"),
            ConfigKeys(keys) => return write!(text, "unknown config keys: {}", Echo(&keys.join(", "))),
            ConfigValue { key, max } => return write!(text, "{key} must be an integer between 1 and {max}"),
            RateLimited { limit, window_ms } => {
                // Seconds as the shortest decimal: 60, 2.5, 0.001.
                return write!(text, "more than {limit} requests per {}s", *window_ms as f64 / 1000.0);
            }
            NoMetadata(id) => return write!(text, "no metadata for service {id}"),
            NoUsage(pair) => return write!(text, "no usage recorded for {}/{}", pair.agent, pair.service_id),
            WebhookEventType(name) => return write!(text, "unknown event type: {}", Echo(name)),
            WebhookNotFound(id) => return write!(text, "webhook {} not registered", Echo(id)),
            WebhookFailed { id, reason } => {
                return write!(text, "webhook {id} did not accept the test delivery: {reason}");
            }
            ServiceNotRegistered(id) => return write!(text, "service {id} is not registered"),
            ServiceDisabled(id) => return write!(text, "service {id} is currently disabled"),
            SettlementNotFound(id) => return write!(text, "settlement {} not found", Echo(id)),
            CellNotFound(id) => return write!(text, "no cell with id {}", Echo(id)),
            CellClosed(id) => return write!(text, "the cell {} accepts no new tenants", Echo(id)),
            CellOfTenant { tenant, cell } => {
                return write!(text, "the tenant {} lives in the cell {cell}", Echo(tenant));
            }
            TenantNotFound(id) => return write!(text, "no tenant with id {}", Echo(id)),
            ApiKeyRotated(prefix) => return write!(text, "api key {} was already rotated", Echo(prefix)),
            MissingScope(needed) => {
                let needed = needed.and(Scope::Admin).names().join(" or ");
                return write!(text, "the API key needs the scope {needed}");
            }
            ApiKeyNotFound(prefix) => return write!(text, "no api key with prefix {}", Echo(prefix)),
            MalformedHead => "the request head is malformed",
            HeadTimeout => "the request head was not received in time",
            HeadTooLarge => "the request head exceeds 64 KiB or 100 headers",
            TargetTooLong => "the request target is too long",
            Host => "exactly one valid Host header is required",
            TransferEncoding => "Transfer-Encoding must be chunked, once",
            TransferCoding => "unsupported Transfer-Encoding",
            TooManyConnections => "too many connections are open; nothing was changed",
            TooManyBytesHeld => "too many bytes wait for slow clients; nothing was changed",
            MalformedJson => "Malformed JSON in request body",
            MediaType => "write requests with a body must use Content-Type: application/json",
            Encoding => "unsupported Content-Encoding",
            Charset => "request bodies must use UTF-8",
            Decompression => "request body could not be decompressed",
            BodyTooLarge => "request body exceeds the 100 KiB limit",
            BodyTimeout => "request body was not received in time",
            BodyNotObject => "body must be a JSON object",
            NulCharacter => "text must not contain U+0000",
            PathEscape => "request path has an invalid percent-escape",
            CursorMalformed => "cursor is malformed",
            CursorExpired => "cursor is invalid or expired",
            AdminKeyForWrites => "valid ADMIN_API_KEY required for privileged writes",
            AdminKeyForReads => "valid ADMIN_API_KEY required for privileged reads",
            ApiKeyForWrites => "valid X-API-Key required for write request",
            KeyForMetrics => "valid ADMIN_API_KEY or METRICS_TOKEN required for metrics",
            Foreign => {
                "without REQUIRE_API_KEY, writes from other sites or with a Host other than localhost are forbidden"
            }
            OperatorMeters => "the operator cannot record, reset or settle usage for a tenant: use a key of the tenant",
            Paused => "AgentPay backend is paused; only admin/unpause and reads are accepted",
            KeySyntax => "Idempotency-Key must be 1-255 visible ASCII characters",
            KeyRepeated => "Idempotency-Key must be sent once",
            KeyConflict => "Idempotency-Key was already used with a different request body or route",
            KeyInFlight => "a request with this Idempotency-Key is still being processed",
            KeyUnknown => "no request is recorded under this Idempotency-Key",
            TooManyRecords => {
                "too many idempotency records are stored for this caller; requests with a new Idempotency-Key are refused \
                 until some may be deleted; nothing was changed"
            }
            Agent => "agent must be a safe identifier",
            Service => "serviceId must be 1-128 chars using only letters, numbers, dot, underscore, or hyphen",
            AgentAndService => "agent and serviceId must be safe identifiers",
            Requests => "requests must be a positive integer",
            Price => "priceStroops must be a non-negative integer within supported bounds",
            Description => "description must be a string up to 256 chars",
            Owner => "owner must be a non-empty string up to 256 chars",
            Disabled => "disabled must be a boolean",
            WebhookUrl => "url must be an http(s) URL up to 2048 chars",
            WebhookTarget => "url must not target a private, loopback or link-local address",
            WebhookEvents => "events must be a non-empty array of strings",
            WebhookNothing => "at least one of url or events is required",
            Redelivery => {
                "exactly one of deliveryIds (1-100 ids), failedSince and missedSince (milliseconds) is required"
            }
            AdminResetDisabled => "admin reset is disabled",
            WebhookCapacity => "webhook store capacity exceeded",
            Label => "label must be a non-empty string up to 64 chars",
            CellName => "cell must be 1-32 lowercase letters, digits or hyphens, beginning with no hyphen",
            NoCells => "cell cannot be named: this service has one database",
            TenantId => "tenantId must be a string of 1-64 chars",
            KeyOwner => "exactly one of tenantId and address is required",
            ScopeNames => "scopes must be a non-empty array of usage:write, settle:write, read, webhooks or admin",
            KeyExpiry => "expiresAt must be a time in the future, in milliseconds since the Unix epoch",
            KeyLifetime => {
                "expiresAt is required: with the lifetime of the old key the new one would end after the year 9999"
            }
            Overlap => "overlapSeconds must be an integer between 0 and 2592000",
            Prefix => "prefix must be 1-64 alphanumeric/underscore characters",
            UsageCapacity => "usage store capacity exceeded",
            ServiceCapacity => "service store capacity exceeded",
            ApiKeyCapacity => "api key store capacity exceeded",
            Starting => "the service is starting; nothing was changed",
            TenantMoving | TenantElsewhere => "the tenant is being moved to another database; nothing was changed",
            StoreUnavailable => "the store is unavailable; nothing was changed",
            QueueFull => "the write queue is full; nothing was changed",
            OutcomeUnknown => {
                "the outcome of this write is unknown; \
                 repeat it with the same Idempotency-Key, or check before repeating it"
            }
            Internal => "Unexpected server error",
        };
        text.write_str(message)
    }
}
