//! Which operators have shown that they run where the roster wants them to: asked on connection with a fresh nonce, and
//! again before the evidence expires. Where the roster requires nothing, everybody has.
//!
//! ```text
//! connected --> due: a nonce --> peer --> document --> verified beside the loop --> take
//!                 ^                                                                  |
//!                 '--- half of its life later, or after a pause if refused <---------'
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use attestation::{Claim, Evidence, Requirement, Verify, VerifyError};
use protocol::{
    identity::PeerKey,
    message::{Refusal, Rule},
};

/// Pause before a peer without valid evidence is asked again, in ms.
const RETRY_MS: u64 = 3_000;

/// A verifier's challenge.
pub type Nonce = [u8; 32];

/// Why a peer has no valid evidence.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Problem {
    /// No answer, or another than asked for.
    #[error("it gave no answer about its attestation")]
    Silent,
    /// It says that it has none.
    #[error("it has no attestation document")]
    NoDocument,
    /// It is not what the roster requires.
    #[error("its attestation document was refused: {0}")]
    Refused(#[from] VerifyError),
}

/// Where a peer stands.
#[derive(Debug, Default)]
struct Standing {
    evidence: Option<Evidence>,
    problem: Option<Problem>,
    /// The challenge that is under way.
    asked: Option<Nonce>,
    /// When to ask next, Unix ms.
    next_ms: u64,
}

/// What is shown of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Until when its evidence is good, Unix ms; `None` if there is none now.
    pub until_ms: Option<u64>,
    /// What was wrong with its last answer.
    pub problem: Option<String>,
}

/// Everybody's standing.
pub struct Attested {
    verifier: Option<Arc<dyn Verify>>,
    peers: BTreeMap<PeerKey, Standing>,
}

impl Attested {
    /// Nobody has shown anything yet.
    pub fn new(requirement: &Requirement) -> Self {
        Self {
            verifier: requirement.verifier(),
            peers: BTreeMap::new(),
        }
    }

    /// What checks the documents; `None` where nothing is required.
    pub fn verifier(&self) -> Option<&Arc<dyn Verify>> {
        self.verifier.as_ref()
    }

    /// The connected operators whom to ask now. Each gets a nonce of its own from `nonce`.
    pub fn due(
        &mut self,
        connected: &BTreeSet<PeerKey>,
        now_ms: u64,
        mut nonce: impl FnMut() -> Nonce,
    ) -> Vec<(PeerKey, Nonce)> {
        if self.verifier.is_none() {
            return Vec::new();
        }
        let mut asked = Vec::new();
        for peer in connected {
            let standing = self.peers.entry(*peer).or_default();
            if standing.asked.is_none() && standing.next_ms <= now_ms {
                let nonce = nonce();
                standing.asked = Some(nonce);
                asked.push((*peer, nonce));
            }
        }
        asked
    }

    /// Takes what became of a question. Evidence stays good while a later question has no answer, until it expires; a
    /// document that was refused ends it.
    pub fn take(
        &mut self,
        peer: &PeerKey,
        nonce: &Nonce,
        verdict: Result<Evidence, Problem>,
        now_ms: u64,
    ) {
        let Some(standing) = self.peers.get_mut(peer) else {
            return;
        };
        // An answer from before the connection was lost says nothing about who is there now.
        if standing.asked != Some(*nonce) {
            return;
        }
        standing.asked = None;
        standing.next_ms = now_ms.saturating_add(RETRY_MS);
        match verdict {
            Ok(evidence) => {
                let life_ms = evidence.expires_ms.saturating_sub(now_ms);
                standing.next_ms = now_ms.saturating_add((life_ms / 2).max(RETRY_MS));
                if standing.evidence.is_none() {
                    tracing::info!(%peer, module = ?evidence.module, "an operator is attested");
                }
                standing.evidence = Some(evidence);
                standing.problem = None;
            }
            Err(problem) => {
                if standing.problem.as_ref() != Some(&problem) {
                    tracing::warn!(%peer, %problem, "an operator is not attested");
                }
                if matches!(problem, Problem::Refused(_)) {
                    standing.evidence = None;
                }
                standing.problem = Some(problem);
            }
        }
    }

    /// Forgets a peer that came or went: another machine may have its key now.
    pub fn forget(&mut self, peer: &PeerKey) {
        self.peers.remove(peer);
    }

    /// May this operator have part in what makes keys and shares?
    ///
    /// # Errors
    /// A [`Refusal`] (S12) that says what is missing.
    pub fn admits(&self, peer: &PeerKey, now_ms: u64) -> Result<(), Refusal> {
        if self.verifier.is_none() {
            return Ok(());
        }
        let standing = self.peers.get(peer);
        if standing.and_then(|it| it.valid(now_ms)).is_some() {
            return Ok(());
        }
        let reason = match standing.and_then(|it| it.problem.as_ref()) {
            Some(problem) => problem.to_string(),
            None => "its attestation is not verified yet".to_owned(),
        };
        Err(Refusal::new(
            Rule::S12,
            format!("the roster requires an attestation of every operator: {reason}"),
        ))
    }

    /// Where a peer stands; `None` where nothing is required.
    pub fn show(&self, peer: &PeerKey, now_ms: u64) -> Option<Shown> {
        self.verifier.as_ref()?;
        let standing = self.peers.get(peer);
        let evidence = standing.and_then(|it| it.valid(now_ms));
        let problem = standing.and_then(|it| it.problem.as_ref());
        Some(Shown {
            until_ms: evidence.map(|evidence| evidence.expires_ms),
            problem: problem.map(ToString::to_string),
        })
    }
}

impl Standing {
    fn valid(&self, now_ms: u64) -> Option<&Evidence> {
        self.evidence
            .as_ref()
            .filter(|evidence| now_ms < evidence.expires_ms)
    }
}

/// Checks a peer's answer. Some milliseconds of arithmetic: beside the loop.
///
/// # Errors
/// [`Problem`].
pub fn judge(
    verifier: &dyn Verify,
    peer: &PeerKey,
    nonce: &Nonce,
    document: Option<&[u8]>,
    now_ms: u64,
) -> Result<Evidence, Problem> {
    let claim = Claim {
        key: peer.0,
        nonce: *nonce,
    };
    let document = document.ok_or(Problem::NoDocument)?;
    Ok(verifier.verify(document, &claim, now_ms)?)
}

#[cfg(test)]
mod tests {
    use attestation::nitro::{Expected, Image, Pcr};

    use super::*;

    const NOW: u64 = 1_750_000_000_000;
    const PEER: PeerKey = PeerKey([1; 32]);
    const NONCE: Nonce = [9; 32];

    fn requiring() -> Attested {
        let pcr = Pcr([1; 48]);
        let image = Image {
            pcr0: pcr,
            pcr1: pcr,
            pcr2: pcr,
            pcr8: None,
        };
        Attested::new(&Requirement::Nitro(Expected {
            max_age_s: 600,
            root: None,
            images: vec![image],
        }))
    }

    fn evidence(expires_ms: u64) -> Evidence {
        Evidence {
            module: "module".to_owned(),
            made_ms: NOW,
            expires_ms,
        }
    }

    fn ask(attested: &mut Attested, now_ms: u64) -> usize {
        attested
            .due(&BTreeSet::from([PEER]), now_ms, || NONCE)
            .len()
    }

    #[test]
    fn where_nothing_is_required_everybody_is_admitted_and_nobody_asked() {
        let mut attested = Attested::new(&Requirement::default());
        assert!(attested.admits(&PEER, NOW).is_ok());
        assert_eq!(ask(&mut attested, NOW), 0);
        assert_eq!(attested.show(&PEER, NOW), None);
    }

    #[test]
    fn a_peer_is_admitted_from_its_document_until_the_evidence_expires() {
        let mut attested = requiring();
        assert_eq!(attested.admits(&PEER, NOW).unwrap_err().rule, Rule::S12);
        assert_eq!(ask(&mut attested, NOW), 1);
        assert!(attested.admits(&PEER, NOW).is_err());
        attested.take(&PEER, &NONCE, Ok(evidence(NOW + 600_000)), NOW);
        assert!(attested.admits(&PEER, NOW + 599_999).is_ok());
        assert!(attested.admits(&PEER, NOW + 600_000).is_err());
        assert_eq!(attested.show(&PEER, NOW + 600_000).unwrap().until_ms, None);
    }

    #[test]
    fn a_peer_is_asked_again_before_its_evidence_expires_and_once_at_a_time() {
        let mut attested = requiring();
        assert_eq!(ask(&mut attested, NOW), 1);
        assert_eq!(ask(&mut attested, NOW + 1), 0);
        attested.take(&PEER, &NONCE, Ok(evidence(NOW + 600_000)), NOW);
        assert_eq!(ask(&mut attested, NOW + 299_999), 0);
        assert_eq!(ask(&mut attested, NOW + 300_000), 1);
        assert!(attested.admits(&PEER, NOW + 300_000).is_ok());
    }

    #[test]
    fn silence_leaves_evidence_alone_and_a_refused_document_ends_it() {
        let mut attested = requiring();
        ask(&mut attested, NOW);
        attested.take(&PEER, &NONCE, Ok(evidence(NOW + 600_000)), NOW);
        for (problem, admitted) in [
            (Problem::Silent, true),
            (Problem::NoDocument, true),
            (Problem::Refused(VerifyError::Debug), false),
        ] {
            let later = NOW + 400_000;
            attested.peers.get_mut(&PEER).unwrap().next_ms = later;
            assert_eq!(ask(&mut attested, later), 1);
            attested.take(&PEER, &NONCE, Err(problem), later);
            assert_eq!(attested.admits(&PEER, later).is_ok(), admitted);
            assert_eq!(ask(&mut attested, later + RETRY_MS - 1), 0);
        }
        let refusal = attested.admits(&PEER, NOW).unwrap_err();
        assert!(refusal.reason.contains("debug mode"), "{refusal}");
    }

    #[test]
    fn who_reconnects_is_asked_anew_and_an_old_answer_does_not_count() {
        let mut attested = requiring();
        ask(&mut attested, NOW);
        attested.take(&PEER, &NONCE, Ok(evidence(NOW + 600_000)), NOW);
        attested.forget(&PEER);
        assert!(attested.admits(&PEER, NOW).is_err());
        attested.take(&PEER, &NONCE, Ok(evidence(NOW + 600_000)), NOW);
        let asked = attested.due(&BTreeSet::from([PEER]), NOW, || [10; 32]);
        assert_eq!(asked, vec![(PEER, [10; 32])]);
        attested.take(&PEER, &NONCE, Ok(evidence(NOW + 600_000)), NOW);
        assert!(attested.admits(&PEER, NOW).is_err());
    }
}
