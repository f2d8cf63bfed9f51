//! Published vectors of BIP-340 and BIP-341 through the code that signs, verifies and derives keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;

use bitcoin::key::XOnlyPublicKey;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::{Address, Network, ScriptBuf, WitnessProgram, WitnessVersion};
use frost_secp256k1_tr as frost;
use serde::Deserialize;
use support::{rng, signers};
use threshold::sign::{
    Message, Package, Tweak, aggregate, commit, output_key, sign, verify, verify_shares,
};
use threshold::{GroupInfo, GroupKey, KeyShare};

/// bitcoin/bips, bip-0340/test-vectors.csv, vectors 0 to 18.
const BIP340: &str = include_str!("data/bip340.csv");
/// bitcoin/bips, bip-0341/wallet-test-vectors.json, the fields that concern keys and signatures.
const BIP341: &str = include_str!("data/bip341.json");

/// What FROST's aggregation checks with, for messages of any length.
fn verifies_in_frost(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let even = [&[2], key].concat();
    frost::VerifyingKey::deserialize(&even)
        .and_then(|key| key.verify(message, &frost::Signature::deserialize(signature)?))
        .is_ok()
}

/// What we check aggregated signatures with, for 32-byte messages.
fn verifies_here(key: &[u8], digest: &[u8; 32], signature: &[u8]) -> bool {
    match (
        XOnlyPublicKey::from_slice(key),
        Signature::from_slice(signature),
    ) {
        (Ok(key), Ok(signature)) => verify(&key, digest, &signature),
        _ => false,
    }
}

#[test]
fn bip340_vectors_verify_as_published() {
    let mut rows = 0;
    for (row, line) in BIP340.lines().skip(1).enumerate() {
        let fields: Vec<_> = line.splitn(8, ',').collect();
        let [key, message, signature] = [2, 4, 5].map(|i| hex::decode(fields[i]).unwrap());
        let expected = match fields[6] {
            "TRUE" => true,
            "FALSE" => false,
            other => panic!("row {row}: {other}"),
        };
        assert_eq!(fields[0], row.to_string());
        assert_eq!(
            verifies_in_frost(&key, &message, &signature),
            expected,
            "frost, row {row}"
        );
        if let Ok(digest) = <[u8; 32]>::try_from(message.as_slice()) {
            assert_eq!(
                verifies_here(&key, &digest, &signature),
                expected,
                "ours, row {row}"
            );
        }
        rows += 1;
    }
    assert_eq!(rows, 19);
}

#[derive(Deserialize)]
struct Bip341 {
    #[serde(rename = "scriptPubKey")]
    outputs: Vec<Output>,
    #[serde(rename = "keyPathSpending")]
    spends: Vec<Spend>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    internal_pubkey: XOnlyPublicKey,
    merkle_root: Option<String>,
    tweaked_pubkey: String,
    script_pub_key: String,
    #[serde(rename = "bip350Address")]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spend {
    internal_privkey: String,
    merkle_root: Option<String>,
    internal_pubkey: XOnlyPublicKey,
    sig_hash: String,
    witness: String,
}

fn bytes32(text: &str) -> [u8; 32] {
    hex::decode(text).unwrap().try_into().unwrap()
}

fn vectors() -> Bip341 {
    serde_json::from_str(BIP341).unwrap()
}

#[test]
fn bip341_output_keys_are_as_published() {
    let outputs = vectors().outputs;
    assert_eq!(outputs.len(), 7);
    for output in outputs {
        let root = output.merkle_root.as_deref().map(bytes32);
        let key = output_key(
            &GroupKey::from(output.internal_pubkey),
            &Tweak::KeyPath(root),
        );
        assert_eq!(key.to_string(), output.tweaked_pubkey);
        let program = WitnessProgram::new(WitnessVersion::V1, &key.serialize()).unwrap();
        let script = ScriptBuf::new_witness_program(&program);
        assert_eq!(script.to_hex_string(), output.script_pub_key);
        let address = Address::from_script(&script, Network::Bitcoin).unwrap();
        assert_eq!(address.to_string(), output.address);
    }
}

/// Shares of a given secret key, as a dealer would make them: only to have a published key signed for by
/// a group. The encodings are those that `GroupInfo` and `KeyShare` document.
fn dealt(secret: &str, n: u8, threshold: u16) -> Vec<KeyShare> {
    let secret = frost::SigningKey::deserialize(&hex::decode(secret).unwrap()).unwrap();
    let ids: Vec<_> = signers(n)
        .iter()
        .map(|id| frost::Identifier::deserialize(&id.to_bytes()).unwrap())
        .collect();
    let list = frost::keys::IdentifierList::Custom(&ids);
    let (secrets, public) =
        frost::keys::split(&secret, n.into(), threshold, list, &mut rng(3)).unwrap();
    let group = postcard::to_stdvec(&(
        0_u32,
        threshold,
        public.verifying_key(),
        public.verifying_shares(),
        [0_u8; 32],
    ))
    .unwrap();
    assert!(postcard::from_bytes::<GroupInfo>(&group).is_ok());
    secrets
        .iter()
        .map(|(id, secret)| {
            let secret = secret.signing_share().serialize();
            let bytes = [vec![1], id.serialize(), secret, group.clone()].concat();
            KeyShare::from_secret_bytes(&bytes).unwrap()
        })
        .collect()
}

#[test]
fn bip341_key_path_spends_are_signed_for_by_a_group() {
    let spends = vectors().spends;
    assert_eq!(spends.len(), 7);
    for spend in spends {
        let shares = dealt(&spend.internal_privkey, 5, 3);
        let group = shares[0].group();
        assert_eq!(group.group_key().to_x_only(), spend.internal_pubkey);
        let tweak = Tweak::KeyPath(spend.merkle_root.as_deref().map(bytes32));
        let digest = bytes32(&spend.sig_hash);
        let key = output_key(&group.group_key(), &tweak);
        // The published signature, without its hash type, verifies under the key that we derive.
        let published = hex::decode(&spend.witness).unwrap();
        assert!(verifies_here(&key.serialize(), &digest, &published[..64]));

        let mut rng = rng(4);
        let round1: Vec<_> = shares[1..4]
            .iter()
            .map(|share| (share, commit(share, 1, &mut rng).unwrap()))
            .collect();
        let commitments = round1
            .iter()
            .map(|(share, (_, public))| (share.signer(), public.clone()))
            .collect();
        let package = Package {
            messages: vec![Message { digest, tweak }],
            commitments,
        };
        let answers: BTreeMap<_, _> = round1
            .into_iter()
            .map(|(share, (nonces, _))| (share.signer(), sign(share, nonces, &package).unwrap()))
            .collect();
        for (from, answer) in &answers {
            verify_shares(group, &package, *from, answer).unwrap();
        }
        let signatures = aggregate(group, &package, &answers).unwrap();
        assert!(verify(&key, &digest, &signatures[0]));
    }
}
