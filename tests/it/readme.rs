//! The README's quickstart: each command is run as it is printed, and must give the answer printed below it.

use std::process::Command;

use crate::support::Service;

const README: &str = include_str!("../../README.md");

/// The text of the fenced blocks of one language, in order.
fn blocks(language: &str) -> Vec<String> {
    let mut parts = README.split("```");
    parts.next();
    parts.step_by(2).filter_map(|block| Some(block.strip_prefix(language)?.trim().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_gives_the_answers_it_shows() {
    let service = Service::start(&[]).await;
    let (commands, answers) = (blocks("sh\n"), blocks("json\n"));
    assert_eq!((commands.len(), answers.len()), (4, 4));
    for (command, answer) in commands.iter().zip(&answers) {
        let command = command.replace("localhost:3001", &service.address.to_string());
        // Twice the same for keyed commands: the README says so.
        let times = if command.contains("Idempotency-Key") { 2 } else { 1 };
        for _ in 0..times {
            let run = Command::new("sh").args(["-c", &command]).output();
            let output = tokio::task::block_in_place(|| run).expect("sh and curl");
            assert_eq!(String::from_utf8_lossy(&output.stdout), *answer, "{command}");
        }
    }
}
