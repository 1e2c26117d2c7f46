//! What happens during a move, at a random moment of it.

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::support::{binary, exit, kill, pause, run, signal};

use super::fleet::{Fleet, IDS};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Incident {
    KillMover,
    /// And undo the move, if that is still possible.
    KillMoverAndUndo,
    InterruptMover,
    KillSource,
    KillTarget,
    KillHome,
    KillReplica,
    /// From before the move until its end: the replica has an old directory then.
    FreezeReplica,
}

pub const INCIDENTS: [Incident; 8] = [
    Incident::FreezeReplica,
    Incident::KillMover,
    Incident::KillSource,
    Incident::KillTarget,
    Incident::KillMoverAndUndo,
    Incident::KillReplica,
    Incident::InterruptMover,
    Incident::KillHome,
];

/// The steps that the directory shows.
const STEPS: [&str; 4] = ["copying", "fenced", "copied", "switched"];
/// A move without incidents takes less than a second until the switch, and three seconds more.
const UNTIL_SWITCH: Duration = Duration::from_millis(1200);
const UNTIL_END: Duration = Duration::from_millis(4500);
/// How long a move may take with all its incidents.
const MOVE_LIMIT: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Figures {
    incidents: BTreeMap<Incident, usize>,
    moves: usize,
    /// Movers that ended without success, by themselves or killed.
    failures: usize,
    undone: usize,
    /// Replicas that ended by themselves.
    pub revived: usize,
    /// How long writes were refused in each run that completed a move.
    refused_ms: Vec<u64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> =
            self.incidents.iter().map(|(incident, count)| format!("{incident:?} {count}")).collect();
        writeln!(formatter, "incidents: {}", each.join(", "))?;
        let mut refused = self.refused_ms.clone();
        refused.sort_unstable();
        let at = |part: usize| refused.get((refused.len() * part / 100).min(refused.len().saturating_sub(1)));
        write!(
            formatter,
            "moves {}, failed runs of the mover {}, undone {}, replicas revived {}; the last runs refused writes for {:?} ms \
             (median), {:?} (99 %)",
            self.moves,
            self.failures,
            self.undone,
            self.revived,
            at(50),
            at(99)
        )
    }
}

impl Fleet {
    /// Moves the tenant, however often the mover must be run, and lets these incidents happen.
    pub async fn make_move(
        &mut self,
        tenant: &str,
        [from, to]: [usize; 2],
        incidents: &[Incident],
        rng: &mut StdRng,
        figures: &mut Figures,
    ) {
        let began = Instant::now();
        let frozen = incidents.contains(&Incident::FreezeReplica).then(|| rng.random_range(0..2));
        if let Some(frozen) = frozen {
            self.replicas[frozen].signal("-STOP");
        }
        let mut mover = self.start_mover(tenant, to);
        for incident in incidents {
            *figures.incidents.entry(*incident).or_default() += 1;
            if *incident == Incident::FreezeReplica {
                continue;
            }
            self.wait_for_moment(&mut mover, rng).await;
            match incident {
                Incident::KillMover | Incident::KillMoverAndUndo => {
                    kill(&mover.id().to_string());
                    let _ = exit(&mut mover).await;
                    figures.failures += 1;
                    if *incident == Incident::KillMoverAndUndo {
                        let undone =
                            run(&["cells", "move", tenant, "--undo"], &[("CELLS_FILE", self.cells.file())]).await;
                        figures.undone += usize::from(undone.status.success());
                    }
                    mover = self.start_mover(tenant, to);
                }
                // It may have ended by now.
                Incident::InterruptMover if mover.try_wait().expect("a process").is_some() => {}
                Incident::InterruptMover => signal(&mover, "-TERM"),
                Incident::KillSource => self.restart_server(from, rng).await,
                Incident::KillTarget => self.restart_server(to, rng).await,
                Incident::KillHome => self.restart_server(0, rng).await,
                Incident::KillReplica => {
                    let number = frozen.map_or_else(|| rng.random_range(0..2), |frozen| 1 - frozen);
                    self.restart_replica(number);
                }
                Incident::FreezeReplica => {}
            }
        }
        loop {
            while mover.try_wait().expect("a process").is_none() {
                assert!(began.elapsed() < MOVE_LIMIT, "the move does not end");
                figures.revived += self.revive();
                pause().await;
            }
            let output = mover.wait_with_output().expect("its output");
            let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if output.status.success() && !told.contains("stays in") {
                // An earlier run may have completed the move.
                let made: Option<Value> = serde_json::from_str(&told).ok();
                figures.refused_ms.extend(made.and_then(|made| made["refusedMs"].as_u64()));
                break;
            }
            println!("  {:.1?}: {}{}", began.elapsed(), told.trim(), error.trim());
            assert!(!error.contains("differs") && !error.contains("both have"), "{error}");
            assert!(began.elapsed() < MOVE_LIMIT, "the tenant cannot be moved: {error}");
            figures.failures += 1;
            mover = self.start_mover(tenant, to);
        }
        figures.moves += 1;
        if let Some(frozen) = frozen {
            self.replicas[frozen].signal("-CONT");
        }
    }

    fn start_mover(&self, tenant: &str, to: usize) -> Child {
        let mut command = binary(&[("CELLS_FILE", self.cells.file())]);
        command.args(["cells", "move", tenant, "--to", IDS[to], "--format", "json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary")
    }

    /// Waits until a moment of the move: some time after its beginning, or just after one of its steps.
    async fn wait_for_moment(&mut self, mover: &mut Child, rng: &mut StdRng) {
        let limit = if rng.random_range(0..4) == 0 { UNTIL_END } else { UNTIL_SWITCH };
        if rng.random() {
            return tokio::time::sleep(limit.mul_f64(rng.random())).await;
        }
        let (step, began) = (STEPS[rng.random_range(0..STEPS.len())], Instant::now());
        let home = self.cells.cells[0].pool.clone();
        while mover.try_wait().expect("a process").is_none() && began.elapsed() < UNTIL_END {
            let shown = sqlx::query_scalar::<_, String>("SELECT step FROM tenant_moves").fetch_optional(&home);
            match tokio::time::timeout(Duration::from_millis(200), shown).await {
                Ok(Ok(shown)) if shown.as_deref() != Some(step) => pause().await,
                _ => break,
            }
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
    }

    async fn restart_server(&self, cell: usize, rng: &mut StdRng) {
        self.servers[cell].kill();
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..500))).await;
        self.servers[cell].start_again().await;
    }
}
