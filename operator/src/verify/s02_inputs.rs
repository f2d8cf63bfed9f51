//! S2: input 0 is the treasury of the latest batch that this operator holds canonical; every other input is a
//! deposit to an address of this vault, or a top-up; both are confirmed deep enough and unspent on the
//! own node; and no depositor can take a deposit back while the batch may still confirm.

use std::collections::BTreeSet;

use bitcoin::{Amount, OutPoint};
use chain::rpc::UnspentOutput;
use ledger::{AccountKey, Operation};
use protocol::{
    batch::MAX_TOP_UPS,
    deposit::DepositTerms,
    message::{Refusal, Rule},
    parameters::COINBASE_MATURITY,
    transaction::{Swept, TopUp},
};

use super::{Evidence, Standing, s07_one_batch};

/// All inputs but the treasury, as the own node knows them.
pub(super) struct Inputs {
    pub(super) deposits: Vec<Swept>,
    pub(super) top_ups: Vec<TopUp>,
}

pub(super) fn check(evidence: &Evidence) -> Result<Inputs, Refusal> {
    let Evidence {
        candidate, head, ..
    } = evidence;
    if candidate.parent != head.outpoint {
        return Err(refuse(format!(
            "input 0 is {}, not the latest treasury {}",
            candidate.parent, head.outpoint
        )));
    }
    let mut spent = BTreeSet::from([head.outpoint]);
    let deposits = deposits(evidence, &mut spent)?;
    let top_ups = top_ups(evidence, &mut spent)?;
    Ok(Inputs { deposits, top_ups })
}

fn deposits(evidence: &Evidence, spent: &mut BTreeSet<OutPoint>) -> Result<Vec<Swept>, Refusal> {
    let body = &evidence.body;
    let margin = refund_margin(evidence, &evidence.standing);
    let mut terms = body.terms.iter();
    let mut swept = Vec::new();
    for operation in &body.operations {
        let Operation::Deposit {
            account,
            amount,
            outpoint,
        } = operation
        else {
            continue;
        };
        let of = |refusal: Refusal| refusal.of(operation.id(&body.vault));
        let terms = terms
            .next()
            .ok_or_else(|| of(refuse("its deposit terms are missing".to_owned())))?;
        let (deposit, confirmations) =
            deposit(evidence, *outpoint, *amount, account, terms, spent).map_err(of)?;
        refund_is_far(margin, terms, confirmations).map_err(of)?;
        swept.push(deposit);
    }
    Ok(swept)
}

fn deposit(
    evidence: &Evidence,
    outpoint: OutPoint,
    amount: Amount,
    account: &AccountKey,
    terms: &DepositTerms,
    spent: &mut BTreeSet<OutPoint>,
) -> Result<(Swept, u32), Refusal> {
    if !spent.insert(outpoint) {
        return Err(refuse(format!("{outpoint} is spent twice in this batch")));
    }
    terms
        .check(evidence.vault.id(), evidence.vault.parameters())
        .map_err(|error| refuse(error.to_string()))?;
    if terms.account != *account {
        return Err(refuse(
            "its terms promise the credit to another account".to_owned(),
        ));
    }
    let output = confirmed_output(evidence, &outpoint)?;
    let address = terms
        .address(&evidence.vault.group_key())
        .map_err(|error| refuse(error.to_string()))?;
    if address.script_pubkey != output.script_pubkey {
        return Err(refuse(format!(
            "{outpoint} does not pay the address of its terms"
        )));
    }
    if terms.credited(output.value) != Some(amount) {
        return Err(refuse(match terms.credited(output.value) {
            Some(due) => format!("{outpoint} credits {due}, not {amount}"),
            None => format!(
                "{outpoint} holds {}, less than the smallest deposit",
                output.value
            ),
        }));
    }
    let swept = Swept {
        outpoint,
        value: output.value,
        address,
    };
    Ok((swept, output.confirmations))
}

/// How many blocks away from its refund a deposit must be.
fn refund_margin(evidence: &Evidence, standing: &Standing) -> u32 {
    // A bump must be possible for as long as the deposit is the vault's: the first batch may confirm too.
    if s07_one_batch::is_bump(evidence, standing) {
        return 1;
    }
    let parameters = evidence.vault.parameters();
    u32::from(parameters.replacement_delay).saturating_add(u32::from(parameters.bump_window))
}

/// A refund can be mined in the next block once the deposit has `refund_delay` confirmations (BIP-68).
fn refund_is_far(margin: u32, terms: &DepositTerms, confirmations: u32) -> Result<(), Refusal> {
    let left = u32::from(terms.refund_delay).saturating_sub(confirmations);
    if left < margin {
        return Err(refuse(format!(
            "its refund opens in {left} blocks, {margin} are needed"
        )));
    }
    Ok(())
}

/// The refunds once more, with the blocks that have come since the verdict: a batch that was verified early must not be
/// signed late.
pub(super) fn check_refunds(evidence: &Evidence, standing: &Standing) -> Result<(), Refusal> {
    let since = standing.height.saturating_sub(evidence.standing.height);
    let margin = refund_margin(evidence, standing);
    for ((outpoint, _), terms) in evidence.body.deposits().zip(&evidence.body.terms) {
        let output = confirmed_output(evidence, outpoint)?;
        let confirmations = output.confirmations.saturating_add(since);
        refund_is_far(margin, terms, confirmations)?;
    }
    Ok(())
}

fn top_ups(evidence: &Evidence, spent: &mut BTreeSet<OutPoint>) -> Result<Vec<TopUp>, Refusal> {
    let outpoints = &evidence.candidate.top_ups;
    if outpoints.len() > MAX_TOP_UPS {
        return Err(refuse(format!(
            "{} top-ups, more than {MAX_TOP_UPS}",
            outpoints.len()
        )));
    }
    let mut found = Vec::new();
    for outpoint in outpoints {
        if !spent.insert(*outpoint) {
            return Err(refuse(format!("{outpoint} is spent twice in this batch")));
        }
        let output = confirmed_output(evidence, outpoint)?;
        if output.script_pubkey != *evidence.vault.script_pubkey() {
            return Err(refuse(format!("top-up {outpoint} does not pay the vault")));
        }
        found.push(TopUp {
            outpoint: *outpoint,
            value: output.value,
        });
    }
    Ok(found)
}

fn confirmed_output<'a>(
    evidence: &'a Evidence,
    outpoint: &OutPoint,
) -> Result<&'a UnspentOutput, Refusal> {
    let output = evidence.outputs.get(outpoint).ok_or_else(|| {
        refuse(format!(
            "{outpoint} is not an unspent output of the best chain"
        ))
    })?;
    let parameter = evidence.vault.parameters().deposit_confirmations;
    let needed = if output.coinbase {
        parameter.max(COINBASE_MATURITY)
    } else {
        parameter
    };
    if output.confirmations < needed {
        return Err(refuse(format!(
            "{outpoint} has {} of {needed} confirmations",
            output.confirmations
        )));
    }
    Ok(output)
}

fn refuse(reason: String) -> Refusal {
    Refusal::new(Rule::S2, reason)
}

#[cfg(test)]
pub(super) mod cases {
    use bitcoin::Amount;
    use ledger::Operation;
    use protocol::message::Rule;

    use crate::verify::fixture::{Case, DEPTH, bump, op, outpoint, output, payout_script};

    pub(in crate::verify) fn all() -> Vec<Case> {
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
                    bump(e);
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
}
