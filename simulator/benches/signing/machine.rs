//! What the machine says of itself.

use std::{
    ops::{Add, AddAssign},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// Elapsed time, and the time of all threads on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Took {
    pub elapsed: Duration,
    pub cpu: Duration,
}

impl Took {
    /// Of some work.
    pub fn by<T>(work: impl FnOnce() -> T) -> (T, Self) {
        let cpu = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
        let (began, before) = (Instant::now(), cpu());
        let done = work();
        let took = Self {
            elapsed: began.elapsed(),
            cpu: cpu() - before,
        };
        (done, took)
    }
}

impl Add for Took {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Took {
    fn add_assign(&mut self, other: Self) {
        self.elapsed += other.elapsed;
        self.cpu += other.cpu;
    }
}

/// The middle of some figures.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The kernel's counters of all CPU time and of what the hypervisor took (proc(5)).
pub struct Steal(Option<(u64, u64)>);

impl Steal {
    pub fn now() -> Self {
        Self(std::fs::read_to_string("/proc/stat").ok().and_then(|stat| {
            let line = stat.lines().next()?.strip_prefix("cpu ")?;
            let ticks: Vec<u64> = line
                .split_whitespace()
                .filter_map(|t| t.parse().ok())
                .collect();
            // Guest time, the last two, is contained in user time.
            Some((ticks.get(..8)?.iter().sum(), *ticks.get(7)?))
        }))
    }

    /// In percent of all CPU time.
    pub fn since(&self) -> Option<f64> {
        let (before, now) = (self.0?, Self::now().0?);
        let all = now.0.saturating_sub(before.0).max(1);
        Some(100.0 * now.1.saturating_sub(before.1) as f64 / all as f64)
    }
}
