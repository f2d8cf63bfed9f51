//! What the protocols are called on the wire. Version and network are part of each name, so that nodes of two
//! versions or vaults that meet can't talk by mistake; identify, which every libp2p node speaks, says which it
//! is, so that both can tell their operators why not.

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
    /// What identify says that we are: `/drawbridge/VERSION/NETWORK`, where the version is a number or, of a node
    /// that speaks several, a range such as `1-2`.
    pub node: String,
    network: String,
}

/// Why a peer can't be talked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    /// A later protocol.
    #[error("it speaks version {0}, this node speaks {PROTOCOL_VERSION}: upgrade this node")]
    Newer(u32),
    /// An earlier protocol.
    #[error("it speaks version {0}, this node speaks {PROTOCOL_VERSION}: it must be upgraded")]
    Older(u32),
    /// The same protocol, other settings.
    #[error(
        "it is of another vault or roster (network {theirs}, this node's is {ours}): compare roster and parameters"
    )]
    Network {
        /// Shortened for people.
        theirs: String,
        /// Shortened for people.
        ours: String,
    },
    /// Something else altogether.
    #[error("it is no Drawbridge node: it calls itself \"{0}\"")]
    Unknown(String),
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
            network: network.to_owned(),
        })
    }

    /// Whether a peer that calls itself so through identify can be talked to, and in which version.
    pub(crate) fn agree(&self, theirs: &str) -> Result<u32, Mismatch> {
        let unknown = || Mismatch::Unknown(printable(theirs));
        let said = theirs.strip_prefix("/drawbridge/").ok_or_else(unknown)?;
        let (versions, network) = said.split_once('/').ok_or_else(unknown)?;
        let (oldest, newest) = versions.split_once('-').unwrap_or((versions, versions));
        let number = |text: &str| text.parse::<u32>().map_err(|_| unknown());
        let (oldest, newest) = (number(oldest)?, number(newest)?);
        if oldest > PROTOCOL_VERSION {
            return Err(Mismatch::Newer(oldest));
        }
        if newest < PROTOCOL_VERSION {
            return Err(Mismatch::Older(newest));
        }
        if network != self.network {
            let short = |name: &str| printable(name).chars().take(12).collect();
            return Err(Mismatch::Network {
                theirs: short(network),
                ours: short(&self.network),
            });
        }
        Ok(PROTOCOL_VERSION)
    }
}

/// What a peer says of itself, fit for a log and a page: a few ASCII characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(MAX_NETWORK_CHARS)
        .collect()
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

    #[test]
    fn a_peer_of_another_version_or_network_is_told_apart() {
        let names = Names::new("regtest-0a1b").unwrap();
        for fits in [
            names.node.as_str(),
            "/drawbridge/1-3/regtest-0a1b",
            "/drawbridge/0-1/regtest-0a1b",
        ] {
            assert_eq!(names.agree(fits), Ok(PROTOCOL_VERSION), "{fits}");
        }
        let why = |theirs: &str| names.agree(theirs).unwrap_err().to_string();
        assert_eq!(
            why("/drawbridge/2/regtest-0a1b"),
            "it speaks version 2, this node speaks 1: upgrade this node"
        );
        assert_eq!(
            why("/drawbridge/0/regtest-0a1b"),
            "it speaks version 0, this node speaks 1: it must be upgraded"
        );
        assert!(why("/drawbridge/1/signet-9f").starts_with("it is of another vault or roster"));
        for odd in [
            "",
            "ipfs/1.0.0",
            "/drawbridge/x/regtest-0a1b",
            "/drawbridge/1",
        ] {
            assert!(why(odd).starts_with("it is no Drawbridge node"), "{odd}");
        }
        let long = "\u{1b}[31m".to_owned() + &"x".repeat(5_000);
        assert!(why(&long).len() < 200 && !why(&long).contains('\u{1b}'));
    }
}
