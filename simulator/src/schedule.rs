//! What happens in one run, drawn from a seed.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use protocol::{
    identity::{Identity, PeerKey},
    reputation::Standing,
};
use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use threshold::SignerId;

use crate::signatures::{LIES, Lie};

/// A group's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Signers needed (t).
    pub threshold: u16,
    /// Operators (n).
    pub operators: u16,
}

/// The groups that schedules are drawn for. A large one takes a hundred times as long as a small one, so small
/// ones are drawn more often.
pub const GROUPS: &[Group] = &[
    Group::new(2, 3),
    Group::new(2, 3),
    Group::new(3, 5),
    Group::new(3, 5),
    Group::new(3, 5),
    Group::new(3, 5),
    Group::new(5, 5),
    Group::new(4, 9),
    Group::new(4, 9),
    Group::new(5, 7),
    Group::new(5, 7),
    Group::new(11, 15),
    Group::new(11, 15),
    Group::new(12, 16),
    Group::new(12, 16),
    Group::new(12, 16),
    Group::new(20, 30),
    Group::new(34, 50),
    Group::new(67, 100),
];

impl Group {
    /// t of n.
    pub const fn new(threshold: u16, operators: u16) -> Self {
        Self {
            threshold,
            operators,
        }
    }

    /// Identities of the operators.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        (0..self.operators).map(|i| {
            let mut secret = [0x1D; 32];
            secret
                .iter_mut()
                .zip(i.to_le_bytes())
                .for_each(|(to, from)| *to = from);
            Identity::from_secret(&secret)
        })
    }

    /// The operators, in the order of their FROST identifiers.
    pub fn members(&self) -> &'static [(SignerId, PeerKey)] {
        type Known = Mutex<Vec<(Group, &'static [(SignerId, PeerKey)])>>;
        static KNOWN: Known = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, members)) = known.iter().find(|(group, _)| group == self) {
            return members;
        }
        let mut members: Vec<(SignerId, PeerKey)> = self
            .identities()
            .map(|identity| identity.public())
            .map(|key| (SignerId::derive(&key.0), key))
            .collect();
        members.sort_unstable();
        // Kept until the process ends, once a group.
        let members: &'static [_] = Vec::leak(members);
        known.push((*self, members));
        members
    }

    /// Their FROST identifiers, in order.
    pub fn signers(&self) -> impl Iterator<Item = SignerId> {
        self.members().iter().map(|(signer, _)| *signer)
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-of-{}", self.threshold, self.operators)
    }
}

impl std::str::FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (threshold, operators) = text.split_once("-of-")?;
            let group = Self::new(threshold.parse().ok()?, operators.parse().ok()?);
            (2 <= group.threshold && group.threshold <= group.operators && group.operators <= 128)
                .then_some(group)
        };
        parse().ok_or_else(|| format!("{text} is not a group like 3-of-5"))
    }
}

/// How an operator behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// As the protocol says.
    Honest,
    /// Takes part in nothing.
    Deaf,
    /// Accepts, and answers only so many sign requests.
    Silent {
        /// Sign requests answered before it falls silent.
        after: u32,
    },
    /// Answers with this lie, so often.
    Liar {
        /// What it does.
        lie: Lie,
        /// How many of a hundred answers.
        percent: u32,
    },
    /// Is honest with the first coordinator, and sends others wrong shares.
    TwoFaced,
    /// Declines every sign request and accepts again with new commitments at once, to spoil attempts.
    Renewer,
    /// Sends accepts with new commitments all the time.
    Chatterbox,
    /// Refuses every proposal.
    Refuser,
}

impl Conduct {
    /// Whether it does what the protocol says.
    pub fn is_honest(&self) -> bool {
        *self == Self::Honest
    }

    fn corrupt(rng: &mut ChaCha8Rng) -> Self {
        match rng.gen_range(0..8) {
            0 => Self::Deaf,
            1 => Self::Silent {
                after: rng.gen_range(0..3),
            },
            2 => Self::TwoFaced,
            3 => Self::Renewer,
            4 => Self::Chatterbox,
            5 => Self::Refuser,
            _ => Self::Liar {
                lie: *LIES.choose(rng).unwrap_or(&Lie::WrongShare),
                percent: *[30, 100].choose(rng).unwrap_or(&100),
            },
        }
    }
}

/// One operator in a schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How it behaves.
    pub conduct: Conduct,
    /// What its messages take longer than others', in ms.
    pub slow_ms: u64,
    /// When it restarts.
    pub restarts: Vec<u64>,
    /// Whether it has done badly in an earlier session, as honest ones do that were cut off.
    pub is_notorious: bool,
}

/// What the network does.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Longest delay of most messages, in ms.
    pub delay_ms: u64,
    /// Of a hundred messages, how many take ten times as long.
    pub stragglers: u32,
    /// Of a hundred messages, how many arrive twice.
    pub doubled: u32,
    /// Of a hundred messages, how many are lost, until it is calm.
    pub lost: u32,
}

/// What happens in one run.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Where it was drawn from.
    pub seed: u64,
    /// The group.
    pub group: Group,
    /// The operators, in the order of [`Group::members`].
    pub plans: Vec<Plan>,
    /// The network.
    pub weather: Weather,
    /// Coordinators that have the same subject signed, each in its own session.
    pub coordinators: usize,
    /// When the first coordinator restarts.
    pub coordinator_restarts: Vec<u64>,
    /// Whether operators hand out nonces ahead of time, and coordinators use them.
    pub has_pool: bool,
    /// When a coordinator that lies asks for shares with entries of the pool, in all the ways that it should not.
    pub probes: Vec<u64>,
    /// From here on no honest node restarts and nothing is lost, in ms.
    pub calm_ms: u64,
    /// For everything else that is decided on the way.
    pub rng: ChaCha8Rng,
}

impl Schedule {
    /// The schedule of a seed, with one of these groups.
    pub fn new(seed: u64, groups: &[Group]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let group = *groups.choose(&mut rng).unwrap_or(&Group::new(3, 5));
        let (n, t) = (group.operators, group.threshold);
        let calm_ms = *[0, 5_000, 60_000].choose(&mut rng).unwrap_or(&0);
        // One in five has too few honest operators; of the others, half have as few as can be.
        let corrupt = if rng.gen_range(0..5) == 0 {
            rng.gen_range(n - t + 1..=n)
        } else if rng.gen_bool(0.5) {
            n - t
        } else {
            rng.gen_range(0..=n - t)
        };
        let mut conducts: Vec<Conduct> = (0..n)
            .map(|i| {
                if i < corrupt {
                    Conduct::corrupt(&mut rng)
                } else {
                    Conduct::Honest
                }
            })
            .collect();
        conducts.shuffle(&mut rng);
        let restarting = rng.gen_bool(0.3);
        let has_history = rng.gen_bool(0.3);
        let plans = conducts
            .into_iter()
            .map(|conduct| Plan {
                conduct,
                slow_ms: if rng.gen_range(0..10) == 0 {
                    rng.gen_range(0..4_000)
                } else {
                    0
                },
                restarts: times(&mut rng, if restarting { 3 } else { 0 }, calm_ms),
                is_notorious: has_history && rng.gen_range(0..3) == 0,
            })
            .collect();
        let weather = Weather {
            delay_ms: *[1, 100, 500, 2_000].choose(&mut rng).unwrap_or(&1),
            stragglers: *[0, 2].choose(&mut rng).unwrap_or(&0),
            doubled: *[0, 20].choose(&mut rng).unwrap_or(&0),
            lost: *[0, 5, 30].choose(&mut rng).unwrap_or(&0),
        };
        let coordinators = if rng.gen_range(0..4) == 0 { 2 } else { 1 };
        let coordinator_restarts = if rng.gen_range(0..4) == 0 {
            times(&mut rng, 3, calm_ms)
        } else {
            Vec::new()
        };
        let has_pool = rng.gen_bool(0.5);
        let probes = if has_pool && rng.gen_bool(0.5) {
            (0..3).map(|_| rng.gen_range(0..4_000)).collect()
        } else {
            Vec::new()
        };
        Self {
            seed,
            group,
            has_pool,
            probes,
            plans,
            weather,
            coordinators,
            coordinator_restarts,
            calm_ms,
            rng,
        }
    }

    /// What coordinators think of the operators at first.
    pub fn standing(&self) -> Standing {
        let notorious = self.group.signers().zip(&self.plans);
        let notorious: BTreeSet<SignerId> = notorious
            .filter(|(_, plan)| plan.is_notorious)
            .map(|(signer, _)| signer)
            .collect();
        let mut standing = Standing::default();
        standing.learn(&BTreeSet::new(), &notorious);
        standing
    }

    /// Whether enough operators are honest.
    pub fn can_finish(&self) -> bool {
        let honest = self.plans.iter().filter(|plan| plan.conduct.is_honest());
        honest.count() >= usize::from(self.group.threshold)
    }
}

/// Up to `most` moments before it is calm.
fn times(rng: &mut ChaCha8Rng, most: usize, calm_ms: u64) -> Vec<u64> {
    if calm_ms == 0 || most == 0 {
        return Vec::new();
    }
    let count = rng.gen_range(0..=most);
    (0..count).map(|_| rng.gen_range(0..calm_ms)).collect()
}
