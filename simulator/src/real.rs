//! Signatures by FROST, stated under the operators' identities as in the nodes.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use bitcoin::secp256k1::schnorr;
use protocol::{
    blame::{Evidence, ROUND2_DOMAIN, Round2, Statement},
    roster::{Member, Roster},
    signing::Frost,
    transaction::BatchTransaction,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use threshold::{
    KeyShare, SignerId,
    sign::{self, Commitments, Message, Nonces, Package, PackageHash, Shares, Tweak},
};

use crate::{
    deal::{DealError, dealt},
    schedule::Group,
    signatures::{Lie, Request, Signatures},
};

/// Inputs of the simulated transaction.
const MESSAGES: usize = 2;

/// The operators' side.
pub struct Real {
    keys: BTreeMap<SignerId, (&'static KeyShare, protocol::identity::Identity)>,
    messages: Vec<Message>,
    scheme: Frost,
    roster: Roster,
    rng: ChaCha20Rng,
}

impl Real {
    /// For a group.
    ///
    /// # Errors
    /// [`DealError`].
    pub fn new(group: &Group, seed: u64) -> Result<Self, DealError> {
        let messages: Vec<Message> = (0_u8..)
            .take(MESSAGES)
            .map(|i| Message {
                digest: [i; 32],
                tweak: Tweak::KeyPath((i > 0).then_some([i; 32])),
            })
            .collect();
        Self::of(group, seed, messages)
    }

    fn of(group: &Group, seed: u64, messages: Vec<Message>) -> Result<Self, DealError> {
        let shares = dealt(group)?;
        let identities: BTreeMap<SignerId, _> = group
            .identities()
            .map(|identity| (SignerId::derive(&identity.public().0), identity))
            .collect();
        let operators = identities.values().map(|identity| Member {
            name: identity.public().to_string(),
            key: identity.public(),
            addresses: Vec::new(),
            founding_key: None,
        });
        let roster = Roster {
            threshold: group.threshold,
            operators: operators.collect(),
            coordinators: Vec::new(),
            attestation: Default::default(),
        };
        let info = shares
            .first()
            .map(|share| share.group().clone())
            .ok_or_else(|| DealError("nobody".to_owned()))?;
        Ok(Self {
            keys: shares
                .iter()
                .zip(identities)
                .map(|(share, (id, identity))| (id, (share, identity)))
                .collect(),
            scheme: Frost::new(info, messages.clone()),
            roster,
            messages,
            rng: ChaCha20Rng::seed_from_u64(seed),
        })
    }

    fn state(&self, signer: SignerId, said: Round2) -> Option<Arc<Statement>> {
        let (_, identity) = self.keys.get(&signer)?;
        let (session, attempt) = (said.session, said.attempt);
        let signed = identity.sign(ROUND2_DOMAIN, said);
        Statement::verify(signed, &identity.public(), &session, attempt)
            .ok()
            .map(Arc::new)
    }

    /// Shares of another package than was asked for, made to measure.
    fn foreign_shares(&mut self, signer: SignerId, request: &Request<'_, Self>) -> Option<Shares> {
        let (nonces, own) = self.commit(signer);
        let mut package = self.package_of(request);
        package.commitments.insert(signer, own);
        let (share, _) = self.keys.get(&signer)?;
        sign::sign(share, nonces, &package).ok()
    }

    fn package_of(&self, request: &Request<'_, Self>) -> Package {
        Package {
            messages: self.messages.clone(),
            commitments: (**request.commitments).clone(),
        }
    }
}

/// Shares as they would look with the last one missing.
fn shortened(shares: &Shares) -> Option<Shares> {
    let mut bytes = encoded(shares)?;
    bytes.truncate(bytes.len().saturating_sub(32));
    Shares::try_from(bytes).ok()
}

/// Shares with one bit of the first one changed.
fn off_by_one(shares: &Shares) -> Option<Shares> {
    let mut bytes = encoded(shares)?;
    *bytes.get_mut(31)? ^= 1;
    Shares::try_from(bytes).ok()
}

fn encoded(shares: &Shares) -> Option<Vec<u8>> {
    postcard::from_bytes(&postcard::to_stdvec(shares).ok()?).ok()
}

#[allow(
    clippy::expect_used,
    reason = "an operator that can't do this is a fault of the simulator"
)]
impl Signatures for Real {
    type Scheme = Frost;
    type Nonces = Nonces;

    fn over(group: &Group, number: u64, transaction: &BatchTransaction) -> Result<Self, DealError> {
        let messages = transaction.messages();
        Self::of(
            group,
            number,
            messages.map_err(|error| DealError(error.to_string()))?,
        )
    }

    fn scheme(&self) -> Frost {
        self.scheme.clone()
    }

    fn commit(&mut self, signer: SignerId) -> (Nonces, Commitments) {
        let (share, _) = self.keys.get(&signer).expect("a signer of the group");
        sign::commit(share, self.messages.len(), &mut self.rng).expect("a number that is allowed")
    }

    fn name(commitments: &Commitments) -> u64 {
        let mut hasher = DefaultHasher::new();
        postcard::to_stdvec(commitments)
            .expect("commitments encode")
            .hash(&mut hasher);
        hasher.finish()
    }

    fn sign(
        &mut self,
        signer: SignerId,
        request: &Request<'_, Self>,
        nonces: Nonces,
        next: Commitments,
    ) -> Arc<Statement> {
        let (share, _) = self.keys.get(&signer).expect("a signer of the group");
        let package = self.package_of(request);
        let said = Round2 {
            session: request.session,
            attempt: request.attempt,
            package: package.hash(share.group()),
            shares: sign::sign(share, nonces, &package).expect("a request that was checked"),
            next,
        };
        self.state(signer, said).expect("its own statement")
    }

    fn spoil(
        &mut self,
        signer: SignerId,
        request: &Request<'_, Self>,
        answer: &Arc<Statement>,
        lie: Lie,
    ) -> Arc<Statement> {
        let mut said = answer.said().clone();
        match lie {
            Lie::WrongShare => said.shares = off_by_one(&said.shares).expect("a share"),
            Lie::OtherNonces => {
                said.shares = self.foreign_shares(signer, request).expect("shares");
            }
            Lie::TooFew => said.shares = shortened(&said.shares).expect("more than one share"),
            Lie::OtherPackage => said.package = PackageHash([0xFF; 32]),
            Lie::UsedNext => {
                if let Some(used) = request.commitments.get(&signer) {
                    said.next = used.clone();
                }
            }
        }
        self.state(signer, said).expect("its own statement")
    }

    fn is_evidence(
        &self,
        signer: SignerId,
        commitments: &BTreeMap<SignerId, Commitments>,
        answer: &Arc<Statement>,
    ) -> bool {
        let evidence = Evidence {
            group: self.scheme.group().clone(),
            messages: self.messages.clone(),
            commitments: commitments.clone(),
            statement: answer.signed().clone(),
        };
        let fault = evidence.check(&self.roster);
        fault.is_ok_and(|fault| SignerId::derive(&fault.operator.0) == signer)
    }

    fn are_right(&self, signatures: &[schnorr::Signature]) -> bool {
        let key = self.scheme.group().group_key();
        signatures.len() == self.messages.len()
            && self
                .messages
                .iter()
                .zip(signatures)
                .all(|(message, signature)| {
                    let key = sign::output_key(&key, &message.tweak);
                    sign::verify(&key, &message.digest, signature)
                })
    }
}
