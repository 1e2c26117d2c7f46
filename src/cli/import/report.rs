//! What an import did, and what it left.

use serde::Serialize;

use crate::cli::table::Table;
use crate::domain::caller::Tenant;

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// None if only keys were imported.
    pub tenant_id: Option<Tenant>,
    pub keys: Count,
    pub services: Count,
    pub pairs: Count,
    pub requests: Count,
    pub disabled_services: Count,
    pub failures: Vec<Failure>,
}

/// How many were imported now, and how many by an earlier run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub now: i64,
    pub earlier: i64,
}

impl Count {
    pub fn add(&mut self, count: i64, was_earlier: bool) {
        *(if was_earlier { &mut self.earlier } else { &mut self.now }) += count;
    }
}

/// Something that was not imported.
#[derive(Debug, Serialize)]
pub struct Failure {
    pub item: String,
    pub error: String,
}

impl Report {
    pub fn to_table(&self) -> Table {
        let mut table = Table::with_header(["", "NOW", "EARLIER"]);
        let counts = [
            ("keys created", self.keys),
            ("services registered", self.services),
            ("pairs recorded", self.pairs),
            ("requests recorded", self.requests),
            ("services disabled", self.disabled_services),
        ];
        for (name, Count { now, earlier }) in counts {
            table.add([name, &now.to_string(), &earlier.to_string()]);
        }
        if let Some(tenant) = &self.tenant_id {
            table.add(["tenant", tenant.as_str(), ""]);
        }
        for Failure { item, error } in &self.failures {
            table.add(["NOT IMPORTED", error, item]);
        }
        table
    }
}
