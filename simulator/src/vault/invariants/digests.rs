use bitcoin::Transaction;
use ledger::Ledger;
use protocol::{invariants::Violation, transaction::Commitment};

/// The digest on the chain is the ledger's.
///
/// # Errors
/// [`Violation`].
pub fn digests(transaction: &Transaction, ledger: &Ledger) -> Result<(), Violation> {
    let note = transaction.output.get(1);
    let commitment = note.and_then(|note| Commitment::parse(&note.script_pubkey));
    let stated = commitment.map(|commitment| commitment.digest);
    if stated == Some(ledger.digest().to_bytes()) {
        return Ok(());
    }
    Err(Violation {
        invariant: "digests",
        what: format!("the chain says {stated:?}, the ledger {}", ledger.digest()),
    })
}
