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

const GROUPS: [Group; 3] = [Group::new(3, 5), Group::new(12, 16), Group::new(67, 100)];
const KINDS: [Kind; 4] = [Kind::Round1, Kind::Echo, Kind::Round2, Kind::Confirm];

struct Operator {
    id: SignerId,
    identity: Identity,
    machine: Machine,
    took: Took,
    sent: usize,
    bytes: usize,
}

pub fn print() {
    println!(
        "Key generation without a dealer, every operator on one thread; mean and most of the operators' CPU time. Messages\n\
         and bytes that an operator sends, and as many that it receives."
    );
    println!(
        "{:>10} {:>11} {:>11} {:>14} {:>9} {:>11} {:>11}",
        "group", "CPU, ms", "most, ms", "all, elapsed s", "messages", "bytes", "bytes a peer"
    );
    for group in GROUPS {
        row(&group);
    }
    println!(
        "\nHow it grows, for n operators and a threshold of t: messages 4 (n - 1); bytes (n - 1)(33 t + 65 n + about 700), as\n\
         a round-1 package has t points and an echo n digests; CPU n t multiplications three times: to check the others'\n\
         shares, again in FROST's last part, and for everybody's verifying share."
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
            let (machine, took) = Took::by(|| Machine::new(ceremony, &seed).unwrap());
            Operator {
                id,
                identity,
                machine,
                took,
                sent: 0,
                bytes: 0,
            }
        })
        .collect();
    let (_, all) = Took::by(|| {
        for kind in KINDS {
            exchange(&mut operators, kind);
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
    let cpu = |operator: &Operator| operator.took.cpu.as_secs_f64() * 1e3;
    let mean = operators.iter().map(cpu).sum::<f64>() / count;
    let most = operators.iter().map(cpu).fold(0.0, f64::max);
    let (sent, bytes) = (operators[0].sent, operators[0].bytes);
    println!(
        "{:>10} {mean:>11.0} {most:>11.0} {:>14.1} {sent:>9} {bytes:>11} {:>11}",
        group.to_string(),
        all.elapsed.as_secs_f64(),
        bytes / (operators.len() - 1)
    );
}

/// Everybody gets everybody's message of a kind.
fn exchange(operators: &mut [Operator], kind: Kind) {
    for from in 0..operators.len() {
        for to in (0..operators.len()).filter(|to| *to != from) {
            let peer = operators[to].id;
            let message = operators[from].say(kind, peer);
            let author = operators[from].id;
            operators[to].hear(author, &message);
        }
    }
}

impl Operator {
    fn say(&mut self, kind: Kind, peer: SignerId) -> Vec<u8> {
        let (message, took) = Took::by(|| {
            let messages = self.machine.messages_for(peer).into_iter();
            let signed = messages
                .filter(|message| message.kind() == kind)
                .map(|message| self.identity.sign(DKG_DOMAIN, message));
            encode(&Answer::Dkg(signed.collect()))
        });
        self.took += took;
        self.sent += 1;
        self.bytes += message.len();
        message
    }

    fn hear(&mut self, from: SignerId, message: &[u8]) {
        let ((), took) = Took::by(|| {
            let Ok(Answer::Dkg(messages)) = decode::<Answer>(message) else {
                panic!("not messages of key generation");
            };
            let [signed]: [Signed<dkg::Message>; 1] = messages.try_into().unwrap();
            let (_, said) = signed.verify(DKG_DOMAIN).unwrap();
            self.machine.receive(from, said.clone()).unwrap();
        });
        self.took += took;
    }
}
