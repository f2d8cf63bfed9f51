//! Accounts, operations and their encodings.

use std::sync::LazyLock;

use bitcoin::Network;
use ledger::{
    AccountKey, AccountSecret, Digest, Ledger, Operation, OperationId, SequenceNumber, Signature,
};

use super::{named, read_either, select, selected};
use crate::{Target, Verdict, corpus, honest};

pub(super) const TARGETS: [Target; 3] = [
    Target {
        name: "account_address",
        run: address,
        honest: honest_addresses,
        executions: 100_000,
        memory: 64 << 10,
    },
    Target {
        name: "curve_encodings",
        run: curve,
        honest: honest_curve,
        executions: 30_000,
        memory: 64 << 10,
    },
    Target {
        name: "operations",
        run: operations,
        honest: honest_operations,
        executions: 4_000,
        memory: 8 << 20,
    },
];

const NETWORKS: [Network; 3] = [Network::Bitcoin, Network::Testnet, Network::Regtest];

/// An address is of one network and has one spelling, but for upper case.
fn address(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Verdict::Refused;
    };
    let read: Vec<(Network, AccountKey)> = NETWORKS
        .iter()
        .filter_map(|network| Some((*network, AccountKey::from_address(*network, text).ok()?)))
        .collect();
    match read.as_slice() {
        [] => Verdict::Refused,
        [(network, key)] => {
            assert_eq!(key.to_address(*network), text.to_lowercase());
            Verdict::Accepted
        }
        several => panic!("an address of several networks: {several:?}"),
    }
}

fn honest_addresses() -> Vec<(&'static str, Vec<u8>)> {
    let key = honest::user(0).public();
    vec![
        ("mainnet", key.to_address(Network::Bitcoin).into_bytes()),
        ("regtest", key.to_address(Network::Regtest).into_bytes()),
        (
            "upper-case",
            key.to_address(Network::Testnet).to_uppercase().into_bytes(),
        ),
    ]
}

/// Keys, secrets, signatures and field elements: one encoding each.
fn curve(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    let encoded: Option<Vec<u8>> = match which % 4 {
        0 => rest
            .try_into()
            .ok()
            .and_then(|bytes| AccountKey::from_bytes(bytes).ok())
            .map(|key| key.to_bytes().to_vec()),
        1 => rest
            .try_into()
            .ok()
            .and_then(|bytes| Signature::from_bytes(bytes).ok())
            .inspect(|signature| {
                let (secret, message) = signed();
                if secret.public().verify(&message, signature) {
                    assert!(
                        SIGNATURES.iter().any(|known| known == rest),
                        "a forged signature"
                    );
                }
            })
            .map(|signature| signature.to_bytes().to_vec()),
        2 => rest
            .try_into()
            .ok()
            .and_then(|bytes| Digest::from_bytes(bytes).ok())
            .map(|digest| digest.to_bytes().to_vec()),
        _ => rest
            .try_into()
            .ok()
            .and_then(|bytes| AccountSecret::from_bytes(bytes).ok())
            .map(|secret| secret.to_bytes().to_vec()),
    };
    match encoded {
        Some(encoded) => {
            assert_eq!(encoded, rest, "a second encoding");
            Verdict::Accepted
        }
        None => Verdict::Refused,
    }
}

/// Signing is randomised: the signatures of this process, and of the one that wrote the corpus.
static SIGNATURES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kept = corpus::read(&named("curve_encodings")).unwrap_or_default();
    let made = honest_curve().into_iter().map(|(_, bytes)| bytes);
    kept.into_iter()
        .map(|(_, bytes)| bytes)
        .chain(made)
        .filter_map(|bytes| bytes.strip_prefix(&[1]).map(<[u8]>::to_vec))
        .collect()
});

fn signed() -> (AccountSecret, Digest) {
    (honest::user(0), Ledger::new().digest())
}

fn honest_curve() -> Vec<(&'static str, Vec<u8>)> {
    static MADE: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(make_curve);
    MADE.clone()
}

fn make_curve() -> Vec<(&'static str, Vec<u8>)> {
    let (secret, message) = signed();
    vec![
        ("key", selected(0, &secret.public().to_bytes())),
        ("signature", selected(1, &secret.sign(&message).to_bytes())),
        ("digest", selected(2, &message.to_bytes())),
        ("secret", selected(3, secret.to_bytes().as_slice())),
    ]
}

/// Lists of operations, as they travel and as JSON: a batch of them applies as a whole and can be undone, or changes
/// nothing; and nothing moves an honest user's money that the user has not signed.
fn operations(bytes: &[u8]) -> Verdict {
    let Some(operations) = read_either::<Vec<Operation>>(bytes) else {
        return Verdict::Refused;
    };
    let vault = honest::honest().vault.id();
    let signed: Vec<OperationId> = honest::honest().body.operation_ids().collect();
    let mut ledger = Ledger::new();
    let before = ledger.digest();
    match ledger.apply_batch(&operations, &vault, SequenceNumber(1)) {
        Err(_) => {
            assert_eq!(ledger.digest(), before);
            assert!(ledger.accounts().is_empty());
            Verdict::Refused
        }
        Ok(transition) => {
            for operation in operations.iter().filter(|op| op.sender().is_some()) {
                let id = operation.id(&vault);
                assert!(signed.contains(&id), "not signed: {operation:?}");
            }
            let sum: u64 = ledger.accounts().iter().map(|a| a.balance.to_sat()).sum();
            assert_eq!(ledger.supply().to_sat(), sum);
            assert_eq!(transition.digest_after(), ledger.digest());
            ledger.revert(&transition).unwrap();
            assert_eq!(ledger.digest(), before);
            Verdict::Accepted
        }
    }
}

fn honest_operations() -> Vec<(&'static str, Vec<u8>)> {
    let operations = &honest::honest().body.operations;
    vec![
        (
            "wire",
            selected(0, &postcard::to_stdvec(operations).unwrap()),
        ),
        (
            "json",
            selected(1, &serde_json::to_vec(operations).unwrap()),
        ),
        (
            "deposits",
            selected(0, &postcard::to_stdvec(&operations[..2]).unwrap()),
        ),
    ]
}
