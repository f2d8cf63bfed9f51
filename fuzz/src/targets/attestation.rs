//! Attestation documents.

#[path = "../../../attestation/tests/support/mod.rs"]
mod support;

use std::sync::LazyLock;

use attestation::{
    Claim, Evidence, Verify as _,
    nitro::{Expected, Fingerprint},
};
use support::{Chain, expected};

use super::named;
use crate::{Target, Verdict, corpus};

pub(super) const TARGETS: [Target; 1] = [Target {
    name: "attestation_document",
    run: document,
    honest: honest_document,
    executions: 10_000,
    memory: 1 << 20,
}];

const NOW_MS: u64 = 1_750_000_000_000;
const CLAIM: Claim = Claim {
    key: [0x11; 32],
    nonce: [0x22; 32],
};
const ROOT_BYTES: usize = 32;

/// The corpus's chain, and what its document says.
static KEPT: LazyLock<(Expected, Evidence)> = LazyLock::new(|| {
    let files = corpus::read(&named("attestation_document")).unwrap();
    let honest = files
        .into_iter()
        .find(|(name, _)| name.starts_with(corpus::HONEST));
    let (_, bytes) = honest.unwrap();
    let (root, document) = bytes.split_first_chunk::<ROOT_BYTES>().unwrap();
    let expected = expected(Fingerprint(*root));
    let evidence = expected.verify(document, &CLAIM, NOW_MS).unwrap();
    (expected, evidence)
});

/// A document behind the fingerprint of its root, which stands in the roster and not in the document. No other statement
/// than the enclave's is believed.
fn document(bytes: &[u8]) -> Verdict {
    let Some((_, document)) = bytes.split_first_chunk::<ROOT_BYTES>() else {
        return Verdict::Refused;
    };
    let (expected, evidence) = &*KEPT;
    match expected.verify(document, &CLAIM, NOW_MS) {
        Ok(found) => {
            assert_eq!(found, *evidence);
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

fn honest_document() -> Vec<(&'static str, Vec<u8>)> {
    let issued = Chain::like_aws(NOW_MS / 1_000).issue();
    let document = issued.document(&CLAIM, NOW_MS - 1_000).bytes();
    vec![("document", [&issued.root().0[..], &document].concat())]
}
