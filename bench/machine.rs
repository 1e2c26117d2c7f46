//! What Linux says about this machine and its processes: processor time, memory, and where a program is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::Result;

/// Processor time so far, in clock ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    pub services: u64,
    pub postgres: u64,
    pub pooler: u64,
    /// Of everything on the machine, idle time excluded.
    pub machine: u64,
    /// Taken by other virtual machines of the same host.
    pub stolen: u64,
}

/// Processors used on average. `rest` is the load generator and whatever else ran on the machine; `stolen` is what the
/// host gave to other virtual machines instead.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cores {
    pub services: f64,
    pub postgres: f64,
    pub pooler: f64,
    pub rest: f64,
    pub stolen: f64,
}

impl Ticks {
    pub fn now(services: &[u32], postmaster: u32, pooler: Option<u32>) -> Result<Self> {
        let (machine, stolen) = of_machine()?;
        Ok(Self {
            services: services.iter().map(|pid| of_process(*pid)).sum(),
            postgres: of_tree(postmaster)?,
            pooler: pooler.map_or(0, of_process),
            machine,
            stolen,
        })
    }

    pub fn cores_until(self, later: Ticks, seconds: f64) -> Cores {
        let per_core = ticks_per_second() * seconds;
        let cores = |earlier: u64, later: u64| later.saturating_sub(earlier) as f64 / per_core;
        let services = cores(self.services, later.services);
        let postgres = cores(self.postgres, later.postgres);
        let pooler = cores(self.pooler, later.pooler);
        let rest = (cores(self.machine, later.machine) - services - postgres - pooler).max(0.0);
        Cores { services, postgres, pooler, rest, stolen: cores(self.stolen, later.stolen) }
    }
}

fn ticks_per_second() -> f64 {
    let output = Command::new("getconf").arg("CLK_TCK").output();
    output.ok().and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok()).unwrap_or(100.0)
}

/// The numbers of /proc/<pid>/stat after the program's name, which may hold blanks itself: the state comes first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn number(fields: &[String], place: usize) -> u64 {
    fields.get(place).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn of_process(pid: u32) -> u64 {
    stat(pid).map_or(0, |fields| number(&fields, 11) + number(&fields, 12))
}

/// A process, its living children, and those it has buried.
fn of_tree(pid: u32) -> Result<u64> {
    let Some(own) = stat(pid) else { return Ok(0) };
    let mut ticks: u64 = (11..=14).map(|place| number(&own, place)).sum();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(fields) = stat(child).filter(|fields| number(fields, 1) == u64::from(pid)) {
            ticks += number(&fields, 11) + number(&fields, 12);
        }
    }
    Ok(ticks)
}

/// user, nice, system, irq and softirq of the first line of /proc/stat; and steal.
fn of_machine() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields: Vec<String> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).map(str::to_owned).collect();
    Ok(([0, 1, 2, 5, 6].iter().map(|place| number(&fields, *place)).sum(), number(&fields, 7)))
}

pub fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|fields| number(&fields, 1) as u32)
}

/// Resident memory of a process in bytes: now, and at its highest.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    pub resident_bytes: u64,
    pub peak_bytes: u64,
}

pub fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(Memory { resident_bytes: kib("VmRSS:") * 1024, peak_bytes: kib("VmHWM:") * 1024 })
}

/// A program of PATH, or of the PostgreSQL that Debian keeps elsewhere.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort();
    dirs.extend(versions.into_iter().rev().map(|version| version.join("bin")));
    dirs.extend(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The same, with the advice of how to come by it.
pub fn need(program: &str, package: &str) -> Result<PathBuf> {
    find(program).ok_or_else(|| format!("{program} is missing: install it (Debian: apt-get install {package})").into())
}

/// One line about the machine.
pub fn describe(dir: &Path) -> String {
    let read = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let file_system = run("stat", &["-f", "-c", "%T", &dir.to_string_lossy()]);
    format!(
        "{processors} cores ({}), {} of memory, {}, {}, database on {file_system}",
        read("/proc/cpuinfo", "model name"),
        read("/proc/meminfo", "MemTotal"),
        run("uname", &["-sr"]),
        run("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
    )
}
