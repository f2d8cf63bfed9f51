//! A vault, its batches, and the blocks that hold them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use bitcoin::{Amount, Block, Network, OutPoint, Transaction, Txid, hashes::Hash as _};
use chain::{ChainEvent, Position, Step};
use ledger::{AccountKey, Ledger, Operation, SequenceNumber};
use node::history::{self, CONFIRMED, Confirmed, History, TABLES};
use protocol::{
    batch::{Body, Candidate},
    deposit::{DepositTerms, NUMS},
    identity::PeerKey,
    parameters::Parameters,
    roster::{Member, Roster},
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, Treasury},
    vault::{GenesisCertificate, Vault, VaultKey},
};
use rand::{SeedableRng as _, rngs::StdRng};
use storage::{Changes, Schema, Store};
use threshold::{
    SignerId,
    dkg::{Ceremony, Machine, Seed},
    sign::{Message, Package, Tweak, aggregate, commit, sign},
};

/// Height of the first block that may hold a batch; batch k of a branch is in block `START + k - 1`.
pub const START: u32 = 102;
const VERIFYING_KEY_HASH: [u8; 32] = [7; 32];
/// What a batch credits to an account that is there before, and to a new one.
const CREDITED: [u64; 2] = [30_000, 50_000];

pub static VAULT: LazyLock<Arc<Vault>> = LazyLock::new(|| {
    let member = |number: u8| Member {
        name: format!("node-{number}"),
        key: PeerKey([number; 32]),
        founding_key: None,
        addresses: Vec::new(),
    };
    let roster = Roster {
        threshold: 2,
        operators: vec![member(1), member(2)],
        coordinators: vec![member(3)],
        attestation: Default::default(),
    };
    let machines = generate(&roster);
    let group = machines[0].finished().unwrap().group().clone();
    let parameters = Parameters::defaults(Network::Regtest);
    let key = VaultKey::new(group, parameters, roster).unwrap();
    let certificate = certify(&machines, &key);
    Arc::new(Vault::open(key, certificate, VERIFYING_KEY_HASH).unwrap())
});

/// Key generation of 2 of 2.
fn generate(roster: &Roster) -> Vec<Machine> {
    let signers: BTreeSet<SignerId> = roster.signers();
    let mut machines: Vec<Machine> = signers
        .iter()
        .zip(1_u8..)
        .map(|(me, number)| {
            let ceremony = Ceremony {
                me: *me,
                signers: signers.clone(),
                threshold: roster.threshold,
                context: [1; 32],
            };
            Machine::new(ceremony, &Seed::from_bytes(&[number; 32])).unwrap()
        })
        .collect();
    let ids: Vec<SignerId> = signers.into_iter().collect();
    while machines.iter().any(|machine| machine.finished().is_none()) {
        for (to, from) in [(0, 1), (1, 0)] {
            for message in machines[from].messages_for(ids[to]) {
                machines[to].receive(ids[from], message).unwrap();
            }
        }
    }
    machines
}

fn certify(machines: &[Machine], key: &VaultKey) -> GenesisCertificate {
    let outpoint = OutPoint::new(Txid::from_byte_array([9; 32]), 1);
    let genesis = key.genesis(outpoint, Amount::from_sat(50_000), VERIFYING_KEY_HASH);
    let mut rng = StdRng::seed_from_u64(1);
    let messages = vec![Message {
        digest: genesis.digest(),
        tweak: Tweak::Untweaked,
    }];
    let (mut nonces, mut commitments) = (Vec::new(), BTreeMap::new());
    for machine in machines {
        let share = machine.finished().unwrap();
        let (secret, public) = commit(share, messages.len(), &mut rng).unwrap();
        nonces.push((share, secret));
        commitments.insert(share.signer(), public);
    }
    let package = Package {
        messages,
        commitments,
    };
    let shares = nonces
        .into_iter()
        .map(|(share, secret)| (share.signer(), sign(share, secret, &package).unwrap()))
        .collect();
    let group = machines[0].finished().unwrap().group();
    let signature = aggregate(group, &package, &shares).unwrap()[0];
    GenesisCertificate { genesis, signature }
}

/// An empty database. It goes away with the folder.
pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let schema = Schema {
        kind: "test",
        network: "test",
        columns: &TABLES,
    };
    let store = Store::open(folder.path(), &schema).unwrap();
    (folder, store)
}

pub fn open(store: &Store) -> History {
    History::open(store.clone(), VAULT.clone(), START).unwrap()
}

/// A batch, and the ledger after it.
#[derive(Clone)]
pub struct Batch {
    pub candidate: Candidate,
    pub body: Body,
    pub treasury: Treasury,
    pub ledger: Ledger,
    pub height: u32,
    transaction: Transaction,
}

impl Batch {
    pub fn sequence(&self) -> SequenceNumber {
        self.candidate.sequence
    }

    /// Keeps its data, as an operator has before it signs.
    pub fn keep(&self, store: &Store) {
        history::keep(store, &self.candidate, &self.body.encode()).unwrap();
    }

    /// What the history writes of its block.
    pub fn confirm(&self, store: &Store) {
        let mut changes = Changes::new();
        let confirmed = Confirmed {
            treasury: self.treasury,
            height: self.height,
            txid: self.candidate.txid,
        };
        changes.put(&CONFIRMED, &self.sequence().0, &confirmed);
        store.commit(changes).unwrap();
    }

    /// The block that holds it joins the best chain.
    pub fn joins(&self) -> Step {
        let block = self.block();
        Step {
            event: ChainEvent::Connected {
                height: self.height,
                hash: block.block_hash(),
                block: Box::new(block),
            },
            position: Position::starting_at(self.height + 1),
        }
    }

    /// The block that holds it leaves the best chain.
    pub fn leaves(&self) -> Step {
        let block = self.block();
        Step {
            event: ChainEvent::Disconnected {
                height: self.height,
                hash: block.block_hash(),
                block: Some(Box::new(block)),
            },
            position: Position::starting_at(self.height),
        }
    }

    /// The history trusts its follower for the rest of a block.
    fn block(&self) -> Block {
        let mut block = bitcoin::constants::genesis_block(Network::Regtest);
        block.txdata.push(self.transaction.clone());
        block
    }
}

/// A branch of the best chain: what the history must show.
#[derive(Clone, Default)]
pub struct Branch {
    pub batches: Vec<Batch>,
    /// Accounts that were ever credited, in whatever branch.
    used: usize,
}

impl Branch {
    /// The ledger at its end, every operation applied by itself.
    pub fn ledger(&self) -> Ledger {
        self.batches
            .last()
            .map_or_else(Ledger::new, |last| last.ledger.clone())
    }

    fn head(&self) -> Treasury {
        let genesis = VAULT.genesis_output();
        let first = Treasury {
            outpoint: genesis.outpoint,
            value: genesis.amount,
            commitment: Commitment {
                sequence: SequenceNumber(0),
                supply: Amount::ZERO,
                digest: Ledger::new().digest().to_bytes(),
            },
        };
        self.batches.last().map_or(first, |last| last.treasury)
    }

    /// Another batch: a deposit for an account of this branch, if it has one, and one for a new account. No two are alike.
    pub fn grow(&mut self) -> Batch {
        let head = self.head();
        let mut ledger = self.ledger();
        self.used += 1;
        let new = AccountKey::sequence(self.used).pop().unwrap();
        let at = self.used % ledger.accounts().len().max(1);
        let old = ledger.accounts().get(at).map(|account| account.key);
        let mut operations = Vec::new();
        let (mut terms, mut deposits) = (Vec::new(), Vec::new());
        for (account, credited) in [old, Some(new)].into_iter().zip(CREDITED) {
            let Some(account) = account else { continue };
            let mut bytes = [0xbb; 32];
            bytes[..8].copy_from_slice(&(self.used as u64).to_le_bytes());
            let outpoint = OutPoint::new(
                Txid::from_byte_array(bytes),
                u32::try_from(deposits.len()).unwrap(),
            );
            let amount = Amount::from_sat(credited);
            operations.push(Operation::Deposit {
                account,
                amount,
                outpoint,
            });
            let refund = NUMS.parse().unwrap();
            let offered = DepositTerms::offered(VAULT.id(), VAULT.parameters(), account, refund);
            deposits.push(Swept {
                outpoint,
                value: amount + VAULT.parameters().deposit_fee,
                address: offered.address(&VAULT.group_key()).unwrap(),
            });
            terms.push(offered);
        }
        let sequence = SequenceNumber(head.commitment.sequence.0 + 1);
        let transition = ledger
            .apply_batch(&operations, &VAULT.id(), sequence)
            .unwrap();
        let digests: Vec<[u8; 32]> = transition
            .digests()
            .iter()
            .map(ledger::Digest::to_bytes)
            .collect();
        let plan = BatchPlan {
            treasury: &head,
            deposits: &deposits,
            top_ups: &[],
            withdrawals: &[],
            next: Commitment {
                sequence,
                supply: transition.after.supply,
                digest: transition.digest_after().to_bytes(),
            },
            fee: Amount::from_sat(1_000),
        };
        let built = BatchTransaction::build(VAULT.key(), &plan).unwrap();
        let body = Body {
            vault: VAULT.id(),
            sequence,
            operations,
            terms,
            proofs: vec![vec![0; 128]; digests.len() - 1],
            digests,
        };
        let candidate = Candidate {
            vault: VAULT.id(),
            sequence,
            parent: head.outpoint,
            body: body.hash(),
            top_ups: Vec::new(),
            fee: plan.fee,
            txid: built.unsigned.compute_txid(),
        };
        let batch = Batch {
            candidate,
            body,
            treasury: built.treasury,
            ledger,
            height: START + u32::try_from(sequence.0).unwrap() - 1,
            transaction: built.unsigned,
        };
        self.batches.push(batch.clone());
        batch
    }
}
