//! Refresh: new shares of the same key, all n or nobody, and old and new ones do not combine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::Rng as _;
use support::{
    REFRESH, copy, finish, group, machines, poll, refresh_machine, refresh_machines, refresh_seed,
    refreshed, rng, signers,
};
use threshold::dkg::{CeremonyError, Failure, Kind, Machine, Message, Reject, Seed, Stage};
use threshold::sign::{
    self, AggregateError, BadShare, Package, Shares, Tweak, aggregate, commit, output_key, verify,
    verify_shares,
};
use threshold::{GroupInfo, KeyShare, SignerId, refresh};

fn of_kind(machine: &Machine, peer: SignerId, kind: Kind) -> Message {
    machine
        .messages_for(peer)
        .into_iter()
        .find(|message| message.kind() == kind)
        .unwrap()
}

fn kinds(machine: &Machine, peer: SignerId) -> Vec<Kind> {
    let messages = machine.messages_for(peer);
    messages.iter().map(Message::kind).collect()
}

/// One message signed by these shares, whatever epoch each is of.
fn session(shares: &[&KeyShare]) -> (Package, BTreeMap<SignerId, Shares>) {
    let mut rng = rng(11);
    let (mut nonces, mut commitments) = (Vec::new(), BTreeMap::new());
    for share in shares {
        let (secret, public) = commit(share, 1, &mut rng).unwrap();
        nonces.push(secret);
        commitments.insert(share.signer(), public);
    }
    let package = Package {
        messages: vec![sign::Message {
            digest: [5; 32],
            tweak: Tweak::KeyPath(None),
        }],
        commitments,
    };
    let answers = shares
        .iter()
        .zip(nonces)
        .map(|(share, nonces)| (share.signer(), sign::sign(share, nonces, &package).unwrap()))
        .collect();
    (package, answers)
}

/// Whether these shares sign for `group`.
fn signs(group: &GroupInfo, shares: &[&KeyShare]) -> bool {
    let (package, answers) = session(shares);
    let Ok(signatures) = aggregate(group, &package, &answers) else {
        return false;
    };
    let key = output_key(&group.group_key(), &Tweak::KeyPath(None));
    verify(&key, &[5; 32], &signatures[0])
}

#[test]
fn the_key_stays_and_every_share_changes() {
    let mut parities = BTreeSet::new();
    for (n, t) in [(2, 2), (5, 3), (5, 5), (7, 4), (16, 12)] {
        let old = group(n, t);
        let new = refreshed(&old);
        let (before, after) = (old[0].group(), new[0].group());
        assert_eq!(before.group_key(), after.group_key());
        assert_eq!((after.epoch(), after.threshold()), (1, t));
        assert!(after.signers().eq(before.signers()));
        assert_ne!(before.transcript(), after.transcript());
        assert_ne!(before.digest(), after.digest());
        assert!(new.iter().all(|share| share.group() == after));
        for (old, new) in old.iter().zip(&new) {
            assert_eq!(old.signer(), new.signer());
            assert_ne!(
                old.to_secret_bytes().unwrap()[33..65],
                new.to_secret_bytes().unwrap()[33..65]
            );
        }
        let signers: Vec<_> = new.iter().rev().take(t.into()).collect();
        assert!(signs(after, &signers), "{n} {t}");
        let key = serde_json::to_value(after).unwrap()["verifying_key"].clone();
        parities.insert(key.as_str().unwrap()[..2].to_owned());
    }
    // FROST's Taproot suite negates shares where GROUP's y is odd.
    assert_eq!(parities.len(), 2);
}

#[test]
fn shares_of_two_epochs_make_no_signature_and_the_old_one_is_blamed() {
    let old = group(5, 3);
    let new = refreshed(&old);
    let newer = refreshed(&new);
    assert_eq!(newer[0].group().epoch(), 2);
    for (from, to) in [(&old, &new), (&new, &newer), (&old, &newer)] {
        let mixed = [&from[0], &to[1], &to[2]];
        for group in [from[0].group(), to[0].group()] {
            assert!(!signs(group, &mixed));
        }
        let (package, answers) = session(&mixed);
        let group = to[0].group();
        let bad = from[0].signer();
        assert!(matches!(
            verify_shares(group, &package, bad, &answers[&bad]),
            Err(BadShare::Invalid { from, .. }) if from == bad
        ));
        for good in [to[1].signer(), to[2].signer()] {
            verify_shares(group, &package, good, &answers[&good]).unwrap();
        }
        assert_eq!(
            aggregate(group, &package, &answers).unwrap_err(),
            AggregateError::BadShares {
                culprits: BTreeSet::from([bad])
            }
        );
    }
    assert!(signs(old[0].group(), &[&old[0], &old[1], &old[2]]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// A node that is killed at any step and made anew from share and seed goes on where it was.
    #[test]
    fn restarts_at_any_step_change_nothing(seed_of_run in any::<u64>()) {
        let old = group(4, 3);
        let expected = refreshed(&old)[0].group().clone();
        let ids = signers(4);
        let mut rng = rng(seed_of_run);
        let mut machines = refresh_machines(&old, 1);
        for _ in 0..60 {
            let (to, from) = (rng.gen_range(0..4), rng.gen_range(0..4));
            if to == from {
                let before = machines[to].messages_for(ids[(to + 1) % 4]);
                machines[to] = refresh_machine(&copy(&old[to]), 1, to);
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
fn no_secret_leaves_before_all_echoes_and_nobody_finishes_without_all() {
    let old = group(3, 2);
    let ids = signers(3);
    let mut machines = refresh_machines(&old, 1);
    // 2 does not take part yet: the others can't get past round 1.
    for (to, from) in [(0, 1), (1, 0), (0, 1), (1, 0)] {
        poll(&mut machines, &ids, to, from);
    }
    for me in [0, 1] {
        assert_eq!(kinds(&machines[me], ids[2]), [Kind::Round1]);
        let progress = machines[me].progress();
        assert_eq!(progress.stage, Stage::Round1);
        assert_eq!(progress.missing, BTreeSet::from([ids[2]]));
    }
    finish(&mut machines, &ids);
}

#[test]
fn a_wrong_share_at_any_recipient_names_its_sender_and_stops() {
    let old = group(4, 3);
    let ids = signers(4);
    let mut machines = refresh_machines(&old, 1);
    for _ in 0..2 {
        for to in 0..4 {
            for from in (0..4).filter(|from| *from != to) {
                poll(&mut machines, &ids, to, from);
            }
        }
    }
    let mut victim = refresh_machine(&old[0], 1, 0);
    for from in 1..4 {
        for kind in [Kind::Round1, Kind::Echo] {
            victim
                .receive(ids[from], of_kind(&machines[from], ids[0], kind))
                .unwrap();
        }
    }
    // The share that is meant for 1, relabelled.
    let Message::Round2 {
        ceremony, package, ..
    } = of_kind(&machines[2], ids[1], Kind::Round2)
    else {
        panic!("not round 2")
    };
    let wrong = Message::Round2 {
        ceremony,
        to: ids[0],
        package,
    };
    assert_eq!(
        victim.receive(ids[2], wrong),
        Err(Reject::Stopped(Failure::BadShare {
            culprits: BTreeSet::from([ids[2]])
        }))
    );
    assert!(victim.finished().is_none());
}

#[test]
fn two_polynomials_stop_it_and_name_who_showed_them() {
    let old = group(4, 3);
    let ids = signers(4);
    let mut machines = refresh_machines(&old, 1);
    let two_faced = refresh::machine(&old[3], 1, &REFRESH, &Seed::from_bytes(&[9; 32])).unwrap();
    machines[0]
        .receive(ids[3], of_kind(&two_faced, ids[0], Kind::Round1))
        .unwrap();
    for _ in 0..4 {
        for to in 0..4 {
            for from in (0..4).filter(|from| *from != to) {
                for message in machines[from].messages_for(ids[to]) {
                    let _ = machines[to].receive(ids[from], message);
                }
            }
        }
    }
    for (me, machine) in machines.iter().enumerate().take(3) {
        let failure = machine.progress().failure.unwrap();
        assert!(failure.culprits().contains(&ids[3]), "{me}: {failure:?}");
        assert!(machine.finished().is_none());
        assert_eq!(
            kinds(machine, ids[(me + 1) % 3]),
            [Kind::Round1, Kind::Echo]
        );
    }
}

#[test]
fn a_polynomial_with_a_constant_term_does_not_fit() {
    // One coefficient more is what would move the key.
    let old = group(3, 2);
    let ids = signers(3);
    let generation = machines(3, 2);
    let mut machine = refresh_machine(&old[0], 1, 0);
    let Message::Round1 { package, .. } = of_kind(&generation[1], ids[0], Kind::Round1) else {
        panic!("not round 1")
    };
    let ceremony = refresh::ceremony(&old[0], 1, &REFRESH).unwrap().id();
    assert_eq!(
        machine.receive(ids[1], Message::Round1 { ceremony, package }),
        Err(Reject::Malformed {
            from: ids[1],
            kind: Kind::Round1
        })
    );
}

#[test]
fn messages_of_key_generation_or_another_refresh_do_not_fit() {
    let (old, ids) = (group(3, 2), signers(3));
    let new = refreshed(&old);
    let mut other_context = REFRESH;
    other_context[0] ^= 1;
    let others = [
        machines(3, 2).remove(1),
        refresh_machine(&old[1], 2, 1),
        refresh_machine(&new[1], 2, 1),
        refresh::machine(&old[1], 1, &other_context, &refresh_seed(1)).unwrap(),
    ];
    let mut machine = refresh_machine(&old[0], 1, 0);
    for other in others {
        let message = of_kind(&other, ids[0], Kind::Round1);
        assert!(matches!(
            machine.receive(ids[1], message),
            Err(Reject::OtherCeremony { from, .. }) if from == ids[1]
        ));
    }
    machine
        .receive(
            ids[1],
            of_kind(&refresh_machine(&old[1], 1, 1), ids[0], Kind::Round1),
        )
        .unwrap();
}

#[test]
fn a_secret_of_an_earlier_refresh_under_this_ones_name_blames_who_replays_it() {
    let (old, ids) = (group(3, 2), signers(3));
    let mut earlier = refresh_machines(&old, 1);
    finish(&mut earlier, &ids);
    let mut now = refresh_machines(&old, 2);
    for _ in 0..2 {
        for (to, from) in [(1, 0), (1, 2), (2, 0), (2, 1), (0, 1), (0, 2)] {
            // 0 hears nothing but round 1 and the echoes of 1.
            for message in now[from].messages_for(ids[to]) {
                if to != 0 || from != 1 || message.kind() <= Kind::Echo {
                    now[to].receive(ids[from], message).unwrap();
                }
            }
        }
    }
    let Message::Round2 { to, package, .. } = of_kind(&earlier[1], ids[0], Kind::Round2) else {
        panic!("not round 2")
    };
    let ceremony = refresh::ceremony(&old[0], 2, &REFRESH).unwrap().id();
    let replayed = Message::Round2 {
        ceremony,
        to,
        package,
    };
    assert_eq!(
        now[0].receive(ids[1], replayed),
        Err(Reject::Stopped(Failure::BadShare {
            culprits: BTreeSet::from([ids[1]])
        }))
    );
}

#[test]
fn epochs_only_go_up() {
    let old = group(3, 2);
    let new = refreshed(&old);
    for (share, epoch, own) in [(&old[0], 0, 0), (&new[0], 0, 1), (&new[0], 1, 1)] {
        assert_eq!(
            refresh::ceremony(share, epoch, &REFRESH),
            Err(CeremonyError::Epoch { epoch, own })
        );
    }
    assert!(refresh::ceremony(&new[0], 7, &REFRESH).is_ok());
}

#[test]
fn a_refreshed_share_is_stored_and_read_back() {
    let new = refreshed(&group(3, 2));
    assert_eq!(copy(&new[0]).group(), new[0].group());
}
