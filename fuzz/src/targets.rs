//! The targets by what they read.

mod attestation;
mod ledger;
mod messages;
#[cfg(feature = "nodes")]
mod nodes;
#[cfg(feature = "nodes")]
mod operators;
mod proofs;
mod threshold;
#[cfg(feature = "nodes")]
mod verifier;
#[cfg(feature = "wire")]
mod wire;

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use crate::{Target, Verdict};

/// Every target.
pub fn all() -> Vec<Target> {
    let groups: &[&[Target]] = &[
        &ledger::TARGETS,
        &threshold::TARGETS,
        &messages::TARGETS,
        &proofs::TARGETS,
        &attestation::TARGETS,
        #[cfg(feature = "wire")]
        &wire::TARGETS,
        #[cfg(feature = "nodes")]
        &nodes::TARGETS,
        #[cfg(feature = "nodes")]
        &operators::TARGETS,
        #[cfg(feature = "nodes")]
        &verifier::TARGETS,
    ];
    groups.concat()
}

/// The target of that name.
///
/// # Panics
/// If there is none.
pub fn named(name: &str) -> Target {
    *all()
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("there is no target {name}"))
}

/// Splits off a byte that says which of several things the rest is.
fn select(bytes: &[u8]) -> (u8, &[u8]) {
    bytes
        .split_first()
        .map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// `bytes` behind a selecting byte.
fn selected(selector: u8, bytes: &[u8]) -> Vec<u8> {
    [&[selector], bytes].concat()
}

/// Reads a value that fills its bytes.
fn read_wire<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// Reads a value as it travels or as JSON: the selecting byte says which. What was read survives both encodings.
fn read_either<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let (format, rest) = select(bytes);
    let value: T = if format % 2 == 0 {
        read_wire(rest)?
    } else {
        serde_json::from_slice(rest).ok()?
    };
    let wire = postcard::to_stdvec(&value).unwrap();
    assert_eq!(read_wire::<T>(&wire).as_ref(), Some(&value));
    let text = serde_json::to_vec(&value).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&text).unwrap(), value);
    Some(value)
}

/// For inputs that a decoder has refused, or not.
fn verdict<T, E>(result: Result<T, E>) -> Verdict {
    match result {
        Ok(_) => Verdict::Accepted,
        Err(_) => Verdict::Refused,
    }
}
