//! What holds in every state that a run comes to, and what some run must come to.

use stateright::Property;

use super::{
    Block, Body, Bounds, Candidates, Choice, DELAY, FEE, Parent, RAISED_FEE, Run, head, spendable,
};

/// All that there are at this size.
pub(super) fn all(bounds: Bounds) -> Vec<Property<Candidates>> {
    let mut all = vec![
        Property::always("no honest share breaks S2 or S7", |_, run: &Run| {
            let mut operators = run.operators.iter();
            operators.all(|operator| operator.unlawful().is_none())
        }),
        Property::always(
            "two complete batches have a signer in common",
            has_common_signer,
        ),
        Property::always(
            "after the delay an honest coordinator gets its shares",
            heals,
        ),
        Property::sometimes("a batch confirms after a split", |_, run: &Run| {
            is_split(run) && head(&run.blocks) != Parent::Genesis
        }),
        Property::sometimes("a replacement confirms", |_, run: &Run| {
            head(&run.blocks) == Parent::After(Body::A, RAISED_FEE)
        }),
        Property::sometimes("a second batch confirms", |_, run: &Run| {
            matches!(head(&run.blocks), Parent::After(Body::C, _))
        }),
        Property::sometimes("an operator signs both batches", |_, run: &Run| {
            signs_both(run)
        }),
    ];
    // Where one honest share is enough, whoever is split off completes a batch.
    if bounds.corrupt.saturating_add(1) < bounds.threshold {
        all.push(Property::sometimes(
            "a split stops both batches",
            stops_both,
        ));
    }
    all
}

fn stops_both(model: &Candidates, run: &Run) -> bool {
    is_split(run) && !choices_of_genesis().any(|choice| model.enough(run.signers(choice)))
}

fn choices_of_genesis() -> impl Iterator<Item = Choice> {
    super::choices(Parent::Genesis).into_iter()
}

/// Two operators have signed nothing in common.
fn is_split(run: &Run) -> bool {
    let only = |body: Body| {
        run.operators.iter().any(|operator| {
            let bodies = operator.bodies(Parent::Genesis);
            bodies.len() == 1 && bodies.contains(&body)
        })
    };
    only(Body::A) && only(Body::B)
}

/// Where more than half of the honest operators are needed beside the corrupt ones, a coordinator that splits them
/// can complete two batches only with an operator that has signed both, which S7 lets it do a delay apart.
fn has_common_signer(model: &Candidates, run: &Run) -> bool {
    let bounds = model.bounds;
    let needed = bounds.threshold.saturating_sub(bounds.corrupt);
    if needed.saturating_mul(2) <= bounds.honest {
        return true;
    }
    let complete = |body: Body| {
        choices_of_genesis().any(|choice| choice.body == body && model.enough(run.signers(choice)))
    };
    !(complete(Body::A) && complete(Body::B)) || signs_both(run)
}

fn signs_both(run: &Run) -> bool {
    run.operators
        .iter()
        .any(|operator| operator.bodies(Parent::Genesis).len() > 1)
}

/// Wherever a coordinator has left the operators: when all have seen blocks for the length of the delay, without
/// corrupt help, one batch gets enough shares.
fn heals(model: &Candidates, run: &Run) -> bool {
    let mut run = run.clone();
    let head = head(&run.blocks);
    let body = match head {
        Parent::Genesis if spendable(Body::A, &run.blocks) => Body::A,
        Parent::Genesis => Body::B,
        Parent::After(Body::C, _) => return true,
        Parent::After(..) => Body::C,
    };
    let choice = Choice {
        parent: head,
        body,
        fee: if body == Body::A { RAISED_FEE } else { FEE },
    };
    // A block beyond every chain that there was, from which restored operators count, and the delay after it.
    let longest = usize::from(model.bounds.blocks).saturating_add(1);
    for blocks in [longest, longest.saturating_add(usize::from(DELAY))] {
        run.blocks.resize(blocks, Block::Empty);
        for operator in &mut run.operators {
            operator.look(&run.blocks, model.broken);
        }
    }
    for operator in &mut run.operators {
        operator.ask(choice, model.broken);
    }
    run.signers(choice) >= usize::from(model.bounds.threshold)
}
