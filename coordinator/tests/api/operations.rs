//! Signed operations: each thing that can be wrong has its code and changes nothing; a good one is
//! stored once.

use bitcoin::{Address, Amount, KnownHrp, Network, WitnessProgram, WitnessVersion};
use coordinator::records::{OPERATIONS, PENDING, REQUESTS};
use ledger::{AccountIndex, AccountSecret, SequenceNumber, TransferRequest, WithdrawRequest};
use serde_json::{Value, json};
use storage::{Changes, Direction, Place};

use crate::setting::{ALICE, ALICE_SAT, BOB, NETWORK, Setting};

const PATH: &str = "/v1/operations";
const PAYEE: &str = "bcrt1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqc8gma6";

/// A transfer that the coordinator takes, unless something is changed.
struct Transfer {
    sender: u32,
    nonce: u64,
    amount: u64,
    fee: u64,
    last_valid: u64,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            sender: ALICE,
            nonce: 1,
            amount: 500,
            fee: 100,
            last_valid: 50,
        }
    }
}

impl Transfer {
    fn signed(&self, setting: &Setting) -> Value {
        self.signed_by(setting, &setting.alice)
    }

    fn signed_by(&self, setting: &Setting, secret: &AccountSecret) -> Value {
        let request = TransferRequest {
            sender: AccountIndex(self.sender),
            nonce: self.nonce,
            amount: Amount::from_sat(self.amount),
            fee: Amount::from_sat(self.fee),
            recipient: setting.bob.public(),
            last_valid: SequenceNumber(self.last_valid),
        };
        let signature = *request
            .sign(secret, &setting.vault.id())
            .signature()
            .unwrap();
        json!({
            "type": "transfer", "sender": self.sender, "nonce": self.nonce, "amount_sat": self.amount,
            "fee_sat": self.fee, "recipient": setting.bob.public().to_address(NETWORK),
            "last_valid": self.last_valid, "signature": signature.to_string(),
        })
    }
}

fn withdraw(setting: &Setting, address: &str, amount: u64) -> Value {
    let script = address
        .parse::<Address<_>>()
        .unwrap()
        .assume_checked()
        .script_pubkey();
    let request = WithdrawRequest {
        sender: AccountIndex(ALICE),
        nonce: 1,
        amount: Amount::from_sat(amount),
        fee: Amount::from_sat(1_500),
        script_pubkey: script,
        last_valid: SequenceNumber(50),
    };
    let signature = *request
        .sign(&setting.alice, &setting.vault.id())
        .signature()
        .unwrap();
    json!({
        "type": "withdraw", "sender": ALICE, "nonce": 1, "amount_sat": amount, "fee_sat": 1_500,
        "address": address, "last_valid": 50, "signature": signature.to_string(),
    })
}

fn changed(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

/// (operations, operations that wait, requests queued).
fn kept(setting: &Setting) -> (usize, usize, usize) {
    let store = &setting.reader.store;
    (
        store
            .iter(&OPERATIONS, .., Direction::Forward, usize::MAX)
            .unwrap()
            .count(),
        store
            .iter(&PENDING, .., Direction::Forward, usize::MAX)
            .unwrap()
            .count(),
        store.queue(&REQUESTS).unwrap().lengths().ready,
    )
}

async fn refuses(setting: &Setting, body: Value, status: u16, code: &str) {
    let digest = setting
        .reader
        .history
        .read()
        .unwrap()
        .as_ref()
        .unwrap()
        .ledger()
        .digest();
    setting.post(PATH, &body).await.problem(status, code);
    assert_eq!(kept(setting), (0, 0, 0), "{code} has left something");
    let after = setting
        .reader
        .history
        .read()
        .unwrap()
        .as_ref()
        .unwrap()
        .ledger()
        .digest();
    assert_eq!(after, digest, "{code} has changed the ledger");
}

#[tokio::test]
async fn an_operation_that_breaks_a_rule_of_the_ledger_is_named_and_leaves_nothing() {
    let setting = Setting::new();
    let signed = |transfer: Transfer| transfer.signed(&setting);
    let base = Transfer::default;
    for (status, code, body) in [
        (409, "stale_nonce", signed(Transfer { nonce: 0, ..base() })),
        (409, "future_nonce", signed(Transfer { nonce: 2, ..base() })),
        (
            422,
            "expired",
            signed(Transfer {
                last_valid: 1,
                ..base()
            }),
        ),
        (
            422,
            "insufficient_balance",
            signed(Transfer {
                amount: ALICE_SAT,
                ..base()
            }),
        ),
        (
            422,
            "unknown_sender",
            signed(Transfer {
                sender: 77,
                ..base()
            }),
        ),
        (422, "fee_too_low", signed(Transfer { fee: 99, ..base() })),
        (
            422,
            "zero_amount",
            signed(Transfer {
                amount: 0,
                ..base()
            }),
        ),
        (
            422,
            "insufficient_balance",
            signed(Transfer {
                amount: u64::MAX,
                ..base()
            }),
        ),
        (
            422,
            "bad_signature",
            base().signed_by(&setting, &setting.bob),
        ),
        (
            422,
            "bad_signature",
            changed(base().signed(&setting), "amount_sat", 501),
        ),
        (
            422,
            "bad_signature",
            changed(base().signed(&setting), "last_valid", 51),
        ),
        (
            422,
            "bad_signature",
            Transfer {
                sender: BOB,
                nonce: 0,
                ..base()
            }
            .signed(&setting),
        ),
    ] {
        refuses(&setting, body, status, code).await;
    }
}

#[tokio::test]
async fn a_signature_for_another_vault_is_refused() {
    let setting = Setting::new();
    let request = TransferRequest {
        sender: AccountIndex(ALICE),
        nonce: 1,
        amount: Amount::from_sat(500),
        fee: Amount::from_sat(100),
        recipient: setting.bob.public(),
        last_valid: SequenceNumber(50),
    };
    let elsewhere = request.sign(&setting.alice, &ledger::VaultId([1; 32]));
    let body = changed(
        Transfer::default().signed(&setting),
        "signature",
        elsewhere.signature().unwrap().to_string(),
    );
    refuses(&setting, body, 422, "bad_signature").await;
}

#[tokio::test]
async fn text_that_is_no_address_key_or_signature_is_refused() {
    let setting = Setting::new();
    let transfer = || Transfer::default().signed(&setting);
    let bob = setting.bob.public();
    let payout = || withdraw(&setting, PAYEE, 5_000);
    // s above the group's order: a second encoding of something else.
    let not_canonical = format!("{}{}", "00".repeat(32), "ff".repeat(32));
    for (code, body) in [
        (
            "wrong_network",
            changed(transfer(), "recipient", bob.to_address(Network::Bitcoin)),
        ),
        ("invalid_account", changed(transfer(), "recipient", PAYEE)),
        (
            "invalid_account",
            changed(transfer(), "recipient", bob.to_string()),
        ),
        (
            "malformed_signature",
            changed(transfer(), "signature", "00"),
        ),
        (
            "malformed_signature",
            changed(transfer(), "signature", not_canonical),
        ),
        (
            "wrong_network",
            changed(
                payout(),
                "address",
                "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
            ),
        ),
        (
            "wrong_network",
            changed(payout(), "address", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
        ),
        (
            "invalid_address",
            changed(payout(), "address", bob.to_address(NETWORK)),
        ),
        ("invalid_address", changed(payout(), "address", "")),
    ] {
        refuses(&setting, body, 422, code).await;
    }
}

#[tokio::test]
async fn a_payout_must_be_above_dust_and_to_a_standard_script() {
    let setting = Setting::new();
    // The dust limit of a P2TR output is 330 sats.
    refuses(&setting, withdraw(&setting, PAYEE, 329), 422, "below_dust").await;
    let program = WitnessProgram::new(WitnessVersion::V2, &[1; 32]).unwrap();
    let unknown = Address::from_witness_program(program, KnownHrp::Regtest).to_string();
    refuses(
        &setting,
        withdraw(&setting, &unknown, 5_000),
        422,
        "non_standard_script",
    )
    .await;
    let answer = setting.post(PATH, &withdraw(&setting, PAYEE, 330)).await;
    assert_eq!(answer.status, 202, "{:?}", answer.json());
    assert_eq!(answer.json()["operation"]["address"], PAYEE);
}

#[tokio::test]
async fn the_same_operation_again_changes_nothing_and_answers_where_it_is() {
    let setting = Setting::new();
    let body = Transfer::default().signed(&setting);
    let first = setting.post(PATH, &body).await;
    assert_eq!(first.status, 202);
    let first = first.ok();
    assert_eq!(first["operation"], body);
    assert_eq!(
        (&first["status"], &first["safe_to_credit"]),
        (&json!("queued"), &json!(false))
    );
    assert_eq!(first["steps"].as_array().unwrap().len(), 2);
    assert_eq!(
        first["reason"],
        "waits for the next batch; the coordinator is at: idle"
    );

    let again = setting.post(PATH, &body).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.ok(), first);
    assert_eq!(kept(&setting), (1, 1, 1));

    let id = first["operation_id"].as_str().unwrap();
    assert_eq!(
        setting.get(&format!("/v1/operations/{id}")).await.ok(),
        first
    );
    let alice = setting.alice.public().to_address(NETWORK);
    let account = setting.get(&format!("/v1/accounts/{alice}")).await.ok();
    assert_eq!(account["pending"], json!([id]));
}

#[tokio::test]
async fn an_operation_that_was_refused_is_queued_when_it_is_sent_again() {
    let setting = Setting::new();
    let body = Transfer::default().signed(&setting);
    setting.post(PATH, &body).await.ok();
    let store = &setting.reader.store;
    let requests = store.queue(&REQUESTS).unwrap();
    let lease = requests.lease(1, 1_000).unwrap().unwrap();
    let (id, tries) = lease.key;
    let mut record = store.get(&OPERATIONS, &id).unwrap().unwrap();
    record.progress.refuse("an operator's policy", 2);
    let mut changes = Changes::new();
    requests.ack(&mut changes, lease);
    changes.put(&OPERATIONS, &id, &record);
    changes.delete(&PENDING, &(ALICE, 1));
    store.commit(changes).unwrap();
    assert_eq!(requests.place(&(id, tries)).unwrap(), Some(Place::Done));

    assert_eq!(setting.post(PATH, &body).await.status, 202);
    let again = requests.lease(1, 1_000).unwrap().unwrap();
    assert_eq!(again.key, (id, tries + 1));
}

#[tokio::test]
async fn a_nonce_can_wait_once_and_the_next_one_may_follow() {
    let setting = Setting::new();
    setting
        .post(PATH, &Transfer::default().signed(&setting))
        .await
        .ok();
    let other = Transfer {
        amount: 600,
        ..Transfer::default()
    };
    setting
        .post(PATH, &other.signed(&setting))
        .await
        .problem(409, "nonce_taken");
    let next = Transfer {
        nonce: 2,
        ..Transfer::default()
    };
    assert_eq!(setting.post(PATH, &next.signed(&setting)).await.status, 202);
    assert_eq!(kept(&setting), (2, 2, 2));
}

#[tokio::test]
async fn operations_wait_for_genesis() {
    let setting = Setting::empty();
    let body = Transfer::default().signed(&setting);
    setting.post(PATH, &body).await.problem(503, "no_genesis");
    assert_eq!(kept(&setting), (0, 0, 0));
}

#[tokio::test]
async fn an_operation_that_was_not_sent_here_is_unknown() {
    let setting = Setting::new();
    let unknown = "00".repeat(32);
    setting
        .get(&format!("/v1/operations/{unknown}"))
        .await
        .problem(404, "unknown_operation");
    for bad in ["1", &"0".repeat(63), &"g".repeat(64), "%FF"] {
        setting
            .get(&format!("/v1/operations/{bad}"))
            .await
            .problem(400, "invalid_parameter");
    }
}
