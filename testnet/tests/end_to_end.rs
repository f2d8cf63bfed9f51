//! Node processes on a real bitcoind: the whole path, and what SIGKILL does to it.
//! The binaries must be built (`test.sh` does it).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, time::Duration};

use testnet::{
    crasher::Crashes,
    hosts::{Hosts, Kind, Transport, round_trips, signing_ms},
    line::Quality,
    network::{Extras, LocalNetwork, Size, proof_keys},
    report::Report,
    scenario::{self, Scenario, Story, big_batch, crash_everywhere},
    small_disk::SmallDisk,
};

async fn play(scenario: Scenario, size: Size) -> Report {
    play_on(size, scenario.extras(), async |network, story| {
        scenario::play(network, scenario, story).await
    })
    .await
}

async fn play_on(
    size: Size,
    extras: Extras,
    scene: impl AsyncFnOnce(&mut LocalNetwork, &Story) -> anyhow::Result<Report>,
) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let keys = tokio::task::spawn_blocking(|| proof_keys(|_| {}).unwrap())
        .await
        .unwrap();
    let story = Story::default();
    let mut network = LocalNetwork::start_with(&dir.path().join("net"), size, &keys, extras)
        .await
        .unwrap();
    let result = async {
        scenario::found(&mut network, &story).await?;
        scene(&mut network, &story).await
    }
    .await;
    let logs = std::fs::read_to_string(network.coordinator.log()).unwrap_or_default();
    let stubborn = network.stop().await;
    let report = result.unwrap_or_else(|error| {
        let tail: Vec<_> = logs.lines().rev().take(40).collect();
        panic!(
            "{error:?}\nthe coordinator's last lines, newest first:\n{}",
            tail.join("\n")
        )
    });
    assert!(
        stubborn.is_empty(),
        "did not stop by themselves: {stubborn:?}"
    );
    report
}

const SMALL: Size = Size {
    operators: 3,
    threshold: 2,
};

#[tokio::test(flavor = "multi_thread")]
async fn deposits_transfers_and_withdrawals_go_all_the_way() {
    let report = play(
        Scenario::Basic,
        Size {
            operators: 5,
            threshold: 3,
        },
    )
    .await;
    assert!(report.treasury_sat >= report.supply_sat);
    assert!(report.batches.len() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_signed_with_nonces_that_were_handed_out_ahead_of_time() {
    let extras = Extras {
        nonce_pool: true,
        ..Extras::default()
    };
    let report = play_on(SPARE, extras, async |network, story| {
        scenario::play(network, Scenario::Basic, story).await
    })
    .await;
    // A second attempt may begin beside the one that ends first.
    assert!(report.pooled_batches > 0, "{:?}", report.batches);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_between_two_stages_loses_nothing() {
    play(Scenario::KillCoordinator, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_between_accept_and_sign_loses_nothing() {
    play(Scenario::KillOperator, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_restored_from_its_backup_waits_out_its_quarantine_and_signs_again() {
    play(Scenario::Restore, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_withdrawal_waits_for_approval_and_everything_else_for_a_pause_only() {
    play(Scenario::PauseAndApprove, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_gives_all_new_shares_though_one_dies_in_the_middle() {
    play(Scenario::Refresh, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_share_is_repaired_by_the_others_and_signs_again() {
    play(Scenario::LostShare, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_a_reorganisation_takes_come_back_as_they_were() {
    play(Scenario::Reorg, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_the_mempool_forgets_is_submitted_again() {
    play(Scenario::MempoolEviction, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_blocks_pass_over_pays_more_up_to_the_ceiling_and_confirms() {
    play(Scenario::FeeBump, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_double_spent_deposit_costs_nobody_else_anything() {
    play(Scenario::DoubleSpentDeposit, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_no_miner_takes_again_holds_nobody_else_up() {
    play(Scenario::StuckDeposit, SMALL).await;
}

const SPARE: Size = Size {
    operators: 5,
    threshold: 3,
};

#[tokio::test(flavor = "multi_thread")]
async fn signing_ends_without_the_operators_that_accept_and_fall_silent() {
    let report = play(Scenario::FourSilent, SPARE).await;
    for batch in &report.batches {
        assert!(batch.signing_ms.is_some(), "{batch:?}");
        let silent = ["operator-1", "operator-2"].map(str::to_owned);
        assert!(silent.iter().all(|name| !batch.signers.contains(name)));
        assert!(batch.blamed.is_empty(), "{batch:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_that_send_wrong_shares_are_blamed_with_evidence_and_the_batch_confirms() {
    let report = play(Scenario::BadShares, SPARE).await;
    let first = report.batches.first().unwrap();
    // Whose shares came first is blamed first.
    let blamed: BTreeSet<&str> = first.blamed.iter().map(String::as_str).collect();
    assert_eq!(blamed, BTreeSet::from(["operator-1", "operator-2"]));
    assert!(first.attempts >= 2, "{first:?}");
    assert!(report.evidence.len() >= 2, "{:?}", report.evidence);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_signers_are_not_blamed_and_every_batch_is_signed() {
    let report = play(Scenario::SlowSigners, SPARE).await;
    for batch in &report.batches {
        assert!(batch.signing_ms.is_some(), "{batch:?}");
        assert!(batch.blamed.is_empty(), "{batch:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_killed_in_round_2_is_replaced_and_signs_again_later() {
    let report = play(Scenario::KillSignerMidRound, SPARE).await;
    let first = report.batches.first().unwrap();
    assert!(first.attempts >= 2, "{first:?}");
    assert!(!first.signers.contains(&"operator-1".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_between_request_and_aggregation_has_the_batch_signed_again() {
    play(Scenario::KillCoordinatorMidRound, SPARE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_waits_goes_into_one_batch_and_every_withdrawal_is_paid() {
    let numbers = big_batch::Numbers {
        deposits: 9,
        withdrawals: 7,
    };
    let report = play_on(SMALL, numbers.extras(), async |network, story| {
        big_batch::play(network, numbers, story).await
    })
    .await;
    let batch = report.batches.last().unwrap();
    assert_eq!((batch.inputs, batch.outputs), (1 + 9, 2 + 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_of_what_was_final_stops_all_until_somebody_has_looked() {
    play(Scenario::DeepReorg, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_spend_of_the_treasury_stops_all_for_good() {
    play(Scenario::UnknownSpend, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_with_an_empty_disk_rebuilds_everything_and_no_request_is_lost() {
    play(Scenario::TotalLoss, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bitcoind_that_is_away_for_a_while_is_waited_for() {
    play(Scenario::BitcoindDown, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bitcoind_of_another_network_stops_all_and_one_that_is_syncing_is_waited_for() {
    play(Scenario::StrangeBitcoind, SMALL).await;
}

/// A sample of the points; all of them: `./testnet/run.sh --once --scenario crash-everywhere`.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_die_wherever_they_write_send_or_submit_lose_nothing() {
    let extras = crash_everywhere::extras(Crashes { one_in: 6, seed: 4 });
    let sample = async |network: &mut LocalNetwork, story: &Story| {
        let report = crash_everywhere::play_rounds(network, 2, story).await?;
        anyhow::ensure!(network.deaths.len() >= 8, "{:?}", network.deaths);
        Ok(report)
    };
    let report = play_on(SMALL, extras, sample).await;
    assert!(report.treasury_sat >= report.supply_sat);
}

/// Mounting needs root, or a mount namespace; without either this says so and checks nothing.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stderr, reason = "why it checks nothing")]
async fn a_full_disk_stops_its_node_and_loses_nothing() {
    let probe = tempfile::tempdir().unwrap();
    if let Err(error) = SmallDisk::mount(probe.path(), 1) {
        eprintln!("{error}");
        return;
    }
    play(Scenario::DiskFull, SMALL).await;
}

/// Network namespaces need root; without them this says so and checks the relays.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_far_apart_sign_in_a_few_round_trips_although_packets_are_lost() {
    sign_far_apart(Transport::Tcp).await;
}

/// Relays delay TCP only, so this checks less without network namespaces: no delay.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_far_apart_sign_over_quic_too() {
    sign_far_apart(Transport::Quic).await;
}

#[allow(clippy::print_stderr, reason = "why it checks less")]
async fn sign_far_apart(transport: Transport) {
    let quality = Quality {
        delay: Duration::from_millis(100),
        loss_percent: 1.0,
    };
    let count = SMALL.operators + 1;
    let hosts = Hosts::new(Kind::Namespaces, transport, count, quality).unwrap_or_else(|error| {
        eprintln!("{error}");
        Hosts::new(Kind::Loopback, transport, count, quality).unwrap()
    });
    eprintln!("{}", hosts.description);
    let dir = tempfile::tempdir().unwrap();
    let keys = tokio::task::spawn_blocking(|| proof_keys(|_| {}).unwrap())
        .await
        .unwrap();
    let story = Story::default();
    let mut network = LocalNetwork::start_on(
        hosts,
        &dir.path().join("net"),
        SMALL,
        &keys,
        Scenario::Basic.extras(),
    )
    .await
    .unwrap();
    scenario::found(&mut network, &story).await.unwrap();
    let report = scenario::play(&mut network, Scenario::Basic, &story)
        .await
        .unwrap();
    // Two rounds cannot be done in less time than light needs for them: the delay was there.
    let (apart, _) = signing_ms(&report).unwrap();
    assert!(!network.hosts.are_apart() || apart >= 400, "{apart} ms");
    if let Some((carried, lost)) = network.hosts.packets() {
        assert!(carried > 0 && lost > 0, "{carried} carried, {lost} lost");
    }
    eprintln!("{}", round_trips(&report, &network.hosts, quality.delay));
    let stubborn = network.stop().await;
    assert!(
        stubborn.is_empty(),
        "did not stop by themselves: {stubborn:?}"
    );
}
