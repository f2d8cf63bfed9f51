//! Deposit addresses and deposits.

use bech32::{Bech32m, Hrp};
use bitcoin::Network;
use coordinator::{
    api,
    records::{TERMS, TERMS_FROM, WATCHED},
    terms,
};
use ledger::AccountKey;
use protocol::deposit::{DepositAddress, DepositTerms};
use serde_json::{Value, json};
use storage::{Changes, Direction};

use crate::setting::{NETWORK, RATE, Setting, call, deposit_outpoint, post};

const PATH: &str = "/v1/deposit-addresses";
/// The BIP-340 test vectors' first public key.
const REFUND: &str = "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9";

fn request(account: &str, refund_key: &str) -> Value {
    json!({ "account": account, "refund_key": refund_key })
}

fn stored(setting: &Setting) -> usize {
    setting
        .reader
        .store
        .iter(&TERMS, .., Direction::Forward, usize::MAX)
        .unwrap()
        .count()
}

/// An address with any 32 bytes in it.
fn address_of(bytes: [u8; 32]) -> String {
    bech32::encode::<Bech32m>(Hrp::parse("zkbcrt").unwrap(), &bytes).unwrap()
}

#[tokio::test]
async fn a_deposit_address_is_the_one_that_its_terms_give_and_is_watched_and_stored() {
    let setting = Setting::new();
    let before = stored(&setting);
    let account = setting.bob.public();
    let body = request(&account.to_address(NETWORK), REFUND);
    let answer = setting.post(PATH, &body).await.ok();

    let parameters = &setting.reader.parameters;
    let terms = DepositTerms::offered(
        setting.vault.id(),
        parameters,
        account,
        REFUND.parse().unwrap(),
    );
    let own = terms.address(&setting.vault.group_key()).unwrap();
    assert_eq!(answer["descriptor"], own.descriptor.to_string());
    assert_eq!(answer["address"], own.address(NETWORK).unwrap().to_string());
    assert_eq!(answer["terms_hash"], terms.hash().to_string());
    assert_eq!(answer["terms"]["vault_id"], setting.vault.id().to_string());
    assert_eq!(answer["terms"]["refund_delay_blocks"], 144);
    assert!(setting.is_watched(&own.script_pubkey));
    assert_eq!(
        setting.reader.store.get(&TERMS, &terms.hash().0).unwrap(),
        Some(terms)
    );

    assert_eq!(setting.post(PATH, &body).await.ok(), answer);
    assert_eq!(
        call(
            &api::router(setting.reader.clone(), RATE, Vec::new()),
            post(PATH, body.to_string())
        )
        .await
        .ok(),
        answer
    );
    assert_eq!(stored(&setting), before + 1);
}

#[tokio::test]
async fn an_account_that_is_none_of_this_network_gets_no_address() {
    let setting = Setting::new();
    let before = stored(&setting);
    let not_on_curve = (0_u8..=255)
        .map(|byte| [byte; 32])
        .find(|bytes| AccountKey::from_bytes(bytes) == Err(ledger::DecodeError::NotOnCurve))
        .unwrap();
    let mut not_canonical = [u8::MAX; 32];
    not_canonical[31] = 0x7f;
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut mistyped = setting.alice.public().to_address(NETWORK);
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == 'q' { 'p' } else { 'q' });
    for (account, code, detail) in [
        (
            setting.alice.public().to_address(Network::Bitcoin),
            "wrong_network",
            "zkbtc",
        ),
        (
            setting.alice.public().to_address(Network::Signet),
            "wrong_network",
            "tzkbtc",
        ),
        (
            address_of(not_on_curve),
            "invalid_account",
            "not on the curve",
        ),
        (
            address_of(not_canonical),
            "invalid_account",
            "not canonical",
        ),
        (address_of(identity), "invalid_account", "subgroup"),
        (mistyped, "invalid_account", "checksum"),
        (String::new(), "invalid_account", "bech32m"),
    ] {
        let answer = setting.post(PATH, &request(&account, REFUND)).await;
        answer.problem(422, code);
        let text = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(text.contains(detail), "{account}: {text}");
    }
    assert_eq!(stored(&setting), before);
    // Of Alice, from before.
    assert_eq!(setting.reader.store.count(&WATCHED).unwrap(), 1);
}

#[tokio::test]
async fn a_refund_key_must_be_an_x_only_key_on_the_curve() {
    let setting = Setting::new();
    let before = stored(&setting);
    let account = setting.alice.public().to_address(NETWORK);
    let compressed = format!("02{REFUND}");
    for refund in ["", "zz", &REFUND[..62], &"f".repeat(64), &compressed] {
        setting
            .post(PATH, &request(&account, refund))
            .await
            .problem(422, "invalid_refund_key");
    }
    assert_eq!(stored(&setting), before);
}

#[tokio::test]
async fn there_is_no_deposit_address_before_genesis() {
    let setting = Setting::empty();
    let body = request(&setting.alice.public().to_address(NETWORK), REFUND);
    let answer = setting.post(PATH, &body).await;
    answer.problem(503, "no_genesis");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(stored(&setting), 0);
}

#[tokio::test]
async fn deposits_are_listed_in_pages_and_by_account() {
    let setting = Setting::new();
    let alice = setting.alice.public().to_address(NETWORK);
    for filter in [String::new(), format!("&account={alice}")] {
        let first = setting
            .get(&format!("/v1/deposits?limit=2{filter}"))
            .await
            .ok();
        assert_eq!(first["items"].as_array().unwrap().len(), 2);
        let next = first["next"].as_str().unwrap();
        assert_eq!(next, deposit_outpoint(2).to_string());
        let second = setting
            .get(&format!("/v1/deposits?limit=2&after={next}{filter}"))
            .await
            .ok();
        assert_eq!(second["items"].as_array().unwrap().len(), 1);
        assert_eq!(
            second["items"][0]["outpoint"],
            deposit_outpoint(3).to_string()
        );
        assert_eq!(second["next"], Value::Null);
    }
    let bob = setting.bob.public().to_address(NETWORK);
    let none = setting
        .get(&format!("/v1/deposits?account={bob}"))
        .await
        .ok();
    assert_eq!(none, json!({ "items": [], "next": null }));
    let mainnet = setting.alice.public().to_address(Network::Bitcoin);
    setting
        .get(&format!("/v1/deposits?account={mainnet}"))
        .await
        .problem(422, "wrong_network");
    setting
        .get("/v1/deposits?after=1")
        .await
        .problem(400, "invalid_query");
}

#[tokio::test]
async fn a_deposit_says_what_it_credits_and_as_which_operation() {
    let setting = Setting::new();
    let paid = setting
        .get(&format!("/v1/deposits/{}", deposit_outpoint(1)))
        .await
        .ok();
    assert_eq!(paid["value_sat"], 100_000);
    assert_eq!(paid["credited_sat"], 99_000);
    assert_eq!(paid["status"], "received");
    let wanted = setting.reader.parameters.deposit_confirmations;
    let waits = format!("waits for confirmations: 10 of {wanted}");
    assert_eq!(paid["reason"], waits);
    assert_eq!(paid["account"], setting.alice.public().to_address(NETWORK));
    let batch = setting.get("/v1/batches/1").await.ok();
    assert_eq!(paid["operation_id"], batch["operations"][0]);

    let too_small = setting
        .get(&format!("/v1/deposits/{}", deposit_outpoint(3)))
        .await
        .ok();
    assert_eq!(
        (&too_small["credited_sat"], &too_small["operation_id"]),
        (&Value::Null, &Value::Null)
    );

    setting
        .get(&format!("/v1/deposits/{}", deposit_outpoint(77)))
        .await
        .problem(404, "unknown_deposit");
    for bad in ["1", "xyz:0", &deposit_outpoint(1).txid.to_string()] {
        setting
            .get(&format!("/v1/deposits/{bad}"))
            .await
            .problem(400, "invalid_parameter");
    }
}

#[tokio::test]
async fn terms_that_come_in_a_page_are_all_kept_once_and_counted_for_who_gave_them() {
    let setting = Setting::new();
    let giver = protocol::identity::PeerKey([2; 32]);
    let group = setting.vault.group_key();
    let addresses: Vec<_> = AccountKey::sequence(3)
        .into_iter()
        .chain([setting.alice.public()])
        .map(|account| {
            let parameters = &setting.reader.parameters;
            let vault = setting.vault.id();
            let terms = DepositTerms::offered(vault, parameters, account, group);
            terms.address(&group).unwrap()
        })
        .collect();
    let twice = [addresses.as_slice(), &addresses].concat();
    let shown = &setting.reader.shown;
    for _ in 0..2 {
        shown.keep_all(&twice, Some(giver)).unwrap();
    }
    for address in &addresses {
        assert!(setting.is_watched(&address.script_pubkey));
        let kept = setting.reader.store.get(&TERMS, &address.terms.hash().0);
        assert_eq!(kept.unwrap().as_ref(), Some(&address.terms));
    }
    let given = setting.reader.store.get(&TERMS_FROM, &giver.0).unwrap();
    // Alice's were there before.
    assert_eq!(given, Some(3));
}

#[tokio::test]
async fn addresses_whose_terms_an_earlier_release_wrote_are_watched_after_a_start() {
    let setting = Setting::new();
    let group = setting.vault.group_key();
    let parameters = &setting.reader.parameters;
    let addresses: Vec<_> = AccountKey::sequence(3)
        .into_iter()
        .map(|account| {
            DepositTerms::offered(setting.vault.id(), parameters, account, group)
                .address(&group)
                .unwrap()
        })
        .collect();
    let mut changes = Changes::new();
    for address in &addresses {
        changes.put(&TERMS, &address.terms.hash().0, &address.terms);
    }
    let store = &setting.reader.store;
    store.commit(changes).unwrap();
    let is_watched = |address: &DepositAddress| setting.is_watched(&address.script_pubkey);
    assert!(!addresses.iter().any(is_watched));
    terms::watch_all(store, &group).unwrap();
    assert!(addresses.iter().all(is_watched));
    // From then on terms and address are in one write, and nothing is derived again.
    let mut changes = Changes::new();
    changes.delete(&WATCHED, &key(&addresses[0]));
    store.commit(changes).unwrap();
    terms::watch_all(store, &group).unwrap();
    assert!(!is_watched(&addresses[0]));
}

/// The output key of an address.
fn key(address: &DepositAddress) -> [u8; 32] {
    address.script_pubkey.as_bytes()[2..].try_into().unwrap()
}
