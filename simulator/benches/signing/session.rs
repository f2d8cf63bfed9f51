//! One signing session on [`hosts`](crate::hosts): the coordinator is host 0, the operators follow. They do what the
//! nodes do between a proposal and the signatures, except for what judges and stores a batch.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use protocol::{
    blame::{ROUND2_DOMAIN, Round2, Statement},
    identity::{Identity, PeerKey},
    message::{Answer, Ask, Gossip, POOL_PAIRS, SessionId, Subject, decode, encode},
    reputation::Standing,
    signer::{self, State},
    signing::{Effect, Frost, Input, Session},
};
use rand::rngs::OsRng;
use simulator::{Group, batch, deal, verified};
use threshold::{
    KeyShare, SignerId,
    sign::{self, Commitments, Message, Nonces, Package, Tweak},
};

use crate::hosts::{Hosts, Sent};

const COORDINATOR: PeerKey = PeerKey([0xC0; 32]);
/// As in the node: how long a second attempt is held back, at least and at most, while nothing is wrong with the first.
const WAIT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);

/// The sighash of an input.
pub fn digest(input: usize) -> [u8; 32] {
    let mut digest = [0xD1; 32];
    digest[..8].copy_from_slice(&input.to_le_bytes());
    digest
}

/// The script tree of the output that an input spends.
pub fn root(input: usize) -> [u8; 32] {
    let mut root = digest(input);
    root[31] = 0x5A;
    root
}

/// Which of the signers that are asked fall silent.
pub enum Dropouts {
    Nobody,
    /// These, whenever they are asked.
    Fixed(BTreeSet<usize>),
    /// One in each of so many attempts, the lowest of those asked, and from then on.
    OneEach {
        attempts: u32,
        gone: BTreeMap<u32, usize>,
    },
}

/// Coordinator and operators.
pub struct SigningHosts {
    subject: Subject,
    id: SessionId,
    session: Session<Frost>,
    members: Vec<(SignerId, PeerKey)>,
    operators: Vec<Operator>,
    dropouts: Dropouts,
    /// The attempt that each operator was asked for last.
    asked: BTreeMap<usize, u32>,
    /// When it last sent a sign request.
    asked_at: Duration,
    alarm: Option<Duration>,
    attempts: Option<u32>,
}

struct Operator {
    share: KeyShare,
    identity: Identity,
    state: State,
    messages: Vec<Message>,
    held: Option<(Nonces, Commitments)>,
    /// What it has handed out ahead of time, and not more than the session uses of it.
    entry: Option<Nonces>,
}

/// Keys of a group, with which sessions can be begun.
pub struct Keys {
    group: Group,
    shares: Vec<Vec<u8>>,
}

impl Keys {
    pub fn new(group: Group) -> Self {
        let shares = deal(&group).unwrap();
        let shares = shares
            .iter()
            .map(|share| share.to_secret_bytes().unwrap().to_vec());
        Self {
            group,
            shares: shares.collect(),
        }
    }

    /// A session over so many inputs.
    pub fn session(&self, inputs: usize, dropouts: Dropouts) -> SigningHosts {
        let (subject, head) = batch();
        let messages: Vec<Message> = (0..inputs)
            .map(|input| Message {
                digest: digest(input),
                tweak: Tweak::KeyPath(Some(root(input))),
            })
            .collect();
        let members = self.group.members().to_vec();
        let mut identities: Vec<Identity> = self.group.identities().collect();
        identities.sort_by_key(|identity| SignerId::derive(&identity.public().0));
        let shares = self
            .shares
            .iter()
            .map(|bytes| KeyShare::from_secret_bytes(bytes).unwrap());
        let operators: Vec<Operator> = shares
            .zip(identities)
            .map(|(share, identity)| {
                let mut state = State::default();
                let chain = signer::Input::Chain {
                    head: Some(head),
                    height: 100,
                };
                state.step(0, chain).unwrap();
                Operator {
                    share,
                    identity,
                    state,
                    messages: messages.clone(),
                    held: None,
                    entry: None,
                }
            })
            .collect();
        let scheme = Frost::new(operators[0].share.group().clone(), messages);
        let needed = usize::from(self.group.threshold);
        SigningHosts {
            id: subject.session(&COORDINATOR),
            subject,
            session: Session::new(scheme, needed, Standing::default()),
            members,
            operators,
            dropouts,
            asked: BTreeMap::new(),
            asked_at: Duration::ZERO,
            alarm: None,
            attempts: None,
        }
    }
}

impl SigningHosts {
    /// The proposal to everyone.
    pub fn propose(&self) -> Vec<Sent> {
        let proposal: Arc<[u8]> = encode(&Gossip::Proposal {
            subject: self.subject.clone(),
            round: 0,
        })
        .into();
        (1..=self.members.len())
            .map(|to| (to, proposal.clone()))
            .collect()
    }

    /// Proposal and sign request in one, to whom the session chooses of all, with what they have handed out ahead of
    /// time; the proposal to the others. None of that time is the session's.
    pub fn propose_pooled(&mut self) -> Vec<Sent> {
        let entries: BTreeMap<SignerId, Commitments> = self
            .members
            .iter()
            .zip(&mut self.operators)
            .map(|((signer, _), operator)| (*signer, operator.hand_out()))
            .collect();
        let effects = self.session.step(Input::Pooled(entries)).unwrap();
        let [
            Effect::Pooled {
                attempt,
                commitments,
            },
        ] = &effects[..]
        else {
            panic!("enough have handed out");
        };
        let chosen: Vec<usize> = (1..)
            .zip(&self.members)
            .filter(|(_, (signer, _))| commitments.contains_key(signer))
            .map(|(host, _)| host)
            .collect();
        let ask: Arc<[u8]> = encode(&Ask::SignPooled {
            subject: self.subject.clone(),
            epoch: 0,
            attempt: *attempt,
            commitments: commitments.clone(),
        })
        .into();
        self.asked
            .extend(chosen.iter().map(|host| (*host, *attempt)));
        let mut sent = self.propose();
        for (host, message) in &mut sent {
            if chosen.contains(host) {
                *message = ask.clone();
            }
        }
        sent
    }

    /// Attempts that it took.
    pub fn attempts(&self) -> Option<u32> {
        self.attempts
    }

    fn coordinate(&mut self, now: Duration, from: usize, message: &[u8]) -> Vec<Sent> {
        if from == 0 {
            return self.step(now, Input::WaitedLongEnough);
        }
        let (signer, peer) = self.members[from - 1];
        let (input, mut sent) = match self.asked.get(&from) {
            None => {
                let Ok(Ask::Accept { commitments, .. }) = decode::<Ask>(message) else {
                    panic!("not an accept");
                };
                let accepted = Input::Accepted {
                    from: signer,
                    commitments,
                };
                (accepted, vec![(from, encode(&Answer::Taken).into())])
            }
            Some(attempt) => {
                let Ok(Answer::Shares(signed)) = decode::<Answer>(message) else {
                    panic!("not shares");
                };
                let statement = Statement::verify(signed, &peer, &self.id, *attempt).unwrap();
                let answered = Input::Answered {
                    from: signer,
                    attempt: *attempt,
                    answer: Arc::new(statement),
                };
                (answered, Vec::new())
            }
        };
        sent.extend(self.step(now, input));
        sent
    }

    fn step(&mut self, now: Duration, input: Input) -> Vec<Sent> {
        let mut sent = Vec::new();
        for effect in self.session.step(input).unwrap() {
            match effect {
                Effect::Request {
                    attempt,
                    commitments,
                    to,
                } => {
                    self.asked_at = now;
                    sent.extend(self.request(attempt, commitments, &to));
                }
                Effect::Wait => {
                    let pause = (now - self.asked_at).clamp(*WAIT.start(), *WAIT.end());
                    self.alarm = Some(pause);
                }
                Effect::Finished { attempts, .. } => self.attempts = Some(attempts),
                Effect::Blame { .. } | Effect::Pooled { .. } | Effect::Hold => {
                    panic!("nobody has done wrong, and the session has begun")
                }
            }
        }
        sent
    }

    fn request(
        &mut self,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
        to: &BTreeSet<SignerId>,
    ) -> Vec<Sent> {
        let ask: Arc<[u8]> = encode(&Ask::Sign {
            session: self.id,
            epoch: 0,
            attempt,
            commitments,
        })
        .into();
        let hosts: Vec<usize> = (1..)
            .zip(&self.members)
            .filter(|(_, (signer, _))| to.contains(signer))
            .map(|(host, _)| host)
            .collect();
        self.asked.extend(hosts.iter().map(|host| (*host, attempt)));
        if let Dropouts::OneEach { attempts, gone } = &mut self.dropouts
            && attempt <= *attempts
        {
            gone.insert(attempt, hosts[0]);
        }
        hosts.into_iter().map(|host| (host, ask.clone())).collect()
    }

    fn is_silent(&self, host: usize) -> bool {
        match &self.dropouts {
            Dropouts::Nobody => false,
            Dropouts::Fixed(hosts) => hosts.contains(&host),
            Dropouts::OneEach { gone, .. } => gone.values().any(|gone| *gone == host),
        }
    }
}

impl Hosts for SigningHosts {
    fn take(&mut self, now: Duration, to: usize, from: usize, message: &[u8]) -> Vec<Sent> {
        if to == 0 {
            return self.coordinate(now, from, message);
        }
        let is_silent = self.is_silent(to);
        let operator = &mut self.operators[to - 1];
        // Gossip, questions and answers come on ways of their own in the nodes; here the state tells them apart.
        let answer = if let Some(entry) = operator.entry.take_if(|_| is_pooled(message)) {
            Some(operator.sign_pooled(self.id, entry, message))
        } else if operator.held.is_none() {
            Some(operator.accept(self.id, message))
        } else if is_silent {
            None
        } else {
            operator.sign(message)
        };
        answer
            .map(|answer| (0, answer.into()))
            .into_iter()
            .collect()
    }

    fn alarm(&mut self) -> Option<Duration> {
        self.alarm.take()
    }

    fn is_over(&self) -> bool {
        self.attempts.is_some()
    }
}

impl Operator {
    /// A proposal: round 1.
    fn accept(&mut self, id: SessionId, message: &[u8]) -> Vec<u8> {
        let Ok(Gossip::Proposal { subject, .. }) = decode::<Gossip>(message) else {
            panic!("not a proposal");
        };
        let verified = verified(id, &subject);
        let proposed = signer::Input::Proposed {
            from: COORDINATOR,
            subject,
        };
        self.state.step(0, proposed).unwrap();
        self.state.step(0, verified).unwrap();
        let stored = signer::Input::Stored {
            session: id,
            reachable: BTreeSet::new(),
        };
        let effects = self.state.step(0, stored).unwrap();
        assert!(matches!(effects[..], [signer::Effect::Accept(..)]));
        encode(&Ask::Accept {
            session: id,
            epoch: 0,
            commitments: self.commit(),
        })
    }

    fn hand_out(&mut self) -> Commitments {
        let (nonces, commitments) = sign::commit(&self.share, POOL_PAIRS, &mut OsRng).unwrap();
        let inputs = self.messages.len();
        self.entry = nonces.first(inputs);
        commitments.first(inputs).unwrap()
    }

    /// A proposal with its sign request: round 2 at the moment of the accept.
    fn sign_pooled(&mut self, id: SessionId, nonces: Nonces, message: &[u8]) -> Vec<u8> {
        let Ok(Ask::SignPooled {
            subject,
            epoch,
            attempt,
            commitments,
        }) = decode::<Ask>(message)
        else {
            panic!("not a pooled sign request");
        };
        let verified = verified(id, &subject);
        let proposed = signer::Input::SignPooled {
            from: COORDINATOR,
            subject,
        };
        self.state.step(0, proposed).unwrap();
        self.state.step(0, verified).unwrap();
        let stored = signer::Input::Stored {
            session: id,
            reachable: BTreeSet::new(),
        };
        let effects = self.state.step(0, stored).unwrap();
        assert!(matches!(effects[..], [signer::Effect::Pooled(..)]));
        let package = Package {
            messages: self.messages.clone(),
            commitments,
        };
        self.share_of((id, epoch, attempt), nonces, &package)
    }

    fn commit(&mut self) -> Commitments {
        let (nonces, commitments) =
            sign::commit(&self.share, self.messages.len(), &mut OsRng).unwrap();
        self.held = Some((nonces, commitments.clone()));
        commitments
    }

    /// A sign request: round 2, with round 1 for a next attempt. `None` for the answer to the accept.
    fn sign(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let Ok(Ask::Sign {
            session,
            epoch,
            attempt,
            commitments,
        }) = decode::<Ask>(message)
        else {
            assert_eq!(decode::<Answer>(message), Ok(Answer::Taken));
            return None;
        };
        let package = Package {
            messages: self.messages.clone(),
            commitments,
        };
        let (nonces, _) = self.held.take().unwrap();
        Some(self.share_of((session, epoch, attempt), nonces, &package))
    }

    fn share_of(
        &mut self,
        (session, epoch, attempt): (SessionId, u32, u32),
        nonces: Nonces,
        package: &Package,
    ) -> Vec<u8> {
        // The nodes check before they promise, and when they sign.
        nonces.check(&self.share, package).unwrap();
        let asked = signer::Input::SignRequested {
            from: COORDINATOR,
            session,
            epoch,
            attempt,
        };
        let effects = self.state.step(0, asked).unwrap();
        assert!(matches!(effects[..], [signer::Effect::PromiseAndSign(_)]));
        let shares = sign::sign(&self.share, nonces, package).unwrap();
        let said = Round2 {
            session,
            attempt,
            package: package.hash(self.share.group()),
            shares,
            next: self.commit(),
        };
        encode(&Answer::Shares(self.identity.sign(ROUND2_DOMAIN, said)))
    }
}

/// Questions and gossip come on ways of their own; a message that is one does not decode as the other by accident here.
fn is_pooled(message: &[u8]) -> bool {
    matches!(decode::<Ask>(message), Ok(Ask::SignPooled { .. }))
}
