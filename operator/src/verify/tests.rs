//! An honest batch is verified, and each single change to it is refused under the rule that it breaks.

use std::{collections::BTreeMap, str::FromStr as _, sync::Arc};

use bitcoin::{Amount, OutPoint, ScriptBuf, Txid, XOnlyPublicKey, hashes::Hash as _};
use chain::rpc::UnspentOutput;
use ledger::{
    AccountIndex, AccountSecret, Ledger, Operation, OperationError, SequenceNumber,
    TransferRequest, VaultId, WithdrawRequest,
};
use proof::Keys;
use protocol::{
    batch::{Body, Candidate},
    deposit::{DepositTerms, NUMS},
    message::{Refusal, Rule},
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, TopUp, Treasury},
};
use rand::rngs::OsRng;

use super::{Evidence, batch, genesis};
use crate::{settings::Caps, testing};

const FEE: Amount = Amount::from_sat(2_000);
const DEPTH: u32 = 2;

fn outpoint(n: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([n; 32]), 0)
}

fn unspent(value: u64, script_pubkey: ScriptBuf) -> UnspentOutput {
    UnspentOutput {
        value: Amount::from_sat(value),
        script_pubkey,
        confirmations: DEPTH,
        coinbase: false,
        best_block: bitcoin::BlockHash::all_zeros(),
    }
}

fn terms(account: &AccountSecret) -> DepositTerms {
    let refund = XOnlyPublicKey::from_str(NUMS).unwrap();
    DepositTerms::offered(
        testing::vault().id(),
        testing::parameters(),
        account.public(),
        refund,
    )
}

fn payout_script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([8; 20]))
}

/// The accounts of the two depositors.
struct Users(AccountSecret, AccountSecret);

impl Users {
    fn new() -> Self {
        Self(
            AccountSecret::generate(&mut OsRng),
            AccountSecret::generate(&mut OsRng),
        )
    }

    /// Two deposits, a transfer, a withdrawal.
    fn operations(&self, vault: &VaultId) -> Vec<Operation> {
        let deposit = |user: &AccountSecret, amount: u64, n: u8| Operation::Deposit {
            account: user.public(),
            amount: Amount::from_sat(amount),
            outpoint: outpoint(n),
        };
        vec![
            deposit(&self.0, 100_000, 1),
            deposit(&self.1, 50_000, 2),
            self.transfer(100).sign(&self.0, vault),
            self.withdrawal().sign(&self.0, vault),
        ]
    }

    fn transfer(&self, fee: u64) -> TransferRequest {
        TransferRequest {
            sender: AccountIndex(0),
            nonce: 0,
            amount: Amount::from_sat(10_000),
            fee: Amount::from_sat(fee),
            recipient: self.1.public(),
            last_valid: SequenceNumber(10),
        }
    }

    fn withdrawal(&self) -> WithdrawRequest {
        WithdrawRequest {
            sender: AccountIndex(0),
            nonce: 1,
            amount: Amount::from_sat(20_000),
            fee: Amount::from_sat(1_500),
            script_pubkey: payout_script(),
            last_valid: SequenceNumber(10),
        }
    }
}

fn caps() -> Caps {
    Caps {
        max_fee_sat: 5_000,
        max_fee_rate_sat_per_vb: 50,
        max_net_fees_sat: 0,
        window_blocks: 144,
    }
}

/// Everything that an honest coordinator and an honest node would say, with proofs.
fn honest(users: &Users, keys: &Keys) -> Evidence {
    let vault = testing::vault().clone();
    let id = vault.id();
    let mut ledger = Ledger::new();
    let head = Treasury {
        outpoint: vault.genesis_output().outpoint,
        value: testing::GENESIS_AMOUNT,
        commitment: Commitment {
            sequence: SequenceNumber(0),
            supply: Amount::ZERO,
            digest: ledger.digest().to_bytes(),
        },
    };
    let operations = users.operations(&id);
    let transition = ledger
        .apply_batch(&operations, &id, SequenceNumber(1))
        .unwrap();
    let proofs = transition
        .chunks
        .iter()
        .map(|chunk| {
            proof::prove_chunk(&keys.proving, chunk)
                .unwrap()
                .to_bytes()
                .to_vec()
        })
        .collect();
    let body = Body {
        vault: id,
        sequence: SequenceNumber(1),
        operations,
        terms: vec![terms(&users.0), terms(&users.1)],
        digests: transition
            .digests()
            .iter()
            .map(|digest| digest.to_bytes())
            .collect(),
        proofs,
    };
    let script = |user: &AccountSecret| {
        terms(user)
            .address(&vault.group_key())
            .unwrap()
            .script_pubkey
    };
    let outputs = BTreeMap::from([
        (outpoint(1), unspent(101_000, script(&users.0))),
        (outpoint(2), unspent(51_000, script(&users.1))),
        (outpoint(9), unspent(7_000, vault.script_pubkey().clone())),
    ]);
    let candidate = Candidate {
        vault: id,
        sequence: SequenceNumber(1),
        parent: head.outpoint,
        body: body.hash(),
        top_ups: Vec::new(),
        fee: FEE,
        txid: Txid::all_zeros(),
    };
    let mut evidence = Evidence {
        vault,
        candidate,
        body,
        head,
        outputs,
        replay: Ok(transition),
        is_bump: false,
        caps: caps(),
        recent_net_fees: 0,
    };
    evidence.candidate.txid = build(&evidence).unsigned.compute_txid();
    evidence
}

/// The transaction as a coordinator builds it, without asking whether it should.
fn build(evidence: &Evidence) -> BatchTransaction {
    let transition = evidence.replay.as_ref().unwrap();
    let group = evidence.vault.group_key();
    let deposits: Vec<Swept> = evidence
        .body
        .deposits()
        .zip(&evidence.body.terms)
        .map(|((outpoint, _), terms)| Swept {
            outpoint: *outpoint,
            value: evidence.outputs[outpoint].value,
            address: terms.address(&group).unwrap(),
        })
        .collect();
    let top_ups: Vec<TopUp> = evidence
        .candidate
        .top_ups
        .iter()
        .map(|outpoint| TopUp {
            outpoint: *outpoint,
            value: evidence.outputs[outpoint].value,
        })
        .collect();
    let plan = BatchPlan {
        treasury: &evidence.head,
        deposits: &deposits,
        top_ups: &top_ups,
        withdrawals: &evidence.body.withdrawals(),
        next: Commitment {
            sequence: evidence.body.sequence,
            supply: transition.after.supply,
            digest: transition.digest_after().to_bytes(),
        },
        fee: evidence.candidate.fee,
    };
    BatchTransaction::build(evidence.vault.key(), &plan).unwrap()
}

/// A change, with the rule that it breaks and words of the refusal.
type Case = (&'static str, fn(&mut Evidence), Rule, &'static str);

fn op(evidence: &mut Evidence, index: usize) -> &mut Operation {
    &mut evidence.body.operations[index]
}

fn output(evidence: &mut Evidence, n: u8) -> &mut UnspentOutput {
    evidence.outputs.get_mut(&outpoint(n)).unwrap()
}

fn rebuilt(evidence: &mut Evidence) {
    evidence.candidate.txid = build(evidence).unsigned.compute_txid();
}

fn cases_of_inputs() -> Vec<Case> {
    vec![
        (
            "another parent",
            |e| e.candidate.parent.vout ^= 1,
            Rule::S2,
            "not the latest treasury",
        ),
        (
            "a spent deposit",
            |e| drop(e.outputs.remove(&outpoint(2))),
            Rule::S2,
            "not an unspent output",
        ),
        (
            "a young deposit",
            |e| output(e, 1).confirmations = DEPTH - 1,
            Rule::S2,
            "confirmations",
        ),
        (
            "a young coinbase",
            |e| {
                output(e, 1).coinbase = true;
                output(e, 1).confirmations = 99;
            },
            Rule::S2,
            "99 of 100",
        ),
        (
            "another script",
            |e| output(e, 1).script_pubkey = payout_script(),
            Rule::S2,
            "does not pay the address",
        ),
        (
            "an underpaid deposit",
            |e| output(e, 1).value = Amount::from_sat(100_999),
            Rule::S2,
            "credits",
        ),
        (
            "a deposit below the minimum",
            |e| output(e, 1).value = Amount::from_sat(19_999),
            Rule::S2,
            "smallest deposit",
        ),
        (
            "another's terms",
            |e| e.body.terms.swap(0, 1),
            Rule::S2,
            "another account",
        ),
        (
            "cheaper terms",
            |e| e.body.terms[0].fee = Amount::ZERO,
            Rule::S2,
            "deposit fee",
        ),
        (
            "terms of another vault",
            |e| e.body.terms[0].vault.0[0] ^= 1,
            Rule::S2,
            "vault id",
        ),
        (
            "another refund delay",
            |e| e.body.terms[0].refund_delay += 1,
            Rule::S2,
            "refund delay",
        ),
        (
            "a deposit credited twice",
            |e| {
                let Operation::Deposit {
                    account, amount, ..
                } = *op(e, 0)
                else {
                    panic!()
                };
                let amount = amount - Amount::ONE_SAT;
                *op(e, 1) = Operation::Deposit {
                    account,
                    amount,
                    outpoint: outpoint(1),
                };
                e.body.terms[1] = e.body.terms[0].clone();
            },
            Rule::S2,
            "twice",
        ),
        (
            "a refund that opens soon",
            |e| output(e, 1).confirmations = 144 - 36 + 1,
            Rule::S2,
            "refund opens in",
        ),
        (
            "a bump after the refund opened",
            |e| {
                e.is_bump = true;
                output(e, 1).confirmations = 144;
            },
            Rule::S2,
            "refund opens in 0",
        ),
        (
            "a top-up that is the treasury",
            |e| e.candidate.top_ups = vec![e.head.outpoint],
            Rule::S2,
            "twice",
        ),
        (
            "a top-up that is a deposit",
            |e| e.candidate.top_ups = vec![outpoint(1)],
            Rule::S2,
            "twice",
        ),
        (
            "an unknown top-up",
            |e| e.candidate.top_ups = vec![outpoint(7)],
            Rule::S2,
            "not an unspent output",
        ),
        (
            "a top-up that is another's",
            |e| {
                e.candidate.top_ups = vec![outpoint(9)];
                output(e, 9).script_pubkey = payout_script();
            },
            Rule::S2,
            "does not pay the vault",
        ),
        (
            "too many top-ups",
            |e| e.candidate.top_ups = (20..29).map(outpoint).collect(),
            Rule::S2,
            "more than 8",
        ),
    ]
}

fn cases_of_operations() -> Vec<Case> {
    vec![
        (
            "another vault's body",
            |e| e.body.vault.0[0] ^= 1,
            Rule::S3,
            "another vault",
        ),
        (
            "another vault's candidate",
            |e| e.candidate.vault.0[0] ^= 1,
            Rule::S3,
            "another vault",
        ),
        (
            "another number in the candidate",
            |e| e.candidate.sequence.0 = 2,
            Rule::S3,
            "the candidate batch 2",
        ),
        (
            "no operations",
            |e| e.body.operations.clear(),
            Rule::S3,
            "empty",
        ),
        (
            "too many operations",
            |e| e.body.operations = vec![e.body.operations[2].clone(); 65],
            Rule::S3,
            "more than 64",
        ),
        (
            "an operation twice",
            |e| *op(e, 3) = op(e, 2).clone(),
            Rule::S3,
            "in the batch twice",
        ),
        (
            "a fee that is too small",
            |e| {
                let Operation::Transfer { fee, .. } = op(e, 2) else {
                    panic!()
                };
                *fee = Amount::from_sat(99);
            },
            Rule::S3,
            "below the vault's",
        ),
        (
            "an expired operation",
            |e| {
                let Operation::Withdraw { last_valid, .. } = op(e, 3) else {
                    panic!()
                };
                *last_valid = SequenceNumber(0);
            },
            Rule::S3,
            "expired",
        ),
        (
            "a payout that is dust",
            |e| {
                let Operation::Withdraw { amount, .. } = op(e, 3) else {
                    panic!()
                };
                *amount = Amount::from_sat(293);
            },
            Rule::S3,
            "at least 294",
        ),
        (
            "a payout to no standard script",
            |e| {
                let Operation::Withdraw { script_pubkey, .. } = op(e, 3) else {
                    panic!()
                };
                *script_pubkey = ScriptBuf::from_bytes(vec![0x51]);
            },
            Rule::S3,
            "standard",
        ),
    ]
}

fn cases_of_ledger() -> Vec<Case> {
    vec![
        (
            "a number that does not follow",
            |e| {
                e.body.sequence.0 = 2;
                e.candidate.sequence.0 = 2;
            },
            Rule::S4,
            "does not follow",
        ),
        (
            "an operation that does not apply",
            |e| e.replay = Err((3, OperationError::BadSignature)),
            Rule::S4,
            "operation 3",
        ),
        (
            "another digest at the treasury",
            |e| e.head.commitment.digest[0] ^= 1,
            Rule::S4,
            "own ledger",
        ),
        (
            "another supply at the treasury",
            |e| e.head.commitment.supply = Amount::ONE_SAT,
            Rule::S4,
            "own ledger",
        ),
        (
            "another digest at the end",
            |e| e.body.digests[1][0] ^= 1,
            Rule::S4,
            "digests",
        ),
        (
            "a digest too many",
            |e| e.body.digests.push([0; 32]),
            Rule::S4,
            "digests",
        ),
        (
            "no proof",
            |e| e.body.proofs.clear(),
            Rule::S4,
            "0 proofs for 1",
        ),
        (
            "a cut proof",
            |e| e.body.proofs[0].truncate(127),
            Rule::S4,
            "does not decode",
        ),
        (
            "a proof of the wrong half",
            |e| e.body.proofs[0].rotate_left(32),
            Rule::S4,
            "the proof of chunk 0",
        ),
        (
            // What the proof commits to is the operations that are paid, not others.
            "a proof of another amount",
            |e| {
                let Operation::Withdraw { amount, .. } = op(e, 3) else {
                    panic!()
                };
                *amount = Amount::from_sat(30_000);
            },
            Rule::S4,
            "does not verify",
        ),
    ]
}

fn cases_of_transaction() -> Vec<Case> {
    vec![
        (
            "another transaction",
            |e| e.candidate.txid = Txid::all_zeros(),
            Rule::S1,
            "rebuilt from own data",
        ),
        (
            "another fee than stated",
            |e| e.candidate.fee += Amount::ONE_SAT,
            Rule::S1,
            "rebuilt from own data",
        ),
        (
            "a top-up that is left out",
            |e| e.candidate.top_ups = vec![outpoint(9)],
            Rule::S1,
            "rebuilt from own data",
        ),
        (
            "a fee that nothing can pay",
            |e| e.candidate.fee = Amount::from_sat(1_000_000),
            Rule::S1,
            "can't pay",
        ),
        (
            "a treasury below the supply",
            |e| {
                // 128,400 sats of supply against 152,000 + 330 - 20,000 - 5,000.
                e.head.value = Amount::from_sat(330);
                e.candidate.fee = Amount::from_sat(5_000);
                e.caps.max_net_fees_sat = 10_000;
                rebuilt(e);
            },
            Rule::S5,
            "for a supply of",
        ),
        (
            "a fee above the cap",
            |e| {
                e.candidate.fee = Amount::from_sat(5_001);
                rebuilt(e);
            },
            Rule::S5,
            "above this operator's cap",
        ),
        (
            "a fee rate above the cap",
            |e| e.caps.max_fee_rate_sat_per_vb = 4,
            Rule::S5,
            "sat/vB",
        ),
        (
            "fees above what users paid lately",
            |e| e.recent_net_fees = 1_601,
            Rule::S5,
            "within 144 blocks",
        ),
    ]
}

#[test]
fn an_honest_batch_is_verified_and_each_single_change_is_refused_by_its_rule() {
    let keys = Keys::setup(&mut OsRng).unwrap();
    let honest = honest(&Users::new(), &keys);
    let verified = batch(&honest, &keys.verifying).unwrap();
    assert_eq!(verified.unsigned().compute_txid(), honest.candidate.txid);
    assert_eq!(super::Verified::Batch(verified).messages().len(), 3);

    let cases = [
        cases_of_inputs(),
        cases_of_operations(),
        cases_of_ledger(),
        cases_of_transaction(),
    ]
    .concat();
    for (name, change, rule, words) in cases {
        let mut changed = honest.clone();
        change(&mut changed);
        let Err(Refusal {
            rule: found,
            reason,
            ..
        }) = batch(&changed, &keys.verifying)
        else {
            panic!("{name} was verified");
        };
        assert_eq!(found, rule, "{name}: {reason}");
        assert!(reason.contains(words), "{name}: {reason}");
    }

    // What only looks like a violation.
    let mut near = honest.clone();
    output(&mut near, 1).confirmations = 144 - 36;
    near.recent_net_fees = 1_600;
    batch(&near, &keys.verifying).unwrap();
    near.is_bump = true;
    output(&mut near, 1).confirmations = 143;
    batch(&near, &keys.verifying).unwrap();
    let mut topped_up = honest.clone();
    topped_up.candidate.top_ups = vec![outpoint(9)];
    rebuilt(&mut topped_up);
    batch(&topped_up, &keys.verifying).unwrap();
}

#[test]
fn a_refusal_names_the_operation_at_fault() {
    let users = Users::new();
    let vault = testing::vault();
    let id = vault.id();
    let low = users.transfer(1).sign(&users.0, &id);
    let (mut candidate, mut body) = testing::candidate_and_body();
    body.operations = vec![low.clone()];
    candidate.body = body.hash();
    let head = Treasury {
        outpoint: candidate.parent,
        value: testing::GENESIS_AMOUNT,
        commitment: Commitment {
            sequence: SequenceNumber(0),
            supply: Amount::ZERO,
            digest: [0; 32],
        },
    };
    let evidence = Evidence {
        vault: Arc::clone(vault),
        candidate,
        body,
        head,
        outputs: BTreeMap::new(),
        replay: Err((0, OperationError::BadSignature)),
        is_bump: false,
        caps: caps(),
        recent_net_fees: 0,
    };
    let refusal = super::s03_operations::check(&evidence).unwrap_err();
    assert_eq!(
        (refusal.rule, refusal.operation),
        (Rule::S3, Some(low.id(&id)))
    );
}

#[test]
fn a_genesis_is_verified_and_each_single_change_is_refused() {
    let (honest, tip) = testing::genesis_output();
    let genesis = testing::genesis();
    let check = |genesis: &protocol::vault::Genesis, output: Option<&UnspentOutput>| {
        let output = output.map(|output| (output, tip));
        genesis::check(
            testing::vault_key(),
            testing::VERIFYING_KEY_HASH,
            genesis,
            output,
        )
    };
    let verified = check(&genesis, Some(&honest)).unwrap();
    assert_eq!(verified.height(), testing::GENESIS_HEIGHT);
    assert_eq!(verified.outpoint(), genesis.outpoint);

    let claims: [fn(&mut protocol::vault::Genesis); 5] = [
        |g| g.group_key = XOnlyPublicKey::from_str(NUMS).unwrap(),
        |g| g.verifying_key_hash[0] ^= 1,
        |g| g.parameters_hash[0] ^= 1,
        |g| g.roster_hash[0] ^= 1,
        |g| g.amount += Amount::ONE_SAT,
    ];
    for change in claims {
        let mut changed = genesis.clone();
        change(&mut changed);
        assert_eq!(check(&changed, Some(&honest)).unwrap_err().rule, Rule::S2);
    }
    let outputs: [fn(&mut UnspentOutput); 4] = [
        |o| o.script_pubkey = payout_script(),
        |o| o.value += Amount::ONE_SAT,
        |o| o.confirmations -= 1,
        |o| o.coinbase = true,
    ];
    for change in outputs {
        let mut changed = honest.clone();
        change(&mut changed);
        assert_eq!(check(&genesis, Some(&changed)).unwrap_err().rule, Rule::S2);
    }
    assert_eq!(check(&genesis, None).unwrap_err().rule, Rule::S2);
    let mut dust = (genesis, honest);
    dust.0.amount = Amount::from_sat(329);
    dust.1.value = dust.0.amount;
    assert!(
        check(&dust.0, Some(&dust.1))
            .unwrap_err()
            .reason
            .contains("dust")
    );
}
