use std::collections::BTreeMap;

use bitcoin::Txid;
use node::history::Confirmed;
use protocol::invariants::Violation;

/// There is at most one confirmed batch a sequence number, numbers follow each other, and what two honest nodes both hold
/// confirmed in the same block height is the same.
///
/// # Errors
/// [`Violation`].
pub fn one_batch(confirmed: &[Confirmed]) -> Result<(), Violation> {
    let mut seen: BTreeMap<u64, Txid> = BTreeMap::new();
    for (expected, batch) in (1_u64..).zip(confirmed) {
        let sequence = batch.treasury.commitment.sequence.0;
        let other = seen.insert(sequence, batch.txid);
        if sequence != expected || other.is_some() {
            return Err(Violation {
                invariant: "one_batch",
                what: format!(
                    "{} is batch {sequence} in the place of {expected}, beside {other:?}",
                    batch.txid
                ),
            });
        }
    }
    Ok(())
}
