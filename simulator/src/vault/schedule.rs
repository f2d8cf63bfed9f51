//! What happens in one run, drawn from a seed.

use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::place::{COORDINATORS, USERS};
use crate::{
    schedule::{Conduct, Group, Weather},
    signatures::Lie,
};

/// Groups of most schedules: a small one is more often split.
pub const VAULT_GROUPS: &[Group] = &[
    Group::new(2, 3),
    Group::new(2, 3),
    Group::new(2, 3),
    Group::new(2, 4),
    Group::new(3, 4),
    Group::new(3, 5),
];

/// What a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Pays so many sats to its deposit address.
    Deposit(u64),
    /// Sends to another user.
    Transfer,
    /// Takes Bitcoin out.
    Withdraw,
    /// Pays the vault directly: it credits nobody.
    TopUp,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A node's process dies and starts again.
    Crash(Node),
    /// A coordinator's disk is gone.
    LoseDisk(usize),
    /// An operator's share is restored from a backup: what it has promised is lost.
    Restore(usize),
    /// So many blocks leave the chain; deposits in them may be double-spent.
    Reorg {
        /// Blocks.
        depth: u32,
        /// Whether depositors use it.
        double_spend: bool,
    },
    /// Miners and mempools ask for this rate, in sats per 1,000 virtual bytes.
    Market(u64),
    /// The mempool forgets what pays less than this.
    Evict(u64),
    /// The vault's key has leaked: something unknown spends the treasury.
    Steal,
}

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// An operator.
    Operator(usize),
    /// A coordinator.
    Coordinator(usize),
}

/// What happens in one run.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Where it was drawn from.
    pub seed: u64,
    /// The group.
    pub group: Group,
    /// How the operators behave.
    pub operators: Vec<Conduct>,
    /// Whether each coordinator is honest.
    pub coordinators: Vec<bool>,
    /// The network.
    pub weather: Weather,
    /// What users do, and when.
    pub acts: Vec<(u64, usize, Act)>,
    /// What goes wrong, and when.
    pub troubles: Vec<(u64, Trouble)>,
    /// Of a thousand messages, at how many their sender dies between the write and the send.
    pub deaths: u32,
    /// From here on nothing goes wrong any more, in ms.
    pub calm_ms: u64,
    /// For everything else that is decided on the way.
    pub rng: ChaCha8Rng,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn new(seed: u64, groups: &[Group]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let group = *groups.choose(&mut rng).unwrap_or(&Group::new(2, 3));
        let (n, t) = (group.operators, group.threshold);
        // Fewer than t are bad, and t are not.
        let most = (t - 1).min(n - t);
        let corrupt = if rng.gen_bool(0.5) {
            most
        } else {
            rng.gen_range(0..=most)
        };
        let mut operators: Vec<Conduct> = (0..n)
            .map(|i| {
                if i < corrupt {
                    conduct(&mut rng)
                } else {
                    Conduct::Honest
                }
            })
            .collect();
        operators.shuffle(&mut rng);
        let count = rng.gen_range(1..=COORDINATORS);
        let mut coordinators: Vec<bool> = (0..count).map(|i| i == 0 || rng.gen_bool(0.6)).collect();
        coordinators.shuffle(&mut rng);
        let calm_ms = *[40_000, 100_000, 160_000]
            .choose(&mut rng)
            .unwrap_or(&40_000);
        let weather = Weather {
            delay_ms: *[1, 100, 500, 2_000].choose(&mut rng).unwrap_or(&1),
            stragglers: *[0, 2].choose(&mut rng).unwrap_or(&0),
            doubled: *[0, 10].choose(&mut rng).unwrap_or(&0),
            lost: *[0, 0, 5, 30].choose(&mut rng).unwrap_or(&0),
        };
        let acts = acts(&mut rng, calm_ms);
        let troubles = troubles(&mut rng, calm_ms, usize::from(n), count);
        Self {
            seed,
            group,
            operators,
            coordinators,
            weather,
            acts,
            troubles,
            deaths: *[0, 0, 5, 20].choose(&mut rng).unwrap_or(&0),
            calm_ms,
            rng,
        }
    }

    /// Whether nobody can go on without an administrator after this (S14).
    pub fn ends_in_alarm(&self) -> bool {
        self.troubles
            .iter()
            .any(|(_, trouble)| matches!(trouble, Trouble::Steal))
    }
}

fn conduct(rng: &mut ChaCha8Rng) -> Conduct {
    match rng.gen_range(0..6) {
        0 => Conduct::Deaf,
        1 => Conduct::Refuser,
        2 => Conduct::Liar {
            lie: Lie::WrongShare,
            percent: 50,
        },
        // Signs everything for everybody.
        _ => Conduct::TwoFaced,
    }
}

fn acts(rng: &mut ChaCha8Rng, calm_ms: u64) -> Vec<(u64, usize, Act)> {
    let mut acts = Vec::new();
    let first = rng.gen_range(1..=3);
    for _ in 0..first {
        let at = rng.gen_range(0..calm_ms / 4);
        let sats = *[19_000, 30_000, 60_000, 90_000]
            .choose(rng)
            .unwrap_or(&30_000);
        acts.push((at, rng.gen_range(0..USERS), Act::Deposit(sats)));
    }
    for _ in 0..rng.gen_range(2..=5) {
        let act = match rng.gen_range(0..10) {
            0..=1 => Act::Deposit(rng.gen_range(20_000..50_000)),
            2..=4 => Act::Transfer,
            5..=8 => Act::Withdraw,
            _ => Act::TopUp,
        };
        // Some come when nothing goes wrong any more: what went wrong before must not stand in their way.
        let at = rng.gen_range(calm_ms / 3..calm_ms + 15_000);
        acts.push((at, rng.gen_range(0..USERS), act));
    }
    acts
}

fn troubles(
    rng: &mut ChaCha8Rng,
    calm_ms: u64,
    operators: usize,
    coordinators: usize,
) -> Vec<(u64, Trouble)> {
    let mut troubles = Vec::new();
    let count = *[0, 2, 4, 8].choose(rng).unwrap_or(&2);
    for _ in 0..count {
        let trouble = match rng.gen_range(0..20) {
            0..=2 => Trouble::Crash(Node::Operator(rng.gen_range(0..operators))),
            3..=5 => Trouble::Crash(Node::Coordinator(rng.gen_range(0..coordinators))),
            6 => Trouble::LoseDisk(rng.gen_range(0..coordinators)),
            7 => Trouble::Restore(rng.gen_range(0..operators)),
            8..=12 => Trouble::Reorg {
                depth: *[1, 1, 2, 2, 3].choose(rng).unwrap_or(&1),
                double_spend: rng.gen_bool(0.5),
            },
            13..=15 => Trouble::Market(rng.gen_range(1..8) * 1_000),
            16..=18 => Trouble::Evict(rng.gen_range(1..8) * 1_000),
            _ => Trouble::Restore(rng.gen_range(0..operators)),
        };
        troubles.push((rng.gen_range(0..calm_ms), trouble));
    }
    if rng.gen_range(0..40) == 0 {
        troubles.push((rng.gen_range(calm_ms / 2..calm_ms), Trouble::Steal));
    }
    if rng.gen_range(0..60) == 0 {
        let depth = rng.gen_range(4..7);
        let deep = Trouble::Reorg {
            depth,
            double_spend: true,
        };
        troubles.push((rng.gen_range(calm_ms / 2..calm_ms), deep));
    }
    troubles
}
