//! Leads the connections of a cell on Citus to the node that has its schema, and follows the schema when Citus moves it.
//! Where that node cannot be reached, they lead to the coordinator, which forwards statements.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::domain::cell::CellId;
use crate::store::address::Address;
use crate::store::citus::{self, Node};
use crate::store::pool::Pool;
use crate::store::{StoreError, server};

/// Time limit of a question to the coordinator, and of one to the node.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Number of failed checks after which the node counts as unreachable.
const FAILURES_MAX: u32 = 3;

#[derive(Debug)]
pub struct Follower {
    cell: CellId,
    coordinator: PgConnectOptions,
    address: Address,
    /// One connection to the coordinator, and one to where the address leads.
    catalog: Pool,
    probe: Pool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while the address leads to the coordinator.
    led_to: Option<Node>,
    failures: u32,
    has_warned: bool,
}

impl Follower {
    /// `address` leads to the coordinator.
    pub fn new(cell: CellId, address: Address) -> Self {
        let coordinator = address.target().options.clone();
        Self {
            cell,
            catalog: Pool::new(coordinator.clone(), 1, ANSWER_LIMIT),
            probe: Pool::new(address.clone(), 1, ANSWER_LIMIT),
            coordinator,
            address,
            state: Mutex::default(),
        }
    }

    /// Asks the coordinator where the schema is, and leads there. Without an answer everything stays as it is: a node goes
    /// on without its coordinator. Statements on connections to the former node are forwarded until these are closed.
    pub async fn follow(&self) {
        let find = async |connection: &mut PgConnection| citus::owner(connection).await;
        let Ok(Some(owner)) = self.catalog.run(Instant::now() + ANSWER_LIMIT, find).await else { return };
        let mut state = self.state.lock().await;
        if state.led_to.as_ref() == Some(&owner) {
            let check = async |connection: &mut PgConnection| citus::is_node(connection, &owner).await;
            let checked = self.probe.run(Instant::now() + ANSWER_LIMIT, check).await;
            state.failures = if matches!(checked, Ok(true)) { 0 } else { state.failures + 1 };
            if state.failures < FAILURES_MAX {
                return;
            }
        }
        let options = owner.options(&self.coordinator);
        match timeout(ANSWER_LIMIT, reach(&options, &owner)).await.unwrap_or(Err(StoreError::TimedOut)) {
            Ok(()) => {
                info!(cell = %self.cell, node = owner.group, "the cell is on this node of Citus");
                self.address.lead_to(options);
                *state = State { led_to: Some(owner), ..State::default() };
            }
            Err(error) => {
                if !state.has_warned {
                    warn!(cell = %self.cell, node = owner.group, %error,
                        "the node of Citus that has the cell cannot be reached: the coordinator forwards its statements");
                }
                if state.led_to.take().is_some() {
                    self.address.lead_to(self.coordinator.clone());
                }
                state.has_warned = true;
            }
        }
    }
}

/// Fails unless `options` lead to `node`.
async fn reach(options: &PgConnectOptions, node: &Node) -> Result<(), StoreError> {
    let mut connection = server::connect(options, ANSWER_LIMIT).await?;
    match citus::is_node(&mut connection, node).await? {
        true => Ok(()),
        false => Err(StoreError::Corrupt("another node answers at its address")),
    }
}
