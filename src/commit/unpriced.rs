//! Reports settlements without a price. The service of such usage is not registered, probably because its id is
//! misspelt, and the usage is billed at zero.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::metrics;

/// Maximum number of services that are logged by name. Clients choose the names, so there may be any number.
const NAMED_MAX: usize = 1000;

/// The services that were logged, so that each is logged once.
#[derive(Debug, Default)]
pub struct UnpricedServices(Mutex<HashSet<(Tenant, ServiceId)>>);

impl UnpricedServices {
    /// Counts committed settlements without a price, and logs each service once.
    pub fn note(&self, settled: Vec<(Tenant, ServiceId)>) {
        for (tenant, service_id) in settled {
            metrics::settled_without_price();
            if self.is_news(&tenant, &service_id) {
                let (tenant, service) = (tenant.as_str(), service_id.as_str());
                warn!(tenant, service, "settled without a price: the service is not registered");
            }
        }
    }

    fn is_news(&self, tenant: &Tenant, service_id: &ServiceId) -> bool {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        named.len() < NAMED_MAX && named.insert((tenant.clone(), service_id.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_is_news_once_and_a_thousand_are_named() {
        let services = UnpricedServices::default();
        let is_news = |text: &str| services.is_news(&Tenant::public(), &ServiceId::from_stored(text.to_owned()));
        for number in 0..NAMED_MAX {
            assert!(is_news(&number.to_string()));
            assert!(!is_news(&number.to_string()));
        }
        assert!(!is_news("another"));
    }
}
