//! The process as the kernel sees it, under the names that every Prometheus dashboard knows.
//!
//! Read from `/proc` when scraped; elsewhere, or in a sandbox without it, the values stay 0. The `prometheus`
//! crate has the same, at the price of a second `rustix` and half a minute of building.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};
use rustix::process::{Resource, getrlimit};

/// Ticks in which `/proc/self/stat` counts. The kernel fixes it for its interface, whatever it uses inside.
const TICKS_PER_SECOND: f64 = 100.0;

/// `process_*`.
pub(super) struct ProcessCollector {
    cpu: Counter,
    memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    start_time: Gauge,
    threads: Gauge,
}

/// What `/proc/self/stat` tells.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    /// After the machine's boot.
    started_seconds: f64,
}

impl ProcessCollector {
    pub(super) fn new() -> ProcessCollector {
        let cpu = Counter::new("process_cpu_seconds_total", "User and system CPU time spent, in seconds.");
        ProcessCollector {
            cpu: cpu.expect("the name is well-formed"),
            memory: gauge("process_resident_memory_bytes", "Resident memory in bytes."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "The most file descriptors that may be open."),
            start_time: gauge("process_start_time_seconds", "Start of the process, in seconds since 1970."),
            threads: gauge("process_threads", "Threads of the process."),
        }
    }

    fn all(&self) -> [&dyn Collector; 6] {
        [&self.cpu, &self.memory, &self.open_fds, &self.max_fds, &self.start_time, &self.threads]
    }

    fn look(&self) {
        if let Some(stat) = read("/proc/self/stat").as_deref().and_then(parse_stat) {
            // A second scrape at the same time may have been quicker; a counter must not go back.
            self.cpu.inc_by((stat.cpu_seconds - self.cpu.get()).max(0.0));
            self.threads.set(stat.threads);
            if let Some(boot) = read("/proc/stat").as_deref().and_then(|text| field(text, "btime")) {
                self.start_time.set(boot + stat.started_seconds);
            }
        }
        if let Some(kib) = read("/proc/self/status").as_deref().and_then(|text| field(text, "VmRSS:")) {
            self.memory.set(kib * 1024.0);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        self.max_fds.set(getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64));
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.look();
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

fn gauge(name: &str, help: &str) -> Gauge {
    Gauge::new(name, help).expect("the name is well-formed")
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// See proc_pid_stat(5): utime is field 14, stime 15, num_threads 20, starttime 22. Field 2 is the program's
/// name in parentheses and may itself hold blanks and parentheses, so counting begins behind the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_seconds: (number(14)? + number(15)?) / TICKS_PER_SECOND,
        threads: number(20)?,
        started_seconds: number(22)? / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_stat_line_with_an_odd_name() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 7 0 12300 1 2 3";
        let expected = Stat { cpu_seconds: 2.0, threads: 7.0, started_seconds: 123.0 };
        assert_eq!(parse_stat(line), Some(expected));
        assert_eq!(parse_stat("42 (short) S 1"), None);
    }

    #[test]
    fn finds_a_field() {
        assert_eq!(field("a 1\nVmRSS:\t  512 kB\n", "VmRSS:"), Some(512.0));
        assert_eq!(field("VmRSS:\n", "VmRSS:"), None);
    }

    #[test]
    fn knows_itself() {
        let collector = ProcessCollector::new();
        collector.look();
        assert!(collector.memory.get() > 1e6 && collector.threads.get() >= 1.0);
        assert!(collector.open_fds.get() >= 3.0 && collector.max_fds.get() >= collector.open_fds.get());
        assert!(collector.start_time.get() > 1.7e9);
    }
}
