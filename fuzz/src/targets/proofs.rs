//! Proofs and verifying keys.

use std::sync::LazyLock;

use ledger::ChunkWitness;
use proof::{ChunkProof, Keys, VerifyingKey, prove_chunk, verify_chunk};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use sha2::{Digest as _, Sha256};

use super::named;
use crate::{
    Target, Verdict,
    corpus::{self, HONEST},
    honest,
};

pub(super) const TARGETS: [Target; 2] = [
    Target {
        name: "chunk_proof",
        run: proof,
        honest: honest_proof,
        executions: 3_000,
        memory: 1 << 20,
    },
    Target {
        name: "verifying_key",
        run: key,
        honest: honest_key,
        executions: 1_500,
        memory: 4 << 20,
    },
];

/// Made with the corpus: proving takes a setup of its own.
struct Kept {
    key: VerifyingKey,
    proof: Vec<u8>,
}

static KEPT: LazyLock<Kept> = LazyLock::new(|| {
    let only = |name: &str| {
        let files = corpus::read(&named(name)).unwrap();
        let honest = files.into_iter().find(|(file, _)| file.starts_with(HONEST));
        honest.unwrap().1
    };
    Kept {
        key: VerifyingKey::from_file_bytes(&only("verifying_key")).unwrap(),
        proof: only("chunk_proof"),
    }
});

/// A proof has one encoding, and no other bytes than the prover's prove the chunk.
fn proof(bytes: &[u8]) -> Verdict {
    let Ok(proof) = ChunkProof::from_bytes(bytes) else {
        return Verdict::Refused;
    };
    assert_eq!(proof.to_bytes(), bytes, "a second encoding");
    let verified = verify_chunk(&KEPT.key, &honest::chunk().inputs(), &proof).is_ok();
    assert_eq!(verified, bytes == KEPT.proof, "a forged proof");
    if verified {
        Verdict::Accepted
    } else {
        Verdict::Refused
    }
}

/// Bytes of a key file before the length of its label.
const LABEL_AT: usize = 8 + 1 + 2 + 4;

/// A key file whose hash is right, as somebody would make it who changes a file on purpose. It has one encoding, and
/// only the key of the setup accepts the setup's proof.
fn key(bytes: &[u8]) -> Verdict {
    let mut file = bytes.to_vec();
    set_hash(&mut file);
    let Ok(key) = VerifyingKey::from_file_bytes(&file) else {
        return Verdict::Refused;
    };
    assert_eq!(key.to_file_bytes().unwrap(), file, "a second encoding");
    let proof = ChunkProof::from_bytes(&KEPT.proof).unwrap();
    let verified = verify_chunk(&key, &honest::chunk().inputs(), &proof).is_ok();
    assert_eq!(verified, key.hash() == KEPT.key.hash());
    Verdict::Accepted
}

fn set_hash(file: &mut [u8]) {
    let Some(&[low, high]) = file.get(LABEL_AT..LABEL_AT + 2) else {
        return;
    };
    let hash_at = LABEL_AT + 2 + usize::from(u16::from_le_bytes([low, high])) + 8;
    let Some((head, payload)) = file.split_at_mut_checked(hash_at + 32) else {
        return;
    };
    head[hash_at..].copy_from_slice(&Sha256::digest(payload));
}

/// The key in the corpus.
#[cfg(feature = "nodes")]
pub(super) fn verifying_key() -> &'static VerifyingKey {
    &KEPT.key
}

/// The setup whose verifying key is in the corpus; the seed makes it the same every time.
static SETUP: LazyLock<Keys> =
    LazyLock::new(|| Keys::setup(&mut ChaCha20Rng::seed_from_u64(1)).unwrap());

/// A proof under that setup; proofs are random.
pub(super) fn prove(chunk: &ChunkWitness) -> Vec<u8> {
    let proof = prove_chunk(&SETUP.proving, chunk).unwrap();
    proof.to_bytes().to_vec()
}

fn honest_proof() -> Vec<(&'static str, Vec<u8>)> {
    static MADE: LazyLock<Vec<u8>> = LazyLock::new(|| prove(&honest::chunk()));
    vec![("proof", MADE.clone())]
}

fn honest_key() -> Vec<(&'static str, Vec<u8>)> {
    vec![("key", SETUP.verifying.to_file_bytes().unwrap())]
}
