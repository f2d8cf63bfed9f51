//! What an operator waits for that does not know what it has promised (S7).

use bitcoin::OutPoint;
use ledger::SequenceNumber;
use serde::{Deserialize, Serialize};

use super::{Effect, State};
use crate::message::{Refusal, Rule};

/// What an operator waits for that holds a share without the promises that were made with it, because it was
/// restored from a backup or repaired (S7). It may have signed a batch that it knows nothing of, so it signs none that
/// could compete with that one. Its genesis promise is lost too; there the other n - 1 stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Quarantine {
    /// The chain has not been followed to a tip that is younger than the loss: what may have been promised is not
    /// known yet. A node that has lost its connections believes that an old tip is the latest.
    Syncing {
        /// When the loss was noticed, in Unix ms.
        lost_ms: u64,
    },
    /// A promise may exist for the batch after this one, made at this height at the latest.
    Since {
        /// Sequence number of the latest batch at the tip.
        sequence: SequenceNumber,
        /// Its treasury.
        treasury: OutPoint,
        /// The tip's height.
        height: u32,
    },
}

impl State {
    /// From here on the quarantine can be measured, if this tip is later than everything that was lost: what was
    /// promised before the loss was promised on this treasury or on an earlier one, at this height or below.
    pub(super) fn caught_up(&mut self, tip_time: u64) -> Vec<Effect> {
        let (Some(Quarantine::Syncing { lost_ms }), Some(head)) = (self.quarantine, self.head)
        else {
            return Vec::new();
        };
        if tip_time.saturating_mul(1_000) <= lost_ms {
            return Vec::new();
        }
        let began = Quarantine::Since {
            sequence: head.commitment.sequence,
            treasury: head.outpoint,
            height: self.height,
        };
        self.quarantine = Some(began);
        vec![Effect::Quarantined(began)]
    }

    /// The quarantine, while it keeps the next batch from being signed.
    pub fn quarantined(&self) -> Option<Quarantine> {
        self.quarantine.filter(|quarantine| match quarantine {
            Quarantine::Syncing { .. } => true,
            Quarantine::Since {
                sequence, height, ..
            } => {
                let spent = self
                    .head
                    .is_some_and(|head| head.commitment.sequence > *sequence);
                !spent && self.height < height.saturating_add(self.replacement_delay)
            }
        })
    }

    pub(super) fn check_quarantine(&self) -> Result<(), Refusal> {
        let why = "this operator was restored or repaired, and may have signed a batch that it does not know";
        match self.quarantined() {
            None => Ok(()),
            Some(Quarantine::Syncing { .. }) => Err(Refusal::new(
                Rule::S7,
                format!(
                    "{why}; it signs nothing before it has followed the chain to a block that is younger than that"
                ),
            )),
            Some(Quarantine::Since {
                treasury, height, ..
            }) => {
                let end = height.saturating_add(self.replacement_delay);
                Err(Refusal::new(
                    Rule::S7,
                    format!(
                        "{why}; it spends {treasury} from height {end} on, in {} blocks, or goes on when another has",
                        end.saturating_sub(self.height)
                    ),
                ))
            }
        }
    }
}
