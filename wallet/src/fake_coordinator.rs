//! A coordinator that lies on demand, and the wallet's answers to it.
//!
//! Its ledger is the real one: what the wallet signs has to apply.

use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use bitcoin::{Amount, Network, OutPoint};
use ledger::{AccountKey, Ledger, Operation, SequenceNumber, VaultId};
use protocol::api::{AccountDocument, OperationRequest, VaultDocument};
use serde_json::{Value, json};

use crate::vault::tests::document;
use crate::{
    Client, ClientError, DepositAddressError, DepositBackup, PinnedVault, SendError, SendOptions,
    Target, VaultError, WaitError, Wallet, wait,
};

type Lie = Arc<dyn Fn(&mut Value) + Send + Sync>;
type Shared = Arc<Mutex<Fake>>;
type Answer = (StatusCode, Json<Value>);

struct Fake {
    vault: VaultDocument,
    ledger: Ledger,
    /// Changes an honest answer; gets the endpoint's name.
    lies: Vec<(&'static str, Lie)>,
    /// Answers to `GET /v1/operations/..`, the last one again and again.
    statuses: Vec<&'static str>,
    accepted: Vec<Operation>,
}

impl Fake {
    fn say(&self, endpoint: &str, mut answer: Value) -> Answer {
        for (_, lie) in self.lies.iter().filter(|(name, _)| *name == endpoint) {
            lie(&mut answer);
        }
        (StatusCode::OK, Json(answer))
    }

    fn vault_id(&self) -> VaultId {
        self.vault.vault_id.as_ref().unwrap().parse().unwrap()
    }
}

fn problem(status: StatusCode, code: &str) -> Answer {
    let body = json!({
        "type": format!("/problems/{code}"), "title": "No", "status": status.as_u16(),
        "detail": "it is not so", "code": code,
    });
    (status, Json(body))
}

async fn vault(State(fake): State<Shared>) -> Answer {
    let fake = fake.lock().unwrap();
    let mut vault = fake.vault.clone();
    vault.supply_sat = fake.ledger.supply().to_sat();
    vault.digest = Some(fake.ledger.digest().to_string());
    fake.say("vault", serde_json::to_value(vault).unwrap())
}

async fn fees(State(fake): State<Shared>) -> Answer {
    let fees = json!({
        "deposit_fee_sat": 1000, "min_deposit_sat": 20000, "transfer_fee_sat": 100,
        "withdraw_fee_sat": 1500, "fee_rate_sat_per_vb": null,
    });
    fake.lock().unwrap().say("fees", fees)
}

async fn deposit_address(State(fake): State<Shared>, Json(request): Json<Value>) -> Answer {
    let fake = fake.lock().unwrap();
    let vault = PinnedVault::from_document(Network::Regtest, &fake.vault).unwrap();
    let account = request["account"].as_str().unwrap();
    let account = AccountKey::from_address(Network::Regtest, account).unwrap();
    let refund = request["refund_key"].as_str().unwrap().parse().unwrap();
    let honest = DepositBackup::derive(&vault, account, refund)
        .unwrap()
        .document();
    fake.say("deposit-addresses", serde_json::to_value(honest).unwrap())
}

async fn account(State(fake): State<Shared>, Path(address): Path<String>) -> Answer {
    let fake = fake.lock().unwrap();
    let key = AccountKey::from_address(Network::Regtest, &address).unwrap();
    let Some((index, found)) = fake.ledger.account_by_key(&key) else {
        return problem(StatusCode::NOT_FOUND, "unknown_account");
    };
    let path = fake.ledger.path(index).unwrap();
    let level = |level: &[ledger::Digest; 3]| level.iter().map(ToString::to_string).collect();
    let document = AccountDocument {
        account: address,
        index: index.0,
        balance_sat: found.balance.to_sat(),
        nonce: found.nonce,
        sequence: fake.vault.sequence,
        root: fake.ledger.state().root.to_string(),
        path: path.siblings().iter().map(level).collect(),
        pending: Vec::new(),
    };
    fake.say("accounts", serde_json::to_value(document).unwrap())
}

/// What a real coordinator does: text to types, the ledger's own checks, the id from the content.
async fn submit(State(fake): State<Shared>, Json(request): Json<OperationRequest>) -> Answer {
    let mut fake = fake.lock().unwrap();
    let operation = request.clone().operation(Network::Regtest).unwrap();
    let vault = fake.vault_id();
    if fake
        .ledger
        .apply(&operation, &vault, SequenceNumber(1))
        .is_err()
    {
        return problem(StatusCode::UNPROCESSABLE_ENTITY, "bad_operation");
    }
    let answer = json!({
        "operation_id": operation.id(&vault).to_string(), "operation": request, "status": "queued",
        "safe_to_credit": false, "reason": null, "sequence": null, "txid": null, "steps": [],
    });
    fake.accepted.push(operation);
    fake.say("operations", answer)
}

async fn operation(State(fake): State<Shared>, Path(id): Path<String>) -> Answer {
    let mut fake = fake.lock().unwrap();
    let status = match fake.statuses.as_slice() {
        [] => return problem(StatusCode::NOT_FOUND, "unknown_operation"),
        [last] => *last,
        _ => fake.statuses.remove(0),
    };
    let request = json!({
        "type": "transfer", "sender": 0, "nonce": 0, "amount_sat": 1, "fee_sat": 1,
        "recipient": "x", "last_valid": 1, "signature": "00",
    });
    let answer = json!({
        "operation_id": id, "operation": request, "status": status, "safe_to_credit": false,
        "reason": "because", "sequence": 1, "txid": null, "steps": [],
    });
    (StatusCode::OK, Json(answer))
}

struct Setting {
    _dir: tempfile::TempDir,
    wallet: Wallet,
    client: Client,
    fake: Shared,
}

impl Setting {
    fn lie(&self, endpoint: &'static str, lie: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.fake.lock().unwrap().lies = vec![(endpoint, Arc::new(lie))];
    }

    fn accepted(&self) -> usize {
        self.fake.lock().unwrap().accepted.len()
    }

    fn saved_backups(&self) -> usize {
        self.wallet.backups().unwrap().len()
    }
}

/// A fake coordinator and a wallet with 100,000 sat.
async fn setting() -> Setting {
    let dir = tempfile::tempdir().unwrap();
    let wallet = Wallet::create(dir.path().join("w"), "pass", Network::Regtest).unwrap();
    let mut fake = Fake {
        vault: document(),
        ledger: Ledger::new(),
        lies: Vec::new(),
        statuses: Vec::new(),
        accepted: Vec::new(),
    };
    let deposit = Operation::Deposit {
        account: wallet.account_key(),
        amount: Amount::from_sat(100_000),
        outpoint: OutPoint::null(),
    };
    let vault_id = fake.vault_id();
    fake.ledger
        .apply(&deposit, &vault_id, SequenceNumber(1))
        .unwrap();
    fake.vault.sequence = 1;
    let fake = Arc::new(Mutex::new(fake));
    let router = Router::new()
        .route("/v1/vault", get(vault))
        .route("/v1/fees", get(fees))
        .route("/v1/deposit-addresses", post(deposit_address))
        .route("/v1/accounts/{address}", get(account))
        .route("/v1/operations", post(submit))
        .route("/v1/operations/{id}", get(operation))
        .with_state(Arc::clone(&fake));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    Setting {
        _dir: dir,
        wallet,
        client,
        fake,
    }
}

#[tokio::test]
async fn an_honest_deposit_address_is_backed_up() {
    let setting = setting().await;
    let deposit = setting
        .wallet
        .deposit_address(&setting.client)
        .await
        .unwrap();
    assert!(deposit.address.starts_with("bcrt1p"));
    assert_eq!(setting.wallet.backups().unwrap(), vec![deposit.clone()]);
    assert_eq!(
        deposit.bitcoin_address().unwrap().to_string(),
        deposit.address
    );
}

#[tokio::test]
async fn a_deposit_address_that_differs_in_any_field_is_refused() {
    let setting = setting().await;
    let another_key = "50929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac0";
    let fields: [(&str, &str, Value); 9] = [
        ("/terms/vault_id", "vault id", json!("11".repeat(32))),
        ("/terms/account", "account", json!("zkbcrt1x")),
        ("/terms/refund_key", "refund key", json!(another_key)),
        ("/terms/refund_delay_blocks", "refund delay", json!(65_535)),
        (
            "/terms/min_deposit_sat",
            "smallest deposit",
            json!(1_000_000),
        ),
        ("/terms/deposit_fee_sat", "deposit fee", json!(19_000)),
        ("/terms_hash", "terms hash", json!("11".repeat(32))),
        (
            "/descriptor",
            "descriptor",
            json!(format!("tr({another_key})")),
        ),
        (
            "/address",
            "address",
            json!("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"),
        ),
    ];
    for (pointer, name, value) in fields {
        setting.lie("deposit-addresses", move |answer| {
            *answer.pointer_mut(pointer).unwrap() = value.clone();
        });
        match setting
            .wallet
            .deposit_address(&setting.client)
            .await
            .unwrap_err()
        {
            DepositAddressError::Differs { field, .. } => assert_eq!(field, name),
            error => panic!("{name}: {error}"),
        }
        assert_eq!(setting.saved_backups(), 0, "{name}");
    }
}

#[tokio::test]
async fn another_group_key_is_refused_before_and_after_it_is_pinned() {
    let setting = setting().await;
    let other = crate::vault::tests::document_of(
        9,
        &protocol::parameters::Parameters::defaults(Network::Regtest),
    );
    let group_key = other.group_key.clone();
    setting.lie("vault", move |answer| {
        answer["group_key"] = json!(group_key)
    });
    let error = setting
        .wallet
        .deposit_address(&setting.client)
        .await
        .unwrap_err();
    assert!(
        matches!(error, DepositAddressError::Vault(VaultError::NotItsId)),
        "{error}"
    );

    setting.lie("none", |_| {});
    setting
        .wallet
        .deposit_address(&setting.client)
        .await
        .unwrap();
    setting.fake.lock().unwrap().vault = other;
    let error = setting
        .wallet
        .deposit_address(&setting.client)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            DepositAddressError::Vault(VaultError::Changed { .. })
        ),
        "{error}"
    );
    assert_eq!(setting.saved_backups(), 1);
}

#[tokio::test]
async fn what_the_wallet_signs_applies_to_the_ledger() {
    let setting = setting().await;
    let to = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
    let amount = Amount::from_sat(40_000);
    let options = SendOptions::default();
    let sent = setting
        .wallet
        .withdraw(&setting.client, to, amount, options)
        .await
        .unwrap();
    assert_eq!(sent.operation.fee(), Amount::from_sat(1_500));
    let friend = ledger::AccountSecret::generate(&mut rand::rngs::OsRng).public();
    let friend_address = friend.to_address(Network::Regtest);
    let options = SendOptions {
        fee: Some(Amount::from_sat(150)),
        valid_for: 3,
    };
    let sent = setting
        .wallet
        .transfer(
            &setting.client,
            &friend_address,
            Amount::from_sat(7),
            options,
        )
        .await
        .unwrap();
    assert_eq!(sent.operation.last_valid(), Some(SequenceNumber(4)));
    assert_eq!(sent.operation.nonce(), Some(1));
    let fake = setting.fake.lock().unwrap();
    assert_eq!(fake.accepted[1], sent.operation);
    let balance =
        |key: ledger::AccountKey| fake.ledger.account_by_key(&key).unwrap().1.balance.to_sat();
    assert_eq!(
        balance(setting.wallet.account_key()),
        100_000 - 41_500 - 157
    );
    assert_eq!(balance(friend), 7);
}

#[tokio::test]
async fn what_cannot_be_paid_is_not_sent() {
    let setting = setting().await;
    let friend = setting.wallet.address();
    let transfer = async |to: &str, amount, fee: Option<u64>, valid_for| {
        let options = SendOptions {
            fee: fee.map(Amount::from_sat),
            valid_for,
        };
        let amount = Amount::from_sat(amount);
        setting
            .wallet
            .transfer(&setting.client, to, amount, options)
            .await
            .unwrap_err()
    };
    let error = transfer(&friend, 99_901, None, 1).await;
    assert!(matches!(error, SendError::Balance { .. }), "{error}");
    let error = transfer(&friend, u64::MAX, None, 1).await;
    assert!(matches!(error, SendError::Balance { .. }), "{error}");
    let error = transfer(&friend, 0, None, 1).await;
    assert!(matches!(error, SendError::ZeroAmount), "{error}");
    let error = transfer(&friend, 1, Some(99), 1).await;
    assert!(matches!(error, SendError::FeeTooLow { .. }), "{error}");
    let error = transfer(&friend, 1, None, 0).await;
    assert!(matches!(error, SendError::Expired), "{error}");
    let mainnet = setting.wallet.account_key().to_address(Network::Bitcoin);
    let error = transfer(&mainnet, 1, None, 1).await;
    assert!(
        matches!(
            error,
            SendError::Recipient {
                source: ledger::AddressError::Network { .. },
                ..
            }
        ),
        "{error}"
    );
    setting.lie("fees", |answer| answer["transfer_fee_sat"] = json!(50_000));
    let error = transfer(&friend, 1, None, 1).await;
    assert!(matches!(error, SendError::FeeTooHigh(_)), "{error}");
    assert_eq!(setting.accepted(), 0);
}

#[tokio::test]
async fn an_answer_about_another_operation_is_noticed() {
    let setting = setting().await;
    setting.lie("operations", |answer| {
        answer["operation_id"] = json!("11".repeat(32));
    });
    let to = setting.wallet.address();
    let options = SendOptions::default();
    let amount = Amount::from_sat(1);
    let sent = setting
        .wallet
        .transfer(&setting.client, &to, amount, options);
    let error = sent.await.unwrap_err();
    assert!(matches!(error, SendError::OtherOperation { .. }), "{error}");
}

#[tokio::test]
async fn a_broken_answer_leaves_the_operation_id_to_ask_for() {
    let setting = setting().await;
    setting.lie("operations", |answer| *answer = json!([]));
    let to = setting.wallet.address();
    let error = setting
        .wallet
        .transfer(
            &setting.client,
            &to,
            Amount::from_sat(1),
            SendOptions::default(),
        )
        .await
        .unwrap_err();
    let SendError::Unanswered { id, .. } = &error else {
        panic!("{error}")
    };
    let vault = setting.fake.lock().unwrap().vault_id();
    assert_eq!(*id, setting.fake.lock().unwrap().accepted[0].id(&vault));
}

#[tokio::test]
async fn a_refused_operation_keeps_the_coordinators_code() {
    let setting = setting().await;
    let to = setting.wallet.address();
    let amount = Amount::from_sat(1);
    let options = SendOptions::default();
    let sent = setting
        .wallet
        .transfer(&setting.client, &to, amount, options);
    let operation = sent.await.unwrap().operation;
    // The nonce is used now, so the ledger refuses the same again.
    let request = OperationRequest::of(Network::Regtest, &operation).unwrap();
    let error = setting.client.submit(&request).await.unwrap_err();
    assert_eq!(error.problem_code(), Some("bad_operation"));
    assert!(!error.may_have_arrived());
}

#[tokio::test]
async fn waiting_ends_when_it_is_there_refused_or_too_late() {
    let setting = setting().await;
    let request = "ab".repeat(32).parse().unwrap();
    let wait = async |statuses: &[&'static str], target, seconds| {
        setting.fake.lock().unwrap().statuses = statuses.to_vec();
        let timeout = std::time::Duration::from_secs(seconds);
        let mut seen = Vec::new();
        let waited = wait::wait(&setting.client, request, target, timeout, |progress| {
            seen.push(progress.status.unwrap());
        })
        .await;
        (waited, seen.len())
    };
    let (found, looks) = wait(&["queued", "confirmed", "final"], Target::Final, 60).await;
    assert_eq!((found.unwrap().sequence, looks), (Some(1), 3));
    let (found, looks) = wait(&["queued", "confirmed", "final"], Target::Confirmed, 60).await;
    assert_eq!((found.is_ok(), looks), (true, 2));
    let (error, _) = wait(&["queued", "refused"], Target::Final, 60).await;
    assert!(matches!(error, Err(WaitError::Refused { reason, .. }) if reason == "because"));
    let (error, _) = wait(&["queued"], Target::Final, 0).await;
    assert!(matches!(error, Err(WaitError::TimedOut { .. })));
    let (error, _) = wait(&[], Target::Final, 60).await;
    assert!(matches!(
        error,
        Err(WaitError::Client(ClientError::Problem(_)))
    ));
}
