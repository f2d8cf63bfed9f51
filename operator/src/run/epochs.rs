//! Which epoch of shares the other operators hold. A share that was restored from a backup older than a refresh looks
//! whole, and combines with nobody's: the operator should say so itself, and not leave it to failing signatures.

use protocol::{
    identity::PeerKey,
    message::{Answer, Ask},
};
use threshold::GroupInfo;

use super::{Event, Node};

impl Node {
    /// Asks the connected operators, now and then.
    pub(super) fn ask_epochs(&self) {
        if self.safe.is_none() {
            return;
        }
        for peer in self.peers.operators() {
            let peers = self.peers.clone();
            self.spawn(async move {
                match peers.ask(peer, &Ask::Group).await {
                    Ok(Answer::Group(Some(group))) => Some(Event::Group(peer, group)),
                    _ => None,
                }
            });
        }
    }

    /// A peer shows its group.
    pub(super) fn take_group(&mut self, peer: PeerKey, group: &GroupInfo) {
        let is_ours = self
            .key
            .as_ref()
            .is_some_and(|key| key.group().group_key() == group.group_key());
        if !is_ours {
            return;
        }
        let before = self.outdated_share();
        self.epochs.insert(peer, group.epoch());
        match self.outdated_share() {
            Some(reason) if before.is_none() => {
                tracing::error!(%reason, "the key share is out of date")
            }
            _ => {}
        }
    }

    /// Why this share is of no use any more.
    pub(super) fn outdated_share(&self) -> Option<String> {
        let group = self.key.as_ref()?.group();
        let own = group.epoch();
        let (epoch, holders) = later_epoch(own, group.threshold(), self.epochs.values())?;
        Some(format!(
            "the key share is of epoch {own}, and {holders} operators hold shares of epoch {epoch} or later: it comes \
             from a backup made before a refresh. Shares of two epochs do not combine; have this one repaired"
        ))
    }
}

/// The highest epoch after `own` that t operators say to have reached, so that one of them at least is honest; and how
/// many say so.
fn later_epoch<'a>(
    own: u32,
    threshold: u16,
    epochs: impl Iterator<Item = &'a u32>,
) -> Option<(u32, usize)> {
    let mut later: Vec<u32> = epochs.copied().filter(|epoch| *epoch > own).collect();
    later.sort_unstable_by(|a, b| b.cmp(a));
    let last_needed = usize::from(threshold).saturating_sub(1);
    Some((*later.get(last_needed)?, later.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_out_of_date_when_t_operators_say_so_and_not_before() {
        let at = |own, epochs: &[u32]| later_epoch(own, 3, epochs.iter());
        assert_eq!(at(0, &[]), None);
        assert_eq!(at(0, &[9, 9, 0, 0]), None, "two could be lying");
        assert_eq!(at(0, &[9, 9, 1, 0]), Some((1, 3)));
        assert_eq!(at(0, &[2, 1, 2, 2]), Some((2, 4)));
        assert_eq!(at(2, &[2, 1, 2, 2]), None);
    }
}
