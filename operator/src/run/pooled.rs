//! Batches that are signed with nonces which were handed out ahead of time (S9):
//!
//! ```text
//! Ask::SignPooled --> bind the entry --> propose; parked --Effect::Pooled--> promise --> share
//!                                                        '--session closed--> refused
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use node::clock;
use protocol::{
    identity::PeerKey,
    message::{Answer, MAX_POOL, Refusal, Rule, SessionId, Subject},
    signer,
};
use threshold::{SignerId, sign::Commitments};
use tokio::task;

use super::{Early, Node, blocking, lock, sessions::state};
use crate::{
    peers::{Reply, count_refusal},
    vault::{KeySafe, Reading},
    verify,
};

/// A pooled sign request, but for its subject.
pub(super) struct Pooled {
    pub(super) epoch: u32,
    pub(super) attempt: u32,
    pub(super) commitments: BTreeMap<SignerId, Commitments>,
}

/// One that waits for its session to be accepted.
pub(super) struct Parked {
    request: Pooled,
    reply: Reply,
}

impl Parked {
    /// Its session has ended. The refusal itself goes its own way.
    pub(super) fn close(self) {
        self.refuse(Refusal::new(Rule::S9, "the session has ended"));
    }

    pub(super) fn refuse(self, refusal: Refusal) {
        self.reply.send(Answer::Refused(refusal));
    }
}

impl Node {
    /// Round 1 ahead of time. Pairs are made beside the loop, an entry at a time.
    pub(super) fn hand_out(&self, from: PeerKey, epoch: u32, reply: Reply) {
        let safe = match self.safe_of_epoch(epoch) {
            Ok(safe) => safe,
            Err(refusal) => return reply.send(Answer::Refused(refusal)),
        };
        // A pause or an alarm that comes before the entries are made begins another generation.
        let generation = blocking(|| lock(&safe).generation());
        task::spawn_blocking(move || {
            let entries = make_entries(&safe, from, generation);
            reply.send(entries.map_or_else(Answer::Refused, Answer::Pool));
        });
    }

    /// The share that signs batches, if it hands out nonces and nothing keeps this operator from signing.
    fn safe_of_epoch(&self, epoch: u32) -> Result<Arc<Mutex<KeySafe>>, Refusal> {
        if self.nonce_pool == 0 {
            let reason = "this operator hands out no nonces ahead of time";
            return Err(Refusal::new(Rule::S9, reason));
        }
        verify::may_sign(self.state.alarm.as_deref(), &self.decisions)?;
        let safe = self.safe.clone().ok_or_else(|| {
            Refusal::new(Rule::S9, "this operator holds no share that signs batches")
        })?;
        let own = blocking(|| lock(&safe).group().epoch());
        if own != epoch {
            let reason = format!("this operator signs with a share of epoch {own}, not {epoch}");
            return Err(Refusal::new(Rule::S9, reason));
        }
        Ok(safe)
    }

    /// Nothing is signed from now on.
    pub(super) fn clear_pool(&self) {
        if let Some(safe) = &self.safe {
            blocking(|| lock(safe).clear_pool());
        }
    }

    /// Binds the entry, then hears the proposal.
    pub(super) fn sign_pooled(
        &mut self,
        from: PeerKey,
        subject: Subject,
        request: Pooled,
        reply: Reply,
    ) {
        let id = subject.session(&from);
        match self.bind(&from, id, &request) {
            Ok(None) => {}
            Ok(Some(answer)) => return self.outlet.send(answer, reply),
            Err(refusal) => {
                count_refusal(refusal.rule);
                return reply.send(Answer::Refused(refusal));
            }
        }
        let parked = Parked { request, reply };
        if let Some(earlier) = self.parked.insert(id, parked) {
            earlier.refuse(Refusal::new(Rule::S9, "the same was asked again since"));
        }
        let input = signer::Input::SignPooled {
            from,
            subject: subject.clone(),
        };
        match self.state.step(clock::now_ms(), input) {
            Ok(effects) => self.perform(effects),
            Err(refusal) => {
                if self.is_early(&subject) {
                    self.keep_early(Early {
                        from,
                        subject,
                        since: Instant::now(),
                    });
                }
                self.give_up(id, refusal);
            }
        }
        self.forget_closed();
    }

    /// Gives the answer that this very request has had, if it had one.
    fn bind(
        &self,
        from: &PeerKey,
        id: SessionId,
        request: &Pooled,
    ) -> Result<Option<Answer>, Refusal> {
        let safe = self.safe_of_epoch(request.epoch)?;
        let (attempt, commitments) = (request.attempt, &request.commitments);
        blocking(|| {
            let mut safe = lock(&safe);
            if let Some(given) = safe.answered(Reading::now(), &id, attempt, commitments) {
                return Ok(Some(state(&self.identity, id, attempt, given)));
            }
            safe.bind(Reading::now(), from, id, attempt, commitments)?;
            Ok(None)
        })
    }

    /// The moment of the accept. What can't be answered is refused, and the accept follows.
    pub(super) fn answer_pooled(&mut self, id: SessionId, coordinator: PeerKey) {
        let Some(Parked { request, reply }) = self.parked.remove(&id) else {
            return self.accept(id, coordinator);
        };
        let Pooled {
            epoch,
            attempt,
            commitments,
        } = request;
        let is_answered = self.sign(coordinator, id, epoch, attempt, commitments, reply);
        if !is_answered && self.state.session(&id).is_some() {
            self.accept(id, coordinator);
        }
    }

    /// The entry stays bound to this very request: a repeated one must not cost the first one its nonces.
    fn give_up(&mut self, id: SessionId, refusal: Refusal) {
        if let Some(parked) = self.parked.remove(&id) {
            count_refusal(refusal.rule);
            parked.refuse(refusal);
        }
    }
}

/// The entries of a coordinator, as many as it may have.
fn make_entries(
    safe: &Mutex<KeySafe>,
    coordinator: PeerKey,
    generation: u64,
) -> Result<Vec<Commitments>, Refusal> {
    for _ in 0..MAX_POOL {
        if !lock(safe).refill(Reading::now(), coordinator, generation)? {
            break;
        }
    }
    lock(safe).handed_out(Reading::now(), &coordinator, generation)
}
