//! What a run of the local network did, for people (a closing table) and for programs (`--json`).

use protocol::api::{BatchDocument, StageTimes};
use serde::Serialize;

/// One batch.
#[derive(Clone, Debug, Serialize)]
pub struct Batch {
    /// Sequence number.
    pub sequence: u64,
    /// Transaction.
    pub txid: String,
    /// Height of its block.
    pub height: Option<u32>,
    /// Inputs of the transaction.
    pub inputs: usize,
    /// Outputs of the transaction.
    pub outputs: usize,
    /// Ledger operations.
    pub operations: usize,
    /// Attempts at signing, since the coordinator was last started.
    pub attempts: u32,
    /// Time to signature: from the first proposal to the verified signatures, in ms.
    pub signing_ms: Option<u64>,
    /// Operators whose shares made the signatures.
    pub signers: Vec<String>,
    /// Operators blamed for a bad share.
    pub blamed: Vec<String>,
    /// Time in each stage.
    pub stage_ms: StageTimes,
}

impl From<&BatchDocument> for Batch {
    fn from(document: &BatchDocument) -> Self {
        Self {
            sequence: document.sequence,
            txid: document.txid.clone().unwrap_or_default(),
            height: document.height,
            inputs: document.inputs,
            outputs: document.outputs,
            operations: document.operations.len(),
            attempts: document.attempts,
            signing_ms: document.signing_ms,
            signers: document.signers.clone(),
            blamed: document.blamed.clone(),
            stage_ms: document.stage_ms.clone(),
        }
    }
}

/// The whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: String,
    /// Operators (n).
    pub operators: usize,
    /// Signers needed (t).
    pub threshold: u16,
    /// Deposits credited.
    pub deposits: usize,
    /// Transfers done.
    pub transfers: usize,
    /// Withdrawals paid.
    pub withdrawals: usize,
    /// Batches, oldest first.
    pub batches: Vec<Batch>,
    /// What the treasury holds.
    pub treasury_sat: u64,
    /// Sum of all balances.
    pub supply_sat: u64,
    /// What the evidence against operators shows, as `check-evidence` prints it.
    pub evidence: Vec<String>,
    /// Batches signed with nonces that operators had handed out ahead of time.
    pub pooled_batches: u64,
}

impl Report {
    /// The closing table.
    pub fn table(&self) -> String {
        let mut text = format!(
            "\n  {}-of-{} operators · {} deposits · {} transfers · {} withdrawals\n  \
             treasury {} sat >= supply {} sat · surplus {} sat\n\n",
            self.threshold,
            self.operators,
            self.deposits,
            self.transfers,
            self.withdrawals,
            self.treasury_sat,
            self.supply_sat,
            self.treasury_sat.saturating_sub(self.supply_sat),
        );
        text.push_str("  batch  height  in  out  ops |  detect   queue  batch   prove  gossip  verify  round1  round2  aggr.  bcast  confirm (ms)\n");
        for batch in &self.batches {
            let ms = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
            let t = &batch.stage_ms;
            text.push_str(&format!(
                "  {:>5}  {:>6}  {:>2}  {:>3}  {:>3} |  {:>6}  {:>6}  {:>5}  {:>6}  {:>6}  {:>6}  {:>6}  {:>6}  {:>5}  {:>5}  {:>7}\n",
                batch.sequence,
                batch.height.map_or_else(|| "-".to_owned(), |height| height.to_string()),
                batch.inputs,
                batch.outputs,
                batch.operations,
                ms(t.detect), ms(t.queue), ms(t.batch), ms(t.prove), ms(t.gossip), ms(t.verify),
                ms(t.round1), ms(t.round2), ms(t.aggregate), ms(t.broadcast), ms(t.confirm),
            ));
            text.push_str(&format!("         {}\n", batch.txid));
        }
        text.push('\n');
        for batch in &self.batches {
            let (attempts, ms) = (batch.attempts, batch.signing_ms.unwrap_or_default());
            let times = if attempts == 1 { "attempt" } else { "attempts" };
            text.push_str(&format!(
                "  batch {}: {attempts} {times} used, {ms} ms to signature; signed by {}{}\n",
                batch.sequence,
                batch.signers.join(", "),
                if batch.blamed.is_empty() {
                    String::new()
                } else {
                    format!("; blamed: {}", batch.blamed.join(", "))
                },
            ));
        }
        for line in &self.evidence {
            text.push_str(&format!("  evidence: {line}\n"));
        }
        text
    }
}
