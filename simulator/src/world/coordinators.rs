//! What coordinators hear and do.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{invariants, signing};
use rand::Rng as _;
use threshold::SignerId;

use super::{ASK_TIMEOUT_MS, HOLD_MS, MAX_WAIT_MS, REPEAT_MS, World, text};
use crate::{
    coordinator::News,
    event::Event,
    signatures::{CommitmentsOf, Signatures},
};

impl<C: Signatures> World<C> {
    /// A coordinator's session begins anew.
    pub(super) fn begin(&mut self, coordinator: usize, has_restarted: bool) {
        let Some(one) = self
            .coordinators
            .get_mut(coordinator)
            .filter(|one| !one.is_finished)
        else {
            return;
        };
        one.begin(has_restarted);
        let incarnation = one.incarnation;
        if let Some(begun) = self.begun.get_mut(coordinator) {
            *begun = self.now;
        }
        // A session that was given up is proposed anew with the next round.
        let pause = if has_restarted { 0 } else { REPEAT_MS };
        self.at(
            self.now.saturating_add(pause),
            Event::Repeat {
                coordinator,
                incarnation,
            },
        );
    }

    pub(super) fn repeat(&mut self, coordinator: usize, incarnation: u32) -> Result<(), String> {
        let is_current = self
            .coordinators
            .get(coordinator)
            .is_some_and(|one| one.incarnation == incarnation && !one.is_finished);
        if !is_current {
            return Ok(());
        }
        self.note(|| format!("coordinator {coordinator} proposes"));
        self.open_with_pool(coordinator)?;
        for to in 0..self.operators.len() {
            self.send(to, || Event::Proposal {
                to,
                from: coordinator,
            });
        }
        let again = Event::Repeat {
            coordinator,
            incarnation,
        };
        self.at(self.now.saturating_add(REPEAT_MS), again);
        self.hear(coordinator, signing::Input::Repeated)?;
        if let Some(one) = self.coordinators.get(coordinator) {
            invariants::waiting_names_everyone(&one.session).map_err(text)?;
        }
        Ok(())
    }

    pub(super) fn hear_in(
        &mut self,
        coordinator: usize,
        incarnation: u32,
        input: signing::Input<C::Scheme>,
    ) -> Result<(), String> {
        match self.coordinators.get(coordinator) {
            Some(one) if one.incarnation == incarnation => self.hear(coordinator, input),
            _ => Ok(()),
        }
    }

    /// A coordinator's machine takes an input.
    pub(super) fn hear(
        &mut self,
        at: usize,
        input: signing::Input<C::Scheme>,
    ) -> Result<(), String> {
        let Some(one) = self.coordinators.get_mut(at).filter(|one| !one.is_finished) else {
            return Ok(());
        };
        let incarnation = one.incarnation;
        let heard = self.trace.then(|| format!("{input:?}"));
        let news = News::of(&input);
        let result = one.step(input);
        invariants::attempts_are_bounded(&one.session).map_err(text)?;
        invariants::signers_are_in_one_place(&one.session).map_err(text)?;
        invariants::no_honest_signer_is_blamed(&one.session, &self.honest).map_err(text)?;
        if let (Some(news), Ok(effects)) = (&news, &result) {
            one.take_note(news, effects).map_err(text)?;
        }
        let is_hopeless = one.session.possible() < one.session.needed();
        if let Some(heard) = heard {
            self.note(|| match &result {
                Ok(effects) => format!("coordinator {at} hears {heard}, does {effects:?}"),
                Err(reject) => format!("coordinator {at} rejects {heard}: {reject}"),
            });
        }
        for effect in result.unwrap_or_default() {
            self.effect(at, incarnation, effect)?;
        }
        if is_hopeless {
            self.begin(at, false);
        }
        Ok(())
    }

    pub(super) fn effect(
        &mut self,
        coordinator: usize,
        incarnation: u32,
        effect: signing::Effect<C::Scheme>,
    ) -> Result<(), String> {
        match effect {
            signing::Effect::Request {
                attempt,
                commitments,
                to,
            } => {
                if let Some(one) = self.coordinators.get_mut(coordinator) {
                    one.requests.asked(attempt, &commitments).map_err(text)?;
                }
                let commitments = Arc::new(commitments);
                for signer in to {
                    self.request(coordinator, incarnation, attempt, &commitments, signer);
                }
            }
            signing::Effect::Pooled {
                attempt,
                commitments,
            } => {
                if let Some(one) = self.coordinators.get_mut(coordinator) {
                    one.requests.asked(attempt, &commitments).map_err(text)?;
                }
                self.ask_pooled(coordinator, incarnation, attempt, commitments);
            }
            signing::Effect::Finished {
                signatures, pooled, ..
            } => {
                if !self.signatures.are_right(&signatures) {
                    return Err("finished with wrong signatures".to_owned());
                }
                self.note(|| format!("coordinator {coordinator} is finished"));
                if let Some(one) = self.coordinators.get_mut(coordinator) {
                    one.is_finished = true;
                    one.is_pooled = pooled;
                }
            }
            signing::Effect::Blame {
                signer,
                commitments,
                answer,
                ..
            } => {
                if !self.signatures.is_evidence(signer, &commitments, &answer) {
                    return Err(format!("{signer:?} was blamed without evidence"));
                }
            }
            signing::Effect::Wait => {
                let over = Event::Waited {
                    coordinator,
                    incarnation,
                };
                let pause = self.schedule.rng.gen_range(0..=MAX_WAIT_MS);
                self.at(self.now.saturating_add(pause), over);
            }
            signing::Effect::Hold => {
                let over = Event::Held {
                    coordinator,
                    incarnation,
                };
                self.at(self.now.saturating_add(HOLD_MS), over);
            }
        }
        Ok(())
    }

    pub(super) fn request(
        &mut self,
        from: usize,
        incarnation: u32,
        attempt: u32,
        commitments: &Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
        signer: SignerId,
    ) {
        let members = self.schedule.group.members();
        let Ok(to) = members.binary_search_by_key(&signer, |(signer, _)| *signer) else {
            return;
        };
        let asked_ms = self.now;
        let is_sent = self.send(to, || Event::Sign {
            to,
            from,
            incarnation,
            attempt,
            commitments: commitments.clone(),
            asked_ms,
        });
        if !is_sent {
            self.lose(from, to, incarnation, attempt, asked_ms);
        }
    }

    /// A sign request or its answer has got lost: its coordinator notices after a while.
    pub(super) fn lose(
        &mut self,
        to: usize,
        from: usize,
        incarnation: u32,
        attempt: u32,
        asked_ms: u64,
    ) {
        let lost = Event::Lost {
            to,
            from,
            incarnation,
            attempt,
            refusal: None,
        };
        let time = asked_ms.saturating_add(ASK_TIMEOUT_MS).max(self.now);
        self.at(time, lost);
    }
}
