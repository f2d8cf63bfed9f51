//! Sessions beside raw FROST.

use std::time::Duration;

use protocol::message::POOL_PAIRS;
use simulator::Group;
use threshold::sign::max_messages;

use crate::{
    hosts::{Network, Traffic},
    machine::{Took, median, ms},
    raw::Raw,
    session::{Dropouts, Keys},
};

const GROUPS: [Group; 3] = [Group::new(3, 5), Group::new(12, 16), Group::new(67, 100)];
const INPUTS: [usize; 4] = [1, 10, 100, 1_000];
/// One way, in the last column.
const DELAY: Duration = Duration::from_millis(100);
/// Raw FROST has no work that inputs share, so the path of many is that of a few, so many times.
const RAW_INPUTS: usize = 10;
/// Shares that a row makes in all its turns, so that small rows are repeated and large ones are not.
const SHARES: usize = 600;
const MOST_TURNS: usize = 15;
/// Shares of a session that is left out of the short form.
const LONG: usize = 2_000;

/// One session.
struct Run {
    took: Took,
    attempts: u32,
    /// Of the operator with most.
    traffic: Traffic,
    /// Of the coordinator, and of the operator that needs most.
    peaks: [isize; 2],
}

/// A session that begins with what all have handed out ahead of time.
fn run_pooled(keys: &Keys, group: &Group, inputs: usize) -> (Took, u32) {
    let mut hosts = keys.session(inputs, Dropouts::Nobody);
    let mut network = Network::new(usize::from(group.operators) + 1, DELAY);
    network.send(0, hosts.propose_pooled());
    let took = network.run(&mut hosts);
    (took, hosts.attempts().unwrap())
}

/// A session with the first `reachable` operators; the others hear of nothing.
fn run(keys: &Keys, group: &Group, inputs: usize, reachable: u16, delay: Duration) -> Run {
    let mut hosts = keys.session(inputs, Dropouts::Nobody);
    let operators = usize::from(group.operators);
    let mut network = Network::new(operators + 1, delay);
    let mut proposals = hosts.propose();
    proposals.truncate(reachable.into());
    network.send(0, proposals);
    let took = network.run(&mut hosts);
    let traffic = (1..=operators).map(|host| network.traffic(host));
    let most = (1..=operators)
        .map(|host| network.peak(host))
        .max()
        .unwrap();
    Run {
        took,
        attempts: hosts.attempts().unwrap(),
        traffic: traffic.max_by_key(|traffic| traffic.bytes).unwrap(),
        peaks: [network.peak(0), most],
    }
}

/// Prints the table; in the short form without the rows that take minutes.
pub fn print(is_short: bool) {
    println!(
        "Signing: raw FROST's critical path (one signer's round 1 and 2, and aggregation, on one thread), and a whole\n\
         session with the nodes' machines and encoding, every node on a host of its own like this machine. CPU: time of\n\
         all threads on the critical path, without delay. ms; medians of turns in which both sides alternate."
    );
    println!(
        "{:>10} {:>6} {:>5} | {:>9} {:>9} {:>6} {:>6} {:>8} | {:>9} {:>10} | {:>4} {:>10} | {:>9} {:>9}",
        "group",
        "inputs",
        "turns",
        "raw CPU",
        "CPU",
        "ratio",
        "t only",
        "attempts",
        "elapsed",
        "at 100 ms",
        "msgs",
        "bytes",
        "coord KiB",
        "oper. KiB"
    );
    for group in GROUPS {
        let (n, t) = (usize::from(group.operators), usize::from(group.threshold));
        let keys = Keys::new(group);
        let mut raw = Raw::new(&group);
        for inputs in INPUTS {
            let most = max_messages(n, t);
            if inputs > most {
                println!(
                    "{:>10} {inputs:>6}   more than a session can have: {most}",
                    group.to_string()
                );
                continue;
            }
            if is_short && inputs * t > LONG {
                continue;
            }
            row(&group, &keys, &mut raw, inputs);
        }
    }
    print_pool(is_short);
    println!(
        "\nt only: the ratio when no more than t operators are there, so that no second attempt begins beside the first.\n\
         at 100 ms: until all inputs are signed, each message taking 100 ms: two round trips, from the proposal, are\n\
         400 ms. msgs, bytes: to and from the operator with most. KiB: the most memory for the session, of the coordinator\n\
         and of an operator."
    );
}

/// What the pool saves of the time until all inputs are signed.
fn print_pool(is_short: bool) {
    println!(
        "\nWith nonces handed out ahead of time (batches of up to {POOL_PAIRS} inputs), at 100 ms one way; ms until all inputs are\n\
         signed: one round trip, from the proposal, is 200 ms."
    );
    println!(
        "{:>10} {:>6} | {:>10} {:>10} {:>8}",
        "group", "inputs", "without", "with", "attempts"
    );
    for group in GROUPS {
        let keys = Keys::new(group);
        for inputs in [1, 10, POOL_PAIRS] {
            if is_short && inputs * usize::from(group.threshold) > LONG {
                continue;
            }
            let without = run(&keys, &group, inputs, group.operators, DELAY);
            let (with, attempts) = run_pooled(&keys, &group, inputs);
            println!(
                "{:>10} {inputs:>6} | {:>10.0} {:>10.0} {attempts:>8}",
                group.to_string(),
                ms(without.took.elapsed),
                ms(with.elapsed)
            );
        }
    }
}

fn row(group: &Group, keys: &Keys, raw: &mut Raw, inputs: usize) {
    let shares = inputs * usize::from(group.threshold);
    let turns = (SHARES / shares).clamp(1, MOST_TURNS);
    let counted = inputs.min(RAW_INPUTS);
    let scale = inputs as f64 / counted as f64;
    let (mut raws, mut ours, mut ratios, mut elapsed) = (vec![], vec![], vec![], vec![]);
    let (mut bares, mut last) = (vec![], None);
    for _ in 0..turns {
        let alone = ms(raw.critical_path(counted).cpu) * scale;
        let bare = run(keys, group, inputs, group.threshold, Duration::ZERO);
        bares.push(ms(bare.took.cpu) / alone);
        let session = run(keys, group, inputs, group.operators, Duration::ZERO);
        let own = ms(session.took.cpu);
        raws.push(alone);
        ours.push(own);
        ratios.push(own / alone);
        elapsed.push(ms(session.took.elapsed));
        last = Some(session);
    }
    let last = last.unwrap();
    let delayed = ms(run(keys, group, inputs, group.operators, DELAY)
        .took
        .elapsed);
    let [coordinator, operator] = last.peaks.map(|bytes| bytes / 1_024);
    println!(
        "{:>10} {inputs:>6} {turns:>5} | {:>9.1} {:>9.1} {:>6.2} {:>6.2} {:>8} | {:>9.1} {delayed:>10.0} | {:>4} {:>10} | {coordinator:>9} {operator:>9}",
        group.to_string(),
        median(raws),
        median(ours),
        median(ratios),
        median(bares),
        last.attempts,
        median(elapsed),
        last.traffic.messages,
        last.traffic.bytes,
    );
}
