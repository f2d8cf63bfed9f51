//! What travels between nodes, with one version byte in front. Gossip reaches everyone; a question goes
//! to one peer over an encrypted connection and has one answer.

use std::collections::BTreeMap;

use bitcoin::Transaction;
use ledger::{OperationId, SequenceNumber};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned, de::Error as _};
use threshold::{GroupInfo, SignerId, dkg, repair::Run, sign::Commitments};

use crate::{
    batch::{BodyHash, Candidate},
    blame::Round2,
    epoch::{EpochCertificate, EpochClaim},
    hash,
    identity::{PeerKey, Signed},
    repair::{RepairAnswer, RepairAsk, RunDelta},
    request::{RequestName, UserRequest},
    vault::{Genesis, GenesisCertificate},
};

/// Version of every message in this module.
pub const MESSAGE_VERSION: u8 = 1;
/// Longest reason in a refusal, in bytes.
pub const MAX_REASON_BYTES: usize = 400;
/// Most operations that a refusal names: more than a batch can hold.
pub const MAX_NAMED: usize = 2_000;
/// Shares of uncertified epochs that an operator tells of.
pub const MAX_PENDING: usize = 2;
/// Pairs in a commitment vector that an operator hands out ahead of time: batches of more inputs go the ordinary way.
pub const POOL_PAIRS: usize = 64;
/// Most such vectors that a coordinator holds of one operator.
pub const MAX_POOL: usize = 8;
/// Domain of signed key-generation messages.
pub const DKG_DOMAIN: &str = "dkg/1";
/// Domain of signed refresh messages.
pub const REFRESH_DOMAIN: &str = "refresh/1";

hash::id!(
    /// Names one signing session: one coordinator's proposal of one subject.
    SessionId
);

/// What a session signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The genesis certificate; needs all n shares.
    Genesis(Genesis),
    /// A batch transaction; needs t shares.
    Batch(Candidate),
    /// The certificate of a new epoch; needs all n shares of that epoch.
    Epoch(EpochClaim),
}

impl Subject {
    /// The session in which `coordinator` has this signed.
    pub fn session(&self, coordinator: &PeerKey) -> SessionId {
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        SessionId(hash::tagged(
            "drawbridge/session",
            &[&coordinator.0, &bytes],
        ))
    }
}

/// To everyone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gossip {
    /// A coordinator asks the operators to verify and sign. `round` makes a repeated proposal a new
    /// message; it has no other meaning.
    Proposal {
        /// What to sign.
        subject: Subject,
        /// How often it was proposed before.
        round: u32,
    },
    /// The genesis, certified by all n operators.
    Genesis(GenesisCertificate),
    /// A signed batch transaction, for everyone to submit.
    Signed {
        /// Its candidate.
        candidate: Candidate,
        /// With all witnesses.
        transaction: Transaction,
    },
    /// A new epoch of the shares, certified by all n operators.
    Epoch(EpochCertificate),
}

/// To one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// "Which key-generation messages do you have for me?" between operators.
    Dkg {
        /// The ceremony.
        context: [u8; 32],
    },
    /// "Which key did your key generation give?" from anybody in the roster.
    Group,
    /// "Do you know the genesis certificate?"
    Genesis,
    /// "Send me this body."
    Body(BodyHash),
    /// "Keep this batch" (S8).
    Keep {
        /// The transaction that will carry it.
        candidate: Candidate,
        /// The encoded body.
        body: Vec<u8>,
    },
    /// "Which batch has this sequence number?"
    Batch(SequenceNumber),
    /// An operator's vote and round 1.
    Accept {
        /// The session.
        session: SessionId,
        /// Epoch of the share that will sign.
        epoch: u32,
        /// One pair of nonce commitments an input.
        commitments: Commitments,
    },
    /// An operator's refusal.
    Refuse {
        /// The session.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// The sign request: round 2.
    Sign {
        /// The session.
        session: SessionId,
        /// Epoch of the shares that sign.
        epoch: u32,
        /// Numbers the attempts of a session from 1.
        attempt: u32,
        /// The signers of this attempt with the commitments to use.
        #[serde(deserialize_with = "points")]
        commitments: BTreeMap<SignerId, Commitments>,
    },
    /// "Show me an attestation document about your identity key."
    Attest {
        /// The asker's challenge, fresh for every question.
        nonce: [u8; 32],
    },
    /// "Which epoch is certified, and which have you shares of beyond it?"
    Epoch,
    /// "Which refresh messages do you have for me?" between operators.
    Refresh {
        /// [`GroupInfo::digest`] of the group that is refreshed.
        base: [u8; 32],
        /// The epoch that the one who asks refreshes to.
        epoch: u32,
    },
    /// From an operator that has lost its share to one that may help.
    Repair(RepairAsk),
    /// "Which δ do you have for me?" between the helpers of a repair.
    Delta(Run),
    /// "Submit this": a signed batch transaction that is too large for gossip.
    Signed {
        /// Its candidate.
        candidate: Candidate,
        /// With all witnesses.
        transaction: Transaction,
    },
    /// "Keep this request of a user's until it is done." from a coordinator.
    Request(UserRequest),
    /// "Which requests do you keep?"
    Requests {
        /// Only those behind this one; `None` for the first.
        after: Option<RequestName>,
    },
    /// "In which block is the genesis output?" It is a hint: whoever asks looks into that block.
    GenesisHeight,
    /// "Give me round 1 ahead of time." from a coordinator.
    Pool {
        /// Epoch of the share that is to sign.
        epoch: u32,
    },
    /// Proposal and sign request in one, with commitments that were handed out ahead of time. Answered once the batch is
    /// verified. It holds the subject, so that it does not depend on the gossip having arrived.
    SignPooled {
        /// What to sign: a batch.
        subject: Subject,
        /// Epoch of the shares that sign.
        epoch: u32,
        /// Numbers the attempts of a session from 1.
        attempt: u32,
        /// The signers of this attempt with the commitments to use: of each one's vector as many pairs as there are
        /// inputs.
        #[serde(deserialize_with = "points")]
        commitments: BTreeMap<SignerId, Commitments>,
    },
}

/// The commitments of a sign request, which are used at once: they must be points before anything is done about it.
fn points<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<SignerId, Commitments>, D::Error> {
    let commitments = BTreeMap::<SignerId, Commitments>::deserialize(from)?;
    if commitments.values().all(Commitments::are_points) {
        return Ok(commitments);
    }
    Err(D::Error::custom("a commitment is no point"))
}

/// The answer to an [`Ask`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Key-generation messages for the one who asked, signed by their author.
    Dkg(Vec<Signed<dkg::Message>>),
    /// The group, once this operator's key generation is finished.
    Group(Option<GroupInfo>),
    /// The genesis certificate, if there is one.
    Genesis(Option<GenesisCertificate>),
    /// The encoded body, if it is held.
    Body(Option<Vec<u8>>),
    /// Kept durably.
    Kept(BodyHash),
    /// The confirmed batch of that number, if it is held.
    Batch(Option<(Candidate, Vec<u8>)>),
    /// Taken.
    Taken,
    /// Round 2, with fresh commitments for a next attempt, as its operator states it.
    Shares(Signed<Round2>),
    /// Not done, and why.
    Refused(Refusal),
    /// The document, if there is one; what it is worth is the asker's to verify.
    Attestation(Option<Vec<u8>>),
    /// Epochs.
    Epoch {
        /// The latest certificate; `None` for shares of key generation.
        certificate: Option<EpochCertificate>,
        /// Groups of later epochs that this node holds a share of, not certified yet; the latest first, at most
        /// [`MAX_PENDING`].
        pending: Vec<GroupInfo>,
    },
    /// Refresh messages for the one who asked, signed by their author.
    Refresh {
        /// The epoch that this operator refreshes to.
        epoch: u32,
        /// None if that is not the epoch asked for.
        messages: Vec<Signed<dkg::Message>>,
    },
    /// Of a helper, to the operator that has lost its share.
    Repair(RepairAnswer),
    /// The δ for the helper that asked, signed by its author. Secret.
    Delta(Signed<RunDelta>),
    /// Requests, in the order of their names, at most [`crate::request::MAX_AT_ONCE`]; none behind the last.
    Requests(Vec<UserRequest>),
    /// The height of the genesis output's block, if it is known.
    GenesisHeight(Option<u32>),
    /// Commitment vectors of [`POOL_PAIRS`] pairs that this coordinator has not used, at most [`MAX_POOL`]; some may
    /// have been in an answer before.
    Pool(Vec<Commitments>),
}

/// The safety rules of DESIGN section 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "named in the design, each with a file in operator/verify"
)]
pub enum Rule {
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    S9,
    S10,
    S11,
    S12,
    S13,
    S14,
    S15,
}

/// Which rule was broken, by which operations, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{rule:?}: {reason}")]
#[serde(from = "Unbounded")]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// The operations at fault, where some are: without them the batch would not break this rule. At most
    /// [`MAX_NAMED`].
    pub operations: Vec<OperationId>,
    /// For people; at most [`MAX_REASON_BYTES`].
    pub reason: String,
}

/// A [`Refusal`] as it travels, before it is cut to its bounds.
#[derive(Deserialize)]
struct Unbounded {
    rule: Rule,
    operations: Vec<OperationId>,
    reason: String,
}

impl From<Unbounded> for Refusal {
    fn from(from: Unbounded) -> Self {
        Self {
            rule: from.rule,
            operations: from.operations,
            reason: from.reason,
        }
        .bounded()
    }
}

impl Refusal {
    /// A refusal that no single operation caused.
    pub fn new(rule: Rule, reason: impl Into<String>) -> Self {
        Self {
            rule,
            operations: Vec::new(),
            reason: reason.into(),
        }
        .bounded()
    }

    /// Names an operation at fault.
    #[must_use]
    pub fn of(self, operation: OperationId) -> Self {
        self.of_all([operation])
    }

    /// Names operations at fault.
    #[must_use]
    pub fn of_all(mut self, operations: impl IntoIterator<Item = OperationId>) -> Self {
        self.operations.extend(operations);
        self.bounded()
    }

    /// Cut to its bounds, and without control characters: it is shown at terminals. Decoding does it too, so that one
    /// from elsewhere that exceeds them is not canonical.
    fn bounded(mut self) -> Self {
        if self.reason.contains(char::is_control) {
            self.reason = self.reason.replace(char::is_control, " ");
        }
        let mut end = self.reason.len().min(MAX_REASON_BYTES);
        while !self.reason.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        self.reason.truncate(end);
        self.operations.truncate(MAX_NAMED);
        self
    }
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    /// The sender speaks another version.
    #[error("message version {0:?}; this node speaks version {MESSAGE_VERSION}")]
    Version(Option<u8>),
    /// Not an encoding of a message.
    #[error("the message's encoding is not valid")]
    Encoding,
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = vec![MESSAGE_VERSION];
    bytes.extend(postcard::to_stdvec(message).unwrap_or_default());
    bytes
}

/// Reads [`encode`] back. The transport has bounded the size. Accepts the one canonical encoding only: a map that
/// names a signer twice would otherwise pass for one that names it once.
///
/// # Errors
/// [`MessageError`].
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    let Some((&MESSAGE_VERSION, rest)) = bytes.split_first() else {
        return Err(MessageError::Version(bytes.first().copied()));
    };
    match postcard::take_from_bytes(rest) {
        Ok((message, [])) if encode(&message) == bytes => Ok(message),
        _ => Err(MessageError::Encoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> Ask {
        Ask::Sign {
            session: SessionId([7; 32]),
            epoch: 0,
            attempt: 1,
            commitments: BTreeMap::new(),
        }
    }

    #[test]
    fn a_sign_request_with_a_commitment_that_is_no_point_is_not_decoded() {
        let generator =
            "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".repeat(2);
        let right = hex::decode(generator).unwrap();
        let mut compact = right.clone();
        compact[0] = 5;
        for (pair, is_right) in [(right, true), (compact, false), (vec![0; 66], false)] {
            let pair = Commitments::try_from(pair).unwrap();
            let ask = Ask::Sign {
                session: SessionId([7; 32]),
                epoch: 0,
                attempt: 1,
                commitments: BTreeMap::from([(SignerId::derive(&[1; 32]), pair)]),
            };
            assert_eq!(decode::<Ask>(&encode(&ask)).is_ok(), is_right);
        }
    }

    #[test]
    fn a_message_has_one_encoding() {
        let bytes = encode(&ask());
        assert_eq!(decode::<Ask>(&bytes), Ok(ask()));
        // The same kind of question with its number in two bytes.
        let mut long = bytes.clone();
        long[1] |= 0x80;
        long.insert(2, 0);
        let trailing = [bytes.as_slice(), &[0]].concat();
        let cut = bytes[..bytes.len() - 1].to_vec();
        for bad in [long, trailing, cut] {
            assert_eq!(decode::<Ask>(&bad), Err(MessageError::Encoding));
        }
        let mut other = bytes;
        other[0] = 9;
        assert_eq!(decode::<Ask>(&other), Err(MessageError::Version(Some(9))));
        assert_eq!(decode::<Ask>(&[]), Err(MessageError::Version(None)));
    }

    #[test]
    fn a_map_that_names_a_key_twice_is_no_message() {
        let once = BTreeMap::from([(5_u8, 1_u8)]);
        let bytes = encode(&once);
        assert_eq!(decode(&bytes), Ok(once));
        // Version, two entries, the same key.
        let twice = [MESSAGE_VERSION, 2, 5, 1, 5, 1];
        assert_eq!(
            decode::<BTreeMap<u8, u8>>(&twice),
            Err(MessageError::Encoding)
        );
    }
}
