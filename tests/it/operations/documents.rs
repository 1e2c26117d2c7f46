//! The documents say what happens: each command, program and query in them is run as it is printed, and must give what
//! is printed below it. `UPDATE_DOCUMENTS=1` writes what it gave into the page instead.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Client, Service, program, url, usage};

/// A fenced block that can be run, and where in the page its output stands.
struct Example {
    language: String,
    text: String,
    output: std::ops::Range<usize>,
}

struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        let text = std::fs::read_to_string(&path).expect(name);
        Self { path, text }
    }

    /// Every block in these languages, with the `text` block below it.
    fn examples(&self, languages: &[&str]) -> Vec<Example> {
        let mut blocks = Vec::new();
        let mut place = 0;
        while let Some(start) = self.text[place..].find("```") {
            let fence = place + start + 3;
            let line = fence + self.text[fence..].find('\n').expect("a line") + 1;
            let end = line + self.text[line..].find("```").expect("the end of a block");
            blocks.push((self.text[fence..line].trim().to_owned(), line..end));
            place = end + 3;
        }
        let pairs = blocks.iter().zip(blocks.iter().skip(1));
        let runnable = pairs.filter(|((language, _), _)| languages.contains(&language.as_str()));
        let examples = runnable.map(|((language, code), (below, output))| {
            assert_eq!(below, "text", "what stands below {}", &self.text[code.clone()]);
            Example { language: language.clone(), text: self.text[code.clone()].to_owned(), output: output.clone() }
        });
        examples.collect()
    }

    /// Compares what the page shows with what came, times and drawn ids aside; or takes it over.
    fn compare(mut self, results: Vec<(Example, String)>) {
        assert!(!results.is_empty());
        let updates = std::env::var("UPDATE_DOCUMENTS").is_ok_and(|value| value == "1");
        // From the end, so that the earlier places stay right.
        for (example, output) in results.into_iter().rev() {
            let shown = self.text[example.output.clone()].to_owned();
            if !updates {
                assert_eq!(normal(&shown), normal(&output), "{}\nprints\n{output}", example.text);
            } else if normal(&shown) != normal(&output) {
                let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
                self.text.replace_range(example.output, &format!("{}\n", lines.join("\n").trim_matches('\n')));
            }
        }
        if updates {
            std::fs::write(&self.path, &self.text).expect("the page");
        }
    }
}

/// The words of an output, with a mark for what differs from run to run. Rules of a table are as long as its columns.
fn normal(output: &str) -> Vec<String> {
    let words = output.split(|character: char| character.is_whitespace() || ",|{}()'".contains(character));
    words.filter(|word| !word.is_empty()).map(normal_word).collect()
}

fn normal_word(word: &str) -> String {
    let shape: String =
        word.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect();
    if shape.starts_with("0000-00-00") {
        return "<date>".to_owned();
    }
    if shape.starts_with("00:00:00") {
        return "<time>".to_owned();
    }
    if word.chars().all(|character| "-+".contains(character)) {
        return "<rule>".to_owned();
    }
    for (start, length) in [("tnt_", 32), ("stl_", 32), ("apk_", 8)] {
        if let Some(place) = word.find(start)
            && word[place + 4..].len() == length
        {
            return format!("{}{start}<drawn>", &word[..place]);
        }
    }
    for name in ["\"createdAt\":", "\"expiresAt\":"] {
        if word.starts_with(name) {
            return format!("{name}<ms>");
        }
    }
    if uuid::Uuid::parse_str(word).is_ok() { "<uuid>".to_owned() } else { word.to_owned() }
}

async fn output(mut command: Command, input: String) -> String {
    let run = move || {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
        child.stdin.take().expect("input").write_all(input.as_bytes()).expect("input");
        let output = child.wait_with_output().expect("an end");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{input}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &errors
    };
    tokio::task::spawn_blocking(run).await.expect("a thread")
}

#[tokio::test]
async fn the_examples_for_client_developers_give_what_they_show() {
    let service = Service::start(&[]).await;
    let page = Page::read("idempotency.md");
    let mut results = Vec::new();
    for example in page.examples(&["sh", "python"]) {
        let text = example.text.replace("localhost:3001", &service.address.to_string());
        let command = Command::new(if example.language == "sh" { "sh" } else { "python3" });
        results.push((example, output(command, text).await));
    }
    page.compare(results);
    service.verify().await;
}

/// Something of everything, for the pages of the DBA to show.
async fn seed(service: &Service) {
    let client = |request: &str, key: Option<&str>| {
        let client = service.client().with("x-request-id", request);
        key.map_or(client.clone(), |key| client.key(key))
    };
    let weather = json!({ "serviceId": "weather", "priceStroops": 250 });
    let maps = json!({ "serviceId": "maps", "priceStroops": 40, "description": "tiles", "owner": "ops" });
    let bulk = json!({ "items": [usage("agent-1", "weather", 4), usage("agent-2", "maps", 10)] });
    let pair = json!({ "agent": "agent-1", "serviceId": "weather" });
    let made = client("req-0", None).post("/api/v1/api-keys", &json!({ "label": "acme" })).await.json();
    let acme = client("req-9", Some("order-1")).with("x-api-key", made["key"].as_str().expect("a key"));
    let steps: [(Client, &str, &Value); 9] = [
        (client("req-1", None), "/api/v1/services", &weather),
        (client("req-2", Some("order-1")), "/api/v1/usage", &usage("agent-1", "weather", 3)),
        (client("req-3", Some("order-2")), "/api/v1/usage/bulk", &bulk),
        (client("req-4", Some("bill-1")), "/api/v1/settle", &pair),
        (client("req-5", Some("order-3")), "/api/v1/usage", &usage("agent-1", "weather", 2)),
        (client("req-6", None), "/api/v1/services", &maps),
        (client("req-7", None), "/api/v1/services/maps/disable", &json!({})),
        (client("req-8", Some("order-4")), "/api/v1/usage", &usage("agent-2", "maps", 1)),
        (acme, "/api/v1/usage", &usage("robot", "weather", 7)),
    ];
    for (client, path, body) in steps {
        // Each at a moment of its own, so that "the newest first" is one order.
        service.clock.advance_ms(1);
        let answer = client.post(path, body).await;
        assert!(answer.status < 300 || answer.status == 409, "{answer:?}");
    }
}

#[tokio::test]
async fn the_queries_for_dbas_give_what_they_show() {
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000")]).await;
    seed(&service).await;
    let page = Page::read("data-model.md");
    let mut results = Vec::new();
    for example in page.examples(&["sql"]) {
        let mut psql = Command::new(program("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-P", "pager=off", "-d", &psql_url(&service)]);
        psql.env("PGTZ", "UTC");
        let text = example.text.clone();
        results.push((example, output(psql, text).await));
    }
    page.compare(results);
}

/// The URL of the service's database without what psql does not know.
fn psql_url(service: &Service) -> String {
    let url = url(&service.pool.connect_options());
    let Some((base, parameters)) = url.split_once('?') else { return url };
    let known = parameters.split('&').filter(|parameter| parameter.starts_with("host="));
    format!("{base}?{}", known.collect::<String>())
}
