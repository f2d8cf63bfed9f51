//! Five operators, three of whom sign; the share of operator 0 is lost. Nothing here but the network is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use protocol::{
    identity::{Identity, PeerKey, Signed},
    message::{Answer, Ask, Refusal, Rule},
    repair::{DELTA_DOMAIN, RepairAnswer, RepairAsk, RunDelta, SPLIT_DOMAIN},
    roster::Roster,
};
use rand::rngs::OsRng;
use threshold::{
    KeyShare, SignerId,
    dkg::{Ceremony, Machine, Seed},
    repair::{Delta, Helper, Run, Sigma},
};

use super::*;
use crate::testing;

const N: usize = 5;
/// Longer than a run may take, in ms.
const LONG: u64 = 60_000;

fn identity(index: usize) -> Identity {
    testing::identity(index)
}

fn roster() -> Arc<Roster> {
    let mut roster = testing::roster().clone();
    roster.threshold = 3;
    roster.operators = (0..N)
        .map(|index| {
            let mut member = roster.operators[0].clone();
            member.name = format!("operator {index}");
            member.key = identity(index).public();
            member
        })
        .collect();
    // The new host has a new identity.
    roster.operators[0].founding_key = Some(identity(0).public());
    roster.operators[0].key = new_identity().public();
    Arc::new(roster)
}

fn new_identity() -> Identity {
    Identity::from_secret(&[0xA0; 32])
}

fn shares() -> &'static [KeyShare] {
    static SHARES: OnceLock<Vec<KeyShare>> = OnceLock::new();
    SHARES.get_or_init(|| {
        let roster = roster();
        let ids: Vec<SignerId> = roster.operators.iter().map(|m| m.signer()).collect();
        let mut machines: Vec<Machine> = ids
            .iter()
            .map(|me| {
                let ceremony = Ceremony {
                    me: *me,
                    signers: roster.signers(),
                    threshold: roster.threshold,
                    context: [1; 32],
                };
                Machine::new(ceremony, &Seed::random(&mut OsRng)).unwrap()
            })
            .collect();
        for _ in 0..4 {
            for from in 0..N {
                for to in (0..N).filter(|to| *to != from) {
                    for message in machines[from].messages_for(ids[to]) {
                        machines[to].receive(ids[from], message).unwrap();
                    }
                }
            }
        }
        let finished = machines
            .iter()
            .map(|m| testing::copy(m.finished().unwrap()));
        finished.collect()
    })
}

/// A helper, and what it does to the answers that leave it.
struct Operator {
    index: usize,
    identity: Arc<Identity>,
    helping: Helping,
    approves: bool,
    lie: Lie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    Silent,
    Split,
    Delta,
    Sum,
    Accuse,
    /// Its δ carry another's signature.
    Unsigned,
    Group,
}

struct Net {
    now: u64,
    roster: Arc<Roster>,
    member: Repairing,
    operators: Vec<Operator>,
}

impl Net {
    fn new() -> Self {
        let roster = roster();
        let me = roster.signer(&new_identity().public()).unwrap();
        let operators = (1..N).map(|index| operator(&roster, index)).collect();
        Self {
            now: 1_000_000,
            member: Repairing::new(roster.clone(), Arc::new(new_identity()), me),
            roster,
            operators,
        }
    }

    fn lying(lie: Lie, who: &[usize]) -> Self {
        let mut net = Self::new();
        for operator in &mut net.operators {
            if who.contains(&operator.index) {
                operator.lie = lie;
            }
        }
        net
    }

    fn signer(&self, index: usize) -> SignerId {
        self.roster.operators[index].signer()
    }

    fn by_key(&mut self, key: &PeerKey) -> &mut Operator {
        let mut operators = self.operators.iter_mut();
        operators
            .find(|operator| operator.identity.public() == *key)
            .unwrap()
    }

    fn connected(&self) -> BTreeSet<PeerKey> {
        self.operators
            .iter()
            .map(|operator| operator.identity.public())
            .collect()
    }

    /// Everybody asks what it wants to know, once. Gives the share when the member has it.
    fn round(&mut self) -> Option<KeyShare> {
        self.now += 250;
        let connected = self.connected();
        for (peer, ask) in self.member.questions(self.now, &connected) {
            let run = match &ask {
                Ask::Repair(RepairAsk::Run { run, .. }) => Some(run.id()),
                _ => None,
            };
            let now = self.now;
            let Some(answer) = self.by_key(&peer).answer(now, ask) else {
                continue;
            };
            if let Some(share) = self.member.take(&peer, run, answer) {
                return Some(share);
            }
        }
        for asking in 0..self.operators.len() {
            for (peer, run) in self.operators[asking].helping.wanted() {
                let own = self.operators[asking].identity.public();
                if let Some(delta) = self.by_key(&peer).delta(&own, &run) {
                    let asking = &mut self.operators[asking].helping;
                    asking.take_delta(&peer, &run.id(), delta);
                }
            }
        }
        None
    }

    fn rounds(&mut self, rounds: usize) -> Option<KeyShare> {
        (0..rounds).find_map(|_| self.round())
    }
}

fn operator(roster: &Arc<Roster>, index: usize) -> Operator {
    let identity = Arc::new(identity(index));
    Operator {
        index,
        helping: Helping::new(roster.clone(), identity.clone()),
        identity,
        approves: true,
        lie: Lie::None,
    }
}

/// Adds 1 to a secret, which stays canonical.
fn changed<T: serde::Serialize + serde::de::DeserializeOwned>(secret: &T) -> T {
    let mut bytes = postcard::to_stdvec(secret).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    postcard::from_bytes(&bytes).unwrap()
}

impl Operator {
    fn answer(&mut self, now: u64, ask: Ask) -> Option<Answer> {
        if self.lie == Lie::Silent && matches!(ask, Ask::Repair(RepairAsk::Run { .. })) {
            return None;
        }
        match ask {
            Ask::Group if self.lie == Lie::Group => {
                let other = testing::share(0).group().clone();
                Some(Answer::Group(Some(other)))
            }
            Ask::Group => Some(Answer::Group(Some(shares()[0].group().clone()))),
            Ask::Repair(_) if !self.approves => {
                Some(Answer::Refused(Refusal::new(Rule::S12, "not approved")))
            }
            Ask::Repair(ask) => {
                let share = &shares()[self.index];
                let member = new_identity().public();
                let helped = self
                    .helping
                    .answer(now, &member, ask.clone(), |run| Helper::new(share, run));
                Some(match helped {
                    Ok(answer) => Answer::Repair(self.twist(answer, &ask)),
                    Err(refusal) => Answer::Refused(refusal),
                })
            }
            other => panic!("{other:?}"),
        }
    }

    /// What a liar makes of its honest answer.
    fn twist(&self, answer: RepairAnswer, ask: &RepairAsk) -> RepairAnswer {
        match (self.lie, answer) {
            (Lie::Split, RepairAnswer::Split(signed)) => {
                let (_, body) = signed.verify(SPLIT_DOMAIN).unwrap();
                let mut lie = body.clone();
                let mut bytes = Vec::from(lie.split);
                let (first, second) = bytes.split_at_mut(33);
                first.copy_from_slice(&second[..33]);
                lie.split = bytes.try_into().unwrap();
                RepairAnswer::Split(self.identity.sign(SPLIT_DOMAIN, lie))
            }
            (Lie::Sum, RepairAnswer::Sum(sum)) => RepairAnswer::Sum(changed::<Sigma>(&sum)),
            (Lie::Accuse, RepairAnswer::Sum(_) | RepairAnswer::Waiting(_)) => {
                // It can't sign for another, so it signs itself what it says to have got.
                let RepairAsk::Run { run, .. } = ask else {
                    panic!("no run")
                };
                let delta: Delta =
                    postcard::from_bytes(&[&[32_u8][..], &[1; 32]].concat()).unwrap();
                let to = roster().signer(&self.identity.public()).unwrap();
                let run = run.id();
                let made_up = RunDelta { run, to, delta };
                RepairAnswer::Accusation(self.identity.sign(DELTA_DOMAIN, made_up))
            }
            (_, answer) => answer,
        }
    }

    fn delta(&mut self, peer: &PeerKey, run: &Run) -> Option<Signed<RunDelta>> {
        let delta = self.helping.delta(peer, run).ok()?;
        let (_, body) = delta.verify(DELTA_DOMAIN).unwrap();
        match self.lie {
            Lie::Silent => None,
            Lie::Delta => {
                let mut lie = body.clone();
                lie.delta = changed(&lie.delta);
                Some(self.identity.sign(DELTA_DOMAIN, lie))
            }
            Lie::Unsigned => Some(new_identity().sign(DELTA_DOMAIN, body.clone())),
            _ => Some(delta),
        }
    }
}

fn assert_repaired(share: &KeyShare) {
    assert_eq!(
        *share.to_secret_bytes().unwrap(),
        *shares()[0].to_secret_bytes().unwrap()
    );
}

#[test]
fn the_lost_share_comes_back_to_the_new_identity() {
    let mut net = Net::new();
    assert_repaired(&net.rounds(12).unwrap());
    assert!(net.member.shown().blamed.is_empty());
}

#[test]
fn helpers_and_member_that_restart_at_any_step_lose_nothing_but_time() {
    for at in 1..6 {
        let mut net = Net::new();
        assert!(net.rounds(at).is_none() || at == 5, "{at}");
        for operator in &mut net.operators {
            operator.helping = Helping::new(net.roster.clone(), operator.identity.clone());
        }
        assert_repaired(&net.rounds(12).unwrap());

        let mut net = Net::new();
        net.rounds(at);
        let me = net.signer(0);
        net.member = Repairing::new(net.roster.clone(), Arc::new(new_identity()), me);
        net.now += 2_000;
        assert_repaired(&net.rounds(20).unwrap());
    }
}

#[test]
fn nothing_happens_before_t_administrators_approve() {
    let mut net = Net::new();
    for operator in &mut net.operators[1..] {
        operator.approves = false;
    }
    net.operators[1].approves = true;
    assert!(net.rounds(30).is_none());
    let shown = net.member.shown();
    assert_eq!(
        shown.missing,
        BTreeSet::from([net.signer(3), net.signer(4)])
    );
    assert_eq!(shown.refused.len(), 2);
    net.operators[3].approves = true;
    assert_repaired(&net.rounds(20).unwrap());
}

#[test]
fn every_liar_is_named_and_left_out_of_the_next_run() {
    for lie in [Lie::Split, Lie::Delta, Lie::Sum, Lie::Accuse] {
        for liar in 1..N {
            let mut net = Net::lying(lie, &[liar]);
            let share = net
                .rounds(60)
                .unwrap_or_else(|| panic!("{lie:?} of {liar}: {:?}", net.member.shown()));
            assert_repaired(&share);
            let blamed: Vec<_> = net.member.shown().blamed.into_keys().collect();
            // Four are ready and three help: the last one may never have been asked.
            assert!(
                blamed.is_empty() || blamed == [net.signer(liar)],
                "{lie:?} of {liar}: {blamed:?}"
            );
        }
        // With all but three lying it is known who.
        let mut net = Net::lying(lie, &[1, 2]);
        assert!(net.rounds(120).is_none());
        let blamed: BTreeSet<_> = net.member.shown().blamed.into_keys().collect();
        assert!(!blamed.is_empty(), "{lie:?}");
        assert!(blamed.is_subset(&BTreeSet::from([net.signer(1), net.signer(2)])));
    }
}

#[test]
fn who_is_silent_or_signs_nothing_is_passed_over_without_blame() {
    for lie in [Lie::Silent, Lie::Unsigned] {
        for who in 1..N {
            let mut net = Net::lying(lie, &[who]);
            let mut share = net.rounds(20);
            for _ in 0..8 {
                if share.is_some() {
                    break;
                }
                net.now += LONG;
                share = net.rounds(20);
            }
            assert_repaired(&share.unwrap_or_else(|| panic!("{lie:?} of {who}")));
            assert!(net.member.shown().blamed.is_empty());
        }
    }
}

#[test]
fn a_group_that_fewer_than_t_name_is_not_believed() {
    let mut net = Net::lying(Lie::Group, &[1]);
    assert_repaired(&net.rounds(12).unwrap());
    let mut net = Net::lying(Lie::Group, &[1, 2]);
    assert!(net.rounds(12).is_none());
    assert_eq!(net.member.shown().stage, "asking which group it is");
}

#[test]
fn late_answers_of_a_run_that_was_given_up_blame_nobody() {
    let mut net = Net::new();
    let mut late = Vec::new();
    for _ in 0..3 {
        net.now += 250;
        let connected = net.connected();
        for (peer, ask) in net.member.questions(net.now, &connected) {
            let run = match &ask {
                Ask::Repair(RepairAsk::Run { run, .. }) => Some(run.id()),
                _ => None,
            };
            let now = net.now;
            let answer = net.by_key(&peer).answer(now, ask).unwrap();
            if run.is_some() {
                late.push((peer, run, answer));
            } else {
                net.member.take(&peer, run, answer);
            }
        }
    }
    assert!(!late.is_empty());
    net.now += LONG;
    net.rounds(3);
    for (peer, run, answer) in late {
        assert!(net.member.take(&peer, run, answer).is_none());
    }
    assert!(net.member.shown().blamed.is_empty());
    assert_repaired(&net.rounds(20).unwrap());
}

#[test]
fn helpers_serve_only_the_member_of_the_run_and_only_its_helpers() {
    let mut net = Net::new();
    let group = shares()[0].group();
    let helpers = BTreeSet::from([net.signer(1), net.signer(2), net.signer(3)]);
    let run = Run {
        member: net.signer(0),
        helpers,
        group: group.digest(),
        context: [3; 32],
    };
    let (member, stranger) = (new_identity().public(), identity(4).public());
    let (two, founding) = (identity(2).public(), identity(0).public());
    let ask = |splits| RepairAsk::Run {
        run: run.clone(),
        splits,
    };
    let help = |run| Helper::new(&shares()[1], run);
    let helping = &mut net.operators[0].helping;
    // δ before the member has asked here.
    assert!(helping.delta(&two, &run).is_err());
    // Another operator's repair, and the lost identity.
    for who in [stranger, founding] {
        let refusal = helping.answer(0, &who, ask(Vec::new()), help).unwrap_err();
        assert_eq!(refusal.rule, Rule::S12);
    }
    let first = helping.answer(0, &member, ask(Vec::new()), help).unwrap();
    let RepairAnswer::Split(own) = first else {
        panic!("{first:?}")
    };
    // Splits that another has signed, or of another run.
    let (_, body) = own.verify(SPLIT_DOMAIN).unwrap();
    let mut other_run = body.clone();
    other_run.run.0[0] ^= 1;
    for bad in [
        new_identity().sign(SPLIT_DOMAIN, body.clone()),
        identity(1).sign(SPLIT_DOMAIN, other_run),
        identity(1).sign(DELTA_DOMAIN, body.clone()),
    ] {
        assert!(helping.answer(0, &member, ask(vec![bad]), help).is_err());
    }
    // Its own split alone is not everybody's.
    assert!(helping.answer(0, &member, ask(vec![own]), help).is_err());
    assert!(helping.delta(&two, &run).is_ok());
    for who in [identity(1).public(), stranger, member] {
        assert!(helping.delta(&who, &run).is_err(), "no helper of this run");
    }
    // Runs have a rate.
    let mut second = run.clone();
    second.context = [4; 32];
    let second = RepairAsk::Run {
        run: second,
        splits: Vec::new(),
    };
    assert!(helping.answer(1, &member, second.clone(), help).is_err());
    assert!(helping.answer(2_000, &member, second, help).is_ok());
    helping.forget();
    assert!(helping.delta(&two, &run).is_err());
}

#[test]
fn approvals_and_the_own_repair_are_there_after_a_restart() {
    let (_folder, store) = testing::store();
    let (key, other) = (new_identity().public(), identity(1).public());
    let approval = Approval {
        signer: shares()[0].signer(),
        epoch: 3,
    };
    assert!(load_approvals(&store).unwrap().is_empty());
    assert_eq!(load_own(&store).unwrap(), None);
    save_approval(&store, &key, &approval).unwrap();
    save_approval(&store, &other, &approval).unwrap();
    delete_approvals(&store, [&other]).unwrap();
    assert_eq!(
        load_approvals(&store).unwrap(),
        BTreeMap::from([(key, approval)])
    );
    for own in [OwnRepair::Asked, OwnRepair::Done { epoch: 3 }] {
        save_own(&store, &own).unwrap();
        assert_eq!(load_own(&store).unwrap(), Some(own));
    }
}
