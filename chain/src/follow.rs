//! Follows the node's best chain, block by block, from a position that the caller stores.
//!
//! ```text
//!                 +--> Disconnected(tip) ...  while the node's chain has another block there
//! Position --> Follower
//!     ^           +--> Connected(next) ...    while the node's chain goes on
//!     |                     |
//!     +--- stored with what the caller derives from the block
//! ```
//!
//! The node's chain is the truth; its long poll only says when to look. A node that is down, or
//! has fallen behind what was seen already, is waited for. A reorganisation deeper than the
//! position's memory is an error that somebody has to look at.

use std::time::Duration;

use bitcoin::{Block, BlockHash, Network};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::position::{Position, PositionError};
use crate::rpc::{BitcoinRpc, ChainInfo, RpcError, code};

/// First pause after the node did not answer; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a silent node is asked again.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long one long poll waits at the node. Bounds how late a change is noticed that does not
/// make the chain longer.
const LONG_POLL: Duration = Duration::from_secs(5);
/// Pause between looks at a node that has no long poll.
const PLAIN_POLL: Duration = Duration::from_secs(1);

/// What happened to the best chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEvent {
    /// The next block.
    Connected {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
        /// Its content, checked against the hash.
        block: Box<Block>,
    },
    /// The last block is no longer part of the best chain.
    Disconnected {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
        /// Its content, checked against the hash, if the node has it still: what it holds may never come back.
        block: Option<Box<Block>>,
    },
}

/// An event, and the position to store with what is derived from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happened.
    pub event: ChainEvent,
    /// Where the follower stands after it.
    pub position: Position,
}

/// What the follower last saw of its node, for readiness and for rules that need a fresh view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Whether the last look succeeded.
    pub reachable: bool,
    /// Height of the node's best chain at the last look that succeeded.
    pub blocks: u32,
    /// Height of the node's best header, likewise.
    pub headers: u32,
    /// Time in the last block of the node's best chain, in seconds since 1970, likewise.
    pub tip_time: u64,
    /// Whether the node was still catching up with the network.
    pub initial_block_download: bool,
}

/// Why following cannot go on. None of these passes by waiting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The node refuses us, is on another network, or gives unusable replies.
    #[error("bitcoind cannot be followed")]
    Rpc(#[from] RpcError),
    /// The best chain left ours before the oldest block remembered.
    #[error(
        "the chain was reorganised deeper than the {remembered} blocks remembered, below height {oldest}"
    )]
    TooDeep {
        /// Blocks remembered.
        remembered: usize,
        /// Lowest height remembered.
        oldest: u32,
    },
    /// The node has pruned a block that must be taken in.
    #[error("bitcoind has pruned block {hash} at height {height}; it must keep more blocks")]
    Pruned {
        /// The block's height.
        height: u32,
        /// The block's hash.
        hash: BlockHash,
    },
    /// The position cannot advance.
    #[error("the position on the chain cannot change")]
    Position(#[from] PositionError),
}

/// Follows one node from a position on.
#[derive(Debug)]
pub struct Follower {
    rpc: BitcoinRpc,
    network: Network,
    position: Position,
    /// Blocks at this height and above are to be disconnected.
    unwind_to: Option<u32>,
    /// Whether this connection's network has been checked; again after each failure.
    checked: bool,
    /// Whether the node was last seen with a chain shorter than what it showed before.
    behind: bool,
    long_poll: bool,
    retry: Duration,
    status: watch::Sender<NodeStatus>,
}

/// What one look at the node gave.
enum Look {
    Step(Step),
    AtTip,
    Again,
}

impl Follower {
    /// A follower of `rpc`'s node on `network`, to go on from `position`.
    #[must_use]
    pub fn new(rpc: BitcoinRpc, network: Network, position: Position) -> Self {
        Self {
            rpc,
            network,
            position,
            unwind_to: None,
            checked: false,
            behind: false,
            long_poll: true,
            retry: RETRY_MIN,
            status: watch::Sender::new(NodeStatus::default()),
        }
    }

    /// Where the follower stands: after the last step that was returned.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The node's state as last seen.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<NodeStatus> {
        self.status.subscribe()
    }

    /// Waits for the next event. While the node is down it warns and tries again, more and more
    /// slowly. May be dropped at any time without losing an event.
    ///
    /// # Errors
    /// See [`FollowError`]; the position is left as it was, so a later call tries the same again.
    pub async fn next(&mut self) -> Result<Step, FollowError> {
        loop {
            match self.try_next().await {
                Ok(Some(step)) => return Ok(step),
                Ok(None) => match self.wait_for_change().await {
                    Err(error) if error.is_transient() => self.pause(&error).await,
                    result => result?,
                },
                Err(FollowError::Rpc(error)) if error.is_transient() => self.pause(&error).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// The next event if there is one now; `None` at the tip, or if the node is behind us.
    ///
    /// # Errors
    /// As [`Follower::next`], and those of a node that is down.
    pub async fn try_next(&mut self) -> Result<Option<Step>, FollowError> {
        loop {
            let look = match self.look().await {
                Ok(look) => look,
                Err(error) => {
                    self.lost();
                    return Err(error);
                }
            };
            if self.retry > RETRY_MIN {
                info!("bitcoind answers again");
                self.retry = RETRY_MIN;
            }
            match look {
                Look::Step(step) => {
                    self.position = step.position.clone();
                    return Ok(Some(step));
                }
                Look::AtTip => return Ok(None),
                Look::Again => {}
            }
        }
    }

    async fn look(&mut self) -> Result<Look, FollowError> {
        if !self.checked {
            self.rpc.check_network(self.network).await?;
            self.checked = true;
        }
        if let Some(step) = self.unwind().await? {
            return Ok(Look::Step(step));
        }
        let info = self.rpc.chain_info().await?;
        self.note(&info);
        if let Some(fork) = self.find_fork(&info).await? {
            self.unwind_to = Some(fork);
            return Ok(Look::Again);
        }
        if info.blocks < self.position.next_height() {
            return Ok(Look::AtTip);
        }
        self.connect_next().await
    }

    /// Disconnects one block of a reorganisation that was found.
    async fn unwind(&mut self) -> Result<Option<Step>, FollowError> {
        let Some(first) = self.unwind_to else {
            return Ok(None);
        };
        if self.position.next_height() <= first {
            self.unwind_to = None;
            return Ok(None);
        }
        let Some((position, block)) = self.position.disconnected() else {
            return Err(self.too_deep());
        };
        let content = match self.rpc.block(block.hash).await {
            Ok(content) => Some(Box::new(content)),
            Err(error) if error.is_transient() => return Err(error.into()),
            // Another node than the one that has shown it, or a pruned one.
            Err(error) => {
                info!(height = block.height, %error, "the block that left the chain is not to be had");
                None
            }
        };
        let event = ChainEvent::Disconnected {
            height: block.height,
            hash: block.hash,
            block: content,
        };
        Ok(Some(Step { event, position }))
    }

    /// The lowest of our heights where the node's best chain has another block; `None` if it has
    /// none, or is merely shorter than ours: a restored or reindexing node catches up again.
    async fn find_fork(&mut self, info: &ChainInfo) -> Result<Option<u32>, FollowError> {
        let position = &self.position;
        let Some(tip) = position.tip() else {
            // A stored position that has been unwound to the end of its memory.
            return if position.has_forgotten() {
                Err(self.too_deep())
            } else {
                Ok(None)
            };
        };
        let compared = tip.height.min(info.blocks);
        // Below our memory there is nothing to compare; wait until there is.
        let behind = compared < tip.height
            && (compared < position.oldest()
                || position.hash_at(compared) == Some(info.best_block));
        if behind && !self.behind {
            warn!(
                node = info.blocks,
                seen = tip.height,
                "bitcoind is behind what it showed before; waiting for it to catch up"
            );
        }
        self.behind = behind;
        if behind {
            return Ok(None);
        }
        let position = &self.position;
        let mut fork = None;
        for ours in position.newest_first().filter(|b| b.height <= compared) {
            if self.rpc.block_hash_at(ours.height).await? == Some(ours.hash) {
                return Ok(fork);
            }
            fork = Some(ours.height);
        }
        if position.has_forgotten() {
            return Err(self.too_deep());
        }
        warn!(
            from = position.oldest(),
            "every block seen so far was reorganised away"
        );
        Ok(fork)
    }

    async fn connect_next(&self) -> Result<Look, FollowError> {
        let height = self.position.next_height();
        let Some(hash) = self.rpc.block_hash_at(height).await? else {
            return Ok(Look::Again);
        };
        let block = match self.rpc.block(hash).await {
            Ok(block) => block,
            // "Block not available (pruned data)" comes with the code of any other failure.
            Err(RpcError::Rpc { message, .. }) if message.contains("pruned") => {
                return Err(FollowError::Pruned { height, hash });
            }
            Err(error) => return Err(error.into()),
        };
        let parent = self.position.tip().map(|tip| tip.hash);
        if parent.is_some_and(|parent| parent != block.header.prev_blockhash) {
            // The chain changed between two calls.
            return Ok(Look::Again);
        }
        let position = self.position.connected(hash)?;
        let event = ChainEvent::Connected {
            height,
            hash,
            block: Box::new(block),
        };
        Ok(Look::Step(Step { event, position }))
    }

    /// Waits until the chain is longer than ours or a poll's time is over. Any reply is only a
    /// reason to look.
    async fn wait_for_change(&mut self) -> Result<(), RpcError> {
        if self.long_poll {
            let height = self.position.next_height();
            match self.rpc.wait_for_height(height, LONG_POLL).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(code::METHOD_NOT_FOUND) => {
                    warn!("this bitcoind has no long polling; asking it every second");
                    self.long_poll = false;
                }
                Err(error) => return Err(error),
            }
        }
        tokio::time::sleep(PLAIN_POLL).await;
        Ok(())
    }

    async fn pause(&mut self, error: &RpcError) {
        self.lost();
        warn!(
            error = error as &dyn std::error::Error,
            "no bitcoind; trying again in {} ms",
            self.retry.as_millis()
        );
        let pause = self.retry;
        // Before the await: a caller that drops this future must still see slower tries.
        self.retry = self.retry.saturating_mul(2).min(RETRY_MAX);
        tokio::time::sleep(pause).await;
    }

    /// The next look must check the network again: another node may answer.
    fn lost(&mut self) {
        self.checked = false;
        self.status.send_if_modified(|status| {
            let changed = status.reachable;
            status.reachable = false;
            changed
        });
    }

    fn note(&self, info: &ChainInfo) {
        let status = NodeStatus {
            reachable: true,
            blocks: info.blocks,
            headers: info.headers,
            tip_time: info.time,
            initial_block_download: info.initial_block_download,
        };
        self.status.send_if_modified(|kept| {
            let changed = *kept != status;
            *kept = status;
            changed
        });
    }

    fn too_deep(&self) -> FollowError {
        FollowError::TooDeep {
            remembered: self.position.newest_first().count(),
            oldest: self.position.oldest(),
        }
    }
}
