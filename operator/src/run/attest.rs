//! Attestation, both sides: this operator's document for those who ask, and the other operators' for this one.

use std::{path::PathBuf, sync::Arc};

use attestation::{Attest, Claim, Requirement, socket::Socket};
use node::clock;
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, Refusal},
};
use rand::{RngCore as _, rngs::OsRng};
use tokio::{sync::Semaphore, task};

use super::{Event, Node};
use crate::{
    attested::{self, Problem},
    peers::Reply,
    status,
};

/// Questions to the own attestation helper at a time; more wait.
const MAX_ATTESTING: usize = 4;

/// Where this operator's own documents come from.
#[derive(Clone)]
pub(super) struct Documents {
    source: Arc<dyn Attest>,
    room: Arc<Semaphore>,
}

impl Documents {
    /// From the helper behind the socket of the settings, if there is one.
    pub(super) fn new(socket: Option<PathBuf>, requirement: &Requirement) -> Option<Self> {
        if socket.is_none() && !requirement.is_none() {
            tracing::warn!(
                "the roster requires an attestation and 'attestation_socket' is not set: the other operators will make no key with this one"
            );
        }
        Some(Self {
            source: Arc::new(Socket::new(socket?)),
            room: Arc::new(Semaphore::new(MAX_ATTESTING)),
        })
    }
}

impl Node {
    /// Asks the connected operators whose attestation is missing or about to expire.
    pub(super) fn ask_attestations(&mut self) {
        let Some(verifier) = self.attested.verifier().cloned() else {
            return;
        };
        let nonce = || {
            let mut nonce = [0; 32];
            OsRng.fill_bytes(&mut nonce);
            nonce
        };
        let connected = self.peers.operators();
        for (peer, nonce) in self.attested.due(&connected, clock::now_ms(), nonce) {
            let (peers, verifier) = (self.peers.clone(), verifier.clone());
            self.spawn(async move {
                let verdict = match peers.ask(peer, &Ask::Attest { nonce }).await {
                    Ok(Answer::Attestation(document)) => {
                        let judged = task::spawn_blocking(move || {
                            let document = document.as_deref();
                            attested::judge(&*verifier, &peer, &nonce, document, clock::now_ms())
                        });
                        judged.await.unwrap_or(Err(Problem::Silent))
                    }
                    _ => Err(Problem::Silent),
                };
                Some(Event::Attested(peer, nonce, verdict))
            });
        }
    }

    /// Refuses an operator that has not shown what the roster requires, for whatever makes keys and shares.
    pub(super) fn admits(&self, peer: &PeerKey) -> Result<(), Refusal> {
        self.attested.admits(peer, clock::now_ms())
    }

    /// Answers with this operator's document for the asker's nonce; with none where no helper gives one.
    pub(super) fn attest(&self, nonce: [u8; 32], reply: Reply) {
        let Some(Documents { source, room }) = self.documents.clone() else {
            return reply.send(Answer::Attestation(None));
        };
        let claim = Claim {
            key: self.identity.public().0,
            nonce,
        };
        tokio::spawn(async move {
            let Ok(_permit) = room.acquire_owned().await else {
                return;
            };
            let made = task::spawn_blocking(move || source.attest(&claim)).await;
            let document = match made {
                Ok(Ok(document)) => Some(document),
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "no attestation document to answer with");
                    None
                }
                Err(_) => None,
            };
            reply.send(Answer::Attestation(document));
        });
    }

    /// The other operators' standing, for the status page; empty where nothing is required.
    pub(super) fn show_attested(&self) -> Vec<status::Attestation> {
        let (own, now_ms) = (self.identity.public(), clock::now_ms());
        let others = self.roster.operators.iter().filter(|it| it.key != own);
        others
            .filter_map(|member| {
                let shown = self.attested.show(&member.key, now_ms)?;
                Some(status::Attestation {
                    name: member.name.clone(),
                    attested: shown.until_ms.is_some(),
                    until_ms: shown.until_ms,
                    problem: shown.problem,
                })
            })
            .collect()
    }
}
