use bitcoin::Transaction;
use ledger::Ledger;
use protocol::{invariants::Violation, transaction::Commitment};

/// The treasury covers what the ledger owes: output 0 of a confirmed batch holds at least the supply that output 1 states,
/// and that is the sum of the balances.
///
/// # Errors
/// [`Violation`].
pub fn reserves(transaction: &Transaction, ledger: &Ledger) -> Result<(), Violation> {
    let broken = |what: String| Violation {
        invariant: "reserves",
        what,
    };
    let [treasury, note, ..] = transaction.output.as_slice() else {
        return Err(broken("a batch without treasury and commitment".to_owned()));
    };
    let commitment = Commitment::parse(&note.script_pubkey)
        .ok_or_else(|| broken("a batch without a commitment".to_owned()))?;
    let balances = ledger
        .accounts()
        .iter()
        .map(|account| account.balance.to_sat());
    let owed = balances.fold(0, u64::saturating_add);
    if treasury.value < commitment.supply || commitment.supply.to_sat() != owed {
        return Err(broken(format!(
            "batch {} leaves {} for a stated supply of {}; the balances add up to {owed} sat",
            commitment.sequence, treasury.value, commitment.supply
        )));
    }
    Ok(())
}
