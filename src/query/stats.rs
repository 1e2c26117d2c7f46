//! Statistics: the maintained totals of a tenant, or of all tenants, with a page of the services.

use std::sync::Arc;
use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::StoreError;
use crate::store::totals::{self, ServiceLine, ServiceSlice, Totals};

use super::reader::{Reader, Reads};

/// The data of the statistics.
#[derive(Debug)]
pub struct Figures {
    pub totals: Totals,
    pub lines: Vec<ServiceLine>,
}

/// The figures of several cells as one: the sums, and the first `limit` services of all.
pub fn sum(cells: impl ExactSizeIterator<Item = Arc<Figures>>, limit: i64) -> Arc<Figures> {
    let is_one = cells.len() == 1;
    let mut sum = Figures { totals: Totals::default(), lines: Vec::new() };
    for figures in cells {
        if is_one {
            return figures;
        }
        sum.totals.add(&figures.totals);
        sum.lines.extend_from_slice(&figures.lines);
    }
    sum.lines
        .sort_unstable_by(|one, other| (&one.tenant_id, &one.service_id).cmp(&(&other.tenant_id, &other.service_id)));
    sum.lines.truncate(limit as usize);
    Arc::new(sum)
}

/// Coalesced reads of statistics.
#[derive(Debug)]
pub struct Stats(Reads<ServiceSlice, Arc<Figures>>);

impl Default for Stats {
    fn default() -> Self {
        // A tenant may have ten thousand services, so one read takes few keys.
        Self(Reads::new(64))
    }
}

impl Stats {
    pub async fn load(&self, reader: &Reader, slice: ServiceSlice, deadline: Instant) -> Result<Arc<Figures>, Refusal> {
        reader.load(&self.0, slice, deadline, read).await
    }
}

async fn read(connection: &mut PgConnection, slices: &[ServiceSlice]) -> Result<Vec<Arc<Figures>>, StoreError> {
    let tenants: Vec<&str> = slices.iter().filter_map(|slice| slice.tenant.as_ref()).map(Tenant::as_str).collect();
    let mut of_tenants = totals::of_each(connection, &tenants).await?.into_iter();
    let mut of_all = None;
    let mut totals = Vec::with_capacity(slices.len());
    for slice in slices {
        totals.push(match (&slice.tenant, of_all) {
            (Some(_), _) => of_tenants.next().unwrap_or_default(),
            (None, Some(known)) => known,
            (None, None) => *of_all.insert(totals::of_all(connection).await?),
        });
    }
    let lines = totals::service_lines(connection, slices).await?;
    Ok(totals.into_iter().zip(lines).map(|(totals, lines)| Arc::new(Figures { totals, lines })).collect())
}
