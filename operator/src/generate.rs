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
    /// The vault exists, and this operator's share of it does not.
    #[error(
        "the vault has its genesis, but the key share is not on disk: restore it from a backup"
    )]
    ShareLost,
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
    /// `None` once the genesis certificate is known.
    machine: Option<Machine>,
    has_share: bool,
}

impl Generation {
    /// Starts or resumes the ceremony, and gives the share if there is one on disk. With a certificate the
    /// ceremony is over, and a share must be there.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub fn open(
        keys: Arc<KeyFiles>,
        roster: &Roster,
        parameters: &Parameters,
        identity: Arc<Identity>,
        has_certificate: bool,
    ) -> Result<(Self, Option<KeyShare>), GenerateError> {
        let own = identity.public();
        let me = roster
            .signer(&own)
            .ok_or(GenerateError::NotAnOperator(own))?;
        let context = context(roster, parameters);
        let share = keys.load_share()?;
        if share.is_none() && has_certificate {
            return Err(GenerateError::ShareLost);
        }
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
        let machine = match keys.load_seed(&id)? {
            Some(_) if has_certificate => {
                keys.delete_seed()?;
                None
            }
            Some(seed) => Some(Machine::new(ceremony, &seed)?),
            None if share.is_some() => None,
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
        let messages = self
            .machine
            .iter()
            .flat_map(|machine| machine.messages_for(signer));
        Ok(messages
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

    fn open(
        folder: &std::path::Path,
        identity: &Arc<Identity>,
        has_certificate: bool,
    ) -> (Generation, Option<KeyShare>) {
        let keys = KeyFiles::new(
            folder.to_owned(),
            Zeroizing::new("correct horse".to_owned()),
            Cost::Fast,
        );
        Generation::open(
            Arc::new(keys),
            testing::roster(),
            testing::parameters(),
            identity.clone(),
            has_certificate,
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
        assert!(
            nodes[0]
                .generation
                .answer(&other, &context)
                .unwrap()
                .is_empty()
        );
        let (generation, share) = open(nodes[0].folder.path(), &nodes[0].identity, true);
        assert!(share.is_some() && generation.progress().is_none());
    }

    #[test]
    fn a_lost_share_is_an_error_and_no_reason_for_a_new_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFiles::new(
            folder.path().to_owned(),
            Zeroizing::new("correct horse".to_owned()),
            Cost::Fast,
        );
        let identity = Arc::new(testing::identity(0));
        let opened = Generation::open(
            Arc::new(keys),
            testing::roster(),
            testing::parameters(),
            identity,
            true,
        );
        assert!(matches!(opened, Err(GenerateError::ShareLost)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
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
