use std::collections::BTreeSet;

use bitcoin::{OutPoint, Transaction};
use protocol::{batch::Body, invariants::Violation};

/// A deposit is credited at most once, and only by the batch that sweeps it: then it can't be refunded any more, and until
/// then it can. `credited` holds the deposits of the batches before.
///
/// # Errors
/// [`Violation`].
pub fn credits(
    transaction: &Transaction,
    body: &Body,
    credited: &mut BTreeSet<OutPoint>,
) -> Result<(), Violation> {
    let broken = |what: String| Violation {
        invariant: "credits",
        what,
    };
    let swept: BTreeSet<OutPoint> = transaction
        .input
        .iter()
        .skip(1)
        .map(|input| input.previous_output)
        .collect();
    for (outpoint, _) in body.deposits() {
        if !credited.insert(*outpoint) {
            return Err(broken(format!("{outpoint} is credited twice")));
        }
        if !swept.contains(outpoint) {
            return Err(broken(format!("{outpoint} is credited and not swept")));
        }
    }
    Ok(())
}
