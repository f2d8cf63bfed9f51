//! What a session waits for, for people.

use std::collections::{BTreeMap, BTreeSet};

use threshold::SignerId;

use crate::message::Refusal;

/// What keeps a session from its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Signers that an attempt needs.
    pub needed: usize,
    /// Attempts started.
    pub attempts: u32,
    /// Signers that wait for others.
    pub ready: BTreeSet<SignerId>,
    /// Signers that were asked for a share and have not sent it, and in which attempt.
    pub pending: BTreeMap<SignerId, u32>,
    /// Those of the pending that have refused that request.
    pub declined: BTreeMap<SignerId, Refusal>,
    /// Signers that may have given a share, and are bound by it (S7).
    pub promised: BTreeSet<SignerId>,
    /// Signers from whom nothing usable has been heard.
    pub unheard: BTreeSet<SignerId>,
    /// Signers that will not sign this at all.
    pub refused: BTreeMap<SignerId, Refusal>,
    /// Signers that have sent a bad share.
    pub blamed: BTreeSet<SignerId>,
}

impl Waiting {
    /// In words, with the operators' names.
    pub fn describe(&self, name: impl Fn(&SignerId) -> String) -> String {
        let mut parts = vec![format!(
            "{} of {} signers ready",
            self.ready.len(),
            self.needed
        )];
        let mut list = |what: &str, who: Vec<String>| {
            if !who.is_empty() {
                parts.push(format!("{what} {}", who.join(", ")));
            }
        };
        let refusals = |refusals: &BTreeMap<SignerId, Refusal>| {
            refusals
                .iter()
                .map(|(signer, refusal)| format!("{} ({refusal})", name(signer)))
                .collect::<Vec<_>>()
        };
        let awaited = self
            .pending
            .iter()
            .filter(|(signer, _)| !self.declined.contains_key(signer))
            .map(|(signer, attempt)| format!("{} (attempt {attempt})", name(signer)));
        list("no share yet from", awaited.collect());
        list("share declined by", refusals(&self.declined));
        list(
            "nothing heard from",
            self.unheard.iter().map(&name).collect(),
        );
        list("refused by", refusals(&self.refused));
        list("bad share from", self.blamed.iter().map(&name).collect());
        parts.join("; ")
    }
}
