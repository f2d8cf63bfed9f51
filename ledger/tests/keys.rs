//! Keys, addresses and signatures: one encoding each, and everything else refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

use ark_ec::CurveGroup as _;
use ark_ed_on_bn254::{EdwardsAffine, Fq, Fr};
use ark_ff::{BigInteger as _, One as _, PrimeField as _, Zero as _};
use ark_serialize::CanonicalSerialize as _;
use bitcoin::Network;
use ledger::{AccountKey, AccountSecret, AddressError, DecodeError, Digest, Field, Signature};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

fn secret(seed: u64) -> AccountSecret {
    AccountSecret::generate(&mut ChaCha8Rng::seed_from_u64(seed))
}

fn message(n: u64) -> Digest {
    Digest::from(Field::from(n))
}

fn encode(point: EdwardsAffine) -> [u8; 32] {
    let mut bytes = [0; 32];
    point.serialize_compressed(bytes.as_mut_slice()).unwrap();
    bytes
}

/// `value + modulus`, little-endian; the flag bit of a point's encoding stays clear.
fn plus_modulus<F: ark_ff::PrimeField>(value: F) -> [u8; 32] {
    let mut sum = value.into_bigint();
    sum.add_with_carry(&F::MODULUS);
    sum.to_bytes_le().try_into().unwrap()
}

#[test]
fn keys_of_small_or_mixed_order_are_refused() {
    let order_two = EdwardsAffine::new_unchecked(Fq::zero(), -Fq::one());
    let key = secret(1).public();
    let mixed = (key.point() + order_two).into_affine();
    assert!(mixed.is_on_curve());
    for point in [
        <EdwardsAffine as ark_ec::AffineRepr>::zero(),
        order_two,
        mixed,
    ] {
        assert_eq!(
            AccountKey::from_point(point),
            Err(DecodeError::NotInSubgroup)
        );
        assert_eq!(
            AccountKey::from_bytes(&encode(point)),
            Err(DecodeError::NotInSubgroup)
        );
    }
    let off = EdwardsAffine::new_unchecked(Fq::one(), Fq::one());
    assert_eq!(AccountKey::from_point(off), Err(DecodeError::NotOnCurve));
    assert_eq!(AccountKey::from_bytes(&key.to_bytes()), Ok(key));
}

#[test]
fn keys_have_one_encoding() {
    // y + modulus fits into 255 bits for every y.
    let key = secret(1).public();
    let mut alias = plus_modulus(key.point().y);
    alias[31] |= key.to_bytes()[31] & 0x80;
    assert_eq!(
        AccountKey::from_bytes(&alias),
        Err(DecodeError::NotCanonical)
    );
    let mut spare_bit = key.to_bytes();
    spare_bit[31] |= 0x40;
    assert_eq!(
        AccountKey::from_bytes(&spare_bit),
        Err(DecodeError::NotCanonical)
    );
    // The identity with the sign of a zero x.
    let mut signed_zero = encode(<EdwardsAffine as ark_ec::AffineRepr>::zero());
    signed_zero[31] |= 0x80;
    assert!(AccountKey::from_bytes(&signed_zero).is_err());
    // About half of all y are on no point.
    let off = (2u8..).find(|y| {
        let mut bytes = [0; 32];
        bytes[0] = *y;
        AccountKey::from_bytes(&bytes) == Err(DecodeError::NotOnCurve)
    });
    assert!(off.unwrap() < 20);
}

#[test]
fn addresses_name_their_network() {
    let key = secret(2).public();
    let address = key.to_address(Network::Regtest);
    assert!(address.starts_with("zkbcrt1"));
    assert!(key.to_address(Network::Bitcoin).starts_with("zkbtc1"));
    assert!(key.to_address(Network::Signet).starts_with("tzkbtc1"));
    assert_eq!(
        AccountKey::from_address(Network::Regtest, &address),
        Ok(key)
    );
    assert_eq!(
        AccountKey::from_address(Network::Regtest, &address.to_uppercase()),
        Ok(key)
    );
    assert_eq!(
        AccountKey::from_address(Network::Bitcoin, &address),
        Err(AddressError::Network {
            found: "zkbcrt".into(),
            expected: "zkbtc".into()
        })
    );
    let bitcoin = "bcrt1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqc8gma6";
    let foreign = AccountKey::from_address(Network::Regtest, bitcoin);
    assert!(matches!(
        foreign,
        Err(AddressError::Prefix { .. } | AddressError::Checksum)
    ));

    let mut typo = address.clone().into_bytes();
    typo[20] = if typo[20] == b'q' { b'p' } else { b'q' };
    let typo = String::from_utf8(typo).unwrap();
    assert_eq!(
        AccountKey::from_address(Network::Regtest, &typo),
        Err(AddressError::Checksum)
    );
    let encode = |bytes: &[u8]| {
        let prefix = bech32::Hrp::parse("zkbcrt").unwrap();
        (
            bech32::encode::<bech32::Bech32m>(prefix, bytes).unwrap(),
            bech32::encode::<bech32::Bech32>(prefix, bytes).unwrap(),
        )
    };
    let (short, _) = encode(&key.to_bytes()[..31]);
    assert_eq!(
        AccountKey::from_address(Network::Regtest, &short),
        Err(AddressError::Length)
    );
    let (_, old_checksum) = encode(&key.to_bytes());
    assert_eq!(
        AccountKey::from_address(Network::Regtest, &old_checksum),
        Err(AddressError::Checksum)
    );
    let (bad_key, _) = encode(&[0xff; 32]);
    assert!(matches!(
        AccountKey::from_address(Network::Regtest, &bad_key),
        Err(AddressError::Key(_))
    ));
}

#[test]
fn signatures_verify_for_one_key_and_message() {
    let (secret, other) = (secret(3), secret(4));
    let signature = secret.sign(&message(1));
    assert!(secret.public().verify(&message(1), &signature));
    assert!(!secret.public().verify(&message(2), &signature));
    assert!(!other.public().verify(&message(1), &signature));
    for byte in 0..64 {
        let mut bytes = signature.to_bytes();
        bytes[byte] ^= 1;
        let changed = Signature::from_bytes(&bytes);
        assert!(!changed.is_ok_and(|changed| secret.public().verify(&message(1), &changed)));
    }
    assert_ne!(secret.sign(&message(1)), signature, "nonces are randomised");
}

#[test]
fn signatures_have_one_encoding() {
    let signature = secret(5).sign(&message(1));
    let bytes = signature.to_bytes();
    assert_eq!(Signature::from_bytes(&bytes), Ok(signature));
    let mut alias = bytes;
    alias[32..].copy_from_slice(&plus_modulus(signature.scalar()));
    assert_eq!(
        Signature::from_bytes(&alias),
        Err(DecodeError::NotCanonical)
    );
    let mut alias = bytes;
    alias[..32].copy_from_slice(&plus_modulus(signature.nonce_point().y));
    assert_eq!(
        Signature::from_bytes(&alias),
        Err(DecodeError::NotCanonical)
    );
    // A nonce point of small order beside a valid s.
    let mut small = bytes;
    small[..32].copy_from_slice(&encode(EdwardsAffine::new_unchecked(
        Fq::zero(),
        -Fq::one(),
    )));
    let small = Signature::from_bytes(&small).unwrap();
    assert!(!secret(5).public().verify(&message(1), &small));
}

#[test]
fn secrets_round_trip_and_stay_out_of_logs() {
    let secret = secret(6);
    let bytes = secret.to_bytes();
    assert_eq!(
        AccountSecret::from_bytes(&bytes).unwrap().public(),
        secret.public()
    );
    assert!(!format!("{secret:?}").contains(&hex::encode(bytes.as_slice())));
    assert_eq!(
        AccountSecret::from_bytes(&[0; 32]).unwrap_err(),
        DecodeError::Zero
    );
    let order: [u8; 32] = Fr::MODULUS.to_bytes_le().try_into().unwrap();
    assert_eq!(
        AccountSecret::from_bytes(&order).unwrap_err(),
        DecodeError::NotCanonical
    );
    assert_eq!(
        AccountSecret::from_bytes(&[0xff; 32]).unwrap_err(),
        DecodeError::NotCanonical
    );
}

#[test]
fn serde_is_hexadecimal_for_people_and_bytes_on_the_wire() {
    let key = secret(7).public();
    let json = serde_json::to_string(&key).unwrap();
    assert_eq!(json, format!("\"{}\"", hex::encode(key.to_bytes())));
    assert_eq!(serde_json::from_str::<AccountKey>(&json).unwrap(), key);
    assert_eq!(postcard::to_stdvec(&key).unwrap().len(), 33);
    assert_eq!(
        postcard::from_bytes::<AccountKey>(&postcard::to_stdvec(&key).unwrap()).unwrap(),
        key
    );
    assert!(serde_json::from_str::<AccountKey>("\"00\"").is_err());
    assert!(serde_json::from_str::<AccountKey>(&json.replace('"', "\"0x")).is_err());
    let modulus: [u8; 32] = Field::MODULUS.to_bytes_le().try_into().unwrap();
    assert_eq!(Digest::from_bytes(&modulus), Err(DecodeError::NotCanonical));
    assert!(serde_json::from_str::<Digest>(&format!("\"{}\"", hex::encode(modulus))).is_err());
}
