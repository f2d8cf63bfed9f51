//! The operator's verifier: no change to an honest proposal makes another batch verified, and whatever is verified is
//! covered, paid out as asked, within the policy, and not against a promise.

use std::{collections::BTreeMap, path::Path, sync::Arc, sync::LazyLock};

use bitcoin::{
    Amount, BlockHash, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, hashes::Hash as _,
};
use chain::rpc::{DEFAULT_DUST_FEE_RATE, MempoolInfo, UnspentOutput};
use ledger::Ledger;
use operator::{
    books::Recent,
    policy::{self, Policy},
    verify::{self, Evidence, Standing},
};
use protocol::{
    batch::{Body, Candidate},
    parameters::COINBASE_MATURITY,
    signer::Promise,
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, TREASURY_DUST, TopUp},
};
use serde::{Deserialize, Serialize};

use super::{named, proofs, read_wire};
use crate::{Target, Verdict, corpus, honest::honest};

pub(super) const TARGETS: [Target; 1] = [Target {
    name: "verifier",
    run: verifier,
    honest: honest_proposals,
    executions: 6_000,
    memory: 16 << 20,
}];

/// What is proposed, and what the operator's own node and records say.
#[derive(Clone, Serialize, Deserialize)]
struct Proposal {
    candidate: Candidate,
    /// Encoded.
    body: Vec<u8>,
    /// The body's hash and the transaction's id are put right, as a coordinator would that lies well.
    well: bool,
    chain: Vec<Seen>,
    treasury: Amount,
    promise: Option<Promise>,
    height: u32,
}

/// An unspent output of the best chain.
#[derive(Clone, Serialize, Deserialize)]
struct Seen {
    outpoint: OutPoint,
    value: Amount,
    script_pubkey: ScriptBuf,
    confirmations: u32,
    coinbase: bool,
}

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let parameters = honest().vault.parameters();
    let policy = Policy::parse(Path::new("policy.toml"), &policy::template(), parameters);
    Arc::new(policy.unwrap())
});

/// The bodies that have proofs: the corpus's, whatever signatures are in them.
static PROVEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let files = corpus::read(&named("verifier")).unwrap_or_default();
    let honest = files
        .iter()
        .filter(|(name, _)| name.starts_with(corpus::HONEST));
    honest
        .filter_map(|(_, bytes)| Some(read_wire::<Proposal>(bytes)?.body))
        .collect()
});

fn verifier(bytes: &[u8]) -> Verdict {
    let Some(proposal) = read_wire::<Proposal>(bytes) else {
        return Verdict::Refused;
    };
    let Ok(body) = Body::decode(&proposal.body) else {
        return Verdict::Refused;
    };
    let evidence = Arc::new(evidence(&proposal, body));
    match verify::batch(Arc::clone(&evidence), proofs::verifying_key()) {
        Ok(verified) => {
            let known = PROVEN.contains(&proposal.body);
            assert!(known, "a batch without proofs is verified");
            check(&evidence, verified.unsigned());
            Verdict::Accepted
        }
        Err(refusal) => {
            assert!(!refusal.reason.is_empty());
            Verdict::Refused
        }
    }
}

/// Gathered as the operator does it: the body is replayed on the own ledger.
fn evidence(proposal: &Proposal, body: Body) -> Evidence {
    let honest = honest();
    let outputs: BTreeMap<OutPoint, UnspentOutput> = proposal
        .chain
        .iter()
        .map(|seen| {
            let output = UnspentOutput {
                value: seen.value,
                script_pubkey: seen.script_pubkey.clone(),
                confirmations: seen.confirmations,
                coinbase: seen.coinbase,
                best_block: BlockHash::all_zeros(),
            };
            (seen.outpoint, output)
        })
        .collect();
    let mut head = honest.treasury;
    head.value = proposal.treasury;
    let replay = Ledger::new().apply_batch(&body.operations, &body.vault, body.sequence);
    let mut evidence = Evidence {
        vault: Arc::clone(&honest.vault),
        candidate: proposal.candidate.clone(),
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
        replay,
        standing: Standing {
            height: proposal.height,
            alarm: None,
            promise: proposal.promise.clone(),
            decisions: Arc::default(),
            policy: Arc::clone(&POLICY),
            recent: Recent::default(),
        },
    };
    if proposal.well {
        evidence.candidate.body = evidence.body.hash();
        if let Some(built) = build(&evidence) {
            evidence.candidate.txid = built.unsigned.compute_txid();
        }
    }
    evidence
}

/// The transaction as a coordinator builds it that does not ask whether it should.
fn build(evidence: &Evidence) -> Option<BatchTransaction> {
    let transition = evidence.replay.as_ref().ok()?;
    let group = evidence.vault.group_key();
    let deposits: Option<Vec<Swept>> = evidence
        .body
        .deposits()
        .zip(&evidence.body.terms)
        .map(|((outpoint, _), terms)| {
            Some(Swept {
                outpoint: *outpoint,
                value: evidence.outputs.get(outpoint)?.value,
                address: terms.address(&group).ok()?,
            })
        })
        .collect();
    let top_ups: Option<Vec<TopUp>> = evidence
        .candidate
        .top_ups
        .iter()
        .map(|outpoint| {
            Some(TopUp {
                outpoint: *outpoint,
                value: evidence.outputs.get(outpoint)?.value,
            })
        })
        .collect();
    let plan = BatchPlan {
        treasury: &evidence.head,
        deposits: &deposits?,
        top_ups: &top_ups?,
        withdrawals: &evidence.body.withdrawals(),
        next: Commitment {
            sequence: evidence.body.sequence,
            supply: transition.after.supply,
            digest: transition.digest_after().to_bytes(),
        },
        fee: evidence.candidate.fee,
    };
    BatchTransaction::build(evidence.vault.key(), &plan).ok()
}

/// What must hold of everything that is verified, said once more and in other words than the rules.
fn check(evidence: &Evidence, transaction: &Transaction) {
    let Evidence {
        vault,
        candidate,
        body,
        outputs,
        head,
        ..
    } = evidence;
    assert_eq!((candidate.vault, body.vault), (vault.id(), vault.id()));
    assert_eq!((candidate.sequence.0, body.sequence.0), (1, 1));
    assert_eq!(candidate.body, body.hash());
    assert_eq!(candidate.txid, transaction.compute_txid());

    // Every input is the vault's, deep enough, and spent once; no other money moves.
    let spent: Vec<OutPoint> = transaction
        .input
        .iter()
        .map(|i| i.previous_output)
        .collect();
    assert_eq!(spent[0], head.outpoint);
    let mut once = spent.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), spent.len());
    let mut available = head.value;
    let mut credits = body.deposits().zip(&body.terms);
    for outpoint in &spent[1..] {
        let output = &outputs[outpoint];
        let deep = if output.coinbase {
            COINBASE_MATURITY
        } else {
            0
        };
        assert!(output.confirmations >= vault.parameters().deposit_confirmations.max(deep));
        if let Some(((deposit, credited), terms)) = credits.next() {
            assert_eq!(deposit, outpoint);
            assert_eq!(output.value, credited + vault.parameters().deposit_fee);
            let address = terms.address(&vault.group_key()).unwrap();
            assert_eq!(output.script_pubkey, address.script_pubkey);
        } else {
            assert!(candidate.top_ups.contains(outpoint));
            assert_eq!(output.script_pubkey, *vault.script_pubkey());
        }
        available += output.value;
    }
    assert!(credits.next().is_none());

    // Output 0 keeps what is not paid out; it covers the supply.
    let supply = evidence.replay.as_ref().unwrap().after.supply;
    let [treasury, _, payouts @ ..] = transaction.output.as_slice() else {
        panic!("too few outputs");
    };
    assert_eq!(treasury.script_pubkey, *vault.script_pubkey());
    assert!(treasury.value >= supply.max(TREASURY_DUST));
    assert_eq!(payouts, body.withdrawals());
    let paid: Amount = transaction
        .output
        .iter()
        .map(|output: &TxOut| output.value)
        .sum();
    assert_eq!(available, paid + candidate.fee);
    assert!(candidate.fee <= POLICY.fees().max_fee());
    let next = head.next(vault.key(), transaction).unwrap();
    assert_eq!(next.commitment.supply, supply);

    // S7.
    let standing = &evidence.standing;
    if let Some(promise) = &standing.promise
        && promise.sequence == candidate.sequence
        && promise.parent == candidate.parent
    {
        let waited = standing.height.saturating_sub(promise.height)
            >= u32::from(vault.parameters().replacement_delay);
        let same_batch = promise.batch == evidence.body.batch();
        let bump = same_batch && candidate.fee > promise.fee;
        assert!(candidate.txid == promise.txid || bump || waited);
    }
}

fn honest_proposals() -> Vec<(&'static str, Vec<u8>)> {
    static MADE: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(make);
    MADE.clone()
}

fn make() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let mut body = honest.body.clone();
    body.proofs = honest.transition.chunks.iter().map(proofs::prove).collect();
    let mut candidate = honest.candidate.clone();
    candidate.body = body.hash();
    let swept = crate::honest::deposits(&honest.vault, &body);
    let deposits = swept.into_iter().map(|deposit| Seen {
        outpoint: deposit.outpoint,
        value: deposit.value,
        script_pubkey: deposit.address.script_pubkey,
        confirmations: 6,
        coinbase: false,
    });
    let top_up = Seen {
        outpoint: OutPoint::new(bitcoin::Txid::from_byte_array([9; 32]), 0),
        value: Amount::from_sat(7_000),
        script_pubkey: honest.vault.script_pubkey().clone(),
        confirmations: 100,
        coinbase: true,
    };
    let batch = Proposal {
        candidate,
        body: body.encode(),
        well: false,
        chain: deposits.chain([top_up.clone()]).collect(),
        treasury: honest.treasury.value,
        promise: None,
        height: 200,
    };
    let mut with_top_up = batch.clone();
    with_top_up.candidate.top_ups = vec![top_up.outpoint];
    with_top_up.well = true;
    let mut bump = with_top_up.clone();
    bump.promise = Some(Promise {
        sequence: batch.candidate.sequence,
        parent: batch.candidate.parent,
        batch: honest.body.batch(),
        body: batch.candidate.body,
        fee: batch.candidate.fee,
        txid: batch.candidate.txid,
        height: 199,
    });
    bump.candidate.fee += Amount::from_sat(1_000);
    [("batch", batch), ("top-up", with_top_up), ("bump", bump)]
        .map(|(name, proposal)| (name, postcard::to_stdvec(&proposal).unwrap()))
        .into()
}
