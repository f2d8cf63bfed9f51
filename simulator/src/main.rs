//! `drawbridge-simulate`: many random schedules, the replay of one, and machines that are broken on purpose.
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::{
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use simulator::{
    FAULTS, Failure, GROUPS, Group, Outcome, Table, Totals, VAULT_FAULTS,
    candidates::{BOUNDS, BROKEN, BROKEN_BOUNDS, check},
    run_broken, run_fake, run_real, run_vault, run_vault_broken, run_vault_real,
};

/// Groups whose schedules are cheap enough with FROST to run many.
const SMALL: &[Group] = &[
    Group::new(2, 3),
    Group::new(3, 5),
    Group::new(3, 5),
    Group::new(4, 9),
    Group::new(11, 15),
    Group::new(12, 16),
];
const LARGE: &[Group] = &[Group::new(67, 100)];
/// How often the progress bar is drawn.
const TICK: Duration = Duration::from_millis(200);
/// Characters of a failure in a table.
const MAX_WORDS: usize = 100;
/// Failures printed before the rest is only counted.
const MAX_SHOWN: usize = 10;

/// Drives the protocol's state machines through random schedules.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Signing sessions: coordinators and operators.
    Signing(Signing),
    /// Rules S2 and S7: every run of a few operators, a coordinator that splits them, and a short chain.
    Candidates,
    /// The whole bridge: users, coordinators, operators, and a model of Bitcoin.
    Vault(Vault),
    /// Machines and nodes with a fault each: the invariants must notice every one.
    Mutants(Mutants),
}

#[derive(clap::Args)]
struct Vault {
    /// Schedules with made-up signatures on a small tree.
    #[arg(long, default_value_t = 10_000)]
    schedules: u64,
    /// Schedules with FROST on the full tree.
    #[arg(long, default_value_t = 200)]
    real: u64,
    /// The first seed; the others follow.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Replays one schedule instead, and prints everything that happens in it.
    #[arg(long)]
    seed: Option<u64>,
    /// Replays the schedule with FROST on the full tree.
    #[arg(long, requires = "seed")]
    frost: bool,
}

#[derive(clap::Args)]
struct Mutants {
    /// Schedules in which a fault of the signing machines must show.
    #[arg(long, default_value_t = 200)]
    within: u64,
    /// Schedules in which a fault of the whole bridge must show.
    #[arg(long, default_value_t = 3_000)]
    vault_within: u64,
    /// The first seed; the others follow.
    #[arg(long, default_value_t = 0)]
    from: u64,
}

#[derive(clap::Args)]
struct Signing {
    /// Schedules with made-up signatures.
    #[arg(long, default_value_t = 10_000)]
    schedules: u64,
    /// Schedules of small groups with FROST.
    #[arg(long, default_value_t = 100)]
    real: u64,
    /// Schedules of 67-of-100 with FROST.
    #[arg(long, default_value_t = 0)]
    large: u64,
    /// The first seed; the others follow.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Replays one schedule instead, and prints everything that happens in it.
    #[arg(long)]
    seed: Option<u64>,
    /// What the seed is of.
    #[arg(long, value_enum, default_value_t = Kind::Fake, requires = "seed")]
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Made-up signatures.
    Fake,
    /// FROST, small groups.
    Real,
    /// FROST, 67-of-100.
    Large,
}

impl Kind {
    fn run(self, seed: u64, trace: bool) -> Result<Outcome, Failure> {
        match self {
            Self::Fake => run_fake(seed, trace),
            Self::Real => run_real(seed, SMALL, trace),
            Self::Large => run_real(seed, LARGE, trace),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Real => "real",
            Self::Large => "large",
        }
    }
}

fn main() -> ExitCode {
    match Arguments::parse().what {
        What::Signing(arguments) => signing(&arguments),
        What::Candidates => candidates(),
        What::Vault(arguments) => vault(&arguments),
        What::Mutants(arguments) => mutants(&arguments),
    }
}

/// Every run within each of the bounds, then the same with each fault.
fn candidates() -> ExitCode {
    let mut failed = false;
    for bounds in BOUNDS {
        let begin = Instant::now();
        let checked = check(*bounds, None);
        println!(
            "{bounds}: {} states, {} steps deep, {} violations, {:.0} s",
            checked.states,
            checked.depth,
            checked.violations.len(),
            begin.elapsed().as_secs_f64()
        );
        for (property, run) in &checked.violations {
            println!("VIOLATION {property}: {run}");
        }
        for property in &checked.unreached {
            println!("NEVER {property}");
        }
        failed |= !checked.violations.is_empty() || !checked.unreached.is_empty();
    }
    for broken in BROKEN {
        let checked = check(BROKEN_BOUNDS, Some(broken));
        match checked.violations.first() {
            Some((property, run)) => println!("{broken:54} noticed: {property}: {run}"),
            None => {
                println!("{broken:54} NOTHING");
                failed = true;
            }
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn mutants(arguments: &Mutants) -> ExitCode {
    println!("{:>9}  {:54} noticed by", "schedules", "fault");
    let signing = caught(&FAULTS, arguments.from, arguments.within, |seed, fault| {
        run_broken(seed, fault).err()
    });
    let vault = caught(
        &VAULT_FAULTS,
        arguments.from,
        arguments.vault_within,
        // A schedule that fails without the fault says nothing about it.
        |seed, fault| {
            let failure = run_vault_broken(seed, fault, false).err()?;
            run_vault(seed, false).is_ok().then_some(failure)
        },
    );
    let missed = signing.saturating_add(vault);
    println!(
        "{} faults of the signing machines, {} of the whole bridge, {missed} not noticed within {} and {} schedules",
        FAULTS.len(),
        VAULT_FAULTS.len(),
        arguments.within,
        arguments.vault_within
    );
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Looks for the first schedule in which each fault is noticed. Gives how many are not.
fn caught<F: Copy + Sync + std::fmt::Display>(
    faults: &[F],
    from: u64,
    within: u64,
    run: impl Fn(u64, F) -> Option<Failure> + Sync,
) -> usize {
    let first = |fault: F| (from..from.saturating_add(within)).find_map(|seed| run(seed, fault));
    let caught: Vec<_> = faults.par_iter().map(|fault| first(*fault)).collect();
    for (fault, failure) in faults.iter().zip(&caught) {
        match failure {
            Some(failure) => {
                let schedules = failure.seed.saturating_sub(from).saturating_add(1);
                let what: String = failure.what.chars().take(MAX_WORDS).collect();
                println!("{schedules:>9}  {:54} {what}", fault.to_string());
            }
            None => println!("{:>9}  {:54} NOTHING", "-", fault.to_string()),
        }
    }
    caught.iter().filter(|failure| failure.is_none()).count()
}

fn vault(arguments: &Vault) -> ExitCode {
    if let Some(seed) = arguments.seed {
        let replayed = if arguments.frost {
            run_vault_real(seed, true)
        } else {
            run_vault(seed, true)
        };
        return match replayed {
            Ok(counts) => {
                println!("{counts:#?}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                println!("{failure}");
                ExitCode::FAILURE
            }
        };
    }
    let mut violations = 0_u64;
    for (is_real, schedules) in [(false, arguments.schedules), (true, arguments.real)] {
        if schedules > 0 {
            violations = violations.saturating_add(vaults(is_real, arguments.from, schedules));
        }
    }
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the whole bridge through the schedules of consecutive seeds. Gives the number of violations.
fn vaults(is_real: bool, from: u64, schedules: u64) -> u64 {
    let (name, flag, run): (_, _, fn(u64, bool) -> _) = if is_real {
        ("FROST signatures, full tree", " --frost", run_vault_real)
    } else {
        ("made-up signatures, small tree", "", run_vault)
    };
    let many = Many {
        name,
        short: "vault",
        from,
        schedules,
    };
    many.run(
        |seed| run(seed, false),
        |totals: &mut Totals, counts| totals.add(&counts),
        |seed| format!("vault --seed {seed}{flag}"),
    )
}

fn signing(arguments: &Signing) -> ExitCode {
    if let Some(seed) = arguments.seed {
        return replay(seed, arguments.kind);
    }
    let groups: std::collections::BTreeSet<Group> = GROUPS.iter().copied().collect();
    println!(
        "{} groups; schedules in which too few operators are honest count as stuck",
        groups.len()
    );
    let mut violations = 0_u64;
    for (kind, schedules) in [
        (Kind::Fake, arguments.schedules),
        (Kind::Real, arguments.real),
        (Kind::Large, arguments.large),
    ] {
        if schedules > 0 {
            violations = violations.saturating_add(sessions(kind, arguments.from, schedules));
        }
    }
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn replay(seed: u64, kind: Kind) -> ExitCode {
    match kind.run(seed, true) {
        Ok(outcome) => {
            println!("{outcome:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs signing through the schedules of consecutive seeds. Gives the number of violations.
fn sessions(kind: Kind, from: u64, schedules: u64) -> u64 {
    let many = Many {
        name: match kind {
            Kind::Fake => "made-up signatures",
            Kind::Real | Kind::Large => "FROST signatures",
        },
        short: kind.name(),
        from,
        schedules,
    };
    many.run(
        |seed| kind.run(seed, false),
        |table: &mut Table, outcome| table.add(&outcome),
        |seed| format!("signing --kind {} --seed {seed}", kind.name()),
    )
}

/// The schedules of consecutive seeds, on all processors.
struct Many {
    name: &'static str,
    /// For the progress bar.
    short: &'static str,
    from: u64,
    schedules: u64,
}

impl Many {
    /// Runs them, and prints the sum of what came of them and the first violations, with what replays them. Gives the number
    /// of violations.
    fn run<O, T: Default + Send + std::fmt::Display>(
        &self,
        run: impl Fn(u64) -> Result<O, Failure> + Sync,
        add: impl Fn(&mut T, O) + Sync,
        replay: impl Fn(u64) -> String,
    ) -> u64 {
        let begin = Instant::now();
        let sum = Mutex::new(T::default());
        let shown = Mutex::new(Vec::new());
        let violations = AtomicU64::new(0);
        let bar = bar(self.short, self.schedules);
        let to = self.from.saturating_add(self.schedules);
        (self.from..to).into_par_iter().for_each(|seed| {
            match run(seed) {
                Ok(outcome) => add(
                    &mut sum.lock().unwrap_or_else(PoisonError::into_inner),
                    outcome,
                ),
                Err(failure) => {
                    violations.fetch_add(1, Ordering::Relaxed);
                    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    if shown.len() < MAX_SHOWN {
                        shown.push(failure);
                    }
                }
            }
            bar.inc(1);
        });
        bar.finish_and_clear();
        let violations = violations.into_inner();
        println!();
        println!(
            "{}: {} schedules, seeds {} to {}, {violations} violations, {:.0} s",
            self.name,
            self.schedules,
            self.from,
            to.saturating_sub(1),
            begin.elapsed().as_secs_f64()
        );
        print!(
            "{}",
            sum.into_inner().unwrap_or_else(PoisonError::into_inner)
        );
        for failure in shown.into_inner().unwrap_or_else(PoisonError::into_inner) {
            println!("VIOLATION {failure}");
            println!("  replay: ./simulate.sh {}", replay(failure.seed));
        }
        violations
    }
}

/// Shows on a terminal how far it is.
fn bar(name: &'static str, schedules: u64) -> ProgressBar {
    let bar = ProgressBar::new(schedules);
    let template = "{msg:5} [{bar:28}] {pos}/{len} {elapsed} (eta {eta})";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(name);
    bar.enable_steady_tick(TICK);
    bar
}
