//! What signing and proving cost by themselves, and beside it what the nodes took for the same in the same run:
//! processes on a real bitcoind that play the basic scenario, 3-of-5 and then 12-of-16.
//!
//! `./bench.sh` runs it with the rest. docs/performance.md says how to read the tables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod figures;
mod frost;
mod proofs;
#[path = "../../../benches/steal.rs"]
mod steal;

use std::path::Path;

use figures::{Figures, Mean};
use frost::{Side, Step, Timings};
use proofs::ChunkCosts;
use steal::Steal;
use testnet::{
    network::{LocalNetwork, Size, proof_keys},
    scenario::{self, Scenario, Story},
};

const GROUPS: [(u8, u16); 2] = [(5, 3), (16, 12)];

/// What the nodes took for one input, or one chunk.
struct Taken {
    round1: Mean,
    round2: Mean,
    aggregate: Mean,
    prove: Mean,
    judge: Mean,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let steal = Steal::now();
    let keys = proof_keys(|_| {})?;
    let chunk = proofs::take(&keys);
    let mut signing = Vec::new();
    let mut proving = Vec::new();
    for (n, t) in GROUPS {
        let alone = Timings::take(n, t);
        println!("\n{t}-of-{n}: the basic scenario on node processes");
        let nodes = play(n, t, &keys).await?;
        signing.extend(signing_rows(n, t, &alone, &nodes));
        proving.extend(proving_rows(n, t, &chunk, &nodes));
    }
    print_signing(&signing);
    print_proving(&proving);
    println!("\n{steal}");
    Ok(())
}

async fn play(n: u8, t: u16, keys: &Path) -> anyhow::Result<Taken> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let size = Size {
        operators: n.into(),
        threshold: t,
    };
    let story = Story::default();
    let mut network = LocalNetwork::start(&dir.path().join("net"), size, keys).await?;
    let taken = measure(&mut network, &story).await;
    story.end();
    network.stop().await;
    taken
}

/// The genesis session is not in it: all n sign there.
async fn measure(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<Taken> {
    scenario::found(network, story).await?;
    let before = Figures::read(network).await?;
    scenario::play(network, Scenario::Basic, story).await?;
    let after = Figures::read(network).await?;
    let mean = |work: &str, items: &str| after.mean(&before, work, items);
    Ok(Taken {
        round1: mean("operator_round1", "operator_round1_inputs"),
        round2: mean("operator_round2", "operator_round2_inputs"),
        aggregate: mean("drawbridge_aggregate", "drawbridge_aggregated_inputs"),
        prove: mean("drawbridge_prove", "drawbridge_proven_chunks"),
        judge: mean("operator_judge", "operator_judged_chunks"),
    })
}

/// A line of the table: the step by itself, and at the nodes where they measure it.
struct Row {
    group: String,
    step: String,
    /// The yardstick of the ratios.
    raw: f64,
    ours: f64,
    nodes: Option<Mean>,
}

fn signing_rows(n: u8, t: u16, alone: &Timings, nodes: &Taken) -> Vec<Row> {
    let row = |step: &str, raw, ours, nodes| Row {
        group: format!("{t}-of-{n}"),
        step: step.to_owned(),
        raw,
        ours,
        nodes,
    };
    let [raw, ours] =
        [Side::Raw, Side::Ours].map(|side| move |step: Step| alone.median(step, side));
    let both = |step| (raw(step), ours(step));
    let (commit, sign, verify, aggregate) = (
        both(Step::Commit),
        both(Step::Sign),
        both(Step::VerifyShare),
        both(Step::Aggregate),
    );
    vec![
        row("commit (round 1)", commit.0, commit.1, Some(nodes.round1)),
        row("sign", sign.0, sign.1, None),
        row(
            "sign, commit again (round 2)",
            sign.0 + commit.0,
            sign.1 + commit.1,
            Some(nodes.round2),
        ),
        row("verify one share", verify.0, verify.1, None),
        row(
            "all shares to a signature",
            aggregate.0,
            aggregate.1,
            Some(nodes.aggregate),
        ),
    ]
}

fn print_signing(rows: &[Row]) {
    println!(
        "\nSigning one input, key path with a script tree; microseconds. raw and API: median of {} turns;\n\
         nodes: mean over all nodes and inputs, time and CPU time. Ratios to raw.",
        frost::TURNS
    );
    println!(
        "{:10} {:30} {:>8} {:>8} {:>7} | {:>9} {:>7} | {:>9} {:>7}",
        "group", "step", "raw", "API", "ratio", "nodes", "ratio", "CPU", "ratio"
    );
    for row in rows {
        let nodes = row.nodes.map_or_else(String::new, |mean| {
            let (wall, cpu) = (mean.wall * 1e6, mean.cpu * 1e6);
            format!(
                "{wall:>9.0} {:>7.2} | {cpu:>9.0} {:>7.2}",
                wall / row.raw,
                cpu / row.raw
            )
        });
        println!(
            "{:10} {:30} {:>8.0} {:>8.0} {:>7.2} | {nodes}",
            row.group,
            row.step,
            row.raw,
            row.ours,
            row.ours / row.raw
        );
    }
}

/// (group, step, (time, CPU time) here, the same at the nodes), in seconds.
type ProvingRow = (String, &'static str, Mean, Mean);

fn proving_rows(n: u8, t: u16, chunk: &ChunkCosts, nodes: &Taken) -> Vec<ProvingRow> {
    let own = |cost: node::cost::Cost| Mean {
        wall: cost.wall.as_secs_f64(),
        cpu: cost.cpu.as_secs_f64(),
    };
    let group = format!("{t}-of-{n}");
    vec![
        (group.clone(), "prove", own(chunk.prove), nodes.prove),
        (group, "verify", own(chunk.verify), nodes.judge),
    ]
}

fn print_proving(rows: &[ProvingRow]) {
    println!(
        "\nOne chunk of such a batch; ms, means. The nodes' verify is all rules S1 to S5, the proof among them."
    );
    println!(
        "{:10} {:10} {:>10} {:>10} | {:>10} {:>10} {:>7} {:>9}",
        "group", "step", "here", "CPU", "nodes", "CPU", "ratio", "CPU ratio"
    );
    for (group, step, here, nodes) in rows {
        let [a, b, c, d] = [here.wall, here.cpu, nodes.wall, nodes.cpu].map(|s| s * 1e3);
        println!(
            "{group:10} {step:10} {a:>10.1} {b:>10.1} | {c:>10.1} {d:>10.1} {:>7.2} {:>9.2}",
            c / a,
            d / b
        );
    }
}
