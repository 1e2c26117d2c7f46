//! Outstanding usage and what settling it would cost: of one pair, and of all pairs of a tenant.

use std::time::Instant;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::totals::{self, Due};
use crate::store::usage::{self, CounterId, Quoted};

use super::reader::{Reader, Reads};

/// Coalesced reads of pairs.
#[derive(Debug)]
pub struct Quotes(Reads<CounterId, Quoted>);

impl Default for Quotes {
    fn default() -> Self {
        Self(Reads::new(256))
    }
}

impl Quotes {
    pub async fn load(&self, reader: &Reader, id: CounterId, deadline: Instant) -> Result<Quoted, Refusal> {
        reader.load(&self.0, id, deadline, usage::quotes).await
    }
}

/// Coalesced reads of what tenants owe.
#[derive(Debug)]
pub struct DueTotals(Reads<Tenant, Due>);

impl Default for DueTotals {
    fn default() -> Self {
        Self(Reads::new(64))
    }
}

impl DueTotals {
    pub async fn load(&self, reader: &Reader, tenant: Tenant, deadline: Instant) -> Result<Due, Refusal> {
        reader.load(&self.0, tenant, deadline, totals::due).await
    }
}
