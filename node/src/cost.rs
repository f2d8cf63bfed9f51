//! What a node's work costs, for Prometheus: how long it took, for how long a CPU was at it, and for how many inputs or
//! chunks it was. Where processes share a machine, the first says what the others waited, the second what
//! the work itself takes.

use std::{
    ops::AddAssign,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// The names under which one kind of work is counted.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// Histogram of elapsed time.
    pub seconds: &'static str,
    /// Histogram of CPU time.
    pub cpu_seconds: &'static str,
    /// Counter of inputs or chunks.
    pub items: &'static str,
}

/// What some work took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Elapsed time.
    pub wall: Duration,
    /// CPU time, to the kernel's nanosecond.
    pub cpu: Duration,
}

impl Cost {
    /// Counts it as one piece under `meter` on `items` inputs or chunks.
    pub fn record(self, meter: &Meter, items: usize) {
        metrics::histogram!(meter.seconds).record(self.wall.as_secs_f64());
        metrics::histogram!(meter.cpu_seconds).record(self.cpu.as_secs_f64());
        metrics::counter!(meter.items).increment(u64::try_from(items).unwrap_or(u64::MAX));
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.wall = self.wall.saturating_add(other.wall);
        self.cpu = self.cpu.saturating_add(other.cpu);
    }
}

/// Runs from when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    clock: ClockId,
    began: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Counts the CPU time of this thread, so it must be read on the thread that made it: for work on one thread.
    pub fn thread() -> Self {
        Self::start(ClockId::ThreadCPUTime)
    }

    /// Counts the CPU time of all threads, whatever they do: for work on many threads that the process does little
    /// beside.
    pub fn process() -> Self {
        Self::start(ClockId::ProcessCPUTime)
    }

    fn start(clock: ClockId) -> Self {
        Self {
            clock,
            began: Instant::now(),
            cpu: read(clock),
        }
    }

    /// The cost so far.
    pub fn cost(&self) -> Cost {
        Cost {
            wall: self.began.elapsed(),
            cpu: read(self.clock).saturating_sub(self.cpu),
        }
    }
}

fn read(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_costs_time_and_a_thread_that_works_costs_cpu() {
        let (thread, process) = (Stopwatch::thread(), Stopwatch::process());
        let worker = std::thread::spawn(|| {
            let own = Stopwatch::thread();
            while own.cost().cpu < Duration::from_millis(20) {}
        });
        worker.join().unwrap();
        assert!(process.cost().cpu >= Duration::from_millis(20));
        assert!(thread.cost().wall >= Duration::from_millis(20));
        assert!(thread.cost().cpu < process.cost().cpu);
    }
}
