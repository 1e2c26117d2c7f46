//! A process whose machine has a wrong clock, by libfaketime. Its monotonic clock is right, as on such a machine.

use std::path::Path;

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

/// The environment of a process whose clock is ahead by `offset`, as libfaketime writes times: `+25h`, `-10s`. None where
/// libfaketime is not installed, which CI does not accept.
pub fn foreign_clock(offset: &'static str) -> Option<[(&'static str, &'static str); 3]> {
    let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
    if library.is_none() {
        assert!(std::env::var_os("CI").is_none(), "libfaketime is not installed");
        eprintln!("skipped: libfaketime is not installed");
    }
    Some([("LD_PRELOAD", library?), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")])
}
