//! The session machine with real FROST: silence, bad shares, lost requests, restarts, strangers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    blame::{Evidence, EvidenceError, FaultKind, ROUND2_DOMAIN, Round2, Statement, StatementError},
    identity::Identity,
    invariants,
    message::{Refusal, Rule, SessionId},
    reputation::Standing,
    roster::{Member, Roster},
    signing::{Effect, Frost, Input, Reject, Session},
};
use rand::rngs::OsRng;
use threshold::{
    KeyShare, SignerId, dkg,
    sign::{self, Commitments, Message, Nonces, Package, Shares, Tweak},
};

const N: u8 = 5;
const T: u16 = 3;
const SESSION: SessionId = SessionId([5; 32]);

/// Key generation in process: every machine polls every other until all are finished.
fn shares(signers: BTreeSet<SignerId>) -> BTreeMap<SignerId, KeyShare> {
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
    identities: BTreeMap<SignerId, Identity>,
    shares: BTreeMap<SignerId, KeyShare>,
    nonces: BTreeMap<SignerId, Nonces>,
    session: Session,
    messages: Vec<Message>,
}

impl World {
    fn new() -> Self {
        Self::with(&Standing::default())
    }

    fn with(standing: &Standing) -> Self {
        let identities: BTreeMap<SignerId, Identity> = (1..=N)
            .map(|i| Identity::from_secret(&[i; 32]))
            .map(|identity| (SignerId::derive(&identity.public().0), identity))
            .collect();
        let shares = shares(identities.keys().copied().collect());
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
        let scheme = Frost::new(group, messages.clone());
        let session = Session::new(scheme, usize::from(T), standing.clone());
        Self {
            identities,
            shares,
            nonces: BTreeMap::new(),
            session,
            messages,
        }
    }

    fn ids(&self) -> Vec<SignerId> {
        self.shares.keys().copied().collect()
    }

    fn roster(&self) -> Roster {
        let operators = self
            .identities
            .values()
            .map(|identity| Member {
                name: identity.public().to_string(),
                key: identity.public(),
                addresses: Vec::new(),
                founding_key: None,
            })
            .collect();
        Roster {
            threshold: T,
            operators,
            coordinators: Vec::new(),
            attestation: Default::default(),
        }
    }

    /// Steps the machine and checks what must always hold. A refused input changes nothing.
    fn step(&mut self, input: Input) -> Result<Vec<Effect>, Reject> {
        let before = format!("{:?}", self.session);
        let result = self.session.step(input);
        if result.is_err() {
            assert_eq!(format!("{:?}", self.session), before);
        }
        invariants::attempts_are_bounded(&self.session).unwrap();
        invariants::signers_are_in_one_place(&self.session).unwrap();
        invariants::waiting_names_everyone(&self.session).unwrap();
        result
    }

    fn round1(&mut self, from: SignerId) -> Commitments {
        let (nonces, commitments) =
            sign::commit(&self.shares[&from], self.messages.len(), &mut OsRng).unwrap();
        self.nonces.insert(from, nonces);
        commitments
    }

    fn accept(&mut self, from: SignerId) -> Result<Vec<Effect>, Reject> {
        let commitments = self.round1(from);
        self.step(Input::Accepted { from, commitments })
    }

    /// Everybody accepts; gives the first attempt.
    fn accept_all(&mut self) -> (u32, Package) {
        let mut first = None;
        for id in self.ids() {
            let effects = self.accept(id).unwrap();
            first = first.or(self.request(effects));
        }
        first.expect("an attempt")
    }

    fn request(&self, effects: Vec<Effect>) -> Option<(u32, Package)> {
        effects.into_iter().find_map(|effect| match effect {
            Effect::Request {
                attempt,
                commitments,
                ..
            } => Some((
                attempt,
                Package {
                    messages: self.messages.clone(),
                    commitments,
                },
            )),
            _ => None,
        })
    }

    fn statement(&self, from: SignerId, said: Round2) -> Arc<Statement> {
        let identity = &self.identities[&from];
        let attempt = said.attempt;
        let signed = identity.sign(ROUND2_DOMAIN, said);
        Arc::new(Statement::verify(signed, &identity.public(), &SESSION, attempt).unwrap())
    }

    /// What `from` says to a sign request.
    fn say(&mut self, from: SignerId, attempt: u32, package: &Package) -> Round2 {
        let share = &self.shares[&from];
        let nonces = self.nonces.remove(&from).unwrap();
        Round2 {
            session: SESSION,
            attempt,
            package: package.hash(share.group()),
            shares: sign::sign(share, nonces, package).unwrap(),
            next: self.round1(from),
        }
    }

    fn hear(&mut self, from: SignerId, said: Round2) -> Result<Vec<Effect>, Reject> {
        let attempt = said.attempt;
        let answer = self.statement(from, said);
        self.step(Input::Answered {
            from,
            attempt,
            answer,
        })
    }

    fn answer(
        &mut self,
        from: SignerId,
        attempt: u32,
        package: &Package,
    ) -> Result<Vec<Effect>, Reject> {
        let said = self.say(from, attempt, package);
        self.hear(from, said)
    }

    fn check_signatures(&self, effects: &[Effect]) -> bool {
        let group = self.shares.values().next().unwrap().group().group_key();
        effects.iter().any(|effect| match effect {
            Effect::Finished { signatures, .. } => {
                assert_eq!(signatures.len(), self.messages.len());
                for (signature, message) in signatures.iter().zip(&self.messages) {
                    let key = sign::output_key(&group, &message.tweak);
                    assert!(sign::verify(&key, &message.digest, signature));
                }
                true
            }
            _ => false,
        })
    }
}

fn signers(package: &Package) -> Vec<SignerId> {
    package.commitments.keys().copied().collect()
}

/// Shares with a bit of one of them changed.
fn spoilt(shares: &Shares) -> Shares {
    let mut bytes: Vec<u8> = postcard::from_bytes(&postcard::to_stdvec(shares).unwrap()).unwrap();
    bytes[31] ^= 1;
    Shares::try_from(bytes).unwrap()
}

#[test]
fn the_first_t_accepts_sign_all_inputs() {
    let mut world = World::new();
    let ids = world.ids();
    assert!(world.accept(ids[0]).unwrap().is_empty());
    assert!(world.accept(ids[1]).unwrap().is_empty());
    let effects = world.accept(ids[2]).unwrap();
    let (attempt, package) = world.request(effects).expect("t are ready");
    let mut finished = false;
    for id in signers(&package) {
        let effects = world.answer(id, attempt, &package).unwrap();
        finished |= world.check_signatures(&effects);
    }
    assert!(finished);
    assert_eq!(world.accept(ids[3]).unwrap_err(), Reject::Finished);
    assert_eq!(world.session.waiting(), None);
}

#[test]
fn a_silent_signer_is_waited_for_once_and_replaced() {
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let chosen = signers(&package);
    // The first of the chosen never answers; the others do, and with the two that waited they are enough.
    let effects = world.answer(chosen[1], attempt, &package).unwrap();
    assert!(matches!(effects[..], [Effect::Wait]), "{effects:?}");
    assert!(world.session.is_holding());
    assert!(
        world
            .answer(chosen[2], attempt, &package)
            .unwrap()
            .is_empty()
    );
    let effects = world.step(Input::WaitedLongEnough).unwrap();
    assert!(!world.session.is_holding());
    let (attempt, package) = world
        .request(effects)
        .expect("a second attempt without the silent one");
    assert_eq!(attempt, 2);
    assert!(!signers(&package).contains(&chosen[0]));
    let mut done = false;
    for id in signers(&package) {
        let effects = world.answer(id, attempt, &package).unwrap();
        done |= world.check_signatures(&effects);
    }
    assert!(done);
    assert_eq!(world.session.silent(), BTreeSet::from([chosen[0]]));
}

#[test]
fn a_first_attempt_that_needs_no_more_than_the_wait_is_the_only_one() {
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let mut last = Vec::new();
    for id in signers(&package) {
        last = world.answer(id, attempt, &package).unwrap();
        assert!(world.request(last.clone()).is_none());
    }
    assert!(world.check_signatures(&last));
    assert_eq!(world.session.attempts(), 1);
    assert_eq!(
        world.step(Input::WaitedLongEnough).unwrap_err(),
        Reject::Finished
    );
}

#[test]
fn whatever_goes_wrong_with_the_first_attempt_ends_the_wait() {
    let wrong: [fn(SignerId) -> Input; 2] = [
        |from| Input::Lost {
            from,
            attempt: 1,
            refusal: None,
        },
        |from| Input::Refused {
            from,
            refusal: Refusal::new(Rule::S6, "paused"),
        },
    ];
    for input in wrong {
        let mut world = World::new();
        let (attempt, package) = world.accept_all();
        let chosen = signers(&package);
        let effects = world.answer(chosen[0], attempt, &package).unwrap();
        assert!(matches!(effects[..], [Effect::Wait]), "{effects:?}");
        let effects = world.step(input(chosen[1])).unwrap();
        let (second, package) = world.request(effects).expect("a second attempt at once");
        assert_eq!(second, 2);
        assert!(!signers(&package).contains(&chosen[1]));
    }

    // A share that cannot be one is seen when it comes.
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let chosen = signers(&package);
    world.answer(chosen[0], attempt, &package).unwrap();
    let mut said = world.say(chosen[1], attempt, &package);
    said.next = sign::commit(&world.shares[&chosen[1]], 1, &mut OsRng)
        .unwrap()
        .1;
    let effects = world.hear(chosen[1], said).unwrap();
    assert!(matches!(effects[0], Effect::Blame { .. }), "{effects:?}");
    assert_eq!(world.request(effects).expect("a second attempt").0, 2);

    // So are nonces that are gone.
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let chosen = signers(&package);
    world.answer(chosen[0], attempt, &package).unwrap();
    let effects = world.accept(chosen[1]).unwrap();
    assert_eq!(world.request(effects).expect("a second attempt").0, 2);
}

#[test]
fn the_late_share_of_an_old_attempt_completes_it() {
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let chosen = signers(&package);
    let late = world.say(chosen[0], attempt, &package);
    for id in &chosen[1..] {
        world.answer(*id, attempt, &package).unwrap();
    }
    let effects = world.step(Input::WaitedLongEnough).unwrap();
    assert_eq!(world.request(effects).expect("a second attempt").0, 2);
    // Nobody has answered the second attempt when the first is completed.
    let effects = world.hear(chosen[0], late).unwrap();
    assert!(world.check_signatures(&effects));
}

#[test]
fn a_bad_share_is_blamed_with_evidence_and_its_signer_left_out() {
    let mut world = World::new();
    let roster = world.roster();
    let (attempt, package) = world.accept_all();
    let chosen = signers(&package);
    let culprit = chosen[0];
    let mut said = world.say(culprit, attempt, &package);
    said.shares = spoilt(&said.shares);
    // It would enter a second attempt with the two that wait, and is looked at before.
    world.hear(culprit, said).unwrap();
    let first = world.step(Input::WaitedLongEnough).unwrap();
    assert!(world.request(first.clone()).is_none());
    let effects = world.answer(chosen[1], attempt, &package).unwrap();
    let (second, package2) = world.request(effects).expect("a second attempt");
    assert_eq!(second, 2);
    assert!(!signers(&package2).contains(&culprit));
    let blamed = first.into_iter().find_map(|effect| match effect {
        Effect::Blame {
            signer,
            commitments,
            answer,
            ..
        } => Some((signer, commitments, answer)),
        _ => None,
    });
    let (signer, commitments, answer) = blamed.expect("blamed before the next attempt");
    assert_eq!(signer, culprit);
    assert_eq!(world.accept(culprit).unwrap_err(), Reject::Blamed(culprit));

    let group = world.shares[&culprit].group().clone();
    let evidence = Evidence {
        group,
        messages: world.messages.clone(),
        commitments,
        statement: answer.signed().clone(),
    };
    let fault = evidence.check(&roster).unwrap();
    assert_eq!(fault.operator, world.identities[&culprit].public());
    assert_eq!((fault.attempt, fault.kind), (1, FaultKind::Share(0)));
    // Whoever changes anything in it shows nothing.
    let mut other = evidence.clone();
    other.messages[0].digest[0] ^= 1;
    assert_eq!(other.check(&roster), Err(EvidenceError::OtherPackage));
    let mut fewer = evidence.clone();
    fewer.commitments.pop_last();
    assert_eq!(fewer.check(&roster), Err(EvidenceError::OtherPackage));
    let mut stranger = roster.clone();
    stranger
        .operators
        .retain(|member| member.key != fault.operator);
    assert_eq!(
        evidence.check(&stranger),
        Err(EvidenceError::Stranger(fault.operator))
    );
}

#[test]
fn a_bad_share_that_fails_its_attempt_is_found_among_the_others() {
    let mut world = World::new();
    let ids = world.ids();
    for id in &ids[..2] {
        world.accept(*id).unwrap();
    }
    let effects = world.accept(ids[2]).unwrap();
    let (attempt, package) = world.request(effects).unwrap();
    let mut said = world.say(ids[1], attempt, &package);
    said.shares = spoilt(&said.shares);
    world.answer(ids[0], attempt, &package).unwrap();
    assert!(world.hear(ids[1], said).unwrap().is_empty());
    let effects = world.answer(ids[2], attempt, &package).unwrap();
    assert!(
        matches!(effects.as_slice(), [Effect::Blame { signer, .. }] if *signer == ids[1]),
        "{effects:?}"
    );
    // The honest two are ready with what they sent; one more is enough.
    let effects = world.accept(ids[3]).unwrap();
    let (attempt, package) = world.request(effects).expect("a second attempt");
    let mut done = false;
    for id in signers(&package) {
        let effects = world.answer(id, attempt, &package).unwrap();
        done |= world.check_signatures(&effects);
    }
    assert!(done);
}

#[test]
fn right_shares_are_no_evidence() {
    let mut world = World::new();
    let roster = world.roster();
    let (attempt, package) = world.accept_all();
    let from = signers(&package)[0];
    let said = world.say(from, attempt, &package);
    let signed = world.identities[&from].sign(ROUND2_DOMAIN, said.clone());
    let evidence = Evidence {
        group: world.shares[&from].group().clone(),
        messages: package.messages.clone(),
        commitments: package.commitments.clone(),
        statement: signed,
    };
    assert_eq!(evidence.check(&roster), Err(EvidenceError::Innocent));
    // Another identity's word about them condemns neither.
    let other = signers(&package)[1];
    let stolen = Evidence {
        statement: world.identities[&other].sign(ROUND2_DOMAIN, said),
        ..evidence
    };
    let fault = stolen.check(&roster).unwrap();
    assert_eq!(fault.operator, world.identities[&other].public());
}

#[test]
fn a_statement_is_its_authors_and_about_one_request() {
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let (from, other) = (signers(&package)[0], signers(&package)[1]);
    let said = world.say(from, attempt, &package);
    let key = world.identities[&from].public();
    let signed = world.identities[&from].sign(ROUND2_DOMAIN, said);
    let check = |key, session, attempt| Statement::verify(signed.clone(), key, session, attempt);
    assert!(check(&key, &SESSION, attempt).is_ok());
    let other = world.identities[&other].public();
    assert_eq!(
        check(&other, &SESSION, attempt).unwrap_err(),
        StatementError::Other
    );
    assert_eq!(
        check(&key, &SessionId([6; 32]), attempt).unwrap_err(),
        StatementError::Other
    );
    assert_eq!(
        check(&key, &SESSION, attempt + 1).unwrap_err(),
        StatementError::Other
    );
}

#[test]
fn too_few_shares_or_commitments_are_a_fault_too() {
    for short_shares in [true, false] {
        let mut world = World::new();
        let roster = world.roster();
        let (attempt, package) = world.accept_all();
        let culprit = signers(&package)[0];
        let mut said = world.say(culprit, attempt, &package);
        if short_shares {
            let bytes: Vec<u8> =
                postcard::from_bytes(&postcard::to_stdvec(&said.shares).unwrap()).unwrap();
            said.shares = Shares::try_from(bytes[..32].to_vec()).unwrap();
        } else {
            said.next = sign::commit(&world.shares[&culprit], 1, &mut OsRng)
                .unwrap()
                .1;
        }
        let effects = world.hear(culprit, said).unwrap();
        let Some(Effect::Blame {
            commitments,
            answer,
            ..
        }) = effects.into_iter().next()
        else {
            panic!("not blamed")
        };
        let evidence = Evidence {
            group: world.shares[&culprit].group().clone(),
            messages: world.messages.clone(),
            commitments,
            statement: answer.signed().clone(),
        };
        assert_eq!(evidence.check(&roster).unwrap().kind, FaultKind::Count);
    }
}

#[test]
fn nobody_is_blamed_for_signing_something_else() {
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let from = signers(&package)[0];
    let mut other = package.clone();
    other.messages[0].digest = [3; 32];
    let said = world.say(from, attempt, &other);
    assert_eq!(
        world.hear(from, said).unwrap_err(),
        Reject::OtherPackage(from, attempt)
    );
    assert!(world.session.blamed().is_empty());
}

#[test]
fn duplicates_and_late_accepts_change_nothing() {
    let mut world = World::new();
    let ids = world.ids();
    world.accept(ids[0]).unwrap();
    let first = world.round1(ids[1]);
    world
        .step(Input::Accepted {
            from: ids[1],
            commitments: first.clone(),
        })
        .unwrap();
    let effects = world.accept(ids[2]).unwrap();
    let (attempt, package) = world.request(effects).unwrap();
    // The proposal is repeated; the signer still has the nonces that it is asked to use.
    world.step(Input::Repeated).unwrap();
    let again = Input::Accepted {
        from: ids[1],
        commitments: first.clone(),
    };
    assert_eq!(
        world.step(again.clone()).unwrap_err(),
        Reject::Pending(ids[1])
    );
    let said = world.say(ids[1], attempt, &package);
    world.hear(ids[1], said.clone()).unwrap();
    assert_eq!(
        world.hear(ids[1], said.clone()).unwrap_err(),
        Reject::Duplicate(ids[1], attempt)
    );
    assert_eq!(world.step(again).unwrap_err(), Reject::Stale(ids[1]));
    let next = Input::Accepted {
        from: ids[1],
        commitments: said.next,
    };
    assert!(world.step(next).unwrap().is_empty());
    let mut done = false;
    for id in [ids[0], ids[2]] {
        let effects = world.answer(id, attempt, &package).unwrap();
        done |= world.check_signatures(&effects);
    }
    assert!(done, "the pending attempt was not broken");
    assert_eq!(world.session.attempts(), 1);
}

#[test]
fn a_lost_request_is_sent_again_when_its_signer_shows_up() {
    let mut world = World::new();
    let ids = world.ids();
    let commitments = world.round1(ids[0]);
    let accept = Input::Accepted {
        from: ids[0],
        commitments,
    };
    world.step(accept.clone()).unwrap();
    world.accept(ids[1]).unwrap();
    let effects = world.accept(ids[2]).unwrap();
    let (attempt, package) = world.request(effects).unwrap();
    let lost = Input::Lost {
        from: ids[0],
        attempt,
        refusal: None,
    };
    world.step(lost.clone()).unwrap();
    let effects = world.step(accept.clone()).unwrap();
    assert!(
        matches!(effects.as_slice(), [Effect::Request { attempt: 1, to, .. }] if *to == BTreeSet::from([ids[0]])),
        "{effects:?}"
    );
    assert_eq!(world.step(accept).unwrap_err(), Reject::Pending(ids[0]));
    let mut done = false;
    for id in &ids[..3] {
        let effects = world.answer(*id, attempt, &package).unwrap();
        done |= world.check_signatures(&effects);
    }
    assert!(done);
    assert_eq!(world.session.attempts(), 1);
    assert_eq!(world.session.renewals(), 0);
}

#[test]
fn a_signer_that_has_lost_its_nonces_accepts_again_in_rounds_ever_further_apart() {
    let mut world = World::new();
    let ids = world.ids();
    for id in &ids[..3] {
        world.accept(*id).unwrap();
    }
    let lost = Input::Lost {
        from: ids[0],
        attempt: 1,
        refusal: Some(Refusal::new(Rule::S9, "unknown")),
    };
    world.step(lost.clone()).unwrap();
    let waiting = world.session.waiting().unwrap();
    assert!(waiting.declined.contains_key(&ids[0]));
    world.accept(ids[0]).unwrap();
    assert_eq!(world.session.ready().collect::<Vec<_>>(), [&ids[0]]);
    assert_eq!(world.step(lost).unwrap_err(), Reject::NotAsked(ids[0], 1));
    // It is asked once more with two others, and loses its nonces again: not before the next round.
    world.accept(ids[3]).unwrap();
    let effects = world.accept(ids[4]).unwrap();
    assert_eq!(world.request(effects).unwrap().0, 2);
    assert_eq!(world.accept(ids[0]).unwrap_err(), Reject::Pending(ids[0]));
    world.step(Input::Repeated).unwrap();
    assert_eq!(world.accept(ids[0]).unwrap_err(), Reject::Pending(ids[0]));
    world.step(Input::Repeated).unwrap();
    world.accept(ids[0]).unwrap();
    assert_eq!(world.session.renewals(), 2);
}

#[test]
fn the_late_share_of_a_signer_that_accepted_anew_does_not_bring_back_old_nonces() {
    let mut world = World::new();
    let ids = world.ids();
    world.accept(ids[0]).unwrap();
    world.accept(ids[1]).unwrap();
    let effects = world.accept(ids[2]).unwrap();
    let (attempt, package) = world.request(effects).unwrap();
    // Its next nonces expire before the answer arrives; it has said so.
    let late = world.say(ids[0], attempt, &package);
    world.accept(ids[0]).unwrap();
    assert!(world.hear(ids[0], late).unwrap().is_empty());
    world.accept(ids[3]).unwrap();
    world.answer(ids[1], attempt, &package).unwrap();
    let effects = world.step(Input::WaitedLongEnough).unwrap();
    let (second, package2) = world.request(effects).expect("a second attempt");
    assert_eq!(second, 2);
    assert!(signers(&package2).contains(&ids[0]));
    let mut done = false;
    for id in signers(&package2) {
        let effects = world.answer(id, second, &package2).unwrap();
        done |= world.check_signatures(&effects);
    }
    assert!(done);
}

#[test]
fn strangers_and_wrong_lengths_change_nothing() {
    let mut world = World::new();
    let stranger = SignerId::derive(&[99; 32]);
    let own = world.ids()[0];
    let (_, one) = sign::commit(&world.shares[&own], 1, &mut OsRng).unwrap();
    let reject = world
        .step(Input::Accepted {
            from: stranger,
            commitments: one.clone(),
        })
        .unwrap_err();
    assert_eq!(reject, Reject::Stranger(stranger));
    let reject = world
        .step(Input::Accepted {
            from: own,
            commitments: one,
        })
        .unwrap_err();
    assert_eq!(reject, Reject::Length(own));
    assert_eq!(world.session.ready().len(), 0);
}

#[test]
fn a_refusal_is_kept_and_an_accept_takes_it_back() {
    let mut world = World::new();
    let own = world.ids()[0];
    let refusal = Refusal::new(Rule::S5, "fee");
    world
        .step(Input::Refused {
            from: own,
            refusal: refusal.clone(),
        })
        .unwrap();
    assert_eq!(world.session.refused().get(&own), Some(&refusal));
    assert_eq!(world.session.possible(), usize::from(N) - 1);
    world.accept(own).unwrap();
    assert!(world.session.refused().is_empty());
}

#[test]
fn a_session_says_what_it_waits_for() {
    let mut world = World::new();
    let ids = world.ids();
    world
        .step(Input::Refused {
            from: ids[3],
            refusal: Refusal::new(Rule::S6, "paused"),
        })
        .unwrap();
    for id in &ids[..3] {
        world.accept(*id).unwrap();
    }
    let names: BTreeMap<SignerId, &str> =
        ids.iter().copied().zip(["a", "b", "c", "d", "e"]).collect();
    let say = |world: &World| {
        world
            .session
            .waiting()
            .unwrap()
            .describe(|signer| names[signer].to_owned())
    };
    assert_eq!(
        say(&world),
        "0 of 3 signers ready; no share yet from a (attempt 1), b (attempt 1), c (attempt 1); \
         nothing heard from e; refused by d (S6: paused)"
    );
    world
        .step(Input::Lost {
            from: ids[1],
            attempt: 1,
            refusal: Some(Refusal::new(Rule::S7, "signed another")),
        })
        .unwrap();
    assert!(
        say(&world).contains("share declined by b (S7: signed another)"),
        "{}",
        say(&world)
    );
}

#[test]
fn signers_of_poor_standing_are_taken_when_there_are_no_others() {
    let mut standing = Standing::default();
    let ids = World::new().ids();
    standing.learn(&BTreeSet::from([ids[0], ids[1]]), &BTreeSet::new());

    // Three better ones come in time.
    let mut world = World::with(&standing);
    for id in &ids[..4] {
        let effects = world.accept(*id).unwrap();
        assert!(world.request(effects).is_none());
    }
    let effects = world.accept(ids[4]).unwrap();
    let (_, package) = world.request(effects).expect("three of good standing");
    assert_eq!(signers(&package), &ids[2..5]);

    // They do not.
    let mut world = World::with(&standing);
    for id in [ids[0], ids[1], ids[2]] {
        let effects = world.accept(id).unwrap();
        assert!(world.request(effects).is_none());
    }
    assert!(world.session.is_holding());
    let effects = world.step(Input::HeldLongEnough).unwrap();
    let (_, package) = world.request(effects).expect("whoever is there");
    assert_eq!(signers(&package), &ids[..3]);
}

/// Everybody's entries of a pool, for the two messages of a session.
fn pool(world: &mut World) -> BTreeMap<SignerId, Commitments> {
    let ids = world.ids();
    ids.iter().map(|id| (*id, world.round1(*id))).collect()
}

/// The pooled request among these effects.
fn pooled(world: &World, effects: &[Effect]) -> Option<(u32, Package)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Pooled {
            attempt,
            commitments,
        } => Some((
            *attempt,
            Package {
                messages: world.messages.clone(),
                commitments: commitments.clone(),
            },
        )),
        _ => None,
    })
}

fn is_pooled(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Finished { pooled: true, .. }))
}

#[test]
fn entries_of_the_pool_sign_all_inputs_before_anybody_has_accepted() {
    let mut world = World::new();
    let entries = pool(&mut world);
    let effects = world.step(Input::Pooled(entries)).unwrap();
    assert_eq!(effects.len(), 1);
    let (attempt, package) = pooled(&world, &effects).unwrap();
    assert_eq!(attempt, 1);
    assert_eq!(package.commitments.len(), usize::from(T));
    let mut last = Vec::new();
    for id in signers(&package) {
        last = world.answer(id, attempt, &package).unwrap();
    }
    assert!(world.check_signatures(&last));
    assert!(is_pooled(&last));
}

#[test]
fn a_session_goes_on_without_the_pool_when_a_signer_does_not_have_its_entry_any_more() {
    let mut world = World::new();
    let entries = pool(&mut world);
    let effects = world.step(Input::Pooled(entries)).unwrap();
    let (attempt, package) = pooled(&world, &effects).unwrap();
    let asked = signers(&package);
    for id in &asked[1..] {
        world.answer(*id, attempt, &package).unwrap();
    }
    let refusal = Refusal::new(Rule::S9, "no such nonces were handed out");
    let lost = Input::Lost {
        from: asked[0],
        attempt,
        refusal: Some(refusal),
    };
    assert!(world.step(lost).unwrap().is_empty());
    // It accepts as anybody does, and is asked with the others that have answered.
    let effects = world.accept(asked[0]).unwrap();
    let (second, package) = world.request(effects).unwrap();
    assert_eq!((second, signers(&package)), (2, asked.clone()));
    let mut last = Vec::new();
    for id in asked {
        last = world.answer(id, second, &package).unwrap();
    }
    assert!(world.check_signatures(&last));
    assert!(!is_pooled(&last));
}

#[test]
fn whoever_refuses_what_the_pool_asks_has_promised_nothing() {
    let mut world = World::new();
    let entries = pool(&mut world);
    let effects = world.step(Input::Pooled(entries)).unwrap();
    let (attempt, package) = pooled(&world, &effects).unwrap();
    let asked = signers(&package);
    assert_eq!(
        world.session.promised(),
        asked.iter().copied().collect::<BTreeSet<_>>()
    );
    let refusal = Refusal::new(Rule::S5, "fee");
    let declined = Input::Lost {
        from: asked[0],
        attempt,
        refusal: Some(refusal.clone()),
    };
    world.step(declined).unwrap();
    let refused = Input::Refused {
        from: asked[1],
        refusal,
    };
    world.step(refused).unwrap();
    assert_eq!(world.session.promised(), BTreeSet::from([asked[2]]));
    // A share stays one when its signer refuses later.
    world.answer(asked[2], attempt, &package).unwrap();
    let refused = Input::Refused {
        from: asked[2],
        refusal: Refusal::new(Rule::S5, "fee"),
    };
    world.step(refused).unwrap();
    assert_eq!(world.session.promised(), BTreeSet::from([asked[2]]));
    // Who accepts anew without a word about the request may have answered it; who has refused it has not.
    world.accept(asked[0]).unwrap();
    world.accept(asked[1]).unwrap();
    assert_eq!(
        world.session.promised(),
        BTreeSet::from([asked[1], asked[2]])
    );
}

#[test]
fn commitments_that_are_no_points_keep_their_signer_out_of_the_next_attempt_and_its_share_in_this()
{
    let mut world = World::new();
    let (attempt, package) = world.accept_all();
    let chosen = signers(&package);
    let mut said = world.say(chosen[0], attempt, &package);
    let none = [&[2][..], &[0xFF; 32]].concat().repeat(4);
    said.next = Commitments::try_from(none).unwrap();
    let late = world.say(chosen[2], attempt, &package);
    world.hear(chosen[0], said).unwrap();
    // With the two that wait it would be enough for a second attempt.
    let effects = world.step(Input::WaitedLongEnough).unwrap();
    assert!(world.request(effects).is_none());
    assert!(world.session.ready().all(|signer| *signer != chosen[0]));
    let effects = world.answer(chosen[1], attempt, &package).unwrap();
    let (_, second) = world.request(effects).expect("a second attempt");
    assert!(!signers(&second).contains(&chosen[0]));
    let effects = world.hear(chosen[2], late).unwrap();
    assert!(world.check_signatures(&effects));
    assert!(world.session.blamed().is_empty());
    let mut world = World::new();
    let from = world.ids()[0];
    let none = [&[2][..], &[0xFF; 32]].concat().repeat(4);
    let commitments = Commitments::try_from(none).unwrap();
    assert_eq!(
        world
            .step(Input::Accepted { from, commitments })
            .unwrap_err(),
        Reject::Length(from)
    );
}

#[test]
fn the_pool_is_for_the_first_attempt_and_for_enough_signers_of_good_standing() {
    let mut world = World::new();
    let mut few = pool(&mut world);
    while few.len() >= usize::from(T) {
        few.pop_last();
    }
    let too_few = Reject::TooFew(few.len(), usize::from(T));
    assert_eq!(world.step(Input::Pooled(few)).unwrap_err(), too_few);
    let ids = world.ids();
    let mut poor = Standing::default();
    poor.learn(
        &BTreeSet::new(),
        &ids[..ids.len() - 1].iter().copied().collect(),
    );
    let mut wary = World::with(&poor);
    let entries = pool(&mut wary);
    let rejected = wary.step(Input::Pooled(entries)).unwrap_err();
    assert_eq!(rejected, Reject::TooFew(1, usize::from(T)));
    world.accept(ids[0]).unwrap();
    let entries = pool(&mut world);
    assert_eq!(
        world.step(Input::Pooled(entries)).unwrap_err(),
        Reject::Begun
    );
}
