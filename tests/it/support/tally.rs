//! What the clients were told, and its comparison with what is there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::PgPool;

use super::Client;
use super::load::{Acknowledged, Tenant};

/// What an operation did.
pub enum Effect {
    /// Recorded for a pair that is never settled, which had this total then.
    Total {
        agent: String,
        requests: i64,
        total: i64,
    },
    Recorded(i64),
    /// Requests and stroops.
    Settled(i64, i64),
    Cleared(i64),
}

#[derive(Clone, Default)]
pub struct Unkeyed {
    pub acknowledged: u64,
    pub unknown: u64,
}

/// Sums over the pairs of a tenant that are settled and cleared.
#[derive(Default)]
struct Sums {
    recorded: i64,
    settled: i64,
    stroops: i64,
    settlements: i64,
    cleared: i64,
}

#[derive(Default)]
pub struct Tally {
    pub tenants: Vec<Tenant>,
    pub retries: u64,
    pub replays: u64,
    /// Answers that the outcome is unknown, that nothing was changed, and none at all.
    pub unknown: u64,
    pub refused: u64,
    pub lost: u64,
    /// Answers that nobody waited for any more.
    pub late: u64,
    pub duplicates: u64,
    pub unkeyed: BTreeMap<usize, Unkeyed>,
    /// How long each keyed operation took with all its tries, by tenant.
    pub times: BTreeMap<usize, Vec<Duration>>,
    /// The hash of the answer of each keyed operation.
    answers: HashMap<u64, u64>,
    /// Total and requests of each record, by tenant and agent.
    totals: HashMap<(usize, String), Vec<(i64, i64)>>,
    sums: BTreeMap<usize, Sums>,
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unkeyed: Vec<String> =
            self.unkeyed.values().map(|own| format!("{} of {}", own.unknown, own.acknowledged + own.unknown)).collect();
        writeln!(
            formatter,
            "retries {}: {} lost, {} late, {} refused, {} unknown; replays {}, duplicates {}",
            self.retries, self.lost, self.late, self.refused, self.unknown, self.replays, self.duplicates
        )?;
        write!(formatter, "without a key, unknown: {}", unkeyed.join(", "))
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Tally {
    /// `is_repetition`: the first answer was given before.
    pub fn note(
        &mut self,
        number: u64,
        tenant: usize,
        effects: &[Effect],
        answers: &[Acknowledged],
        is_repetition: bool,
    ) {
        let text = &answers[0].answer.text;
        assert!(answers.iter().all(|other| other.answer.text == *text), "op-{number} was answered in two ways");
        // One of them is the first answer, unless nobody received that.
        let first = answers.iter().filter(|one| !one.answer.replayed).count();
        let is_missing = is_repetition || answers.iter().any(|one| one.may_be_repeated);
        assert!(first == 1 || first == 0 && is_missing, "op-{number} has {first} first answers");
        self.answers.insert(number, hash(text));
        let sums = self.sums.entry(tenant).or_default();
        for effect in effects {
            match effect {
                Effect::Total { agent, requests, total } => {
                    self.totals.entry((tenant, agent.clone())).or_default().push((*total, *requests));
                }
                Effect::Recorded(requests) => sums.recorded += requests,
                Effect::Settled(requests, stroops) => {
                    sums.settled += requests;
                    sums.stroops += stroops;
                    sums.settlements += 1;
                }
                Effect::Cleared(requests) => sums.cleared += requests,
            }
        }
    }

    pub fn add(&mut self, other: Self) {
        self.retries += other.retries;
        self.replays += other.replays;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.lost += other.lost;
        self.late += other.late;
        self.duplicates += other.duplicates;
        self.answers.extend(other.answers);
        for (tenant, unkeyed) in other.unkeyed {
            let own = self.unkeyed.entry(tenant).or_default();
            own.acknowledged += unkeyed.acknowledged;
            own.unknown += unkeyed.unknown;
        }
        for (tenant, times) in other.times {
            self.times.entry(tenant).or_default().extend(times);
        }
        for (pair, totals) in other.totals {
            self.totals.entry(pair).or_default().extend(totals);
        }
        for (tenant, sums) in other.sums {
            let own = self.sums.entry(tenant).or_default();
            own.recorded += sums.recorded;
            own.settled += sums.settled;
            own.stroops += sums.stroops;
            own.settlements += sums.settlements;
            own.cleared += sums.cleared;
        }
    }

    /// How long the keyed operations of a tenant took, for people.
    pub fn times_of(&self, tenant: usize) -> String {
        let mut times = self.times.get(&tenant).cloned().unwrap_or_default();
        times.sort_unstable();
        let at = |part: usize| times.get((times.len() * part / 1000).min(times.len().saturating_sub(1)));
        let [median, p99, p999, most] = [500, 990, 999, 1000].map(|part| at(part).copied().unwrap_or_default());
        format!(
            "operations of tenant {tenant}: median {median:.1?}, p99 {p99:.1?}, p99.9 {p999:.1?}, at most {most:.1?}"
        )
    }

    /// How many keyed operations were acknowledged.
    pub fn keyed(&self) -> u64 {
        self.answers.len() as u64
    }

    /// How many operations `before` acknowledged, all of which were acknowledged here with the same answer.
    pub fn answered_like(&self, before: &Self) -> u64 {
        for (number, answer) in &before.answers {
            assert_eq!(self.answers.get(number), Some(answer), "op-{number} is answered in another way");
        }
        before.keyed()
    }

    /// Compares all of it with the databases and with what a replica says.
    pub async fn check(mut self, pools: &[&PgPool], client: &Client) {
        self.check_records(pools).await;
        for tenant in 0..self.tenants.len() {
            let client = self.tenants[tenant].client(client);
            let exported = exported(&client).await;
            let plain = self.check_totals(tenant, &exported);
            let unkeyed = self.unkeyed.remove(&tenant).unwrap_or_default();
            let counted = exported.get(&("unkeyed".to_owned(), "s0".to_owned())).copied().unwrap_or_default();
            let may_be_counted = unkeyed.acknowledged..=unkeyed.acknowledged + unkeyed.unknown;
            assert!(may_be_counted.contains(&counted.cast_unsigned()), "{counted} of {may_be_counted:?} without a key");
            self.check_sums(tenant, &client, &exported, plain + counted).await;
        }
    }

    /// Each keyed operation has one record, with the answer that was acknowledged.
    async fn check_records(&self, pools: &[&PgPool]) {
        let mut count = 0;
        for pool in pools {
            let records = "SELECT key, response::text FROM idempotency_keys";
            let mut records = sqlx::query_as::<_, (String, Option<String>)>(records).fetch(*pool);
            while let Some((key, response)) = records.try_next().await.expect("records") {
                // Those that register the services have none.
                let number = key.strip_prefix("op-").and_then(|number| number.parse().ok()).expect("a key of ours");
                assert_eq!(self.answers.get(&number), Some(&hash(&response.unwrap_or_default())), "{key}");
                count += 1;
            }
        }
        assert_eq!(count, self.answers.len());
    }

    /// The totals of each pair follow one another without a gap and without an overlap, up to what is there. Their sum.
    fn check_totals(&mut self, tenant: usize, exported: &HashMap<(String, String), i64>) -> i64 {
        let mut sum = 0;
        for ((_, agent), totals) in self.totals.iter_mut().filter(|((own, _), _)| *own == tenant) {
            totals.sort_unstable();
            let mut counted = 0;
            for (total, requests) in totals {
                counted += *requests;
                assert_eq!(*total, counted, "{agent} of tenant {tenant}");
            }
            assert_eq!(exported[&(agent.clone(), "s0".to_owned())], counted, "{agent} of tenant {tenant}");
            sum += counted;
        }
        sum
    }

    /// What was settled and cleared is what was acknowledged; the rest is outstanding.
    async fn check_sums(&self, tenant: usize, client: &Client, exported: &HashMap<(String, String), i64>, rest: i64) {
        let none = Sums::default();
        let sums = self.sums.get(&tenant).unwrap_or(&none);
        let billed = exported.iter().filter(|((agent, _), _)| agent.starts_with("billed-"));
        let outstanding: i64 = billed.map(|(_, total)| total).sum();
        assert_eq!(outstanding, sums.recorded - sums.settled - sums.cleared, "tenant {tenant}");
        // The operator, who has no key here, is told of all tenants.
        if self.tenants[tenant].key.is_some() {
            let stats = client.get("/api/v1/stats").await.json();
            assert_eq!(stats["lifetimeRequests"], sums.recorded + rest);
            assert_eq!(stats["settledStroopsTotal"], sums.stroops.to_string());
            assert_eq!(stats["settlementsTotal"], sums.settlements);
        }
    }
}

/// The outstanding requests of every pair of a tenant.
async fn exported(client: &Client) -> HashMap<(String, String), i64> {
    let export = client.get("/api/v1/usage/export.json").await.json();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let items = export["items"].as_array().expect("items").iter();
    items
        .map(|item| ((text(&item["agent"]), text(&item["serviceId"])), item["total"].as_i64().expect("a total")))
        .collect()
}
