//! One program for all targets: `FUZZ_TARGET` names the one that it runs.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET");
    targets::TARGETS.iter().find(|(own, _)| *own == name).expect("a target").1
});

fuzz_target!(|data: &[u8]| TARGET(data));
