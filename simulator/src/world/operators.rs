//! What operators hear and do.

use std::collections::BTreeSet;

use protocol::{identity::PeerKey, message::SessionId, signer};
use rand::{Rng as _, seq::SliceRandom as _};

use super::{CHAT_MS, MAX_CHATS, PASS_ON_TO, World};
use crate::{
    batch,
    event::Event,
    schedule::Conduct,
    signatures::{Request, Signatures},
};

impl<C: Signatures> World<C> {
    pub(super) fn proposal(&mut self, to: usize, from: usize) -> Result<(), String> {
        let (now, subject) = (self.now, self.subject.clone());
        let (Some(one), Some(coordinator)) =
            (self.operators.get_mut(to), self.coordinators.get(from))
        else {
            return Ok(());
        };
        if one.plan.conduct == Conduct::Deaf {
            return Ok(());
        }
        let key = coordinator.key;
        match one.proposed(now, key, subject) {
            Ok(effects) => return self.carry_out(to, effects),
            Err(refusal) => {
                self.send(to, || Event::Refuse {
                    to: from,
                    from: to,
                    refusal: refusal.clone(),
                });
            }
        }
        Ok(())
    }

    /// An operator does what its machine says.
    pub(super) fn carry_out(
        &mut self,
        operator: usize,
        effects: Vec<signer::Effect>,
    ) -> Result<(), String> {
        for effect in effects {
            match effect {
                signer::Effect::Verify(id, _, subject) => {
                    self.later(operator, 200, batch::verified(id, &subject));
                }
                signer::Effect::Store(session) => {
                    let reachable = self.neighbours(operator);
                    self.later(operator, 20, signer::Input::Stored { session, reachable });
                }
                signer::Effect::PassOn(id, peers) => self.pass_on(operator, id, peers),
                signer::Effect::Accept(id, coordinator) => self.accept(operator, id, coordinator),
                signer::Effect::Pooled(id, coordinator) => {
                    self.answer_pooled(operator, id, coordinator)?;
                }
                signer::Effect::Refuse(_, coordinator, refusal) => {
                    if let Some(to) = self.coordinator(&coordinator) {
                        self.send(operator, || Event::Refuse {
                            to,
                            from: operator,
                            refusal: refusal.clone(),
                        });
                    }
                }
                // Carried out where the sign request is answered; nobody here has been restored.
                signer::Effect::PromiseAndSign(_) | signer::Effect::Quarantined(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn coordinator(&self, key: &PeerKey) -> Option<usize> {
        self.coordinators.iter().position(|one| one.key == *key)
    }

    pub(super) fn later(&mut self, operator: usize, within: u64, input: signer::Input) {
        let boot = self.operators.get(operator).map_or(0, |one| one.boot);
        let delay = self.schedule.rng.gen_range(0..=within);
        let event = Event::Machine {
            operator,
            boot,
            input,
        };
        self.at(self.now.saturating_add(delay), event);
    }

    pub(super) fn neighbours(&mut self, operator: usize) -> BTreeSet<PeerKey> {
        let members = self.schedule.group.members();
        let keys: Vec<PeerKey> = members
            .choose_multiple(&mut self.schedule.rng, PASS_ON_TO)
            .map(|(_, key)| *key)
            .collect();
        let one = self.operators.get(operator);
        one.map(|one| one.reachable(&keys)).unwrap_or_default()
    }

    pub(super) fn pass_on(&mut self, operator: usize, id: SessionId, peers: BTreeSet<PeerKey>) {
        let boot = self.operators.get(operator).map_or(0, |one| one.boot);
        for peer in peers {
            self.send(operator, || Event::Machine {
                operator,
                boot,
                input: signer::Input::Receipt(id, peer),
            });
        }
        let tick = Event::Machine {
            operator,
            boot,
            input: signer::Input::Tick,
        };
        self.at(self.now.saturating_add(signer::RECEIPT_WAIT_MS), tick);
    }

    pub(super) fn accept(&mut self, operator: usize, id: SessionId, coordinator: PeerKey) {
        let now = self.now;
        let (Some(to), Some(one)) = (
            self.coordinator(&coordinator),
            self.operators.get_mut(operator),
        ) else {
            return;
        };
        let commitments = one.commit(now, id, &mut self.signatures);
        self.send(operator, || Event::Accept {
            to,
            from: operator,
            commitments: commitments.clone(),
        });
    }

    pub(super) fn chat(&mut self, operator: usize, count: u32) {
        if count >= MAX_CHATS {
            return;
        }
        self.accept_with_throwaway(operator, 0);
        let again = Event::Chat {
            operator,
            count: count.saturating_add(1),
        };
        self.at(self.now.saturating_add(CHAT_MS), again);
    }

    pub(super) fn accept_with_throwaway(&mut self, operator: usize, to: usize) {
        let Some(one) = self.operators.get_mut(operator) else {
            return;
        };
        let commitments = one.throwaway(&mut self.signatures);
        self.send(operator, || Event::Accept {
            to,
            from: operator,
            commitments: commitments.clone(),
        });
    }

    pub(super) fn sign(&mut self, event: Event<C>) -> Result<(), String> {
        let Event::Sign {
            to: operator,
            from: coordinator,
            incarnation,
            attempt,
            commitments,
            asked_ms,
        } = event
        else {
            return Ok(());
        };
        let (now, dice) = (self.now, self.schedule.rng.gen_range(0..100));
        let (Some(one), Some(key)) = (
            self.operators.get_mut(operator),
            self.coordinators.get(coordinator).map(|one| one.key),
        ) else {
            return Ok(());
        };
        let (is_honest, signer) = (one.plan.conduct.is_honest(), one.signer);
        let request = Request {
            session: self.subject.session(&key),
            attempt,
            commitments: &commitments,
        };
        let from = (coordinator, key);
        let answered = one.sign(now, from, &request, &mut self.signatures, dice);
        let is_renewer = one.plan.conduct == Conduct::Renewer;
        let is_sent = match answered {
            None => false,
            Some(Ok((answer, used))) => {
                if is_honest {
                    let package = self.signatures.package(&answer);
                    self.served(signer, &used, request.session, package)?;
                }
                self.send(operator, || Event::Answer {
                    to: coordinator,
                    from: operator,
                    attempt,
                    answer: answer.clone(),
                })
            }
            Some(Err(refusal)) => self.send(operator, || Event::Lost {
                to: coordinator,
                from: operator,
                incarnation,
                attempt,
                refusal: Some(refusal.clone()),
            }),
        };
        if !is_sent {
            self.lose(coordinator, operator, incarnation, attempt, asked_ms);
        }
        if is_renewer {
            self.accept_with_throwaway(operator, coordinator);
        }
        Ok(())
    }
}
