//! `completions` and `man`, and the help of every command.

use crate::support::{DataDir, run};

async fn printed(arguments: &[&str]) -> String {
    // Neither settings nor a database are needed: with these no other command starts.
    let output = run(arguments, &[("PORT", "none")]).await;
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()), "{arguments:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]).await;
        for word in ["settlements", "failed-since", "agentpay-billing"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_has_a_manual_page_and_a_help() {
    let page = printed(&["man"]).await;
    assert!(page.contains(".TH agentpay-billing 1") && page.contains("idempotency"), "{page}");
    let dir = DataDir::new();
    printed(&["man", dir.as_str()]).await;
    for command in [
        "serve",
        "migrate",
        "verify",
        "prune",
        "import",
        "keys create",
        "keys list",
        "keys rotate",
        "keys revoke",
        "audit export",
        "idempotency show",
        "idempotency stats",
        "settlements export",
        "deliveries list",
        "deliveries retry",
        "secrets check",
        "secrets encrypt",
        "secrets decrypt",
        "config show",
        "cells list",
        "cells add",
        "cells migrate",
        "cells verify",
        "cells move",
        "cells drain",
    ] {
        let page = format!("{}/agentpay-billing-{}.1", dir.as_str(), command.replace(' ', "-"));
        assert!(std::fs::exists(&page).expect("a directory"), "{page}");
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = printed(&arguments).await;
        assert!(help.contains(&format!("Usage: agentpay-billing {command}")), "{help}");
    }
}
