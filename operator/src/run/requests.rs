//! Requests of users that this operator keeps for the coordinators: taken from them, listed for whoever has lost its
//! own, and fetched from the others after a start.

use std::{collections::BTreeSet, sync::Arc};

use ledger::{AccountIndex, Operation, SequenceNumber};
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, Refusal, Rule},
    request::{self, RequestError, RequestName, Sender, UserRequest},
    vault::Vault,
};

use super::{Books, Node, RunError, answers::own_database, blocking, fatal, lock};
use crate::{
    peers::{Peers, Reply},
    promises,
    requests::{KeepError, Requests},
};

/// What a request is checked against and kept in.
#[derive(Clone)]
struct Shelf {
    requests: Arc<Requests>,
    vault: Arc<Vault>,
    books: Arc<std::sync::Mutex<Books>>,
}

impl Node {
    /// Keeps a request for a coordinator. Signature and disk are waited for beside the loop.
    pub(super) fn keep_request(&self, from: PeerKey, request: UserRequest, reply: Reply) {
        if !self.roster.is_coordinator(&from) {
            let refusal = Refusal::new(Rule::S12, "requests are kept for coordinators");
            return reply.send(Answer::Refused(refusal));
        }
        let Some(shelf) = self.shelf() else {
            let refusal = Refusal::new(Rule::S2, "no genesis is certified here");
            return reply.send(Answer::Refused(refusal));
        };
        tokio::task::spawn_blocking(move || {
            reply.send(match shelf.take(&request, from) {
                Ok(()) => Answer::Taken,
                Err(refusal) => Answer::Refused(refusal),
            });
        });
    }

    /// Lists what is kept.
    pub(super) fn list_requests(&self, after: Option<RequestName>) -> Result<Answer, Refusal> {
        self.requests
            .list(after)
            .map(Answer::Requests)
            .map_err(own_database)
    }

    /// After a start, what the others keep is fetched from each of them once: this operator was away, or has lost its
    /// own.
    pub(super) fn pull_requests(&mut self) {
        let Some(shelf) = self.shelf() else { return };
        // A ledger that is still being put together knows no accounts, and would refuse what it is given.
        if self.caught_up().is_none() || !lock(&shelf.books).history.is_current() {
            return;
        }
        for peer in self.peers.connected() {
            if self.pulled.insert(peer) {
                tokio::spawn(pull(self.peers.clone(), peer, shelf.clone()));
            }
        }
    }

    /// Drops what is done, up to a batch that is deep in the chain.
    pub(super) fn settle_requests(&self, last_final: SequenceNumber) -> Result<(), RunError> {
        let Some(shelf) = self.shelf() else {
            return Ok(());
        };
        let (nonces, shallow) = {
            let books = lock(&shelf.books);
            let history = &books.history;
            let head = history.head().commitment.sequence;
            // What a reorganisation may undo is kept.
            let mut shallow = BTreeSet::new();
            for sequence in last_final.0.saturating_add(1)..=head.0 {
                let batch = history.confirmed(SequenceNumber(sequence)).copied();
                let body = match batch {
                    Some(batch) => history.body_of(&batch).map_err(fatal)?,
                    None => None,
                };
                let operations = body.map(|body| body.operations).unwrap_or_default();
                shallow.extend(
                    operations
                        .iter()
                        .filter_map(|operation| Some((operation.sender()?.0, operation.nonce()?))),
                );
            }
            let accounts = history.ledger().accounts().iter();
            let nonces: Vec<u64> = accounts.map(|account| account.nonce).collect();
            (nonces, shallow)
        };
        // A reorganisation may make room again in any batch that is not final.
        let next = SequenceNumber(last_final.0.saturating_add(1));
        let is_done = |sender: u32, nonce: u64| {
            let next = usize::try_from(sender).ok().and_then(|at| nonces.get(at));
            next.is_some_and(|next| nonce < *next) && !shallow.contains(&(sender, nonce))
        };
        match blocking(|| shelf.requests.settle(is_done, next)) {
            Ok(()) => Ok(()),
            Err(KeepError::Commit(error)) => promises::stop_on_failed_write(&error),
            Err(KeepError::Read(error)) => Err(error.into()),
            Err(KeepError::Deposit | KeepError::Full | KeepError::NonceTaken(_)) => Ok(()),
        }
    }

    fn shelf(&self) -> Option<Shelf> {
        let open = self.open.as_ref()?;
        Some(Shelf {
            requests: self.requests.clone(),
            vault: open.vault.clone(),
            books: open.books.clone(),
        })
    }
}

impl Shelf {
    /// Checks a request that `from` has given, and keeps it.
    fn take(&self, request: &UserRequest, from: PeerKey) -> Result<(), Refusal> {
        let checked: Result<(), RequestError> = match request {
            UserRequest::Terms(terms) => request::check_terms(terms, &self.vault).map(drop),
            UserRequest::Signed(operation) => self.check_signed(operation),
        };
        checked.map_err(|error| Refusal::new(Rule::S3, error.to_string()))?;
        let is_void = |operation: &Operation| self.check_signed(operation).is_err();
        self.requests
            .keep(request, from, is_void)
            .map_err(|error| match error {
                KeepError::Commit(error) => promises::stop_on_failed_write(&error),
                KeepError::Read(error) => own_database(error),
                other => Refusal::new(Rule::S12, other.to_string()),
            })
    }

    fn check_signed(&self, operation: &Operation) -> Result<(), RequestError> {
        let sender = operation.sender().and_then(|index| self.sender(index));
        let (id, parameters) = (self.vault.id(), self.vault.parameters());
        request::check_signed(operation, sender, &id, parameters)
    }

    fn sender(&self, index: AccountIndex) -> Option<Sender> {
        let books = lock(&self.books);
        let account = books.history.ledger().account(index)?;
        let head = books.history.head().commitment.sequence;
        Some(Sender {
            key: account.key,
            nonce: account.nonce,
            next: SequenceNumber(head.0.saturating_add(1)),
        })
    }
}

/// Takes everything that a peer keeps. What is refused is left out: the peer is no better than anybody.
async fn pull(peers: Peers, peer: PeerKey, shelf: Shelf) {
    let mut after = None;
    let mut taken = 0_usize;
    for _ in 0..request::MAX_PAGES {
        let Ok(Answer::Requests(page)) = peers.ask(peer, &Ask::Requests { after }).await else {
            break;
        };
        after = RequestName::behind(&page, after);
        if after.is_none() {
            break;
        }
        let shelf = shelf.clone();
        let kept = tokio::task::spawn_blocking(move || {
            page.iter()
                .filter(|request| shelf.take(request, peer).is_ok())
                .count()
        });
        taken = taken.saturating_add(kept.await.unwrap_or_default());
    }
    if taken > 0 {
        tracing::info!(%peer, taken, "requests that another node keeps are kept here too");
    }
}
