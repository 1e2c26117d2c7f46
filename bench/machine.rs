//! What Linux knows about this machine and its processes: processor time, memory, and where a program is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::error::Result;

/// The unit of processor time in /proc, USER_HZ, is the same on every architecture that servers have.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time so far, in ticks, or processors used on average.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cores {
    pub services: f64,
    /// Of each server.
    pub postgres: Vec<f64>,
    /// The load generator and whatever else ran.
    pub rest: f64,
    /// What the host gave to other virtual machines.
    pub stolen: f64,
}

impl Cores {
    pub fn ticks(services: &[u32], postmasters: &[u32]) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let machine: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().skip(1).collect();
        // user, nice, system, irq and softirq
        let busy: f64 = [0, 1, 2, 5, 6].iter().map(|place| number(&machine, *place)).sum();
        let services = services.iter().map(|pid| of_tree(*pid)).sum::<Result<f64>>()?;
        let postgres = postmasters.iter().map(|pid| of_tree(*pid)).collect::<Result<Vec<f64>>>()?;
        let rest = busy - services - postgres.iter().sum::<f64>();
        Ok(Self { services, postgres, rest, stolen: number(&machine, 7) })
    }

    pub fn since(&self, earlier: &Self, seconds: f64) -> Self {
        let cores = |later: f64, earlier: f64| (later - earlier).max(0.0) / TICKS_PER_SECOND / seconds;
        Self {
            services: cores(self.services, earlier.services),
            postgres: self.postgres.iter().zip(&earlier.postgres).map(|(now, then)| cores(*now, *then)).collect(),
            rest: cores(self.rest, earlier.rest),
            stolen: cores(self.stolen, earlier.stolen),
        }
    }
}

/// The fields of /proc/PID/stat behind the program's name, which may hold blanks; the state comes first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn number(fields: &[impl AsRef<str>], place: usize) -> f64 {
    fields.get(place).and_then(|text| text.as_ref().parse().ok()).unwrap_or(0.0)
}

pub fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|fields| number(&fields, 1) as u32)
}

/// A process, its living children, and the children it has waited for.
fn of_tree(pid: u32) -> Result<f64> {
    let Some(own) = stat(pid) else { return Ok(0.0) };
    let mut ticks: f64 = (11..=14).map(|place| number(&own, place)).sum();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let child = name.to_str().and_then(|name| stat(name.parse().ok()?));
        if let Some(fields) = child.filter(|fields| number(fields, 1) as u32 == pid) {
            ticks += number(&fields, 11) + number(&fields, 12);
        }
    }
    Ok(ticks)
}

/// Resident memory of a process.
pub fn memory_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.unwrap_or(0.0) / 1024.0)
}

/// A program of PATH, or of the PostgreSQL that Debian keeps elsewhere.
pub fn find(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort();
    let dirs = std::env::split_paths(&path).chain(versions.into_iter().rev().map(|version| version.join("bin")));
    let found = dirs.map(|dir| dir.join(program)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{program} is missing: install it (Debian: apt-get install {package})").into())
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
    format!(
        "{processors} cores ({}), {} of memory, {}, {}, database on {}",
        read("/proc/cpuinfo", "model name"),
        read("/proc/meminfo", "MemTotal"),
        run("uname", &["-sr"]),
        run("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        run("stat", &["-f", "-c", "%T", &dir.to_string_lossy()]),
    )
}
