//! What all runs with one group have in common: a vault, users, and what their deposits pay to. Made once a process.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bitcoin::{
    Amount, Network, OutPoint, ScriptBuf, Txid, WPubkeyHash, XOnlyPublicKey, hashes::Hash as _,
};
use ledger::{AccountKey, AccountSecret, Ledger, SequenceNumber};
use operator::policy::Policy;
use protocol::{
    deposit::{DepositAddress, DepositTerms, NUMS},
    identity::PeerKey,
    parameters::Parameters,
    roster::{Member, Roster},
    transaction::{Commitment, Treasury},
    vault::{GenesisCertificate, Vault, VaultKey},
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use threshold::sign::{self, Message, Package, Tweak};

use crate::{
    deal::{DealError, dealt},
    schedule::Group,
};

/// Users, each with one account and one deposit address.
pub const USERS: usize = 3;
/// Coordinators in every roster.
pub const COORDINATORS: usize = 3;
/// Levels of the ledger's tree in most schedules: 16 accounts are more than there are users.
pub const SHALLOW: usize = 2;
/// What the first treasury holds: all of it is surplus, which miner fees come out of.
const GENESIS: Amount = Amount::from_sat(150_000);
const VERIFYING_KEY_HASH: [u8; 32] = [3; 32];

/// One user.
pub struct User {
    /// Signs its operations.
    pub secret: AccountSecret,
    /// The account.
    pub account: AccountKey,
    /// Where it deposits.
    pub address: DepositAddress,
    /// Where its withdrawals and refunds go.
    pub script: ScriptBuf,
}

/// A vault and its users.
pub struct Place {
    /// The vault.
    pub vault: Arc<Vault>,
    /// The users.
    pub users: Vec<User>,
    /// By the script of their address.
    pub by_script: BTreeMap<ScriptBuf, usize>,
    /// What every operator's administrator allows.
    pub policy: Arc<Policy>,
    /// The coordinators.
    pub coordinators: Vec<PeerKey>,
}

/// Parameters that leave time for everything in some dozen blocks.
pub fn parameters() -> Parameters {
    Parameters {
        deposit_confirmations: 2,
        genesis_confirmations: 1,
        final_confirmations: 4,
        refund_delay: 24,
        replacement_delay: 4,
        bump_window: 6,
        max_operations: 6,
        ..Parameters::defaults(Network::Regtest)
    }
}

impl Place {
    /// The place of a group.
    ///
    /// # Errors
    /// [`DealError`] for sizes that no group has.
    pub fn of(group: &Group) -> Result<&'static Self, DealError> {
        type Known = Mutex<Vec<(Group, &'static Place)>>;
        static KNOWN: Known = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, place)) = known.iter().find(|(other, _)| other == group) {
            return Ok(place);
        }
        // Kept until the process ends.
        let place: &'static Self = Box::leak(Box::new(Self::new(group)?));
        known.push((*group, place));
        Ok(place)
    }

    fn new(group: &Group) -> Result<Self, DealError> {
        let failed = |error: &dyn std::fmt::Display| DealError(error.to_string());
        let shares = dealt(group)?;
        let first = shares
            .first()
            .ok_or_else(|| DealError("nobody".to_owned()))?;
        let parameters = parameters();
        let roster = roster(group);
        let coordinators = roster.coordinators.iter().map(|one| one.key).collect();
        let key = VaultKey::new(first.group().clone(), parameters.clone(), roster)
            .map_err(|error| failed(&error))?;
        let outpoint = OutPoint::new(Txid::from_byte_array([0x6E; 32]), 0);
        let genesis = key.genesis(outpoint, GENESIS, VERIFYING_KEY_HASH);
        let signature = sign_with_all(group, genesis.digest())?;
        let certificate = GenesisCertificate { genesis, signature };
        let vault =
            Vault::open(key, certificate, VERIFYING_KEY_HASH).map_err(|error| failed(&error))?;
        let refund: XOnlyPublicKey = NUMS.parse().map_err(|_| failed(&"no refund key"))?;
        let mut rng = ChaCha20Rng::from_seed([0x05; 32]);
        let users = (0_u8..)
            .take(USERS)
            .map(|i| {
                let secret = AccountSecret::generate(&mut rng);
                let account = secret.public();
                let terms = DepositTerms::offered(vault.id(), &parameters, account, refund);
                let address = terms
                    .address(&vault.group_key())
                    .map_err(|error| failed(&error))?;
                Ok(User {
                    secret,
                    account,
                    address,
                    script: ScriptBuf::new_p2wpkh(&WPubkeyHash::from_byte_array([0xB0 | i; 20])),
                })
            })
            .collect::<Result<Vec<User>, DealError>>()?;
        let by_script = users
            .iter()
            .enumerate()
            .map(|(i, user)| (user.address.script_pubkey.clone(), i))
            .collect();
        let policy = "window_blocks = 144\n[withdrawals]\n[fees]\nmax_fee_sat = 100_000\n\
            max_fee_rate_sat_per_vb = 300\nmax_net_fees_sat = 1_000_000\n";
        let policy = Policy::parse(Path::new("policy.toml"), policy, &parameters)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            vault: Arc::new(vault),
            users,
            by_script,
            policy: Arc::new(policy),
            coordinators,
        })
    }

    /// The first treasury of a vault whose ledger is empty.
    pub fn genesis(&self, ledger: &Ledger) -> Treasury {
        let output = self.vault.genesis_output();
        Treasury {
            outpoint: output.outpoint,
            value: output.amount,
            commitment: Commitment {
                sequence: SequenceNumber(0),
                supply: Amount::ZERO,
                digest: ledger.digest().to_bytes(),
            },
        }
    }
}

fn roster(group: &Group) -> Roster {
    let member = |key: PeerKey| Member {
        name: key.to_string(),
        key,
        addresses: Vec::new(),
        founding_key: None,
    };
    let mut coordinators = (0_u8..).map(|i| {
        let identity = protocol::identity::Identity::from_secret(&[0xC0 | i; 32]);
        member(identity.public())
    });
    Roster {
        threshold: group.threshold,
        operators: group
            .members()
            .iter()
            .map(|(_, key)| member(*key))
            .collect(),
        coordinators: coordinators.by_ref().take(COORDINATORS).collect(),
        attestation: Default::default(),
    }
}

fn sign_with_all(
    group: &Group,
    digest: [u8; 32],
) -> Result<bitcoin::secp256k1::schnorr::Signature, DealError> {
    let failed = |error: &dyn std::fmt::Display| DealError(error.to_string());
    let shares = dealt(group)?;
    let mut rng = ChaCha20Rng::from_seed([0x51; 32]);
    let mut secret = Vec::new();
    let mut commitments = BTreeMap::new();
    for share in shares {
        let (nonces, public) = sign::commit(share, 1, &mut rng).map_err(|error| failed(&error))?;
        secret.push((share, nonces));
        commitments.insert(share.signer(), public);
    }
    let package = Package {
        messages: vec![Message {
            digest,
            tweak: Tweak::Untweaked,
        }],
        commitments,
    };
    let mut answers = BTreeMap::new();
    for (share, nonces) in secret {
        let answer = sign::sign(share, nonces, &package).map_err(|error| failed(&error))?;
        answers.insert(share.signer(), answer);
    }
    let group = shares.first().ok_or_else(|| failed(&"nobody"))?.group();
    let signatures = sign::aggregate(group, &package, &answers).map_err(|error| failed(&error))?;
    signatures
        .first()
        .copied()
        .ok_or_else(|| failed(&"no signature"))
}
