//! Documents of an own chain: one as AWS makes them passes, and each single change to it is refused by the check
//! that is there for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use attestation::{
    CertificateError, Claim, MAX_DOCUMENT_BYTES, Verify as _, VerifyError,
    nitro::{AWS_ROOT_G1, Expected, Fingerprint, Pcr},
};
use proptest::prelude::*;
use support::{Chain, Document, Issued, Plan, expected, image};
use x509_cert::{
    Version,
    ext::pkix::{BasicConstraints, KeyUsage, KeyUsages},
};

/// When the tests take place, Unix ms.
const NOW_MS: u64 = 1_750_000_000_000;
const NOW_S: u64 = NOW_MS / 1_000;
const CLAIM: Claim = Claim {
    key: [0x11; 32],
    nonce: [0x22; 32],
};
/// Position of the enclave's certificate in the chain.
const LEAF: usize = 4;

fn issued() -> &'static Issued {
    static ISSUED: std::sync::OnceLock<Issued> = std::sync::OnceLock::new();
    ISSUED.get_or_init(|| Chain::like_aws(NOW_S).issue())
}

fn honest() -> Document {
    issued().document(&CLAIM, NOW_MS - 1_000)
}

fn verify(bytes: &[u8]) -> Result<attestation::Evidence, VerifyError> {
    expected(issued().root()).verify(bytes, &CLAIM, NOW_MS)
}

/// What becomes of the honest document with one change that its signer made.
fn signed(change: impl FnOnce(&mut Document)) -> VerifyError {
    verify(&honest().with(change).bytes()).unwrap_err()
}

/// What becomes of an honest document whose chain has one certificate made otherwise.
fn chained(position: usize, change: impl FnOnce(&mut Plan)) -> Result<(), VerifyError> {
    let issued = Chain::like_aws(NOW_S).with(position, change).issue();
    let document = issued.document(&CLAIM, NOW_MS).bytes();
    let verdict = expected(issued.root()).verify(&document, &CLAIM, NOW_MS);
    verdict.map(|_| ())
}

fn at(position: usize, problem: CertificateError) -> Result<(), VerifyError> {
    Err(VerifyError::Certificate { position, problem })
}

#[test]
fn a_document_like_those_of_aws_is_taken_and_says_until_when() {
    let evidence = verify(&honest().bytes()).unwrap();
    assert_eq!(evidence.module, honest().module);
    assert_eq!(evidence.made_ms, NOW_MS - 1_000);
    assert_eq!(evidence.expires_ms, NOW_MS - 1_000 + 600_000);
}

#[test]
fn evidence_does_not_outlive_a_certificate() {
    let issued = Chain::like_aws(NOW_S)
        .with(3, |plan| plan.not_after_s = NOW_S + 60)
        .issue();
    let document = issued.document(&CLAIM, NOW_MS).bytes();
    let evidence = expected(issued.root()).verify(&document, &CLAIM, NOW_MS);
    assert_eq!(evidence.unwrap().expires_ms, NOW_MS + 60_000);
}

#[test]
fn every_encoding_that_the_hypervisor_has_used_is_read() {
    verify(&honest().with(|d| d.tag = Some(18)).bytes()).unwrap();
    verify(&honest().with(|d| d.indefinite = true).bytes()).unwrap();
    assert_eq!(
        signed(|d| d.tag = Some(17)),
        VerifyError::Encoding("the tag is not COSE_Sign1's")
    );
}

#[test]
fn a_changed_signature_is_refused() {
    let mut bytes = honest().bytes();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&bytes).unwrap_err(), VerifyError::Signature);
    let other = p384::ecdsa::SigningKey::random(&mut rand::rngs::OsRng);
    assert_eq!(signed(|d| d.key = other), VerifyError::Signature);
    let statement = honest().statement();
    for signature in [vec![], vec![0; 96], vec![1; 95], vec![1; 97]] {
        let bytes = honest().assemble(&statement, &signature);
        assert_eq!(verify(&bytes).unwrap_err(), VerifyError::Signature);
    }
}

#[test]
fn a_changed_bit_of_the_statement_is_refused() {
    let bytes = honest().bytes();
    let nonce = bytes.windows(32).rposition(|w| w == CLAIM.nonce).unwrap();
    // In the nonce: still a statement, and no longer a signed one.
    let mut changed = bytes.clone();
    changed[nonce] ^= 1;
    assert_eq!(verify(&changed).unwrap_err(), VerifyError::Signature);
    // Anywhere: refused, by whichever check meets it first.
    for position in (0..bytes.len()).step_by(37) {
        let mut changed = bytes.clone();
        changed[position] ^= 1 << (position % 8);
        verify(&changed).unwrap_err();
    }
}

#[test]
fn a_chain_of_another_root_is_refused() {
    let other = Chain::like_aws(NOW_S).issue();
    let bytes = other.document(&CLAIM, NOW_MS).bytes();
    let found = hex::encode(other.root().0);
    assert_eq!(verify(&bytes), Err(VerifyError::Root { found }));
}

#[test]
fn without_another_root_only_aws_own_will_do() {
    let requirement = Expected {
        root: None,
        ..expected(issued().root())
    };
    let verdict = requirement.verify(&honest().bytes(), &CLAIM, NOW_MS);
    assert!(matches!(verdict, Err(VerifyError::Root { .. })));
    let named = Expected {
        root: Some(Fingerprint(AWS_ROOT_G1)),
        ..requirement
    };
    let verdict = named.verify(&honest().bytes(), &CLAIM, NOW_MS);
    assert!(matches!(verdict, Err(VerifyError::Root { .. })));
}

#[test]
fn a_root_that_is_put_before_a_foreign_chain_lends_it_nothing() {
    let foreign = Chain::like_aws(NOW_S).issue();
    let mut document = foreign.document(&CLAIM, NOW_MS);
    document.bundle[0].clone_from(&issued().certificates[0]);
    assert_eq!(
        verify(&document.bytes()).map(|_| ()),
        at(1, CertificateError::Signature)
    );
}

#[test]
fn a_certificate_outside_its_time_is_refused_at_every_place() {
    for position in 0..=LEAF {
        assert_eq!(
            chained(position, |plan| plan.not_after_s = NOW_S - 1),
            at(position, CertificateError::Expired)
        );
        assert_eq!(
            chained(position, |plan| plan.not_before_s = NOW_S + 1),
            at(position, CertificateError::NotYetValid)
        );
    }
}

#[test]
fn a_certificate_that_its_issuer_has_not_signed_is_refused() {
    for position in 0..=LEAF {
        assert_eq!(
            chained(position, |plan| plan.forged = true),
            at(position, CertificateError::Signature)
        );
    }
    let issuer = "CN=somebody,C=US".to_owned();
    assert_eq!(
        chained(2, |plan| plan.issuer = Some(issuer)),
        at(2, CertificateError::Issuer)
    );
}

#[test]
fn only_authorities_issue_and_only_the_last_certificate_signs() {
    let basic = |ca| BasicConstraints {
        ca,
        path_len_constraint: None,
    };
    for position in 0..LEAF {
        for constraints in [None, Some(basic(false))] {
            assert_eq!(
                chained(position, |plan| plan.basic = constraints),
                at(position, CertificateError::NotAuthority)
            );
        }
        for usage in [None, Some(KeyUsage(KeyUsages::DigitalSignature.into()))] {
            assert_eq!(
                chained(position, |plan| plan.usage = usage),
                at(position, CertificateError::KeyUsage)
            );
        }
    }
    assert_eq!(
        chained(LEAF, |plan| plan.basic = Some(basic(true))),
        at(LEAF, CertificateError::Authority)
    );
    for usage in [None, Some(KeyUsage(KeyUsages::KeyCertSign.into()))] {
        assert_eq!(
            chained(LEAF, |plan| plan.usage = usage),
            at(LEAF, CertificateError::KeyUsage)
        );
    }
}

#[test]
fn no_authority_has_more_below_it_than_it_allows() {
    for position in 0..LEAF {
        let following = u8::try_from(LEAF - 1 - position).unwrap();
        let limit = |length| {
            move |plan: &mut Plan| {
                plan.basic = Some(BasicConstraints {
                    ca: true,
                    path_len_constraint: Some(length),
                });
            }
        };
        assert_eq!(chained(position, limit(following)), Ok(()));
        if let Some(less) = following.checked_sub(1) {
            assert_eq!(
                chained(position, limit(less)),
                at(position, CertificateError::PathLength)
            );
        }
    }
}

#[test]
fn what_a_certificate_says_critically_must_be_known_and_said_once() {
    let name_constraints = "2.5.29.30";
    assert_eq!(
        chained(1, |plan| plan.extra = vec![(name_constraints, true)]),
        at(
            1,
            CertificateError::CriticalExtension(name_constraints.to_owned())
        )
    );
    assert_eq!(
        chained(1, |plan| plan.extra = vec![(name_constraints, false)]),
        Ok(())
    );
    assert_eq!(
        chained(LEAF, |plan| plan.extra = vec![("2.5.29.15", false)]),
        at(LEAF, CertificateError::DuplicateExtension)
    );
}

#[test]
fn certificates_with_other_algorithms_curves_or_versions_are_refused() {
    for position in 0..=LEAF {
        assert_eq!(
            chained(position, |plan| plan.algorithm = support::ECDSA_SHA256),
            at(position, CertificateError::Algorithm)
        );
        assert_eq!(
            chained(position, |plan| plan.curve = support::SECP256K1),
            at(position, CertificateError::PublicKey)
        );
        assert_eq!(
            chained(position, |plan| plan.version = Version::V1),
            at(position, CertificateError::Encoding)
        );
    }
}

#[test]
fn a_bundle_that_is_empty_too_long_or_shuffled_is_refused() {
    let field = VerifyError::Field("cabundle");
    assert_eq!(signed(|d| d.bundle.clear()), field);
    assert_eq!(signed(|d| d.bundle = vec![vec![1]; 9]), field);
    assert_eq!(signed(|d| d.bundle[1] = vec![]), field);
    assert_eq!(signed(|d| d.bundle[1] = vec![1; 1_025]), field);
    assert_eq!(
        signed(|d| d.bundle.swap(1, 2)),
        VerifyError::Certificate {
            position: 1,
            problem: CertificateError::Issuer
        }
    );
    assert_eq!(
        signed(|d| d.bundle[2].push(0)),
        VerifyError::Certificate {
            position: 2,
            problem: CertificateError::Encoding
        }
    );
    assert_eq!(
        signed(|d| d.certificate = vec![]),
        VerifyError::Field("certificate")
    );
}

#[test]
fn another_image_is_refused_by_the_measurement_that_differs() {
    for number in 0..3_u8 {
        assert_eq!(
            signed(|d| d.pcrs[usize::from(number)].1[47] ^= 1),
            VerifyError::Measurement(number)
        );
        let missing = |d: &mut Document| d.pcrs.retain(|(n, _)| *n != number);
        assert_eq!(signed(missing), VerifyError::Measurement(number));
    }
}

#[test]
fn during_an_upgrade_both_images_pass_and_no_mixture_of_them() {
    let mut next = image();
    next.pcr0 = Pcr([0x70; 48]);
    next.pcr2 = Pcr([0x72; 48]);
    let mut requirement = expected(issued().root());
    requirement.images.push(next);
    let check = |document: Document| requirement.verify(&document.bytes(), &CLAIM, NOW_MS);
    check(honest()).unwrap();
    check(honest().with(|d| {
        d.pcrs[0].1 = vec![0x70; 48];
        d.pcrs[2].1 = vec![0x72; 48];
    }))
    .unwrap();
    let mixed = check(honest().with(|d| d.pcrs[2].1 = vec![0x72; 48]));
    assert_eq!(mixed, Err(VerifyError::Measurement(2)));
}

#[test]
fn the_image_signer_counts_where_it_is_asked_for() {
    let mut requirement = expected(issued().root());
    requirement.images[0].pcr8 = Some(Pcr([0x78; 48]));
    let check = |document: Document| requirement.verify(&document.bytes(), &CLAIM, NOW_MS);
    assert_eq!(check(honest()), Err(VerifyError::Measurement(8)));
    check(honest().with(|d| d.pcrs[8].1 = vec![0x78; 48])).unwrap();
}

#[test]
fn an_enclave_in_debug_mode_is_refused() {
    assert_eq!(
        signed(|d| d.pcrs.iter_mut().for_each(|(_, pcr)| pcr.fill(0))),
        VerifyError::Debug
    );
    assert_eq!(signed(|d| d.pcrs[1].1.fill(0)), VerifyError::Debug);
}

#[test]
fn measurements_have_one_value_of_one_size_each() {
    let field = VerifyError::Field("pcrs");
    assert_eq!(signed(|d| d.pcrs.push((0, support::pcr(0)))), field);
    assert_eq!(signed(|d| d.pcrs.push((32, support::pcr(1)))), field);
    assert_eq!(signed(|d| d.pcrs[5].1.truncate(32)), field);
    assert_eq!(signed(|d| d.digest = "SHA256"), VerifyError::Digest);
}

#[test]
fn a_document_from_the_past_or_the_future_is_refused() {
    assert_eq!(
        signed(|d| d.timestamp_ms = NOW_MS - 601_000),
        VerifyError::Stale {
            age_s: 601,
            max_age_s: 600
        }
    );
    assert_eq!(
        signed(|d| d.timestamp_ms = NOW_MS + 61_000),
        VerifyError::Future { ahead_s: 61 }
    );
    assert_eq!(
        signed(|d| d.timestamp_ms = 0),
        VerifyError::Field("timestamp")
    );
}

#[test]
fn the_answer_to_another_question_is_refused() {
    assert_eq!(
        signed(|d| d.nonce.as_mut().unwrap()[0] ^= 1),
        VerifyError::Nonce
    );
    assert_eq!(
        signed(|d| d.nonce.as_mut().unwrap().push(0)),
        VerifyError::Nonce
    );
    assert_eq!(signed(|d| d.nonce = None), VerifyError::Nonce);
}

#[test]
fn another_operators_document_is_refused() {
    let other = vec![0x12; 32];
    assert_eq!(
        signed(|d| d.user_data = Some(other.clone())),
        VerifyError::Key
    );
    assert_eq!(signed(|d| d.user_data = None), VerifyError::Key);
    assert_eq!(signed(|d| d.user_data = Some(vec![])), VerifyError::Key);
    assert_eq!(
        signed(|d| d.user_data.as_mut().unwrap().push(0)),
        VerifyError::Key
    );
    // One field for the right key does not excuse the other.
    assert_eq!(signed(|d| d.public_key = Some(other)), VerifyError::Key);
}

#[test]
fn the_key_may_stand_in_either_field_and_as_der() {
    let prefix = hex::decode("302a300506032b6570032100").unwrap();
    let der = [prefix, CLAIM.key.to_vec()].concat();
    for (public_key, user_data) in [
        (Some(der.clone()), None),
        (Some(CLAIM.key.to_vec()), None),
        (None, Some(der.clone())),
        (Some(der), Some(CLAIM.key.to_vec())),
    ] {
        let document = honest().with(|d| {
            d.public_key = public_key;
            d.user_data = user_data;
        });
        verify(&document.bytes()).unwrap();
    }
}

#[test]
fn a_truncated_document_is_refused_at_every_length() {
    let bytes = honest().bytes();
    for length in 0..bytes.len() {
        verify(&bytes[..length]).unwrap_err();
    }
}

#[test]
fn trailing_bytes_are_refused_in_every_layer() {
    let mut bytes = honest().bytes();
    bytes.push(0);
    assert_eq!(verify(&bytes).unwrap_err(), VerifyError::Trailing);
    let mut statement = honest().statement();
    statement.push(0xf6);
    let bytes = honest().assemble(&statement, &[1; 96]);
    assert_eq!(verify(&bytes).unwrap_err(), VerifyError::Trailing);
    assert_eq!(signed(|d| d.protected.push(0xf6)), VerifyError::Trailing);
}

#[test]
fn an_oversized_document_is_refused_before_it_is_read() {
    let bytes = vec![0xff; MAX_DOCUMENT_BYTES + 1];
    assert_eq!(
        verify(&bytes).unwrap_err(),
        VerifyError::TooLarge { bytes: bytes.len() }
    );
    let module = "m".repeat(257);
    assert_eq!(
        signed(|d| d.module = module),
        VerifyError::Field("module_id")
    );
    assert_eq!(
        signed(|d| d.user_data = Some(vec![0; 1_025])),
        VerifyError::Field("user_data")
    );
}

#[test]
fn a_length_that_promises_more_than_there_is_is_refused() {
    // Maps and arrays of 2^64 - 1 entries, byte strings of as many bytes.
    for head in [0xbb_u8, 0x9b, 0x5b, 0x7b] {
        let lie = [&[head][..], &[0xff; 8]].concat();
        verify(&honest().assemble(&lie, &[1; 96])).unwrap_err();
        verify(&lie).unwrap_err();
        assert!(matches!(
            signed(|d| d.unprotected = lie.clone()),
            VerifyError::Encoding(_) | VerifyError::UnknownHeader
        ));
    }
}

#[test]
fn another_algorithm_is_refused() {
    for algorithm in [-7, -36, -37, -8, 0] {
        assert_eq!(
            signed(|d| d.protected = support::algorithm_header(algorithm)),
            VerifyError::Algorithm(algorithm)
        );
    }
    let none = VerifyError::Encoding("no algorithm is named");
    assert_eq!(signed(|d| d.protected = vec![0xa0]), none);
    let twice = vec![0xa2, 0x01, 0x38, 0x22, 0x01, 0x38, 0x22];
    assert_eq!(
        signed(|d| d.protected = twice),
        VerifyError::Encoding("the algorithm appears twice")
    );
}

#[test]
fn a_header_that_must_be_understood_and_is_not_is_refused() {
    // {1: -35, 2: [100], 100: null}
    let critical = vec![
        0xa3, 0x01, 0x38, 0x22, 0x02, 0x81, 0x18, 0x64, 0x18, 0x64, 0xf6,
    ];
    assert_eq!(
        signed(|d| d.protected = critical),
        VerifyError::CriticalHeader
    );
    // {1: -35, 4: h'00'}, {1: -35, "x": 1}
    for other in [
        vec![0xa2, 0x01, 0x38, 0x22, 0x04, 0x41, 0x00],
        vec![0xa2, 0x01, 0x38, 0x22, 0x61, 0x78, 0x01],
    ] {
        assert_eq!(signed(|d| d.protected = other), VerifyError::UnknownHeader);
    }
    // {1: -35} where it is not signed.
    let unprotected = support::algorithm_header(support::ES384);
    assert_eq!(
        signed(|d| d.unprotected = unprotected),
        VerifyError::UnknownHeader
    );
}

#[test]
fn a_field_that_is_unknown_or_doubled_is_refused() {
    assert_eq!(
        signed(|d| d.extra = vec!["nitrotpm_pcrs"]),
        VerifyError::UnknownField
    );
    assert_eq!(
        signed(|d| d.extra = vec!["nonce"]),
        VerifyError::Field("nonce")
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_verifier_panic_or_pass(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(verify(&bytes).is_err());
        let document = honest();
        let (as_statement, as_header) = (document.assemble(&bytes, &[1; 96]), document.with(|d| d.unprotected = bytes));
        prop_assert!(verify(&as_statement).is_err());
        prop_assert!(as_header.unprotected == [0xa0] || verify(&as_header.bytes()).is_err());
    }

    #[test]
    fn no_change_of_a_document_passes(position in any::<prop::sample::Index>(), mask in 1..=255_u8) {
        let mut bytes = honest().bytes();
        let position = position.index(bytes.len());
        bytes[position] ^= mask;
        prop_assert!(verify(&bytes).is_err());
    }
}
