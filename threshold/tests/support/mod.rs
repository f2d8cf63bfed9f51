//! Groups for the tests, made the way operators make them.
#![allow(dead_code)]

use std::collections::BTreeSet;

use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use threshold::dkg::{Ceremony, Machine, Seed};
use threshold::{KeyShare, SignerId};

/// More polls than any ceremony needs: one for each message, and one to find nothing new.
const MAX_POLLS: usize = 8;

pub fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub fn signer(number: u8) -> SignerId {
    SignerId::derive(&[number; 32])
}

/// `n` signers, in the order of their identifiers.
pub fn signers(n: u8) -> Vec<SignerId> {
    (1..=n)
        .map(signer)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

pub fn ceremony(n: u8, threshold: u16, me: usize) -> Ceremony {
    let ids = signers(n);
    Ceremony {
        me: ids[me],
        signers: ids.into_iter().collect(),
        threshold,
        context: [0xC0; 32],
    }
}

/// The fixed seed of the participant at index `me`.
pub fn seed(me: usize) -> Seed {
    Seed::from_bytes(&[u8::try_from(me).unwrap() + 1; 32])
}

pub fn machine(n: u8, threshold: u16, me: usize) -> Machine {
    Machine::new(ceremony(n, threshold, me), &seed(me)).unwrap()
}

pub fn machines(n: u8, threshold: u16) -> Vec<Machine> {
    (0..usize::from(n))
        .map(|me| machine(n, threshold, me))
        .collect()
}

/// `to` asks `from` for its messages and takes them in.
pub fn poll(machines: &mut [Machine], ids: &[SignerId], to: usize, from: usize) {
    for message in machines[from].messages_for(ids[to]) {
        machines[to].receive(ids[from], message).unwrap();
    }
}

/// Everybody asks everybody until all are done.
pub fn finish(machines: &mut [Machine], ids: &[SignerId]) {
    for _ in 0..MAX_POLLS {
        for to in 0..machines.len() {
            for from in (0..machines.len()).filter(|from| *from != to) {
                poll(machines, ids, to, from);
            }
        }
        if machines.iter().all(|machine| machine.finished().is_some()) {
            return;
        }
    }
    panic!("not finished: {machines:?}");
}

pub fn copy(share: &KeyShare) -> KeyShare {
    KeyShare::from_secret_bytes(&share.to_secret_bytes().unwrap()).unwrap()
}

/// The shares of a group made with fixed seeds, in the order of the identifiers.
pub fn group(n: u8, threshold: u16) -> Vec<KeyShare> {
    let mut machines = machines(n, threshold);
    finish(&mut machines, &signers(n));
    machines
        .iter()
        .map(|machine| copy(machine.finished().unwrap()))
        .collect()
}

/// The context of the tests' refreshes.
pub const REFRESH: [u8; 32] = [0xEF; 32];

/// The fixed seed of the participant at index `me` of a refresh.
pub fn refresh_seed(me: usize) -> Seed {
    Seed::from_bytes(&[u8::try_from(me).unwrap() + 101; 32])
}

pub fn refresh_machine(share: &KeyShare, epoch: u32, me: usize) -> Machine {
    threshold::refresh::machine(share, epoch, &REFRESH, &refresh_seed(me)).unwrap()
}

pub fn refresh_machines(shares: &[KeyShare], epoch: u32) -> Vec<Machine> {
    shares
        .iter()
        .enumerate()
        .map(|(me, share)| refresh_machine(share, epoch, me))
        .collect()
}

/// The shares of the next epoch.
pub fn refreshed(shares: &[KeyShare]) -> Vec<KeyShare> {
    let mut machines = refresh_machines(shares, shares[0].group().epoch() + 1);
    let ids: Vec<_> = shares.iter().map(KeyShare::signer).collect();
    finish(&mut machines, &ids);
    machines
        .iter()
        .map(|machine| copy(machine.finished().unwrap()))
        .collect()
}
