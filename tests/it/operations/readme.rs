//! The README's quickstart and docs/api.md: each command is run as it is printed, and must give the answer that is
//! printed below it. Ids and moments may differ; an id that was made is used where the document uses its own.

use std::process::Command;

use serde_json::Value;

use crate::support::Service;

const README: &str = include_str!("../../../README.md");
const API: &str = include_str!("../../../docs/api.md");

/// A command and the answer printed below it.
struct Example {
    command: &'static str,
    answer: &'static str,
}

fn examples(document: &'static str) -> Vec<Example> {
    let blocks: Vec<(&str, &str)> =
        document.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect();
    let is_answer = |language: &str| language == "json" || language == "text";
    let pairs = blocks.windows(2).filter(|pair| pair[0].0 == "sh" && is_answer(pair[1].0));
    pairs.map(|pair| Example { command: pair[0].1.trim(), answer: pair[1].1.trim() }).collect()
}

/// What the document calls by another name than this run.
#[derive(Default)]
struct Learned(Vec<(String, String)>);

impl Learned {
    fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (shown, got)| text.replace(shown, got))
    }

    /// Whether `got` is what the document shows, once the names in it are taken for those of this run.
    fn accepts(&mut self, shown: &str, got: &str) -> bool {
        match (serde_json::from_str(shown), serde_json::from_str(got)) {
            (Ok(shown), Ok(got)) => self.accepts_value(&shown, &got),
            _ => self.apply(shown) == got,
        }
    }

    fn accepts_value(&mut self, shown: &Value, got: &Value) -> bool {
        match (shown, got) {
            (Value::Object(shown), Value::Object(got)) => {
                // In order.
                shown.keys().eq(got.keys())
                    && shown.values().zip(got.values()).all(|(shown, got)| self.accepts_value(shown, got))
            }
            (Value::Array(shown), Value::Array(got)) => {
                shown.len() == got.len() && shown.iter().zip(got).all(|(shown, got)| self.accepts_value(shown, got))
            }
            (Value::String(shown), Value::String(got)) => {
                if self.apply(shown) != *got && is_id(shown) && shown.len() == got.len() && form(shown) == form(got) {
                    self.0.push((shown.clone(), got.clone()));
                    // Lists show API keys by their prefix.
                    if shown.starts_with("apk_") {
                        self.0.push((shown[..12].to_owned(), got[..12].to_owned()));
                    }
                }
                self.apply(shown) == *got
            }
            (Value::Number(shown), Value::Number(got)) => shown == got || (is_moment(shown) && is_moment(got)),
            _ => shown == got,
        }
    }
}

fn is_moment(number: &serde_json::Number) -> bool {
    number.as_i64().is_some_and(|ms| ms > 1_700_000_000_000)
}

fn is_id(text: &str) -> bool {
    let is_uuid = text.len() == 36 && text.matches('-').count() == 4;
    is_uuid || ["apk_", "tnt_", "wh_", "stl_", "dlv_", "whsec_"].iter().any(|prefix| text.starts_with(prefix))
}

/// What two ids of one kind have in common.
fn form(id: &str) -> &str {
    id.split_once('_').map_or("", |(prefix, _)| prefix)
}

/// `repeats`: keyed commands are run twice, and must give the same.
async fn run(service: &Service, document: &'static str, count: usize, repeats: bool) {
    let examples = examples(document);
    assert_eq!(examples.len(), count);
    let mut learned = Learned::default();
    for Example { command, answer } in examples {
        let command = learned.apply(command).replace("localhost:3001", &service.address.to_string());
        let times = if repeats && command.contains("Idempotency-Key") { 2 } else { 1 };
        for _ in 0..times {
            let output = tokio::task::block_in_place(|| Command::new("sh").args(["-c", &command]).output());
            let output = output.expect("sh and curl");
            let got = String::from_utf8_lossy(&output.stdout);
            assert!(learned.accepts(answer, got.trim()), "{command}\nshows {answer}\ngives {got}");
        }
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_gives_the_answers_it_shows() {
    run(&Service::start(&[]).await, README, 4, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_api_give_the_answers_they_show() {
    run_api(&Service::start(&[("ALLOW_ADMIN_RESET", "on")]).await).await;
}

/// Every operation once or more, a reset included.
pub async fn run_api(service: &Service) {
    run(service, API, API.matches("```sh\n").count(), false).await;
}
