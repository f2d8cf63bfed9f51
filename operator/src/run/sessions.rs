//! Carries out what the signing machine decides:
//!
//! ```text
//! proposed --> Verify --> Store --> PassOn --> Accept (round 1)      sign request --> promise --> share (round 2)
//! ```

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bitcoin::OutPoint;
use chain::rpc::{MempoolInfo, UnspentOutput};
use node::{
    clock,
    cost::{Meter, Stopwatch},
};
use protocol::{
    batch::{Body, Candidate},
    blame::{ROUND2_DOMAIN, Round2},
    epoch::EpochClaim,
    identity::{Identity, PeerKey},
    message::{Answer, Ask, Refusal, Rule, SessionId, Subject},
    signer::{self, Effect, Grant, Quarantine},
    vault::Genesis,
};
use threshold::{SignerId, sign::Commitments};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use super::{
    Denied, Early, Event, MAX_EARLY, Node, Open, Work, blocking, decide::own_history, lock,
    ms_since, show::describe,
};
use crate::{
    body, held,
    peers::{Peers, Reply, count_refusal},
    promises::{self, GenesisPromise, PromiseError, Promised},
    vault::{Given, Reading},
    verify::{self, Affirmed, Evidence, Kept, Standing, Verified, epoch, genesis},
};

/// How often a verdict waits for the own ledger, and the pause between.
const MAX_WAITS: u32 = 40;
const WAIT_PAUSE: Duration = Duration::from_millis(200);
/// How long a proposal that is ahead of the own chain waits before it is refused.
const EARLY_WAIT: Duration = Duration::from_secs(30);
/// Verifications of one coordinator's proposals at a time.
const MAX_VERIFYING: usize = 4;
/// How often batch data is offered to a peer that does not take it, and the pause between.
const KEEP_TRIES: u32 = 4;
const KEEP_PAUSE: Duration = Duration::from_millis(400);
/// All rules of a proposal, proofs included, once everything is at hand.
const JUDGE: Meter = Meter {
    seconds: "operator_judge_seconds",
    cpu_seconds: "operator_judge_cpu_seconds",
    items: "operator_judged_chunks",
};
const ROUND1: Meter = Meter {
    seconds: "operator_round1_seconds",
    cpu_seconds: "operator_round1_cpu_seconds",
    items: "operator_round1_inputs",
};
/// The shares, and fresh nonces for a next attempt.
const ROUND2: Meter = Meter {
    seconds: "operator_round2_seconds",
    cpu_seconds: "operator_round2_cpu_seconds",
    items: "operator_round2_inputs",
};

impl Node {
    /// A coordinator proposes.
    pub(super) fn proposed(&mut self, from: PeerKey, subject: Subject) {
        self.hear_proposal(Early {
            from,
            subject,
            since: Instant::now(),
        });
    }

    /// A proposal now, or one that has waited for the own chain.
    pub(super) fn hear_proposal(&mut self, early: Early) {
        let (from, subject) = (early.from, early.subject.clone());
        let id = subject.session(&from);
        match self.state.step(
            clock::now_ms(),
            signer::Input::Proposed {
                from,
                subject: subject.clone(),
            },
        ) {
            Ok(effects) => self.perform(effects),
            Err(refusal) if self.is_early(&subject) && early.since.elapsed() < EARLY_WAIT => {
                tracing::debug!(%refusal, "the proposal is ahead of the own chain; it waits");
                self.keep_early(early);
            }
            Err(refusal) => {
                self.note_verdict(id, &from, &subject, Err(&refusal));
                self.refuse(id, from, refusal);
            }
        }
        self.forget_closed();
    }

    /// Whether the own node may only not have seen the parent yet.
    pub(super) fn is_early(&self, subject: &Subject) -> bool {
        let Subject::Batch(candidate) = subject else {
            return false;
        };
        let next = self.head_sequence().map(|head| head.0.saturating_add(1));
        self.state.alarm.is_none()
            && next.is_none_or(|next| {
                (1..=held::MAX_AHEAD).contains(&candidate.sequence.0.saturating_sub(next))
            })
    }

    /// One that is proposed again waits no longer for it; a coordinator's oldest gives way.
    pub(super) fn keep_early(&mut self, early: Early) {
        let own = || {
            let places = self.early.iter().enumerate();
            places.filter(|(_, other)| other.from == early.from)
        };
        if own().any(|(_, other)| other.subject == early.subject) {
            return;
        }
        if own().count() >= MAX_EARLY
            && let Some((oldest, _)) = own().next()
        {
            self.early.remove(oldest);
        }
        self.early.push_back(early);
    }

    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Verify(id, from, subject) => self.verify(id, from, subject),
                Effect::Store(id) => self.keep_own(id),
                Effect::PassOn(id, peers) => {
                    for peer in peers {
                        self.pass_on(id, peer);
                    }
                }
                Effect::Accept(id, coordinator) => self.accept(id, coordinator),
                Effect::Pooled(id, coordinator) => self.answer_pooled(id, coordinator),
                Effect::Refuse(id, coordinator, refusal) => {
                    // The reason itself: "the session has ended" would be held against the nonces.
                    if let Some(parked) = self.parked.remove(&id) {
                        parked.refuse(refusal.clone());
                    }
                    self.refuse(id, coordinator, refusal);
                }
                Effect::Quarantined(quarantine) => self.write_quarantine(&quarantine),
                // Comes of a sign request only, which carries it out itself.
                Effect::PromiseAndSign(grant) => {
                    tracing::error!(session = %grant.session(), "a share that nobody asked for")
                }
            }
        }
    }

    fn verify(&mut self, id: SessionId, from: PeerKey, subject: Subject) {
        let begin = Instant::now();
        self.since.insert(id, begin);
        let what = describe(&subject);
        tracing::info!(stage = "verify", session = %id, %from, what, "verifying");
        if let Err(refusal) = verify::may_sign(self.state.alarm.as_deref(), &self.decisions) {
            self.note_verdict(id, &from, &subject, Err(&refusal));
            return self.deny(id, refusal);
        }
        let verifiers = self
            .verifiers
            .entry(from)
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_VERIFYING)));
        let Ok(permit) = verifiers.clone().try_acquire_owned() else {
            let refusal = Refusal::new(
                Rule::S12,
                format!("{MAX_VERIFYING} proposals of this coordinator are being verified"),
            );
            self.note_verdict(id, &from, &subject, Err(&refusal));
            return self.step(signer::Input::Refused(id, refusal));
        };
        match subject {
            Subject::Genesis(genesis) => self.verify_genesis(id, begin, genesis, permit),
            Subject::Batch(candidate) => self.verify_batch(id, begin, from, candidate, permit),
            Subject::Epoch(claim) => self.verify_epoch(id, begin, &claim),
        }
    }

    fn verify_epoch(&mut self, id: SessionId, begin: Instant, claim: &EpochClaim) {
        let Some(open) = &self.open else { return };
        let own = self.pending_group(claim.epoch);
        let verdict = epoch::check(&open.vault, own.as_ref(), claim);
        let work = verdict.map(|verified| Work {
            verified: Arc::new(Verified::Epoch(verified)),
            kept: None,
        });
        self.judged(id, begin, work.map_err(Denied::from));
    }

    fn verify_genesis(
        &self,
        id: SessionId,
        begin: Instant,
        genesis: Genesis,
        permit: OwnedSemaphorePermit,
    ) {
        let (rpc, hash, key) = (
            self.rpc.clone(),
            self.verifying_key.hash().0,
            self.key.clone(),
        );
        self.spawn(async move {
            let verdict = async {
                let key = key
                    .ok_or_else(|| Refusal::new(Rule::S2, "key generation is not finished here"))?;
                let output = body::output(&rpc, genesis.outpoint).await?;
                let output = output.as_ref().map(|(output, height)| (output, *height));
                let verified = genesis::check(&key, hash, &genesis, output)?;
                Ok(Work {
                    verified: Arc::new(Verified::Genesis(verified)),
                    kept: None,
                })
            };
            let verdict: Result<Work, Refusal> = verdict.await;
            drop(permit);
            Some(Event::Judged(id, begin, verdict.map_err(Denied::from)))
        });
    }

    fn verify_batch(
        &self,
        id: SessionId,
        begin: Instant,
        from: PeerKey,
        candidate: Candidate,
        permit: OwnedSemaphorePermit,
    ) {
        let Some(open) = self.open.clone() else {
            return;
        };
        let (store, peers, rpc) = (self.store.clone(), self.peers.clone(), self.rpc.clone());
        let (key, standing) = (self.verifying_key.clone(), self.standing(Some(&candidate)));
        self.spawn(async move {
            let verdict = async {
                let bytes = body::pull(&store, &peers, from, candidate.body).await?;
                let body = body::decode(&bytes, open.vault.parameters().max_operations)?;
                let confirmations = open.vault.parameters().deposit_confirmations;
                let outputs = body::outputs(&rpc, &candidate, &body, confirmations).await?;
                let mempool = body::mempool(&rpc).await?;
                catch_up(&open).await;
                let judge = move || {
                    let evidence =
                        Arc::new(gather(&open, candidate, body, outputs, mempool, standing)?);
                    let watch = Stopwatch::process();
                    let verified = verify::batch(evidence.clone(), &key);
                    watch.cost().record(&JUDGE, evidence.body.proofs.len());
                    verified.map_err(|refusal| Denied {
                        held: if refusal.rule == Rule::S6 {
                            verify::held(&evidence)
                        } else {
                            Vec::new()
                        },
                        refusal,
                        sequence: evidence.candidate.sequence,
                    })
                };
                let verified = task::spawn_blocking(judge).await.map_err(|error| {
                    Refusal::new(Rule::S4, format!("the verifier failed: {error}"))
                })??;
                Ok(Work {
                    verified: Arc::new(Verified::Batch(verified)),
                    kept: None,
                })
            };
            let verdict: Result<Work, Denied> = verdict.await;
            drop(permit);
            Some(Event::Judged(id, begin, verdict))
        });
    }

    pub(super) fn judged(&mut self, id: SessionId, begun: Instant, verdict: Result<Work, Denied>) {
        if self.since.get(&id) != Some(&begun) {
            // A reorganisation has ended the session: what was found before it is no verdict for the one that was opened
            // since (S2).
            return;
        }
        let elapsed_ms = ms_since(begun);
        let elapsed = Duration::from_millis(elapsed_ms).as_secs_f64();
        metrics::histogram!("operator_verify_seconds").record(elapsed);
        // Pause, policy or promises may have changed while it was verified.
        let verdict = verdict.and_then(|work| {
            self.again(&work.verified)?;
            Ok(work)
        });
        let noted = verdict.as_ref().map(|_| "verified");
        self.note_session(id, noted.map_err(|denied| &denied.refusal));
        match verdict {
            Ok(work) => {
                tracing::info!(stage = "verify", session = %id, elapsed_ms, "verified");
                metrics::counter!("operator_decisions", "decision" => "verified").increment(1);
                let batch = work.verified.batch();
                self.work.insert(id, work);
                self.step(signer::Input::Verified { session: id, batch });
            }
            Err(denied) => {
                self.note_held(denied.held, denied.sequence);
                self.deny(id, denied.refusal);
            }
        }
    }

    /// S8 and S11: the batch is on disk, and kept forever, before anything about it leaves.
    fn keep_own(&self, id: SessionId) {
        let Some(work) = self.work.get(&id).cloned() else {
            return;
        };
        let store = self.store.clone();
        self.spawn(async move {
            let written = task::spawn_blocking(move || Kept::write(&store, work.verified)).await;
            match written {
                Ok(Ok(kept)) => Some(Event::Stored(id, kept)),
                Ok(Err(error)) => promises::stop_on_failed_write(&error),
                Err(_) => None,
            }
        });
    }

    fn pass_on(&self, id: SessionId, peer: PeerKey) {
        let Some(kept) = self.work.get(&id).and_then(|work| work.kept.clone()) else {
            return;
        };
        let peers = self.peers.clone();
        self.spawn(async move {
            if let (Verified::Batch(batch), Some(body)) = (&**kept.verified(), kept.body()) {
                let ask = Ask::Keep {
                    candidate: batch.candidate().clone(),
                    body: body.to_vec(),
                };
                offer(&peers, peer, &ask).await;
            }
            Some(Event::Receipt(id, peer))
        });
    }

    /// Round 1: fresh nonces, and the accept.
    pub(super) fn accept(&self, id: SessionId, coordinator: PeerKey) {
        let Some(work) = self.work.get(&id).cloned() else {
            return;
        };
        let Some(safe) = self.safe_for(&work.verified) else {
            return;
        };
        let peers = self.peers.clone();
        tokio::spawn(async move {
            let begin = Instant::now();
            let made = task::spawn_blocking(move || {
                // Pairs are made side by side, on all processors.
                let watch = Stopwatch::process();
                let mut safe = lock(&safe);
                let epoch = safe.group().epoch();
                let commitments = safe.commit(Reading::now(), id, &work.verified)?;
                let inputs = work.verified.messages().len();
                watch.cost().record(&ROUND1, inputs);
                Ok((epoch, commitments))
            })
            .await;
            let ask = match made {
                Ok(Ok((epoch, commitments))) => Ask::Accept {
                    session: id,
                    epoch,
                    commitments,
                },
                Ok(Err(refusal)) => Ask::Refuse {
                    session: id,
                    refusal,
                },
                Err(_) => return,
            };
            tracing::info!(stage = "round1", session = %id, elapsed_ms = ms_since(begin), "nonces committed");
            match peers.ask(coordinator, &ask).await {
                Ok(Answer::Refused(refusal)) => {
                    tracing::debug!(session = %id, %refusal, "the accept was not taken")
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(session = %id, %error, "the accept did not arrive"),
            }
        });
    }

    fn refuse(&self, id: SessionId, coordinator: PeerKey, refusal: Refusal) {
        let operations: Vec<String> = refusal.operations.iter().map(ToString::to_string).collect();
        let operations = operations.join(" ");
        // A proposal is repeated every few seconds: what is refused for hours is told once.
        let name = id.to_string();
        let newest = self.verdicts.front();
        if newest.is_some_and(|verdict| verdict.session == name && verdict.times > 1) {
            tracing::debug!(session = %id, rule = ?refusal.rule, reason = %refusal.reason, operations, "refused again");
        } else {
            tracing::warn!(session = %id, rule = ?refusal.rule, reason = %refusal.reason, operations, "refused");
        }
        count_refusal(refusal.rule);
        // Whoever hears of the refusal finds the pages as it left them.
        self.show();
        let peers = self.peers.clone();
        tokio::spawn(async move {
            if let Err(error) = peers
                .ask(
                    coordinator,
                    &Ask::Refuse {
                        session: id,
                        refusal,
                    },
                )
                .await
            {
                tracing::debug!(%error, "the refusal did not arrive");
            }
        });
    }

    /// Round 2: first the promise on disk, then the share. Says whether it was not refused.
    pub(super) fn sign(
        &mut self,
        from: PeerKey,
        id: SessionId,
        epoch: u32,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
        reply: Reply,
    ) -> bool {
        match self.promise(from, id, epoch, attempt, &commitments) {
            Ok(Ready::Answered(answer)) => {
                self.outlet.send(*answer, reply);
                true
            }
            Ok(Ready::Promised(promised)) => {
                self.note_session(id, Ok("signed"));
                self.show();
                self.give_share(promised, commitments, reply);
                true
            }
            Err(refusal) => {
                self.note_session(id, Err(&refusal));
                tracing::warn!(session = %id, attempt, %refusal, "sign request refused");
                count_refusal(refusal.rule);
                reply.send(Answer::Refused(refusal));
                false
            }
        }
    }

    fn promise(
        &mut self,
        from: PeerKey,
        id: SessionId,
        epoch: u32,
        attempt: u32,
        commitments: &BTreeMap<SignerId, Commitments>,
    ) -> Result<Ready, Refusal> {
        let unknown = || Refusal::new(Rule::S9, "this session is not known here; propose it again");
        let coordinator = self.state.session(&id).ok_or_else(unknown)?.coordinator;
        if coordinator != from {
            return Err(Refusal::new(
                Rule::S12,
                "this session is another coordinator's",
            ));
        }
        let work = self.work.get(&id).cloned().ok_or_else(unknown)?;
        let safe = self.safe_for(&work.verified).ok_or_else(unknown)?;
        let early = || Refusal::new(Rule::S8, "this session is not accepted yet");
        let kept = work.kept.ok_or_else(early)?;
        let affirmed = self.affirm(&kept).inspect_err(|refusal| {
            // The session ends, so that the batch is judged anew when it is proposed again.
            self.deny(id, refusal.clone());
        })?;
        let answered = blocking(|| {
            let mut safe = lock(&safe);
            if let Some(given) = safe.answered(Reading::now(), &id, attempt, commitments) {
                return Ok(Some(state(&self.identity, id, attempt, given)));
            }
            safe.check(Reading::now(), &id, attempt, &work.verified, commitments)
                .map(|()| None)
        })?;
        if let Some(answer) = answered {
            return Ok(Ready::Answered(Box::new(answer)));
        }
        let request = signer::Input::SignRequested {
            from,
            session: id,
            epoch,
            attempt,
        };
        let mut effects = self.state.step(clock::now_ms(), request)?;
        let Some(Effect::PromiseAndSign(grant)) = effects.pop() else {
            return Err(early());
        };
        self.write_promise(grant, affirmed).map(Ready::Promised)
    }

    fn write_promise(&mut self, grant: Grant, affirmed: Affirmed) -> Result<Promised, Refusal> {
        match blocking(|| Promised::write(&self.store, grant, affirmed)) {
            Ok(promised) => {
                if let Verified::Genesis(genesis) = promised.verified() {
                    self.genesis = Some(GenesisPromise::of(genesis));
                }
                Ok(promised)
            }
            Err(PromiseError::Commit(error)) => promises::stop_on_failed_write(&error),
            Err(error @ PromiseError::Mismatch) => {
                tracing::error!(%error, "nothing is signed");
                Err(Refusal::new(Rule::S11, error.to_string()))
            }
        }
    }

    fn write_quarantine(&self, quarantine: &Quarantine) {
        tracing::info!(?quarantine, "the quarantine has begun (S7)");
        let written = blocking(|| promises::save_quarantine(&self.store, quarantine));
        if let Err(error) = written {
            promises::stop_on_failed_write(&error);
        }
    }

    fn give_share(
        &self,
        promised: Promised,
        commitments: BTreeMap<SignerId, Commitments>,
        reply: Reply,
    ) {
        let Some(safe) = self.safe_for(promised.verified()) else {
            return;
        };
        let (identity, outlet) = (self.identity.clone(), self.outlet.clone());
        task::spawn_blocking(move || {
            let (id, attempt) = (promised.session(), promised.attempt());
            let inputs = promised.verified().messages().len();
            // Inputs are signed side by side, on all processors.
            let watch = Stopwatch::process();
            let signed = lock(&safe).sign(Reading::now(), promised, commitments);
            let cost = watch.cost();
            cost.record(&ROUND2, inputs);
            tracing::info!(stage = "round2", session = %id, attempt, inputs, elapsed_us = cost.wall.as_micros(), "shares made");
            let answer = match signed {
                Ok(given) => state(&identity, id, attempt, given),
                Err(refusal) => Answer::Refused(refusal),
            };
            outlet.send(answer, reply);
        });
    }
}

/// All that a batch is judged by, but for what was asked of the own node before.
fn gather(
    open: &Open,
    candidate: Candidate,
    body: Body,
    outputs: BTreeMap<OutPoint, UnspentOutput>,
    mempool: MempoolInfo,
    standing: Standing,
) -> Result<Evidence, Refusal> {
    let mut books = lock(&open.books);
    if !books.history.is_current() {
        return Err(Refusal::new(Rule::S4, "the own ledger has not caught up"));
    }
    let recent = books
        .recent(standing.policy.window_blocks())
        .map_err(own_history)?;
    Ok(Evidence {
        vault: open.vault.clone(),
        head: books.history.head(),
        replay: books.history.replay(&body.operations, body.sequence),
        standing: Standing {
            height: books.history.height(),
            recent,
            ..standing
        },
        candidate,
        body,
        outputs,
        mempool,
    })
}

/// Shares leave with this operator's word that they are its own, and for what.
pub(super) fn state(identity: &Identity, session: SessionId, attempt: u32, given: Given) -> Answer {
    let Given {
        package,
        shares,
        next,
    } = given;
    let said = Round2 {
        session,
        attempt,
        package,
        shares,
        next,
    };
    Answer::Shares(identity.sign(ROUND2_DOMAIN, said))
}

/// Gives the own ledger a moment to take in the batch that was confirmed last.
async fn catch_up(open: &Open) {
    for _ in 0..MAX_WAITS {
        if lock(&open.books).history.is_current() {
            return;
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

/// How a sign request goes on.
enum Ready {
    /// It had this answer before.
    Answered(Box<Answer>),
    /// The promise is on disk.
    Promised(Promised),
}

/// Offers batch data until it is kept, a few times: a peer may be a block behind.
async fn offer(peers: &Peers, peer: PeerKey, ask: &Ask) {
    for _ in 0..KEEP_TRIES {
        match peers.ask(peer, ask).await {
            Ok(Answer::Kept(_)) => return,
            Ok(Answer::Refused(refusal)) => {
                tracing::debug!(%peer, %refusal, "batch data was not kept")
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%peer, %error, "batch data was not passed on");
                return;
            }
        }
        tokio::time::sleep(KEEP_PAUSE).await;
    }
}
