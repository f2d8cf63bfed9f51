//! Lies about what a batch does to the ledger: operations that don't apply or are not as they must be (S3, S4),
//! and digests that are not the state's (S4).
//!
//! Where the circuit would not catch a lie, it comes once more with a proof that verifies: what stops it then is
//! the operators' own rule, not the proof.

use ark_bn254::Fr;
use ark_ff::{BigInteger as _, PrimeField as _};
use bitcoin::{Amount, ScriptBuf, opcodes::all::OP_PUSHNUM_1, script::Builder};
use ledger::{AccountSecret, Operation, SequenceNumber, VaultId};
use protocol::message::Rule;
use rand::rngs::OsRng;

use super::{
    course::Placement,
    draft::Draft,
    lie::{Kind, Layer, Lie, one_less},
    proofs::plus,
    stage::{Stage, Terms},
};

const S1: &[Rule] = &[Rule::S1];
const S3: &[Rule] = &[Rule::S3];
const S4: &[Rule] = &[Rule::S4];
/// Another vault than any.
pub const ELSEWHERE: VaultId = VaultId([0x44; 32]);
const fn kind(
    name: &'static str,
    changed: &'static str,
    rules: &'static [Rule],
    says: &'static str,
) -> Kind {
    Kind::new(Layer::Ledger, name, changed, rules, says)
}

/// All of them.
pub fn lies(stage: &Stage) -> Vec<Lie> {
    let mut lies = operations(stage);
    lies.extend(unsigned_or_unpaid(stage));
    lies.extend(lists(stage));
    lies.extend(digests(stage));
    lies
}

fn set(draft: &mut Draft, place: usize, operation: Operation) {
    if let Some(item) = draft.operations.get_mut(place) {
        *item = operation;
    }
}

/// Places in the honest draft.
const NEW_ACCOUNT: usize = 1;
const TRANSFER: usize = 2;
const WITHDRAW: usize = 3;
const LAST: usize = 4;

/// Well signed by their owner, and against the rules all the same.
fn operations(stage: &Stage) -> Vec<Lie> {
    let accomplice = &stage.accomplice;
    let parameters = stage.standing.vault.parameters();
    let lawful = stage.lawful(parameters.withdraw_fee);
    let [payee, _] = &stage.payees;
    let recipient = AccountSecret::generate(&mut OsRng).public();
    let expired = SequenceNumber(stage.standing.next().0.saturating_sub(1));
    let payout = Amount::from_sat(30_000);
    let at = |place, kind, operation: Operation| {
        Lie::new(kind, &stage.honest).draft(|draft| set(draft, place, operation))
    };
    let mut lies = Vec::new();
    lies.extend(
        at(
            WITHDRAW,
            kind(
                "dust payout",
                "a withdrawal below the dust limit of its script",
                S3,
                "needs at least",
            ),
            accomplice.withdraw(1, payee.clone(), Amount::from_sat(200), &lawful),
        )
        .both(),
    );
    lies.extend(
        at(
            WITHDRAW,
            kind(
                "non-standard payout",
                "a withdrawal to a script that anyone can spend",
                S3,
                "standard",
            ),
            accomplice.withdraw(
                1,
                Builder::new().push_opcode(OP_PUSHNUM_1).into_script(),
                payout,
                &lawful,
            ),
        )
        .both(),
    );
    lies.extend(
        at(
            WITHDRAW,
            kind(
                "data payout",
                "a withdrawal to an OP_RETURN, next to the commitment",
                S3,
                "standard",
            ),
            accomplice.withdraw(1, ScriptBuf::new_op_return([7; 8]), payout, &lawful),
        )
        .both(),
    );
    lies.extend(
        at(
            WITHDRAW,
            kind(
                "withdrawal fee too low",
                "a withdrawal whose fee is one sat below the vault's",
                S3,
                "below the vault's",
            ),
            accomplice.withdraw(
                1,
                payee.clone(),
                payout,
                &stage.lawful(one_less(parameters.withdraw_fee)),
            ),
        )
        .both(),
    );
    lies.extend(
        at(
            TRANSFER,
            kind(
                "transfer fee too low",
                "a transfer whose fee is one sat below the vault's",
                S3,
                "below the vault's",
            ),
            accomplice.transfer(
                0,
                recipient,
                Amount::from_sat(10_000),
                &stage.lawful(one_less(parameters.transfer_fee)),
            ),
        )
        .both(),
    );
    lies.extend(
        at(
            LAST,
            kind(
                "expired operation",
                "a withdrawal that was valid up to the batch before",
                S3,
                "expired",
            ),
            accomplice.withdraw(
                2,
                payee.clone(),
                payout,
                &Terms {
                    last_valid: expired,
                    ..lawful
                },
            ),
        )
        .both(),
    );
    lies.push(at(
        WITHDRAW,
        kind("empty payout", "a withdrawal of nothing", S3, "zero"),
        accomplice.withdraw(1, payee.clone(), Amount::ZERO, &lawful),
    ));
    lies
}

/// No proof of these exists: the circuit checks signatures, nonces and balances too.
fn unsigned_or_unpaid(stage: &Stage) -> Vec<Lie> {
    let accomplice = &stage.accomplice;
    let parameters = stage.standing.vault.parameters();
    let lawful = stage.lawful(parameters.withdraw_fee);
    let [payee, other] = &stage.payees;
    let sats = Amount::from_sat;
    let at = |place, kind, operation: Operation| {
        Lie::new(kind, &stage.honest).draft(|draft| set(draft, place, operation))
    };
    let replace_script = |script: &ScriptBuf| {
        let mut operation = accomplice.withdraw(1, payee.clone(), sats(30_000), &lawful);
        if let Operation::Withdraw { script_pubkey, .. } = &mut operation {
            script_pubkey.clone_from(script);
        }
        operation
    };
    let replace_amount = |more: u64| {
        let mut operation = accomplice.withdraw(1, payee.clone(), sats(30_000), &lawful);
        if let Operation::Withdraw { amount, .. } = &mut operation {
            *amount = sats(amount.to_sat().saturating_add(more));
        }
        operation
    };
    let unknown = {
        let mut operation = accomplice.withdraw(1, payee.clone(), sats(30_000), &lawful);
        if let Operation::Withdraw { sender, .. } = &mut operation {
            sender.0 = 999;
        }
        operation
    };
    vec![
        at(
            WITHDRAW,
            kind(
                "payout script replaced",
                "a signed withdrawal with the liar's script",
                S4,
                "signature",
            ),
            replace_script(&stage.thief),
        ),
        at(
            WITHDRAW,
            kind(
                "payout amount replaced",
                "a signed withdrawal with one sat more",
                S4,
                "signature",
            ),
            replace_amount(1),
        ),
        at(
            WITHDRAW,
            kind(
                "signed for another vault",
                "a withdrawal that its owner signed for another vault",
                S4,
                "signature",
            ),
            accomplice.withdraw(
                1,
                other.clone(),
                sats(30_000),
                &Terms {
                    vault: ELSEWHERE,
                    ..lawful
                },
            ),
        ),
        at(
            WITHDRAW,
            kind(
                "nonce used",
                "an operation with the nonce of the one before",
                S4,
                "stale nonce",
            ),
            accomplice.withdraw(0, payee.clone(), sats(30_000), &lawful),
        ),
        at(
            LAST,
            kind(
                "nonce skipped",
                "an operation whose predecessor is missing",
                S4,
                "future nonce",
            ),
            accomplice.withdraw(7, payee.clone(), sats(30_000), &lawful),
        ),
        at(
            WITHDRAW,
            kind(
                "overdraft",
                "a withdrawal of more than the account holds",
                S4,
                "insufficient balance",
            ),
            accomplice.withdraw(1, payee.clone(), sats(700_000), &lawful),
        ),
        at(
            WITHDRAW,
            kind(
                "unknown sender",
                "a withdrawal from an account that does not exist",
                S4,
                "does not exist",
            ),
            unknown,
        ),
    ]
}

/// Operations left out or in another order, and new accounts where no rule puts them.
fn lists(stage: &Stage) -> Vec<Lie> {
    let honest = &stage.honest;
    let lie = |name, changed, rules, says| Lie::new(kind(name, changed, rules, says), honest);
    let payout = honest.operations.get(LAST).cloned();
    let mut lies = vec![
        lie(
            "operations reordered",
            "two deposits in the other order, digests and transaction to match",
            S4,
            "the proof of chunk 0",
        )
        .draft(|draft| {
            draft.operations.swap(0, NEW_ACCOUNT);
            draft.terms.swap(0, NEW_ACCOUNT);
            draft.values.swap(0, NEW_ACCOUNT);
        }),
        lie(
            "operation dropped",
            "a withdrawal left out, digests and transaction to match",
            S4,
            "the proof of chunk 0",
        )
        .draft(|draft| {
            draft.operations.pop();
        }),
        lie(
            "operation added",
            "a withdrawal more, digests and transaction to match",
            S4,
            "the proof of chunk 0",
        )
        .draft(|draft| {
            let terms = stage.lawful(stage.standing.vault.parameters().withdraw_fee);
            draft.operations.push(stage.accomplice.withdraw(
                3,
                stage.thief.clone(),
                Amount::from_sat(9_000),
                &terms,
            ));
        }),
    ];
    // A payout that nobody burns for: the proof is right, the transaction is not what the operations say.
    if let Some(Operation::Withdraw {
        amount,
        script_pubkey,
        ..
    }) = payout
    {
        lies.push(
            lie(
                "payout without burn",
                "a withdrawal left out of the ledger and paid all the same",
                S1,
                "rebuilt from own data",
            )
            .draft(|draft| {
                draft.operations.pop();
            })
            .twist(move |proposal| {
                proposal.with_transaction(|transaction| {
                    if let Some(treasury) = transaction.output.first_mut() {
                        treasury.value = treasury.value.checked_sub(amount).unwrap_or_default();
                    }
                    transaction.output.push(bitcoin::TxOut {
                        value: amount,
                        script_pubkey,
                    });
                });
            })
            .remade(),
        );
    }
    for (name, changed, placement) in [
        (
            "leaf out of turn",
            "a new account one leaf beyond the next free one; the circuit does not ask",
            Placement::Gap,
        ),
        (
            "second leaf",
            "another leaf for a key that has one; the circuit does not ask",
            Placement::SecondLeaf,
        ),
    ] {
        lies.push(
            lie(name, changed, S4, "the digests")
                .draft(|draft| draft.placement = placement)
                .remade(),
        );
    }
    lies
}

fn digests(stage: &Stage) -> Vec<Lie> {
    let lie = |name, changed, says| Lie::new(kind(name, changed, S4, says), &stage.honest);
    let modulus = Fr::MODULUS;
    vec![
        lie(
            "other state before",
            "a batch that starts at the digest of an empty ledger",
            "the digests",
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                if let Some(digest) = body.digests.first_mut() {
                    *digest = ledger::Ledger::new().digest().to_bytes();
                }
            });
        }),
        lie(
            "other state after",
            "a batch that ends at the digest at which it starts",
            "the digests",
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                if let [first, .., last] = body.digests.as_mut_slice() {
                    *last = *first;
                }
            });
        }),
        lie(
            "non-canonical digest",
            "the digest after plus the field's modulus: the same element",
            "the digests",
        )
        .twist(move |proposal| {
            proposal.with_body(|body| {
                if let Some(digest) = body.digests.last_mut() {
                    *digest = plus(digest, &modulus.to_bytes_le());
                }
            });
        }),
        lie(
            "two proofs for one chunk",
            "one proof and one digest too many",
            "the digests",
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                body.proofs.extend_from_within(..1);
                body.digests.extend_from_within(1..);
            });
        }),
        lie(
            "no proof",
            "a batch without proof, and with one digest",
            "the digests",
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                body.proofs.clear();
                body.digests.truncate(1);
            });
        }),
    ]
}
