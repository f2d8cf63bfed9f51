//! The ceremony's state machine: one per participant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use frost_secp256k1_tr::keys::PublicKeyPackage;
use frost_secp256k1_tr::keys::dkg::{round1, round2};
use frost_secp256k1_tr::{Error as FrostError, Identifier};

use super::message::PackageDigest;
use super::scheme::Scheme;
use super::{
    Ceremony, CeremonyError, CeremonyId, Kind, Message, Round1Package, Round2Package, Seed,
};
use crate::{GroupInfo, GroupKey, KeyShare, SignerId, hash};

/// Digest of each participant's round-1 package.
type Seen = BTreeMap<SignerId, PackageDigest>;

/// What a participant has confirmed: transcript and key.
type Confirmed = ([u8; 32], GroupKey);

/// One participant's side of a ceremony. Holds at most one message per sender and kind, the first.
///
/// Everything secret in it follows from the [`Seed`] or was sent by others, who send it again when
/// asked: a machine is not stored, but made anew after a restart.
pub struct Machine {
    ceremony: Ceremony,
    id: CeremonyId,
    scheme: Scheme,
    /// Until round 2 is computed.
    secret: Option<round1::SecretPackage>,
    round2_secret: Option<round2::SecretPackage>,
    /// From me, for the others; released only after n equal echoes.
    round2_out: BTreeMap<SignerId, Round2Package>,
    /// These four include my own, round 2 aside.
    round1: BTreeMap<SignerId, Round1Package>,
    echoes: BTreeMap<SignerId, Seen>,
    round2: BTreeMap<SignerId, Round2Package>,
    confirms: BTreeMap<SignerId, Confirmed>,
    /// Senders whose round-2 package has been found good.
    good: BTreeSet<SignerId>,
    share: Option<KeyShare>,
    failure: Option<Failure>,
}

impl Machine {
    /// Starts the ceremony, or resumes it: the same seed and ceremony make the same messages.
    ///
    /// # Errors
    /// [`CeremonyError`] if there can be no such ceremony.
    pub fn new(ceremony: Ceremony, seed: &Seed) -> Result<Self, CeremonyError> {
        Self::start(ceremony, Scheme::Generate, seed)
    }

    /// [`Self::new`] for either scheme; [`crate::refresh`] starts the other.
    pub(crate) fn start(
        ceremony: Ceremony,
        scheme: Scheme,
        seed: &Seed,
    ) -> Result<Self, CeremonyError> {
        ceremony.check()?;
        let id = ceremony.id();
        let me = ceremony.me;
        let (threshold, signers) = (ceremony.threshold, ceremony.signers.len());
        let signers =
            u16::try_from(signers).map_err(|_| CeremonyError::Bounds { threshold, signers })?;
        let (secret, package) = scheme
            .part1(me, signers, threshold, seed.stream(&id, me))
            .map_err(CeremonyError::Frost)?;
        let package = Round1Package::new(package).map_err(CeremonyError::Frost)?;
        Ok(Self {
            ceremony,
            id,
            scheme,
            secret: Some(secret),
            round2_secret: None,
            round2_out: BTreeMap::new(),
            round1: BTreeMap::from([(me, package)]),
            echoes: BTreeMap::new(),
            round2: BTreeMap::new(),
            confirms: BTreeMap::new(),
            good: BTreeSet::new(),
            share: None,
            failure: None,
        })
    }

    /// Takes a message in. `from` is who the authenticated channel says sent it.
    ///
    /// A message that was here before is accepted and changes nothing. One that comes before its time
    /// is kept.
    ///
    /// # Errors
    /// [`Reject`]; the state is as it was, except that [`Reject::Stopped`] ends the ceremony.
    pub fn receive(&mut self, from: SignerId, message: Message) -> Result<(), Reject> {
        if let Some(failure) = &self.failure {
            return Err(Reject::Stopped(failure.clone()));
        }
        self.admit(from, &message)?;
        let kind = message.kind();
        let is_new = match message {
            Message::Round1 { package, .. } => keep(&mut self.round1, from, package, kind),
            Message::Echo { seen, .. } => keep(&mut self.echoes, from, seen, kind),
            Message::Round2 { package, .. } => keep(&mut self.round2, from, package, kind),
            Message::Confirm {
                transcript,
                group_key,
                ..
            } => keep(&mut self.confirms, from, (transcript, group_key), kind),
        }?;
        if is_new {
            self.advance().map_err(|failure| {
                self.failure = Some(failure.clone());
                Reject::Stopped(failure)
            })?;
        }
        Ok(())
    }

    /// What to answer `peer` when it asks: everything it may have by now, in order. Empty for
    /// anybody else than the other participants. After a failure only what shows who failed.
    ///
    /// Contains a secret share for `peer`: only for a channel that is encrypted to it (S10).
    pub fn messages_for(&self, peer: SignerId) -> Vec<Message> {
        let me = self.ceremony.me;
        let ceremony = self.id;
        if peer == me || !self.ceremony.signers.contains(&peer) {
            return Vec::new();
        }
        let round1 = self.round1.get(&me).cloned();
        let echo = self.echoes.get(&me).cloned();
        let mut messages: Vec<_> = round1
            .map(|package| Message::Round1 { ceremony, package })
            .into_iter()
            .chain(echo.map(|seen| Message::Echo { ceremony, seen }))
            .collect();
        if self.failure.is_none() && self.all_echoed() {
            let package = self.round2_out.get(&peer).cloned();
            messages.extend(package.map(|package| Message::Round2 {
                ceremony,
                to: peer,
                package,
            }));
            let confirm = self.confirms.get(&me).copied();
            messages.extend(confirm.map(|(transcript, group_key)| Message::Confirm {
                ceremony,
                transcript,
                group_key,
            }));
        }
        messages
    }

    /// Who is still missing at which stage.
    pub fn progress(&self) -> Progress {
        let me = self.ceremony.me;
        let missing = |have: &dyn Fn(&SignerId) -> bool| -> BTreeSet<SignerId> {
            self.ceremony
                .signers
                .iter()
                .filter(|id| !have(id))
                .copied()
                .collect()
        };
        let (stage, missing) = if self.failure.is_some() {
            (Stage::Stopped, BTreeSet::new())
        } else if self.round1.len() < self.ceremony.signers.len() {
            (Stage::Round1, missing(&|id| self.round1.contains_key(id)))
        } else if !self.all_echoed() {
            (Stage::Echo, missing(&|id| self.echoes.contains_key(id)))
        } else if self.share.is_none() {
            (
                Stage::Round2,
                missing(&|id| *id == me || self.round2.contains_key(id)),
            )
        } else if self.finished().is_none() {
            (
                Stage::Confirm,
                missing(&|id| self.confirms.contains_key(id)),
            )
        } else {
            (Stage::Finished, BTreeSet::new())
        };
        Progress {
            stage,
            missing,
            failure: self.failure.clone(),
        }
    }

    /// This participant's share, once all n have confirmed the same transcript and key.
    pub fn finished(&self) -> Option<&KeyShare> {
        let all = self.confirms.len() == self.ceremony.signers.len();
        self.share
            .as_ref()
            .filter(|_| all && self.failure.is_none())
    }

    /// What can be said of a message before looking at the others.
    fn admit(&self, from: SignerId, message: &Message) -> Result<(), Reject> {
        if from == self.ceremony.me || !self.ceremony.signers.contains(&from) {
            return Err(Reject::Stranger(from));
        }
        if message.ceremony() != self.id {
            return Err(Reject::OtherCeremony {
                from,
                ceremony: message.ceremony(),
            });
        }
        match message {
            Message::Round1 { package, .. }
                if package.coefficients()
                    != Some(self.scheme.coefficients(self.ceremony.threshold)) =>
            {
                Err(Reject::Malformed {
                    from,
                    kind: Kind::Round1,
                })
            }
            Message::Echo { seen, .. } if !seen.keys().eq(&self.ceremony.signers) => {
                Err(Reject::Malformed {
                    from,
                    kind: Kind::Echo,
                })
            }
            Message::Round2 { to, .. } if *to != self.ceremony.me => {
                Err(Reject::Astray { from, to: *to })
            }
            _ => Ok(()),
        }
    }

    /// Goes as far as the messages allow.
    fn advance(&mut self) -> Result<(), Failure> {
        let everybody = self.ceremony.signers.len();
        if self.round1.len() == everybody && self.secret.is_some() {
            self.prepare_round2()?;
        }
        self.compare_echoes()?;
        if self.all_echoed() && self.share.is_none() {
            self.check_round2()?;
            if self.good.len().saturating_add(1) == everybody {
                self.make_share()?;
            }
        }
        self.compare_confirms()
    }

    /// All round-1 packages are here: checks them, computes what to send in round 2, and echoes.
    fn prepare_round2(&mut self) -> Result<(), Failure> {
        let Some(secret) = self.secret.take() else {
            return Ok(());
        };
        let (secret, packages) = self
            .scheme
            .part2(secret, &self.others_round1())
            .map_err(Failure::from)?;
        self.round2_secret = Some(secret);
        self.round2_out = packages
            .into_iter()
            .map(|(id, package)| (SignerId::from(id), Round2Package::new(package)))
            .collect();
        let seen = self
            .round1
            .iter()
            .map(|(id, p)| (*id, p.digest(&self.id, *id)))
            .collect();
        self.echoes.insert(self.ceremony.me, seen);
        Ok(())
    }

    /// Compares each echo with mine, once I have one.
    fn compare_echoes(&self) -> Result<(), Failure> {
        let Some(mine) = self.echoes.get(&self.ceremony.me) else {
            return Ok(());
        };
        for (reporter, theirs) in &self.echoes {
            let about: BTreeSet<_> = mine
                .iter()
                .filter(|(id, digest)| theirs.get(*id) != Some(*digest))
                .map(|(id, _)| *id)
                .collect();
            if !about.is_empty() {
                let me = self.ceremony.me;
                return Err(Failure::Dispute {
                    me,
                    reporter: *reporter,
                    about,
                });
            }
        }
        Ok(())
    }

    /// All n echoes are here; that they are equal, [`Self::compare_echoes`] has seen to.
    fn all_echoed(&self) -> bool {
        self.echoes.len() == self.ceremony.signers.len()
    }

    /// Checks each round-2 package against its sender's commitments as soon as it is here.
    fn check_round2(&mut self) -> Result<(), Failure> {
        let mut culprits = BTreeSet::new();
        for (from, package) in &self.round2 {
            if self.good.contains(from) {
                continue;
            }
            let Some(round1) = self.round1.get(from) else {
                continue;
            };
            if self.scheme.fits(self.ceremony.me, round1, package) {
                self.good.insert(*from);
            } else {
                culprits.insert(*from);
            }
        }
        if culprits.is_empty() {
            Ok(())
        } else {
            Err(Failure::BadShare { culprits })
        }
    }

    /// All round-2 packages are good: adds them up, and confirms.
    fn make_share(&mut self) -> Result<(), Failure> {
        let Some(secret) = &self.round2_secret else {
            return Ok(());
        };
        let round2 = self
            .round2
            .iter()
            .map(|(id, p)| (id.frost(), p.frost().clone()))
            .collect();
        let (key, public) = self
            .scheme
            .part3(secret, &self.others_round1(), &round2)
            .map_err(Failure::from)?;
        let transcript = self.transcript(&public)?;
        let group = GroupInfo::new(
            self.scheme.epoch(),
            self.ceremony.threshold,
            *public.verifying_key(),
            public
                .verifying_shares()
                .iter()
                .map(|(id, y)| (SignerId::from(*id), *y))
                .collect(),
            transcript,
        )
        .map_err(|error| Failure::Unusable(error.to_string()))?;
        let share = KeyShare::new(self.ceremony.me, *key.signing_share(), group)
            .map_err(|error| Failure::Unusable(error.to_string()))?;
        let confirmed = (transcript, share.group().group_key());
        self.confirms.insert(self.ceremony.me, confirmed);
        self.share = Some(share);
        self.round2_secret = None;
        Ok(())
    }

    /// Hash of all that was public: ceremony, round-1 packages, key and verifying shares.
    fn transcript(&self, public: &PublicKeyPackage) -> Result<[u8; 32], Failure> {
        let mut bytes = Vec::new();
        for (id, package) in &self.round1 {
            bytes.extend(id.to_bytes());
            bytes.extend(package.digest(&self.id, *id).0);
        }
        bytes.extend(public.verifying_key().serialize().map_err(Failure::from)?);
        for (id, share) in public.verifying_shares() {
            bytes.extend(id.serialize());
            bytes.extend(share.serialize().map_err(Failure::from)?);
        }
        Ok(hash::tagged(
            "drawbridge/dkg/transcript",
            [&self.id.0[..], &bytes],
        ))
    }

    /// Compares each confirmation with mine, once I have one.
    fn compare_confirms(&self) -> Result<(), Failure> {
        let Some(mine) = self.confirms.get(&self.ceremony.me) else {
            return Ok(());
        };
        let culprits: BTreeSet<_> = self
            .confirms
            .iter()
            .filter(|(_, theirs)| *theirs != mine)
            .map(|(id, _)| *id)
            .collect();
        if culprits.is_empty() {
            Ok(())
        } else {
            Err(Failure::OtherKey { culprits })
        }
    }

    fn others_round1(&self) -> BTreeMap<Identifier, round1::Package> {
        self.round1
            .iter()
            .filter(|(id, _)| **id != self.ceremony.me)
            .map(|(id, package)| (id.frost(), package.frost().clone()))
            .collect()
    }
}

/// Keeps the first message of a sender and kind; says whether this is it.
fn keep<T: PartialEq>(
    kept: &mut BTreeMap<SignerId, T>,
    from: SignerId,
    message: T,
    kind: Kind,
) -> Result<bool, Reject> {
    match kept.get(&from) {
        Some(first) if *first == message => Ok(false),
        Some(_) => Err(Reject::Equivocation {
            culprit: from,
            kind,
        }),
        None => {
            kept.insert(from, message);
            Ok(true)
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("ceremony", &self.ceremony)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

/// Where the ceremony stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being waited for.
    pub stage: Stage,
    /// From whom it has not come yet.
    pub missing: BTreeSet<SignerId>,
    /// Why it has stopped, if it has.
    pub failure: Option<Failure>,
}

/// What a ceremony waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Round-1 packages.
    Round1,
    /// Echoes.
    Echo,
    /// Round-2 packages.
    Round2,
    /// Confirmations.
    Confirm,
    /// Nothing: there is a key.
    Finished,
    /// Nothing: there will be no key.
    Stopped,
}

/// Why a message was not taken. Signed messages of the named sender are the evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The sender is not one of the other participants.
    #[error("{0} is not one of the other participants")]
    Stranger(SignerId),
    /// The message belongs to a ceremony with another context, threshold or roster.
    #[error("{from} is in another ceremony, {ceremony:?}")]
    OtherCeremony {
        /// The sender.
        from: SignerId,
        /// What its message names.
        ceremony: CeremonyId,
    },
    /// A round-2 package for somebody else.
    #[error("{from} sent a package that is for {to}")]
    Astray {
        /// The sender.
        from: SignerId,
        /// Whom it names.
        to: SignerId,
    },
    /// The message does not fit this ceremony: a polynomial of another degree, an echo of other
    /// participants.
    #[error("the {kind} of {from} does not fit the ceremony")]
    Malformed {
        /// The culprit.
        from: SignerId,
        /// Which message.
        kind: Kind,
    },
    /// The sender has said something else before. The first message stands.
    #[error("{culprit} has sent two different messages: {kind}")]
    Equivocation {
        /// The culprit.
        culprit: SignerId,
        /// Which message.
        kind: Kind,
    },
    /// The ceremony is over without a key.
    #[error("the ceremony has stopped")]
    Stopped(#[source] Failure),
}

/// Why a ceremony ended without a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A participant does not know the secret that it has committed to (a rogue key).
    #[error("the proof of knowledge of {culprit} is wrong")]
    ProofOfKnowledge {
        /// The culprit.
        culprit: SignerId,
    },
    /// A participant has seen other round-1 packages than this one.
    #[error("{reporter} has other round-1 packages than this participant from {about:?}")]
    Dispute {
        /// This participant.
        me: SignerId,
        /// Whose echo differs.
        reporter: SignerId,
        /// Whose packages it differs about.
        about: BTreeSet<SignerId>,
    },
    /// Round-2 packages that do not fit their senders' commitments.
    #[error("the secret shares of {culprits:?} do not fit their commitments")]
    BadShare {
        /// All of them that had come.
        culprits: BTreeSet<SignerId>,
    },
    /// Confirmations of another transcript or key, after equal echoes.
    #[error("{culprits:?} confirmed another transcript or key")]
    OtherKey {
        /// All of them that had come.
        culprits: BTreeSet<SignerId>,
    },
    /// The sum of the participants' keys is unusable, which nobody can bring about alone.
    #[error("no usable key came of it: {0}")]
    Unusable(String),
}

impl Failure {
    /// Those who must be at fault, or, where the messages leave two possibilities, both.
    ///
    /// If X's echo differs from mine about Y, then Y said two things or X lies; the round-1 message
    /// that Y signed for X tells which. X alone is to blame if it differs about itself or about me.
    pub fn culprits(&self) -> BTreeSet<SignerId> {
        match self {
            Self::ProofOfKnowledge { culprit } => BTreeSet::from([*culprit]),
            Self::Dispute {
                me,
                reporter,
                about,
            } => {
                let mut culprits = BTreeSet::from([*reporter]);
                if !about.contains(me) {
                    culprits.extend(about);
                }
                culprits
            }
            Self::BadShare { culprits } | Self::OtherKey { culprits } => culprits.clone(),
            Self::Unusable(_) => BTreeSet::new(),
        }
    }
}

impl From<FrostError> for Failure {
    fn from(error: FrostError) -> Self {
        match error {
            FrostError::InvalidProofOfKnowledge { culprit } => Self::ProofOfKnowledge {
                culprit: SignerId::from(culprit),
            },
            FrostError::InvalidSecretShare {
                culprit: Some(culprit),
            } => Self::BadShare {
                culprits: BTreeSet::from([SignerId::from(culprit)]),
            },
            other => Self::Unusable(other.to_string()),
        }
    }
}
