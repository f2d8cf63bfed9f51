//! Answers what other nodes ask of a coordinator, and hears what they gossip.

use std::{ops::Bound, sync::Arc};

use bitcoin::Transaction;
use chain::rpc::BitcoinRpc;
use ledger::SequenceNumber;
use node::inbox::{Heard, Inbox};
use node::{certificate, history};
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, Gossip, Refusal, Rule},
    request::{self, MAX_AT_ONCE, RequestName, UserRequest},
    roster::Roster,
    signing::Input,
};
use storage::{Direction, ReadError, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{epoch::Epochs, gossip::Sessions, live::Reader, queue, records};

/// Signed transactions from elsewhere that are on their way to the own Bitcoin node at a time.
pub const MAX_SUBMISSIONS: usize = 16;

/// What the network's questions are answered from.
#[derive(Clone)]
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
    /// Where requests go that other coordinators hand on.
    pub reader: Reader,
    /// Room for signed transactions from elsewhere on their way to the own Bitcoin node: [`MAX_SUBMISSIONS`].
    pub submissions: Arc<Semaphore>,
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
            Some(Heard::Asked(from, Ask::Request(request), reply)) => {
                // Signature and disk are waited for beside the loop.
                let desk = desk.clone();
                tokio::task::spawn_blocking(move || reply.send(desk.keep(from, request)));
            }
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
            Ask::Requests { after } => Answer::Requests(self.requests(after)?),
            // Operators know it for sure.
            Ask::GenesisHeight => Answer::GenesisHeight(None),
            Ask::Request(request) => self.keep(from, request),
            Ask::Dkg { .. }
            | Ask::Keep { .. }
            | Ask::Sign { .. }
            | Ask::Pool { .. }
            | Ask::SignPooled { .. }
            | Ask::Attest { .. }
            | Ask::Refresh { .. }
            | Ask::Repair(_)
            | Ask::Delta(_) => {
                Answer::Refused(Refusal::new(Rule::S12, "a coordinator does not do this"))
            }
        })
    }

    /// Takes a request that another coordinator hands on, as if its user had sent it here.
    fn keep(&self, from: PeerKey, request: UserRequest) -> Answer {
        let refuse = |reason: String| Answer::Refused(Refusal::new(Rule::S12, reason));
        if !self.roster.is_coordinator(&from) {
            return refuse("requests come from coordinators".to_owned());
        }
        let Some(vault) = self.reader.live.borrow().vault.clone() else {
            return refuse("there is no vault here yet".to_owned());
        };
        let kept = match request {
            UserRequest::Terms(terms) => request::check_terms(&terms, &vault)
                .map_err(|error| error.to_string())
                .and_then(|address| {
                    let kept = self.reader.shown.keep(&address, Some(from));
                    kept.map_err(|error| error.to_string())
                }),
            UserRequest::Signed(operation) => queue::accept(&self.reader, operation)
                .map(drop)
                .map_err(|error| error.to_string()),
        };
        kept.map_or_else(refuse, |()| Answer::Taken)
    }

    /// The requests behind `after`: terms, and operations that are not confirmed.
    fn requests(&self, after: Option<RequestName>) -> Result<Vec<UserRequest>, ReadError> {
        let mut found = Vec::new();
        if let Some(start) = RequestName::terms_after(after) {
            let range = (start, Bound::Unbounded);
            let rows = self
                .store
                .iter(&records::TERMS, range, Direction::Forward, MAX_AT_ONCE)?;
            for row in rows {
                found.push(UserRequest::Terms(row?.1));
            }
        }
        let room = MAX_AT_ONCE.saturating_sub(found.len());
        let range = (RequestName::signed_after(after), Bound::Unbounded);
        for row in self
            .store
            .iter(&records::PENDING, range, Direction::Forward, room)?
        {
            if let Some(record) = self.store.get(&records::OPERATIONS, &row?.1)? {
                found.push(UserRequest::Signed(record.operation));
            }
        }
        Ok(found)
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
        // Whoever signed it submits it too, and operators hand it on again: one that finds no room is not lost.
        let Ok(room) = self.submissions.clone().try_acquire_owned() else {
            tracing::debug!("too many signed transactions from elsewhere at a time");
            return;
        };
        let rpc = self.rpc.clone();
        tokio::spawn(async move {
            let _room = room;
            if let Err(error) = chain::submit::submit(&rpc, &transaction).await {
                tracing::debug!(%error, "a signed transaction from elsewhere was not submitted");
            }
        });
    }
}
