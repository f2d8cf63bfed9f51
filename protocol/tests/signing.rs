//! The session machine with real FROST: silence, bad shares, lost requests, strangers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    message::{Refusal, Rule},
    signing::{Effect, Input, Reject, Session},
};
use rand::rngs::OsRng;
use threshold::{
    KeyShare, SignerId, dkg,
    sign::{self, Message, Nonces, Package, Tweak},
};

const N: u8 = 5;
const T: u16 = 3;

/// Key generation in process: every machine polls every other until all are finished.
fn shares() -> BTreeMap<SignerId, KeyShare> {
    let signers: BTreeSet<SignerId> = (0..N).map(|i| SignerId::derive(&[i; 32])).collect();
    let mut machines: BTreeMap<SignerId, dkg::Machine> = signers
        .iter()
        .map(|me| {
            let ceremony = dkg::Ceremony {
                me: *me,
                signers: signers.clone(),
                threshold: T,
                context: [7; 32],
            };
            (
                *me,
                dkg::Machine::new(ceremony, &dkg::Seed::random(&mut OsRng)).unwrap(),
            )
        })
        .collect();
    for _ in 0..10 {
        for from in &signers {
            for to in signers.iter().filter(|to| *to != from) {
                for message in machines[from].messages_for(*to) {
                    machines
                        .get_mut(to)
                        .unwrap()
                        .receive(*from, message)
                        .unwrap();
                }
            }
        }
    }
    machines
        .iter()
        .map(|(id, machine)| {
            let bytes = machine
                .finished()
                .expect("key generation ends")
                .to_secret_bytes()
                .unwrap();
            (*id, KeyShare::from_secret_bytes(&bytes).unwrap())
        })
        .collect()
}

struct World {
    shares: BTreeMap<SignerId, KeyShare>,
    nonces: BTreeMap<SignerId, Nonces>,
    session: Session,
    messages: Vec<Message>,
}

impl World {
    fn new() -> Self {
        let shares = shares();
        let messages = vec![
            Message {
                digest: [1; 32],
                tweak: Tweak::KeyPath(None),
            },
            Message {
                digest: [2; 32],
                tweak: Tweak::KeyPath(Some([9; 32])),
            },
        ];
        let group = shares.values().next().unwrap().group().clone();
        let session = Session::new(group, messages.clone(), usize::from(T));
        Self {
            shares,
            nonces: BTreeMap::new(),
            session,
            messages,
        }
    }

    fn ids(&self) -> Vec<SignerId> {
        self.shares.keys().copied().collect()
    }

    fn accept(&mut self, from: SignerId) -> Result<Vec<Effect>, Reject> {
        let (nonces, commitments) =
            sign::commit(&self.shares[&from], self.messages.len(), &mut OsRng).unwrap();
        self.nonces.insert(from, nonces);
        self.session.step(Input::Accepted { from, commitments })
    }

    fn answer(
        &mut self,
        from: SignerId,
        attempt: u32,
        package: &Package,
    ) -> Result<Vec<Effect>, Reject> {
        let nonces = self.nonces.remove(&from).unwrap();
        let shares = sign::sign(&self.shares[&from], nonces, package).unwrap();
        let (nonces, next) =
            sign::commit(&self.shares[&from], self.messages.len(), &mut OsRng).unwrap();
        self.nonces.insert(from, nonces);
        self.session.step(Input::Answered {
            from,
            attempt,
            shares,
            next,
        })
    }
}

fn request(effects: Vec<Effect>) -> Option<(u32, Package)> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Request { attempt, package } => Some((attempt, package)),
        _ => None,
    })
}

fn signers(package: &Package) -> Vec<SignerId> {
    package.commitments.keys().copied().collect()
}

#[test]
fn the_first_t_accepts_sign_all_inputs() {
    let mut world = World::new();
    let ids = world.ids();
    assert!(world.accept(ids[0]).unwrap().is_empty());
    assert!(world.accept(ids[1]).unwrap().is_empty());
    let (attempt, package) = request(world.accept(ids[2]).unwrap()).expect("t are ready");
    let mut finished = None;
    for id in signers(&package) {
        for effect in world.answer(id, attempt, &package).unwrap() {
            if let Effect::Finished { signatures, .. } = effect {
                finished = Some(signatures);
            }
        }
    }
    let group = world.shares[&ids[0]].group().group_key();
    for (signature, message) in finished.expect("signed").iter().zip(&world.messages) {
        assert!(sign::verify(
            &sign::output_key(&group, &message.tweak),
            &message.digest,
            signature
        ));
    }
    assert_eq!(world.accept(ids[3]).unwrap_err(), Reject::Finished);
}

#[test]
fn a_silent_signer_is_replaced_without_a_clock() {
    let mut world = World::new();
    let ids = world.ids();
    let mut first = None;
    for id in &ids {
        first = request(world.accept(*id).unwrap()).or(first);
    }
    let (attempt, package) = first.expect("an attempt");
    let chosen = signers(&package);
    // The first of the chosen never answers; the others do, and with the two that waited they are enough.
    let mut second = None;
    for id in &chosen[1..] {
        second = request(world.answer(*id, attempt, &package).unwrap()).or(second);
    }
    let (attempt, package) = second.expect("a second attempt without the silent one");
    assert_eq!(attempt, 2);
    assert!(!signers(&package).contains(&chosen[0]));
    let mut done = false;
    for id in signers(&package) {
        done |= world
            .answer(id, attempt, &package)
            .unwrap()
            .iter()
            .any(|effect| matches!(effect, Effect::Finished { .. }));
    }
    assert!(done);
}

#[test]
fn a_bad_share_is_blamed_and_its_signer_left_out() {
    let mut world = World::new();
    let ids = world.ids();
    let mut first = None;
    for id in &ids {
        first = request(world.accept(*id).unwrap()).or(first);
    }
    let (attempt, package) = first.expect("an attempt");
    let culprit = signers(&package)[0];
    // Signs another message than was asked.
    let mut other = package.clone();
    other.messages[0].digest = [3; 32];
    let nonces = world.nonces.remove(&culprit).unwrap();
    let shares = sign::sign(&world.shares[&culprit], nonces, &other).unwrap();
    let (_, next) = sign::commit(&world.shares[&culprit], 2, &mut OsRng).unwrap();
    let effects = world
        .session
        .step(Input::Answered {
            from: culprit,
            attempt,
            shares,
            next,
        })
        .unwrap();
    assert!(matches!(effects.as_slice(), [Effect::Blame(blamed)] if *blamed == culprit));
    assert_eq!(world.accept(culprit).unwrap_err(), Reject::Blamed(culprit));
    let mut second = None;
    for id in &signers(&package)[1..] {
        second = request(world.answer(*id, attempt, &package).unwrap()).or(second);
    }
    let (_, package) = second.expect("a second attempt");
    assert!(!signers(&package).contains(&culprit));
}

#[test]
fn a_lost_request_lets_its_signer_accept_again() {
    let mut world = World::new();
    let ids = world.ids();
    for id in &ids[..3] {
        world.accept(*id).unwrap();
    }
    assert_eq!(world.accept(ids[0]).unwrap_err(), Reject::Pending(ids[0]));
    world
        .session
        .step(Input::Lost {
            from: ids[0],
            attempt: 1,
        })
        .unwrap();
    world.accept(ids[0]).unwrap();
    assert_eq!(world.session.ready(), 1);
    let twice = world
        .session
        .step(Input::Lost {
            from: ids[0],
            attempt: 1,
        })
        .unwrap_err();
    assert_eq!(twice, Reject::NotAsked(ids[0], 1));
}

#[test]
fn strangers_and_wrong_lengths_change_nothing() {
    let mut world = World::new();
    let stranger = SignerId::derive(&[99; 32]);
    let own = world.ids()[0];
    let (_, one) = sign::commit(&world.shares[&own], 1, &mut OsRng).unwrap();
    let reject = world
        .session
        .step(Input::Accepted {
            from: stranger,
            commitments: one.clone(),
        })
        .unwrap_err();
    assert_eq!(reject, Reject::Stranger(stranger));
    let reject = world
        .session
        .step(Input::Accepted {
            from: own,
            commitments: one,
        })
        .unwrap_err();
    assert_eq!(reject, Reject::Length(own));
    assert_eq!(world.session.ready(), 0);
}

#[test]
fn a_refusal_is_kept_and_an_accept_takes_it_back() {
    let mut world = World::new();
    let own = world.ids()[0];
    let refusal = Refusal::new(Rule::S5, "fee");
    world
        .session
        .step(Input::Refused {
            from: own,
            refusal: refusal.clone(),
        })
        .unwrap();
    assert_eq!(world.session.refused().get(&own), Some(&refusal));
    world.accept(own).unwrap();
    assert!(world.session.refused().is_empty());
}
