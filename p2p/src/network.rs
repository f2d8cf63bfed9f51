//! The handle that a node holds: start, publish, ask, and the events that come in.

use std::{
    collections::BTreeSet,
    panic::Location,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use failpoint::Deed;
use protocol::identity::{Identity, PeerKey};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::{
    ASK_TIMEOUT, ASK_WAIT, MAX_ASK_BYTES, MAX_GOSSIP_BYTES, behaviour,
    codec::{Answer, Refusal},
    counts::{Counters, Counts},
    event_loop::EventLoop,
    inbox::Events,
    names::Names,
    settings::{Roster, Settings, StartError, listen_address},
    status::PeerStatus,
};

/// Calls of the node that wait for the network's task.
const MAX_COMMANDS: usize = 256;

/// What comes in.
#[derive(Debug)]
pub enum Event {
    /// Somebody told everyone something.
    Gossip {
        /// Who wrote it: its signature is verified, and it is one of the peers. Not necessarily who
        /// passed it on.
        from: PeerKey,
        /// At most [`MAX_GOSSIP_BYTES`].
        data: Vec<u8>,
    },
    /// A peer wants an answer, within [`ASK_TIMEOUT`].
    Ask {
        /// The peer on the other end of the connection.
        from: PeerKey,
        /// At most [`MAX_ASK_BYTES`].
        data: Vec<u8>,
        /// Takes the answer; dropping it tells the peer that there is none.
        reply: Reply,
    },
    /// A peer can be talked to: there is a connection, and it speaks this version for this network.
    Connected(PeerKey),
    /// It can't any more.
    Disconnected(PeerKey),
}

/// Where the answer to a question goes.
#[derive(Debug)]
pub struct Reply {
    pub(crate) answer: oneshot::Sender<Answer>,
    /// The question's share of memory, held until it is answered.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

impl Reply {
    /// Answers. An answer above [`MAX_ASK_BYTES`] becomes [`Refusal::AnswerTooLarge`]; an asker who has
    /// gone away does not matter.
    #[track_caller]
    pub fn send(self, data: Vec<u8>) {
        let place = Location::caller();
        failpoint::before(Deed::Send, place);
        let answer = if data.len() > MAX_ASK_BYTES {
            Err(Refusal::AnswerTooLarge)
        } else {
            Ok(data)
        };
        let _ = self.answer.send(answer);
        failpoint::after(Deed::Send, place);
    }

    /// Tells the asker that it must wait.
    pub fn refuse(self, refusal: Refusal) {
        let _ = self.answer.send(Err(refusal));
    }
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Above [`MAX_GOSSIP_BYTES`].
    #[error("message of {0} bytes, the bound is {MAX_GOSSIP_BYTES}")]
    TooLarge(usize),
    /// Faster than the others would take it.
    #[error("published more than the others accept from one author")]
    TooFast,
    /// Nobody is connected.
    #[error("no peer is connected")]
    NoPeers,
    /// All connections are busy.
    #[error("all connections are busy")]
    Busy,
    /// The network has been shut down.
    #[error("the network is shut down")]
    ShutDown,
    /// Anything else that libp2p reports.
    #[error("publishing failed: {0}")]
    Failed(String),
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Not one of the peers this network was started with.
    #[error("{0} is not a peer")]
    UnknownPeer(PeerKey),
    /// Above [`MAX_ASK_BYTES`].
    #[error("question of {0} bytes, the bound is {MAX_ASK_BYTES}")]
    TooLarge(usize),
    /// Newer questions to this peer have taken its place among those that wait.
    #[error("too many newer questions wait for this peer")]
    TooMany,
    /// No connection, or none free, within [`ASK_WAIT`].
    #[error("the peer could not be reached within {} s", ASK_WAIT.as_secs())]
    NotConnected,
    /// No answer within [`ASK_TIMEOUT`]. It may have been acted upon.
    #[error("no answer within {} s", ASK_TIMEOUT.as_secs())]
    Timeout,
    /// The peer says why not.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The connection broke, or the peer broke the protocol. It may have been acted upon.
    #[error("asking failed: {0}")]
    Failed(String),
    /// The network has been shut down.
    #[error("the network is shut down")]
    ShutDown,
}

/// What becomes of a question.
pub(crate) type AskOutcome = Result<Vec<u8>, AskError>;

pub(crate) enum Command {
    Publish {
        data: Vec<u8>,
        done: oneshot::Sender<Result<(), PublishError>>,
    },
    Ask {
        peer: PeerKey,
        data: Vec<u8>,
        answer: oneshot::Sender<AskOutcome>,
    },
    ShutDown,
}

/// What the handle can read without asking the network's task.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub counters: Counters,
    connected: Mutex<BTreeSet<PeerKey>>,
    listening: Mutex<BTreeSet<String>>,
    peers: Mutex<Vec<PeerStatus>>,
}

impl Board {
    pub fn connected(&self) -> MutexGuard<'_, BTreeSet<PeerKey>> {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn listening(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peers(&self) -> MutexGuard<'_, Vec<PeerStatus>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running network. Clones share it; it ends with [`Network::shutdown`] or the last clone.
#[derive(Clone, Debug)]
pub struct Network {
    commands: mpsc::Sender<Command>,
    board: Arc<Board>,
    stopped: watch::Receiver<bool>,
}

/// Listens, starts to call the peers, and returns when all listeners are up.
///
/// # Errors
/// [`StartError`] says which setting is wrong, or where the system does not let us listen.
pub async fn start(
    identity: &Identity,
    settings: &Settings,
) -> Result<(Network, Events), StartError> {
    let names = Names::new(&settings.network)?;
    let own = identity.public();
    let roster = Roster::new(own, &settings.peers)?;
    let listen = settings
        .listen
        .iter()
        .map(|text| listen_address(text))
        .collect::<Result<Vec<_>, _>>()?;
    let swarm = behaviour::swarm(identity, &roster, &names, settings.heartbeat)?;
    let (commands, command_receiver) = mpsc::channel(MAX_COMMANDS);
    let (stop, stopped) = watch::channel(false);
    let mut event_loop = EventLoop::new(
        swarm,
        own,
        roster,
        names,
        settings.heartbeat,
        command_receiver,
    );
    event_loop.listen(listen).await?;
    let (board, events) = (event_loop.board(), event_loop.inbox().events());
    tokio::spawn(async move {
        event_loop.run().await;
        drop(event_loop);
        let _ = stop.send(true);
    });
    Ok((
        Network {
            commands,
            board,
            stopped,
        },
        events,
    ))
}

impl Network {
    /// Tells everyone. The same bytes again within [`crate::DUPLICATE_WINDOW`] are not sent again.
    /// Arrival is not guaranteed: whoever needs that asks each peer.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was sent.
    #[track_caller]
    pub fn publish(
        &self,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<(), PublishError>> + use<'_> {
        let place = Location::caller();
        async move {
            if data.len() > MAX_GOSSIP_BYTES {
                return Err(PublishError::TooLarge(data.len()));
            }
            failpoint::before(Deed::Send, place);
            let (done, result) = oneshot::channel();
            let command = Command::Publish { data, done };
            self.commands
                .send(command)
                .await
                .map_err(|_| PublishError::ShutDown)?;
            let outcome = result.await.map_err(|_| PublishError::ShutDown)?;
            failpoint::after(Deed::Send, place);
            outcome
        }
    }

    /// Asks one peer, waiting up to [`ASK_WAIT`] for a connection and [`ASK_TIMEOUT`] for the answer.
    ///
    /// # Errors
    /// [`AskError`]; see its variants for whether the peer may have acted.
    #[track_caller]
    pub fn ask(
        &self,
        peer: PeerKey,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, AskError>> + use<'_> {
        let place = Location::caller();
        async move {
            if data.len() > MAX_ASK_BYTES {
                return Err(AskError::TooLarge(data.len()));
            }
            failpoint::before(Deed::Send, place);
            let (answer, result) = oneshot::channel();
            let command = Command::Ask { peer, data, answer };
            self.commands
                .send(command)
                .await
                .map_err(|_| AskError::ShutDown)?;
            let outcome = result.await.map_err(|_| AskError::ShutDown)?;
            failpoint::after(Deed::Send, place);
            outcome
        }
    }

    /// The peers that can be talked to, in the order of their keys.
    pub fn connected(&self) -> Vec<PeerKey> {
        self.board.connected().iter().copied().collect()
    }

    /// How it stands with every peer, in the order of their keys, as of a moment ago.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.board.peers().clone()
    }

    /// Where we listen, with the ports that the system chose, as multiaddresses.
    pub fn listen_addresses(&self) -> Vec<String> {
        self.board.listening().iter().cloned().collect()
    }

    /// What was refused or lost so far.
    pub fn counts(&self) -> Counts {
        self.board.counters.snapshot()
    }

    /// Closes all connections and returns when the ports are free again.
    pub async fn shutdown(&self) {
        let _ = self.commands.send(Command::ShutDown).await;
        let mut stopped = self.stopped.clone();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}
