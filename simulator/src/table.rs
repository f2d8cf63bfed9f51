//! What many runs come to.

use std::{collections::BTreeMap, fmt};

use crate::{schedule::Group, world::Outcome};

#[derive(Clone, Debug, Default)]
struct Row {
    schedules: u64,
    could_finish: u64,
    attempts: u64,
    most_attempts: u32,
    most_without_renewals: u32,
    blamed: u64,
    longest_ms: u64,
    steps: u64,
}

/// One row a group.
#[derive(Clone, Debug, Default)]
pub struct Table(BTreeMap<(u16, Group), Row>);

impl Table {
    /// Takes a run in.
    pub fn add(&mut self, outcome: &Outcome) {
        let key = (outcome.group.operators, outcome.group);
        let row = self.0.entry(key).or_default();
        row.schedules = row.schedules.saturating_add(1);
        row.steps = row.steps.saturating_add(outcome.steps);
        row.blamed = row
            .blamed
            .saturating_add(u64::try_from(outcome.blamed).unwrap_or(u64::MAX));
        if !outcome.could_finish {
            return;
        }
        row.could_finish = row.could_finish.saturating_add(1);
        row.attempts = row.attempts.saturating_add(outcome.attempts.into());
        row.most_attempts = row.most_attempts.max(outcome.attempts);
        if outcome.renewals == 0 {
            row.most_without_renewals = row.most_without_renewals.max(outcome.attempts);
        }
        row.longest_ms = row.longest_ms.max(outcome.at_ms);
    }

    /// Runs taken in.
    pub fn schedules(&self) -> u64 {
        self.0.values().map(|row| row.schedules).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>10} {:>9} {:>9} {:>6} {:>7} {:>7} {:>9} {:>8} {:>11} {:>12}",
            "group",
            "schedules",
            "finished",
            "stuck",
            "mean",
            "bound",
            "most",
            "most+",
            "blamed",
            "longest, s"
        )?;
        for ((_, group), row) in &self.0 {
            writeln!(
                f,
                "{:>10} {:>9} {:>9} {:>6} {:>7.2} {:>7} {:>9} {:>8} {:>11} {:>12.1}",
                group.to_string(),
                row.schedules,
                row.could_finish,
                row.schedules.saturating_sub(row.could_finish),
                row.attempts as f64 / row.could_finish.max(1) as f64,
                group
                    .operators
                    .saturating_sub(group.threshold)
                    .saturating_add(1),
                row.most_without_renewals,
                row.most_attempts,
                row.blamed,
                row.longest_ms as f64 / 1_000.0,
            )?;
        }
        Ok(())
    }
}
