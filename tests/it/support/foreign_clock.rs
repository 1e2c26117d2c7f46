//! Processes whose machine has a wrong clock, simulated by libfaketime. Their monotonic clock is correct.

use std::path::Path;

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

/// The environment of a process whose clock is ahead by `offset`, in libfaketime's notation: `+25h`, `-10s`. `None` if
/// libfaketime is not installed, which fails in CI.
pub fn foreign_clock(offset: &'static str) -> Option<[(&'static str, &'static str); 3]> {
    let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
    if library.is_none() {
        assert!(std::env::var_os("CI").is_none(), "libfaketime is not installed");
        eprintln!("skipped: libfaketime is not installed");
    }
    Some([("LD_PRELOAD", library?), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")])
}
