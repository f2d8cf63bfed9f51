//! What runs come to: how often schedules reach what they are for.

use std::fmt;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident: $words:literal,)*) => {
        /// What has happened in one run.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
            /// When it was over, in virtual ms.
            pub at_ms: u64,
            /// Events.
            pub steps: u64,
        }

        /// Sums over many runs.
        #[derive(Clone, Debug, Default)]
        pub struct Totals {
            runs: u64,
            sum: Counts,
            reached: Counts,
        }

        impl Totals {
            /// Takes a run in.
            pub fn add(&mut self, run: &Counts) {
                self.runs = self.runs.saturating_add(1);
                self.sum.steps = self.sum.steps.saturating_add(run.steps);
                self.sum.at_ms = self.sum.at_ms.max(run.at_ms);
                $(
                    self.sum.$name = self.sum.$name.saturating_add(run.$name);
                    self.reached.$name = self.reached.$name.saturating_add(u64::from(run.$name > 0));
                )*
            }
        }

        impl fmt::Display for Totals {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                writeln!(f, "{:>12} {:>12}  what", "times", "schedules")?;
                $(writeln!(f, "{:>12} {:>12}  {}", self.sum.$name, self.reached.$name, $words)?;)*
                writeln!(
                    f,
                    "{:>12} {:>12}  events; the longest schedule took {:.0} s of virtual time",
                    self.sum.steps,
                    self.runs,
                    self.sum.at_ms as f64 / 1_000.0
                )
            }
        }
    };
}

counts! {
    /// Blocks mined.
    blocks: "blocks mined",
    /// Batches in the best chain at the end.
    batches: "batches in the chain at the end",
    /// Deposits credited.
    credited: "deposits credited",
    /// Deposits taken back by their owners.
    refunded: "deposits refunded by their owners",
    /// Deposits whose payment was double-spent.
    double_spent: "deposits double-spent in a reorganisation",
    /// Withdrawals accepted.
    accepted: "operations answered \"accepted\"",
    /// Withdrawals paid.
    paid: "withdrawals paid",
    /// Reorganisations.
    reorganised: "reorganisations",
    /// Batches that left the chain.
    displaced: "batches that left the chain",
    /// Batches given up.
    dissolved: "batches given up, their requests queued again",
    /// Fee bumps signed.
    bumped: "fee bumps signed",
    /// Transactions evicted.
    evicted: "transactions evicted from the mempool",
    /// Submissions again.
    resubmitted: "batches submitted again",
    /// Crashes.
    crashed: "crashes, half of them between a write and its send",
    /// Disks lost.
    lost_disks: "coordinators that began again with an empty disk",
    /// Operators restored.
    restored: "operators restored without their promises",
    /// Lies refused.
    lies_refused: "proposals of lying coordinators refused",
    /// Refusals under S7.
    split: "refusals under S7 by honest operators",
    /// Alarms.
    alarms: "alarms raised (S14)",
    /// Shares.
    shares: "shares of honest operators",
}
