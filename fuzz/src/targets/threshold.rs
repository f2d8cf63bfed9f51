//! FROST: shares, groups, both rounds, key generation, and sealed files.

use sha2::{Digest as _, Sha256};
use threshold::{
    GroupInfo, KeyShare, dkg,
    repair::{Delta, Member, Sigma, Split},
    seal::{self, Cost, SealError},
    sign::{Commitments, Package, Shares, verify_shares},
};

use super::{read_either, read_wire, select, selected};
use crate::{
    Target, Verdict,
    honest::{self, signer},
};

pub(super) const TARGETS: [Target; 7] = [
    Target {
        name: "key_share",
        run: key_share,
        honest: honest_key_share,
        executions: 20_000,
        memory: 256 << 10,
    },
    Target {
        name: "group",
        run: group,
        honest: honest_group,
        executions: 20_000,
        memory: 256 << 10,
    },
    Target {
        name: "signing_rounds",
        run: rounds,
        honest: honest_rounds,
        executions: 10_000,
        memory: 1 << 20,
    },
    Target {
        name: "key_generation",
        run: key_generation,
        honest: honest_key_generation,
        executions: 2_000,
        memory: 1 << 20,
    },
    Target {
        name: "refresh",
        run: refresh,
        honest: honest_refresh,
        executions: 2_000,
        memory: 1 << 20,
    },
    Target {
        name: "repair",
        run: repair,
        honest: honest_repair,
        executions: 4_000,
        memory: 1 << 20,
    },
    Target {
        name: "sealed_file",
        run: sealed,
        honest: honest_sealed,
        executions: 20_000,
        memory: 1 << 20,
    },
];

const PASSPHRASE: &str = "correct horse";
const PURPOSE: &str = "fuzzing";

/// A share reads back, and nobody else's secret passes for a signer's.
fn key_share(bytes: &[u8]) -> Verdict {
    let Ok(share) = KeyShare::from_secret_bytes(bytes) else {
        return Verdict::Refused;
    };
    let encoded = share.to_secret_bytes().unwrap();
    let again = KeyShare::from_secret_bytes(&encoded).unwrap();
    assert_eq!(again.to_secret_bytes().unwrap(), encoded);
    let shares = &honest::honest().shares;
    if share.group() == shares[0].group() {
        let same = shares.iter().find(|own| own.signer() == share.signer());
        assert_eq!(*same.unwrap().to_secret_bytes().unwrap(), *encoded);
    }
    Verdict::Accepted
}

fn honest_key_share() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |index: usize| {
        let share = &honest::honest().shares[index];
        share.to_secret_bytes().unwrap().to_vec()
    };
    vec![("first", bytes(0)), ("last", bytes(2))]
}

/// As it travels and as JSON. What is accepted lies on one polynomial, so no change to a key, a share or the threshold
/// leaves another group with the same signers and key.
fn group(bytes: &[u8]) -> Verdict {
    let Some(group) = read_either::<GroupInfo>(bytes) else {
        return Verdict::Refused;
    };
    let own = honest::honest().shares[0].group();
    if group.group_key() == own.group_key() && group.signers().eq(own.signers()) {
        assert_eq!(group.threshold(), own.threshold());
    }
    Verdict::Accepted
}

fn honest_group() -> Vec<(&'static str, Vec<u8>)> {
    let group = honest::honest().shares[0].group();
    vec![
        ("wire", selected(0, &postcard::to_stdvec(group).unwrap())),
        ("json", selected(1, &serde_json::to_vec(group).unwrap())),
    ]
}

/// Commitments and shares. A package fits unused nonces only with their own commitments in it; a signer's shares verify
/// only if they are those that it has made.
fn rounds(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    let honest = honest::honest();
    if which % 2 == 0 {
        let Some(commitments) = read_wire::<Commitments>(rest) else {
            return Verdict::Refused;
        };
        let wire = postcard::to_stdvec(&commitments).unwrap();
        assert_eq!(read_wire(&wire), Some(commitments.clone()));
        let (nonces, package) = &honest.unused;
        let (me, other) = (&honest.shares[2], honest.shares[1].signer());
        let with = |signer| {
            let mut package: Package = package.clone();
            package.commitments.insert(signer, commitments.clone());
            nonces.check(me, &package)
        };
        let own = with(me.signer()).is_ok();
        assert_eq!(own, package.commitments[&me.signer()] == commitments);
        let fits = commitments.len() == package.messages.len() && commitments.are_points();
        assert_eq!(with(other).is_ok(), fits);
    } else {
        let Some(shares) = read_wire::<Shares>(rest) else {
            return Verdict::Refused;
        };
        let wire = postcard::to_stdvec(&shares).unwrap();
        assert_eq!(read_wire(&wire), Some(shares.clone()));
        let (from, own) = honest.round2.first_key_value().unwrap();
        let group = honest.shares[0].group();
        let verified = verify_shares(group, &honest.package, *from, &shares).is_ok();
        assert_eq!(verified, *own == shares);
    }
    Verdict::Accepted
}

fn honest_rounds() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest::honest();
    let (_, package) = &honest.unused;
    let own = &package.commitments[&signer(2)];
    let (_, shares) = honest.round2.first_key_value().unwrap();
    vec![
        (
            "commitments",
            selected(0, &postcard::to_stdvec(own).unwrap()),
        ),
        ("shares", selected(1, &postcard::to_stdvec(shares).unwrap())),
    ]
}

/// A message to operator 0, which has the honest ones before it. The selecting byte says how many those are; the message
/// comes from the sender of the one whose place it takes. A reject changes nothing, and whatever a peer says, nobody
/// ends with another key than the others.
fn ceremony(
    bytes: &[u8],
    mut machine: dkg::Machine,
    told: &[(usize, dkg::Message)],
    group: &GroupInfo,
) -> Verdict {
    let (turn, rest) = select(bytes);
    let Some(message) = read_wire::<dkg::Message>(rest) else {
        return Verdict::Refused;
    };
    let wire = postcard::to_stdvec(&message).unwrap();
    assert_eq!(read_wire(&wire), Some(message.clone()));
    let turn = usize::from(turn) % told.len();
    for (from, message) in &told[..turn] {
        machine.receive(signer(*from), message.clone()).unwrap();
    }
    let before = (machine.progress(), machine.messages_for(signer(1)));
    let verdict = match machine.receive(signer(told[turn].0), message) {
        Ok(()) => Verdict::Accepted,
        Err(dkg::Reject::Stopped(_)) => Verdict::Refused,
        Err(_) => {
            let after = (machine.progress(), machine.messages_for(signer(1)));
            assert!(before == after, "a reject has changed the state");
            Verdict::Refused
        }
    };
    for (from, message) in &told[turn..] {
        // Refused when the sender has said something else, or the ceremony has stopped.
        let _ = machine.receive(signer(*from), message.clone());
    }
    if let Some(share) = machine.finished() {
        assert_eq!(share.group(), group);
    }
    verdict
}

fn honest_ceremony(told: &[(usize, dkg::Message)]) -> Vec<(&'static str, Vec<u8>)> {
    let names = [
        "message-00",
        "message-01",
        "message-02",
        "message-03",
        "message-04",
        "message-05",
        "message-06",
        "message-07",
    ];
    assert_eq!(told.len(), names.len());
    names
        .into_iter()
        .zip(0..)
        .zip(told)
        .map(|((name, turn), (_, message))| {
            (name, selected(turn, &postcard::to_stdvec(message).unwrap()))
        })
        .collect()
}

fn key_generation(bytes: &[u8]) -> Verdict {
    let honest = honest::honest();
    let group = honest.shares[0].group();
    ceremony(bytes, honest::machine(0), &honest.key_generation, group)
}

fn honest_key_generation() -> Vec<(&'static str, Vec<u8>)> {
    honest_ceremony(&honest::honest().key_generation)
}

fn refresh(bytes: &[u8]) -> Verdict {
    let upkeep = honest::upkeep();
    let group = upkeep.shares[0].group();
    ceremony(bytes, honest::refresh_machine(0), &upkeep.refresh, group)
}

fn honest_refresh() -> Vec<(&'static str, Vec<u8>)> {
    honest_ceremony(&honest::upkeep().refresh)
}

/// Operator 0's part of the repair of operator 2, as it comes: its split, its sum, its secret part for the other helper. A
/// sum or part that it has not committed to is refused, and no other share than the lost one comes out.
fn repair(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    let upkeep = honest::upkeep();
    let group = honest::honest().shares[0].group().clone();
    let (first, second) = (signer(0), signer(1));
    let mut member = Member::new(group, upkeep.run.clone()).unwrap();
    let taken = match which % 3 {
        0 => {
            let Some(split) = read_wire::<Split>(rest) else {
                return Verdict::Refused;
            };
            let taken = member.take_split(first, split).is_ok();
            let other = upkeep.splits[&second].clone();
            member.take_split(second, other).unwrap();
            taken
        }
        1 => {
            let Some(sigma) = read_wire::<Sigma>(rest) else {
                return Verdict::Refused;
            };
            for (from, split) in &upkeep.splits {
                member.take_split(*from, split.clone()).unwrap();
            }
            let is_own = sigma == upkeep.sigmas[&first];
            let taken = member.take_sigma(first, sigma).is_ok();
            assert_eq!(taken, is_own);
            taken
        }
        _ => {
            let Some(delta) = read_wire::<Delta>(rest) else {
                return Verdict::Refused;
            };
            let mut helper = honest::helper(1);
            helper.agree(&upkeep.splits).unwrap();
            let is_own = delta == upkeep.delta;
            let taken = helper.receive(first, delta).is_ok();
            assert_eq!(taken, is_own);
            assert_eq!(helper.sigma().is_some(), taken);
            taken
        }
    };
    for (from, sigma) in &upkeep.sigmas {
        // Refused if the splits are not those that it is the sum of.
        let _ = member.take_sigma(*from, sigma.clone());
    }
    if let Ok(Some(share)) = member.share() {
        let lost = &honest::honest().shares[2];
        assert_eq!(
            share.to_secret_bytes().unwrap(),
            lost.to_secret_bytes().unwrap()
        );
    }
    if taken {
        Verdict::Accepted
    } else {
        Verdict::Refused
    }
}

fn honest_repair() -> Vec<(&'static str, Vec<u8>)> {
    let upkeep = honest::upkeep();
    let first = signer(0);
    vec![
        (
            "split",
            selected(0, &postcard::to_stdvec(&upkeep.splits[&first]).unwrap()),
        ),
        (
            "sum",
            selected(1, &postcard::to_stdvec(&upkeep.sigmas[&first]).unwrap()),
        ),
        (
            "part",
            selected(2, &postcard::to_stdvec(&upkeep.delta).unwrap()),
        ),
    ]
}

const MEMORY_AT: usize = 5;
const PASSES_AT: usize = 9;
const CHECKSUM_BYTES: usize = 8;

/// A sealed file whose checksum is right, as somebody would make it who changes a file on purpose. Opens only
/// unchanged. A cost that is allowed is lowered first: the bound on it is what the refused ones show.
fn sealed(bytes: &[u8]) -> Verdict {
    let mut file = bytes.to_vec();
    if let Some(fields) = file.get_mut(MEMORY_AT..PASSES_AT + 4) {
        let (memory, passes) = fields.split_at_mut(4);
        let asked = |field: &[u8]| u32::from_le_bytes(field.try_into().unwrap());
        let (memory_kib, turns) = (asked(memory), asked(passes));
        if (8..=seal::MAX_MEMORY_KIB).contains(&memory_kib)
            && (1..=seal::MAX_PASSES).contains(&turns)
        {
            memory.copy_from_slice(&64_u32.to_le_bytes());
            passes.copy_from_slice(&1_u32.to_le_bytes());
        }
    }
    if let Some(end) = file.len().checked_sub(CHECKSUM_BYTES) {
        let sum = checksum(&file[..end]);
        file[end..].copy_from_slice(&sum);
    }
    match seal::open(&file, PASSPHRASE, PURPOSE) {
        Ok(plaintext) => {
            assert!(PLAINTEXTS.contains(&plaintext.as_slice()));
            Verdict::Accepted
        }
        Err(error) => {
            assert_ne!(error, SealError::TooLong);
            Verdict::Refused
        }
    }
}

const PLAINTEXTS: [&[u8]; 2] = [b"", b"a secret of some length"];

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let tag = Sha256::digest(b"drawbridge/seal/checksum");
    let digest = Sha256::new()
        .chain_update(tag)
        .chain_update(tag)
        .chain_update(bytes)
        .finalize();
    digest[..CHECKSUM_BYTES].try_into().unwrap()
}

fn honest_sealed() -> Vec<(&'static str, Vec<u8>)> {
    let seal = |plaintext| seal::seal_at(Cost::Fast, plaintext, PASSPHRASE, PURPOSE).unwrap();
    vec![
        ("empty", seal(PLAINTEXTS[0])),
        ("secret", seal(PLAINTEXTS[1])),
    ]
}
