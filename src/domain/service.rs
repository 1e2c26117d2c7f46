//! Services: what a tenant sells, and at which price.

use schemars::JsonSchema;
use serde::Serialize;

use super::names::ServiceId;

/// Longest description, and longest owner, in UTF-16 code units.
pub const METADATA_TEXT_MAX: usize = 256;

// Texts for people; both or neither. No doc comment: it would describe every schema that this is a part of.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Metadata {
    pub description: String,
    pub owner: String,
}

/// A registration, new or repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub service_id: ServiceId,
    pub price_stroops: i64,
    pub metadata: Option<Metadata>,
}

/// One item of a bulk registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PricedService {
    pub service_id: ServiceId,
    pub price_stroops: i64,
}

/// One change of a registered service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEdit {
    Price(i64),
    Metadata(Metadata),
    Disabled(bool),
}

/// A registered service.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub service_id: ServiceId,
    pub price_stroops: i64,
    pub disabled: bool,
    #[serde(flatten)]
    pub metadata: Option<Metadata>,
}

/// What billing needs to know of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub price_stroops: i64,
    pub disabled: bool,
}
