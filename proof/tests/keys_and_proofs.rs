//! Keys in files, and a real proof from one end to the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

use std::{fs, path::PathBuf};

use bitcoin::{Amount, OutPoint, hashes::Hash as _};
use ledger::{
    AccountSecret, ChunkInputs, Digest, Field, Ledger, Operation, SequenceNumber, VaultId,
    chunk_inputs,
};
use proof::{
    ChunkProof, KeyError, Keys, PROOF_BYTES, PROVING_KEY_FILE, ProveError, ProvingKey, SETUP_LABEL,
    SetupStep, VERIFYING_KEY_FILE, VerifyError, VerifyingKey, circuit_digest, prove_chunk,
    verify_chunk, verify_chunks,
};
use rand::{SeedableRng as _, rngs::OsRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

const VAULT: VaultId = VaultId([4; 32]);
const SEQUENCE: SequenceNumber = SequenceNumber(1);

/// The digest that belongs to [`proof::CIRCUIT_VERSION`]. Whoever changes the circuit raises the version and pins
/// the new digest here: vaults name their verifying key forever.
const CIRCUIT_DIGEST: &str = "266fd8a4b08328dd10fa68f0a9d17a82d6e272d3a1ba8e4c5341a320e620fe02";

/// Made once for all tests of one circuit; the tests run as processes of their own.
fn folder() -> PathBuf {
    let name = format!("keys-{}", hex::encode(&circuit_digest()[..8]));
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn keys() -> Keys {
    Keys::ensure(&folder(), &mut OsRng, |_| ()).unwrap()
}

fn deposits(seeds: std::ops::Range<u64>) -> Vec<Operation> {
    seeds
        .map(|seed| Operation::Deposit {
            account: AccountSecret::generate(&mut ChaCha8Rng::seed_from_u64(seed)).public(),
            amount: Amount::from_sat(1_000 + seed),
            outpoint: OutPoint {
                txid: bitcoin::Txid::from_byte_array([1; 32]),
                vout: seed as u32,
            },
        })
        .collect()
}

#[test]
fn the_circuit_is_the_one_of_its_version() {
    assert_eq!(hex::encode(circuit_digest()), CIRCUIT_DIGEST);
}

#[test]
fn a_batch_of_two_chunks_is_proven_and_verified() {
    let keys = keys();
    let operations = deposits(0..9);
    let transition = Ledger::new()
        .apply_batch(&operations, &VAULT, SEQUENCE)
        .unwrap();
    let proofs: Vec<ChunkProof> = transition
        .chunks
        .iter()
        .map(|chunk| prove_chunk(&keys.proving, chunk).unwrap())
        .collect();

    // The verifier has the operations and the digests only, and the proofs as bytes.
    let inputs = chunk_inputs(&VAULT, &operations, &transition.digests()).unwrap();
    let proofs: Vec<ChunkProof> = proofs
        .iter()
        .map(|proof| ChunkProof::from_bytes(&proof.to_bytes()).unwrap())
        .collect();
    for (inputs, proof) in inputs.iter().zip(&proofs) {
        verify_chunk(&keys.verifying, inputs, proof).unwrap();
        for changed in changed_inputs(inputs) {
            assert_eq!(
                verify_chunk(&keys.verifying, &changed, proof),
                Err(VerifyError::Invalid)
            );
        }
    }
    assert_eq!(
        verify_chunk(&keys.verifying, &inputs[1], &proofs[0]),
        Err(VerifyError::Invalid)
    );

    let mut both: Vec<(ChunkInputs, ChunkProof)> = inputs.into_iter().zip(proofs).collect();
    verify_chunks(&keys.verifying, &both).unwrap();
    verify_chunks(&keys.verifying, &both[..1]).unwrap();
    verify_chunks(&keys.verifying, &[]).unwrap();
    both[1].0.commitment = both[0].0.commitment;
    assert_eq!(
        verify_chunks(&keys.verifying, &both),
        Err(VerifyError::Invalid)
    );

    encodings(&both[0].1);
    bad_witnesses(&keys.proving, &transition.chunks[0]);
}

fn changed_inputs(inputs: &ChunkInputs) -> [ChunkInputs; 3] {
    let other = Digest::from(inputs.digest_before.element() + Field::from(1u8));
    [
        ChunkInputs {
            digest_before: other,
            ..*inputs
        },
        ChunkInputs {
            digest_after: other,
            ..*inputs
        },
        ChunkInputs {
            commitment: other,
            ..*inputs
        },
    ]
}

fn encodings(proof: &ChunkProof) {
    let bytes = proof.to_bytes();
    let json = serde_json::to_string(proof).unwrap();
    assert_eq!(&serde_json::from_str::<ChunkProof>(&json).unwrap(), proof);
    let wire = postcard::to_stdvec(proof).unwrap();
    assert_eq!(&postcard::from_bytes::<ChunkProof>(&wire).unwrap(), proof);

    assert!(ChunkProof::from_bytes(&bytes[1..]).is_err());
    assert!(ChunkProof::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    assert!(ChunkProof::from_bytes(&[0xff; PROOF_BYTES]).is_err());
    // The modulus of the base field in place of A's x coordinate, then one that is on no point.
    let modulus =
        hex::decode("47fd7cd8168c203c8dca7168916a81975d588181b64550b829a031e1724e6430").unwrap();
    let mut changed = bytes;
    changed[..32].copy_from_slice(&modulus);
    assert!(ChunkProof::from_bytes(&changed).is_err());
    let off_curve = (1u8..)
        .find(|x| {
            let mut changed = bytes;
            changed[..32].fill(0);
            changed[0] = *x;
            ChunkProof::from_bytes(&changed).is_err()
        })
        .unwrap();
    assert!(
        off_curve < 20,
        "about half of all x coordinates are on no point"
    );
    // Points of the twist that are not in its subgroup of prime order: almost all points are.
    let outside = (1u8..=40).filter(|x| {
        let mut changed = bytes;
        changed[32..96].fill(0);
        changed[32] = *x;
        ChunkProof::from_bytes(&changed).is_ok()
    });
    assert_eq!(outside.count(), 0);
}

fn bad_witnesses(key: &ProvingKey, chunk: &ledger::ChunkWitness) {
    let mut short = chunk.clone();
    short.updates.pop();
    assert!(matches!(prove_chunk(key, &short), Err(ProveError::Rows(7))));
    let mut wrong = chunk.clone();
    wrong.updates[0].row.amount += 1;
    assert!(matches!(
        prove_chunk(key, &wrong),
        Err(ProveError::Unsatisfied(_))
    ));
}

#[test]
fn a_verifying_key_has_one_encoding() {
    let good = keys().verifying.to_file_bytes().unwrap();
    // What follows the label: the payload's length and hash, and the payload.
    let length_at = 17 + keys().verifying.label().len();
    let (hash_at, payload_at) = (length_at + 8, length_at + 40);
    let with_payload = |payload: &[u8]| {
        let mut file = good[..length_at].to_vec();
        file.extend((payload.len() as u64).to_le_bytes());
        file.extend(Sha256::digest(payload));
        file.extend(payload);
        VerifyingKey::from_file_bytes(&file)
    };
    let payload = &good[payload_at..];
    assert_eq!(good[hash_at..payload_at], Sha256::digest(payload)[..]);
    with_payload(payload).unwrap();
    // The last point at infinity: the flag, and coordinates that must be zero.
    let mut infinity = payload.to_vec();
    let last = infinity.len() - 32;
    infinity[last..].fill(0);
    infinity[last + 31] = 0x40;
    with_payload(&infinity).unwrap();
    infinity[last] = 1;
    for other in [infinity, [payload, &[0]].concat()] {
        assert!(matches!(
            with_payload(&other),
            Err(KeyError::Malformed(
                "the verifying key's points are not in their one encoding"
            ))
        ));
    }
}

#[test]
fn key_files_that_are_damaged_or_mixed_up_are_refused() {
    let keys = keys();
    assert_eq!(keys.verifying.label(), SETUP_LABEL);
    let again = Keys::ensure(&folder(), &mut OsRng, |step| {
        assert_eq!(step, SetupStep::Loading)
    })
    .unwrap();
    assert_eq!(again.verifying.hash(), keys.verifying.hash());

    let good = fs::read(folder().join(VERIFYING_KEY_FILE)).unwrap();
    assert_eq!(
        VerifyingKey::from_file_bytes(&good).unwrap().hash(),
        keys.verifying.hash()
    );
    for end in [0, 7, 8, 20, good.len() - 1] {
        assert!(matches!(
            VerifyingKey::from_file_bytes(&good[..end]),
            Err(KeyError::Malformed(_))
        ));
    }
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        VerifyingKey::from_file_bytes(&bytes).unwrap_err()
    };
    assert!(matches!(flipped(good.len() - 1), KeyError::Hash));
    assert!(matches!(flipped(0), KeyError::Malformed(_)));
    assert!(matches!(flipped(8), KeyError::Malformed(_)));
    assert!(matches!(flipped(11), KeyError::CircuitVersion { .. }));
    let longer = [good.as_slice(), &[0]].concat();
    assert!(matches!(
        VerifyingKey::from_file_bytes(&longer),
        Err(KeyError::Malformed(_))
    ));

    // A verifying key whose proving key is elsewhere must not be replaced by another.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::copy(
        folder().join(VERIFYING_KEY_FILE),
        elsewhere.path().join(VERIFYING_KEY_FILE),
    )
    .unwrap();
    assert!(matches!(
        Keys::ensure(elsewhere.path(), &mut OsRng, |_| ()),
        Err(KeyError::ProvingKeyMissing)
    ));
    // One kind of key under the other's name; a file that is missing.
    fs::copy(
        folder().join(VERIFYING_KEY_FILE),
        elsewhere.path().join(PROVING_KEY_FILE),
    )
    .unwrap();
    assert!(matches!(
        Keys::load(elsewhere.path()),
        Err(KeyError::Malformed(_))
    ));
    fs::remove_file(elsewhere.path().join(PROVING_KEY_FILE)).unwrap();
    assert!(matches!(
        Keys::load(elsewhere.path()),
        Err(KeyError::Io { .. })
    ));
    // A proving key that was cut off.
    let proving = fs::read(folder().join(PROVING_KEY_FILE)).unwrap();
    fs::write(
        elsewhere.path().join(PROVING_KEY_FILE),
        &proving[..proving.len() / 2],
    )
    .unwrap();
    assert!(matches!(
        Keys::load(elsewhere.path()),
        Err(KeyError::Malformed(_))
    ));
}
