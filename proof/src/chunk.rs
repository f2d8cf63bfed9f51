//! The circuit of one chunk: its rows in sequence, between two digests.

use ledger::{
    CHUNK_ROWS, ChunkInputs, ChunkWitness, Field, Ledger, VaultId,
    statement::{self, AMOUNT_BITS},
};
use std::sync::LazyLock;

use crate::{
    bits::assert_range,
    builder::{Assignment, Builder, Constraints, PUBLIC_INPUTS, Shape},
    row::{self, Carry, Chain, RowAssignment},
};

/// Everything that the prover chooses for one chunk. Nothing here is trusted.
#[derive(Clone, Debug)]
pub(crate) struct ChunkAssignment {
    /// Where the commitment starts. Free: no other start leads to the same commitment.
    pub start: Field,
    /// Root of the tree before.
    pub root: Field,
    /// Supply before.
    pub supply: Field,
    /// Exactly [`CHUNK_ROWS`].
    pub rows: Vec<RowAssignment>,
}

impl From<&ChunkWitness> for ChunkAssignment {
    fn from(chunk: &ChunkWitness) -> Self {
        Self {
            start: chunk.start.element(),
            root: chunk.before.root.element(),
            supply: Field::from(chunk.before.supply.to_sat()),
            rows: chunk.updates.iter().map(RowAssignment::from).collect(),
        }
    }
}

/// The circuit's constraints. Built on first use, in about a second.
pub(crate) static CONSTRAINTS: LazyLock<Constraints> = LazyLock::new(|| {
    let padding = padding();
    let mut shape = Shape::new(public(&padding.inputs()));
    synthesize(&mut shape, &ChunkAssignment::from(&padding));
    shape.finish()
});

/// A chunk of padding on an empty ledger: any satisfying witness shows the shape of all.
pub(crate) fn padding() -> ChunkWitness {
    let ledger = Ledger::new();
    ledger.padding_chunk(&VaultId([0; 32]))
}

pub(crate) fn public(inputs: &ChunkInputs) -> [Field; PUBLIC_INPUTS] {
    [
        &inputs.digest_before,
        &inputs.digest_after,
        &inputs.commitment,
    ]
    .map(|digest| digest.element())
}

/// The circuit's variables for these public inputs; they satisfy the constraints only if the statement holds.
pub(crate) fn assign(public: [Field; PUBLIC_INPUTS], chunk: &ChunkAssignment) -> Vec<Field> {
    let mut assignment = Assignment::new(public, CONSTRAINTS.variables);
    synthesize(&mut assignment, chunk);
    assignment.finish()
}

/// Adds the chunk's constraints; returns what the public inputs have to be.
fn synthesize<B: Builder>(b: &mut B, chunk: &ChunkAssignment) -> [B::Value; PUBLIC_INPUTS] {
    let [digest_before, digest_after, commitment] = std::array::from_fn(|i| b.public(i));
    let zero = b.zero();
    let root = b.witness(chunk.root);
    let supply = b.witness(chunk.supply);
    let before = statement::state_digest(b, root.clone(), supply.clone());
    b.assert_equal(&before, &digest_before);

    let no_carry = Carry {
        open: zero.clone(),
        amount: zero.clone(),
        target: [zero.clone(), zero.clone()],
    };
    let mut chain = Chain {
        root,
        supply,
        carry: no_carry,
    };
    let mut messages = Vec::with_capacity(CHUNK_ROWS);
    for row in &chunk.rows {
        let (message, next) = row::synthesize(b, row, chain);
        messages.push(message);
        chain = next;
    }

    let Chain {
        root,
        supply,
        carry,
    } = chain;
    let [x, y] = carry.target;
    for left_over in [carry.open, carry.amount, x, y] {
        b.assert_zero(&left_over);
    }
    assert_range(b, &supply, AMOUNT_BITS);
    let after = statement::state_digest(b, root, supply);
    b.assert_equal(&after, &digest_after);

    let start = b.witness(chunk.start);
    let chained = statement::commitment(b, start, &messages);
    b.assert_equal(&chained, &commitment);
    [before, after, chained]
}

/// The public inputs that fit what the prover chose, be it honest or not: so that a tampered witness fails by the
/// rule that it breaks, and not because digests or commitment give it away.
#[cfg(test)]
pub(crate) fn fitting_inputs(chunk: &ChunkAssignment) -> [Field; PUBLIC_INPUTS] {
    let mut assignment = Assignment::new(Default::default(), CONSTRAINTS.variables);
    synthesize(&mut assignment, chunk)
}
