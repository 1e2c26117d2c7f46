//! `cells`: two cells, from their first command to an empty cell, and a mover that is killed at any moment.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::RngExt;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

use crate::support::{
    DataDir, Service, binary, empty_database, new_database, pool, run, signal, url, usage, wait_until,
};

/// Two databases, of which the second has no schema, and the file that lists them.
struct Operator {
    service: Service,
    databases: [PgConnectOptions; 2],
    dir: DataDir,
}

impl Operator {
    async fn start() -> Self {
        let databases = [new_database().await, empty_database().await];
        let operator =
            Self { service: Service::start_on(databases[0].clone(), &[]).await, databases, dir: DataDir::new() };
        operator.write_file(["home", "eu"]);
        operator
    }

    fn file(&self) -> String {
        Path::new(self.dir.as_str()).join("cells.toml").to_str().expect("UTF-8").to_owned()
    }

    fn write_file(&self, ids: [&str; 2]) {
        std::fs::create_dir_all(self.dir.as_str()).expect("a directory");
        let cells = ids.iter().zip(&self.databases);
        let cells = cells.map(|(id, database)| format!("[[cell]]\nid = \"{id}\"\nurl = \"{}\"\n", url(database)));
        std::fs::write(self.file(), cells.collect::<String>()).expect("a file");
    }

    /// Runs a command. Its exit code, and what it wrote.
    async fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = run(&[&["cells"][..], arguments].concat(), &[("CELLS_FILE", &self.file())]).await;
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        (output.status.code().expect("no signal"), text)
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let (code, text) = self.run(&[arguments, &["--format", "json"]].concat()).await;
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// A tenant with some usage.
    async fn tenant(&self, pairs: i64) -> String {
        let client = self.service.client();
        let made = client.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        let client = client.with("x-api-key", &text("key"));
        for number in 0..pairs {
            let body = usage(&format!("a{number}"), "s", 2);
            assert_eq!(client.key(&format!("k{number}")).post("/api/v1/usage", &body).await.status, 201);
        }
        text("tenantId")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_added_gets_a_tenant_and_is_emptied() {
    let operator = Operator::start().await;
    let tenant = operator.tenant(3).await;
    let listed = operator.json(&["list"]).await;
    let states = [&listed["cells"][0]["state"], &listed["cells"][1]["state"]];
    assert_eq!(states, ["not added", "not added"], "{listed}");
    let (code, text) = operator.run(&["move", &tenant, "--to", "eu"]).await;
    assert_eq!(code, 1, "{text}");

    for _ in 0..2 {
        assert_eq!(operator.run(&["add", "eu"]).await, (0, "eu is the cell number 1\n".to_owned()));
    }
    assert_eq!(operator.run(&["add", "us"]).await, (1, "CELLS_FILE has no cell us\n".to_owned()));
    let migrated = "home: the schema is up to date\neu: the schema is up to date\n";
    assert_eq!(operator.run(&["migrate"]).await, (0, migrated.to_owned()));

    let dry = operator.json(&["move", &tenant, "--to", "eu", "--dry-run"]).await;
    assert_eq!((&dry["dryRun"], &dry["from"], &dry["to"]), (&json!(true), &json!("home"), &json!("eu")), "{dry}");
    let keys = dry["tables"].as_array().and_then(|tables| tables.iter().find(|row| row["table"] == "idempotency_keys"));
    assert_eq!(keys, Some(&json!({ "table": "idempotency_keys", "rows": 3 })), "{dry}");
    assert_eq!(operator.run(&["verify"]).await, (0, "2 cells and 2 tenants add up\n".to_owned()));
    let table = operator.run(&["move", &tenant, "--to", "eu"]).await;
    assert_eq!(table.0, 0, "{}", table.1);
    assert_eq!(operator.run(&["move", &tenant, "--to", "eu"]).await, (0, format!("{tenant} lives there already\n")));
    assert_eq!(operator.run(&["verify"]).await, (0, "2 cells and 2 tenants add up\n".to_owned()));
    let listed = operator.json(&["list"]).await;
    let tenants = [&listed["cells"][0]["tenants"], &listed["cells"][1]["tenants"]];
    assert_eq!((tenants, &listed["moves"]), ([&json!(1), &json!(1)], &json!([])), "{listed}");

    // Whatever is in the wrong place is found.
    let twice = "UPDATE tenants SET residence = 'here' WHERE residence = 'elsewhere'";
    sqlx::query(twice).execute(&operator.service.pool).await.expect("an update");
    let (code, text) = operator.run(&["verify"]).await;
    let wrong = format!("{tenant} lives in home and eu, but the directory says eu\n");
    assert!(code == 1 && text.ends_with(&wrong), "{text}");
    let back = "UPDATE tenants SET residence = 'elsewhere' WHERE tenant_id <> 'public'";
    sqlx::query(back).execute(&operator.service.pool).await.expect("an update");

    let dry = operator.json(&["drain", "eu", "--dry-run"]).await;
    assert_eq!((&dry[0]["tenantId"], &dry[0]["to"]), (&json!(tenant), &json!("home")), "{dry}");
    operator.json(&["drain", "eu"]).await;
    assert_eq!(operator.json(&["drain", "eu"]).await, json!([]));
    let listed = operator.json(&["list"]).await;
    assert_eq!(
        (&listed["cells"][1]["state"], &listed["cells"][1]["tenants"]),
        (&json!("draining"), &json!(0)),
        "{listed}"
    );
    assert_eq!(operator.service.number("SELECT count(*) FROM idempotency_keys").await, 3);
    operator.service.verify().await;

    // A url that leads to another cell is noticed.
    operator.write_file(["eu", "home"]);
    for arguments in [&["migrate"][..], &["verify"], &["add", "eu"]] {
        let (code, text) = operator.run(arguments).await;
        assert!(
            code == 1 && text.contains("the database of the cell eu in CELLS_FILE is that of the cell home"),
            "{arguments:?}: {text}"
        );
    }
    // A home cell does not get a cell of another one, not even after an interruption that left a row of the same id.
    let mut other = Operator::start().await;
    assert_eq!(other.run(&["add", "home"]).await.0, 0);
    other.databases[1] = operator.databases[1].clone();
    other.write_file(["home", "eu"]);
    let foreign = "the database of the cell eu in CELLS_FILE belongs to another home cell\n".to_owned();
    assert_eq!(other.run(&["add", "eu"]).await, (1, foreign.clone()));
    let home = pool(&other.databases[0]);
    assert_eq!(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM cells").fetch_one(&home).await.expect("a count"), 1);
    sqlx::query("INSERT INTO cells (cell_id, number) VALUES ('eu', 1)").execute(&home).await.expect("a row");
    for arguments in [&["add", "eu"][..], &["verify"], &["migrate"]] {
        let (code, text) = other.run(arguments).await;
        assert!(code == 1 && text.ends_with(&foreign), "{arguments:?}: {text}");
    }
    let service = Service::start_on(other.databases[0].clone(), &[("CELLS_FILE", &other.file())]).await;
    let unavailable = json!([{ "cell": "eu", "reason": foreign.trim_end() }]);
    let ready = async || service.client().get("/api/v1/health/ready").await.json()["unavailableCells"].clone();
    wait_until(async || ready().await == unavailable).await;
    // Without the file there are no cells.
    let output = run(&["cells", "list"], &[("DATABASE_URL", &url(&operator.databases[0]))]).await;
    assert_eq!(output.stderr, b"CELLS_FILE is unset: it lists the cells\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_does_not_become_a_second_home_cell() {
    let mut operator = Operator::start().await;
    operator.tenant(1).await;
    // The first database has the data, and is no cell yet. Then it is.
    for found in ["has data", "is the cell home"] {
        operator.databases.swap(0, 1);
        operator.write_file(["eu", "home"]);
        for id in ["eu", "home"] {
            let error = format!(
                "the database of home {found} already, and that of eu is no cell: the first cell of CELLS_FILE must be the \
                 home cell, with the database that is in use\n"
            );
            assert_eq!(operator.run(&["add", id]).await, (1, error));
        }
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        let count = sqlx::query_scalar::<_, i64>(tables).fetch_one(&pool(&operator.databases[0])).await;
        assert_eq!(count.expect("a count"), 0);
        operator.databases.swap(0, 1);
        operator.write_file(["home", "eu"]);
        assert_eq!(operator.run(&["add", "home"]).await, (0, "home is the home cell\n".to_owned()));
    }
    // A database that is created later is no obstacle.
    let later = operator.databases[1].clone().database("created_later");
    operator.databases = [new_database().await, later];
    operator.write_file(["home", "eu"]);
    assert_eq!(operator.run(&["add", "home"]).await, (0, "home is the home cell\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_that_is_killed_at_any_moment_leaves_the_tenant_whole() {
    let operator = Operator::start().await;
    assert_eq!(operator.run(&["add", "eu"]).await.0, 0);
    let tenant = operator.tenant(20).await;
    let mut to = "eu";
    for round in 0..8 {
        let mut command = binary(&[("CELLS_FILE", &operator.file())]);
        command.args(["cells", "move", &tenant, "--to", to]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut mover = command.spawn().expect("the binary");
        // The copy takes some hundred milliseconds, and what follows three seconds.
        let delay = if round < 4 { rand::rng().random_range(50..400) } else { rand::rng().random_range(300..3000) };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        // A command that is interrupted cleans up, and one that is killed does not.
        signal(&mover, if round % 2 == 0 { "-KILL" } else { "-TERM" });
        let status = mover.wait().expect("a process");
        println!("{round}: {status} after {delay} ms");
        let (code, text) = operator.run(&["move", &tenant, "--undo"]).await;
        println!("{text}");
        if code != 0 {
            assert!(text.contains("is not being moved") || text.contains("has arrived in"), "{text}");
        }
        let (code, text) = operator.run(&["move", &tenant, "--to", to]).await;
        assert_eq!(code, 0, "{text}");
        assert_eq!(operator.run(&["verify"]).await, (0, "2 cells and 2 tenants add up\n".to_owned()));
        to = if to == "eu" { "home" } else { "eu" };
    }
    let pairs = "SELECT count(*) FROM usage_counters WHERE tenant_id <> 'public'";
    let mut counts = Vec::new();
    for database in &operator.databases {
        counts.push(sqlx::query_scalar::<_, i64>(pairs).fetch_one(&pool(database)).await.expect("a count"));
    }
    assert_eq!(counts, [20, 0]);
}
