//! A coordinator that lies in every way we could think of, to live operators on a real bitcoind: each lie must be
//! refused under its rule by every operator and leave it as it was. The table is printed with
//! `cargo nextest run --no-capture -E 'binary(lying_coordinator)'`. The binaries must be built (`test.sh` does it).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use serde_json::Value;
use testnet::{
    network::{LocalNetwork, Size, proof_keys},
    scenario::{self, Scenario, Story},
};

/// What the suite has to have.
const KINDS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_is_refused_under_its_rule_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let keys = tokio::task::spawn_blocking(|| proof_keys(|_| {}).unwrap())
        .await
        .unwrap();
    let story = Story::default();
    let size = Size {
        operators: 3,
        threshold: 2,
    };
    let scenario = Scenario::LyingCoordinator;
    let mut network =
        LocalNetwork::start_with(&dir.path().join("net"), size, &keys, scenario.extras())
            .await
            .unwrap();
    let played = async {
        scenario::found(&mut network, &story).await?;
        // The honest coordinator finishes its batches; the scenario's usual check is in it.
        scenario::play(&mut network, scenario, &story).await
    }
    .await;
    let log = std::fs::read_to_string(network.dir.join("logs/liar.log")).unwrap_or_default();
    let table = std::fs::read_to_string(network.dir.join("lies.json"));
    let stubborn = network.stop().await;
    played.unwrap_or_else(|error| {
        let tail: Vec<_> = log.lines().rev().take(40).collect();
        panic!(
            "{error:?}\nthe liar's last lines, newest first:\n{}",
            tail.join("\n")
        )
    });
    assert!(
        stubborn.is_empty(),
        "did not stop by themselves: {stubborn:?}"
    );

    let table: Value = serde_json::from_str(&table.unwrap()).unwrap();
    let findings = table["findings"].as_array().unwrap();
    let kinds: std::collections::BTreeSet<_> = findings
        .iter()
        .map(|finding| (finding["layer"].to_string(), finding["name"].to_string()))
        .collect();
    assert!(kinds.len() >= KINDS, "only {} kinds", kinds.len());
    for finding in findings {
        let (met, asked) = (&finding["refused_by"][0], &finding["refused_by"][1]);
        assert_eq!(finding["is_good"], true, "{finding}");
        assert_eq!(finding["is_unchanged"], true, "{finding}");
        assert_eq!(met, asked, "{finding}");
        assert!(asked.as_u64().unwrap() >= 1, "{finding}");
    }
}
