//! Where a follower stands on the chain: the last blocks that its owner has taken in.

use std::collections::VecDeque;

use bitcoin::BlockHash;
use serde::{Deserialize, Serialize};

use crate::rpc::BlockRef;

/// Hashes kept, hence the deepest reorganisation that can be followed. Bitcoin has not seen one of
/// 100 since 2010, and no vault counts on fewer confirmations than its parameters say.
pub const MAX_HASHES: usize = 1_000;

/// The next height to take in, and the hashes of the last blocks that were, oldest first.
///
/// A value: the caller stores it together with what it derived from the block, in one write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Position {
    start: u32,
    next: u32,
    hashes: VecDeque<BlockHash>,
}

/// Why a stored position, or a change to one, makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// More hashes than a position keeps.
    #[error("a position has at most {MAX_HASHES} hashes, not {0}")]
    TooMany(usize),
    /// The hashes do not fill the heights from the start, or the newest of them.
    #[error("a position from height {start} to {next} cannot have {hashes} hashes")]
    Inconsistent {
        /// First height taken in.
        start: u32,
        /// Next height to take in.
        next: u32,
        /// Hashes kept.
        hashes: usize,
    },
    /// No height is left.
    #[error("no block follows height {0}")]
    Exhausted(u32),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    start: u32,
    next: u32,
    hashes: Vec<BlockHash>,
}

impl Position {
    /// Before the block at `height`, which will be the first one taken in. A reorganisation below
    /// it is of no interest.
    #[must_use]
    pub fn starting_at(height: u32) -> Self {
        Self {
            start: height,
            next: height,
            hashes: VecDeque::new(),
        }
    }

    /// First height that was, or will be, taken in.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Next height to take in.
    #[must_use]
    pub fn next_height(&self) -> u32 {
        self.next
    }

    /// The last block taken in, if any is remembered.
    #[must_use]
    pub fn tip(&self) -> Option<BlockRef> {
        let hash = *self.hashes.back()?;
        let height = self.next.checked_sub(1)?;
        Some(BlockRef { height, hash })
    }

    /// The remembered block at `height`.
    #[must_use]
    pub fn hash_at(&self, height: u32) -> Option<BlockHash> {
        let index = height.checked_sub(self.oldest())?;
        self.hashes.get(usize::try_from(index).ok()?).copied()
    }

    /// Remembered blocks, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = BlockRef> + '_ {
        let heights = (self.oldest()..self.next).rev();
        heights
            .zip(self.hashes.iter().rev())
            .map(|(height, hash)| BlockRef {
                height,
                hash: *hash,
            })
    }

    /// Lowest remembered height; the next height if none is.
    #[must_use]
    pub fn oldest(&self) -> u32 {
        let kept = u32::try_from(self.hashes.len()).unwrap_or(u32::MAX);
        self.next.saturating_sub(kept)
    }

    /// Whether blocks that were taken in have been forgotten for lack of room.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.oldest() > self.start
    }

    /// The position after one more block.
    pub(crate) fn connected(&self, hash: BlockHash) -> Result<Self, PositionError> {
        let mut position = self.clone();
        position.next = self
            .next
            .checked_add(1)
            .ok_or(PositionError::Exhausted(self.next))?;
        if position.hashes.len() >= MAX_HASHES {
            position.hashes.pop_front();
        }
        position.hashes.push_back(hash);
        Ok(position)
    }

    /// The position before its last block, and that block; `None` if no block is remembered.
    pub(crate) fn disconnected(&self) -> Option<(Self, BlockRef)> {
        let block = self.tip()?;
        let mut position = self.clone();
        position.hashes.pop_back();
        position.next = block.height;
        Some((position, block))
    }
}

impl From<Position> for Stored {
    fn from(position: Position) -> Self {
        Self {
            start: position.start,
            next: position.next,
            hashes: position.hashes.into(),
        }
    }
}

impl TryFrom<Stored> for Position {
    type Error = PositionError;

    fn try_from(stored: Stored) -> Result<Self, PositionError> {
        let hashes = stored.hashes.len();
        if hashes > MAX_HASHES {
            return Err(PositionError::TooMany(hashes));
        }
        // A reorganisation after some were forgotten may leave few hashes, but never more than
        // the heights since the start.
        let taken_in = stored.next.checked_sub(stored.start);
        let fits = taken_in
            .and_then(|heights| usize::try_from(heights).ok())
            .is_some_and(|heights| hashes <= heights);
        if !fits {
            return Err(PositionError::Inconsistent {
                start: stored.start,
                next: stored.next,
                hashes,
            });
        }
        Ok(Self {
            start: stored.start,
            next: stored.next,
            hashes: stored.hashes.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash;

    use super::*;

    fn hash(n: u32) -> BlockHash {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        BlockHash::from_byte_array(bytes)
    }

    fn grown(start: u32, blocks: u32) -> Position {
        (start..start + blocks).fold(Position::starting_at(start), |position, height| {
            position.connected(hash(height)).unwrap()
        })
    }

    #[test]
    fn it_remembers_the_last_thousand_blocks() {
        let position = grown(5, 1_200);
        assert_eq!(position.tip().unwrap().height, 1_204);
        assert_eq!(position.oldest(), 205);
        assert_eq!(position.hash_at(205), Some(hash(205)));
        assert_eq!(position.hash_at(204), None);
        assert_eq!(position.hash_at(1_205), None);
        assert_eq!(position.newest_first().count(), MAX_HASHES);
        assert!(position.has_forgotten());
        assert!(!grown(5, 1_000).has_forgotten());
    }

    #[test]
    fn disconnecting_undoes_connecting() {
        let before = grown(7, 2);
        let (after, block) = before.connected(hash(9)).unwrap().disconnected().unwrap();
        assert_eq!(after, before);
        assert_eq!((block.height, block.hash), (9, hash(9)));
        assert_eq!(Position::starting_at(7).disconnected(), None);
    }

    #[test]
    fn newest_first_pairs_heights_with_their_hashes() {
        let seen: Vec<_> = grown(3, 3)
            .newest_first()
            .map(|b| (b.height, b.hash))
            .collect();
        assert_eq!(seen, [(5, hash(5)), (4, hash(4)), (3, hash(3))]);
    }

    #[test]
    fn it_survives_being_stored_and_nonsense_does_not() {
        let position = grown(5, 20);
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
        for nonsense in [
            r#"{"start":5,"next":4,"hashes":[]}"#,
            r#"{"start":5,"next":5,"hashes":["0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"]}"#,
            r#"{"start":5,"next":5,"hashes":[],"more":1}"#,
        ] {
            assert!(
                serde_json::from_str::<Position>(nonsense).is_err(),
                "{nonsense}"
            );
        }
    }
}
