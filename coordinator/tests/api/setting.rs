//! The coordinator that the tests talk to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode, header},
};
use bitcoin::{
    Amount, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid, absolute::LockTime,
    hashes::Hash as _, transaction::Version,
};
use coordinator::{
    api::{self, PerAddress},
    copies::Copies,
    live::{Live, Reader, SharedHistory},
    records::{
        BATCHES, BatchRecord, BumpFailure, DEPOSITS, DEPOSITS_OF, DepositRecord, Progress,
        Request as Wish, SignedCandidate, columns,
    },
    terms::{self, Shown},
    token::{self, NewToken},
};
use ledger::{AccountIndex, AccountSecret, Ledger, Operation, SequenceNumber, TransferRequest};
use node::history::{self, CONFIRMED, Confirmed, History};
use protocol::{
    api::{BatchStatus, RequestStatus, StageTimes},
    batch::{Body as BatchBody, Candidate},
    deposit::DepositTerms,
    identity::PeerKey,
    message::{Refusal, Rule},
    parameters::Parameters,
    roster::{Member, Roster},
    transaction::{Commitment, Treasury},
    vault::{GenesisCertificate, Vault, VaultKey},
};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use storage::{Changes, Schema, Store};
use threshold::{
    GroupInfo, SignerId,
    dkg::{Ceremony, Machine, Seed},
    sign::{Message, Package, Tweak, aggregate, commit, sign},
};
use tokio::sync::{Mutex, Notify, watch};
use tower::ServiceExt as _;

pub const NETWORK: Network = Network::Regtest;
/// High enough for every test that is not about rates.
pub const RATE: PerAddress = PerAddress {
    requests_per_second: 100_000,
    event_streams: 8,
};
/// Messages of a key generation pass in fewer rounds than this.
const MAX_ROUNDS: usize = 8;
const VERIFYING_KEY_HASH: [u8; 32] = [7; 32];
/// What Alice has after batch 1: a deposit of 100,000 less the fee of 1,000, less what she sent.
pub const ALICE_SAT: u64 = 99_000 - 20_000 - 100;
pub const ALICE: u32 = 0;
pub const BOB: u32 = 1;

pub struct Setting {
    dir: Option<tempfile::TempDir>,
    folder: PathBuf,
    pub reader: Reader,
    pub live: watch::Sender<Live>,
    pub router: Router,
    pub vault: Arc<Vault>,
    /// Leaf 0, nonce 1.
    /// Of the administrator "alice".
    pub admin: NewToken,
    pub alice: AccountSecret,
    /// Leaf 1, nonce 0.
    pub bob: AccountSecret,
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn ok(&self) -> Value {
        assert!(
            self.status.is_success(),
            "{} {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    /// Asserts that this is a problem document in every respect.
    pub fn problem(&self, status: u16, code: &str) {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(
            self.headers[header::CONTENT_TYPE],
            "application/problem+json",
            "{text}"
        );
        let body = self.json();
        assert_eq!(
            (self.status.as_u16(), body["code"].as_str().unwrap()),
            (status, code),
            "{text}"
        );
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("/problems/{code}"));
        assert!(!body["title"].as_str().unwrap().is_empty());
        assert!(!body["detail"].as_str().unwrap().is_empty());
    }
}

pub async fn call(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 32 << 20).await.unwrap().to_vec();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

pub fn from(mut request: Request<Body>, address: &str) -> Request<Body> {
    let address: SocketAddr = address.parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(address));
    request
}

pub fn member(number: u8) -> Member {
    Member {
        name: format!("node-{number}"),
        key: PeerKey([number; 32]),
        founding_key: None,
        addresses: Vec::new(),
    }
}

/// Key generation of 2 of 2, and the signature that certifies what `digest` makes of the group.
pub fn group(roster: &Roster) -> Vec<Machine> {
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
    for _ in 0..MAX_ROUNDS {
        for (to, from) in [(0, 1), (1, 0)] {
            for message in machines[from].messages_for(ids[to]) {
                machines[to].receive(ids[from], message).unwrap();
            }
        }
    }
    machines
}

fn info(machines: &[Machine]) -> &GroupInfo {
    machines[0]
        .finished()
        .expect("key generation finished")
        .group()
}

fn certificate(machines: &[Machine], key: &VaultKey) -> GenesisCertificate {
    let outpoint = OutPoint {
        txid: Txid::from_byte_array([9; 32]),
        vout: 1,
    };
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
    let signature = aggregate(info(machines), &package, &shares).unwrap()[0];
    GenesisCertificate { genesis, signature }
}

fn reader(
    folder: &Path,
    parameters: Parameters,
    roster: Roster,
    live: &watch::Sender<Live>,
) -> Reader {
    let schema = Schema {
        kind: "coordinator",
        network: "test",
        columns: &columns(),
    };
    let store = Store::open(folder, &schema).unwrap();
    let roster = Arc::new(roster);
    Reader {
        shown: Arc::new(Shown::new(store.clone(), roster.clone())),
        copies: Copies::none(),
        store,
        live: live.subscribe(),
        history: SharedHistory::default(),
        parameters: Arc::new(parameters),
        roster,
        verifying_key_hash: VERIFYING_KEY_HASH,
        setup: "single-party, for tests".to_owned(),
        writing: Arc::new(Mutex::new(())),
        wake: Arc::new(Notify::new()),
    }
}

pub fn deposit_outpoint(number: u8) -> OutPoint {
    OutPoint {
        txid: Txid::from_byte_array([number; 32]),
        vout: 0,
    }
}

impl Setting {
    /// Before key generation.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        Self {
            dir: Some(dir),
            ..Self::at(folder)
        }
    }

    /// Before key generation, with a database in this folder.
    pub fn at(folder: PathBuf) -> Self {
        let roster = Roster {
            threshold: 2,
            operators: vec![member(1), member(2)],
            coordinators: vec![member(3)],
            attestation: Default::default(),
        };
        let parameters = Parameters::defaults(NETWORK);
        let live = watch::Sender::new(Live {
            phase: "generating the key".into(),
            bitcoind: true,
            ..Live::default()
        });
        let reader = reader(&folder, parameters.clone(), roster.clone(), &live);
        let machines = group(&roster);
        let key = VaultKey::new(info(&machines).clone(), parameters, roster).unwrap();
        let certificate = certificate(&machines, &key);
        let vault = Arc::new(Vault::open(key, certificate, VERIFYING_KEY_HASH).unwrap());
        let admin = token::make("alice").unwrap();
        let mut rng = StdRng::seed_from_u64(2);
        let (alice, bob) = (
            AccountSecret::generate(&mut rng),
            AccountSecret::generate(&mut rng),
        );
        let router = api::router(reader.clone(), RATE, vec![admin.entry.clone()]);
        Self {
            dir: None,
            folder,
            reader,
            admin,
            live,
            router,
            vault,
            alice,
            bob,
        }
    }

    /// With a vault and one confirmed batch: Alice's deposit, and a payment of hers to Bob.
    pub fn new() -> Self {
        let setting = Self::empty();
        setting.store_first_batch();
        setting.opened()
    }

    /// Where its database is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The same database, opened by another process as it were.
    pub fn restarted(self) -> Self {
        let Self {
            dir,
            folder,
            reader,
            live,
            router,
            ..
        } = self;
        *reader.history.write().unwrap() = None;
        drop((reader, live, router));
        Self {
            dir,
            ..Self::at(folder).opened()
        }
    }

    fn opened(self) -> Self {
        let setting = self;
        let history =
            History::open(setting.reader.store.clone(), setting.vault.clone(), 1).unwrap();
        assert!(history.is_current());
        *setting.reader.history.write().unwrap() = Some(history);
        setting.live.send_modify(|live| {
            live.key = Some(Arc::new(setting.vault.key().clone()));
            live.vault = Some(setting.vault.clone());
            live.phase = "idle".into();
            live.height = 110;
            live.connected = vec![PeerKey([1; 32])];
        });
        setting
    }

    pub fn terms(&self) -> DepositTerms {
        let refund = self.vault.group_key();
        DepositTerms::offered(
            self.vault.id(),
            &self.reader.parameters,
            self.alice.public(),
            refund,
        )
    }

    fn store_first_batch(&self) {
        let terms = self.terms();
        let id = self.vault.id();
        let deposit = Operation::Deposit {
            account: self.alice.public(),
            amount: Amount::from_sat(99_000),
            outpoint: deposit_outpoint(1),
        };
        let transfer = self.transfer_of(0, 20_000);
        let operations = vec![deposit, transfer];
        let mut ledger = Ledger::new();
        let sequence = SequenceNumber(1);
        let transition = ledger.apply_batch(&operations, &id, sequence).unwrap();
        let digests: Vec<_> = transition
            .digests()
            .iter()
            .map(ledger::Digest::to_bytes)
            .collect();
        let proofs = vec![vec![5; 128]; digests.len() - 1];
        let body = BatchBody {
            vault: id,
            sequence,
            operations,
            terms: vec![terms.clone()],
            digests,
            proofs,
        };
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![],
            output: vec![],
        };
        let candidate = Candidate {
            vault: id,
            sequence,
            parent: self.vault.genesis_output().outpoint,
            body: body.hash(),
            top_ups: Vec::new(),
            fee: Amount::from_sat(500),
            txid: transaction.compute_txid(),
        };
        let supply = ledger.supply();
        let commitment = Commitment {
            sequence,
            supply,
            digest: ledger.digest().to_bytes(),
        };
        let outpoint = OutPoint::new(candidate.txid, 0);
        let treasury = Treasury {
            outpoint,
            value: Amount::from_sat(149_500),
            commitment,
        };
        let mut changes = Changes::new();
        history::keep_in(&mut changes, &candidate, &body.encode());
        changes.put(
            &CONFIRMED,
            &1,
            &Confirmed {
                treasury,
                height: 105,
                txid: candidate.txid,
            },
        );
        terms::put(
            &mut changes,
            &terms.address(&self.vault.group_key()).unwrap(),
        );
        for (number, value) in [(1, 100_000), (2, 30_000), (3, 1_500)] {
            self.put_deposit(&mut changes, number, value);
        }
        let record = self.batch_record(&body, candidate, transaction, treasury);
        changes.put(&BATCHES, &1, &record);
        for sequence in 2..5 {
            let mut later = record.clone();
            later.sequence = SequenceNumber(sequence);
            later.status = BatchStatus::Formed;
            (later.body, later.candidate, later.transaction) = (None, None, None);
            changes.put(&BATCHES, &sequence, &later);
        }
        self.reader.store.commit(changes).unwrap();
    }

    fn put_deposit(&self, changes: &mut Changes, number: u8, value: u64) {
        let terms = self.terms();
        let outpoint = deposit_outpoint(number);
        let record = DepositRecord {
            outpoint,
            terms: terms.hash(),
            value: Amount::from_sat(value),
            height: 101,
            progress: Progress::new(RequestStatus::Received, 1_000),
        };
        changes.put(&DEPOSITS, &outpoint, &record);
        changes.put(&DEPOSITS_OF, &(terms.account.to_bytes(), outpoint), &());
    }

    fn batch_record(
        &self,
        body: &BatchBody,
        candidate: Candidate,
        transaction: Transaction,
        treasury: Treasury,
    ) -> BatchRecord {
        let transfer = body.operations[1].id(&body.vault);
        BatchRecord {
            sequence: body.sequence,
            tries: 0,
            status: BatchStatus::Final,
            reason: None,
            requests: vec![Wish::Deposit(deposit_outpoint(1)), Wish::Signed(transfer)],
            operations: body.operations.clone(),
            terms: body.terms.clone(),
            values: vec![Amount::from_sat(100_000)],
            top_ups: Vec::new(),
            fee: candidate.fee,
            body: Some(candidate.body),
            candidates: vec![SignedCandidate {
                candidate: candidate.clone(),
                top_ups: Vec::new(),
                transaction: transaction.clone(),
                height: 104,
                at_ms: 1_900,
            }],
            bump: None,
            bump_failure: Some(BumpFailure {
                reason: "the surplus does not cover a higher fee".to_owned(),
                height: 104,
                refused: None,
            }),
            candidate: Some(candidate),
            transaction: Some(transaction),
            shape: (2, 2),
            treasury: treasury.value,
            supply: treasury.commitment.supply,
            signers: vec![PeerKey([1; 32]), PeerKey([2; 32])],
            blamed: Vec::new(),
            refusals: vec![(
                PeerKey([2; 32]),
                Refusal::new(Rule::S5, "the fee is above my cap"),
            )],
            attempts: 1,
            signing_ms: Some(321),
            broadcast_ms: Some(2_000),
            height: Some(105),
            stage_ms: StageTimes {
                prove: Some(1_234),
                ..StageTimes::default()
            },
        }
    }

    fn transfer_of(&self, nonce: u64, amount: u64) -> Operation {
        TransferRequest {
            sender: AccountIndex(ALICE),
            nonce,
            amount: Amount::from_sat(amount),
            fee: Amount::from_sat(100),
            recipient: self.bob.public(),
            last_valid: SequenceNumber(100),
        }
        .sign(&self.alice, &self.vault.id())
    }

    pub async fn get(&self, path: &str) -> Answer {
        call(&self.router, get(path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        call(&self.router, post(path, body.to_string())).await
    }

    pub fn is_watched(&self, script: &ScriptBuf) -> bool {
        let paying = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![],
            output: vec![TxOut {
                value: Amount::from_sat(1_000),
                script_pubkey: script.clone(),
            }],
        };
        let mut block = bitcoin::constants::genesis_block(NETWORK);
        block.txdata = vec![paying];
        let paid = terms::paid_in(&self.reader.store, &block).unwrap();
        paid.contains_key(script)
    }
}
