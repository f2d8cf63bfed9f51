//! ROAST's own experiment (Ruffing et al., CCS 2022, section 5, and the prototype robot-dreams/roast): n - t signers
//! that drop out after the nonce round, one message, the time from the request for nonces to the signature.
//!
//! Uncoordinated ones are a fixed set that never answers a sign request, so that one attempt can meet many of them.
//! Coordinated ones see to it that each of the first n - t attempts fails by one of them alone. In the prototype's runs
//! the coordinator was in San Francisco and all signers on one host in Frankfurt, 153 ms apart and back.

use std::{collections::BTreeSet, time::Duration};

use simulator::Group;

use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha20Rng;

use crate::{
    hosts::Network,
    machine::{median, ms},
    session::{Dropouts, Keys},
};

/// One way.
const DELAY: Duration = Duration::from_micros(76_500);
/// Group, and the paper's seconds, uncoordinated and coordinated.
const CASES: [(Group, [f64; 2]); 2] = [
    (Group::new(11, 15), [0.6, 1.0]),
    (Group::new(67, 100), [0.7, 7.0]),
];
const TURNS: u64 = 3;

pub fn print() {
    println!(
        "ROAST's experiment: n - t signers drop out after the nonce round; one input; {} ms of network a round trip",
        2 * DELAY.as_micros() / 1_000
    );
    println!(
        "{:>10} {:>14} {:>5} {:>8} {:>8} {:>12} {:>8} {:>8}",
        "group", "dropouts", "turns", "attempts", "trips, s", "else, s", "all, s", "paper, s"
    );
    for (group, paper) in CASES {
        let keys = Keys::new(group);
        row(&group, &keys, "uncoordinated", paper[0]);
        row(&group, &keys, "coordinated", paper[1]);
    }
    println!(
        "\ntrips: the time of the round trips alone, one for the nonces and one an attempt. else: computing, and the one wait for\n\
         the first attempt, which is about a round trip. What differs from the paper: its signers share one host, ours have\n\
         one like this machine each; its prototype is Python and checks each share as it comes; ours are the nodes' machines\n\
         and encoding, and check shares together."
    );
}

fn row(group: &Group, keys: &Keys, name: &str, paper: f64) {
    let (mut times, mut attempts) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let (took, tries) = once(group, keys, name == "coordinated", turn);
        times.push(took);
        attempts.push(f64::from(tries));
    }
    let (time, tries) = (median(times) / 1e3, median(attempts));
    let trips = 2.0 * DELAY.as_secs_f64() * (tries + 1.0);
    println!(
        "{:>10} {name:>14} {TURNS:>5} {tries:>8} {trips:>8.2} {:>12.2} {time:>8.2} {paper:>8.1}",
        group.to_string(),
        time - trips
    );
}

/// Milliseconds, and attempts.
fn once(group: &Group, keys: &Keys, is_coordinated: bool, turn: u64) -> (f64, u32) {
    let failures = group.operators - group.threshold;
    let operators = usize::from(group.operators);
    let dropouts = if is_coordinated {
        Dropouts::OneEach {
            attempts: failures.into(),
            gone: Default::default(),
        }
    } else {
        let mut hosts: Vec<usize> = (1..=operators).collect();
        hosts.shuffle(&mut ChaCha20Rng::seed_from_u64(turn));
        let hosts: BTreeSet<usize> = hosts.into_iter().take(failures.into()).collect();
        Dropouts::Fixed(hosts)
    };
    let mut hosts = keys.session(1, dropouts);
    let mut network = Network::new(operators + 1, DELAY);
    network.send(0, hosts.propose());
    let took = network.run(&mut hosts);
    (ms(took.elapsed), hosts.attempts().unwrap())
}
