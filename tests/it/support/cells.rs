//! Several cells, each with a database, and the CELLS_FILE that lists them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};
use tokio::sync::Mutex;

use super::postgres::directly;
use super::{Client, new_database, pool, setting, url};

/// A cell. The first one is the home cell.
pub struct CellOfTest {
    pub id: &'static str,
    pub pool: PgPool,
}

pub struct Cells {
    pub cells: Vec<CellOfTest>,
    /// The databases in the order of the cells, as the service reaches them.
    pub databases: Vec<PgConnectOptions>,
    file: PathBuf,
}

/// The cells of each home database, for several services on one database.
static AROUND: Mutex<BTreeMap<String, Weak<Cells>>> = Mutex::const_new(BTreeMap::new());

/// Whether TEST_CELLS is set, for a test that cannot apply then. Prints why.
pub fn needs_one_cell(reason: &str) -> bool {
    let has_cells = count() > 1;
    if has_cells {
        println!("skipped with several cells: {reason}");
    }
    has_cells
}

fn count() -> usize {
    usize::try_from(setting("TEST_CELLS", 1)).expect("a number")
}

impl Cells {
    /// If TEST_CELLS is set: makes `database` the home cell of so many, in which nearly all tenants live elsewhere. Not for
    /// tests that have cells, or reset everything.
    pub async fn around(database: &PgConnectOptions, environment: &[(&str, &str)]) -> Option<Arc<Self>> {
        let count = count();
        let excludes = |name: &str| matches!(name, "CELLS_FILE" | "ALLOW_ADMIN_RESET");
        if count < 2 || environment.iter().any(|(name, _)| excludes(name)) {
            return None;
        }
        let mut all = AROUND.lock().await;
        let name = database.get_database().expect("a name").to_owned();
        if let Some(cells) = all.get(&name).and_then(Weak::upgrade) {
            return Some(cells);
        }
        let mut databases = vec![directly(database).await];
        let home = pool(&databases[0]);
        let is_cell = sqlx::query_scalar("SELECT EXISTS (SELECT FROM cell_identity)").fetch_one(&home).await;
        if is_cell.expect("a schema") {
            return None;
        }
        for _ in 1..count {
            databases.push(new_database().await);
        }
        let ids = [("home", 1), ("c-1", 100), ("c-2", 100), ("c-3", 100), ("c-4", 100)];
        let cells = Arc::new(Self::of(&ids[..count], databases).await);
        all.insert(name, Arc::downgrade(&cells));
        Some(cells)
    }

    /// New databases of the server of all tests, with these ids and weights.
    pub async fn start(cells: &[(&'static str, u32)]) -> Self {
        let mut databases = Vec::new();
        for _ in cells {
            databases.push(new_database().await);
        }
        Self::of(cells, databases).await
    }

    /// Of databases with the schema and without data.
    pub async fn of(cells: &[(&'static str, u32)], databases: Vec<PgConnectOptions>) -> Self {
        let pools: Vec<PgPool> = databases.iter().map(pool).collect();
        let deployment = uuid::Uuid::new_v4();
        for (number, (id, _)) in cells.iter().enumerate() {
            let join = format!(
                "INSERT INTO cell_identity (cell_id, deployment_id) VALUES ('{id}', '{deployment}');
                 ALTER TABLE usage_counters ALTER COLUMN pair_id SET INCREMENT BY 1024 RESTART WITH {}",
                1024 + number
            );
            pools[number].execute(AssertSqlSafe(join)).await.expect("an identity");
            if number > 0 {
                // Requests without a key belong to the home cell.
                let leave = "UPDATE tenants SET residence = 'elsewhere', terms_revision = 1 WHERE tenant_id = 'public'";
                pools[number].execute(leave).await.expect("the public tenant");
            }
            let add = format!("INSERT INTO cells (cell_id, number) VALUES ('{id}', {number})");
            pools[0].execute(AssertSqlSafe(add)).await.expect("a cell");
        }
        let file = std::env::temp_dir().join(format!("agentpay-cells-{}.toml", uuid::Uuid::new_v4()));
        let own = cells.iter().zip(pools).map(|((id, _), pool)| CellOfTest { id, pool });
        let all = Self { cells: own.collect(), databases, file };
        all.write_file(cells);
        all
    }

    /// Writes the file again after a change of `databases`.
    pub fn write_file(&self, cells: &[(&'static str, u32)]) {
        let mut text = String::new();
        for ((id, weight), database) in cells.iter().zip(&self.databases) {
            let url = url(database);
            let _ = write!(text, "[[cell]]\nid = \"{id}\"\nurl = \"{url}\"\nweight = {weight}\n\n");
        }
        std::fs::write(&self.file, text).expect("CELLS_FILE");
    }

    pub fn file(&self) -> &str {
        self.file.to_str().expect("UTF-8")
    }

    pub fn home(&self) -> PgConnectOptions {
        self.databases[0].clone()
    }

    /// Selects one number from each cell; 0 where there is none.
    pub async fn numbers(&self, sql: &'static str) -> Vec<i64> {
        let mut numbers = Vec::new();
        for cell in &self.cells {
            let number: Option<Option<i64>> = sqlx::query_scalar(sql).fetch_optional(&cell.pool).await.expect(sql);
            numbers.push(number.flatten().unwrap_or_default());
        }
        numbers
    }

    /// Creates tenants until each cell has one. Returns a client for each, in the order of the cells.
    pub async fn a_tenant_in_each(&self, client: &Client) -> Vec<Client> {
        let mut clients = vec![None; self.cells.len()];
        while clients.iter().any(Option::is_none) {
            let created = client.post("/api/v1/api-keys", &serde_json::json!({ "label": "test" })).await.json();
            let cell = self.cell_of(created["tenantId"].as_str().expect("a tenant")).await;
            clients[cell].get_or_insert(client.with("x-api-key", created["key"].as_str().expect("a key")));
        }
        clients.into_iter().flatten().collect()
    }

    /// The index of the cell where a tenant lives.
    pub async fn cell_of(&self, tenant: &str) -> usize {
        let cell = sqlx::query_scalar("SELECT cell_id FROM tenant_cells WHERE tenant_id = $1").bind(tenant);
        let cell: Option<String> = cell.fetch_optional(&self.cells[0].pool).await.expect("a cell");
        cell.map_or(0, |id| self.cells.iter().position(|cell| cell.id == id).expect("a known cell"))
    }

    /// Checks all sums of all cells.
    pub async fn verify(&self) {
        for cell in &self.cells {
            super::verify(&cell.pool).await;
        }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}
