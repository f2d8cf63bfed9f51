//! What the protocols are called on the wire. The network is part of each name: nodes of two vaults
//! that meet do not understand one another.

use libp2p::{StreamProtocol, gossipsub::IdentTopic};

use crate::{PROTOCOL_VERSION, settings::StartError};

/// Longest network name.
const MAX_NETWORK_CHARS: usize = 64;

/// The names of one network's protocols.
#[derive(Clone, Debug)]
pub struct Names {
    /// The one gossip topic.
    pub topic: IdentTopic,
    /// Prefix of gossipsub's protocol.
    pub gossip: String,
    /// Questions and answers.
    pub ask: StreamProtocol,
    /// What identify says that we are.
    pub node: String,
}

impl Names {
    /// The names for a network called `network`: 1 to 64 letters, digits, `-`, `_` or `.`.
    ///
    /// # Errors
    /// [`StartError::NetworkName`] for any other name.
    pub fn new(network: &str) -> Result<Self, StartError> {
        let bad = || StartError::NetworkName(network.chars().take(MAX_NETWORK_CHARS).collect());
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !(1..=MAX_NETWORK_CHARS).contains(&network.len()) || !network.chars().all(is_allowed) {
            return Err(bad());
        }
        let base = format!("/drawbridge/{PROTOCOL_VERSION}/{network}");
        Ok(Self {
            topic: IdentTopic::new(format!("{base}/all")),
            gossip: format!("{base}/gossip"),
            ask: StreamProtocol::try_from_owned(format!("{base}/ask")).map_err(|_| bad())?,
            node: base,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_version_and_network_and_refuse_odd_ones() {
        let names = Names::new("regtest-0a1b").unwrap();
        assert_eq!(names.ask.as_ref(), "/drawbridge/1/regtest-0a1b/ask");
        for bad in ["", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
            assert!(
                matches!(Names::new(bad), Err(StartError::NetworkName(_))),
                "{bad}"
            );
        }
    }
}
