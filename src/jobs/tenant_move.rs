//! Moves a tenant from one cell to another. One transaction of the target copies everything. Before its COMMIT the move can
//! be undone; afterwards it can only be completed. The source refuses the tenant's writes from before the last copy until
//! its rows are deleted, so two cells never both execute them. To continue a move that was interrupted at any step, run it
//! again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use crate::domain::caller::Tenant;
use crate::domain::cell::{CellId, Dialect, Residence};
use crate::settings::cells::CellSettings;
use crate::store::tenant_copy::Note;
use crate::store::{StoreError, cells, citus, server, tenant_copy, tenant_moves};

/// How long the fence waits for running commits, during which others queue behind it, and the pause before it tries again.
const FENCE_WAIT: Duration = Duration::from_millis(200);
const FENCE_PAUSE: Duration = Duration::from_millis(300);
/// How long the move waits for locks: of the janitor, of another command, and of running commits.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// How long it waits for dispatchers: longer than their lease.
const LEASES_LIMIT: Duration = Duration::from_secs(90);
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// Recent rows are copied until one copy takes no longer than this, or this many times. Then the last copy begins.
const RECENT_LIMIT: Duration = Duration::from_secs(1);
const RECENT_MAX: u32 = 10;
/// How long the last copy may take, during which writes are refused, and how long the COMMIT of the target.
const FENCED_LIMIT: Duration = Duration::from_mins(2);
const COMMIT_LIMIT: Duration = Duration::from_secs(30);
/// How long the source keeps the rows after the switch: longer than replicas cache where a tenant lives.
const KEPT: Duration = Duration::from_secs(3);

/// A step of a move, after which it may be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Begun,
    /// Most rows are copied.
    CopiedFirst,
    /// Dispatchers begin no deliveries.
    DeliveriesStopped,
    /// The source refuses writes.
    Fenced,
    /// All rows are copied and compared, and not committed.
    CopiedAll,
    /// The target has the tenant.
    Committed,
    /// The directory names the target.
    Switched,
    /// The source has deleted its rows.
    Deleted,
}

impl Step {
    pub const ALL: [Self; 8] = [
        Self::Begun,
        Self::CopiedFirst,
        Self::DeliveriesStopped,
        Self::Fenced,
        Self::CopiedAll,
        Self::Committed,
        Self::Switched,
        Self::Deleted,
    ];
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database of {0} cannot be reached: {1}")]
    Unreachable(CellId, StoreError),
    #[error("{0}")]
    Refused(String),
    /// The target has committed the copy, so the move can only be completed.
    #[error("the tenant has arrived in {0}: run the move again, which completes it")]
    Arrived(CellId),
    /// Why the move failed. The source executes the tenant's writes again.
    #[error("{0}; the tenant stays in {1}")]
    Undone(Box<MoveError>, CellId),
    /// No answer to the COMMIT. The source executes no writes until that is known.
    #[error("{0} has not answered whether it has the tenant: run the move again when it answers")]
    InDoubt(CellId),
}

fn refused<T>(text: impl Into<String>) -> Result<T, MoveError> {
    Err(MoveError::Refused(text.into()))
}

/// What a move did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub rows: u64,
    /// From the refusal of writes in the source until the directory named the target, in this run.
    pub fenced: Duration,
}

/// A tenant, and the cells of its move.
#[derive(Clone, Debug)]
pub struct TenantMove<'a> {
    pub tenant: Tenant,
    pub home: &'a CellSettings,
    pub from: &'a CellSettings,
    pub to: &'a CellSettings,
}

impl<'a> TenantMove<'a> {
    /// The move of `tenant` from the cell where it lives to `to`. `None` if it already lives there.
    pub async fn find(
        cells: &'a [CellSettings],
        tenant: &Tenant,
        to: Option<&CellId>,
    ) -> Result<Option<Self>, MoveError> {
        let Some(home) = cells.first() else { return refused("CELLS_FILE is unset") };
        if *tenant == Tenant::public() {
            return refused("the public tenant lives in the home cell");
        }
        let setting = |id: &CellId| {
            let cell = cells.iter().find(|cell| cell.id == *id);
            let cell = cell.ok_or_else(|| MoveError::Refused(format!("CELLS_FILE has no cell {id}")))?;
            check_movable(cell, cell.dialect()).map(|()| cell)
        };
        let mut connection = connect(home).await?;
        let unfinished = tenant_moves::find(&mut connection, tenant).await?;
        if let Some(unfinished) = unfinished {
            let (from, begun) = (setting(&unfinished.from)?, setting(&unfinished.to)?);
            if to.is_some_and(|to| *to != begun.id) {
                return refused(format!("{tenant} is being moved to {}: complete or undo that first", begun.id));
            }
            return Ok(Some(Self { tenant: tenant.clone(), home, from, to: begun }));
        }
        let Some(to) = to else { return refused(format!("{tenant} is not being moved")) };
        let to = setting(to)?;
        if tenant_moves::residence(&mut connection, tenant).await?.is_none() {
            return refused(format!("there is no tenant {tenant}"));
        }
        let from = match tenant_moves::cell_of(&mut connection, tenant).await? {
            Some(id) => setting(&id)?,
            None => home,
        };
        Ok((from.id != to.id).then(|| Self { tenant: tenant.clone(), home, from, to }))
    }

    /// Begins or continues the move. `note` is called with the numbers of rows, and `watch` after each step.
    pub async fn run(&self, note: Note<'_>, mut watch: impl AsyncFnMut(Step)) -> Result<Moved, MoveError> {
        let (mut moved, mut fenced) = (Moved::default(), Instant::now());
        let mut home = connect(self.home).await?;
        let (mut source, mut target) = self.claim(&mut home).await?;
        let lives_in = tenant_moves::cell_of(&mut home, &self.tenant).await?.unwrap_or_else(|| self.home.id.clone());
        if lives_in != self.from.id && lives_in != self.to.id {
            return refused(format!("{} lives in {lives_in} now", self.tenant));
        }
        let started_at = tenant_moves::begin(&mut home, &self.tenant, &self.from.id, &self.to.id).await?;
        watch(Step::Begun).await;
        if tenant_moves::residence(&mut target, &self.tenant).await?.is_some_and(Residence::executes) {
            self.check_fenced(&mut source).await?;
        } else {
            let mut transaction = target.begin().await.map_err(StoreError::from)?;
            match self.copy(&mut home, &mut source, &mut transaction, note, &mut watch).await {
                Ok(copied) => (moved.rows, fenced) = copied,
                Err(error) => return Err(self.give_up(&mut home, &mut source, error).await),
            }
            match timeout(COMMIT_LIMIT, transaction.commit()).await {
                Ok(committed) => committed.map_err(StoreError::from)?,
                Err(_) => return Err(MoveError::InDoubt(self.to.id.clone())),
            }
            tenant_moves::note_step(&mut home, &self.tenant, "copied").await?;
            watch(Step::Committed).await;
        }
        // From now on a replica with an old directory refuses the tenant's reads here, which would miss what the target has.
        tenant_moves::set_residence(&mut source, &self.tenant, Residence::Elsewhere, revision()).await?;
        let to = (self.to.id != self.home.id).then_some(&self.to.id);
        if !tenant_moves::switch(&mut home, &self.tenant, to, started_at).await? {
            return refused(format!("another command has moved {}", self.tenant));
        }
        moved.fenced = fenced.elapsed();
        watch(Step::Switched).await;
        self.leave(&mut source).await?;
        tenant_moves::end(&mut home, &self.tenant).await?;
        watch(Step::Deleted).await;
        Ok(moved)
    }

    /// Undoes a move whose COMMIT was not sent, so that the target cannot get the tenant, even if it does not answer. The
    /// claim in the source keeps other commands away. Returns the error of the move.
    async fn give_up(&self, home: &mut PgConnection, source: &mut PgConnection, error: MoveError) -> MoveError {
        let undoing = async {
            self.open_source(home, source).await?;
            Ok::<_, MoveError>(tenant_moves::end(home, &self.tenant).await?)
        };
        match timeout(WAIT_LIMIT, undoing).await {
            Ok(Ok(())) => MoveError::Undone(Box::new(error), self.from.id.clone()),
            _ => error,
        }
    }

    /// Copies all rows in the transaction of the target. Leaves the source fenced. Returns the number of rows, and since when.
    async fn copy(
        &self,
        home: &mut PgConnection,
        source: &mut PgConnection,
        target: &mut PgConnection,
        note: Note<'_>,
        watch: &mut impl AsyncFnMut(Step),
    ) -> Result<(u64, Instant), MoveError> {
        let tenant = &self.tenant;
        // What the janitor deleted meanwhile would be in the copy.
        let mut reader = connect(self.from).await?;
        let mut guard = connect(self.from).await?;
        let mut guard = guard.begin().await.map_err(StoreError::from)?;
        server::lock_out_janitors(&mut guard, self.from.dialect()).await?;
        // An earlier run may have fenced it. It is written again during the long first copy.
        self.open_source(home, source).await?;
        tenant_moves::note_step(home, tenant, "copying").await?;
        let rows = AtomicU64::default();
        let note = &|count| {
            rows.fetch_add(count, Ordering::Relaxed);
            note(count);
        };
        // The connection that has claimed the tenant stays usable when a copy breaks off.
        let mut snapshot = server::begin_snapshot(&mut reader).await?;
        let mut copied = tenant_copy::first(&mut snapshot, target, tenant, note).await?;
        drop(snapshot);
        for _ in 0..RECENT_MAX {
            let began = Instant::now();
            let mut snapshot = server::begin_snapshot(&mut reader).await?;
            tenant_copy::recent(&mut snapshot, target, tenant, &mut copied, note).await?;
            drop(snapshot);
            if began.elapsed() < RECENT_LIMIT {
                break;
            }
        }
        watch(Step::CopiedFirst).await;
        tenant_moves::stop_deliveries(source, tenant, revision()).await?;
        let limit = Instant::now() + LEASES_LIMIT;
        while !tenant_moves::wait_for_dispatchers(source, FENCE_WAIT).await?
            || tenant_moves::has_leases(source, tenant).await?
        {
            if Instant::now() >= limit {
                return refused("the running deliveries do not end");
            }
            sleep(POLL_PAUSE).await;
        }
        watch(Step::DeliveriesStopped).await;
        let limit = Instant::now() + WAIT_LIMIT;
        while !tenant_moves::fence(source, tenant, revision(), FENCE_WAIT).await? {
            if Instant::now() >= limit {
                return refused("the running commits do not end");
            }
            sleep(FENCE_PAUSE).await;
        }
        let fenced = Instant::now();
        tenant_moves::note_step(home, tenant, "fenced").await?;
        watch(Step::Fenced).await;
        let last_copy = async {
            let mut snapshot = server::begin_snapshot(&mut reader).await?;
            let differing = tenant_copy::rest(&mut snapshot, target, tenant, copied, note).await?;
            tenant_moves::settle_in(target, tenant, revision()).await?;
            Ok::<_, StoreError>(differing)
        };
        let Ok(differing) = timeout(FENCED_LIMIT, last_copy).await else {
            return refused(format!("the last rows were not copied within {} s", FENCED_LIMIT.as_secs()));
        };
        let differing = differing?;
        if !differing.is_empty() {
            return refused(format!("the copy differs from the source: {}", differing.join(", ")));
        }
        watch(Step::CopiedAll).await;
        Ok((rows.into_inner(), fenced))
    }

    /// Undoes a move before its COMMIT. The copied rows are already rolled back.
    pub async fn undo(&self) -> Result<(), MoveError> {
        let mut home = connect(self.home).await?;
        let (mut source, mut target) = self.claim(&mut home).await?;
        if tenant_moves::residence(&mut target, &self.tenant).await?.is_some_and(Residence::executes) {
            return Err(MoveError::Arrived(self.to.id.clone()));
        }
        self.open_source(&mut home, &mut source).await?;
        Ok(tenant_moves::end(&mut home, &self.tenant).await?)
    }

    /// Connects to both cells and claims the tenant in them. The residence changes only on these connections, so a command
    /// that lost one, or was suspended, changes nothing after another command has taken over. The COMMIT of an interrupted
    /// move may still be running: waits for it.
    async fn claim(&self, home: &mut PgConnection) -> Result<(PgConnection, PgConnection), MoveError> {
        let deployment = check_cell(home, self.home, None).await?;
        let (mut source, mut target) = (connect(self.from).await?, connect(self.to).await?);
        check_cell(&mut source, self.from, Some(&deployment)).await?;
        check_cell(&mut target, self.to, Some(&deployment)).await?;
        for cell in [&mut source, &mut target] {
            if !tenant_moves::claim(cell, &self.tenant).await? {
                return refused(format!("another command moves {}", self.tenant));
            }
        }
        Ok((source, target))
    }

    /// Makes the source execute the tenant's writes. The caller has claimed the tenant in the target, which does not.
    async fn open_source(&self, home: &mut PgConnection, source: &mut PgConnection) -> Result<(), MoveError> {
        let has_rows = match tenant_moves::residence(source, &self.tenant).await? {
            Some(Residence::Here) => return Ok(()),
            Some(Residence::Departing | Residence::Leaving) => true,
            Some(Residence::Elsewhere) => self.has_lost_the_target(home).await?,
            None => false,
        };
        if !has_rows {
            return refused(format!("{} does not live in {}, as the directory says", self.tenant, self.from.id));
        }
        Ok(tenant_moves::set_residence(source, &self.tenant, Residence::Here, revision()).await?)
    }

    /// Whether this move has come as far as its COMMIT, and not to the switch, after which the source deletes its rows. If the
    /// target does not have the tenant, it was restored from before the COMMIT.
    async fn has_lost_the_target(&self, home: &mut PgConnection) -> Result<bool, MoveError> {
        let named = tenant_moves::cell_of(home, &self.tenant).await?.unwrap_or_else(|| self.home.id.clone());
        let unfinished = tenant_moves::find(home, &self.tenant).await?;
        Ok(named == self.from.id
            && unfinished.is_some_and(|own| {
                (&own.from, &own.to) == (&self.from.id, &self.to.id) && matches!(own.step.as_str(), "fenced" | "copied")
            }))
    }

    /// Fails if the source executes the tenant's writes although the target has the tenant. No move leads to this state.
    async fn check_fenced(&self, source: &mut PgConnection) -> Result<(), MoveError> {
        match tenant_moves::residence(source, &self.tenant).await? {
            Some(residence) if residence.executes() => {
                refused(format!("{} and {} both have {}", self.from.id, self.to.id, self.tenant))
            }
            _ => Ok(()),
        }
    }

    /// Deletes the rows in the source, once all replicas know that the tenant lives in the target.
    async fn leave(&self, source: &mut PgConnection) -> Result<(), MoveError> {
        sleep(KEPT).await;
        let mut transaction = source.begin().await.map_err(StoreError::from)?;
        tenant_copy::delete(&mut transaction, &self.tenant).await?;
        Ok(transaction.commit().await.map_err(StoreError::from)?)
    }
}

/// Fails for a cell on Citus: its numbers come from another source than sequences, its commits are not fenced, and Citus
/// moves the whole cell. `dialect` is that of CELLS_FILE, and then that of the database, which the file may not agree with.
pub fn check_movable(cell: &CellSettings, dialect: Dialect) -> Result<(), MoveError> {
    match dialect {
        Dialect::PostgreSql => Ok(()),
        Dialect::Citus => refused(format!("{} is on Citus: tenants are not moved to or from it", cell.id)),
    }
}

/// Fails if the database is not the cell that CELLS_FILE names, if it has another deployment, or if Citus distributes it. Returns
/// its deployment.
async fn check_cell(
    connection: &mut PgConnection,
    cell: &CellSettings,
    deployment: Option<&String>,
) -> Result<String, MoveError> {
    check_movable(cell, citus::dialect(connection).await?)?;
    match cells::identity(connection).await? {
        Some(own) if own.cell != cell.id => {
            refused(format!("the database of {} is the cell {}: check its url", cell.id, own.cell))
        }
        Some(own) if deployment.is_some_and(|deployment| *deployment != own.deployment) => {
            refused(format!("the database of {} belongs to another home cell: check its url", cell.id))
        }
        Some(own) => Ok(own.deployment),
        None => refused(format!("{} is not a cell yet: run `cells add {}`", cell.id, cell.id)),
    }
}

/// A random number that shows commits that the residence has changed.
fn revision() -> i64 {
    rand::rng().random()
}

async fn connect(cell: &CellSettings) -> Result<PgConnection, MoveError> {
    let unreachable = |error| MoveError::Unreachable(cell.id.clone(), error);
    server::connect_for_move(&cell.database, WAIT_LIMIT).await.map_err(unreachable)
}
