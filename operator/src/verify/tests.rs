//! An honest batch is verified, and each single change to it is refused under the rule that it breaks. The changes are
//! beside their rules; those of what an operator keeps for itself are here.

use std::{str::FromStr as _, sync::Arc};

use bitcoin::{Amount, XOnlyPublicKey};
use chain::rpc::UnspentOutput;
use proof::Keys;
use protocol::{
    batch::BatchHash,
    deposit::NUMS,
    message::{Refusal, Rule},
};
use rand::rngs::OsRng;

use super::{
    Evidence, Verified, again, batch,
    fixture::{
        Case, Users, build, bump, honest, outpoint, output, payout_script, rebuilt, without_proofs,
    },
    genesis,
};
use crate::{decisions::Decisions, testing};

fn cases_of_standing() -> Vec<Case> {
    vec![
        (
            "an alarm",
            |e| e.standing.alarm = Some("unknown spend".to_owned()),
            Rule::S14,
            "unknown spend",
        ),
        (
            "a pause",
            |e| {
                let (_folder, store) = testing::store();
                let mut decisions = Decisions::default();
                decisions
                    .pause_signing(&store, "a drill".to_owned(), 0)
                    .unwrap();
                e.standing.decisions = Arc::new(decisions);
            },
            Rule::S6,
            "a drill",
        ),
        (
            "a rejected operation",
            |e| {
                let (_folder, store) = testing::store();
                let mut decisions = Decisions::default();
                let id = e.body.operations[2].id(&e.body.vault);
                decisions.reject(&store, id, 0).unwrap();
                e.standing.decisions = Arc::new(decisions);
            },
            Rule::S6,
            "rejected",
        ),
        (
            "a policy with a lower limit",
            |e| e.standing.policy = Arc::new(testing::policy("largest_sat = 19_999", "")),
            Rule::S6,
            "largest withdrawal",
        ),
        (
            "another batch that was signed for this number",
            |e| {
                bump(e);
                if let Some(promise) = &mut e.standing.promise {
                    promise.batch = BatchHash([9; 32]);
                }
            },
            Rule::S7,
            "was signed for sequence number 1",
        ),
    ]
}

/// This batch has a share; a coordinator asks for another transaction of it.
fn cases_of_bumps() -> Vec<Case> {
    fn paid_more(e: &mut Evidence, payout: i64, treasury: i64) {
        bump(e);
        let mut unsigned = build(e).unsigned;
        for (output, more) in [(2, payout), (0, treasury)] {
            let output = &mut unsigned.output[output];
            output.value = Amount::from_sat(output.value.to_sat().strict_add_signed(more));
        }
        e.candidate.txid = unsigned.compute_txid();
    }
    vec![
        (
            "a bump that pays a receiver more",
            |e| paid_more(e, 1, -1),
            Rule::S1,
            "rebuilt from own data",
        ),
        (
            "a bump that a receiver pays for",
            |e| paid_more(e, -1, 0),
            Rule::S1,
            "rebuilt from own data",
        ),
        (
            "a bump that takes more out of the treasury than it says",
            |e| paid_more(e, 0, -1),
            Rule::S1,
            "rebuilt from own data",
        ),
        (
            "a bump with a lower fee",
            |e| {
                bump(e);
                e.candidate.fee -= Amount::from_sat(2);
                rebuilt(e);
            },
            Rule::S7,
            "must pay more",
        ),
        (
            "a bump with the same fee and a top-up",
            |e| {
                bump(e);
                e.candidate.fee -= Amount::ONE_SAT;
                e.candidate.top_ups = vec![outpoint(9)];
                rebuilt(e);
            },
            Rule::S7,
            "must pay more",
        ),
        (
            "a bump with a fee above the cap",
            |e| {
                bump(e);
                e.candidate.fee = Amount::from_sat(5_001);
                rebuilt(e);
            },
            Rule::S5,
            "above this operator's cap",
        ),
        (
            "a bump above what users paid lately",
            |e| {
                bump(e);
                e.standing.recent.net_fees = 1_601;
            },
            Rule::S5,
            "within 144 blocks",
        ),
        (
            "a bump with an unconfirmed top-up",
            |e| {
                bump(e);
                output(e, 9).confirmations = 0;
                e.candidate.top_ups = vec![outpoint(9)];
                rebuilt(e);
            },
            Rule::S2,
            "confirmations",
        ),
    ]
}

#[test]
fn an_honest_batch_is_verified_and_each_single_change_is_refused_by_its_rule() {
    let keys = Keys::setup(&mut OsRng).unwrap();
    let honest = honest(&Users::new(), &keys);
    let judge = |evidence: &Evidence| batch(Arc::new(evidence.clone()), &keys.verifying);
    let verified = judge(&honest).unwrap();
    assert_eq!(verified.unsigned().compute_txid(), honest.candidate.txid);
    assert_eq!(Verified::Batch(verified).messages().len(), 3);

    let cases = [
        super::s01_rebuilt::cases::all(),
        super::s02_inputs::cases::all(),
        super::s03_operations::cases::all(),
        super::s04_ledger::cases::all(),
        super::s05_reserves::cases::all(),
        cases_of_standing(),
        cases_of_bumps(),
    ]
    .concat();
    for (name, change, rule, words) in cases {
        let mut changed = honest.clone();
        change(&mut changed);
        let Err(Refusal {
            rule: found,
            reason,
            ..
        }) = judge(&changed)
        else {
            panic!("{name} was verified");
        };
        assert_eq!(found, rule, "{name}: {reason}");
        assert!(reason.contains(words), "{name}: {reason}");
    }

    // What only looks like a violation.
    let mut near = honest.clone();
    output(&mut near, 1).confirmations = 144 - 36;
    near.standing.recent.net_fees = 1_600;
    judge(&near).unwrap();
    bump(&mut near);
    output(&mut near, 1).confirmations = 143;
    judge(&near).unwrap();
    let mut topped_up = honest.clone();
    topped_up.candidate.top_ups = vec![outpoint(9)];
    rebuilt(&mut topped_up);
    judge(&topped_up).unwrap();

    // What has changed since the verdict is judged again; what has not changed is not.
    let verified = Verified::Batch(judge(&honest).unwrap());
    again(&verified, &honest.standing).unwrap();
    for (name, change, rule, _) in cases_of_standing() {
        let mut changed = honest.clone();
        change(&mut changed);
        let refusal = again(&verified, &changed.standing).unwrap_err();
        assert_eq!(refusal.rule, rule, "{name}: {refusal}");
    }
    let mut costly = honest.standing.clone();
    costly.recent.net_fees = 1_601;
    assert_eq!(again(&verified, &costly).unwrap_err().rule, Rule::S5);
    // A refund that was far at the verdict comes near with the blocks.
    let mut late = honest.standing.clone();
    late.height += 144 - 36 - super::fixture::DEPTH;
    again(&verified, &late).unwrap();
    late.height += 1;
    assert_eq!(again(&verified, &late).unwrap_err().rule, Rule::S2);
}

#[test]
fn a_refusal_names_the_operation_at_fault() {
    let users = Users::new();
    let vault = testing::vault();
    let id = vault.id();
    let low = users.transfer(1).sign(&users.0, &id);
    let mut evidence = without_proofs(&users);
    evidence.body.operations[2] = low.clone();
    let refusal = super::s03_operations::check(&evidence).unwrap_err();
    assert_eq!(
        (refusal.rule, refusal.operations),
        (Rule::S3, vec![low.id(&id)])
    );
}

#[test]
fn a_genesis_is_verified_and_each_single_change_is_refused() {
    let (honest, tip) = testing::genesis_output();
    let genesis = testing::genesis();
    let check = |genesis: &protocol::vault::Genesis, output: Option<&UnspentOutput>| {
        let output = output.map(|output| (output, tip));
        genesis::check(
            testing::vault_key(),
            testing::VERIFYING_KEY_HASH,
            genesis,
            output,
        )
    };
    let verified = check(&genesis, Some(&honest)).unwrap();
    assert_eq!(verified.height(), testing::GENESIS_HEIGHT);
    assert_eq!(verified.outpoint(), genesis.outpoint);

    let claims: [fn(&mut protocol::vault::Genesis); 5] = [
        |g| g.group_key = XOnlyPublicKey::from_str(NUMS).unwrap(),
        |g| g.verifying_key_hash[0] ^= 1,
        |g| g.parameters_hash[0] ^= 1,
        |g| g.roster_hash[0] ^= 1,
        |g| g.amount += Amount::ONE_SAT,
    ];
    for change in claims {
        let mut changed = genesis.clone();
        change(&mut changed);
        assert_eq!(check(&changed, Some(&honest)).unwrap_err().rule, Rule::S2);
    }
    let outputs: [fn(&mut UnspentOutput); 4] = [
        |o| o.script_pubkey = payout_script(),
        |o| o.value += Amount::ONE_SAT,
        |o| o.confirmations -= 1,
        |o| o.coinbase = true,
    ];
    for change in outputs {
        let mut changed = honest.clone();
        change(&mut changed);
        assert_eq!(check(&genesis, Some(&changed)).unwrap_err().rule, Rule::S2);
    }
    assert_eq!(check(&genesis, None).unwrap_err().rule, Rule::S2);
    let mut dust = (genesis, honest);
    dust.0.amount = Amount::from_sat(329);
    dust.1.value = dust.0.amount;
    assert!(
        check(&dust.0, Some(&dust.1))
            .unwrap_err()
            .reason
            .contains("dust")
    );
}
