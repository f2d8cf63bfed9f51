//! What one input costs without nodes: raw `frost-secp256k1-tr`, and the same through `threshold`.
//!
//! The two are timed by turns, so that a machine that slows down slows both. Ours does more than the raw calls: it
//! checks the package, and verifies each signature a second time with libsecp256k1.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    time::{Duration, Instant},
};

use frost_secp256k1_tr::{self as frost, keys::Tweak as _};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use threshold::{
    KeyShare, SignerId,
    dkg::{Ceremony, Machine, Seed},
    sign::{Message, Package, Tweak, aggregate, commit, sign, verify_shares},
};

/// Turns of each side.
pub const TURNS: usize = 60;
const DIGEST: [u8; 32] = [0xD1; 32];
const ROOT: [u8; 32] = [0x5A; 32];

/// The steps that are timed, in the order of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One signer's round 1.
    Commit,
    /// One signer's round 2.
    Sign,
    /// One signer's share checked.
    VerifyShare,
    /// All shares to one signature.
    Aggregate,
}

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// frost-secp256k1-tr.
    Raw,
    /// The threshold crate.
    Ours,
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

/// All times of one group.
pub struct Timings(Vec<(Step, Side, Duration)>);

impl Timings {
    /// Times `t` of `n` signers, [`TURNS`] times each side.
    pub fn take(n: u8, t: u16) -> Self {
        let shares = generate(n, t);
        let mut timings = Self(Vec::new());
        let signers = &shares[..usize::from(t)];
        let (raw, public) = raw_keys(&shares);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for turn in 0..TURNS {
            // Who goes first alternates too: the second finds warmer caches.
            if turn % 2 == 0 {
                timings.turn(signers, &mut rng);
            }
            timings.raw_turn(&raw[..usize::from(t)], &public, &mut rng);
            if turn % 2 == 1 {
                timings.turn(signers, &mut rng);
            }
        }
        timings
    }

    /// The median of a step in microseconds.
    pub fn median(&self, step: Step, side: Side) -> f64 {
        let mut times: Vec<Duration> = self
            .0
            .iter()
            .filter(|(s, who, _)| (*s, *who) == (step, side))
            .map(|(_, _, time)| *time)
            .collect();
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6
    }

    fn note(&mut self, step: Step, side: Side, start: Instant) {
        self.0.push((step, side, start.elapsed()));
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
            self.note(Step::Commit, Side::Raw, start);
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
            self.note(Step::Sign, Side::Raw, start);
            shares.insert(*key.identifier(), share);
        }
        for (id, share) in &shares {
            let start = Instant::now();
            let keys = public.clone().tweak(Some(&ROOT));
            frost_core::verify_signature_share(
                *id,
                &keys.verifying_shares()[id],
                share,
                &package,
                keys.verifying_key(),
            )
            .unwrap();
            self.note(Step::VerifyShare, Side::Raw, start);
        }
        let start = Instant::now();
        black_box(frost::aggregate_with_tweak(&package, &shares, public, Some(&ROOT)).unwrap());
        self.note(Step::Aggregate, Side::Raw, start);
    }

    fn turn(&mut self, signers: &[KeyShare], rng: &mut ChaCha20Rng) {
        let group = signers[0].group();
        let mut round1 = Vec::new();
        for share in signers {
            let start = Instant::now();
            round1.push(black_box(commit(share, 1, rng).unwrap()));
            self.note(Step::Commit, Side::Ours, start);
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
            self.note(Step::Sign, Side::Ours, start);
            answers.insert(share.signer(), answer);
        }
        for (from, answer) in &answers {
            let start = Instant::now();
            verify_shares(group, &package, *from, answer).unwrap();
            self.note(Step::VerifyShare, Side::Ours, start);
        }
        let start = Instant::now();
        black_box(aggregate(group, &package, &answers).unwrap());
        self.note(Step::Aggregate, Side::Ours, start);
    }
}
