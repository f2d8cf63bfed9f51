//! An honest batch of two deposits, a transfer and a withdrawal, for the rules' tests to change one thing of.

use std::{collections::BTreeMap, str::FromStr as _, sync::Arc};

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Txid, XOnlyPublicKey, hashes::Hash as _};
use chain::rpc::{DEFAULT_DUST_FEE_RATE, MempoolInfo, UnspentOutput};
use ledger::{
    AccountIndex, AccountSecret, Ledger, Operation, SequenceNumber, TransferRequest, VaultId,
    WithdrawRequest,
};
use proof::Keys;
use protocol::{
    batch::{Body, Candidate},
    deposit::{DepositTerms, NUMS},
    message::Rule,
    signer::Promise,
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, TopUp, Treasury},
};
use rand::rngs::OsRng;

use super::{Evidence, Standing, VerifiedBatch};
use crate::{books::Recent, testing};

pub(super) const FEE: Amount = Amount::from_sat(2_000);
pub(super) const DEPTH: u32 = 2;

pub(super) fn outpoint(n: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([n; 32]), 0)
}

pub(super) fn unspent(value: u64, script_pubkey: ScriptBuf) -> UnspentOutput {
    UnspentOutput {
        value: Amount::from_sat(value),
        script_pubkey,
        confirmations: DEPTH,
        coinbase: false,
        best_block: bitcoin::BlockHash::all_zeros(),
    }
}

pub(super) fn terms(account: &AccountSecret) -> DepositTerms {
    let refund = XOnlyPublicKey::from_str(NUMS).unwrap();
    DepositTerms::offered(
        testing::vault().id(),
        testing::parameters(),
        account.public(),
        refund,
    )
}

pub(super) fn payout_script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([8; 20]))
}

/// The accounts of the two depositors.
pub(crate) struct Users(pub(crate) AccountSecret, pub(crate) AccountSecret);

impl Users {
    pub(crate) fn new() -> Self {
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

    pub(super) fn transfer(&self, fee: u64) -> TransferRequest {
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

/// An operator that has signed nothing and decided nothing.
pub(crate) fn standing() -> Standing {
    Standing {
        height: 200,
        alarm: None,
        promise: None,
        decisions: Arc::default(),
        policy: Arc::new(testing::policy("", "")),
        recent: Recent::default(),
    }
}

/// Everything that an honest coordinator and an honest node would say, with proofs.
pub(super) fn honest(users: &Users, keys: &Keys) -> Evidence {
    let mut evidence = without_proofs(users);
    let transition = evidence.replay.as_ref().unwrap();
    let proofs = transition.chunks.iter().map(|chunk| {
        let proof = proof::prove_chunk(&keys.proving, chunk).unwrap();
        proof.to_bytes().to_vec()
    });
    evidence.body.proofs = proofs.collect();
    evidence.candidate.body = evidence.body.hash();
    evidence
}

/// The same for rules that look at no proof.
pub(super) fn without_proofs(users: &Users) -> Evidence {
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
        proofs: Vec::new(),
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
        mempool: MempoolInfo {
            size: 0,
            min_fee_rate: FeeRate::BROADCAST_MIN,
            min_relay_fee_rate: FeeRate::BROADCAST_MIN,
            incremental_fee_rate: FeeRate::BROADCAST_MIN,
            dust_fee_rate: DEFAULT_DUST_FEE_RATE,
        },
        replay: Ok(transition),
        standing: standing(),
    };
    evidence.candidate.txid = build(&evidence).unsigned.compute_txid();
    evidence
}

/// The transaction as a coordinator builds it, without asking whether it should.
pub(super) fn build(evidence: &Evidence) -> BatchTransaction {
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
pub(super) type Case = (&'static str, fn(&mut Evidence), Rule, &'static str);

pub(super) fn op(evidence: &mut Evidence, index: usize) -> &mut Operation {
    &mut evidence.body.operations[index]
}

pub(super) fn output(evidence: &mut Evidence, n: u8) -> &mut UnspentOutput {
    evidence.outputs.get_mut(&outpoint(n)).unwrap()
}

pub(super) fn rebuilt(evidence: &mut Evidence) {
    evidence.candidate.txid = build(evidence).unsigned.compute_txid();
}

/// A policy with other caps on fees.
pub(super) fn set_fees(evidence: &mut Evidence, caps: &str) {
    evidence.standing.policy = Arc::new(testing::policy_with_fees(caps));
}

/// This batch was signed before, with a lower fee.
pub(super) fn bump(evidence: &mut Evidence) {
    evidence.standing.promise = Some(Promise {
        sequence: evidence.candidate.sequence,
        parent: evidence.candidate.parent,
        batch: evidence.body.batch(),
        body: evidence.candidate.body,
        fee: evidence.candidate.fee - Amount::ONE_SAT,
        txid: Txid::all_zeros(),
        height: evidence.standing.height,
    });
}

/// The honest batch as the verifier passes it, proofs aside.
pub(crate) fn verified(users: &Users) -> VerifiedBatch {
    let evidence = Arc::new(without_proofs(users));
    let transaction = build(&evidence);
    VerifiedBatch {
        messages: transaction.messages().unwrap(),
        transaction,
        evidence,
    }
}
