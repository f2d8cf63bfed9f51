//! The coordinator's side of one signing session, after ROAST (Ruffing et al., CCS 2022): whoever has
//! answered with fresh commitments is ready; an attempt starts as soon as enough are ready; whoever stays
//! silent stays out, whoever sends a bad share is blamed; nothing runs on a clock.
//!
//! ```text
//! accept --> ready --t at hand--> pending in an attempt --share--> ready again, with fresh commitments
//!                                        |                   '--> t shares --> signatures
//!                                        '--no answer--> gone, until it accepts again
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::schnorr;
use threshold::{
    GroupInfo, SignerId,
    sign::{self, Commitments, Message, Package, Shares},
};

use crate::message::Refusal;

/// Attempts of one session after which it must be proposed anew; ROAST needs n - t + 1 at most.
pub const MAX_ATTEMPTS: u32 = 256;

/// What the session hears.
#[derive(Clone, Debug)]
pub enum Input {
    /// An operator has verified the subject.
    Accepted {
        /// Who.
        from: SignerId,
        /// Its round 1.
        commitments: Commitments,
    },
    /// An operator will not sign.
    Refused {
        /// Who.
        from: SignerId,
        /// Why.
        refusal: Refusal,
    },
    /// The answer to a sign request.
    Answered {
        /// Who.
        from: SignerId,
        /// Which attempt.
        attempt: u32,
        /// Its round 2.
        shares: Shares,
        /// Its round 1 for a next attempt.
        next: Commitments,
    },
    /// A sign request could not be delivered, or the operator no longer knows the session.
    Lost {
        /// Who.
        from: SignerId,
        /// Which attempt.
        attempt: u32,
    },
}

/// What the caller must do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send the sign request of an attempt to each of its signers.
    Request {
        /// Which attempt.
        attempt: u32,
        /// Signers and commitments.
        package: Package,
    },
    /// All inputs are signed.
    Finished {
        /// One BIP-340 signature an input, verified.
        signatures: Vec<schnorr::Signature>,
        /// Who signed.
        signers: BTreeSet<SignerId>,
        /// Attempts started.
        attempts: u32,
    },
    /// A signer sent a bad share.
    Blame(SignerId),
}

/// Why an input was refused; the state is as before.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Reject {
    /// Not an operator of this vault.
    #[error("{0} is not a signer of this group")]
    Stranger(SignerId),
    /// It has sent a bad share in this session.
    #[error("{0} was blamed in this session")]
    Blamed(SignerId),
    /// An accept while a sign request to the same signer is open.
    #[error("{0} has a sign request to answer")]
    Pending(SignerId),
    /// An answer to nothing that was asked.
    #[error("{0} was not asked for attempt {1}")]
    NotAsked(SignerId, u32),
    /// Commitments or shares for another number of inputs.
    #[error("{0} sent a wrong number of commitments or shares")]
    Length(SignerId),
    /// The session is over.
    #[error("the session is finished")]
    Finished,
    /// The session has used up [`MAX_ATTEMPTS`].
    #[error("the session has used up its attempts")]
    Exhausted,
    /// Aggregation of shares that had all verified failed; a fault of our own.
    #[error("aggregation failed: {0}")]
    Aggregate(String),
}

#[derive(Clone, Debug)]
struct Attempt {
    package: Package,
    shares: BTreeMap<SignerId, Shares>,
}

/// The state of a session.
#[derive(Clone, Debug)]
pub struct Session {
    group: GroupInfo,
    messages: Vec<Message>,
    needed: usize,
    ready: BTreeMap<SignerId, Commitments>,
    pending: BTreeMap<SignerId, u32>,
    attempts: BTreeMap<u32, Attempt>,
    started: u32,
    blamed: BTreeSet<SignerId>,
    refused: BTreeMap<SignerId, Refusal>,
    finished: bool,
}

impl Session {
    /// A session that signs `messages` with `needed` signers of the group.
    pub fn new(group: GroupInfo, messages: Vec<Message>, needed: usize) -> Self {
        Self {
            group,
            messages,
            needed,
            ready: BTreeMap::new(),
            pending: BTreeMap::new(),
            attempts: BTreeMap::new(),
            started: 0,
            blamed: BTreeSet::new(),
            refused: BTreeMap::new(),
            finished: false,
        }
    }

    /// Who has refused, and why.
    pub fn refused(&self) -> &BTreeMap<SignerId, Refusal> {
        &self.refused
    }

    /// Who has sent a bad share.
    pub fn blamed(&self) -> &BTreeSet<SignerId> {
        &self.blamed
    }

    /// Attempts started so far.
    pub fn attempts(&self) -> u32 {
        self.started
    }

    /// Signers that have answered and wait for an attempt.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`Reject`], with the state unchanged.
    pub fn step(&mut self, input: Input) -> Result<Vec<Effect>, Reject> {
        if self.finished {
            return Err(Reject::Finished);
        }
        match input {
            Input::Accepted { from, commitments } => {
                self.admit(from)?;
                if self.pending.contains_key(&from) {
                    return Err(Reject::Pending(from));
                }
                self.check_length(from, commitments.len())?;
                self.ready.insert(from, commitments);
                self.refused.remove(&from);
                self.start_attempt()
            }
            Input::Refused { from, refusal } => {
                self.admit(from)?;
                self.refused.insert(from, refusal);
                self.ready.remove(&from);
                Ok(Vec::new())
            }
            Input::Lost { from, attempt } => {
                if self.pending.get(&from) != Some(&attempt) {
                    return Err(Reject::NotAsked(from, attempt));
                }
                self.pending.remove(&from);
                Ok(Vec::new())
            }
            Input::Answered {
                from,
                attempt,
                shares,
                next,
            } => self.answered(from, attempt, shares, next),
        }
    }

    fn admit(&self, from: SignerId) -> Result<(), Reject> {
        if !self.group.contains(from) {
            return Err(Reject::Stranger(from));
        }
        if self.blamed.contains(&from) {
            return Err(Reject::Blamed(from));
        }
        Ok(())
    }

    fn check_length(&self, from: SignerId, length: usize) -> Result<(), Reject> {
        if length == self.messages.len() {
            Ok(())
        } else {
            Err(Reject::Length(from))
        }
    }

    /// The first `needed` of the ready become one attempt.
    fn start_attempt(&mut self) -> Result<Vec<Effect>, Reject> {
        if self.ready.len() < self.needed {
            return Ok(Vec::new());
        }
        let attempt = self
            .started
            .checked_add(1)
            .filter(|n| *n <= MAX_ATTEMPTS)
            .ok_or(Reject::Exhausted)?;
        let chosen: Vec<SignerId> = self.ready.keys().take(self.needed).copied().collect();
        let commitments: BTreeMap<SignerId, Commitments> = chosen
            .iter()
            .filter_map(|signer| self.ready.remove_entry(signer))
            .collect();
        let package = Package {
            messages: self.messages.clone(),
            commitments,
        };
        self.pending
            .extend(chosen.into_iter().map(|signer| (signer, attempt)));
        self.attempts.insert(
            attempt,
            Attempt {
                package: package.clone(),
                shares: BTreeMap::new(),
            },
        );
        self.started = attempt;
        Ok(vec![Effect::Request { attempt, package }])
    }

    fn answered(
        &mut self,
        from: SignerId,
        number: u32,
        shares: Shares,
        next: Commitments,
    ) -> Result<Vec<Effect>, Reject> {
        self.admit(from)?;
        if self.pending.get(&from) != Some(&number) {
            return Err(Reject::NotAsked(from, number));
        }
        let Some(attempt) = self.attempts.get_mut(&number) else {
            return Err(Reject::NotAsked(from, number));
        };
        if next.len() != self.messages.len()
            || sign::verify_shares(&self.group, &attempt.package, from, &shares).is_err()
        {
            self.pending.remove(&from);
            self.blamed.insert(from);
            return Ok(vec![Effect::Blame(from)]);
        }
        attempt.shares.insert(from, shares);
        if attempt.shares.len() == attempt.package.commitments.len() {
            let signatures = sign::aggregate(&self.group, &attempt.package, &attempt.shares)
                .map_err(|error| Reject::Aggregate(error.to_string()))?;
            let signers = attempt.shares.keys().copied().collect();
            self.finished = true;
            return Ok(vec![Effect::Finished {
                signatures,
                signers,
                attempts: self.started,
            }]);
        }
        self.pending.remove(&from);
        self.ready.insert(from, next);
        self.start_attempt()
    }
}
