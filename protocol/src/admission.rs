//! Which messages a node takes at all. The first bytes tell the kind; the kind says who may send it, to whom, and how
//! long it may be. What does not fit is refused before anything of it is decoded (S12): decoding a message of commitments
//! costs a square root a point, and a stranger to that exchange shall not make this node pay for it.

use std::sync::Arc;

use ledger::VaultId;
use threshold::{
    GroupHead,
    sign::{MAX_MESSAGES, MAX_REQUEST_BYTES},
};

use crate::{
    batch::MAX_BODY_BYTES,
    identity::PeerKey,
    message::{MAX_NAMED, MAX_REASON_BYTES, MESSAGE_VERSION, MessageError, Refusal, Rule},
    roster::Roster,
};

/// A question that holds nothing but a few numbers and hashes, in bytes.
const SMALL: usize = 1024;
/// A candidate with all its top-ups, a genesis, a claim; what stands around something longer.
const HEAD: usize = 4 * 1024;
/// A pair of nonce commitments.
const PAIR: usize = 66;
/// The splits of a repair's helpers, with their signatures.
const SPLITS: usize = 1024 * 1024;
/// A signed transaction of the largest standard weight, which no byte of it exceeds.
const TRANSACTION: usize = 400_000;
/// A group without its verifying shares, and one of those with its signer.
const GROUP: usize = 512;
const GROUP_SHARE: usize = 128;

/// Some of the roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Anyone,
    Operators,
    Coordinators,
}

impl Who {
    fn has(self, roster: &Roster, key: &PeerKey) -> bool {
        match self {
            Self::Anyone => true,
            Self::Operators => roster.is_operator(key),
            Self::Coordinators => roster.is_coordinator(key),
        }
    }
}

/// A kind of message.
struct Kind {
    name: &'static str,
    by: Who,
    to: Who,
    max_bytes: usize,
}

const fn kind(name: &'static str, by: Who, to: Who, max_bytes: usize) -> Kind {
    Kind {
        name,
        by,
        to,
        max_bytes,
    }
}

/// The kinds of [`crate::message::Ask`], in its order.
const ASKS: [Kind; 20] = {
    use Who::{Anyone, Coordinators, Operators};
    [
        kind("dkg", Operators, Operators, SMALL),
        kind("group", Anyone, Anyone, SMALL),
        kind("genesis", Anyone, Anyone, SMALL),
        kind("body", Anyone, Anyone, SMALL),
        kind("keep", Operators, Operators, HEAD + MAX_BODY_BYTES),
        kind("batch", Anyone, Anyone, SMALL),
        kind(
            "accept",
            Operators,
            Coordinators,
            SMALL + PAIR * MAX_MESSAGES,
        ),
        kind(
            "refuse",
            Operators,
            Coordinators,
            SMALL + MAX_REASON_BYTES + 66 * MAX_NAMED,
        ),
        kind(
            "sign",
            Coordinators,
            Operators,
            64 * 1024 + MAX_REQUEST_BYTES,
        ),
        kind("attest", Anyone, Operators, SMALL),
        kind("epoch", Anyone, Anyone, SMALL),
        kind("refresh", Operators, Operators, SMALL),
        kind("repair", Operators, Operators, SPLITS),
        kind("delta", Operators, Operators, 64 * 1024),
        kind("signed", Anyone, Anyone, HEAD + TRANSACTION),
        kind("request", Coordinators, Anyone, HEAD),
        kind("requests", Anyone, Anyone, SMALL),
        kind("genesis-height", Anyone, Anyone, SMALL),
        kind("pool", Coordinators, Operators, SMALL),
        kind(
            "sign-pooled",
            Coordinators,
            Operators,
            HEAD + 64 * 1024 + MAX_REQUEST_BYTES,
        ),
    ]
};
/// The kind of gossip that holds a group.
const EPOCH: u8 = 3;
/// The kinds of [`crate::message::Gossip`], in its order.
const GOSSIP: [Kind; 4] = {
    use Who::{Anyone, Coordinators};
    [
        kind("proposal", Coordinators, Anyone, HEAD),
        kind("genesis", Anyone, Anyone, HEAD),
        kind("signed", Anyone, Anyone, HEAD + TRANSACTION),
        kind("epoch", Anyone, Anyone, usize::MAX),
    ]
};

/// Why a message is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Of another version.
    #[error(transparent)]
    Version(#[from] MessageError),
    /// Of no kind that this version knows.
    #[error("the encoding begins with no kind of message that this version knows")]
    Kind,
    /// The sender has no business with it.
    #[error("a {kind} message is for {by} to send")]
    Sender {
        /// The kind.
        kind: &'static str,
        /// Who sends it.
        by: &'static str,
    },
    /// This node has no business with it.
    #[error("{0}")]
    Recipient(&'static str),
    /// Longer than its kind can be.
    #[error("a {kind} message of {bytes} bytes; the bound is {max}")]
    Length {
        /// The kind.
        kind: &'static str,
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A group of another size than the roster.
    #[error("a group of {got} signers; the roster has {expected}")]
    Group {
        /// What it says.
        got: u64,
        /// What it must be.
        expected: usize,
    },
}

impl From<AdmissionError> for Refusal {
    fn from(error: AdmissionError) -> Self {
        Self::new(Rule::S12, error.to_string())
    }
}

/// Judges messages for one node.
#[derive(Clone, Debug)]
pub struct Admission {
    roster: Arc<Roster>,
    me: PeerKey,
}

impl Admission {
    /// For the node with that identity.
    pub fn new(roster: Arc<Roster>, me: PeerKey) -> Self {
        Self { roster, me }
    }

    /// Whether to decode these bytes as a question of `from`.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn ask(&self, from: &PeerKey, bytes: &[u8]) -> Result<(), AdmissionError> {
        self.judge(&ASKS, from, bytes).map(|_| ())
    }

    /// Whether to decode these bytes as gossip of `from`.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn gossip(&self, from: &PeerKey, bytes: &[u8]) -> Result<(), AdmissionError> {
        if self.judge(&GOSSIP, from, bytes)? != EPOCH {
            return Ok(());
        }
        let expected = self.roster.operators.len();
        let max = HEAD + GROUP + GROUP_SHARE * expected;
        if bytes.len() > max {
            return Err(AdmissionError::Length {
                kind: "epoch",
                bytes: bytes.len(),
                max,
            });
        }
        // A certificate begins with its vault and its group, and the group with how many it has.
        let certificate = bytes.get(2..).unwrap_or_default();
        let head = postcard::take_from_bytes::<(VaultId, GroupHead)>(certificate);
        let ((_, head), _) = head.map_err(|_| MessageError::Encoding)?;
        if u64::try_from(expected) != Ok(head.signers()) {
            return Err(AdmissionError::Group {
                got: head.signers(),
                expected,
            });
        }
        Ok(())
    }

    fn judge(&self, kinds: &[Kind], from: &PeerKey, bytes: &[u8]) -> Result<u8, AdmissionError> {
        let (tag, rest) = match bytes {
            [MESSAGE_VERSION, tag, rest @ ..] => (*tag, rest),
            [MESSAGE_VERSION] => return Err(MessageError::Encoding.into()),
            _ => return Err(MessageError::Version(bytes.first().copied()).into()),
        };
        let kind = kinds.get(usize::from(tag)).ok_or(AdmissionError::Kind)?;
        if !kind.to.has(&self.roster, &self.me) {
            return Err(AdmissionError::Recipient(match kind.to {
                Who::Coordinators => "this node is an operator; it coordinates nothing",
                Who::Anyone | Who::Operators => "a coordinator does not do this",
            }));
        }
        if !kind.by.has(&self.roster, from) {
            return Err(AdmissionError::Sender {
                kind: kind.name,
                by: match kind.by {
                    Who::Coordinators => "coordinators",
                    Who::Anyone | Who::Operators => "operators",
                },
            });
        }
        if rest.len() > kind.max_bytes {
            return Err(AdmissionError::Length {
                kind: kind.name,
                bytes: rest.len(),
                max: kind.max_bytes,
            });
        }
        Ok(tag)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        epoch::EpochClaim,
        message::{Ask, Gossip, SessionId, Subject, encode},
        roster::Member,
    };

    const OPERATOR: PeerKey = PeerKey([1; 32]);
    const COORDINATOR: PeerKey = PeerKey([9; 32]);

    fn member(key: PeerKey) -> Member {
        Member {
            name: format!("node-{}", key.0[0]),
            key,
            founding_key: None,
            addresses: vec![],
        }
    }

    fn at(me: PeerKey) -> Admission {
        let roster = Roster {
            threshold: 2,
            operators: [1, 2, 3].map(|n| member(PeerKey([n; 32]))).into(),
            coordinators: vec![member(COORDINATOR)],
            attestation: Default::default(),
        };
        Admission::new(Arc::new(roster), me)
    }

    fn sign() -> Vec<u8> {
        encode(&Ask::Sign {
            session: SessionId([7; 32]),
            epoch: 0,
            attempt: 1,
            commitments: BTreeMap::new(),
        })
    }

    fn sign_pooled() -> Vec<u8> {
        encode(&Ask::SignPooled {
            subject: Subject::Epoch(EpochClaim {
                vault: VaultId([0; 32]),
                epoch: 1,
                group: [0; 32],
            }),
            epoch: 0,
            attempt: 1,
            commitments: BTreeMap::new(),
        })
    }

    fn refuse() -> Vec<u8> {
        encode(&Ask::Refuse {
            session: SessionId([7; 32]),
            refusal: Refusal::new(Rule::S1, ""),
        })
    }

    #[test]
    fn every_kind_is_told_by_its_first_byte() {
        let asks = [
            (0, Ask::Dkg { context: [0; 32] }),
            (1, Ask::Group),
            (2, Ask::Genesis),
            (5, Ask::Batch(ledger::SequenceNumber(1))),
            (9, Ask::Attest { nonce: [0; 32] }),
            (10, Ask::Epoch),
            (16, Ask::Requests { after: None }),
            (17, Ask::GenesisHeight),
            (18, Ask::Pool { epoch: 0 }),
        ];
        for (tag, ask) in asks {
            assert_eq!(encode(&ask)[1], tag);
        }
        assert_eq!((refuse()[1], ASKS[7].name), (7, "refuse"));
        assert_eq!((sign()[1], ASKS[8].name), (8, "sign"));
        assert_eq!((sign_pooled()[1], ASKS[19].name), (19, "sign-pooled"));
        // No kind is left out: beyond the last, nothing decodes.
        for (count, tried) in [
            (ASKS.len(), decode_error::<Ask>(ASKS.len())),
            (GOSSIP.len(), decode_error::<Gossip>(GOSSIP.len())),
        ] {
            assert!(
                matches!(tried, postcard::Error::SerdeDeCustom),
                "a kind {count} is not in the table: {tried:?}"
            );
        }
    }

    /// What decoding the bare tag of a kind fails with: there is no such kind, or, if there is, its content is missing.
    fn decode_error<T: serde::de::DeserializeOwned>(tag: usize) -> postcard::Error {
        let tag = [u8::try_from(tag).unwrap()];
        match postcard::from_bytes::<T>(&tag) {
            Ok(_) => postcard::Error::WontImplement,
            Err(error) => error,
        }
    }

    #[test]
    fn only_a_coordinator_proposes_and_has_shares_made_and_only_operators_are_asked_to() {
        let operator = at(OPERATOR);
        operator.ask(&COORDINATOR, &sign()).unwrap();
        // The rest of the bytes does not matter: it is not read.
        let mut garbage = sign();
        garbage.truncate(2);
        garbage.extend([0xff; 1000]);
        operator.ask(&COORDINATOR, &garbage).unwrap();
        let by = operator.ask(&PeerKey([2; 32]), &sign_pooled()).unwrap_err();
        assert!(matches!(by, AdmissionError::Sender { kind, .. } if kind == "sign-pooled"));
        let pool = encode(&Ask::Pool { epoch: 0 });
        operator.ask(&COORDINATOR, &pool).unwrap();
        operator.ask(&OPERATOR, &pool).unwrap_err();
        at(COORDINATOR).ask(&COORDINATOR, &pool).unwrap_err();
        let by = operator.ask(&PeerKey([2; 32]), &garbage).unwrap_err();
        assert!(matches!(by, AdmissionError::Sender { kind: "sign", .. }));
        let to = at(COORDINATOR).ask(&COORDINATOR, &garbage).unwrap_err();
        assert!(matches!(to, AdmissionError::Recipient(_)));
        let vote = operator.ask(&PeerKey([2; 32]), &refuse()).unwrap_err();
        assert!(vote.to_string().contains("is an operator"));
        at(COORDINATOR).ask(&OPERATOR, &refuse()).unwrap();
        let proposal = [MESSAGE_VERSION, 0, 0xff];
        operator.gossip(&COORDINATOR, &proposal).unwrap();
        operator.gossip(&PeerKey([2; 32]), &proposal).unwrap_err();
    }

    #[test]
    fn each_kind_has_its_own_bound() {
        let coordinator = at(COORDINATOR);
        for (tag, kind) in ASKS.iter().enumerate() {
            if kind.to == Who::Operators {
                continue;
            }
            let from = match kind.by {
                Who::Coordinators => COORDINATOR,
                Who::Anyone | Who::Operators => OPERATOR,
            };
            let mut bytes = vec![0; 2 + kind.max_bytes];
            bytes[..2].copy_from_slice(&[MESSAGE_VERSION, u8::try_from(tag).unwrap()]);
            coordinator.ask(&from, &bytes).unwrap();
            bytes.push(0);
            let error = coordinator.ask(&from, &bytes).unwrap_err();
            assert!(matches!(error, AdmissionError::Length { .. }), "{error}");
        }
        assert!(coordinator.ask(&OPERATOR, &[MESSAGE_VERSION, 99]).is_err());
        assert!(
            coordinator
                .ask(&OPERATOR, &[MESSAGE_VERSION, 0x81, 0])
                .is_err()
        );
        for bytes in [&[][..], &[MESSAGE_VERSION], &[MESSAGE_VERSION + 1, 1]] {
            assert!(coordinator.ask(&OPERATOR, bytes).is_err());
        }
    }
}
