//! Key generation: carries the messages of `threshold::dkg` between operators, keeps the seed sealed until the
//! genesis certificate shows that everybody holds a share, and writes the share down.
//!
//! ```text
//! seed on disk --> Machine <--asks every operator that it misses something from, a few times a second
//!                    | finished: all n confirmed one transcript
//!                    v
//!               share on disk --> KeySafe            seed deleted <-- genesis certificate of all n
//! ```

use std::{collections::BTreeSet, sync::Arc};

use protocol::{
    hash,
    identity::{Identity, PeerKey, Signed},
    message::{DKG_DOMAIN, Refusal, Rule},
    parameters::Parameters,
    roster::Roster,
};
use rand::rngs::OsRng;
use threshold::{
    KeyShare, ShareError, SignerId,
    dkg::{Ceremony, CeremonyError, Machine, Message, Progress, Reject, Seed},
};

use crate::keys::{KeyFileError, KeyFiles};

/// Messages in one answer: one of each kind.
const MAX_MESSAGES: usize = 4;

/// Why key generation can't go on.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// This node's identity is not an operator's.
    #[error("the identity {0} is not among the roster's operators")]
    NotAnOperator(PeerKey),
    /// A key file.
    #[error("a key file can't be used")]
    Keys(#[from] KeyFileError),
    /// The roster makes no ceremony.
    #[error("key generation can't start")]
    Ceremony(#[from] CeremonyError),
    /// The share was made for another roster or threshold.
    #[error("the key share on disk is not of this roster: {0}")]
    OtherRoster(&'static str),
    /// The share does not read back.
    #[error("the key share does not read back")]
    Share(#[from] ShareError),
}

/// What a polynomial is bound to: hash(roster, t, parameters).
pub fn context(roster: &Roster, parameters: &Parameters) -> [u8; 32] {
    hash::tagged(
        "drawbridge/dkg-context",
        &[
            &roster.hash(),
            &roster.threshold.to_le_bytes(),
            &parameters.hash(),
        ],
    )
}

/// This operator's part in the ceremony.
pub struct Generation {
    keys: Arc<KeyFiles>,
    roster: Roster,
    identity: Arc<Identity>,
    context: [u8; 32],
    /// `None` once the genesis certificate is known, or the share is lost.
    machine: Option<Machine>,
    has_share: bool,
}

impl Generation {
    /// Starts or resumes the ceremony, and gives the share if there is one on disk. If the key is known to exist
    /// (there is a genesis certificate, the roster says that this operator's identity was replaced, or a repair was asked
    /// for), the ceremony is over: without a share none is begun.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn open(
        keys: Arc<KeyFiles>,
        roster: &Roster,
        parameters: &Parameters,
        identity: Arc<Identity>,
        is_over: bool,
    ) -> Result<(Self, Option<KeyShare>), GenerateError> {
        let own = identity.public();
        let me = roster
            .signer(&own)
            .ok_or(GenerateError::NotAnOperator(own))?;
        let context = context(roster, parameters);
        let share = keys.load_share()?;
        if let Some(share) = &share {
            check_share(share, me, roster)?;
        }
        let ceremony = Ceremony {
            me,
            signers: roster.signers(),
            threshold: roster.threshold,
            context,
        };
        let id = ceremony.id();
        let is_over = is_over
            || roster
                .operator(me)
                .is_some_and(|own| own.founding_key.is_some());
        let machine = match keys.load_seed(&id)? {
            Some(_) if is_over => {
                keys.delete_seed()?;
                None
            }
            Some(seed) => Some(Machine::new(ceremony, &seed)?),
            None if is_over || share.is_some() => None,
            None => {
                let seed = Seed::random(&mut OsRng);
                keys.save_seed(&id, &seed)?;
                Some(Machine::new(ceremony, &seed)?)
            }
        };
        let has_share = share.is_some();
        Ok((
            Self {
                keys,
                roster: roster.clone(),
                identity,
                context,
                machine,
                has_share,
            },
            share,
        ))
    }

    /// The administrator knows that the share is lost: a ceremony that waits for the others will not come.
    ///
    /// # Errors
    /// [`GenerateError::Keys`] when the seed can't be deleted.
    pub fn give_up(&mut self) -> Result<(), GenerateError> {
        self.machine = None;
        Ok(self.keys.delete_seed()?)
    }

    /// The ceremony's context, for questions to others.
    pub fn context(&self) -> [u8; 32] {
        self.context
    }

    /// Where the ceremony stands; `None` when it is over.
    pub fn progress(&self) -> Option<Progress> {
        self.machine.as_ref().map(Machine::progress)
    }

    /// Whom to ask next: those from whom something is missing.
    pub fn wanted(&self) -> BTreeSet<PeerKey> {
        let missing = self
            .progress()
            .map(|progress| progress.missing)
            .unwrap_or_default();
        let own = self.identity.public();
        missing
            .into_iter()
            .filter_map(|signer| self.roster.operator(signer))
            .map(|member| member.key)
            .filter(|key| *key != own)
            .collect()
    }

    /// The answer to an operator that asks. It may hold a secret for that operator, so it must go to nobody
    /// else.
    ///
    /// # Errors
    /// A [`Refusal`] for another ceremony, or for anybody who is not in this one.
    pub fn answer(
        &self,
        peer: &PeerKey,
        context: &[u8; 32],
    ) -> Result<Vec<Signed<Message>>, Refusal> {
        let signer = self
            .roster
            .signer(peer)
            .ok_or_else(|| Refusal::new(Rule::S12, "key generation is for operators"))?;
        if *context != self.context {
            return Err(Refusal::new(
                Rule::S12,
                "this operator has another roster, threshold or set of vault parameters",
            ));
        }
        let machine = self.machine.as_ref().ok_or_else(|| {
            Refusal::new(
                Rule::S12,
                "the key exists; an operator that has lost its share restores a backup, or repairs it",
            )
        })?;
        Ok(machine
            .messages_for(signer)
            .into_iter()
            .map(|message| self.identity.sign(DKG_DOMAIN, message))
            .collect())
    }

    /// Takes what `from` has answered. Gives the share when that finished the ceremony; it is on disk then.
    ///
    /// # Errors
    /// [`GenerateError`] when the share can't be written. Bad messages are logged, and change nothing.
    pub fn take(
        &mut self,
        from: &PeerKey,
        messages: &[Signed<Message>],
    ) -> Result<Option<KeyShare>, GenerateError> {
        let (Some(machine), Some(signer)) = (&mut self.machine, self.roster.signer(from)) else {
            return Ok(None);
        };
        for message in messages.iter().take(MAX_MESSAGES) {
            match message.verify(DKG_DOMAIN) {
                Ok((by, message)) if by == *from => {
                    match machine.receive(signer, message.clone()) {
                        Ok(()) => {}
                        Err(Reject::Stopped(failure)) => {
                            tracing::error!(%from, %failure, "key generation has stopped");
                        }
                        Err(reject) => {
                            tracing::warn!(%from, %reject, "key generation message refused")
                        }
                    }
                }
                _ => tracing::warn!(%from, "key generation message with another's signature"),
            }
        }
        let Some(share) = machine.finished().filter(|_| !self.has_share) else {
            return Ok(None);
        };
        self.keys.save_share(share)?;
        self.has_share = true;
        Ok(Some(KeyShare::from_secret_bytes(
            &share.to_secret_bytes()?,
        )?))
    }

    /// Ends the ceremony: a genesis certificate of all n exists, so everybody holds a share.
    ///
    /// # Errors
    /// [`GenerateError::Keys`] when the seed can't be deleted.
    pub fn finish(&mut self) -> Result<(), GenerateError> {
        if self.has_share && self.machine.take().is_some() {
            self.keys.delete_seed()?;
        }
        Ok(())
    }
}

fn check_share(share: &KeyShare, me: SignerId, roster: &Roster) -> Result<(), GenerateError> {
    let group = share.group();
    for (same, what) in [
        (share.signer() == me, "it belongs to another operator"),
        (
            group.threshold() == roster.threshold,
            "the threshold differs",
        ),
        (
            group.signers().collect::<BTreeSet<_>>() == roster.signers(),
            "the operators differ",
        ),
    ] {
        if !same {
            return Err(GenerateError::OtherRoster(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use threshold::seal::Cost;
    use zeroize::Zeroizing;

    use super::*;
    use crate::testing;

    struct Node {
        folder: tempfile::TempDir,
        identity: Arc<Identity>,
        generation: Generation,
        share: Option<KeyShare>,
    }

    fn keys(folder: &std::path::Path) -> KeyFiles {
        KeyFiles::new(
            folder.to_owned(),
            Zeroizing::new("correct horse".to_owned()),
            Cost::Fast,
        )
    }

    fn open(
        folder: &std::path::Path,
        identity: &Arc<Identity>,
        is_over: bool,
    ) -> (Generation, Option<KeyShare>) {
        Generation::open(
            Arc::new(keys(folder)),
            testing::roster(),
            testing::parameters(),
            identity.clone(),
            is_over,
        )
        .unwrap()
    }

    fn nodes() -> Vec<Node> {
        (0..3)
            .map(|index| {
                let folder = tempfile::tempdir().unwrap();
                let identity = Arc::new(testing::identity(index));
                let (generation, share) = open(folder.path(), &identity, false);
                Node {
                    folder,
                    identity,
                    generation,
                    share,
                }
            })
            .collect()
    }

    /// Everybody asks everybody whom it misses something from, once.
    fn round(nodes: &mut [Node]) {
        for asking in 0..nodes.len() {
            for wanted in nodes[asking].generation.wanted() {
                let own = nodes[asking].identity.public();
                let Some(peer) = nodes.iter().find(|node| node.identity.public() == wanted) else {
                    continue;
                };
                let answer = peer
                    .generation
                    .answer(&own, &peer.generation.context())
                    .unwrap();
                let share = nodes[asking].generation.take(&wanted, &answer).unwrap();
                if share.is_some() {
                    nodes[asking].share = share;
                }
            }
        }
    }

    #[test]
    fn all_come_to_one_key_though_one_restarts_in_the_middle() {
        let mut nodes = nodes();
        round(&mut nodes);
        round(&mut nodes);
        // Forgets everything but the seed.
        let (generation, share) = open(nodes[1].folder.path(), &nodes[1].identity, false);
        assert!(share.is_none());
        nodes[1].generation = generation;
        for _ in 0..6 {
            round(&mut nodes);
        }
        let keys: BTreeSet<_> = nodes
            .iter()
            .map(|node| node.share.as_ref().unwrap().group().group_key())
            .collect();
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn a_finished_node_answers_after_a_restart_until_there_is_a_certificate() {
        let mut nodes = nodes();
        for _ in 0..6 {
            round(&mut nodes);
        }
        let made = nodes[0].share.as_ref().unwrap().group().clone();
        let (generation, share) = open(nodes[0].folder.path(), &nodes[0].identity, false);
        assert_eq!(*share.unwrap().group(), made);
        nodes[0].generation = generation;
        // It asks again for what it needs to answer with.
        assert_eq!(nodes[0].generation.wanted().len(), 2);
        for _ in 0..4 {
            round(&mut nodes);
        }
        let other = nodes[1].identity.public();
        let context = nodes[0].generation.context();
        assert_eq!(
            nodes[0].generation.answer(&other, &context).unwrap().len(),
            4
        );

        nodes[0].generation.finish().unwrap();
        let refusal = nodes[0].generation.answer(&other, &context).unwrap_err();
        assert!(refusal.reason.contains("repairs it"), "{refusal}");
        let (generation, share) = open(nodes[0].folder.path(), &nodes[0].identity, true);
        assert!(share.is_some() && generation.progress().is_none());
    }

    #[test]
    fn a_lost_share_is_no_reason_for_a_new_key() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Arc::new(testing::identity(0));
        let (generation, share) = open(folder.path(), &identity, true);
        assert!(share.is_none() && generation.progress().is_none());
        assert!(generation.wanted().is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_replaced_identity_joins_no_key_generation() {
        let folder = tempfile::tempdir().unwrap();
        let mut roster = testing::roster().clone();
        let identity = Arc::new(Identity::from_secret(&[99; 32]));
        roster.operators[0].founding_key = Some(roster.operators[0].key);
        roster.operators[0].key = identity.public();
        assert_eq!(roster.hash(), testing::roster().hash());
        let (generation, share) = Generation::open(
            Arc::new(keys(folder.path())),
            &roster,
            testing::parameters(),
            identity,
            false,
        )
        .unwrap();
        assert!(share.is_none() && generation.progress().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_node_restarted_with_another_roster_does_not_start_and_keeps_its_seed() {
        let mut nodes = nodes();
        round(&mut nodes);
        let folder = nodes[1].folder.path();
        let seed = folder.join("dkg-seed.sealed");
        let before = std::fs::read(&seed).unwrap();
        let mut roster = testing::roster().clone();
        roster.threshold = 3;
        let opened = Generation::open(
            Arc::new(keys(folder)),
            &roster,
            testing::parameters(),
            nodes[1].identity.clone(),
            false,
        );
        assert!(matches!(
            opened.err(),
            Some(GenerateError::Keys(KeyFileError::OtherCeremony(_)))
        ));
        assert_eq!(std::fs::read(&seed).unwrap(), before);
        // With the right roster it goes on.
        let (generation, _) = open(folder, &nodes[1].identity, false);
        nodes[1].generation = generation;
        for _ in 0..6 {
            round(&mut nodes);
        }
        assert!(nodes.iter().all(|node| node.share.is_some()));
    }

    #[test]
    fn two_polynomials_for_two_peers_end_the_ceremony_without_a_share_and_name_the_author() {
        let mut nodes = nodes();
        // 2 shows 0 another polynomial than 1: it has two folders.
        let second = tempfile::tempdir().unwrap();
        let identity = nodes[2].identity.clone();
        let (other_face, _) = open(second.path(), &identity, false);
        let liar = identity.public();
        let (zero, context) = (nodes[0].identity.public(), nodes[0].generation.context());
        let lie = other_face.answer(&zero, &context).unwrap();
        nodes[0].generation.take(&liar, &lie).unwrap();
        for _ in 0..6 {
            round(&mut nodes);
        }
        for node in &nodes[..2] {
            assert!(node.share.is_none());
            let failure = node.generation.progress().unwrap().failure.unwrap();
            let culprit = testing::roster().signer(&liar).unwrap();
            assert!(failure.culprits().contains(&culprit), "{failure}");
            assert!(!node.folder.path().join("key-share.sealed").exists());
            assert!(node.generation.wanted().is_empty());
        }
    }

    #[test]
    fn messages_of_another_vaults_key_generation_change_nothing() {
        let mut nodes = nodes();
        let mut parameters = testing::parameters().clone();
        parameters.deposit_confirmations += 1;
        let folder = tempfile::tempdir().unwrap();
        let (elsewhere, _) = Generation::open(
            Arc::new(keys(folder.path())),
            testing::roster(),
            &parameters,
            nodes[1].identity.clone(),
            false,
        )
        .unwrap();
        let (zero, from) = (nodes[0].identity.public(), nodes[1].identity.public());
        let messages = elsewhere.answer(&zero, &elsewhere.context()).unwrap();
        assert!(!messages.is_empty());
        nodes[0].generation.take(&from, &messages).unwrap();
        assert!(nodes[0].generation.wanted().contains(&from));
        for _ in 0..6 {
            round(&mut nodes);
        }
        assert!(nodes.iter().all(|node| node.share.is_some()));
    }

    #[test]
    fn strangers_and_other_ceremonies_get_no_answer() {
        let nodes = nodes();
        let generation = &nodes[0].generation;
        let stranger = Identity::from_secret(&[99; 32]).public();
        assert_eq!(
            generation
                .answer(&stranger, &generation.context())
                .unwrap_err()
                .rule,
            Rule::S12
        );
        let operator = nodes[1].identity.public();
        assert_eq!(
            generation.answer(&operator, &[0; 32]).unwrap_err().rule,
            Rule::S12
        );
    }

    #[test]
    fn a_message_that_another_has_signed_changes_nothing() {
        let mut nodes = nodes();
        let (first, own) = (nodes[1].identity.public(), nodes[0].identity.public());
        let answer = nodes[1]
            .generation
            .answer(&own, &nodes[1].generation.context())
            .unwrap();
        let other = nodes[2].identity.public();
        nodes[0].generation.take(&other, &answer).unwrap();
        assert_eq!(nodes[0].generation.wanted().len(), 2);
        nodes[0].generation.take(&first, &answer).unwrap();
        assert_eq!(nodes[0].generation.wanted(), BTreeSet::from([other]));
    }
}
