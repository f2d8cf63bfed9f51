//! Key generation: all operators' machines in one process, each message signed, encoded, decoded and verified once, as
//! between the nodes.

use std::collections::BTreeSet;

use protocol::{
    identity::{Identity, Signed},
    message::{Answer, DKG_DOMAIN, decode, encode},
};
use simulator::Group;
use threshold::{
    SignerId,
    dkg::{self, Ceremony, Kind, Machine, Seed},
};

use crate::machine::Took;

const GROUPS: [Group; 4] = [
    Group::new(3, 5),
    Group::new(12, 16),
    Group::new(34, 50),
    Group::new(67, 100),
];
const KINDS: [Kind; 4] = [Kind::Round1, Kind::Echo, Kind::Round2, Kind::Confirm];

struct Operator {
    id: SignerId,
    identity: Identity,
    machine: Machine,
    /// By kind of message, as in [`KINDS`].
    took: [Took; 4],
    sent: usize,
    bytes: usize,
}

pub fn print() {
    println!(
        "Key generation without a dealer, every operator on one thread; the mean of the operators' CPU time, in all and by\n\
         message. Messages and bytes that an operator sends, and as many that it receives."
    );
    println!(
        "{:>10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>14} {:>9} {:>11} {:>11}",
        "group",
        "CPU, ms",
        "round 1",
        "echo",
        "round 2",
        "confirm",
        "all, elapsed s",
        "messages",
        "bytes",
        "bytes a peer"
    );
    for group in GROUPS {
        row(&group);
    }
    println!(
        "\nHow it grows, for n operators and a threshold of t: messages 4 (n - 1); bytes (n - 1)(33 t + 65 n + about 700), as\n\
         a round-1 package has t points and an echo n digests; CPU n t point multiplications, and several times: to check\n\
         the others' shares, which FROST's last part does once more, and for everybody's verifying share."
    );
}

fn row(group: &Group) {
    let signers: BTreeSet<SignerId> = group.signers().collect();
    let mut operators: Vec<Operator> = group
        .identities()
        .zip(0_u8..)
        .map(|(identity, i)| {
            let id = SignerId::derive(&identity.public().0);
            let ceremony = Ceremony {
                me: id,
                signers: signers.clone(),
                threshold: group.threshold,
                context: [0xBE; 32],
            };
            let seed = Seed::from_bytes(&[i; 32]);
            let (machine, began) = Took::by(|| Machine::new(ceremony, &seed).unwrap());
            Operator {
                id,
                identity,
                machine,
                took: [began, Took::default(), Took::default(), Took::default()],
                sent: 0,
                bytes: 0,
            }
        })
        .collect();
    let (_, all) = Took::by(|| {
        for stage in 0..KINDS.len() {
            exchange(&mut operators, stage);
        }
    });
    let count = operators.len() as f64;
    let keys: BTreeSet<[u8; 32]> = operators
        .iter()
        .map(|operator| {
            operator
                .machine
                .finished()
                .unwrap()
                .group()
                .group_key()
                .to_bytes()
        })
        .collect();
    assert_eq!(keys.len(), 1);
    let mean = |stage: usize| {
        let of = operators.iter().map(|operator| operator.took[stage].cpu);
        of.map(|cpu| cpu.as_secs_f64() * 1e3).sum::<f64>() / count
    };
    let stages = [0, 1, 2, 3].map(mean);
    let [round1, echo, round2, confirm] = stages;
    let (sent, bytes) = (operators[0].sent, operators[0].bytes);
    println!(
        "{:>10} {:>8.0} {round1:>8.0} {echo:>8.0} {round2:>8.0} {confirm:>8.0} {:>14.1} {sent:>9} {bytes:>11} {:>11}",
        group.to_string(),
        stages.iter().sum::<f64>(),
        all.elapsed.as_secs_f64(),
        bytes / (operators.len() - 1)
    );
}

/// Everybody gets everybody's message of a stage.
fn exchange(operators: &mut [Operator], stage: usize) {
    for from in 0..operators.len() {
        for to in (0..operators.len()).filter(|to| *to != from) {
            let peer = operators[to].id;
            let message = operators[from].say(stage, peer);
            let author = operators[from].id;
            operators[to].hear(stage, author, &message);
        }
    }
}

impl Operator {
    fn say(&mut self, stage: usize, peer: SignerId) -> Vec<u8> {
        let (message, took) = Took::by(|| {
            let messages = self.machine.messages_for(peer).into_iter();
            let signed = messages
                .filter(|message| message.kind() == KINDS[stage])
                .map(|message| self.identity.sign(DKG_DOMAIN, message));
            encode(&Answer::Dkg(signed.collect()))
        });
        self.took[stage] += took;
        self.sent += 1;
        self.bytes += message.len();
        message
    }

    fn hear(&mut self, stage: usize, from: SignerId, message: &[u8]) {
        let ((), took) = Took::by(|| {
            let Ok(Answer::Dkg(messages)) = decode::<Answer>(message) else {
                panic!("not messages of key generation");
            };
            let [signed]: [Signed<dkg::Message>; 1] = messages.try_into().unwrap();
            let (_, said) = signed.verify(DKG_DOMAIN).unwrap();
            self.machine.receive(from, said.clone()).unwrap();
        });
        self.took[stage] += took;
    }
}
