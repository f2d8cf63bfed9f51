//! What the coordinator tells: accounts, batches, vault, status, and the description of itself.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{Method, Request},
};
use coordinator::api::{self, problem::Code};
use ledger::{Account, AccountIndex, Digest, MerklePath, State};
use protocol::{identity::PeerKey, vault::Genesis};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::setting::{ALICE, ALICE_SAT, NETWORK, Setting};

const API_PAGE: &str = include_str!("../../../docs/api.md");

#[tokio::test]
async fn an_accounts_path_leads_to_the_digest_on_the_chain() {
    let setting = Setting::new();
    let key = setting.alice.public();
    let account = setting
        .get(&format!("/v1/accounts/{}", key.to_address(NETWORK)))
        .await
        .ok();
    assert_eq!(account["balance_sat"], ALICE_SAT);
    assert_eq!(
        (&account["index"], &account["nonce"]),
        (&json!(ALICE), &json!(1))
    );

    let parse = |value: &Value| value.as_str().unwrap().parse::<Digest>().unwrap();
    let levels: Vec<[Digest; 3]> = account["path"]
        .as_array()
        .unwrap()
        .iter()
        .map(|level| std::array::from_fn(|at| parse(&level[at])))
        .collect();
    let path = MerklePath::from_siblings(levels.try_into().unwrap());
    let leaf = Account {
        key,
        balance: bitcoin::Amount::from_sat(ALICE_SAT),
        nonce: 1,
    }
    .leaf();
    let root = parse(&account["root"]);
    assert!(path.verify(AccountIndex(ALICE), leaf, root));
    let vault = setting.get("/v1/vault").await.ok();
    let supply = bitcoin::Amount::from_sat(vault["supply_sat"].as_u64().unwrap());
    assert_eq!(State { root, supply }.digest(), parse(&vault["digest"]));
    assert_eq!(vault["sequence"], account["sequence"]);
}

#[tokio::test]
async fn an_account_without_a_leaf_and_a_wrong_address_are_told_apart() {
    let setting = Setting::new();
    let nobody = setting.vault.genesis_output();
    assert_eq!(nobody.amount.to_sat(), 50_000);
    let unknown = ledger::AccountKey::sequence(1)[0].to_address(NETWORK);
    setting
        .get(&format!("/v1/accounts/{unknown}"))
        .await
        .problem(404, "unknown_account");
    let mainnet = setting.alice.public().to_address(bitcoin::Network::Bitcoin);
    setting
        .get(&format!("/v1/accounts/{mainnet}"))
        .await
        .problem(422, "wrong_network");
    setting
        .get("/v1/accounts/alice")
        .await
        .problem(422, "invalid_account");
}

#[tokio::test]
async fn the_vault_document_holds_all_that_its_id_and_certificate_commit_to() {
    let setting = Setting::new();
    let vault = setting.get("/v1/vault").await.ok();
    let hash = |field: &str| -> [u8; 32] {
        hex::decode(vault[field].as_str().unwrap())
            .unwrap()
            .try_into()
            .unwrap()
    };
    let genesis = Genesis {
        group_key: vault["group_key"].as_str().unwrap().parse().unwrap(),
        outpoint: vault["genesis"].as_str().unwrap().parse().unwrap(),
        amount: bitcoin::Amount::from_sat(vault["genesis_sat"].as_u64().unwrap()),
        verifying_key_hash: hash("verifying_key_hash"),
        parameters_hash: hash("parameters_hash"),
        roster_hash: hash("roster_hash"),
    };
    assert_eq!(vault["vault_id"], genesis.vault_id().to_string());
    let signature = vault["genesis_signature"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(threshold::sign::verify(
        &genesis.group_key,
        &genesis.digest(),
        &signature
    ));
    assert_eq!(vault["treasury_sat"], 149_500);
    let (supply, surplus) = (
        vault["supply_sat"].as_u64().unwrap(),
        vault["surplus_sat"].as_u64().unwrap(),
    );
    assert_eq!((supply, surplus), (98_900, 149_500 - 98_900));
}

#[tokio::test]
async fn batches_come_newest_first_in_pages_without_their_proofs() {
    let setting = Setting::new();
    let first = setting.get("/v1/batches?limit=3").await.ok();
    let sequences = |page: &Value| -> Vec<u64> {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| b["sequence"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(sequences(&first), [4, 3, 2]);
    assert_eq!(first["next"], "2");
    let second = setting.get("/v1/batches?limit=3&after=2").await.ok();
    assert_eq!(
        (sequences(&second), &second["next"]),
        (vec![1], &Value::Null)
    );
    assert_eq!(second["items"][0]["proofs"], json!([]));
    assert_eq!(second["items"][0]["transaction"], Value::Null);
    assert_eq!(
        second["items"][0]["operations"].as_array().unwrap().len(),
        2
    );
}

#[tokio::test]
async fn a_batch_comes_with_transaction_proofs_digests_signers_and_refusals() {
    let setting = Setting::new();
    let batch = setting.get("/v1/batches/1").await.ok();
    assert_eq!(batch["status"], "final");
    assert_eq!(batch["signers"], json!(["node-1", "node-2"]));
    assert_eq!(batch["proofs"], json!([hex::encode([5; 128])]));
    let vault = setting.get("/v1/vault").await.ok();
    assert_eq!(
        batch["digests"].as_array().unwrap().last(),
        Some(&vault["digest"])
    );
    let bytes = hex::decode(batch["transaction"].as_str().unwrap()).unwrap();
    let transaction: bitcoin::Transaction = bitcoin::consensus::deserialize(&bytes).unwrap();
    assert_eq!(batch["txid"], transaction.compute_txid().to_string());
    assert_eq!(batch["refusals"][0]["rule"], "S5");
    assert_eq!(batch["stage_ms"]["prove"], 1_234);
    assert_eq!(batch["candidates"][0]["txid"], batch["txid"]);
    assert_eq!(batch["candidates"][0]["fee_sat"], batch["fee_sat"]);
    assert_eq!(batch["fee_bump"], "the surplus does not cover a higher fee");

    setting
        .get("/v1/batches/99")
        .await
        .problem(404, "unknown_batch");
    for bad in ["0x1", "-1", "one"] {
        setting
            .get(&format!("/v1/batches/{bad}"))
            .await
            .problem(400, "invalid_parameter");
    }
}

#[tokio::test]
async fn a_coordinator_is_ready_when_it_has_a_vault_and_no_alarm() {
    let setting = Setting::empty();
    assert_eq!(setting.get("/healthz").await.body, b"ok\n");
    setting.get("/readyz").await.problem(503, "not_ready");
    let vault = setting.get("/v1/vault").await.ok();
    assert_eq!(
        (&vault["vault_id"], &vault["network"]),
        (&Value::Null, &json!("regtest"))
    );
    let status = setting.get("/v1/status").await.ok();
    assert_eq!(
        (&status["ready"], &status["phase"]),
        (&json!(false), &json!("generating the key"))
    );

    let setting = Setting::new();
    assert!(setting.get("/readyz").await.status.is_success());
    let status = setting.get("/v1/status").await.ok();
    assert_eq!(
        (&status["ready"], &status["height"]),
        (&json!(true), &json!(110))
    );
    assert_eq!(status["connected"], json!(["node-1"]));
    assert_eq!(status["batch"]["sequence"], 4);
    setting.live.send_modify(|live| {
        live.alarm = Some("unknown spend".into());
        live.connected = vec![PeerKey([8; 32])];
    });
    setting.get("/readyz").await.problem(503, "not_ready");
    let status = setting.get("/v1/status").await.ok();
    assert_eq!(status["alarm"], "unknown spend");
    // A node that is not in the roster has no name.
    assert_eq!(status["connected"], json!([hex::encode([8; 32])]));
}

#[tokio::test]
async fn fees_are_those_of_the_parameters() {
    let setting = Setting::new();
    setting
        .live
        .send_modify(|live| live.fee_rate_sat_per_vb = Some(2.5));
    let fees = setting.get("/v1/fees").await.ok();
    assert_eq!(
        fees,
        json!({
            "deposit_fee_sat": 1_000, "min_deposit_sat": 20_000, "transfer_fee_sat": 100,
            "withdraw_fee_sat": 1_500, "fee_rate_sat_per_vb": 2.5,
        })
    );
}

#[tokio::test]
async fn the_metrics_count_requests_and_show_the_reserves() {
    let setting = Setting::new();
    setting.get("/v1/batches/1").await.ok();
    setting
        .get("/somewhere/else")
        .await
        .problem(404, "not_found");
    let answer = setting.get("/metrics").await;
    let text = String::from_utf8(answer.body).unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let counter = "drawbridge_http_requests_total";
    let batches = r#"{route="/v1/batches/{sequence}",method="GET",status="200"}"#;
    assert!(value(&format!("{counter}{batches}")) >= 1.0);
    let elsewhere = r#"{route="none",method="GET",status="404"}"#;
    assert!(value(&format!("{counter}{elsewhere}")) >= 1.0);
    assert!(value("drawbridge_http_request_seconds_count") >= 1.0);
    assert!((value("drawbridge_treasury_sat") - 149_500.0).abs() < 0.5);
    assert!((value("drawbridge_supply_sat") - 98_900.0).abs() < 0.5);
    assert!(value(r#"drawbridge_queue_items{queue="requests",place="ready"}"#) < 0.5);
}

#[tokio::test]
async fn the_openapi_document_lists_every_route_and_every_code() {
    let setting = Setting::new();
    let document = setting.get("/openapi.json").await.ok();
    let paths = document["paths"].as_object().unwrap();
    let listed: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    assert_eq!(listed, api::paths().into_iter().collect::<BTreeSet<_>>());

    let text = document["paths"].to_string();
    for code in Code::ALL {
        // These two are of no endpoint, or of no endpoint that is listed.
        if !matches!(
            code,
            Code::NotFound | Code::MethodNotAllowed | Code::MalformedRequest
        ) {
            assert!(text.contains(&format!("`{code}`")), "{code}");
        }
    }
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            assert!(
                operation["responses"]["429"]["content"]["application/problem+json"].is_object(),
                "{path}"
            );
            assert!(
                operation["summary"].is_string(),
                "{method} {path} says nothing"
            );
            let uri = path.replace(['{', '}'], "");
            let method: Method = method.to_uppercase().parse().unwrap();
            let request = Request::builder()
                .method(method)
                .uri(uri)
                .body(Body::empty())
                .unwrap();
            // Without the body: a stream of events has no end.
            let answer = setting.router.clone().oneshot(request).await.unwrap();
            assert_ne!(answer.status(), 405, "{path}");
        }
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is not described");
    }
}

#[tokio::test]
async fn every_code_is_explained_here_and_in_the_docs() {
    let setting = Setting::new();
    for code in Code::ALL {
        assert!(
            API_PAGE.contains(&format!("`{code}`")),
            "docs/api.md lacks {code}"
        );
        let answer = setting.get(&format!("/problems/{code}")).await;
        assert!(
            String::from_utf8(answer.body)
                .unwrap()
                .contains(code.title())
        );
    }
    setting
        .get("/problems/nothing")
        .await
        .problem(404, "unknown_problem");
}

#[tokio::test]
async fn the_documentation_pages_need_nothing_from_elsewhere() {
    let setting = Setting::new();
    let page = setting.get("/docs/").await;
    assert!(page.status.is_success());
    let html = String::from_utf8(page.body).unwrap();
    let links = html
        .split(['"', '\''])
        .filter(|part| part.starts_with("http") || part.starts_with("//"));
    assert_eq!(links.collect::<Vec<_>>(), Vec::<&str>::new());
    let script = setting.get("/docs/swagger-initializer.js").await;
    let script = String::from_utf8(script.body).unwrap();
    assert!(script.contains("/openapi.json"), "{script}");
    assert!(script.contains(r#""validatorUrl": "none""#), "{script}");
    assert!(
        setting
            .get("/docs/swagger-ui-bundle.js")
            .await
            .status
            .is_success()
    );
}
