//! A whole run of the local network, and afterwards not one of its secrets in a log, a database, a status page or a
//! metric (S10). That the search finds what is there, `testnet::secrets` tests itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use testnet::{
    network::{BACKUP_PASSPHRASE, LocalNetwork, PASSPHRASE, Size, proof_keys},
    scenario::{self, Scenario, Story, WALLET_PASSPHRASE},
    secrets::Secrets,
};
use threshold::{KeyShare, seal};

const SIZE: Size = Size {
    operators: 3,
    threshold: 2,
};

fn folders(network: &LocalNetwork) -> Vec<PathBuf> {
    let settings = network.operators.iter().map(|node| node.settings());
    settings
        .map(|file| file.parent().unwrap().to_owned())
        .collect()
}

fn open(path: &Path, passphrase: &str, purpose: &str) -> Vec<u8> {
    let file = fs::read(path).unwrap();
    seal::open(&file, passphrase, purpose).unwrap().to_vec()
}

/// The seeds of key generation, which are deleted when it is over.
async fn learn_seeds(network: &mut LocalNetwork, secrets: &mut Secrets) {
    for folder in folders(network) {
        let file = folder.join("data/dkg-seed.sealed");
        let limit = Duration::from_secs(60);
        network
            .wait_for("a seed", limit, async |_| Ok(file.exists().then_some(())))
            .await
            .unwrap();
        // Ceremony, then seed.
        let seed = open(&file, PASSPHRASE, "dkg-seed");
        secrets.add("seed of key generation", &seed[32..]);
    }
}

/// Everything else, as it is on disk at the end.
fn learn_the_rest(network: &LocalNetwork, secrets: &mut Secrets) {
    for folder in folders(network) {
        let share = open(
            &folder.join("data/key-share.sealed"),
            PASSPHRASE,
            "key-share",
        );
        // The layout of a share: format 1, signer 32, scalar 32. It must be one, or the test looks for nonsense.
        KeyShare::from_secret_bytes(&share).unwrap();
        secrets.add("key share", &share[33..65]);
        learn_identity(&folder.join("data/identity"), secrets);
    }
    learn_identity(&network.dir.join("coordinator-1/data/identity"), secrets);
    for name in ["alice", "bob", "carol"] {
        let wallet = network.dir.join("wallets").join(name);
        // The layout of a wallet's keys: version 1, network 4, account 32, refund 32.
        let keys = open(&wallet.join("wallet.key"), WALLET_PASSPHRASE, "wallet");
        assert_eq!(keys.len(), 69);
        secrets.add("account secret", &keys[5..37]);
        secrets.add("refund secret", &keys[37..]);
    }
    secrets.add_text("operators' passphrase", PASSPHRASE);
    secrets.add_text("backup passphrase", BACKUP_PASSPHRASE);
    secrets.add_text("wallets' passphrase", WALLET_PASSPHRASE);
}

fn learn_identity(file: &Path, secrets: &mut Secrets) {
    let text = fs::read_to_string(file).unwrap();
    secrets.add("identity", &hex::decode(text.trim()).unwrap());
}

/// Where a secret belongs, the identity and passphrase files; and bitcoind's folder, which is large and knows none.
fn may_hold(path: &Path) -> bool {
    path.ends_with("data/identity")
        || path.ends_with("passphrase")
        || path.components().any(|part| part.as_os_str() == "bitcoind")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_a_database_a_page_or_a_metric_after_a_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let keys = tokio::task::spawn_blocking(|| proof_keys(|_| {}).unwrap())
        .await
        .unwrap();
    let mut network = LocalNetwork::start(&dir.path().join("net"), SIZE, &keys)
        .await
        .unwrap();
    let mut secrets = Secrets::default();
    learn_seeds(&mut network, &mut secrets).await;
    let story = Story::default();
    scenario::found(&mut network, &story).await.unwrap();
    scenario::play(&mut network, Scenario::Basic, &story)
        .await
        .unwrap();
    // A backup too: a sealed file is not to hold what it seals.
    let backup = network.dir.join("backup");
    network.operators[0]
        .ask(&["backup", backup.to_str().unwrap()])
        .await
        .unwrap();
    learn_the_rest(&network, &mut secrets);

    let mut found = Vec::new();
    for (page, text) in pages(&network).await {
        assert!(!text.is_empty(), "{page}");
        found.extend(secrets.find(&page, text.as_bytes()));
    }
    network.stop().await;
    let (files, in_files) = secrets.find_in(&network.dir, &may_hold).unwrap();
    found.extend(in_files);
    assert!(found.is_empty(), "{found:#?}");
    // The search does find them where they belong.
    let (_, at_home) = secrets
        .find_in(&network.dir.join("operator-1"), &|_: &Path| false)
        .unwrap();
    for name in ["identity", "operators' passphrase"] {
        assert!(
            at_home.iter().any(|finding| finding.secret == name),
            "{name}"
        );
    }
    // Logs and databases of four nodes were there to be searched.
    assert!(files > 30, "{files} files");
    for place in ["logs/operator-1.log", "logs/coordinator-1.log"] {
        assert!(fs::metadata(network.dir.join(place)).unwrap().len() > 1_000);
    }
}

/// All that the nodes show over HTTP and on the admin socket.
async fn pages(network: &LocalNetwork) -> Vec<(String, String)> {
    let mut urls = Vec::new();
    for node in &network.operators {
        let settings: toml::Table = fs::read_to_string(node.settings())
            .unwrap()
            .parse()
            .unwrap();
        let address = settings["status_listen"].as_str().unwrap();
        urls.extend(["metrics", "v1/status"].map(|page| format!("http://{address}/{page}")));
    }
    let coordinator = network
        .client
        .url()
        .as_str()
        .trim_end_matches('/')
        .to_owned();
    urls.extend(["metrics", "v1/status", "v1/vault"].map(|page| format!("{coordinator}/{page}")));
    let mut pages = Vec::new();
    for url in urls {
        let page = reqwest::get(&url)
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        pages.push((url, page.text().await.unwrap()));
    }
    for node in &network.operators {
        let status = node.ask(&["status"]).await.unwrap();
        pages.push((format!("status of {}", node.name), status.to_string()));
    }
    pages
}
