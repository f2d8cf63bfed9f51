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
