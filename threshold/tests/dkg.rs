//! Key generation: everybody ends with one key, and whoever prevents it is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use support::{ceremony, finish, group, machine, machines, poll, rng, seed, signer, signers};
use threshold::dkg::{
    CeremonyError, Failure, Kind, Machine, Message, Reject, Round1Package, Seed, Stage,
};
use threshold::{GroupInfo, KeyShare, ShareError};

/// Everybody polls everybody `rounds` times, errors ignored: some of them lie.
fn poll_all(machines: &mut [Machine], rounds: usize) {
    let ids = signers(u8::try_from(machines.len()).unwrap());
    for _ in 0..rounds {
        for to in 0..machines.len() {
            for from in (0..machines.len()).filter(|from| *from != to) {
                for message in machines[from].messages_for(ids[to]) {
                    let _ = machines[to].receive(ids[from], message);
                }
            }
        }
    }
}

fn of_kind(machine: &Machine, peer: threshold::SignerId, kind: Kind) -> Message {
    machine
        .messages_for(peer)
        .into_iter()
        .find(|message| message.kind() == kind)
        .unwrap()
}

fn failure(machine: &Machine) -> Failure {
    machine.progress().failure.unwrap()
}

#[test]
fn all_participants_end_with_one_key_and_different_shares() {
    for (n, t) in [(2, 2), (5, 3), (5, 5), (16, 12)] {
        let shares = group(n, t);
        let first = shares[0].group();
        assert_eq!(first.threshold(), t);
        assert_eq!(first.epoch(), 0);
        assert!(first.signers().eq(signers(n)));
        assert!(shares.iter().all(|share| share.group() == first));
        let secrets: BTreeSet<_> = shares
            .iter()
            .map(|share| share.to_secret_bytes().unwrap()[33..65].to_vec())
            .collect();
        assert_eq!(secrets.len(), usize::from(n));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Polls in any order, answers that are lost in part, shuffled and doubled, and stale answers
    /// that arrive long after: the result is that of a perfect network.
    #[test]
    fn shuffled_doubled_lost_and_late_messages_change_nothing(seed in any::<u64>()) {
        let (n, t) = (4_u8, 3);
        let expected = group(n, t)[0].group().clone();
        let ids = signers(n);
        let mut rng = rng(seed);
        let mut machines = machines(n, t);
        let mut late = Vec::new();
        for _ in 0..200 {
            let (to, from) = (rng.gen_range(0..4), rng.gen_range(0..4));
            let mut messages = machines[from].messages_for(ids[to]);
            messages.extend(messages.clone());
            messages.shuffle(&mut rng);
            for message in messages {
                match rng.gen_range(0..3) {
                    0 => {}
                    1 => late.push((to, from, message)),
                    _ => machines[to].receive(ids[from], message).unwrap(),
                }
            }
            if !late.is_empty() && rng.gen_bool(0.3) {
                let (to, from, message) = late.swap_remove(rng.gen_range(0..late.len()));
                machines[to].receive(ids[from], message).unwrap();
            }
        }
        finish(&mut machines, &ids);
        for (to, from, message) in late {
            machines[to].receive(ids[from], message).unwrap();
        }
        for machine in &machines {
            prop_assert_eq!(machine.finished().unwrap().group(), &expected);
        }
    }

    /// A node that is killed at any moment and made anew from its seed goes on where it was.
    #[test]
    fn restarts_from_the_seed_change_nothing(seed_of_run in any::<u64>()) {
        let (n, t) = (4_u8, 3);
        let expected = group(n, t)[0].group().clone();
        let ids = signers(n);
        let mut rng = rng(seed_of_run);
        let mut machines = machines(n, t);
        for _ in 0..60 {
            let (to, from) = (rng.gen_range(0..4), rng.gen_range(0..4));
            if to == from {
                let before = machines[to].messages_for(ids[(to + 1) % 4]);
                machines[to] = machine(n, t, to);
                let again = machines[to].messages_for(ids[(to + 1) % 4]);
                prop_assert_eq!(&before[0], &again[0]);
            } else {
                poll(&mut machines, &ids, to, from);
            }
        }
        finish(&mut machines, &ids);
        for machine in &machines {
            prop_assert_eq!(machine.finished().unwrap().group(), &expected);
        }
    }
}

#[test]
fn secret_shares_leave_only_after_all_equal_echoes() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    // All round-1 packages everywhere, and all echoes but that of 2 at 0.
    for to in 0..3 {
        for from in (0..3).filter(|from| *from != to) {
            poll(&mut machines, &ids, to, from);
        }
    }
    let mut fresh = machine(3, 2, 0);
    for from in [1, 2] {
        fresh
            .receive(ids[from], of_kind(&machines[from], ids[0], Kind::Round1))
            .unwrap();
    }
    fresh
        .receive(ids[1], of_kind(&machines[1], ids[0], Kind::Echo))
        .unwrap();
    let kinds = |machine: &Machine| -> Vec<Kind> {
        machine
            .messages_for(ids[1])
            .iter()
            .map(Message::kind)
            .collect()
    };
    assert_eq!(kinds(&fresh), [Kind::Round1, Kind::Echo]);
    assert_eq!(fresh.progress().stage, Stage::Echo);
    assert_eq!(fresh.progress().missing, BTreeSet::from([ids[2]]));
    fresh
        .receive(ids[2], of_kind(&machines[2], ids[0], Kind::Echo))
        .unwrap();
    assert_eq!(kinds(&fresh), [Kind::Round1, Kind::Echo, Kind::Round2]);
}

#[test]
fn progress_names_who_is_missing() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    let missing = |machine: &Machine| machine.progress().missing;
    assert_eq!(missing(&machines[0]), BTreeSet::from([ids[1], ids[2]]));
    poll(&mut machines, &ids, 0, 1);
    assert_eq!(missing(&machines[0]), BTreeSet::from([ids[2]]));
    finish(&mut machines, &ids);
    assert_eq!(machines[0].progress().stage, Stage::Finished);
    assert_eq!(missing(&machines[0]), BTreeSet::new());
}

#[test]
fn a_participant_that_says_two_things_to_one_is_named_and_the_first_stands() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    poll(&mut machines, &ids, 0, 2);
    let other = Machine::new(ceremony(3, 2, 2), &Seed::from_bytes(&[99; 32])).unwrap();
    let lie = of_kind(&other, ids[0], Kind::Round1);
    assert_eq!(
        machines[0].receive(ids[2], lie),
        Err(Reject::Equivocation {
            culprit: ids[2],
            kind: Kind::Round1
        })
    );
    finish(&mut machines, &ids);
}

#[test]
fn a_participant_that_says_two_things_to_two_stops_the_ceremony_and_is_named() {
    let ids = signers(4);
    let mut machines = machines(4, 3);
    // 3 shows 0 one polynomial, and the others another.
    let two_faced = Machine::new(ceremony(4, 3, 3), &Seed::from_bytes(&[99; 32])).unwrap();
    machines[0]
        .receive(ids[3], of_kind(&two_faced, ids[0], Kind::Round1))
        .unwrap();
    poll_all(&mut machines, 4);
    for (me, machine) in machines.iter().enumerate().take(3) {
        let failure = failure(machine);
        let Failure::Dispute {
            about, reporter, ..
        } = &failure
        else {
            panic!("{failure:?}")
        };
        assert!(failure.culprits().contains(&ids[3]), "{me}: {failure:?}");
        assert!(about.contains(&ids[3]) && about.len() == 1 && *reporter != ids[me]);
        assert!(machine.finished().is_none());
        let kinds: Vec<_> = machine
            .messages_for(ids[(me + 1) % 3])
            .iter()
            .map(Message::kind)
            .collect();
        assert_eq!(
            kinds,
            [Kind::Round1, Kind::Echo],
            "no secret share after a dispute"
        );
    }
}

#[test]
fn an_echo_that_lies_about_its_recipient_blames_its_sender_alone() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    poll_all(&mut machines[..], 1);
    let mut victim = machine(3, 2, 0);
    for from in [1, 2] {
        victim
            .receive(ids[from], of_kind(&machines[from], ids[0], Kind::Round1))
            .unwrap();
    }
    let Message::Echo { ceremony, mut seen } = of_kind(&machines[1], ids[0], Kind::Echo) else {
        panic!("not an echo")
    };
    let other = seen[&ids[1]];
    seen.insert(ids[0], other);
    let error = victim
        .receive(ids[1], Message::Echo { ceremony, seen })
        .unwrap_err();
    let Reject::Stopped(failure) = error else {
        panic!("{error:?}")
    };
    assert_eq!(failure.culprits(), BTreeSet::from([ids[1]]));
}

#[test]
fn a_wrong_secret_share_names_its_sender() {
    let ids = signers(4);
    let mut honest = machines(4, 3);
    poll_all(&mut honest, 2);
    // A machine that has everything but the shares; 2 sends it the share that is meant for 1.
    let mut victim = machine(4, 3, 0);
    for from in 1..4 {
        for kind in [Kind::Round1, Kind::Echo] {
            victim
                .receive(ids[from], of_kind(&honest[from], ids[0], kind))
                .unwrap();
        }
    }
    let Message::Round2 {
        ceremony, package, ..
    } = of_kind(&honest[2], ids[1], Kind::Round2)
    else {
        panic!("not round 2")
    };
    let wrong = Message::Round2 {
        ceremony,
        to: ids[0],
        package,
    };
    let stopped = Reject::Stopped(Failure::BadShare {
        culprits: BTreeSet::from([ids[2]]),
    });
    assert_eq!(victim.receive(ids[2], wrong), Err(stopped.clone()));
    assert_eq!(victim.progress().stage, Stage::Stopped);
    // And it stays stopped.
    let good = of_kind(&honest[1], ids[0], Kind::Round2);
    assert_eq!(victim.receive(ids[1], good), Err(stopped));
}

#[test]
fn a_participant_that_aborts_late_stops_nothing_that_it_can_resume() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    // Everybody has everything of 0 and 1; 2 falls silent after its round-2 packages and confirms to nobody.
    for _ in 0..4 {
        for (to, from) in [(0, 1), (1, 0), (0, 2), (1, 2), (2, 0), (2, 1)] {
            for message in machines[from].messages_for(ids[to]) {
                if from != 2 || message.kind() != Kind::Confirm {
                    machines[to].receive(ids[from], message).unwrap();
                }
            }
        }
    }
    for me in [0, 1] {
        assert!(machines[me].finished().is_none());
        let progress = machines[me].progress();
        assert_eq!(progress.stage, Stage::Confirm);
        assert_eq!(progress.missing, BTreeSet::from([ids[2]]));
    }
    // It confirms to 0 only, which finishes; 1 goes on waiting for it, by name.
    poll(&mut machines, &ids, 0, 2);
    assert!(machines[0].finished().is_some() && machines[1].finished().is_none());
    assert_eq!(machines[1].progress().missing, BTreeSet::from([ids[2]]));
    // Back from its seed, it ends with the same key as the others.
    machines[2] = machine(3, 2, 2);
    finish(&mut machines, &ids);
    let key = |machine: &Machine| machine.finished().unwrap().group().clone();
    assert_eq!(key(&machines[1]), key(&machines[2]));
}

#[test]
fn messages_of_another_run_under_this_ones_name_blame_who_replays_them() {
    let ids = signers(3);
    // The same participants, for another purpose, all the way: 2 has everything that 1 ever sent it.
    let other: Vec<_> = (0..3)
        .map(|me| {
            let mut ceremony = ceremony(3, 2, me);
            ceremony.context = [1; 32];
            Machine::new(ceremony, &seed(me)).unwrap()
        })
        .collect();
    let mut other = other;
    finish(&mut other, &ids);
    let this = ceremony(3, 2, 0).id();
    let mut machines = machines(3, 2);
    // Round 1 of 1 as if it were 2's own: bound to 1's identifier by the proof of knowledge.
    let Message::Round1 { package, .. } = of_kind(&other[1], ids[2], Kind::Round1) else {
        panic!("not round 1")
    };
    let mut victim = machine(3, 2, 0);
    poll(&mut machines, &ids, 0, 1);
    victim
        .receive(ids[1], of_kind(&machines[1], ids[0], Kind::Round1))
        .unwrap();
    let replayed = Message::Round1 {
        ceremony: this,
        package,
    };
    assert_eq!(
        victim.receive(ids[2], replayed),
        Err(Reject::Stopped(Failure::ProofOfKnowledge {
            culprit: ids[2]
        }))
    );
    // Its own secret of the other run does not fit what it has committed to in this one.
    let mut victim = machine(3, 2, 0);
    poll_all(&mut machines, 2);
    for from in [1, 2] {
        for kind in [Kind::Round1, Kind::Echo] {
            victim
                .receive(ids[from], of_kind(&machines[from], ids[0], kind))
                .unwrap();
        }
    }
    let Message::Round2 { to, package, .. } = of_kind(&other[2], ids[0], Kind::Round2) else {
        panic!("not round 2")
    };
    let replayed = Message::Round2 {
        ceremony: this,
        to,
        package,
    };
    assert_eq!(
        victim.receive(ids[2], replayed),
        Err(Reject::Stopped(Failure::BadShare {
            culprits: BTreeSet::from([ids[2]])
        }))
    );
}

#[test]
fn a_participant_restarted_with_another_roster_is_in_another_ceremony_and_gets_no_secret() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    poll_all(&mut machines, 4);
    // 2 comes back with one operator more in its roster, and the same seed.
    let mut larger = ceremony(4, 2, 0);
    larger.me = ids[2];
    let strayed = Machine::new(larger, &seed(2)).unwrap();
    let sent = |machine: &Machine| of_kind(machine, ids[0], Kind::Round1);
    let (Message::Round1 { package: was, .. }, Message::Round1 { package: is, .. }) =
        (sent(&machines[2]), sent(&strayed))
    else {
        panic!("not round 1")
    };
    assert_ne!(was, is, "a polynomial serves one ceremony");
    let fresh = &mut machine(3, 2, 0);
    assert!(matches!(
        fresh.receive(ids[2], sent(&strayed)),
        Err(Reject::OtherCeremony { from, .. }) if from == ids[2]
    ));
    assert_eq!(fresh.progress().stage, Stage::Round1);
    let kinds: Vec<_> = strayed
        .messages_for(ids[0])
        .iter()
        .map(Message::kind)
        .collect();
    assert_eq!(kinds, [Kind::Round1]);
    finish(&mut machines, &ids);
}

#[test]
fn a_copied_commitment_without_its_secret_names_the_copyist() {
    let ids = signers(3);
    let honest = machines(3, 2);
    let mut victim = machine(3, 2, 0);
    let copied = of_kind(&honest[1], ids[0], Kind::Round1);
    victim.receive(ids[1], copied.clone()).unwrap();
    assert_eq!(
        victim.receive(ids[2], copied),
        Err(Reject::Stopped(Failure::ProofOfKnowledge {
            culprit: ids[2]
        }))
    );
}

#[test]
fn a_confirmation_of_another_key_names_its_sender() {
    let ids = signers(3);
    let mut honest = machines(3, 2);
    finish(&mut honest, &ids);
    let mut victim = machine(3, 2, 0);
    for kind in [Kind::Round1, Kind::Echo, Kind::Round2] {
        for from in [1, 2] {
            victim
                .receive(ids[from], of_kind(&honest[from], ids[0], kind))
                .unwrap();
        }
    }
    assert!(victim.finished().is_none(), "nobody else has confirmed");
    victim
        .receive(ids[1], of_kind(&honest[1], ids[0], Kind::Confirm))
        .unwrap();
    assert!(victim.finished().is_none(), "one has not confirmed");
    let Message::Confirm {
        ceremony,
        group_key,
        mut transcript,
    } = of_kind(&honest[2], ids[0], Kind::Confirm)
    else {
        panic!("not a confirmation")
    };
    transcript[0] ^= 1;
    assert_eq!(
        victim.receive(
            ids[2],
            Message::Confirm {
                ceremony,
                transcript,
                group_key
            }
        ),
        Err(Reject::Stopped(Failure::OtherKey {
            culprits: BTreeSet::from([ids[2]])
        }))
    );
    assert!(victim.finished().is_none());
}

#[test]
fn messages_of_strangers_and_of_other_ceremonies_are_refused_and_change_nothing() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    let round1 = of_kind(&machines[1], ids[0], Kind::Round1);
    let stranger = signer(77);
    assert_eq!(
        machines[0].receive(stranger, round1.clone()),
        Err(Reject::Stranger(stranger))
    );
    assert_eq!(
        machines[0].receive(ids[0], round1),
        Err(Reject::Stranger(ids[0])),
        "nobody sends messages to itself"
    );
    assert!(machines[0].messages_for(stranger).is_empty());
    assert!(machines[0].messages_for(ids[0]).is_empty());

    let mut other = ceremony(3, 2, 1);
    other.context = [1; 32];
    let other = Machine::new(other, &seed(1)).unwrap();
    let foreign = of_kind(&other, ids[0], Kind::Round1);
    assert!(matches!(
        machines[0].receive(ids[1], foreign),
        Err(Reject::OtherCeremony { from, .. }) if from == ids[1]
    ));

    // Right ceremony, but a polynomial of another degree.
    let steep = Machine::new(ceremony(3, 3, 1), &seed(1)).unwrap();
    let Message::Round1 { package, .. } = of_kind(&steep, ids[0], Kind::Round1) else {
        panic!("not round 1")
    };
    let ceremony_id = ceremony(3, 2, 0).id();
    assert_eq!(
        machines[0].receive(
            ids[1],
            Message::Round1 {
                ceremony: ceremony_id,
                package
            }
        ),
        Err(Reject::Malformed {
            from: ids[1],
            kind: Kind::Round1
        })
    );
    assert_eq!(
        machines[0].receive(
            ids[1],
            Message::Echo {
                ceremony: ceremony_id,
                seen: [].into()
            }
        ),
        Err(Reject::Malformed {
            from: ids[1],
            kind: Kind::Echo
        })
    );
    finish(&mut machines, &ids);
    let astray = of_kind(&machines[1], ids[2], Kind::Round2);
    assert_eq!(
        machines[0].receive(ids[1], astray),
        Err(Reject::Astray {
            from: ids[1],
            to: ids[2]
        })
    );
    assert!(machines[0].finished().is_some());
}

#[test]
fn a_seed_makes_another_polynomial_for_every_ceremony_and_signer() {
    let id = |ceremony: &threshold::dkg::Ceremony| ceremony.id();
    let base = ceremony(3, 2, 0);
    let mut context = base.clone();
    context.context = [1; 32];
    let mut threshold = base.clone();
    threshold.threshold = 3;
    let larger = ceremony(4, 2, 0);
    let me = ceremony(3, 2, 1);
    assert_eq!(id(&base), id(&me));
    let ids: BTreeSet<_> = [&base, &context, &threshold, &larger].map(id).into();
    assert_eq!(ids.len(), 4);
    let packages: BTreeSet<_> = [base, context, threshold, larger, me]
        .into_iter()
        .map(|ceremony| {
            let peer = signers(3)
                .into_iter()
                .find(|id| *id != ceremony.me)
                .unwrap();
            let machine = Machine::new(ceremony, &seed(0)).unwrap();
            let Message::Round1 { package, .. } = of_kind(&machine, peer, Kind::Round1) else {
                panic!("not round 1")
            };
            // The first coefficient's commitment, after header and count.
            postcard::to_stdvec(&package).unwrap()[7..40].to_vec()
        })
        .collect();
    assert_eq!(packages.len(), 5);
}

#[test]
fn ceremonies_out_of_bounds_do_not_start() {
    let bounds = |n: u8, t: u16| Machine::new(ceremony(n, t, 0), &seed(0)).map(|_| ());
    for (n, t) in [(1, 1), (3, 1), (3, 0), (3, 4)] {
        let expected = CeremonyError::Bounds {
            threshold: t,
            signers: n.into(),
        };
        assert_eq!(bounds(n, t), Err(expected));
    }
    let mut many = ceremony(2, 2, 0);
    many.signers.extend((0..255_u8).map(|i| {
        let mut identity = [i; 32];
        identity[0] = 0xFF;
        identity[1] = 0x11;
        threshold::SignerId::derive(&identity)
    }));
    assert!(many.signers.len() > threshold::MAX_SIGNERS);
    assert!(matches!(
        Machine::new(many, &seed(0)).map(|_| ()),
        Err(CeremonyError::Bounds { .. })
    ));
    let mut outside = ceremony(3, 2, 0);
    outside.me = signer(9);
    assert_eq!(
        Machine::new(outside, &seed(0)).map(|_| ()),
        Err(CeremonyError::NotAmongSigners(signer(9)))
    );
}

#[test]
fn messages_survive_the_wire_and_hostile_encodings_do_not() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    finish(&mut machines, &ids);
    for message in machines[0].messages_for(ids[1]) {
        let bytes = postcard::to_stdvec(&message).unwrap();
        let back: Message = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back, message);
        for cut in 0..bytes.len() {
            assert!(
                postcard::from_bytes::<Message>(&bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }
    let Message::Round1 { package, .. } = of_kind(&machines[0], ids[1], Kind::Round1) else {
        panic!("not round 1")
    };
    let bytes: Vec<u8> = postcard::from_bytes(&postcard::to_stdvec(&package).unwrap()).unwrap();
    assert!(Round1Package::try_from(bytes.clone()).is_ok());
    let mut trailing = bytes.clone();
    trailing.push(0);
    assert!(Round1Package::try_from(trailing).is_err());
    let mut padded_length = bytes.clone();
    padded_length.splice(5..6, [bytes[5] | 0x80, 0]);
    assert!(
        Round1Package::try_from(padded_length).is_err(),
        "a second encoding of one package"
    );
    assert!(Round1Package::try_from(vec![0; 1 << 20]).is_err());
}

#[test]
fn nothing_secret_is_printed() {
    let ids = signers(3);
    let mut machines = machines(3, 2);
    finish(&mut machines, &ids);
    let share = machines[0].finished().unwrap();
    let secret = hex::encode(&share.to_secret_bytes().unwrap()[33..65]);
    let round2 = of_kind(&machines[0], ids[1], Kind::Round2);
    let Message::Round2 { package, .. } = &round2 else {
        panic!("not round 2")
    };
    let sent = hex::encode(&postcard::to_stdvec(package).unwrap()[5..]);
    let printed = format!("{share:?} {round2:?} {:?} {:?}", machines[0], seed(0));
    assert!(!printed.contains(&secret) && !printed.contains(&sent));
    assert!(!printed.contains(&hex::encode(seed(0).secret_bytes())));
    assert!(printed.contains("redacted"));
}

#[test]
fn a_stored_share_comes_back_and_a_changed_one_does_not() {
    let shares = group(3, 2);
    let bytes = shares[0].to_secret_bytes().unwrap();
    let back = KeyShare::from_secret_bytes(&bytes).unwrap();
    assert_eq!(back.signer(), shares[0].signer());
    assert_eq!(back.group(), shares[0].group());
    assert_eq!(*back.to_secret_bytes().unwrap(), *bytes);
    for cut in 0..bytes.len() {
        assert!(
            KeyShare::from_secret_bytes(&bytes[..cut]).is_err(),
            "cut at {cut}"
        );
    }
    let mut trailing = bytes.to_vec();
    trailing.push(0);
    assert_eq!(
        KeyShare::from_secret_bytes(&trailing).unwrap_err(),
        ShareError::Encoding
    );
    let mut format = bytes.to_vec();
    format[0] = 9;
    assert_eq!(
        KeyShare::from_secret_bytes(&format).unwrap_err(),
        ShareError::Format(9)
    );
    let mut secret = bytes.to_vec();
    secret[64] ^= 1;
    assert_eq!(
        KeyShare::from_secret_bytes(&secret).unwrap_err(),
        ShareError::Mismatch
    );
    let mut signer = bytes.to_vec();
    signer[1..33].copy_from_slice(&shares[1].signer().to_bytes());
    assert_eq!(
        KeyShare::from_secret_bytes(&signer).unwrap_err(),
        ShareError::Mismatch
    );
}

#[test]
fn a_group_whose_shares_do_not_make_its_key_is_refused() {
    let (a, b) = (group(5, 3), group(5, 4));
    let json = |share: &KeyShare| serde_json::to_value(share.group()).unwrap();
    let good = json(&a[0]);
    assert_eq!(
        &serde_json::from_value::<GroupInfo>(good.clone()).unwrap(),
        a[0].group()
    );
    let key_of_another = {
        let mut value = good.clone();
        value["verifying_key"] = json(&b[0])["verifying_key"].clone();
        value
    };
    let shares_swapped = {
        let mut value = good.clone();
        let ids: Vec<_> = signers(5).iter().map(ToString::to_string).collect();
        let shares = &mut value["verifying_shares"];
        let (x, y) = (shares[&ids[0]].clone(), shares[&ids[1]].clone());
        shares[&ids[0]] = y;
        shares[&ids[1]] = x;
        value
    };
    // A lower threshold than the polynomial's degree allows: shares would never combine.
    let threshold_lowered = {
        let mut value = good.clone();
        value["threshold"] = 2.into();
        value
    };
    // A higher one: three signers could still sign, whatever the group says of itself.
    let threshold_raised = {
        let mut value = good.clone();
        value["threshold"] = 4.into();
        value
    };
    let unknown_field = {
        let mut value = good;
        value["extra"] = 1.into();
        value
    };
    for bad in [
        key_of_another,
        shares_swapped,
        threshold_lowered,
        threshold_raised,
        unknown_field,
    ] {
        assert!(serde_json::from_value::<GroupInfo>(bad).is_err());
    }
}
