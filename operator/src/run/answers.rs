//! What peers ask, and what this operator answers. Nothing here signs or promises but the sign request, which
//! goes through the machine.

use node::history;
use protocol::{
    batch::Candidate,
    identity::PeerKey,
    message::{Answer, Ask, Refusal, Rule},
    vault::GenesisCertificate,
};
use storage::ReadError;

use super::{Node, RunError, lock, pooled::Pooled};
use crate::{held, peers::Reply, promises};

impl Node {
    pub(super) fn answer(&mut self, from: PeerKey, ask: Ask, reply: Reply) -> Result<(), RunError> {
        let answer = match ask {
            Ask::Dkg { context } => self
                .admits(&from)
                .and_then(|()| self.generation.answer(&from, &context))
                .map(Answer::Dkg),
            Ask::Attest { nonce } => {
                self.attest(nonce, reply);
                return Ok(());
            }
            Ask::Group => Ok(Answer::Group(
                self.key.as_ref().map(|key| key.group().clone()),
            )),
            Ask::Genesis => Ok(Answer::Genesis(self.certificate())),
            Ask::Body(hash) => history::kept_body(&self.store, &hash)
                .map(Answer::Body)
                .map_err(own_database),
            Ask::Batch(sequence) => self.batch(sequence).map(Answer::Batch),
            Ask::Keep { candidate, body } => {
                self.keep(from, candidate, body, reply);
                return Ok(());
            }
            Ask::Sign {
                session,
                epoch,
                attempt,
                commitments,
            } => {
                self.sign(from, session, epoch, attempt, commitments, reply);
                return Ok(());
            }
            Ask::Pool { epoch } => {
                self.hand_out(from, epoch, reply);
                return Ok(());
            }
            Ask::SignPooled {
                subject,
                epoch,
                attempt,
                commitments,
            } => {
                let request = Pooled {
                    epoch,
                    attempt,
                    commitments,
                };
                self.sign_pooled(from, subject, request, reply);
                return Ok(());
            }
            Ask::Epoch => Ok(self.epochs()),
            Ask::Refresh { base, epoch } => self.answer_refresh(&from, &base, epoch),
            Ask::Repair(ask) => self.help(&from, ask).map(Answer::Repair),
            Ask::Delta(run) => self.give_delta(&from, &run).map(Answer::Delta),
            Ask::Signed {
                candidate,
                transaction,
            } => {
                self.hear_signed(from, candidate, transaction)?;
                Ok(Answer::Taken)
            }
            Ask::Request(request) => {
                self.keep_request(from, request, reply);
                return Ok(());
            }
            Ask::Requests { after } => self.list_requests(after),
            Ask::GenesisHeight => Ok(Answer::GenesisHeight(self.genesis_height())),
            Ask::Accept { .. } | Ask::Refuse { .. } => Err(Refusal::new(
                Rule::S12,
                "this node is an operator; it coordinates nothing",
            )),
        };
        reply.send(answer.unwrap_or_else(Answer::Refused));
        Ok(())
    }

    fn certificate(&self) -> Option<GenesisCertificate> {
        self.open
            .as_ref()
            .map(|open| open.vault.certificate().clone())
    }

    fn genesis_height(&self) -> Option<u32> {
        let open = self.open.as_ref()?;
        let promised = self.genesis.map(|genesis| genesis.height);
        // A restored operator follows from the genesis on.
        Some(promised.unwrap_or_else(|| lock(&open.books).history.position().start()))
    }

    /// The confirmed batch of that number. What others have had this operator hold is not handed on before the history
    /// has taken it: nothing but the digest on the chain says that it is right.
    fn batch(
        &self,
        sequence: ledger::SequenceNumber,
    ) -> Result<Option<(Candidate, Vec<u8>)>, Refusal> {
        let Some(open) = &self.open else {
            return Ok(None);
        };
        let Some(batch) = lock(&open.books).history.confirmed(sequence).copied() else {
            return Ok(None);
        };
        let kept = || -> Result<Option<(Candidate, Vec<u8>)>, ReadError> {
            if let Some(candidate) = history::kept_candidate(&self.store, &batch.txid)?
                && let Some(body) = history::kept_body(&self.store, &candidate.body)?
            {
                return Ok(Some((candidate, body)));
            }
            Ok(None)
        };
        kept().map_err(own_database)
    }

    /// S8, the other side: keeps batch data for an operator. The disk is waited for beside the loop.
    fn keep(&self, from: PeerKey, candidate: Candidate, body: Vec<u8>, reply: Reply) {
        let (Some(open), Some(head)) = (&self.open, self.head_sequence()) else {
            return reply.send(Answer::Refused(Refusal::new(
                Rule::S2,
                "no genesis is certified here",
            )));
        };
        if !self.roster.is_operator(&from) {
            return reply.send(Answer::Refused(Refusal::new(
                Rule::S12,
                "batch data is kept for operators",
            )));
        }
        let (store, vault) = (self.store.clone(), open.vault.clone());
        tokio::task::spawn_blocking(move || {
            let hash = candidate.body;
            // What was verified here is kept already.
            if history::kept_candidate(&store, &candidate.txid)
                .ok()
                .flatten()
                .as_ref()
                == Some(&candidate)
            {
                return reply.send(Answer::Kept(hash));
            }
            reply.send(
                match held::hold(&store, &vault, head, from, candidate, body) {
                    Ok(()) => Answer::Kept(hash),
                    Err(held::HoldError::Refused(refusal)) => Answer::Refused(refusal),
                    Err(held::HoldError::Read(error)) => Answer::Refused(own_database(error)),
                    Err(held::HoldError::Commit(error)) => promises::stop_on_failed_write(&error),
                },
            );
        });
    }

    pub(super) fn hear_gossip(
        &mut self,
        from: PeerKey,
        gossip: protocol::message::Gossip,
    ) -> Result<(), RunError> {
        use protocol::message::Gossip;
        match gossip {
            Gossip::Proposal { subject, .. } if self.roster.is_coordinator(&from) => {
                self.proposed(from, subject)
            }
            Gossip::Proposal { .. } => {
                tracing::warn!(%from, "a proposal from a node that is no coordinator")
            }
            Gossip::Genesis(certificate) => self.learn_certificate(&certificate)?,
            Gossip::Signed {
                candidate,
                transaction,
            } => self.hear_signed(from, candidate, transaction)?,
            Gossip::Epoch(certificate) => self.learn_epoch(certificate)?,
        }
        Ok(())
    }
}

pub(super) fn own_database(error: ReadError) -> Refusal {
    tracing::error!(
        error = &error as &dyn std::error::Error,
        "the own database can't be read"
    );
    Refusal::new(Rule::S11, "this operator's database can't be read")
}
