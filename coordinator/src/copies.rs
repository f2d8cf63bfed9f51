//! Hands each request on to the other nodes before it is called accepted, so that it outlives this coordinator
//! (DESIGN section 5).

use std::time::Duration;

use p2p::Network;
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, decode, encode},
    request::UserRequest,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

/// How long a request's copies may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries with a node that refuses: it may be a block behind.
const PAUSE: Duration = Duration::from_millis(400);

/// Too few nodes have the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{have} of the {needed} other nodes that should keep this request have confirmed it; it is stored here: send it again"
)]
pub struct TooFewCopies {
    /// Nodes that have confirmed it.
    pub have: usize,
    /// Nodes that should.
    pub needed: usize,
}

/// The other nodes, and how many of them must keep a request.
#[derive(Clone)]
pub struct Copies {
    network: Option<Network>,
    peers: Vec<PeerKey>,
    needed: usize,
}

impl Copies {
    /// Nobody keeps anything for this coordinator.
    pub fn none() -> Self {
        Self {
            network: None,
            peers: Vec::new(),
            needed: 0,
        }
    }

    /// Copies with `peers`, of whom `needed` must confirm.
    pub fn new(network: Network, peers: Vec<PeerKey>, needed: usize) -> Self {
        Self {
            network: Some(network),
            peers,
            needed,
        }
    }

    /// Gives the request to all other nodes, and waits until enough have it on disk.
    ///
    /// # Errors
    /// [`TooFewCopies`] when they do not within some seconds.
    pub async fn make(&self, request: UserRequest) -> Result<(), TooFewCopies> {
        let Some(network) = &self.network else {
            return Ok(());
        };
        let bytes = encode(&Ask::Request(request));
        let until = Instant::now() + PATIENCE;
        let (kept, mut confirmed) = mpsc::channel(self.peers.len().max(1));
        // Those that are left when this fails are aborted with it; whoever asks again begins anew.
        let mut giving = JoinSet::new();
        for peer in &self.peers {
            let (network, peer, bytes, kept) =
                (network.clone(), *peer, bytes.clone(), kept.clone());
            giving.spawn(async move {
                let given = tokio::time::timeout_at(until, give(&network, peer, &bytes)).await;
                if given.is_ok() {
                    // Nobody listens once enough have confirmed.
                    let _ = kept.send(()).await;
                }
            });
        }
        drop(kept);
        let mut have = 0_usize;
        while have < self.needed {
            if confirmed.recv().await.is_none() {
                return Err(TooFewCopies {
                    have,
                    needed: self.needed,
                });
            }
            have = have.saturating_add(1);
        }
        giving.detach_all();
        Ok(())
    }
}

/// Until the node has it.
async fn give(network: &Network, peer: PeerKey, bytes: &[u8]) {
    loop {
        match network
            .ask(peer, bytes.to_vec())
            .await
            .map(|answer| decode(&answer))
        {
            Ok(Ok(Answer::Taken)) => return,
            Ok(Ok(Answer::Refused(refusal))) => {
                tracing::debug!(%peer, %refusal, "a node does not keep a request");
            }
            Ok(_) => tracing::debug!(%peer, "a node's answer about a request is none"),
            Err(error) => tracing::debug!(%peer, %error, "a node can't be given a request"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
