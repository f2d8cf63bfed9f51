//! Signing: any threshold of signers makes BIP-340 signatures, fewer make none, and the culprit is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::hashes::Hash as _;
use bitcoin::key::TapTweak as _;
use bitcoin::secp256k1::{PublicKey, Secp256k1};
use bitcoin::taproot::TapNodeHash;
use bitcoin::{Address, Network, ScriptBuf};
use proptest::prelude::*;
use support::{group, machines, rng, signer};
use threshold::dkg::{self, Machine};
use threshold::sign::{
    AggregateError, BadShare, Commitments, DecodeError, MAX_MESSAGES, Message, Nonces, Package,
    PackageError, Shares, SignError, Tweak, aggregate, commit, culprits, max_messages, output_key,
    sign, verify, verify_shares,
};
use threshold::{KeyShare, SignerId};

const TWEAKS: [Tweak; 3] = [
    Tweak::Untweaked,
    Tweak::KeyPath(None),
    Tweak::KeyPath(Some([0x5A; 32])),
];

fn messages(count: usize) -> Vec<Message> {
    (0..count)
        .map(|i| Message {
            digest: [u8::try_from(i).unwrap() + 1; 32],
            tweak: TWEAKS[i % 3],
        })
        .collect()
}

/// Round 1 of the signers at `indices`.
fn round1(
    shares: &[KeyShare],
    indices: &[usize],
    messages: Vec<Message>,
) -> (Package, BTreeMap<SignerId, Nonces>) {
    round1_from(7, shares, indices, messages)
}

fn round1_from(
    seed: u64,
    shares: &[KeyShare],
    indices: &[usize],
    messages: Vec<Message>,
) -> (Package, BTreeMap<SignerId, Nonces>) {
    let mut rng = rng(seed);
    let mut all = BTreeMap::new();
    let mut commitments = BTreeMap::new();
    for share in indices.iter().map(|i| &shares[*i]) {
        let (nonces, public) = commit(share, messages.len(), &mut rng).unwrap();
        all.insert(share.signer(), nonces);
        commitments.insert(share.signer(), public);
    }
    (
        Package {
            messages,
            commitments,
        },
        all,
    )
}

/// Round 2 of everybody in the package.
fn round2(
    shares: &[KeyShare],
    package: &Package,
    mut nonces: BTreeMap<SignerId, Nonces>,
) -> BTreeMap<SignerId, Shares> {
    shares
        .iter()
        .filter_map(|share| Some((share, nonces.remove(&share.signer())?)))
        .map(|(share, nonces)| (share.signer(), sign(share, nonces, package).unwrap()))
        .collect()
}

fn bytes_of(shares: &Shares) -> Vec<u8> {
    postcard::from_bytes(&postcard::to_stdvec(shares).unwrap()).unwrap()
}

/// Signs with those at `indices`, checks every share and every signature.
fn sign_and_verify(shares: &[KeyShare], indices: &[usize], messages: Vec<Message>) {
    let group = shares[0].group();
    let (package, nonces) = round1(shares, indices, messages);
    let answers = round2(shares, &package, nonces);
    for (from, answer) in &answers {
        verify_shares(group, &package, *from, answer).unwrap();
    }
    let signatures = aggregate(group, &package, &answers).unwrap();
    assert_eq!(signatures.len(), package.messages.len());
    for (message, signature) in package.messages.iter().zip(&signatures) {
        for tweak in TWEAKS {
            let key = output_key(&group.group_key(), &tweak);
            assert_eq!(
                verify(&key, &message.digest, signature),
                tweak == message.tweak
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_threshold_or_more_of_the_signers_sign(
        indices in prop::sample::subsequence((0..5_usize).collect::<Vec<_>>(), 3..=5),
        count in 1..5_usize,
    ) {
        sign_and_verify(&group(5, 3), &indices, messages(count));
    }

    /// Two ways to say whose shares are wrong: each share by itself, and all of them as one combination.
    #[test]
    fn the_combined_check_finds_exactly_the_wrong_shares(
        bad in prop::collection::btree_map(0..4_usize, 0..40_usize, 0..4),
        nonces in any::<u64>(),
    ) {
        let shares = group(5, 3);
        let group = shares[0].group();
        let (package, secret) = round1_from(nonces, &shares, &[0, 1, 2, 4], messages(40));
        let mut answers = round2(&shares, &package, secret);
        let ids: Vec<SignerId> = answers.keys().copied().collect();
        for (signer, message) in &bad {
            let mut bytes = bytes_of(&answers[&ids[*signer]]);
            bytes[message * 32 + 31] ^= 1;
            answers.insert(ids[*signer], Shares::try_from(bytes).unwrap());
        }
        let expected: BTreeSet<SignerId> = bad.keys().map(|signer| ids[*signer]).collect();
        prop_assert_eq!(culprits(group, &package, &answers).unwrap(), expected.clone());
        let some: BTreeMap<_, _> = answers.iter().skip(1).map(|(id, answer)| (*id, answer)).collect();
        let mut others = expected.clone();
        others.remove(&ids[0]);
        prop_assert_eq!(culprits(group, &package, &some).unwrap(), others);
        for (from, answer) in &answers {
            let wrong = verify_shares(group, &package, *from, answer).is_err();
            prop_assert_eq!(wrong, expected.contains(from));
        }
    }
}

#[test]
fn all_of_n_sign_and_a_large_group_signs() {
    sign_and_verify(&group(5, 3), &[0, 1, 2, 3, 4], messages(3));
    sign_and_verify(&group(4, 4), &[0, 1, 2, 3], messages(3));
    let twelve: Vec<_> = (2..14).collect();
    sign_and_verify(&group(16, 12), &twelve, messages(3));
}

#[test]
fn fewer_than_the_threshold_get_no_signature() {
    let shares = group(5, 3);
    let (mut package, mut nonces) = round1(&shares, &[0, 1], messages(1));
    let too_few = PackageError::TooFew { have: 2, need: 3 };
    let share = &shares[0];
    assert_eq!(
        sign(share, nonces.remove(&share.signer()).unwrap(), &package),
        Err(SignError::Package(too_few))
    );
    assert_eq!(
        aggregate::<Shares>(share.group(), &package, &BTreeMap::new()),
        Err(AggregateError::Package(too_few))
    );
    // Two honest shares of a session of three, and the third is made up or left out.
    let (full, nonces) = round1(&shares, &[0, 1, 2], messages(1));
    let mut answers = round2(&shares, &full, nonces);
    let third = shares[2].signer();
    let made_up = answers[&shares[0].signer()].clone();
    answers.insert(third, made_up);
    let culprits = BTreeSet::from([third]);
    assert_eq!(
        aggregate(share.group(), &full, &answers),
        Err(AggregateError::BadShares { culprits })
    );
    answers.remove(&third);
    let signers = BTreeSet::from([third]);
    assert_eq!(
        aggregate(share.group(), &full, &answers),
        Err(AggregateError::Missing { signers })
    );
    package = full;
    package.commitments.remove(&third);
    assert_eq!(
        aggregate(share.group(), &package, &answers),
        Err(AggregateError::Package(too_few))
    );
}

#[test]
fn every_wrong_share_is_blamed_by_name() {
    let shares = group(5, 3);
    let group = shares[0].group();
    let (package, nonces) = round1(&shares, &[0, 1, 3, 4], messages(3));
    let mut answers = round2(&shares, &package, nonces);
    let (bad, worse) = (shares[1].signer(), shares[4].signer());
    let honest = answers[&bad].clone();
    // One share of three is off by one, in another input for each culprit.
    for (from, input) in [(bad, 2), (worse, 0)] {
        let mut bytes = bytes_of(&answers[&from]);
        bytes[input * 32 + 31] ^= 1;
        let wrong = Shares::try_from(bytes).unwrap();
        assert_eq!(
            verify_shares(group, &package, from, &wrong),
            Err(BadShare::Invalid {
                from,
                message: input
            })
        );
        answers.insert(from, wrong);
    }
    assert_eq!(
        aggregate(group, &package, &answers),
        Err(AggregateError::BadShares {
            culprits: BTreeSet::from([bad, worse])
        })
    );
    // Another signer's shares are wrong under this name, and so is the wrong number of them.
    assert_eq!(
        verify_shares(group, &package, worse, &honest),
        Err(BadShare::Invalid {
            from: worse,
            message: 0
        })
    );
    let short = Shares::try_from(bytes_of(&honest)[..64].to_vec()).unwrap();
    assert_eq!(
        verify_shares(group, &package, bad, &short),
        Err(BadShare::Count {
            from: bad,
            have: 2,
            need: 3
        })
    );
    let absent = shares[2].signer();
    assert_eq!(
        verify_shares(group, &package, absent, &honest),
        Err(BadShare::NotInPackage(absent))
    );
    answers.insert(absent, honest);
    assert_eq!(
        aggregate(group, &package, &answers),
        Err(AggregateError::NotInPackage(absent))
    );
}

#[test]
fn strangers_and_unusable_packages_make_no_culprits() {
    let shares = group(5, 3);
    let group = shares[0].group();
    let (package, nonces) = round1(&shares, &[0, 1, 2], messages(2));
    let mut answers = round2(&shares, &package, nonces);
    let absent = shares[3].signer();
    answers.insert(absent, answers[&shares[0].signer()].clone());
    assert_eq!(
        culprits(group, &package, &answers),
        Err(BadShare::NotInPackage(absent))
    );
    answers.remove(&absent);
    let mut longer = package.clone();
    longer.messages.extend(messages(1));
    assert!(matches!(
        culprits(group, &longer, &answers),
        Err(BadShare::Package(_))
    ));
    assert_eq!(culprits(group, &package, &answers), Ok(BTreeSet::new()));
    let from = shares[1].signer();
    let short = Shares::try_from(bytes_of(&answers[&from])[..32].to_vec()).unwrap();
    answers.insert(from, short);
    assert_eq!(
        culprits(group, &package, &answers),
        Ok(BTreeSet::from([from]))
    );
}

#[test]
fn a_package_has_one_name_whatever_is_changed_in_it() {
    let shares = group(5, 3);
    let group = shares[0].group();
    let (package, _) = round1(&shares, &[0, 1, 2], messages(2));
    let name = package.hash(group);
    assert_eq!(package.clone().hash(group), name);
    let mut fewer = package.clone();
    fewer.commitments.pop_last();
    let mut digest = package.clone();
    digest.messages[0].digest[31] ^= 1;
    let mut tweak = package.clone();
    tweak.messages[0].tweak = Tweak::KeyPath(None);
    let mut rootless = tweak.clone();
    rootless.messages[0].tweak = Tweak::KeyPath(Some([0; 32]));
    let (others, _) = round1_from(8, &shares, &[0, 1, 2], messages(2));
    let mut names = BTreeSet::from([name]);
    for changed in [&fewer, &digest, &tweak, &rootless, &others] {
        assert!(names.insert(changed.hash(group)));
    }
    let other_group = self::group(4, 3);
    assert!(names.insert(package.hash(other_group[0].group())));
}

#[test]
fn the_number_of_messages_follows_from_the_group() {
    assert!(max_messages(5, 3) >= 1_500);
    assert!(max_messages(16, 12) >= 1_000);
    assert!((100..1_000).contains(&max_messages(100, 67)));
    assert_eq!(max_messages(2, 2), MAX_MESSAGES);
    assert!(max_messages(255, 128) >= 1);
    for (n, t) in [(5, 3), (16, 12), (100, 67), (255, 128), (255, 255)] {
        let messages = max_messages(n, t);
        assert!(messages * t * 66 <= threshold::sign::MAX_REQUEST_BYTES);
    }
}

#[test]
fn a_share_serves_its_message_tweak_and_commitments_only() {
    let shares = group(5, 3);
    let group = shares[0].group();
    let (package, nonces) = round1(&shares, &[0, 1, 2], messages(2));
    let answers = round2(&shares, &package, nonces);
    assert!(aggregate(group, &package, &answers).is_ok());

    let mut digest = package.clone();
    digest.messages[1].digest[0] ^= 1;
    let mut tweak = package.clone();
    tweak.messages[1].tweak = Tweak::KeyPath(Some([0x5B; 32]));
    let mut swapped = package.clone();
    swapped.messages.swap(0, 1);
    let mut commitments = package.clone();
    let (other, _) = round1(&shares, &[1, 2], messages(2));
    commitments.commitments.insert(
        shares[2].signer(),
        other.commitments[&shares[1].signer()].clone(),
    );
    for changed in [&digest, &tweak, &swapped, &commitments] {
        let from = shares[0].signer();
        assert!(verify_shares(group, changed, from, &answers[&from]).is_err());
        assert!(matches!(
            aggregate(group, changed, &answers),
            Err(AggregateError::BadShares { culprits }) if culprits.contains(&from)
        ));
    }
}

#[test]
fn a_signer_refuses_packages_that_are_not_made_with_its_own_nonces() {
    let shares = group(5, 3);
    let me = &shares[0];
    let (package, mut nonces) = round1(&shares, &[0, 1, 2], messages(2));
    let mine = nonces.remove(&me.signer()).unwrap();
    let mut mallory = package.clone();
    mallory.commitments.insert(
        me.signer(),
        package.commitments[&shares[1].signer()].clone(),
    );
    assert_eq!(mine.check(me, &mallory), Err(SignError::OtherCommitments));
    let mut absent = package.clone();
    absent.commitments.remove(&me.signer());
    let (fourth, _) = round1(&shares, &[3], messages(2));
    absent.commitments.extend(fourth.commitments);
    assert_eq!(mine.check(me, &absent), Err(SignError::NotInPackage));
    let mut stranger = package.clone();
    stranger
        .commitments
        .insert(signer(99), package.commitments[&me.signer()].clone());
    assert_eq!(
        mine.check(me, &stranger),
        Err(SignError::Package(PackageError::Stranger(signer(99))))
    );
    let mut longer = package.clone();
    longer.messages.push(Message {
        digest: [9; 32],
        tweak: Tweak::Untweaked,
    });
    let first = *package.commitments.keys().next().unwrap();
    assert_eq!(
        mine.check(me, &longer),
        Err(SignError::Package(PackageError::CommitmentCount {
            signer: first,
            have: 2,
            need: 3
        }))
    );
    let mut empty = package.clone();
    empty.messages.clear();
    assert_eq!(
        mine.check(me, &empty),
        Err(SignError::Package(PackageError::MessageCount(0)))
    );
    // The refusals have cost nothing.
    assert!(sign(me, mine, &package).is_ok());
    // Nonces of an earlier attempt do not serve a later one.
    let (_, mut earlier) = round1(&shares, &[1, 0, 2], messages(2));
    let stale = earlier.remove(&me.signer()).unwrap();
    assert_eq!(sign(me, stale, &package), Err(SignError::OtherCommitments));
}

#[test]
fn a_package_with_a_commitment_that_is_no_point_is_refused_and_names_its_signer() {
    let shares = group(2, 2);
    let mut rng = rng(1);
    let (nonces, own) = commit(&shares[0], 1, &mut rng).unwrap();
    let (_, other) = commit(&shares[1], 1, &mut rng).unwrap();
    let bytes: Vec<u8> = postcard::from_bytes(&postcard::to_stdvec(&other).unwrap()).unwrap();
    // The same point in SEC1's compact form; the identity; an x that no point has.
    let mut compact = bytes.clone();
    compact[0] = 5;
    let off_curve = [&[2][..], &[0xFF; 32], &bytes[33..]].concat();
    let from = shares[1].signer();
    for (commitments, is_right) in [
        (bytes, true),
        (compact, false),
        (vec![0; 66], false),
        (off_curve, false),
    ] {
        let commitments = Commitments::try_from(commitments).unwrap();
        assert_eq!(commitments.are_points(), is_right);
        let first = commitments.first(1).unwrap();
        assert_eq!(first.are_points(), is_right);
        let package = Package {
            messages: vec![Message {
                digest: [1; 32],
                tweak: Tweak::Untweaked,
            }],
            commitments: BTreeMap::from([(shares[0].signer(), own.clone()), (from, commitments)]),
        };
        let refused = SignError::Package(PackageError::NoPoint(from));
        let expected = if is_right { Ok(()) } else { Err(refused) };
        assert_eq!(nonces.check(&shares[0], &package), expected);
    }
}

#[test]
fn counts_and_encodings_are_bounded() {
    let shares = group(2, 2);
    let mut rng = rng(1);
    for count in [0, MAX_MESSAGES + 1] {
        assert_eq!(
            commit(&shares[0], count, &mut rng).map(|_| ()),
            Err(PackageError::MessageCount(count))
        );
    }
    let (nonces, commitments) = commit(&shares[0], 2, &mut rng).unwrap();
    assert_eq!((nonces.len(), commitments.len()), (2, 2));
    assert_eq!(format!("{nonces:?}"), "Nonces(2 redacted)");
    let wire = postcard::to_stdvec(&commitments).unwrap();
    assert_eq!(
        postcard::from_bytes::<Commitments>(&wire).unwrap(),
        commitments
    );
    let pairs: Vec<u8> = postcard::from_bytes(&wire).unwrap();
    assert_eq!(pairs.len(), 2 * 66);

    let too_many: Vec<u8> = pairs[..66].repeat(MAX_MESSAGES + 1);
    for bad in [&pairs[..65], &[], &too_many] {
        let expected = DecodeError::Length(bad.len());
        assert_eq!(Commitments::try_from(bad.to_vec()).unwrap_err(), expected);
    }

    assert_eq!(
        Shares::try_from(vec![0xFF; 32]).unwrap_err(),
        DecodeError::Content
    );
    for len in [0, 31, 33, 32 * (MAX_MESSAGES + 1)] {
        assert_eq!(
            Shares::try_from(vec![0; len]).unwrap_err(),
            DecodeError::Length(len)
        );
    }
}

/// The commitment to the constant term of a participant's polynomial: its part of the key. FROST's
/// round-1 package is a header of 5 bytes, a count, and the commitments.
fn constant_term(machine: &Machine) -> PublicKey {
    let to_others = [1, 2]
        .map(|peer| machine.messages_for(signer(peer)))
        .concat();
    let Some(dkg::Message::Round1 { package, .. }) = to_others.into_iter().next() else {
        panic!("no round 1")
    };
    let bytes: Vec<u8> = postcard::from_bytes(&postcard::to_stdvec(&package).unwrap()).unwrap();
    PublicKey::from_slice(&bytes[6..39]).unwrap()
}

/// GROUP is the key that key generation outputs; every output key of the vault is that key tweaked
/// as BIP-341 says, and rust-bitcoin's idea of it is ours. Fixed seeds: if one of these strings changes, no
/// existing vault can be spent any more.
#[test]
fn group_and_its_tweaks_are_pinned() {
    let shares = group(5, 3);
    let group = shares[0].group();
    let key = group.group_key();
    let secp = Secp256k1::verification_only();
    let root = [0x5A; 32];
    let address = |root: Option<[u8; 32]>| {
        let root = root.map(TapNodeHash::from_byte_array);
        let script = ScriptBuf::new_p2tr(&secp, key.to_x_only(), root);
        let expected = output_key(&key, &Tweak::KeyPath(root.map(|root| root.to_byte_array())));
        assert_eq!(script.as_bytes()[2..], expected.serialize());
        Address::from_script(&script, Network::Regtest)
            .unwrap()
            .to_string()
    };
    assert_eq!(output_key(&key, &Tweak::Untweaked), key.to_x_only());
    assert_eq!(
        [key.to_string(), address(None), address(Some(root))],
        [
            "5ff2a86b1f621eab3dbbd45af13ffd8f0ee4e230138ec37536149164b7f89e06",
            "bcrt1pwuuywe9tjhwqdu5cv44vhpu07q0x7267px7a0c8wev7xye5jrlvsa399r2",
            "bcrt1pa529l48uneatm2nhl9r5lhg9hhcawfr3nxjsnnhra3qrfkl4yfjsh3ah5f"
        ]
    );
    // The participants' keys add up to a key that GROUP is one empty tweak away from, not GROUP itself.
    let constants: Vec<PublicKey> = machines(5, 3).iter().map(constant_term).collect();
    let sum = PublicKey::combine_keys(&constants.iter().collect::<Vec<_>>()).unwrap();
    let sum = sum.x_only_public_key().0;
    assert_ne!(sum, key.to_x_only());
    assert_eq!(
        sum.tap_tweak(&secp, None).0.to_x_only_public_key(),
        key.to_x_only()
    );
    // The signatures verify under these keys, and under no other: see `sign_and_verify`.
    sign_and_verify(&shares, &[4, 0, 2], messages(3));
}
