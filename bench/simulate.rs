//! `cargo bench -- simulate`: the model of docs/scaling.md, computed from measured figures. Requests and outages happen at
//! random moments, drawn from a fixed seed, so the output never varies. tests/tidy.rs compares it with the document.

use std::collections::BTreeMap;

use hashlink::LruCache;

/// A constant for each figure, and the list of all of them.
macro_rules! figures {
    ($($name:ident = $value:expr, $unit:literal, $source:literal, $meaning:literal;)*) => {
        $(const $name: f64 = $value;)*
        /// Meaning, value, unit, and where the figure is from.
        const FIGURES: &[(&str, f64, &str, &str)] = &[$(($meaning, $value, $unit, $source),)*];
    };
}

figures! {
    COMMIT_POSTGRES = 250.0, "µs of a core", "measured", "A commit: PostgreSQL";
    WRITE_POSTGRES = 50.0, "µs of a core", "measured", "A keyed write in a commit: PostgreSQL";
    COMMIT_SERVICE = 145.0, "µs of a core", "measured", "A commit: the service";
    WRITE_SERVICE = 45.0, "µs of a core", "measured", "A keyed write in a commit: the service";
    COMMIT_WAIT = 150.0, "µs", "measured", "A commit: flush and round trips";
    LOOKUP_QUERY = 150.0, "µs of a core", "measured", "The home cell: a query for API keys with their cells";
    LOOKUP_KEY = 10.0, "µs of a core", "measured", "The home cell: a key in such a query";
    USE_QUERY = 360.0, "µs of a core", "measured", "The home cell: a statement that records when keys were last used";
    USE_KEY = 23.0, "µs of a core", "measured", "The home cell: a key in such a statement, once a minute for each key";
    PLACEMENT = 0.4, "µs of a core", "measured", "The home cell: the choice of a cell for a new tenant, for each existing tenant";
    CHECK = 28.0, "µs of a core", "measured", "A cell: a statement with which a replica monitors it";
    TENANT_BYTES = 783.0, "bytes", "measured", "The directory: a tenant with one key";
    USED_CONNECTIONS = 4.5, "connections", "measured", "Connections of a replica to a cell under keyed writes";
    SERIES = 50.0, "series", "measured", "Series of the metrics for each cell and replica";
    CACHED_KEYS = 10_000.0, "keys", "service", "Keys that a replica caches";
    CACHED_FOR = 0.9, "s", "service", "How long a cached key is used, unless a key or the directory changes";
    QUERY_KEYS = 256.0, "keys at most", "service", "Keys in one query";
    COMMIT_WRITES = 512.0, "writes at most", "service", "Writes in one commit";
    KEYS_MAX = 10_000.0, "keys at most", "service", "API keys of all tenants, `apiKeyStoreMaxKeys`";
    CONNECTIONS = 19.0, "connections at most", "service", "Connections of a replica to a cell, with the default settings";
    CHECKS = 3.0, "per second", "service", "Statements with which a replica monitors a cell";
    HOME_OUTAGE = 5.0, "minutes", "service", "How long known keys are accepted without the home cell";
    WRITES = 5000.0, "per second", "assumption", "Keyed writes of a cell";
    TENANTS = 1000.0, "tenants", "assumption", "Tenants of a cell, each with one key";
    KEYS_IN_USE = 300.0, "keys", "assumption", "Keys of a cell that are in use, all at the same rate";
    CHANGES = 0.01, "per tenant and day", "assumption", "New, rotated or revoked keys, and moves";
    REPLICA_CORES = 2.0, "cores", "assumption", "What a replica may use of four cores";
    REPLICAS_MIN = 3.0, "replicas", "assumption", "Replicas, at least";
    SERVER_CORES = 8.0, "cores", "assumption", "What may be used of the 16 cores of a server";
    SERVER_CONNECTIONS = 300.0, "connections at most", "assumption", "Connections that a server should have";
    UPTIME = 1000.0, "hours", "assumption", "Mean time between the failures of a server";
    DOWNTIME = 30.0, "minutes", "assumption", "Mean time until it is repaired";
}

const CELLS: [u32; 3] = [10, 100, 1000];

/// SplitMix64: a generator whose numbers no update of a library changes.
struct Random(u64);

impl Random {
    /// From 0 to below 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The time until the next of events that happen at random moments.
    fn wait(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }
}

/// The mean size of the batches of a lane, in which everything that waits when a commit ends forms the next one.
fn writes_of_commit(writes_per_s: f64) -> f64 {
    let (mut random, mut now, mut ends, mut batches, mut waiting) = (Random(1), 0.0, 0.0, 0.0, 0.0);
    let writes = 5000;
    for _ in 0..writes {
        now += random.wait(1.0 / writes_per_s);
        while waiting > 0.0 && ends <= now {
            let batch = f64::min(waiting, COMMIT_WRITES);
            (waiting, batches, ends) = (waiting - batch, batches + 1.0, ends + commit_seconds(batch));
        }
        waiting += 1.0;
        if ends <= now {
            (waiting, batches, ends) = (0.0, batches + 1.0, now + commit_seconds(waiting));
        }
    }
    f64::from(writes) / batches
}

fn commit_seconds(writes: f64) -> f64 {
    (COMMIT_WAIT + COMMIT_POSTGRES + WRITE_POSTGRES * writes) / 1e6
}

/// What a replica looks up in the home cell, per second.
#[derive(Clone, Copy)]
pub struct Lookups {
    pub keys: f64,
    pub queries: f64,
    /// The share of the requests that need no lookup.
    pub cached: f64,
}

/// Requests of `keys` keys, all at the same rate, which needs the most lookups. One query runs at a time, and what waits
/// when it ends forms the next one. A key that is needed while it is being looked up waits for the next query.
pub fn lookups(requests_per_s: f64, keys: u32, changes_per_s: f64) -> Lookups {
    const WARM_UP: f64 = 0.9;
    const SECONDS: f64 = 1.8;
    let mut random = Random(2);
    let mut cache: LruCache<u32, f64> = LruCache::new(CACHED_KEYS as usize);
    // With the moment of the request that needs the key.
    let mut waiting: BTreeMap<u32, f64> = BTreeMap::new();
    let mut query: Option<(f64, BTreeMap<u32, f64>)> = None;
    let (mut now, mut changed) = (0.0, 0.0);
    let mut next_change = random.wait(1.0 / changes_per_s);
    let (mut requests, mut cached, mut looked_up, mut queries) = (0.0, 0.0, 0.0, 0.0);
    while now < WARM_UP + SECONDS {
        now += random.wait(1.0 / requests_per_s);
        while let Some((end, found)) = query.take_if(|(end, _)| *end <= now) {
            for (key, at) in found {
                cache.insert(key, at);
            }
            query = (!waiting.is_empty()).then(|| begin(end, &mut waiting));
            if let Some((_, keys)) = query.as_ref().filter(|_| end > WARM_UP) {
                (looked_up, queries) = (looked_up + keys.len() as f64, queries + 1.0);
            }
        }
        while next_change <= now {
            (changed, next_change) = (next_change, next_change + random.wait(1.0 / changes_per_s));
        }
        let key = (random.share() * f64::from(keys)) as u32;
        let is_fresh = cache.get(&key).is_some_and(|at| *at > changed && now - *at < CACHED_FOR);
        if now > WARM_UP {
            (requests, cached) = (requests + 1.0, cached + f64::from(u8::from(is_fresh)));
        }
        if !is_fresh {
            waiting.entry(key).or_insert(now);
            if query.is_none() {
                query = Some(begin(now, &mut waiting));
                if now > WARM_UP {
                    (looked_up, queries) = (looked_up + 1.0, queries + 1.0);
                }
            }
        }
    }
    Lookups { keys: looked_up / SECONDS, queries: queries / SECONDS, cached: cached / requests }
}

/// A query that begins `now`, and when it ends.
fn begin(now: f64, waiting: &mut BTreeMap<u32, f64>) -> (f64, BTreeMap<u32, f64>) {
    let rest = waiting.keys().nth(QUERY_KEYS as usize).copied();
    let rest = rest.map(|first| waiting.split_off(&first)).unwrap_or_default();
    let keys = std::mem::replace(waiting, rest);
    // The round trip is about as long as the statement.
    (now + 2.0 * (LOOKUP_QUERY + LOOKUP_KEY * keys.len() as f64) / 1e6, keys)
}

/// Shares of the time or of the tenants.
struct Outages {
    per_month: f64,
    all_up: f64,
    /// Of a tenant, on average.
    availability: f64,
}

fn outages(cells: u32) -> Outages {
    const FAILURES: f64 = 100_000.0;
    let mut random = Random(3);
    let hours = FAILURES * (UPTIME + DOWNTIME / 60.0) / f64::from(cells);
    // When something changes: how many cells are down, and whether the home cell is down for too long.
    let mut changes: Vec<(f64, i32, i32)> = Vec::new();
    for cell in 0..cells {
        let mut now = random.wait(UPTIME);
        while now < hours {
            let end = now + random.wait(DOWNTIME / 60.0);
            changes.extend([(now, 1, 0), (end, -1, 0)]);
            if cell == 0 && end - now > HOME_OUTAGE / 60.0 {
                changes.extend([(now + HOME_OUTAGE / 60.0, 0, 1), (end, 0, -1)]);
            }
            now = end + random.wait(UPTIME);
        }
    }
    changes.sort_by(|one, other| one.0.total_cmp(&other.0));
    let failures = changes.iter().filter(|(_, down, _)| *down == 1).count() as f64;
    let (mut then, mut down, mut home, mut some_down, mut lost) = (0.0, 0, 0, 0.0, 0.0);
    for (now, down_more, home_more) in changes {
        let affected = if home > 0 { 1.0 } else { f64::from(down) / f64::from(cells) };
        lost += affected * (now - then);
        some_down += if down > 0 { now - then } else { 0.0 };
        (then, down, home) = (now, down + down_more, home + home_more);
    }
    Outages { per_month: failures / hours * 730.0, all_up: 1.0 - some_down / hours, availability: 1.0 - lost / hours }
}

/// A deployment.
struct Deployment {
    cells: f64,
    replicas: f64,
    writes_of_commit: f64,
    changes_per_s: f64,
    lookups: Lookups,
    /// If a load balancer sends the requests of a key to the same two replicas.
    lookups_at_two: Lookups,
}

impl Deployment {
    fn of(cells: u32) -> Self {
        let cells = f64::from(cells);
        let (mut replicas, mut batch) = (REPLICAS_MIN, 1.0);
        // More replicas make smaller batches, which need more replicas.
        for _ in 0..20 {
            batch = writes_of_commit(WRITES / replicas);
            let needed = (service_cores(cells, batch) / REPLICA_CORES).ceil();
            if needed <= replicas {
                break;
            }
            replicas = needed;
        }
        let changes_per_s = cells * TENANTS * CHANGES / 86_400.0;
        let of_replica = |keys: f64| lookups(cells * WRITES / replicas, keys as u32, changes_per_s);
        let keys = cells * KEYS_IN_USE;
        let (lookups, lookups_at_two) = (of_replica(keys), of_replica(keys * 2.0 / replicas));
        Self { cells, replicas, writes_of_commit: batch, changes_per_s, lookups, lookups_at_two }
    }

    fn tenants(&self) -> f64 {
        self.cells * TENANTS
    }

    fn service_cores(&self) -> f64 {
        service_cores(self.cells, self.writes_of_commit)
    }

    /// Of one cell, without what the home cell does for the others.
    fn cell_cores(&self) -> f64 {
        let write = COMMIT_POSTGRES / self.writes_of_commit + WRITE_POSTGRES;
        (WRITES * write + self.replicas * CHECKS * CHECK) / 1e6
    }

    /// The lookups of keys, and the recording of their use.
    fn key_cores(&self, Lookups { keys, queries, .. }: Lookups) -> f64 {
        let uses = self.cells * KEYS_IN_USE / 60.0;
        // A replica records the uses that it finds due in one query.
        let statements = f64::min(uses, queries * self.replicas);
        let lookups = self.replicas * (queries * LOOKUP_QUERY + keys * LOOKUP_KEY);
        (lookups + statements * USE_QUERY + uses * USE_KEY) / 1e6
    }

    fn placement_seconds(&self) -> f64 {
        self.tenants() * PLACEMENT / 1e6
    }

    /// How much of each limit is used.
    fn shares_of_limits(&self) -> [(&'static str, f64); 5] {
        [
            ("API keys of all tenants", self.tenants() / KEYS_MAX),
            ("Connections to a cell, at most", self.replicas * CONNECTIONS / SERVER_CONNECTIONS),
            ("Connections to a cell, under writes", self.replicas * USED_CONNECTIONS / SERVER_CONNECTIONS),
            ("Cores of the home cell, for keys", self.key_cores(self.lookups) / SERVER_CORES),
            ("Cores of a member cell", self.cell_cores() / SERVER_CORES),
        ]
    }
}

fn service_cores(cells: f64, writes_of_commit: f64) -> f64 {
    cells * WRITES * (COMMIT_SERVICE / writes_of_commit + WRITE_SERVICE) / 1e6
}

/// The tables of the document: the figures, the results, and the limits.
pub fn tables() -> [String; 3] {
    let row = |(meaning, value, unit, source): &(&str, f64, &str, &str)| {
        format!("| {meaning} | {value} {unit} | {source} |\n")
    };
    let rows: String = FIGURES.iter().map(row).collect();
    let figures = format!("| quantity | figure | source |\n|---|--:|---|\n{rows}");
    let deployments = CELLS.map(|cells| (Deployment::of(cells), outages(cells)));
    type Row = (&'static str, fn(&Deployment, &Outages) -> String);
    let rows: [Row; 19] = [
        ("keyed writes per second", |all, _| shown(all.cells * WRITES)),
        ("replicas", |all, _| shown(all.replicas)),
        ("writes per commit", |all, _| shown(all.writes_of_commit)),
        ("cores of the service · of all cells", |all, _| {
            format!("{} · {}", shown(all.service_cores()), shown(all.cells * all.cell_cores()))
        }),
        ("tenants · size of the directory", |all, _| {
            format!("{} · {} MB", shown(all.tenants()), shown(all.tenants() * TENANT_BYTES / 1e6))
        }),
        ("changes of keys and of the directory per hour", |all, _| shown(all.changes_per_s * 3600.0)),
        ("keys in use", |all, _| shown(all.cells * KEYS_IN_USE)),
        ("requests whose key is cached", |all, _| percent(all.lookups.cached, 1)),
        ("lookups of keys per second, all replicas", |all, _| shown(all.lookups.keys * all.replicas)),
        ("cores of the home cell for keys", |all, _| shown(all.key_cores(all.lookups))),
        ("the same if the requests of a key go to two replicas", |all, _| shown(all.key_cores(all.lookups_at_two))),
        ("time of the home cell to place a new tenant", |all, _| {
            format!("{} ms", shown(all.placement_seconds() * 1e3))
        }),
        ("connections of a replica, under writes · at most", |all, _| {
            format!("{} · {}", shown(all.cells * USED_CONNECTIONS), shown(all.cells * CONNECTIONS))
        }),
        ("connections to a cell, under writes · at most", |all, _| {
            format!("{} · {}", shown(all.replicas * USED_CONNECTIONS), shown(all.replicas * CONNECTIONS))
        }),
        ("series of the metrics, all replicas", |all, _| shown(all.cells * all.replicas * SERIES)),
        ("failures of cells per month", |_, outages| shown(outages.per_month)),
        ("tenants that the failure of a member cell affects", |all, _| percent(1.0 / all.cells, 1)),
        ("time in which operator reads are incomplete", |_, outages| percent(1.0 - outages.all_up, 1)),
        ("availability for a tenant", |_, outages| percent(outages.availability, 2)),
    ];
    let head = |first: &str| format!("| {first} | 10 cells | 100 cells | 1 000 cells |");
    let rows = rows.iter().map(|(name, value)| {
        let values = deployments.iter().map(|(deployment, outages)| value(deployment, outages));
        format!("| {name} | {} |\n", values.collect::<Vec<_>>().join(" | "))
    });
    let results = format!("{}\n|---|--:|--:|--:|\n{}", head(""), rows.collect::<String>());
    let reached = reached();
    let limits = reached.iter().enumerate().map(|(place, (name, reached))| {
        let shares = deployments.iter().map(|(deployment, _)| percent(deployment.shares_of_limits()[place].1, 0));
        let reached = reached.map_or("above 1 000".to_owned(), |cells| format!("{cells}"));
        format!("| {name} | {} | {reached} |\n", shares.collect::<Vec<_>>().join(" | "))
    });
    let head = head("share of the limit");
    let limits = format!("{head} reached at cells |\n|---|--:|--:|--:|--:|\n{}", limits.collect::<String>());
    [figures, results, limits]
}

/// For each limit, the smallest number of cells that reaches it: each is a quarter more than the one before.
fn reached() -> Vec<(&'static str, Option<u32>)> {
    let mut found: Vec<(&'static str, Option<u32>)> = Vec::new();
    let mut cells: u32 = 8;
    while cells <= 1000 {
        for (place, (name, share)) in Deployment::of(cells).shares_of_limits().into_iter().enumerate() {
            if found.len() <= place {
                found.push((name, None));
            }
            if share >= 1.0 {
                found[place].1.get_or_insert(cells);
            }
        }
        cells += cells / 4;
    }
    found
}

/// Three digits that mean something, and groups of thousands.
fn shown(value: f64) -> String {
    let digits = value.abs().log10().floor();
    let unit = 10_f64.powf(digits - 2.0);
    let rounded = (value / unit).round() * unit;
    let text = if digits >= 2.0 { format!("{rounded:.0}") } else { format!("{rounded:.*}", (2.0 - digits) as usize) };
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && whole.len() > 4 && (whole.len() - place) % 3 == 0 {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

fn percent(share: f64, decimals: usize) -> String {
    format!("{:.decimals$} %", share * 100.0)
}
