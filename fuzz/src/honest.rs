//! Honest values to start from: a vault of 2 of 3 operators with a real key generation, a genesis that all three have
//! certified, and a first batch with every kind of operation that two of them have signed. The same in every run.

mod upkeep;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use attestation::Requirement;
use bitcoin::{
    Amount, Network, OutPoint, ScriptBuf, Transaction, Txid, XOnlyPublicKey, hashes::Hash as _,
};
use ledger::{
    AccountIndex, AccountSecret, ChunkWitness, Ledger, Operation, SequenceNumber, TransferRequest,
    Transition, VaultId, WithdrawRequest,
};
use protocol::{
    batch::{Body, Candidate},
    blame::{ROUND2_DOMAIN, Round2},
    deposit::{DepositTerms, NUMS},
    identity::{Identity, Signed},
    message::{SessionId, Subject},
    parameters::{Parameters, Recovery},
    roster::{Member, Roster},
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, Treasury},
    vault::{Genesis, GenesisCertificate, Vault, VaultKey},
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use threshold::{
    KeyShare, SignerId, dkg,
    sign::{self, Commitments, Message, Nonces, Package, Shares, Tweak},
};

pub use upkeep::{EPOCH, helper, machine as refresh_machine, upkeep};

/// Operators.
pub const OPERATORS: usize = 3;
/// Signers needed.
pub const THRESHOLD: u16 = 2;
/// Binds the key generation.
pub const CONTEXT: [u8; 32] = [0xC0; 32];
/// Stands for the hash of a verifying key.
pub const VERIFYING_KEY_HASH: [u8; 32] = [3; 32];
/// The vault of [`chunk`].
pub const CHUNK_VAULT: VaultId = VaultId([7; 32]);
const NETWORK: Network = Network::Regtest;
const FIRST: SequenceNumber = SequenceNumber(1);
const LAST_VALID: SequenceNumber = SequenceNumber(10);
const FEE: Amount = Amount::from_sat(2_000);

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// An operator's identity; one more than there are operators is the coordinator's.
pub fn identity(index: usize) -> Identity {
    Identity::from_secret(&[u8::try_from(index).unwrap() + 1; 32])
}

/// Two users' secrets.
pub fn user(index: u64) -> AccountSecret {
    AccountSecret::generate(&mut rng(1_000 + index))
}

/// A key that anybody may use for refunds here.
pub fn refund_key() -> XOnlyPublicKey {
    NUMS.parse().unwrap()
}

/// The roster.
pub fn roster() -> Roster {
    let member = |name: String, index: usize| Member {
        name,
        key: identity(index).public(),
        founding_key: None,
        addresses: vec![format!("/ip4/127.0.0.1/tcp/{}", 9_000 + index)],
    };
    Roster {
        threshold: THRESHOLD,
        operators: (0..OPERATORS)
            .map(|index| member(format!("operator-{index}"), index))
            .collect(),
        coordinators: vec![member("coordinator-1".to_owned(), OPERATORS)],
        attestation: Requirement::default(),
    }
}

/// The parameters, with a recovery leaf.
pub fn parameters() -> Parameters {
    Parameters {
        recovery: Some(Recovery {
            needed: 1,
            keys: vec![refund_key()],
            delay: 4_000,
        }),
        ..Parameters::defaults(NETWORK)
    }
}

/// An operator's side of the key generation, at its beginning.
pub fn machine(index: usize) -> dkg::Machine {
    let roster = roster();
    let ceremony = dkg::Ceremony {
        me: signer(index),
        signers: roster.signers(),
        threshold: THRESHOLD,
        context: CONTEXT,
    };
    let seed = dkg::Seed::from_bytes(&[u8::try_from(index).unwrap() + 1; 32]);
    dkg::Machine::new(ceremony, &seed).unwrap()
}

/// An operator's FROST identifier.
pub fn signer(index: usize) -> SignerId {
    SignerId::derive(&identity(index).public().0)
}

/// All of it.
pub struct Honest {
    /// Messages of the key generation to operator 0: from whom, and what, in order.
    pub key_generation: Vec<(usize, dkg::Message)>,
    /// The key shares.
    pub shares: Vec<KeyShare>,
    /// The vault.
    pub vault: Arc<Vault>,
    /// The first treasury.
    pub treasury: Treasury,
    /// The first batch.
    pub body: Body,
    /// Its replay.
    pub transition: Transition,
    /// What carries it.
    pub candidate: Candidate,
    /// With all witnesses.
    pub transaction: Transaction,
    /// What two operators have signed of it.
    pub package: Package,
    /// Their shares.
    pub round2: BTreeMap<SignerId, Shares>,
    /// Unused nonces of operator 2, and a package that they fit.
    pub unused: (Nonces, Package),
    /// Operator 0's answer to the sign request.
    pub statement: Signed<Round2>,
}

/// The same values every time.
pub fn honest() -> &'static Honest {
    static HONEST: LazyLock<Honest> = LazyLock::new(make);
    &HONEST
}

fn make() -> Honest {
    let (key_generation, shares) = generate();
    let vault = Arc::new(open(&shares));
    let genesis = vault.genesis_output();
    let treasury = Treasury {
        outpoint: genesis.outpoint,
        value: genesis.amount,
        commitment: Commitment {
            sequence: SequenceNumber(0),
            supply: Amount::ZERO,
            digest: Ledger::new().digest().to_bytes(),
        },
    };
    let (body, transition) = batch(vault.id());
    let built = build(&vault, &treasury, &body, &transition);
    let messages = built.messages().unwrap();
    let (round2, package) = sign_by(&shares[..usize::from(THRESHOLD)], &messages);
    let signatures = sign::aggregate(shares[0].group(), &package, &round2).unwrap();
    let candidate = Candidate {
        vault: vault.id(),
        sequence: FIRST,
        parent: treasury.outpoint,
        body: body.hash(),
        top_ups: Vec::new(),
        fee: FEE,
        txid: built.unsigned.compute_txid(),
    };
    let (nonces, own) = sign::commit(&shares[2], messages.len(), &mut rng(5)).unwrap();
    let mut commitments = package.commitments.clone();
    commitments.insert(signer(2), own);
    let unused = Package {
        messages,
        commitments,
    };
    let (_, next) = sign::commit(&shares[0], unused.messages.len(), &mut rng(6)).unwrap();
    let answer = Round2 {
        session: session(&candidate),
        attempt: 1,
        package: package.hash(shares[0].group()),
        shares: round2[&signer(0)].clone(),
        next,
    };
    Honest {
        statement: identity(0).sign(ROUND2_DOMAIN, answer),
        key_generation,
        vault,
        treasury,
        body,
        transition,
        candidate,
        transaction: built.complete(&signatures).unwrap(),
        package,
        round2,
        unused: (nonces, unused),
        shares,
    }
}

/// The session in which the coordinator has a batch signed.
pub fn session(candidate: &Candidate) -> SessionId {
    Subject::Batch(candidate.clone()).session(&identity(OPERATORS).public())
}

fn generate() -> (Vec<(usize, dkg::Message)>, Vec<KeyShare>) {
    let mut machines: Vec<_> = (0..OPERATORS).map(machine).collect();
    let to_first = tell_everybody(&mut machines);
    let shares = machines
        .iter()
        .map(|machine| machine.finished().unwrap().to_secret_bytes().unwrap())
        .map(|bytes| KeyShare::from_secret_bytes(&bytes).unwrap())
        .collect();
    (to_first, shares)
}

/// Runs a ceremony to its end. Gives what operator 0 was told, by whom, in order.
fn tell_everybody(machines: &mut [dkg::Machine]) -> Vec<(usize, dkg::Message)> {
    let mut to_first = Vec::new();
    // Enough turns for four kinds of messages.
    for _ in 0..4 {
        for from in 0..OPERATORS {
            for to in (0..OPERATORS).filter(|to| *to != from) {
                for message in machines[from].messages_for(signer(to)) {
                    if to == 0 && !to_first.contains(&(from, message.clone())) {
                        to_first.push((from, message.clone()));
                    }
                    machines[to].receive(signer(from), message).unwrap();
                }
            }
        }
    }
    to_first
}

fn sign_by(shares: &[KeyShare], messages: &[Message]) -> (BTreeMap<SignerId, Shares>, Package) {
    let mut nonces = Vec::new();
    let mut commitments: BTreeMap<SignerId, Commitments> = BTreeMap::new();
    for (share, seed) in shares.iter().zip(100..) {
        let (secret, public) = sign::commit(share, messages.len(), &mut rng(seed)).unwrap();
        nonces.push(secret);
        commitments.insert(share.signer(), public);
    }
    let package = Package {
        messages: messages.to_vec(),
        commitments,
    };
    let signed = shares
        .iter()
        .zip(nonces)
        .map(|(share, nonces)| {
            let answer = sign::sign(share, nonces, &package).unwrap();
            (share.signer(), answer)
        })
        .collect();
    (signed, package)
}

fn open(shares: &[KeyShare]) -> Vault {
    let group = shares[0].group().clone();
    let key = VaultKey::new(group, parameters(), roster()).unwrap();
    let outpoint = OutPoint::new(Txid::from_byte_array([0xaa; 32]), 1);
    let genesis: Genesis = key.genesis(outpoint, Amount::from_sat(100_000), VERIFYING_KEY_HASH);
    let message = Message {
        digest: genesis.digest(),
        tweak: Tweak::Untweaked,
    };
    let (round2, package) = sign_by(shares, &[message]);
    let signatures = sign::aggregate(shares[0].group(), &package, &round2).unwrap();
    let certificate = GenesisCertificate {
        genesis,
        signature: signatures[0],
    };
    Vault::open(key, certificate, VERIFYING_KEY_HASH).unwrap()
}

/// A user's terms in a vault.
pub fn terms(vault: VaultId, user_index: u64) -> DepositTerms {
    let account = user(user_index).public();
    DepositTerms::offered(vault, &parameters(), account, refund_key())
}

/// Two deposits, a transfer, a withdrawal.
pub fn operations(vault: &VaultId) -> Vec<Operation> {
    let deposit = |index: u64, sats, n: u8| Operation::Deposit {
        account: user(index).public(),
        amount: Amount::from_sat(sats),
        outpoint: OutPoint::new(Txid::from_byte_array([n; 32]), 0),
    };
    let transfer = TransferRequest {
        sender: AccountIndex(0),
        nonce: 0,
        amount: Amount::from_sat(10_000),
        fee: Amount::from_sat(100),
        recipient: user(1).public(),
        last_valid: LAST_VALID,
    };
    let withdrawal = WithdrawRequest {
        sender: AccountIndex(1),
        nonce: 0,
        amount: Amount::from_sat(20_000),
        fee: Amount::from_sat(1_500),
        script_pubkey: ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([8; 20])),
        last_valid: LAST_VALID,
    };
    vec![
        deposit(0, 100_000, 1),
        deposit(1, 50_000, 2),
        transfer.sign(&user(0), vault),
        withdrawal.sign(&user(1), vault),
    ]
}

fn batch(vault: VaultId) -> (Body, Transition) {
    let operations = operations(&vault);
    let transition = Ledger::new()
        .apply_batch(&operations, &vault, FIRST)
        .unwrap();
    let body = Body {
        vault,
        sequence: FIRST,
        operations,
        terms: vec![terms(vault, 0), terms(vault, 1)],
        digests: transition
            .digests()
            .iter()
            .map(|digest| digest.to_bytes())
            .collect(),
        proofs: vec![vec![9; proof::PROOF_BYTES]; transition.chunks.len()],
    };
    (body, transition)
}

/// What the deposits of a body are on the chain.
pub fn deposits(vault: &Vault, body: &Body) -> Vec<Swept> {
    body.deposits()
        .zip(&body.terms)
        .map(|((outpoint, credited), terms)| Swept {
            outpoint: *outpoint,
            value: credited + terms.fee,
            address: terms.address(&vault.group_key()).unwrap(),
        })
        .collect()
}

/// The transaction of the first batch.
pub fn build(
    vault: &Vault,
    treasury: &Treasury,
    body: &Body,
    transition: &Transition,
) -> BatchTransaction {
    let plan = BatchPlan {
        treasury,
        deposits: &deposits(vault, body),
        top_ups: &[],
        withdrawals: &body.withdrawals(),
        next: Commitment {
            sequence: FIRST,
            supply: transition.after.supply,
            digest: transition.digest_after().to_bytes(),
        },
        fee: FEE,
    };
    BatchTransaction::build(vault.key(), &plan).unwrap()
}

/// The chunk that the proof in the corpus proves. It depends on nothing but the ledger, so that the proof is good for
/// as long as the circuit is.
pub fn chunk() -> ChunkWitness {
    let transition = Ledger::new()
        .apply_batch(&operations(&CHUNK_VAULT), &CHUNK_VAULT, FIRST)
        .unwrap();
    transition.chunks[0].clone()
}
