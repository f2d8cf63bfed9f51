//! An honest operator: the protocol's signer on the chain that it has seen, and beside it, kept apart from its
//! decisions, what it has signed.

use std::collections::BTreeSet;

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{SequenceNumber, VaultId};
use protocol::{
    batch::{BodyHash, Candidate},
    identity::PeerKey,
    message::Subject,
    signer::{Effect, Input, Promise, Quarantine, State},
    transaction::{Commitment, Treasury},
};

use super::{Block, Body, Broken, Choice, DELAY, Parent, head, spendable};
use crate::batch;

/// A second of these runs is a block of the longest chain.
const BLOCK_MS: u64 = 1_000;
const COORDINATOR: PeerKey = PeerKey([0xC0; 32]);

/// One transaction that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Signed {
    choice: Choice,
    /// Height of the own chain when its body was first signed, after another or at all.
    since: u8,
}

/// One operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Operator {
    seen: Vec<Block>,
    promises: Vec<Promise>,
    quarantine: Option<Quarantine>,
    signed: Vec<Signed>,
    unlawful: Option<&'static str>,
}

impl Operator {
    /// The rule that it has broken, judged by all that it ever signed.
    pub fn unlawful(&self) -> Option<&'static str> {
        self.unlawful
    }

    pub fn has_signed(&self, choice: Choice) -> bool {
        self.signed.iter().any(|signed| signed.choice == choice)
    }

    /// The treasury that it holds for the latest.
    pub fn head(&self) -> Parent {
        head(&self.seen)
    }

    /// Bodies that it has signed for this treasury.
    pub fn bodies(&self, parent: Parent) -> BTreeSet<Body> {
        let of_parent = |signed: &&Signed| signed.choice.parent == parent;
        let signed = self.signed.iter().filter(of_parent);
        signed.map(|signed| signed.choice.body).collect()
    }

    /// The node takes the chain, which is longer than the one that it had: a node stays with the first otherwise.
    pub fn look(&mut self, blocks: &[Block], broken: Option<Broken>) {
        if blocks.len() <= self.seen.len() {
            return;
        }
        self.seen = blocks.to_vec();
        let mut state = self.state(broken);
        let tip_time = match broken {
            Some(Broken::StaysInQuarantine) => 0,
            _ => u64::try_from(blocks.len()).unwrap_or(u64::MAX),
        };
        // Nothing to do but to keep the quarantine, which is read from the state.
        drop(state.step(0, Input::CaughtUp { tip_time }));
        self.quarantine = state.quarantine;
    }

    pub fn restart(&mut self, broken: Option<Broken>) {
        if broken == Some(Broken::ForgetsAtRestart) {
            self.promises.clear();
        }
    }

    /// Comes back with its key and without its promises, when the chain has that many blocks.
    pub fn restore(&mut self, blocks: usize, broken: Option<Broken>) {
        self.promises.clear();
        let lost_ms = u64::try_from(blocks)
            .unwrap_or(u64::MAX)
            .saturating_mul(BLOCK_MS);
        self.quarantine = match broken {
            Some(Broken::SkipsQuarantine) => None,
            _ => Some(Quarantine::Syncing { lost_ms }),
        };
    }

    /// A coordinator has the candidate verified, and asks for the share.
    pub fn ask(&mut self, choice: Choice, broken: Option<Broken>) {
        // S2 of the body's deposits, which the verifier asks of the own node.
        if !spendable(choice.body, &self.seen) {
            return;
        }
        let mut state = self.state(broken);
        if broken == Some(Broken::DropsS2) {
            state.head = Some(treasury(choice.parent));
        }
        let before = state.clone();
        if signs(&mut state, candidate(choice)).is_none() {
            return;
        }
        self.quarantine = before.quarantine;
        self.promises = state.promises.into_values().collect();
        self.note(choice);
    }

    /// The protocol's machine, as it is after a start on what is kept.
    fn state(&self, broken: Option<Broken>) -> State {
        let mut state = State::default();
        state.head = Some(treasury(head(&self.seen)));
        state.height = self.height();
        state.quarantine = self.quarantine;
        state.replacement_delay = match broken {
            Some(Broken::WaitsForNothing) => 0,
            Some(Broken::NeverLetsGo) => u32::MAX,
            _ => u32::from(DELAY),
        };
        for mut promise in self.promises.iter().cloned() {
            match broken {
                Some(Broken::DropsS7) => continue,
                Some(Broken::CountsFromGenesis) => promise.height = 0,
                Some(Broken::TakesLowerFees) => promise.fee = Amount::ZERO,
                _ => {}
            }
            let gone = broken == Some(Broken::GivesUpAtOnce) || !self.is_spendable(promise.body);
            if gone && promise.parent == outpoint(head(&self.seen)) {
                state.lost = Some(promise.body);
            }
            state
                .promises
                .insert((promise.sequence, promise.parent), promise);
        }
        state
    }

    fn height(&self) -> u32 {
        u32::try_from(self.seen.len()).unwrap_or(u32::MAX)
    }

    fn is_spendable(&self, body: BodyHash) -> bool {
        body != hash(Body::A) || spendable(Body::A, &self.seen)
    }

    /// Keeps what was signed, and whether S2 and S7 allow it.
    fn note(&mut self, choice: Choice) {
        if choice.parent != head(&self.seen) {
            self.unlawful = Some("S2: it spends another treasury than the latest");
        }
        let height = u8::try_from(self.seen.len()).unwrap_or(u8::MAX);
        let of_parent = |signed: &&Signed| signed.choice.parent == choice.parent;
        let latest = self.signed.iter().rev().find(of_parent).copied();
        let since = match latest {
            Some(latest) if latest.choice == choice => return,
            Some(latest) if latest.choice.body == choice.body => {
                let old = height.saturating_sub(latest.since) >= DELAY;
                let pays_less = choice.fee < latest.choice.fee;
                if pays_less && !old {
                    self.unlawful = Some("S7: a replacement that pays less");
                }
                if pays_less { height } else { latest.since }
            }
            Some(latest) => {
                let old = height.saturating_sub(latest.since) >= DELAY;
                if !old && spendable(latest.choice.body, &self.seen) {
                    self.unlawful = Some("S7: another batch before the delay has passed");
                }
                height
            }
            None => height,
        };
        self.signed.push(Signed { choice, since });
    }
}

/// From a proposal to the promise that goes before the share; `None` when it is refused.
fn signs(state: &mut State, candidate: Candidate) -> Option<()> {
    let subject = Subject::Batch(candidate);
    let session = subject.session(&COORDINATOR);
    let verified = batch::verified(session, &subject);
    let (epoch, attempt) = (state.epoch, 1);
    let inputs = [
        Input::Proposed {
            from: COORDINATOR,
            subject,
        },
        verified,
        Input::Stored {
            session,
            reachable: BTreeSet::new(),
        },
        Input::SignRequested {
            from: COORDINATOR,
            session,
            epoch,
            attempt,
        },
    ];
    let mut effects = Vec::new();
    for input in inputs {
        effects = state.step(0, input).ok()?;
    }
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::PromiseAndSign(_)))
        .then_some(())
}

fn hash(body: Body) -> BodyHash {
    BodyHash([body as u8; 32])
}

fn txid(body: Body, fee: u8) -> Txid {
    let mut bytes = [body as u8; 32];
    bytes[0] = fee;
    Txid::from_byte_array(bytes)
}

fn outpoint(parent: Parent) -> OutPoint {
    match parent {
        Parent::Genesis => OutPoint::new(Txid::from_byte_array([0xFF; 32]), 0),
        Parent::After(body, fee) => OutPoint::new(txid(body, fee), 0),
    }
}

fn sequence(parent: Parent) -> SequenceNumber {
    SequenceNumber(match parent {
        Parent::Genesis => 0,
        Parent::After(Body::A | Body::B, _) => 1,
        Parent::After(Body::C, _) => 2,
    })
}

fn treasury(parent: Parent) -> Treasury {
    Treasury {
        outpoint: outpoint(parent),
        value: Amount::ONE_BTC,
        commitment: Commitment {
            sequence: sequence(parent),
            supply: Amount::ZERO,
            digest: [0; 32],
        },
    }
}

fn candidate(choice: Choice) -> Candidate {
    Candidate {
        vault: VaultId([0; 32]),
        sequence: SequenceNumber(sequence(choice.parent).0.saturating_add(1)),
        parent: outpoint(choice.parent),
        body: hash(choice.body),
        top_ups: Vec::new(),
        fee: Amount::from_sat(u64::from(choice.fee)),
        txid: txid(choice.body, choice.fee),
    }
}
