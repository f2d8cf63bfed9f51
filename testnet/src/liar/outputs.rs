//! Lies about what the transaction pays. No transaction travels before it is signed, only its id: each of these
//! names the id of a transaction so changed, and S1 finds that own data build another one.

use bitcoin::{
    Amount, Sequence, Transaction, TxOut,
    absolute::LockTime,
    opcodes::all::{OP_PUSHNUM_1, OP_RETURN},
    script::{Builder, PushBytesBuf},
    transaction::Version,
};
use ledger::SequenceNumber;
use protocol::{
    message::Rule,
    transaction::{COMMITMENT_VERSION, Commitment, MAGIC},
};

use super::{
    lie::{Kind, Layer, Lie, one_less, one_more},
    stage::Stage,
};

/// Where the payouts begin.
const PAYOUTS: usize = 2;

fn kind(name: &'static str, changed: &'static str) -> Kind {
    Kind::new(
        Layer::Outputs,
        name,
        changed,
        &[Rule::S1],
        "rebuilt from own data",
    )
}

/// All of them.
pub fn lies(stage: &Stage) -> Vec<Lie> {
    let mut lies = payouts(stage);
    lies.extend(notes(stage));
    lies.extend(treasuries(stage));
    lies.extend(forms(stage));
    lies
}

fn changed(
    stage: &Stage,
    kind: Kind,
    change: impl FnOnce(&mut Transaction) + Send + 'static,
) -> Lie {
    Lie::new(kind, &stage.honest).twist(|proposal| proposal.with_transaction(change))
}

fn output(transaction: &mut Transaction, place: usize, change: impl FnOnce(&mut TxOut)) {
    if let Some(output) = transaction.output.get_mut(place) {
        change(output);
    }
}

fn payouts(stage: &Stage) -> Vec<Lie> {
    let (thief, thief_too) = (stage.thief.clone(), stage.thief.clone());
    let extra = TxOut {
        value: Amount::from_sat(10_000),
        script_pubkey: stage.thief.clone(),
    };
    vec![
        changed(
            stage,
            kind("payout redirected", "a payout to the liar's script"),
            move |transaction| {
                output(transaction, PAYOUTS, |output| output.script_pubkey = thief);
            },
        ),
        changed(
            stage,
            kind("payouts reordered", "two payouts in the other order"),
            |transaction| {
                transaction.output.swap(PAYOUTS, PAYOUTS + 1);
            },
        ),
        changed(
            stage,
            kind(
                "payout one sat less",
                "a payout less one sat, which the treasury keeps",
            ),
            |transaction| {
                output(transaction, PAYOUTS, |output| {
                    output.value = one_less(output.value)
                });
                output(transaction, 0, |output| {
                    output.value = one_more(output.value)
                });
            },
        ),
        changed(
            stage,
            kind(
                "payout one sat more",
                "a payout with one sat of the treasury's",
            ),
            |transaction| {
                output(transaction, PAYOUTS, |output| {
                    output.value = one_more(output.value)
                });
                output(transaction, 0, |output| {
                    output.value = one_less(output.value)
                });
            },
        ),
        changed(
            stage,
            kind("payout left out", "a burn that is not paid"),
            |transaction| {
                transaction.output.pop();
            },
        ),
        changed(
            stage,
            kind(
                "extra output",
                "one more output, to the liar, out of the treasury",
            ),
            move |transaction| {
                output(transaction, 0, |output| {
                    output.value = output.value.checked_sub(extra.value).unwrap_or_default();
                });
                transaction.output.push(extra);
            },
        ),
        changed(
            stage,
            kind("dust output", "one more output of one sat"),
            move |transaction| {
                output(transaction, 0, |output| {
                    output.value = one_less(output.value)
                });
                transaction.output.push(TxOut {
                    value: Amount::from_sat(1),
                    script_pubkey: thief_too,
                });
            },
        ),
        changed(
            stage,
            kind(
                "non-standard output",
                "one more output that anyone can spend",
            ),
            |transaction| {
                transaction.output.push(TxOut {
                    value: Amount::from_sat(1_000),
                    script_pubkey: Builder::new().push_opcode(OP_PUSHNUM_1).into_script(),
                });
            },
        ),
    ]
}

fn notes(stage: &Stage) -> Vec<Lie> {
    let note = |transaction: &mut Transaction, change: &dyn Fn(&mut Commitment)| {
        output(transaction, 1, |output| {
            if let Some(mut commitment) = Commitment::parse(&output.script_pubkey) {
                change(&mut commitment);
                output.script_pubkey = commitment.script();
            }
        });
    };
    vec![
        changed(
            stage,
            kind("no OP_RETURN", "a transaction without the commitment"),
            |transaction| {
                transaction.output.remove(1);
            },
        ),
        changed(
            stage,
            kind("two OP_RETURNs", "a second commitment behind the payouts"),
            |transaction| {
                if let Some(note) = transaction.output.get(1).cloned() {
                    transaction.output.push(note);
                }
            },
        ),
        changed(
            stage,
            kind("another digest", "an OP_RETURN with another state digest"),
            move |transaction| {
                note(transaction, &|commitment| commitment.digest = [0x33; 32]);
            },
        ),
        changed(
            stage,
            kind("another supply", "an OP_RETURN with one sat less of supply"),
            move |transaction| {
                note(transaction, &|commitment| {
                    commitment.supply = one_less(commitment.supply)
                });
            },
        ),
        changed(
            stage,
            kind(
                "another number",
                "an OP_RETURN with the sequence number after next",
            ),
            move |transaction| {
                note(transaction, &|commitment| {
                    commitment.sequence = SequenceNumber(commitment.sequence.0.saturating_add(1));
                });
            },
        ),
        changed(
            stage,
            kind(
                "another magic",
                "an OP_RETURN that is no commitment of this protocol",
            ),
            |transaction| {
                output(transaction, 1, |output| {
                    let mut bytes = PushBytesBuf::new();
                    let _ = bytes.extend_from_slice(b"XXXX");
                    output.script_pubkey = Builder::new()
                        .push_opcode(OP_RETURN)
                        .push_slice(bytes)
                        .into_script();
                });
            },
        ),
        changed(
            stage,
            kind(
                "another layout",
                "an OP_RETURN with the next version of the layout",
            ),
            |transaction| {
                output(transaction, 1, |output| {
                    let mut script = output.script_pubkey.to_bytes();
                    // OP_RETURN, the length of the push, then magic and version.
                    let version = MAGIC.len().saturating_add(2);
                    if let Some(byte) = script.get_mut(version) {
                        *byte = COMMITMENT_VERSION.saturating_add(1);
                    }
                    output.script_pubkey = script.into();
                });
            },
        ),
    ]
}

fn treasuries(stage: &Stage) -> Vec<Lie> {
    let thief = stage.thief.clone();
    let [first, _] = &stage.coins.good;
    let deposit = first.terms.address(&stage.standing.vault.group_key());
    let deposit = deposit
        .map(|address| address.script_pubkey)
        .unwrap_or_default();
    let handover = "S13's handover does not exist yet: no key but the vault's own can be built, so S1 stops it";
    vec![
        changed(
            stage,
            kind("treasury to another key", "output 0 pays the liar").note(handover),
            move |transaction| {
                output(transaction, 0, |output| output.script_pubkey = thief);
            },
        ),
        changed(
            stage,
            kind(
                "treasury to a deposit address",
                "output 0 pays the vault's key with a user's refund leaf",
            )
            .note(handover),
            move |transaction| {
                output(transaction, 0, |output| output.script_pubkey = deposit);
            },
        ),
        changed(
            stage,
            kind(
                "treasury one sat less",
                "output 0 with one sat less, which the miner gets",
            ),
            |transaction| {
                output(transaction, 0, |output| {
                    output.value = one_less(output.value)
                });
            },
        ),
        changed(
            stage,
            kind("treasury not first", "output 0 and a payout changed places"),
            |transaction| {
                transaction.output.swap(0, PAYOUTS);
            },
        ),
        changed(
            stage,
            kind(
                "treasury left out",
                "a transaction that makes no next treasury",
            ),
            |transaction| {
                transaction.output.remove(0);
            },
        ),
    ]
}

/// What a sighash commits to beside inputs and outputs. The sighash type itself is in no message: see the lies
/// about sessions.
fn forms(stage: &Stage) -> Vec<Lie> {
    let sequence = |sequence| {
        move |transaction: &mut Transaction| {
            if let Some(input) = transaction.input.first_mut() {
                input.sequence = sequence;
            }
        }
    };
    vec![
        changed(
            stage,
            kind("version 1", "a transaction of version 1"),
            |transaction| transaction.version = Version::ONE,
        ),
        changed(
            stage,
            kind(
                "version 3",
                "a transaction of version 3, with other relay rules",
            ),
            |transaction| transaction.version = Version(3),
        ),
        changed(
            stage,
            kind(
                "lock-time",
                "a transaction that is not final before a height",
            ),
            |transaction| {
                transaction.lock_time = LockTime::from_consensus(500);
            },
        ),
        changed(
            stage,
            kind(
                "input sequence final",
                "a treasury input that signals no replacement",
            ),
            sequence(Sequence::MAX),
        ),
        changed(
            stage,
            kind(
                "input sequence locked",
                "a treasury input with a relative time-lock",
            ),
            sequence(Sequence::from_height(10)),
        ),
        changed(
            stage,
            kind("script in an input", "a scriptSig in the treasury input"),
            |transaction| {
                if let Some(input) = transaction.input.first_mut() {
                    input.script_sig = Builder::new().push_opcode(OP_PUSHNUM_1).into_script();
                }
            },
        ),
    ]
}
