//! S13: output 0 pays the vault itself.
//!
//! The design allows it to pay another key in a handover batch to a new roster. This version does not offer handovers:
//! there is no exception, and a transaction whose output 0 pays any other script is never signed.

use protocol::{
    message::{Refusal, Rule},
    transaction::BatchTransaction,
    vault::Vault,
};

pub(super) fn check(vault: &Vault, transaction: &BatchTransaction) -> Result<(), Refusal> {
    let treasury = transaction.unsigned.output.first();
    if treasury.is_none_or(|output| output.script_pubkey != *vault.script_pubkey()) {
        return Err(Refusal::new(
            Rule::S13,
            "output 0 does not pay this vault; handover batches are not offered",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::fixture::{self, Users};

    #[test]
    fn output_0_pays_this_vault_and_nothing_else() {
        let evidence = fixture::without_proofs(&Users::new());
        let honest = fixture::build(&evidence);
        check(&evidence.vault, &honest).unwrap();
        let mut redirected = honest.clone();
        redirected.unsigned.output[0].script_pubkey = fixture::payout_script();
        let mut reordered = honest.clone();
        reordered.unsigned.output.swap(0, 2);
        let mut none = honest;
        none.unsigned.output.clear();
        for changed in [redirected, reordered, none] {
            let refusal = check(&evidence.vault, &changed).unwrap_err();
            assert_eq!(refusal.rule, Rule::S13);
        }
    }
}
