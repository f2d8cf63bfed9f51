//! What the hypervisor took meanwhile: for every benchmark, which has it by `#[path]`.

use std::fmt;

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
    fn percent(&self) -> Option<f64> {
        let (before, now) = (self.0?, Self::now().0?);
        let all = now.0.saturating_sub(before.0).max(1);
        Some(100.0 * now.1.saturating_sub(before.1) as f64 / all as f64)
    }
}

/// What was taken since.
impl fmt::Display for Steal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.percent() {
            Some(percent) => write!(f, "CPU steal meanwhile: {percent:.1} % of all CPU time"),
            None => f.write_str("CPU steal meanwhile: unknown (no /proc/stat)"),
        }
    }
}
