//! A small vault of 2 of 3 operators for the tests of this crate: a real key generation, a real certificate.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    str::FromStr as _,
    sync::{Arc, OnceLock},
};

use bitcoin::{
    Amount, Network, OutPoint, Transaction, Txid, XOnlyPublicKey, hashes::Hash as _,
    secp256k1::schnorr::Signature,
};
use chain::rpc::UnspentOutput;
use ledger::{AccountIndex, AccountSecret, Ledger, Operation, SequenceNumber, WithdrawRequest};
use protocol::{
    batch::{BatchHash, Body, Candidate},
    deposit::{DepositTerms, NUMS},
    epoch::{EpochCertificate, EpochClaim},
    identity::Identity,
    message::{SessionId, Subject},
    parameters::Parameters,
    roster::{Member, Roster},
    signer::{Effect, Grant, Input, State},
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, Treasury},
    vault::{Genesis, GenesisCertificate, Vault, VaultKey},
};
use rand::rngs::OsRng;
use storage::{Schema, Store};
use threshold::{
    KeyShare,
    dkg::{Ceremony, Machine, Seed},
    sign::{self, Message, Package, Tweak},
};

use crate::{
    backup::{Backup, Facts},
    decisions, generate, held,
    policy::Policy,
    promises::{self, Promised},
    repair, signed,
    verify::{self, Affirmed, Kept, Verified, fixture, genesis},
};

/// What the tests' vault says its verifying key is.
pub const VERIFYING_KEY_HASH: [u8; 32] = [3; 32];
/// The first treasury.
pub const GENESIS_AMOUNT: Amount = Amount::from_sat(100_000);
/// Height of the first treasury's block.
pub const GENESIS_HEIGHT: u32 = 101;

pub fn identity(index: usize) -> Identity {
    Identity::from_secret(&[u8::try_from(index).unwrap() + 1; 32])
}

pub fn roster() -> &'static Roster {
    static ROSTER: OnceLock<Roster> = OnceLock::new();
    ROSTER.get_or_init(|| {
        let member = |name: &str, identity: Identity| Member {
            name: name.to_owned(),
            key: identity.public(),
            founding_key: None,
            addresses: Vec::new(),
        };
        Roster {
            threshold: 2,
            operators: (0..3)
                .map(|index| member(&format!("operator {index}"), identity(index)))
                .collect(),
            coordinators: vec![member("coordinator", Identity::from_secret(&[77; 32]))],
            attestation: attestation::Requirement::default(),
        }
    })
}

pub fn parameters() -> &'static Parameters {
    static PARAMETERS: OnceLock<Parameters> = OnceLock::new();
    PARAMETERS.get_or_init(|| Parameters::defaults(Network::Regtest))
}

/// The shares of a key generation among the three.
pub fn shares() -> &'static [KeyShare] {
    static SHARES: OnceLock<Vec<KeyShare>> = OnceLock::new();
    SHARES.get_or_init(|| {
        let roster = roster();
        let mut machines: Vec<Machine> = (0..3)
            .map(|index| {
                let ceremony = Ceremony {
                    me: roster.signer(&identity(index).public()).unwrap(),
                    signers: roster.signers(),
                    threshold: roster.threshold,
                    context: generate::context(roster, parameters()),
                };
                Machine::new(ceremony, &Seed::random(&mut OsRng)).unwrap()
            })
            .collect();
        let ids: Vec<_> = (0..3)
            .map(|index| roster.signer(&identity(index).public()).unwrap())
            .collect();
        for _ in 0..4 {
            for from in 0..3 {
                for to in 0..3 {
                    for message in machines[from].messages_for(ids[to]) {
                        machines[to].receive(ids[from], message).unwrap();
                    }
                }
            }
        }
        machines
            .iter()
            .map(|machine| copy(machine.finished().unwrap()))
            .collect()
    })
}

/// Their shares of the next epoch.
pub fn refreshed() -> &'static [KeyShare] {
    static REFRESHED: OnceLock<Vec<KeyShare>> = OnceLock::new();
    REFRESHED.get_or_init(|| refresh_to(1))
}

/// Their shares of a later epoch, straight from those of key generation.
pub fn refresh_to(epoch: u32) -> Vec<KeyShare> {
    let context = generate::context(roster(), parameters());
    let mut machines: Vec<Machine> = shares()
        .iter()
        .map(|share| {
            threshold::refresh::machine(share, epoch, &context, &Seed::random(&mut OsRng)).unwrap()
        })
        .collect();
    let ids: Vec<_> = shares().iter().map(KeyShare::signer).collect();
    for _ in 0..4 {
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                for message in machines[from].messages_for(ids[to]) {
                    machines[to].receive(ids[from], message).unwrap();
                }
            }
        }
    }
    machines
        .iter()
        .map(|machine| copy(machine.finished().unwrap()))
        .collect()
}

/// The certificate of an epoch, by all its shares.
pub fn epoch_certificate(shares: &[KeyShare]) -> EpochCertificate {
    let group = shares[0].group().clone();
    let claim = EpochClaim::new(vault().id(), &group);
    let signature = sign_with_all(shares, claim.digest());
    EpochCertificate {
        vault: vault().id(),
        group,
        signature,
    }
}

/// An untweaked signature by all of these shares.
fn sign_with_all(shares: &[KeyShare], digest: [u8; 32]) -> Signature {
    let messages = vec![Message {
        digest,
        tweak: Tweak::Untweaked,
    }];
    let (mut nonces, mut commitments) = (Vec::new(), BTreeMap::new());
    for share in shares {
        let (secret, public) = sign::commit(share, 1, &mut OsRng).unwrap();
        nonces.push(secret);
        commitments.insert(share.signer(), public);
    }
    let package = Package {
        messages,
        commitments,
    };
    let answers: BTreeMap<_, _> = shares
        .iter()
        .zip(nonces)
        .map(|(share, nonces)| (share.signer(), sign::sign(share, nonces, &package).unwrap()))
        .collect();
    sign::aggregate(shares[0].group(), &package, &answers).unwrap()[0]
}

pub fn copy(share: &KeyShare) -> KeyShare {
    KeyShare::from_secret_bytes(&share.to_secret_bytes().unwrap()).unwrap()
}

pub fn share(index: usize) -> &'static KeyShare {
    &shares()[index]
}

pub fn own_share(index: usize) -> KeyShare {
    copy(share(index))
}

pub fn vault_key() -> &'static VaultKey {
    static KEY: OnceLock<VaultKey> = OnceLock::new();
    KEY.get_or_init(|| {
        VaultKey::new(
            share(0).group().clone(),
            parameters().clone(),
            roster().clone(),
        )
        .unwrap()
    })
}

pub fn genesis() -> Genesis {
    let outpoint = OutPoint::new(Txid::from_byte_array([0xaa; 32]), 1);
    vault_key().genesis(outpoint, GENESIS_AMOUNT, VERIFYING_KEY_HASH)
}

/// What a node says of the genesis output, and its chain's height.
pub fn genesis_output() -> (UnspentOutput, u32) {
    let confirmations = parameters().genesis_confirmations;
    let output = UnspentOutput {
        value: GENESIS_AMOUNT,
        script_pubkey: vault_key().script_pubkey().clone(),
        confirmations,
        coinbase: false,
        best_block: bitcoin::BlockHash::all_zeros(),
    };
    (output, GENESIS_HEIGHT + confirmations - 1)
}

pub fn verified_genesis() -> Verified {
    let (output, tip) = genesis_output();
    let verified = genesis::check(
        vault_key(),
        VERIFYING_KEY_HASH,
        &genesis(),
        Some((&output, tip)),
    );
    Verified::Genesis(verified.unwrap())
}

/// The session in which the coordinator has the genesis signed.
pub fn genesis_session() -> SessionId {
    Subject::Genesis(genesis()).session(&roster().coordinators[0].key)
}

/// What the signing machine grants for an attempt at this subject, which is that batch if it is one.
pub fn grant(subject: Subject, batch: Option<BatchHash>, attempt: u32) -> Grant {
    let from = roster().coordinators[0].key;
    let session = subject.session(&from);
    let mut state = State::default();
    if let Subject::Batch(candidate) = &subject {
        let genesis = vault().genesis_output();
        let head = Treasury {
            outpoint: candidate.parent,
            value: genesis.amount,
            commitment: Commitment {
                sequence: SequenceNumber(candidate.sequence.0 - 1),
                supply: Amount::ZERO,
                digest: [0; 32],
            },
        };
        let input = Input::Chain {
            head: Some(head),
            height: 200,
        };
        state.step(0, input).unwrap();
    }
    let mut epoch = 0;
    if let Subject::Epoch(claim) = &subject {
        epoch = claim.epoch;
        let genesis = vault().genesis_output();
        let head = Treasury {
            outpoint: genesis.outpoint,
            value: genesis.amount,
            commitment: Commitment {
                sequence: SequenceNumber(0),
                supply: Amount::ZERO,
                digest: [0; 32],
            },
        };
        let input = Input::Chain {
            head: Some(head),
            height: 200,
        };
        state.step(0, input).unwrap();
        let pending = BTreeMap::from([(claim.epoch, claim.group)]);
        state.step(0, Input::Epochs { own: 0, pending }).unwrap();
    }
    let mut effects = Vec::new();
    for input in [
        Input::Proposed { from, subject },
        Input::Verified { session, batch },
        Input::Stored {
            session,
            reachable: BTreeSet::new(),
        },
        Input::SignRequested {
            from,
            session,
            epoch,
            attempt,
        },
    ] {
        effects = state.step(0, input).unwrap();
    }
    match effects.pop() {
        Some(Effect::PromiseAndSign(grant)) => grant,
        other => panic!("no grant but {other:?}"),
    }
}

/// What an operator that has decided nothing stands by.
pub fn affirmed(store: &Store, verified: Verified) -> Affirmed {
    let kept = Kept::write(store, Arc::new(verified)).unwrap();
    verify::affirm(&kept, &fixture::standing()).unwrap()
}

/// A promise of the genesis for an attempt.
pub fn promised_genesis(attempt: u32) -> Promised {
    let (_folder, store) = store();
    let grant = grant(Subject::Genesis(genesis()), None, attempt);
    Promised::write(&store, grant, affirmed(&store, verified_genesis())).unwrap()
}

pub fn vault() -> &'static Arc<Vault> {
    static VAULT: OnceLock<Arc<Vault>> = OnceLock::new();
    VAULT.get_or_init(|| {
        let genesis = genesis();
        let signature = sign_with_all(shares(), genesis.digest());
        let certificate = GenesisCertificate { genesis, signature };
        Arc::new(Vault::open(vault_key().clone(), certificate, VERIFYING_KEY_HASH).unwrap())
    })
}

/// A candidate and a body that fit together, though no operator would sign them.
pub fn candidate_and_body() -> (Candidate, Body) {
    let id = vault().id();
    let body = Body {
        vault: id,
        sequence: SequenceNumber(1),
        operations: Vec::new(),
        terms: Vec::new(),
        digests: vec![[0; 32]],
        proofs: Vec::new(),
    };
    let candidate = Candidate {
        vault: id,
        sequence: body.sequence,
        parent: vault().genesis_output().outpoint,
        body: body.hash(),
        top_ups: Vec::new(),
        fee: Amount::from_sat(1_000),
        txid: Txid::from_byte_array([5; 32]),
    };
    (candidate, body)
}

/// Terms that the vault offers.
pub fn terms() -> DepositTerms {
    let account = AccountSecret::generate(&mut OsRng).public();
    let refund = XOnlyPublicKey::from_str(NUMS).unwrap();
    DepositTerms::offered(vault().id(), parameters(), account, refund)
}

/// A first batch with one deposit and no proofs: what a history takes, and no verifier.
pub fn confirmed_batch(credited: u64) -> (Candidate, Body, Transaction) {
    let vault = vault();
    let terms = terms();
    let account = terms.account;
    let outpoint = OutPoint::new(Txid::from_byte_array([0xbb; 32]), 0);
    let amount = Amount::from_sat(credited);
    let mut ledger = Ledger::new();
    let genesis = vault.genesis_output();
    let treasury = Treasury {
        outpoint: genesis.outpoint,
        value: genesis.amount,
        commitment: Commitment {
            sequence: SequenceNumber(0),
            supply: Amount::ZERO,
            digest: ledger.digest().to_bytes(),
        },
    };
    let operations = vec![Operation::Deposit {
        account,
        amount,
        outpoint,
    }];
    let transition = ledger
        .apply_batch(&operations, &vault.id(), SequenceNumber(1))
        .unwrap();
    let body = Body {
        vault: vault.id(),
        sequence: SequenceNumber(1),
        operations,
        terms: vec![terms.clone()],
        digests: transition
            .digests()
            .iter()
            .map(|digest| digest.to_bytes())
            .collect(),
        proofs: vec![vec![0; 128]],
    };
    let address = terms.address(&vault.group_key()).unwrap();
    let fee = Amount::from_sat(2_000);
    let plan = BatchPlan {
        treasury: &treasury,
        deposits: &[Swept {
            outpoint,
            value: amount + parameters().deposit_fee,
            address,
        }],
        top_ups: &[],
        withdrawals: &[],
        next: Commitment {
            sequence: SequenceNumber(1),
            supply: transition.after.supply,
            digest: transition.digest_after().to_bytes(),
        },
        fee,
    };
    let transaction = BatchTransaction::build(vault.key(), &plan)
        .unwrap()
        .unsigned;
    let candidate = Candidate {
        vault: vault.id(),
        sequence: SequenceNumber(1),
        parent: treasury.outpoint,
        body: body.hash(),
        top_ups: Vec::new(),
        fee,
        txid: transaction.compute_txid(),
    };
    (candidate, body, transaction)
}

/// A withdrawal by somebody.
pub fn withdrawal(sats: u64) -> Operation {
    let request = WithdrawRequest {
        sender: AccountIndex(0),
        nonce: 0,
        amount: Amount::from_sat(sats),
        fee: parameters().withdraw_fee,
        script_pubkey: vault_key().script_pubkey().clone(),
        last_valid: SequenceNumber(10),
    };
    request.sign(&AccountSecret::generate(&mut OsRng), &vault().id())
}

/// A policy with these limits on withdrawals and no others, and `top` before the first table.
pub fn policy(withdrawals: &str, top: &str) -> Policy {
    parse_policy(withdrawals, top, "")
}

/// A policy without limits, with these caps on fees instead of the usual ones.
pub fn policy_with_fees(fees: &str) -> Policy {
    parse_policy("", "", fees)
}

fn parse_policy(withdrawals: &str, top: &str, fees: &str) -> Policy {
    let usual = [
        "max_fee_sat = 5_000",
        "max_fee_rate_sat_per_vb = 50",
        "max_net_fees_sat = 0",
    ];
    let name = |line: &str| line.split(' ').next().unwrap().to_owned();
    let kept = usual.iter().filter(|line| !fees.contains(&name(line)));
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    let text =
        format!("window_blocks = 144\n{top}\n[withdrawals]\n{withdrawals}\n[fees]\n{kept}{fees}\n");
    Policy::parse(Path::new("policy.toml"), &text, parameters()).unwrap()
}

/// An empty operator's database. It goes away with the folder.
pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let columns = [
        node::history::TABLES.as_slice(),
        &promises::TABLES,
        &decisions::TABLES,
        &held::TABLES,
        &repair::TABLES,
        &signed::TABLES,
        &crate::requests::TABLES,
    ]
    .concat();
    let schema = Schema {
        kind: "operator",
        network: "test",
        columns: &columns,
    };
    let store = Store::open(folder.path().join("db"), &schema).unwrap();
    (folder, store)
}

/// A backup of the first operator.
pub fn backup() -> Backup {
    let share = own_share(0);
    let group = share.group();
    let facts = Facts {
        created_ms: 1,
        version: "0.1.0".to_owned(),
        name: "operator 0".to_owned(),
        identity: identity(0).public(),
        signer: share.signer(),
        network: Network::Regtest,
        group_key: group.group_key(),
        epoch: group.epoch(),
        threshold: group.threshold(),
        signers: group.signers().len(),
        roster_hash: roster().hash(),
        parameters_hash: parameters().hash(),
        vault: Some(vault().id()),
        genesis_height: Some(GENESIS_HEIGHT),
    };
    Backup {
        facts,
        identity: identity(0),
        share,
    }
}
