//! What one input costs: raw `frost-secp256k1-tr` beside the same through this crate.
//!
//! `cargo bench -p threshold`. The two are timed by turns, so that a machine that slows down slows
//! both; the median of all turns is printed, and how much of the CPU the hypervisor took meanwhile.
//! The API does more than the raw calls: it checks the package, and verifies the signature a second
//! time with libsecp256k1. docs/performance.md says how to read the table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::{Duration, Instant};

use frost_secp256k1_tr as frost;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use threshold::dkg::{Ceremony, Machine, Seed};
use threshold::sign::{Message, Package, Tweak, aggregate, commit, sign, verify_shares};
use threshold::{KeyShare, SignerId};

const TURNS: usize = 60;
const GROUPS: [(u8, u16); 2] = [(5, 3), (16, 12)];
const DIGEST: [u8; 32] = [0xD1; 32];
const ROOT: [u8; 32] = [0x5A; 32];

fn main() {
    let stolen = Steal::now();
    println!("one input, key path with a script tree; microseconds, median of {TURNS}");
    println!();
    println!(
        "{:10} {:12} {:>10} {:>10} {:>7}",
        "group", "step", "raw", "here", "ratio"
    );
    for (n, t) in GROUPS {
        let shares = generate(n, t);
        let timings = Timings::take(&shares, t);
        for (step, [raw, here]) in timings.0 {
            let (raw, here) = (median(raw), median(here));
            let ratio = if raw > 0.0 {
                format!("{:.2}", here / raw)
            } else {
                "-".into()
            };
            let raw = if raw > 0.0 {
                format!("{raw:.0}")
            } else {
                "-".into()
            };
            println!(
                "{:10} {step:12} {raw:>10} {here:>10.0} {ratio:>7}",
                format!("{t}-of-{n}")
            );
        }
    }
    println!();
    match stolen.since() {
        Some(percent) => println!("CPU steal meanwhile: {percent:.1} % of all CPU time"),
        None => println!("CPU steal meanwhile: unknown (no /proc/stat)"),
    }
}

/// A group by the key generation that operators use, with fixed seeds.
fn generate(n: u8, threshold: u16) -> Vec<KeyShare> {
    let ids: BTreeSet<SignerId> = (0..n).map(|i| SignerId::derive(&[i; 32])).collect();
    let ceremony = |me| Ceremony {
        me,
        signers: ids.clone(),
        threshold,
        context: [0xBE; 32],
    };
    let mut machines: Vec<(SignerId, Machine)> = ids
        .iter()
        .zip(1_u8..)
        .map(|(id, i)| {
            (
                *id,
                Machine::new(ceremony(*id), &Seed::from_bytes(&[i; 32])).unwrap(),
            )
        })
        .collect();
    while machines
        .iter()
        .any(|(_, machine)| machine.finished().is_none())
    {
        for to in 0..machines.len() {
            for from in (0..machines.len()).filter(|from| *from != to) {
                for message in machines[from].1.messages_for(machines[to].0) {
                    let from = machines[from].0;
                    machines[to].1.receive(from, message).unwrap();
                }
            }
        }
    }
    machines
        .iter()
        .map(|(_, machine)| machine.finished().unwrap().to_secret_bytes().unwrap())
        .map(|bytes| KeyShare::from_secret_bytes(&bytes).unwrap())
        .collect()
}

/// The same key material as the raw crate takes it.
fn raw_keys(shares: &[KeyShare]) -> (Vec<frost::keys::KeyPackage>, frost::keys::PublicKeyPackage) {
    let group = serde_json::to_value(shares[0].group()).unwrap();
    let key: frost::VerifyingKey = serde_json::from_value(group["verifying_key"].clone()).unwrap();
    let verifying: BTreeMap<frost::Identifier, frost::keys::VerifyingShare> =
        serde_json::from_value(group["verifying_shares"].clone()).unwrap();
    let threshold = shares[0].group().threshold();
    let packages = shares
        .iter()
        .map(|share| {
            let bytes = share.to_secret_bytes().unwrap();
            let id = frost::Identifier::deserialize(&share.signer().to_bytes()).unwrap();
            let secret = frost::keys::SigningShare::deserialize(&bytes[33..65]).unwrap();
            frost::keys::KeyPackage::new(id, secret, verifying[&id], key, threshold)
        })
        .collect();
    (
        packages,
        frost::keys::PublicKeyPackage::new(verifying, key, Some(threshold)),
    )
}

/// Per step the raw times and ours, in the order of the protocol.
struct Timings(Vec<(&'static str, [Vec<Duration>; 2])>);

impl Timings {
    fn take(shares: &[KeyShare], threshold: u16) -> Self {
        let steps = ["commit", "sign", "verify share", "aggregate"];
        let mut timings = Self(steps.map(|step| (step, [Vec::new(), Vec::new()])).into());
        let signers = &shares[..usize::from(threshold)];
        let (raw, public) = raw_keys(shares);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for turn in 0..TURNS {
            // Who goes first alternates too: the second finds warmer caches.
            if turn % 2 == 0 {
                timings.turn(signers, &mut rng);
            }
            timings.raw_turn(&raw[..usize::from(threshold)], &public, &mut rng);
            if turn % 2 == 1 {
                timings.turn(signers, &mut rng);
            }
        }
        timings
    }

    fn note(&mut self, step: usize, side: usize, start: Instant) {
        self.0[step].1[side].push(start.elapsed());
    }

    fn raw_turn(
        &mut self,
        keys: &[frost::keys::KeyPackage],
        public: &frost::keys::PublicKeyPackage,
        rng: &mut ChaCha20Rng,
    ) {
        let mut round1 = Vec::new();
        for key in keys {
            let start = Instant::now();
            round1.push(black_box(frost::round1::commit(key.signing_share(), rng)));
            self.note(0, 0, start);
        }
        let commitments = keys
            .iter()
            .zip(&round1)
            .map(|(key, (_, public))| (*key.identifier(), *public))
            .collect();
        let package = frost::SigningPackage::new(commitments, &DIGEST);
        let mut shares = BTreeMap::new();
        for (key, (nonces, _)) in keys.iter().zip(&round1) {
            let start = Instant::now();
            let share = frost::round2::sign_with_tweak(&package, nonces, key, Some(&ROOT)).unwrap();
            self.note(1, 0, start);
            shares.insert(*key.identifier(), share);
        }
        let start = Instant::now();
        black_box(frost::aggregate_with_tweak(&package, &shares, public, Some(&ROOT)).unwrap());
        self.note(3, 0, start);
    }

    fn turn(&mut self, signers: &[KeyShare], rng: &mut ChaCha20Rng) {
        let group = signers[0].group();
        let mut round1 = Vec::new();
        for share in signers {
            let start = Instant::now();
            round1.push(black_box(commit(share, 1, rng).unwrap()));
            self.note(0, 1, start);
        }
        let commitments = signers
            .iter()
            .zip(&round1)
            .map(|(share, (_, public))| (share.signer(), public.clone()))
            .collect();
        let messages = vec![Message {
            digest: DIGEST,
            tweak: Tweak::KeyPath(Some(ROOT)),
        }];
        let package = Package {
            messages,
            commitments,
        };
        let mut answers = BTreeMap::new();
        for (share, (nonces, _)) in signers.iter().zip(round1) {
            let start = Instant::now();
            let answer = sign(share, nonces, &package).unwrap();
            self.note(1, 1, start);
            answers.insert(share.signer(), answer);
        }
        for (from, answer) in &answers {
            let start = Instant::now();
            verify_shares(group, &package, *from, answer).unwrap();
            self.note(2, 1, start);
        }
        let start = Instant::now();
        black_box(aggregate(group, &package, &answers).unwrap());
        self.note(3, 1, start);
    }
}

/// In microseconds; 0 if there are none.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// The kernel's counters of all CPU time and of what the hypervisor took (proc(5)).
struct Steal(Option<(u64, u64)>);

impl Steal {
    fn now() -> Self {
        Self(std::fs::read_to_string("/proc/stat").ok().and_then(|stat| {
            let line = stat.lines().next()?.strip_prefix("cpu ")?;
            let ticks: Vec<u64> = line
                .split_whitespace()
                .filter_map(|t| t.parse().ok())
                .collect();
            // Guest time, the last two, is contained in user time.
            Some((ticks.get(..8)?.iter().sum(), *ticks.get(7)?))
        }))
    }

    fn since(&self) -> Option<f64> {
        let (before, now) = (self.0?, Self::now().0?);
        let all = now.0.saturating_sub(before.0).max(1);
        Some(100.0 * now.1.saturating_sub(before.1) as f64 / all as f64)
    }
}
