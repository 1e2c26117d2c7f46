//! The process metrics, with the names that Prometheus' own clients use. Read with `procfs`. The collector of the crate
//! `prometheus` is not used: it needs an old version of `procfs`, and counts processor time in whole seconds.

use crate::metrics::Exact;

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub resident_bytes: u64,
    virtual_bytes: u64,
    cpu_seconds: f64,
    /// Since the Unix epoch.
    start_seconds: f64,
    threads: i64,
    open_fds: usize,
    /// `None` if it is unlimited.
    max_fds: Option<u64>,
}

impl Process {
    /// `None` if there is no `/proc`.
    #[cfg(target_os = "linux")]
    pub fn read() -> Option<Self> {
        use procfs::WithCurrentSystemInfo;
        use rustix::process::{Resource, getrlimit};

        let own = procfs::process::Process::myself().ok()?;
        let stat = own.stat().ok()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Some(Self {
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            cpu_seconds: seconds(stat.utime + stat.stime),
            start_seconds: procfs::boot_time_secs().ok()? as f64 + seconds(stat.starttime),
            threads: stat.num_threads,
            open_fds: own.fd_count().ok()?,
            max_fds: getrlimit(Resource::Nofile).current,
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn read() -> Option<Self> {
        None
    }

    pub fn families(self) -> Vec<Exact> {
        let max_fds = self.max_fds.map_or_else(|| "+Inf".to_owned(), |max| max.to_string());
        vec![
            Exact::counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                self.cpu_seconds,
            ),
            Exact::gauge("process_open_fds", "Number of open file descriptors.", self.open_fds),
            Exact::gauge("process_max_fds", "Maximum number of open file descriptors.", max_fds),
            Exact::gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", self.virtual_bytes),
            Exact::gauge("process_resident_memory_bytes", "Resident memory size in bytes.", self.resident_bytes),
            Exact::gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                self.start_seconds,
            ),
            Exact::gauge("process_threads", "Number of OS threads in the process.", self.threads),
        ]
    }
}
