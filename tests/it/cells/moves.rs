//! A tenant moves between three cells, each on a server of its own, under keyed load, while movers, servers and replicas are
//! killed at random moments: nothing is lost or doubled, and each key replays where the tenant lives. `MOVES` sets how often it
//! moves, `MOVES_CLIENTS` by how many clients it is used, and `MOVES_SEED` repeats the choices of a run.

mod fleet;
mod incidents;
mod readers;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{Load, Pace, Tenant, setting};

use fleet::Fleet;
use incidents::{Figures, INCIDENTS, Incident};
use readers::Readers;

/// Clients wait shorter than a frozen replica sleeps. The pauses keep the records few, which all move each time.
const PACE: Pace = Pace { answer_limit: Duration::from_secs(2), pause: Duration::from_millis(20) };
/// Operations before the first move, and in each cell.
const OPERATIONS_BETWEEN: u64 = 200;
/// The tenants of the load: `public`, the one that moves, and one that stays.
const MOVING: usize = 1;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_loses_nothing_when_movers_servers_and_replicas_are_killed_while_it_moves() {
    let (moves, clients) = (setting("MOVES", 3), setting("MOVES_CLIENTS", 12));
    let seed = setting("MOVES_SEED", rand::random::<u32>().into());
    println!("MOVES_SEED={seed} MOVES={moves} MOVES_CLIENTS={clients}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::start().await;
    let own = fleet.cells.a_tenant_in_each(&fleet.client(0)).await;
    let key = |cell: usize| Tenant { key: own[cell].header("x-api-key") };
    let tenants = vec![Tenant { key: None }, key(1), key(2)];
    let moving = fleet.tenant_in(1).await;
    Load::register_services(&fleet.client(0), &tenants).await;

    let began = Instant::now();
    let load = Load::start_endless(clients, seed, fleet.addresses(), tenants, PACE);
    let mut figures = Figures::default();
    load.reach(OPERATIONS_BETWEEN, || {}).await;
    let readers = Readers::start(&own[1], fleet.addresses(), fleet.some_key_of(&moving, 1).await);
    let (mut cell, mut due) = (1, INCIDENTS.to_vec());
    for number in 0..moves {
        let to = (cell + rng.random_range(1..3)) % 3;
        // In a short run each incident happens once or more.
        let per_move = due.len().div_ceil((moves - number) as usize).max(2);
        let mut incidents: Vec<Incident> = due.drain(..due.len().min(per_move)).collect();
        while incidents.len() < per_move && moves > 3 {
            incidents.push(INCIDENTS[rng.random_range(0..INCIDENTS.len())]);
        }
        println!("{:.1?}: move {number} from {cell} to {to}: {incidents:?}", began.elapsed());
        fleet.make_move(&moving, [cell, to], &incidents, &mut rng, &mut figures).await;
        cell = to;
        load.reach(load.acknowledged() + OPERATIONS_BETWEEN, || {
            figures.revived += fleet.revive();
        })
        .await;
    }
    let sent = load.stop();
    fleet.is_whole().await;
    let told = load.end().await;
    let read = readers.end().await;
    println!("{} operations in {:.1?}, {read} reads", told.keyed(), began.elapsed());
    println!("{figures}\n{told}\n{}", told.times_of(MOVING));

    // Every key is sent again, as by clients that do not know what became of it.
    let tenants = told.tenants.clone();
    let again = Load::send_again(sent, clients, seed, fleet.addresses(), tenants).end().await;
    assert_eq!(again.answered_like(&told), told.keyed());
    assert_eq!(again.replays, again.keyed() + again.duplicates);
    let pools: Vec<_> = fleet.cells.cells.iter().map(|cell| &cell.pool).collect();
    told.check(&pools, &fleet.client(1)).await;
    fleet.lives_only_in(&moving, cell).await;
    fleet.verify().await;
    fleet.end().await;
}
