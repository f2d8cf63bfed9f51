//! Repair: t helpers give a member its share back, and whoever spoils it is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{group, refreshed, signer};
use threshold::repair::{
    BadDelta, Delta, Fault, Helper, Member, Run, RunError, Sigma, Split, Splits,
};
use threshold::{KeyShare, SignerId};

/// The share at index 0 is lost; those at these indices help.
fn run(shares: &[KeyShare], helpers: &[usize]) -> Run {
    Run {
        member: shares[0].signer(),
        helpers: helpers.iter().map(|i| shares[*i].signer()).collect(),
        group: shares[0].group().digest(),
        context: [7; 32],
    }
}

fn helpers(shares: &[KeyShare], run: &Run) -> BTreeMap<SignerId, Helper> {
    shares
        .iter()
        .filter(|share| run.helpers.contains(&share.signer()))
        .map(|share| (share.signer(), Helper::new(share, run.clone()).unwrap()))
        .collect()
}

fn member(shares: &[KeyShare], run: &Run) -> Member {
    Member::new(shares[0].group().clone(), run.clone()).unwrap()
}

/// Until every helper holds all splits.
fn split(member: &mut Member, helpers: &mut BTreeMap<SignerId, Helper>) -> Splits {
    for (id, helper) in helpers.iter() {
        member.take_split(*id, helper.split().clone()).unwrap();
    }
    let splits = member.splits().unwrap().clone();
    for helper in helpers.values_mut() {
        helper.agree(&splits).unwrap();
    }
    splits
}

/// Every helper gets its δ from every other.
fn exchange(helpers: &mut BTreeMap<SignerId, Helper>) {
    let ids: Vec<_> = helpers.keys().copied().collect();
    for to in &ids {
        for from in ids.iter().filter(|from| *from != to) {
            let delta = helpers[from].delta_for(*to).unwrap().clone();
            helpers.get_mut(to).unwrap().receive(*from, delta).unwrap();
        }
    }
}

/// Adds 1 to a secret, which stays canonical.
fn changed<T: serde::Serialize + serde::de::DeserializeOwned>(secret: &T) -> T {
    let mut bytes = postcard::to_stdvec(secret).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    postcard::from_bytes(&bytes).unwrap()
}

#[test]
fn t_helpers_give_back_exactly_the_share_that_was_lost() {
    for (n, t, who) in [
        (2_u8, 2, None),
        (3, 2, Some(vec![1, 2])),
        (5, 3, Some(vec![1, 2, 4])),
        (5, 3, Some(vec![2, 3, 4])),
        (16, 12, Some((2..14).collect())),
    ] {
        let Some(who) = who else {
            // 2 of 2 has nobody to help: the member can't be its own helper.
            let shares = group(n, t);
            let run = run(&shares, &[0, 1]);
            assert_eq!(
                run.check(shares[0].group()),
                Err(RunError::HelpsItself(run.member))
            );
            continue;
        };
        for shares in [group(n, t), refreshed(&group(n, t))] {
            let run = run(&shares, &who);
            let (mut member, mut helpers) = (member(&shares, &run), helpers(&shares, &run));
            split(&mut member, &mut helpers);
            exchange(&mut helpers);
            for (id, helper) in &helpers {
                assert!(member.share().unwrap().is_none());
                member.take_sigma(*id, helper.sigma().unwrap()).unwrap();
            }
            let share = member.share().unwrap().unwrap();
            assert_eq!(
                *share.to_secret_bytes().unwrap(),
                *shares[0].to_secret_bytes().unwrap()
            );
        }
    }
}

#[test]
fn a_helper_that_restarts_goes_on_with_the_same_split_and_another_run_gets_another() {
    let shares = group(5, 3);
    let run = run(&shares, &[1, 2, 3]);
    let (mut member, mut helpers) = (member(&shares, &run), helpers(&shares, &run));
    let restarted = Helper::new(&shares[1], run.clone()).unwrap();
    let id = shares[1].signer();
    assert_eq!(helpers[&id].split(), restarted.split());
    split(&mut member, &mut helpers);
    exchange(&mut helpers);
    // Everything but its share is gone; the member sends the splits again.
    let mut restarted = Helper::new(&shares[1], run.clone()).unwrap();
    assert!(restarted.sigma().is_none());
    restarted.agree(member.splits().unwrap()).unwrap();
    assert_eq!(restarted.missing().len(), 2);
    for from in restarted.missing() {
        let delta = helpers[&from].delta_for(id).unwrap().clone();
        restarted.receive(from, delta).unwrap();
    }
    assert_eq!(restarted.sigma(), helpers[&id].sigma());

    let mut other = run.clone();
    other.context = [8; 32];
    assert_ne!(run.id(), other.id());
    let other = Helper::new(&shares[1], other).unwrap();
    assert_ne!(other.split(), restarted.split());
}

#[test]
fn a_split_of_another_share_names_its_author_at_the_member_and_at_every_helper() {
    let shares = group(5, 3);
    let run = run(&shares, &[1, 2, 3]);
    let (mut member, mut helpers) = (member(&shares, &run), helpers(&shares, &run));
    let (good, bad) = (shares[1].signer(), shares[2].signer());
    let foreign = helpers[&shares[3].signer()].split().clone();
    assert_eq!(member.take_split(bad, foreign), Err(Fault::Split(bad)));
    assert_eq!(Fault::Split(bad).culprit(), Some(bad));
    assert!(member.splits().is_none() && member.missing().contains(&bad));
    let empty = Split::try_from(Vec::new()).unwrap();
    assert_eq!(
        member.take_split(bad, empty.clone()),
        Err(Fault::Split(bad))
    );
    let splits = split(&mut member, &mut helpers);
    let mut tampered = splits.clone();
    tampered.insert(bad, empty);
    let mut fresh = Helper::new(&shares[1], run.clone()).unwrap();
    assert_eq!(fresh.agree(&tampered), Err(bad));
    tampered.remove(&bad);
    assert_eq!(fresh.agree(&tampered), Err(bad));
    // A member that shows a helper another split under its own name.
    let mut mine = splits.clone();
    mine.insert(good, splits[&bad].clone());
    assert_eq!(fresh.agree(&mine), Err(good));
    fresh.agree(&splits).unwrap();
}

#[test]
fn a_second_split_is_held_against_its_author() {
    let shares = group(5, 3);
    let this = run(&shares, &[1, 2, 3]);
    let mut member = member(&shares, &this);
    let id = shares[1].signer();
    let first = Helper::new(&shares[1], this.clone()).unwrap();
    member.take_split(id, first.split().clone()).unwrap();
    member.take_split(id, first.split().clone()).unwrap();
    let mut other = this;
    other.context = [8; 32];
    let second = Helper::new(&shares[1], other).unwrap();
    assert_eq!(
        member.take_split(id, second.split().clone()),
        Err(Fault::TwoSplits(id))
    );
}

#[test]
fn a_wrong_delta_names_its_author_and_a_false_accusation_its_accuser() {
    let shares = group(5, 3);
    let run = run(&shares, &[1, 2, 3]);
    let (mut member, mut helpers) = (member(&shares, &run), helpers(&shares, &run));
    split(&mut member, &mut helpers);
    let (victim, liar) = (shares[1].signer(), shares[2].signer());
    let good = helpers[&liar].delta_for(victim).unwrap().clone();
    let for_another = helpers[&liar]
        .delta_for(shares[3].signer())
        .unwrap()
        .clone();
    for bad in [changed(&good), for_another] {
        let helper = helpers.get_mut(&victim).unwrap();
        assert_eq!(
            helper.receive(liar, bad.clone()),
            Err(BadDelta::Wrong(liar))
        );
        assert!(helper.sigma().is_none());
        assert_eq!(member.judge(victim, liar, &bad), Fault::Delta(liar));
    }
    assert_eq!(
        member.judge(victim, liar, &good),
        Fault::FalseAccusation(victim)
    );
}

#[test]
fn a_wrong_sum_names_its_author_and_the_right_one_is_still_taken() {
    let shares = group(5, 3);
    let run = run(&shares, &[1, 2, 3]);
    let (mut member, mut helpers) = (member(&shares, &run), helpers(&shares, &run));
    let early: Sigma = postcard::from_bytes(&[&[32_u8][..], &[1; 32]].concat()).unwrap();
    let liar = shares[2].signer();
    assert_eq!(
        member.take_sigma(liar, early),
        Err(Fault::TooEarly(liar)),
        "nobody knows its sum before the splits are complete"
    );
    split(&mut member, &mut helpers);
    exchange(&mut helpers);
    let good = helpers[&liar].sigma().unwrap();
    assert_eq!(
        member.take_sigma(liar, changed(&good)),
        Err(Fault::Sigma(liar))
    );
    let of_another = helpers[&shares[1].signer()].sigma().unwrap();
    assert_eq!(member.take_sigma(liar, of_another), Err(Fault::Sigma(liar)));
    assert!(member.missing().contains(&liar));
    for (id, helper) in &helpers {
        member.take_sigma(*id, helper.sigma().unwrap()).unwrap();
    }
    assert!(member.share().unwrap().is_some() && member.missing().is_empty());
}

#[test]
fn one_missing_helper_leaves_nothing() {
    let shares = group(5, 3);
    let run = run(&shares, &[1, 2, 3]);
    let (mut member, mut helpers) = (member(&shares, &run), helpers(&shares, &run));
    split(&mut member, &mut helpers);
    exchange(&mut helpers);
    let silent = shares[3].signer();
    for (id, helper) in helpers.iter().filter(|(id, _)| **id != silent) {
        member.take_sigma(*id, helper.sigma().unwrap()).unwrap();
    }
    assert!(member.share().unwrap().is_none());
    assert_eq!(member.missing(), BTreeSet::from([silent]));
}

#[test]
fn helpers_of_another_epoch_or_group_refuse() {
    let old = group(5, 3);
    let new = refreshed(&old);
    let other = group(5, 4);
    let of_old = run(&old, &[1, 2, 3]);
    for share in [&new[1], &other[1]] {
        assert_eq!(
            Helper::new(share, of_old.clone()).unwrap_err(),
            RunError::OtherGroup
        );
    }
    assert_eq!(
        Member::new(new[0].group().clone(), of_old).unwrap_err(),
        RunError::OtherGroup
    );
}

#[test]
fn runs_with_other_helpers_than_t_signers_do_not_start() {
    let shares = group(5, 3);
    let good = run(&shares, &[1, 2, 3]);
    for who in [&[1, 2][..], &[1, 2, 3, 4]] {
        let helpers = who.len();
        assert_eq!(
            Helper::new(&shares[1], run(&shares, who)).unwrap_err(),
            RunError::Helpers {
                helpers,
                threshold: 3
            }
        );
    }
    let mut stranger = good.clone();
    stranger.helpers.remove(&shares[3].signer());
    stranger.helpers.insert(signer(77));
    assert_eq!(
        Helper::new(&shares[1], stranger).unwrap_err(),
        RunError::Stranger(signer(77))
    );
    let mut outsider = good.clone();
    outsider.member = signer(77);
    assert_eq!(
        Helper::new(&shares[1], outsider).unwrap_err(),
        RunError::Stranger(signer(77))
    );
    assert_eq!(
        Helper::new(&shares[4], good.clone()).unwrap_err(),
        RunError::NoHelper(shares[4].signer())
    );
    let helper = Helper::new(&shares[1], good).unwrap();
    assert!(helper.delta_for(shares[1].signer()).is_none());
    assert!(helper.delta_for(shares[4].signer()).is_none());
}

#[test]
fn messages_survive_the_wire_and_hostile_encodings_do_not() {
    let shares = group(5, 3);
    let run = run(&shares, &[1, 2, 3]);
    let mut helpers = helpers(&shares, &run);
    let mut member = member(&shares, &run);
    split(&mut member, &mut helpers);
    exchange(&mut helpers);
    let (one, two) = (shares[1].signer(), shares[2].signer());
    let encoded = Vec::from(helpers[&one].split().clone());
    assert_eq!(encoded.len(), 3 * 33);
    assert_eq!(
        &Split::try_from(encoded.clone()).unwrap(),
        helpers[&one].split()
    );
    let mut identity = encoded.clone();
    identity[..33].fill(0);
    let mut compact = encoded.clone();
    compact[0] = 5;
    for bad in [
        encoded[1..].to_vec(),
        identity,
        compact,
        encoded.repeat(100),
    ] {
        assert!(Split::try_from(bad).is_err());
    }
    let delta = postcard::to_stdvec(helpers[&one].delta_for(two).unwrap()).unwrap();
    assert!(postcard::from_bytes::<Delta>(&delta).is_ok());
    assert!(postcard::from_bytes::<Delta>(&[&[32_u8][..], &[0xFF; 32]].concat()).is_err());
    assert!(postcard::from_bytes::<Delta>(&[&[31_u8][..], &[1; 31]].concat()).is_err());
    let printed = format!(
        "{:?} {:?} {:?}",
        helpers[&one],
        helpers[&one].delta_for(two),
        helpers[&one].sigma()
    );
    assert!(!printed.contains(&hex::encode(&delta[1..])));
    assert!(printed.contains("redacted"));
}
