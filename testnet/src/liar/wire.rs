//! The liar's place in the network: it proposes, serves bodies and takes votes as any coordinator does, and
//! writes down what each operator says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use p2p::{Event, Events, Network, PeerAddress};
use protocol::{
    batch::BodyHash,
    hash,
    identity::{Identity, PeerKey},
    message::{Answer, Ask, Gossip, Refusal, Rule, SessionId, Subject, decode, encode},
    parameters::Parameters,
    roster::Roster,
};
use threshold::{SignerId, sign::Commitments};
use tokio::sync::watch;

/// How long all operators may take to be connected.
const CONNECT: Duration = Duration::from_secs(60);
/// How long an operator may take to answer a proposal: it waits for confirmations that are missing, and the
/// machine may be busy with proofs.
const ANSWER: Duration = Duration::from_secs(120);
/// A proposal that some operator has not answered is repeated after this time; gossip may get lost.
const REPEAT: Duration = Duration::from_secs(30);

/// Epoch of the shares of a vault that was never refreshed.
pub const EPOCH: u32 = 0;

/// An operator's vote on a session.
#[derive(Clone, Debug)]
pub enum Said {
    /// Yes, with round 1.
    Accepted(Commitments),
    /// No, and why.
    Refused(Refusal),
}

/// One operator.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Its name in the roster.
    pub name: String,
    /// Its identity.
    pub key: PeerKey,
    /// Its FROST identifier.
    pub signer: SignerId,
}

/// A coordinator's connections.
pub struct Wire {
    /// Whose.
    pub me: PeerKey,
    /// The operators, in roster order.
    pub operators: Vec<Operator>,
    network: Network,
    bodies: Bodies,
    said: watch::Sender<Votes>,
}

type Bodies = Arc<Mutex<BTreeMap<BodyHash, Vec<u8>>>>;
type Votes = BTreeMap<(SessionId, PeerKey), Said>;

/// The name under which all nodes of this roster and these parameters meet.
fn network_name(roster: &Roster, parameters: &Parameters) -> String {
    hex::encode(hash::tagged(
        "drawbridge/network",
        &[&roster.hash(), &parameters.hash()],
    ))
}

/// Joins the network under an identity, in the roster or not.
///
/// # Errors
/// When the address can't be listened on.
pub async fn join(
    identity: &Identity,
    listen: &[String],
    roster: &Roster,
    parameters: &Parameters,
) -> anyhow::Result<(Network, Events)> {
    let me = identity.public();
    let others = roster.members().filter(|member| member.key != me);
    let settings = p2p::Settings {
        listen: listen.to_vec(),
        peers: others
            .map(|member| PeerAddress {
                key: member.key,
                addresses: member.addresses.clone(),
            })
            .collect(),
        network: network_name(roster, parameters),
        heartbeat: p2p::HEARTBEAT_INTERVAL,
    };
    Ok(p2p::start(identity, &settings).await?)
}

impl Wire {
    /// Joins as a coordinator and waits for all operators.
    ///
    /// # Errors
    /// When one of them is not there in time.
    pub async fn connect(
        identity: &Identity,
        listen: &[String],
        roster: &Roster,
        parameters: &Parameters,
    ) -> anyhow::Result<Self> {
        let (network, events) = join(identity, listen, roster, parameters).await?;
        let operators: Vec<Operator> = roster
            .operators
            .iter()
            .filter_map(|member| {
                Some(Operator {
                    name: member.name.clone(),
                    key: member.key,
                    signer: roster.signer(&member.key)?,
                })
            })
            .collect();
        let bodies = Bodies::default();
        let said = watch::Sender::new(Votes::new());
        tokio::spawn(serve(events, bodies.clone(), said.clone()));
        let all = async {
            while !operators
                .iter()
                .all(|operator| network.connected().contains(&operator.key))
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(CONNECT, all)
            .await
            .context("not all operators could be reached")?;
        Ok(Self {
            me: identity.public(),
            operators,
            network,
            bodies,
            said,
        })
    }

    /// Gives a body to whoever asks for this hash, whether it has that hash or not.
    pub fn serve(&self, hash: BodyHash, body: Vec<u8>) {
        self.bodies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(hash, body);
    }

    /// Gossips bytes.
    ///
    /// # Errors
    /// When the own side refuses to send them.
    pub async fn gossip(&self, bytes: Vec<u8>) -> anyhow::Result<()> {
        Ok(self.network.publish(bytes).await?)
    }

    /// Proposes and waits for every operator's vote. `round` makes a repeated proposal a new message.
    ///
    /// # Errors
    /// When an operator does not answer.
    pub async fn propose(
        &self,
        subject: &Subject,
        round: u32,
    ) -> anyhow::Result<BTreeMap<PeerKey, Said>> {
        let session = subject.session(&self.me);
        self.said.send_modify(|said| {
            said.retain(|(of, _), _| *of != session);
        });
        let mut votes = self.said.subscribe();
        let there = |said: &Votes| {
            self.operators
                .iter()
                .all(|operator| said.contains_key(&(session, operator.key)))
        };
        let give_up = tokio::time::Instant::now() + ANSWER;
        for again in 0_u32.. {
            let message = Gossip::Proposal {
                subject: subject.clone(),
                round: round.saturating_add(again),
            };
            self.gossip(encode(&message)).await?;
            let until = (tokio::time::Instant::now() + REPEAT).min(give_up);
            if let Ok(said) = tokio::time::timeout_at(until, votes.wait_for(there)).await {
                let said = said?;
                return Ok(self
                    .operators
                    .iter()
                    .filter_map(|operator| {
                        let vote = said.get(&(session, operator.key))?;
                        Some((operator.key, vote.clone()))
                    })
                    .collect());
            }
            if tokio::time::Instant::now() >= give_up {
                break;
            }
        }
        let silent: Vec<String> = self
            .operators
            .iter()
            .filter(|operator| !self.said.borrow().contains_key(&(session, operator.key)))
            .map(|operator| operator.name.clone())
            .collect();
        bail!("no answer from {}", silent.join(", "))
    }

    /// Gossips a proposal and does not wait.
    ///
    /// # Errors
    /// When the own side refuses to send it.
    pub async fn propose_and_go_on(&self, subject: &Subject) -> anyhow::Result<()> {
        let message = Gossip::Proposal {
            subject: subject.clone(),
            round: 0,
        };
        self.gossip(encode(&message)).await
    }

    /// Asks one operator.
    ///
    /// # Errors
    /// When there is no answer, or none that can be read.
    pub async fn ask(&self, operator: PeerKey, ask: &Ask) -> anyhow::Result<Answer> {
        self.ask_bytes(operator, encode(ask)).await
    }

    /// Asks one operator for shares.
    ///
    /// # Errors
    /// When there is no answer, or none that can be read.
    pub async fn sign(
        &self,
        operator: PeerKey,
        session: SessionId,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
    ) -> anyhow::Result<Answer> {
        self.sign_in(operator, session, EPOCH, attempt, commitments)
            .await
    }

    /// As [`Self::sign`], with the shares of any epoch.
    ///
    /// # Errors
    /// When there is no answer, or none that can be read.
    pub async fn sign_in(
        &self,
        operator: PeerKey,
        session: SessionId,
        epoch: u32,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
    ) -> anyhow::Result<Answer> {
        let ask = Ask::Sign {
            session,
            epoch,
            attempt,
            commitments,
        };
        self.ask(operator, &ask).await
    }

    /// Asks one operator with bytes that need not be a question.
    ///
    /// # Errors
    /// When there is no answer, or none that can be read.
    pub async fn ask_bytes(&self, operator: PeerKey, bytes: Vec<u8>) -> anyhow::Result<Answer> {
        Ok(decode(&self.network.ask(operator, bytes).await?)?)
    }

    /// Leaves the network.
    pub async fn leave(&self) {
        self.network.shutdown().await;
    }
}

/// Answers as a coordinator does, until the network ends.
async fn serve(mut events: Events, bodies: Bodies, said: watch::Sender<Votes>) {
    while let Some(event) = events.recv().await {
        let Event::Ask { from, data, reply } = event else {
            continue;
        };
        let answer = match decode::<Ask>(&data) {
            Ok(Ask::Body(hash)) => Answer::Body(
                bodies
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(&hash)
                    .cloned(),
            ),
            Ok(Ask::Accept {
                session,
                commitments,
                ..
            }) => {
                said.send_modify(|said| {
                    said.insert((session, from), Said::Accepted(commitments));
                });
                Answer::Taken
            }
            Ok(Ask::Refuse { session, refusal }) => {
                said.send_modify(|said| {
                    said.insert((session, from), Said::Refused(refusal));
                });
                Answer::Taken
            }
            Ok(Ask::Genesis) => Answer::Genesis(None),
            Ok(Ask::Group) => Answer::Group(None),
            Ok(Ask::Batch(_)) => Answer::Batch(None),
            Ok(_) => Answer::Refused(Refusal::new(Rule::S12, "a coordinator does not do this")),
            Err(error) => Answer::Refused(Refusal::new(Rule::S12, error.to_string())),
        };
        reply.send(encode(&answer));
    }
}
