//! What operators say of batches: `operator::verify` with evidence from the model, and what may be said of their verdicts.

use std::sync::Arc;

use bitcoin::{BlockHash, FeeRate, OutPoint, hashes::Hash as _};
use chain::rpc::{DEFAULT_DUST_FEE_RATE, MempoolInfo, UnspentOutput};
use ledger::OperationError;
use operator::{
    books::Recent,
    verify::{self, Evidence, Standing},
};
use protocol::{
    batch::{BatchHash, Body, Candidate},
    message::{Refusal, Rule, SessionId},
};

use super::{Fault, World, is_proof, text};
use crate::{signatures::Signatures, vault::invariants::Verdict};

impl<C: Signatures> World<C> {
    /// What this operator's rules say of a batch, and what may be said of its verdict. Gives which batch it is.
    pub(super) fn verdict(
        &mut self,
        operator: usize,
        id: SessionId,
    ) -> Result<Result<BatchHash, Refusal>, String> {
        let Some(one) = self.operators.get(operator) else {
            return Ok(Err(Refusal::new(Rule::S12, "nobody")));
        };
        let Some((candidate, body)) = one.proposed.get(&id).cloned() else {
            return Ok(Err(Refusal::new(Rule::S12, "no such batch")));
        };
        let judged = self.judge(operator, &candidate, &body);
        let judged = judged.or_else(|refusal| {
            let is_dropped = self.dropped().is_some_and(|rule| rule == refusal.rule);
            if is_dropped { Ok(()) } else { Err(refusal) }
        });
        if judged.is_ok() {
            self.check_verdict(operator, &candidate, &body)?;
            self.note(|| format!("operator {operator} finds batch {} right", candidate.txid));
            if let Some(one) = self.operators.get_mut(operator) {
                one.verified.insert(id);
            }
        }
        Ok(judged.map(|()| body.batch()))
    }

    /// `operator::verify::judge`, once for all operators that know the same.
    fn judge(
        &mut self,
        operator: usize,
        candidate: &Candidate,
        body: &Body,
    ) -> Result<(), Refusal> {
        let ledger = self.operators.get(operator).map(|one| one.view.digest());
        let evidence = self.evidence(operator, candidate, body);
        let key = known(&evidence, ledger);
        if let Some(judged) = key.as_ref().and_then(|key| self.judged.get(key)) {
            return judged.clone();
        }
        let judged = verify::judge(&evidence, |body, digests| {
            let chunks = digests.len().saturating_sub(1);
            if body.proofs.len() == chunks && body.proofs.iter().all(|proof| is_proof(proof)) {
                Ok(())
            } else {
                Err(Refusal::new(Rule::S4, "a proof does not verify"))
            }
        })
        .map(drop);
        self.judged.extend(key.map(|key| (key, judged.clone())));
        judged
    }

    /// The rule that a fault leaves out.
    fn dropped(&self) -> Option<Rule> {
        match self.fault? {
            Fault::DropsS1 => Some(Rule::S1),
            Fault::DropsS2 => Some(Rule::S2),
            Fault::DropsS3 => Some(Rule::S3),
            Fault::DropsS4 => Some(Rule::S4),
            Fault::DropsS5 => Some(Rule::S5),
            _ => None,
        }
    }

    fn evidence(&mut self, operator: usize, candidate: &Candidate, body: &Body) -> Evidence {
        let (digest, head, height, alarm, promise) = match self.operators.get(operator) {
            Some(one) => (
                one.view.digest(),
                one.view.head(),
                one.view.height(),
                one.view.alarm.clone(),
                one.signing
                    .state
                    .binding(candidate.sequence, candidate.parent)
                    .cloned(),
            ),
            None => ([0; 32], self.truth.head(), self.truth.height(), None, None),
        };
        let replay = self
            .books
            .replay(&digest, &body.operations, body.sequence)
            .unwrap_or(Err((0, OperationError::Overflow)));
        let deposits = body.deposits().map(|(outpoint, _)| *outpoint);
        let outputs = deposits
            .chain(candidate.top_ups.iter().copied())
            .filter_map(|outpoint| Some((outpoint, self.unspent(&outpoint)?)))
            .collect();
        Evidence {
            vault: self.place.vault.clone(),
            candidate: candidate.clone(),
            body: body.clone(),
            head,
            outputs,
            mempool: self.mempool(),
            replay: replay.map(|replayed| replayed.transition.clone()),
            standing: Standing {
                height,
                alarm,
                promise,
                decisions: Arc::default(),
                policy: self.place.policy.clone(),
                recent: Recent::default(),
            },
        }
    }

    /// As `getmempoolinfo` answers.
    pub(super) fn mempool(&self) -> MempoolInfo {
        MempoolInfo {
            size: 0,
            min_fee_rate: FeeRate::from_sat_per_kwu(self.chain.floor.div_ceil(4)),
            min_relay_fee_rate: FeeRate::BROADCAST_MIN,
            incremental_fee_rate: FeeRate::BROADCAST_MIN,
            dust_fee_rate: DEFAULT_DUST_FEE_RATE,
        }
    }

    /// As `gettxout` answers.
    fn unspent(&self, outpoint: &OutPoint) -> Option<UnspentOutput> {
        let coin = self.chain.coin(outpoint)?;
        Some(UnspentOutput {
            value: coin.output.value,
            script_pubkey: coin.output.script_pubkey.clone(),
            confirmations: self.chain.confirmations(coin),
            coinbase: false,
            best_block: BlockHash::all_zeros(),
        })
    }

    fn check_verdict(
        &mut self,
        operator: usize,
        candidate: &Candidate,
        body: &Body,
    ) -> Result<(), String> {
        let Some(one) = self.operators.get(operator) else {
            return Ok(());
        };
        let head = one.view.head();
        let replay = self.books.replay(
            &head.commitment.digest,
            &body.operations,
            candidate.sequence,
        );
        let after = match replay {
            Some(Ok(replayed)) => self.books.ledger(&replayed.after).cloned(),
            _ => None,
        };
        let coins = body
            .deposits()
            .map(|(outpoint, _)| *outpoint)
            .chain(candidate.top_ups.iter().copied())
            .filter_map(|outpoint| {
                let coin = self.chain.coin(&outpoint)?.clone();
                let confirmations = self.chain.confirmations(&coin);
                Some((outpoint, (coin, confirmations)))
            })
            .collect();
        let built = self.registry.get(&candidate.txid);
        let verdict = Verdict {
            vault: &self.place.vault,
            candidate,
            body,
            transaction: built.map(|(_, built)| &built.unsigned),
            head,
            coins,
            after: after.as_deref(),
        };
        verdict.check().map_err(text)
    }
}

/// All that a verdict follows from and that differs between two of one run. A ledger is what its digest says, an output
/// what its outpoint says.
fn known(evidence: &Evidence, ledger: Option<[u8; 32]>) -> Option<Vec<u8>> {
    let Standing {
        height,
        alarm,
        promise,
        ..
    } = &evidence.standing;
    let outputs: Vec<_> = evidence
        .outputs
        .iter()
        .map(|(outpoint, output)| (outpoint, output.confirmations))
        .collect();
    let key = (
        (&evidence.candidate, evidence.body.hash()),
        (evidence.head.outpoint, ledger),
        (outputs, evidence.mempool.min_fee_rate.to_sat_per_kwu()),
        (height, alarm, promise),
    );
    postcard::to_stdvec(&key).ok()
}
