//! An operator that misbehaves in round 2: the real one with its real key, and a fault where its answers to sign
//! requests leave ([`operator::run::Outlet`]).

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use operator::{peers::Reply, run::Outlet};
use protocol::{
    blame::{ROUND2_DOMAIN, Round2},
    identity::{Identity, Signed},
    message::Answer,
};
use threshold::sign::Shares;

/// Answers that are held back at a time; the oldest is dropped.
const MAX_HELD: usize = 64;
/// How much of a share is wrong.
const WRONG_BYTES: usize = 8;
/// What a saboteur logs when it has an answer and keeps it.
pub const HELD_BACK: &str = "answer held back";
/// How long a slow operator takes. Long enough for others to be done, and to be caught at it.
const SLOW: Duration = Duration::from_secs(6);

/// What is wrong with an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// It accepts, and never answers a sign request.
    Silent,
    /// Its shares are wrong, and it stands by them.
    BadShares,
    /// It answers some seconds late.
    Slow,
}

impl Fault {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::BadShares => "bad-shares",
            Self::Slow => "slow",
        }
    }
}

/// The faulty way out.
pub struct Saboteur {
    fault: Fault,
    identity: Identity,
    held: Mutex<VecDeque<Reply>>,
}

impl Saboteur {
    /// For an operator with this identity.
    pub fn new(fault: Fault, identity: Identity) -> Self {
        Self {
            fault,
            identity,
            held: Mutex::default(),
        }
    }

    /// A share that is wrong in its last bytes, under a signature that holds. Each saboteur puts something of its own
    /// there: errors of the same size can add up to nothing, and then the signature is right.
    fn spoil(&self, signed: Signed<Round2>) -> Option<Answer> {
        let (_, said) = signed.verify(ROUND2_DOMAIN).ok()?;
        let mut bytes: Vec<u8> = (0..said.shares.len())
            .filter_map(|input| said.shares.share_bytes(input))
            .flatten()
            .collect();
        let own = self.identity.public().0;
        let wrong = bytes.iter_mut().rev().zip(own).take(WRONG_BYTES);
        wrong.for_each(|(byte, own)| *byte ^= own);
        let said = Round2 {
            shares: Shares::try_from(bytes).ok()?,
            ..said.clone()
        };
        Some(Answer::Shares(self.identity.sign(ROUND2_DOMAIN, said)))
    }
}

impl Outlet for Saboteur {
    fn send(&self, answer: Answer, reply: Reply) {
        match (self.fault, answer) {
            (Fault::Silent, _) => {
                tracing::warn!("{HELD_BACK}");
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                held.push_back(reply);
                if held.len() > MAX_HELD {
                    held.pop_front();
                }
            }
            (Fault::BadShares, Answer::Shares(signed)) => {
                tracing::warn!("a share is spoilt");
                if let Some(answer) = self.spoil(signed) {
                    reply.send(answer);
                }
            }
            (Fault::BadShares, answer) => reply.send(answer),
            (Fault::Slow, answer) => {
                tracing::warn!("{HELD_BACK} for {} s", SLOW.as_secs());
                tokio::spawn(async move {
                    tokio::time::sleep(SLOW).await;
                    reply.send(answer);
                });
            }
        }
    }
}
