//! Answers what other nodes ask of a coordinator, and hears what they gossip.

use std::sync::Arc;

use bitcoin::Transaction;
use chain::rpc::BitcoinRpc;
use ledger::SequenceNumber;
use node::inbox::{Heard, Inbox};
use node::{certificate, history};
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, Gossip, Refusal, Rule},
    roster::Roster,
    signing::Input,
};
use storage::{ReadError, Store};
use tokio_util::sync::CancellationToken;

use crate::{epoch::Epochs, gossip::Sessions, records};

/// What the network's questions are answered from.
pub struct Desk {
    /// The database.
    pub store: Store,
    /// The roster.
    pub roster: Arc<Roster>,
    /// Where accepts and refusals go.
    pub sessions: Sessions,
    /// What is known of later epochs.
    pub epochs: Epochs,
    /// Own Bitcoin node.
    pub rpc: BitcoinRpc,
}

/// Answers until `stop` is set.
pub async fn run(mut inbox: Inbox, desk: Desk, stop: CancellationToken) {
    loop {
        let heard = tokio::select! {
            heard = inbox.next() => heard,
            () = stop.cancelled() => return,
        };
        match heard {
            None => return,
            Some(Heard::Asked(from, ask, reply)) => reply.send(desk.answer(from, ask)),
            Some(Heard::Gossip(_, gossip)) => desk.listen(gossip),
            Some(Heard::Changed(_)) => {}
        }
    }
}

impl Desk {
    fn answer(&self, from: PeerKey, ask: Ask) -> Answer {
        match self.try_answer(from, ask) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "the database can't be read");
                Answer::Refused(Refusal::new(Rule::S12, "this node can't read its database"))
            }
        }
    }

    fn try_answer(&self, from: PeerKey, ask: Ask) -> Result<Answer, ReadError> {
        Ok(match ask {
            Ask::Genesis => Answer::Genesis(certificate::load(&self.store)?),
            Ask::Group => Answer::Group(self.store.get(&records::GROUP, &())?),
            Ask::Body(hash) => {
                self.sessions.pulled(hash);
                Answer::Body(history::kept_body(&self.store, &hash)?)
            }
            Ask::Batch(sequence) => Answer::Batch(self.confirmed(sequence)?),
            Ask::Epoch => Answer::Epoch {
                certificate: certificate::load_epoch(&self.store)?,
                pending: Vec::new(),
            },
            Ask::Accept { session, epoch, .. }
                if self
                    .sessions
                    .epoch(&session)
                    .is_some_and(|own| own != epoch) =>
            {
                let own = self.sessions.epoch(&session).unwrap_or_default();
                Answer::Refused(Refusal::new(
                    Rule::S12,
                    format!("this session is signed with shares of epoch {own}, not {epoch}"),
                ))
            }
            Ask::Accept {
                session,
                commitments,
                ..
            } => match self.roster.signer(&from) {
                Some(signer)
                    if self.sessions.tell(
                        &session,
                        Input::Accepted {
                            from: signer,
                            commitments,
                        },
                    ) =>
                {
                    Answer::Taken
                }
                _ => Answer::Refused(Refusal::new(Rule::S12, "no such session is open here")),
            },
            Ask::Refuse { session, refusal } => match self.roster.signer(&from) {
                Some(signer) => {
                    tracing::warn!(operator = %from, %refusal, "an operator refuses");
                    self.sessions.tell(
                        &session,
                        Input::Refused {
                            from: signer,
                            refusal,
                        },
                    );
                    Answer::Taken
                }
                None => Answer::Refused(Refusal::new(Rule::S12, "only operators vote")),
            },
            Ask::Signed { transaction, .. } => {
                self.take_signed(transaction);
                Answer::Taken
            }
            Ask::Dkg { .. }
            | Ask::Keep { .. }
            | Ask::Sign { .. }
            | Ask::Attest { .. }
            | Ask::Refresh { .. }
            | Ask::Repair(_)
            | Ask::Delta(_) => {
                Answer::Refused(Refusal::new(Rule::S12, "a coordinator does not do this"))
            }
        })
    }

    /// A confirmed batch for a node that lacks it.
    fn confirmed(
        &self,
        sequence: SequenceNumber,
    ) -> Result<Option<(protocol::batch::Candidate, Vec<u8>)>, ReadError> {
        let Some(row) = self.store.get(&history::CONFIRMED, &sequence.0)? else {
            return Ok(None);
        };
        let Some(candidate) = history::kept_candidate(&self.store, &row.txid)? else {
            return Ok(None);
        };
        let body = history::kept_body(&self.store, &candidate.body)?;
        Ok(body.map(|body| (candidate, body)))
    }

    fn listen(&self, gossip: Gossip) {
        match gossip {
            Gossip::Signed { transaction, .. } => self.take_signed(transaction),
            Gossip::Epoch(certificate) => self.epochs.offer(certificate),
            Gossip::Proposal { .. } | Gossip::Genesis(_) => {}
        }
    }

    /// A signed transaction from elsewhere: help it along, whoever had it signed. The node judges it; the session that is
    /// about it, if one runs here, is over once the signatures are found right.
    fn take_signed(&self, transaction: Transaction) {
        self.sessions.signed(&transaction);
        let rpc = self.rpc.clone();
        tokio::spawn(async move {
            if let Err(error) = chain::submit::submit(&rpc, &transaction).await {
                tracing::debug!(%error, "a signed transaction from elsewhere was not submitted");
            }
        });
    }
}
