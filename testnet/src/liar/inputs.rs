//! Lies about what the transaction spends (S2). The transaction always fits what is claimed, so S1 has
//! nothing to say.

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{AccountSecret, Operation, VaultId};
use protocol::{batch::MAX_TOP_UPS, deposit::DepositTerms, message::Rule, transaction::TopUp};
use rand::rngs::OsRng;

use super::{
    coins::{Deposit, terms},
    draft::{Draft, input},
    lie::{Kind, Layer, Lie, one_more},
    stage::{Stage, credit},
};

const S1: &[Rule] = &[Rule::S1];
const S2: &[Rule] = &[Rule::S2];
const S3: &[Rule] = &[Rule::S3];

const fn kind(
    name: &'static str,
    changed: &'static str,
    rules: &'static [Rule],
    says: &'static str,
) -> Kind {
    Kind::new(Layer::Inputs, name, changed, rules, says)
}

/// All of them.
///
/// # Errors
/// When the coins don't allow one.
pub fn lies(stage: &Stage) -> anyhow::Result<Vec<Lie>> {
    let mut lies = outputs_that_are_not_deposits(stage)?;
    lies.extend(claims_about_deposits(stage)?);
    lies.extend(top_ups(stage));
    lies.extend(other_transactions(stage));
    Ok(lies)
}

/// The first deposit becomes another one.
fn instead(draft: &mut Draft, deposit: &Deposit) -> anyhow::Result<()> {
    set(&mut draft.operations, 0, credit(deposit)?);
    set(&mut draft.terms, 0, deposit.terms.clone());
    set(&mut draft.values, 0, deposit.value);
    Ok(())
}

fn set<T>(list: &mut [T], place: usize, value: T) {
    if let Some(item) = list.get_mut(place) {
        *item = value;
    }
}

fn outputs_that_are_not_deposits(stage: &Stage) -> anyhow::Result<Vec<Lie>> {
    let coins = &stage.coins;
    let vault = &stage.standing.vault;
    let own = |outpoint, value| -> anyhow::Result<Deposit> {
        Ok(Deposit {
            outpoint,
            value,
            terms: terms(vault, stage.accomplice.key())?,
        })
    };
    let missing = OutPoint::new(Txid::from_byte_array([0x11; 32]), 0);
    let head = &stage.standing.head;
    let cases = [
        (
            kind(
                "foreign output",
                "a deposit that pays somebody else's script",
                S2,
                "does not pay the address",
            ),
            own(coins.foreign.outpoint, coins.foreign.value)?,
        ),
        (
            kind(
                "missing output",
                "a deposit that was never on the chain",
                S2,
                "is not an unspent output",
            ),
            own(missing, Amount::from_sat(150_000))?,
        ),
        (
            kind(
                "swept deposit",
                "the accomplice's deposit of an earlier batch, once more",
                S2,
                "is not an unspent output",
            ),
            swept(stage)?,
        ),
        (
            kind(
                "immature deposit",
                "a deposit with one confirmation less than the parameters ask for",
                S2,
                "confirmations",
            ),
            coins.young.clone(),
        ),
        (
            kind(
                "unconfirmed deposit",
                "a deposit in the mempool",
                S2,
                "is not an unspent output",
            ),
            coins.unconfirmed.clone(),
        ),
        (
            kind(
                "coinbase deposit",
                "a deposit from a coinbase transaction, deep enough for any other",
                S2,
                "of 100 confirmations",
            ),
            coins.mined.clone(),
        ),
        (
            kind(
                "refund close",
                "a deposit whose refund opens within the replacement delay and the bump window",
                S2,
                "its refund opens in",
            ),
            coins.late.clone(),
        ),
        (
            kind(
                "small deposit",
                "a deposit one sat below the smallest",
                S2,
                "less than the smallest deposit",
            ),
            coins.small.clone(),
        ),
        (
            kind(
                "treasury as deposit",
                "the treasury's own output as a deposit",
                S2,
                "spent twice",
            ),
            own(head.outpoint, head.value)?,
        ),
    ];
    let mut lies = Vec::new();
    for (kind, deposit) in cases {
        let mut lie = Lie::new(kind, &stage.honest);
        instead(&mut lie.draft, &deposit)?;
        lies.extend(lie.both());
    }
    Ok(lies)
}

/// The accomplice's deposit in the latest batch.
fn swept(stage: &Stage) -> anyhow::Result<Deposit> {
    let batches = stage.standing.past.iter().map(|(_, body)| body);
    let found = batches
        .flat_map(|body| body.deposits().zip(&body.terms))
        .find(|(_, terms)| terms.account == stage.accomplice.key());
    let ((outpoint, credited), terms) =
        found.ok_or_else(|| anyhow::anyhow!("the accomplice was never credited a deposit"))?;
    Ok(Deposit {
        outpoint: *outpoint,
        value: credited
            .checked_add(terms.fee)
            .ok_or_else(|| anyhow::anyhow!("a deposit beyond all bitcoin"))?,
        terms: terms.clone(),
    })
}

fn claims_about_deposits(stage: &Stage) -> anyhow::Result<Vec<Lie>> {
    let [first, _] = &stage.coins.good;
    let vault = &stage.standing.vault;
    let thief = AccountSecret::generate(&mut OsRng).public();
    let stolen = Deposit {
        terms: terms(vault, thief)?,
        ..first.clone()
    };
    let honest = &stage.honest;
    let credited = |amount: Amount, account, outpoint| Operation::Deposit {
        account,
        amount,
        outpoint,
    };
    let lie = |name, changed, rules, says| Lie::new(kind(name, changed, rules, says), honest);

    let mut lies = Vec::new();
    let mut script = lie(
        "script claimed",
        "another's deposit, with terms whose address it does not pay",
        S2,
        "does not pay the address",
    );
    instead(&mut script.draft, &stolen)?;
    lies.extend(script.both());

    let account = credited(
        first.terms.credited(first.value).unwrap_or_default(),
        thief,
        first.outpoint,
    );
    lies.extend(
        lie(
            "account claimed",
            "a deposit credited to another account than its terms say",
            S2,
            "to another account",
        )
        .draft(|draft| set(&mut draft.operations, 0, account))
        .both(),
    );

    let due = first.terms.credited(first.value).unwrap_or_default();
    let more = credited(one_more(due), first.terms.account, first.outpoint);
    lies.extend(
        lie(
            "amount claimed",
            "a deposit credited with one sat too much",
            S2,
            "credits",
        )
        .draft(|draft| {
            set(&mut draft.operations, 0, more);
            set(&mut draft.values, 0, one_more(first.value));
        })
        .both(),
    );

    let doubled = credited(due, thief, first.outpoint);
    lies.extend(
        lie(
            "doubled output",
            "one output credited to two accounts",
            S2,
            "spent twice",
        )
        .draft(|draft| {
            set(&mut draft.operations, 1, doubled);
            set(&mut draft.terms, 1, stolen.terms.clone());
            set(&mut draft.values, 1, first.value);
        })
        .both(),
    );
    let again = credit(first)?;
    lies.extend(
        lie(
            "doubled operation",
            "one deposit twice in the batch",
            S3,
            "in the batch twice",
        )
        .draft(|draft| {
            set(&mut draft.operations, 1, again);
            set(&mut draft.terms, 1, first.terms.clone());
            set(&mut draft.values, 1, first.value);
        })
        .both(),
    );
    lies.extend(other_terms(stage, first));
    Ok(lies)
}

/// Terms that the vault does not offer. They are in no proof.
fn other_terms(stage: &Stage, first: &Deposit) -> Vec<Lie> {
    let differ = |name, changed, says, change: &dyn Fn(&mut DepositTerms)| {
        let mut terms = first.terms.clone();
        change(&mut terms);
        Lie::new(kind(name, changed, S2, says), &stage.honest)
            .draft(|draft| set(&mut draft.terms, 0, terms))
    };
    vec![
        differ(
            "terms of another vault",
            "deposit terms that name another vault",
            "vault id",
            &|terms| terms.vault = VaultId([0x22; 32]),
        ),
        differ(
            "terms without fee",
            "deposit terms with no deposit fee",
            "deposit fee",
            &|terms| terms.fee = Amount::ZERO,
        ),
        differ(
            "terms with a short refund",
            "deposit terms whose refund opens after one block",
            "refund delay",
            &|terms| terms.refund_delay = 1,
        ),
        differ(
            "terms of another refund key",
            "deposit terms with a refund key of the liar's",
            "does not pay the address",
            &|terms| {
                terms.refund = stage.standing.vault.group_key();
            },
        ),
    ]
}

fn top_ups(stage: &Stage) -> Vec<Lie> {
    let coins = &stage.coins;
    let [low, high] = coins.top_ups;
    let with = |name, changed, rules, says, mut top_ups: Vec<TopUp>| {
        Lie::new(kind(name, changed, rules, says), &stage.honest).draft(|draft| {
            draft.top_ups.clear();
            draft.top_ups.append(&mut top_ups);
        })
    };
    let missing = TopUp {
        outpoint: OutPoint::new(Txid::from_byte_array([0x11; 32]), 0),
        value: Amount::from_sat(50_000),
    };
    let treasury = TopUp {
        outpoint: stage.standing.head.outpoint,
        value: stage.standing.head.value,
    };
    let deposit = TopUp {
        outpoint: coins.late.outpoint,
        value: coins.late.value,
    };
    let many = (0..=u32::try_from(MAX_TOP_UPS).unwrap_or(u32::MAX))
        .map(|vout| TopUp {
            outpoint: OutPoint::new(missing.outpoint.txid, vout),
            value: missing.value,
        })
        .collect();
    vec![
        with(
            "top-up unconfirmed",
            "a top-up in the mempool",
            S2,
            "is not an unspent output",
            vec![coins.unconfirmed_top_up],
        ),
        with(
            "top-up missing",
            "a top-up that was never on the chain",
            S2,
            "is not an unspent output",
            vec![missing],
        ),
        with(
            "top-up coinbase",
            "a top-up from a coinbase transaction, deep enough for any other",
            S2,
            "of 100 confirmations",
            vec![coins.mined_top_up],
        ),
        with(
            "top-up foreign",
            "a top-up that pays somebody else's script",
            S2,
            "does not pay the vault",
            vec![coins.foreign],
        ),
        with(
            "top-up of a deposit",
            "a user's deposit as a top-up, credited to nobody",
            S2,
            "does not pay the vault",
            vec![deposit],
        ),
        with(
            "top-up of the treasury",
            "the treasury once more as a top-up",
            S2,
            "spent twice",
            vec![treasury],
        ),
        with(
            "top-up doubled",
            "one top-up twice",
            S2,
            "spent twice",
            vec![low, low],
        ),
        with(
            "top-ups out of order",
            "two top-ups in descending order",
            S1,
            "outpoint order",
            vec![high, low],
        ),
        with(
            "too many top-ups",
            "one top-up more than a batch may have",
            S2,
            "more than 8 top-ups",
            many,
        ),
    ]
}

/// The transaction spends something else than the proposal says; only its id travels.
fn other_transactions(stage: &Stage) -> Vec<Lie> {
    let head = &stage.standing.head;
    let before = stage
        .standing
        .past
        .last()
        .map(|(candidate, _)| candidate.parent)
        .unwrap_or_default();
    let spent = head.outpoint;
    let foreign = stage.coins.foreign.outpoint;
    let lie =
        |name, changed, rules, says| Lie::new(kind(name, changed, rules, says), &stage.honest);
    vec![
        lie(
            "spent treasury",
            "the treasury that the latest batch has spent as input 0",
            S2,
            "not the latest treasury",
        )
        .draft(|draft| draft.parent = before),
        lie(
            "foreign treasury",
            "an output of the liar's as input 0",
            S2,
            "not the latest treasury",
        )
        .draft(|draft| draft.parent = foreign),
        lie(
            "input left out",
            "a transaction that does not sweep a deposit which it credits",
            S1,
            "rebuilt from own data",
        )
        .twist(|proposal| {
            proposal.with_transaction(|transaction| {
                transaction.input.remove(1);
            });
        }),
        lie(
            "input added",
            "a transaction that spends one more output",
            S1,
            "rebuilt from own data",
        )
        .twist(move |proposal| {
            proposal.with_transaction(|transaction| transaction.input.push(input(foreign)));
        }),
        lie(
            "inputs reordered",
            "a transaction with two deposits in the other order",
            S1,
            "rebuilt from own data",
        )
        .twist(|proposal| proposal.with_transaction(|transaction| transaction.input.swap(1, 2))),
        lie(
            "treasury not first",
            "a transaction whose input 0 is a deposit",
            S1,
            "rebuilt from own data",
        )
        .twist(move |proposal| {
            proposal.with_transaction(|transaction| {
                transaction.input.swap(0, 1);
            });
            debug_assert_eq!(proposal.candidate.parent, spent);
        }),
    ]
}
