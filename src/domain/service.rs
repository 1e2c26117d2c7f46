//! Services and their prices.

use schemars::JsonSchema;
use serde::Serialize;

use super::money::Price;
use super::names::ServiceId;

/// Maximum length of a description and of an owner, in UTF-16 code units.
pub const METADATA_TEXT_MAX: usize = 256;

// Texts for people; both are present or none. Not a doc comment, because that would describe every schema that contains
// this.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Metadata {
    pub description: String,
    pub owner: String,
}

/// A registration of a new or an existing service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub service_id: ServiceId,
    pub price_stroops: Price,
    pub metadata: Option<Metadata>,
}

/// One item of a bulk registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PricedService {
    pub service_id: ServiceId,
    pub price_stroops: Price,
}

impl PricedService {
    /// The service as it is once it is registered.
    pub fn to_service(&self) -> Service {
        let Self { service_id, price_stroops } = self.clone();
        Service { service_id, price_stroops, disabled: false, metadata: None }
    }
}

/// A change of a registered service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEdit {
    Price(Price),
    Metadata(Metadata),
    Disabled(bool),
}

/// A registered service.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub service_id: ServiceId,
    pub price_stroops: Price,
    pub disabled: bool,
    #[serde(flatten)]
    pub metadata: Option<Metadata>,
}

/// The terms of a service: what billing needs to know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub price_stroops: Price,
    pub disabled: bool,
}
