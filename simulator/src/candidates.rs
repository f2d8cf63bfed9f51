//! Every run of the rules about candidates (S2, S7) at a small size, by the model checker stateright: a coordinator
//! that asks any operator for any candidate at any time, blocks in any order, reorganisations, deposits that are
//! spent elsewhere, operators that see the chain late, restart, or are restored from a backup.
//!
//! ```text
//! Run: blocks, and for each honest operator the chain that it has seen, what it keeps, what it has signed
//!   Ask    --> protocol::signer::State decides, the real one
//!   Mine, Reorganise, Look, Restart, Restore
//!        --> properties of each state that can be reached
//! ```
//!
//! Bodies A and B compete for the first sequence number, A with two fees; C follows either of them. Operators that are
//! not honest sign everything, so they are only counted.

mod operator;
mod properties;

use std::fmt;

use stateright::{Checker as _, Model, Property};

use operator::Operator;

/// Blocks for which one signed batch excludes another in these runs.
const DELAY: u8 = 2;
/// Blocks that a reorganisation takes at most.
const DEPTH: u8 = 2;
/// What candidates pay.
const FEE: u8 = 1;
/// What the replacement of body A pays.
const RAISED_FEE: u8 = 2;

/// How large the runs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Signers that a transaction needs.
    pub threshold: u8,
    /// Operators that follow the protocol.
    pub honest: u8,
    /// Operators that sign whatever they are asked.
    pub corrupt: u8,
    /// Blocks of the longest chain.
    pub blocks: u8,
    /// Reorganisations.
    pub reorganisations: u8,
    /// Times that an operator loses what it has promised.
    pub restores: u8,
}

/// 2-of-3 with as many corrupt operators as a vault bears.
pub const SMALL: Bounds = Bounds {
    threshold: 2,
    honest: 2,
    corrupt: 1,
    blocks: 3,
    reorganisations: 0,
    restores: 0,
};

/// 2-of-3 with none.
pub const SMALL_HONEST: Bounds = Bounds {
    honest: 3,
    corrupt: 0,
    blocks: 2,
    ..SMALL
};

impl Bounds {
    /// With chains of so many blocks.
    #[must_use]
    pub const fn blocks(self, blocks: u8) -> Self {
        Self { blocks, ..self }
    }

    /// With so many reorganisations.
    #[must_use]
    pub const fn reorganisations(self, reorganisations: u8) -> Self {
        Self {
            reorganisations,
            ..self
        }
    }

    /// With so many restores.
    #[must_use]
    pub const fn restores(self, restores: u8) -> Self {
        Self { restores, ..self }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-of-{}, {} corrupt, {} blocks, {} reorganisations, {} restores",
            self.threshold,
            self.honest.saturating_add(self.corrupt),
            self.corrupt,
            self.blocks,
            self.reorganisations,
            self.restores
        )
    }
}

/// The sizes that are gone through, some four million states.
pub const BOUNDS: &[Bounds] = &[
    SMALL.blocks(3).reorganisations(1),
    SMALL.blocks(4).restores(1),
    SMALL_HONEST.blocks(3),
    SMALL_HONEST.blocks(2).reorganisations(1),
    Bounds {
        threshold: 3,
        honest: 3,
        corrupt: 1,
        blocks: 2,
        reorganisations: 0,
        restores: 1,
    },
];

/// Where every fault shows.
pub const BROKEN_BOUNDS: Bounds = SMALL.restores(1);

/// What is broken in the operators, to see whether the properties notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// They do not ask what they have promised.
    DropsS7,
    /// They sign a child of any treasury.
    DropsS2,
    /// Their promises are not on disk.
    ForgetsAtRestart,
    /// Nothing holds them back after a restore.
    SkipsQuarantine,
    /// They hold a promise for old at once.
    WaitsForNothing,
    /// They count the delay from the first block.
    CountsFromGenesis,
    /// They take a replacement with a lower fee.
    TakesLowerFees,
    /// They believe that a promised batch can't confirm any more.
    GivesUpAtOnce,
    /// A promise never ends.
    NeverLetsGo,
    /// A quarantine never ends.
    StaysInQuarantine,
}

/// All of them.
pub const BROKEN: [Broken; 10] = [
    Broken::DropsS7,
    Broken::DropsS2,
    Broken::ForgetsAtRestart,
    Broken::SkipsQuarantine,
    Broken::WaitsForNothing,
    Broken::CountsFromGenesis,
    Broken::TakesLowerFees,
    Broken::GivesUpAtOnce,
    Broken::NeverLetsGo,
    Broken::StaysInQuarantine,
];

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DropsS7 => "operators do not ask what they have promised",
            Self::DropsS2 => "operators sign a child of any treasury",
            Self::ForgetsAtRestart => "promises are not on disk",
            Self::SkipsQuarantine => "nothing holds a restored operator back",
            Self::WaitsForNothing => "a promise is old at once",
            Self::CountsFromGenesis => "the delay counts from the first block",
            Self::TakesLowerFees => "a replacement may pay less",
            Self::GivesUpAtOnce => "a promised batch is held for lost",
            Self::NeverLetsGo => "a promise never ends",
            Self::StaysInQuarantine => "a quarantine never ends",
        })
    }
}

/// What a batch does on the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    /// First of the first sequence number; its deposit can be spent elsewhere.
    A,
    /// Second of the first sequence number.
    B,
    /// The only one of the second.
    C,
}

/// A treasury that a batch spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Parent {
    /// The vault's first.
    Genesis,
    /// That of this body with this fee, on the first.
    After(Body, u8),
}

/// One transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The treasury that it spends.
    pub parent: Parent,
    /// The batch.
    pub body: Body,
    /// Miner fee.
    pub fee: u8,
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    /// Nothing of the vault's.
    Empty,
    /// A batch.
    Batch(Choice),
    /// Another transaction with the deposit of body A.
    DoubleSpend,
}

/// The treasury at the end of a chain.
fn head(blocks: &[Block]) -> Parent {
    let mut head = Parent::Genesis;
    for block in blocks {
        if let Block::Batch(choice) = block {
            head = Parent::After(choice.body, choice.fee);
        }
    }
    head
}

/// Whether the inputs of a body are there on that chain.
fn spendable(body: Body, blocks: &[Block]) -> bool {
    body != Body::A || !blocks.contains(&Block::DoubleSpend)
}

/// The candidates that a coordinator can make for a treasury.
fn choices(parent: Parent) -> Vec<Choice> {
    let bodies: &[Body] = match parent {
        Parent::Genesis => &[Body::A, Body::B],
        Parent::After(Body::C, _) => &[],
        Parent::After(..) => &[Body::C],
    };
    let choice = |body: Body, fee: u8| Choice { parent, body, fee };
    let mut all: Vec<Choice> = bodies.iter().map(|body| choice(*body, FEE)).collect();
    if parent == Parent::Genesis {
        all.push(choice(Body::A, RAISED_FEE));
    }
    all
}

/// One state of a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    blocks: Vec<Block>,
    reorganisations: u8,
    restores: u8,
    operators: Vec<Operator>,
}

impl Run {
    /// Honest operators that have signed this very transaction.
    fn signers(&self, choice: Choice) -> usize {
        let signed = |operator: &&Operator| operator.has_signed(choice);
        self.operators.iter().filter(signed).count()
    }
}

/// One step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A block is found.
    Mine(Block),
    /// So many blocks leave the chain.
    Reorganise(u8),
    /// An operator's node takes the chain as it is.
    Look(usize),
    /// A coordinator, honest or not, asks an operator for its share.
    Ask(usize, Choice),
    /// An operator's process dies and starts again.
    Restart(usize),
    /// An operator comes back from a backup.
    Restore(usize),
}

/// All runs within the bounds.
#[derive(Clone, Copy, Debug)]
pub struct Candidates {
    bounds: Bounds,
    broken: Option<Broken>,
}

impl Candidates {
    /// The runs of these bounds, with operators as they are, or with a fault.
    pub fn new(bounds: Bounds, broken: Option<Broken>) -> Self {
        Self { bounds, broken }
    }

    /// Whether so many honest signers and the corrupt ones are enough.
    fn enough(&self, honest: usize) -> bool {
        honest.saturating_add(usize::from(self.bounds.corrupt))
            >= usize::from(self.bounds.threshold)
    }

    fn mine(&self, run: &Run, steps: &mut Vec<Step>) {
        if run.blocks.len() >= usize::from(self.bounds.blocks) {
            return;
        }
        steps.push(Step::Mine(Block::Empty));
        let head = head(&run.blocks);
        for choice in choices(head) {
            if self.enough(run.signers(choice)) && spendable(choice.body, &run.blocks) {
                steps.push(Step::Mine(Block::Batch(choice)));
            }
        }
        let taken = |block: &Block| match block {
            Block::DoubleSpend => true,
            Block::Batch(choice) => choice.body == Body::A,
            Block::Empty => false,
        };
        if !run.blocks.iter().any(taken) {
            steps.push(Step::Mine(Block::DoubleSpend));
        }
    }
}

impl Model for Candidates {
    type State = Run;
    type Action = Step;

    fn init_states(&self) -> Vec<Run> {
        let operators = vec![Operator::default(); usize::from(self.bounds.honest)];
        vec![Run {
            blocks: Vec::new(),
            reorganisations: 0,
            restores: 0,
            operators,
        }]
    }

    fn actions(&self, run: &Run, steps: &mut Vec<Step>) {
        self.mine(run, steps);
        if run.reorganisations < self.bounds.reorganisations {
            let blocks = u8::try_from(run.blocks.len()).unwrap_or(DEPTH).min(DEPTH);
            steps.extend((1..=blocks).map(Step::Reorganise));
        }
        // A child of a batch that is on no chain is refused like a child of one that has left it (S2).
        let mut all = choices(Parent::Genesis);
        all.extend(choices(head(&run.blocks)));
        for operator in &run.operators {
            all.extend(choices(operator.head()));
        }
        all.sort_unstable();
        all.dedup();
        for operator in 0..run.operators.len() {
            steps.push(Step::Look(operator));
            steps.push(Step::Restart(operator));
            if run.restores < self.bounds.restores {
                steps.push(Step::Restore(operator));
            }
            steps.extend(all.iter().map(|choice| Step::Ask(operator, *choice)));
        }
    }

    fn next_state(&self, run: &Run, step: Step) -> Option<Run> {
        let mut next = run.clone();
        match step {
            Step::Mine(block) => next.blocks.push(block),
            Step::Reorganise(blocks) => {
                let left = next.blocks.len().saturating_sub(usize::from(blocks));
                next.blocks.truncate(left);
                next.reorganisations = next.reorganisations.saturating_add(1);
            }
            Step::Look(operator) => next
                .operators
                .get_mut(operator)?
                .look(&run.blocks, self.broken),
            Step::Ask(operator, choice) => {
                next.operators.get_mut(operator)?.ask(choice, self.broken)
            }
            Step::Restart(operator) => next.operators.get_mut(operator)?.restart(self.broken),
            Step::Restore(operator) => {
                next.restores = next.restores.saturating_add(1);
                next.operators
                    .get_mut(operator)?
                    .restore(run.blocks.len(), self.broken);
            }
        }
        // Operators are alike: who is who makes no other state.
        next.operators.sort_unstable();
        (next != *run).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self.bounds)
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// States that differ.
    pub states: usize,
    /// Steps of the longest of the shortest ways to a state.
    pub depth: usize,
    /// Each property that does not hold, with the shortest run that shows it.
    pub violations: Vec<(&'static str, String)>,
    /// What no run comes to, though some should.
    pub unreached: Vec<&'static str>,
}

/// Goes through all runs, or up to the first violation.
pub fn check(bounds: Bounds, broken: Option<Broken>) -> Checked {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = Candidates::new(bounds, broken)
        .checker()
        .threads(threads)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let mut found = checker.discoveries();
    let mut checked = Checked {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        violations: Vec::new(),
        unreached: Vec::new(),
    };
    for property in properties::all(bounds) {
        let path = found.remove(property.name);
        match (property.expectation, path) {
            (stateright::Expectation::Sometimes, None) => checked.unreached.push(property.name),
            (stateright::Expectation::Always, Some(path)) => {
                let steps: Vec<String> = path
                    .into_actions()
                    .iter()
                    .map(|step| format!("{step:?}"))
                    .collect();
                checked.violations.push((property.name, steps.join(", ")));
            }
            _ => {}
        }
    }
    checked
}
