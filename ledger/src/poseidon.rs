//! Poseidon over BN254, widths 3 and 5, as circomlib has it: x^5, 8 full rounds, 57 or 60 partial rounds,
//! constants from the Grain LFSR of the Poseidon paper (eprint 2019/458, appendix F).
//!
//! Written once over [`Arithmetic`], so that native code and circuit run the same permutation. Partial rounds
//! use the equivalent sparse matrices of appendix B of the paper: one round constant and 2 * width - 1
//! multiplications a round in place of width and width^2.

// Every index is a loop variable below the const width of the array that it indexes.
#![allow(clippy::indexing_slicing)]

use std::{array, sync::LazyLock};

use ark_crypto_primitives::sponge::poseidon::find_poseidon_ark_and_mds;
use ark_ff::{Field as _, One as _, PrimeField as _, Zero as _};

use crate::Field;

const FULL_ROUNDS: usize = 8;
const HALF_FULL_ROUNDS: usize = FULL_ROUNDS / 2;
const PARTIAL_ROUNDS_WIDTH_3: usize = 57;
const PARTIAL_ROUNDS_WIDTH_5: usize = 60;

/// What the hash, and every statement about a row, is written in: natively a field element, in the circuit a
/// linear combination of variables.
pub trait Arithmetic {
    /// A number: known, or a linear combination.
    type Value: Clone;

    /// A constant.
    fn constant(&mut self, value: Field) -> Self::Value;

    /// `value + constant`.
    fn add_constant(&mut self, value: &Self::Value, constant: Field) -> Self::Value;

    /// `value + factor * other`.
    fn add_scaled(
        &mut self,
        value: &Self::Value,
        factor: Field,
        other: &Self::Value,
    ) -> Self::Value;

    /// The inner product of constants and values.
    fn dot<const N: usize>(
        &mut self,
        factors: &[Field; N],
        values: &[Self::Value; N],
    ) -> Self::Value;

    /// `a * b`: the only operation that costs a constraint.
    fn product(&mut self, a: &Self::Value, b: &Self::Value) -> Self::Value;
}

/// Plain field arithmetic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

impl Arithmetic for Native {
    type Value = Field;

    #[inline]
    fn constant(&mut self, value: Field) -> Field {
        value
    }

    #[inline]
    fn add_constant(&mut self, value: &Field, constant: Field) -> Field {
        *value + constant
    }

    #[inline]
    fn add_scaled(&mut self, value: &Field, factor: Field, other: &Field) -> Field {
        *value + factor * other
    }

    #[inline]
    fn dot<const N: usize>(&mut self, factors: &[Field; N], values: &[Field; N]) -> Field {
        Field::sum_of_products(factors, values)
    }

    #[inline]
    fn product(&mut self, a: &Field, b: &Field) -> Field {
        *a * b
    }
}

/// A partial round's matrix in sparse form: first row, and first column below it; the rest is the identity.
struct Sparse<const W: usize> {
    row: [Field; W],
    column: [Field; W],
}

/// Constants and matrices of one width.
struct Parameters<const W: usize> {
    mds: [[Field; W]; W],
    first: [[Field; W]; HALF_FULL_ROUNDS],
    /// Takes the place of `mds` in the last of the first full rounds.
    before_partial: [[Field; W]; W],
    partial: Vec<(Field, Sparse<W>)>,
    last: [[Field; W]; HALF_FULL_ROUNDS],
}

static WIDTH_3: LazyLock<Parameters<3>> =
    LazyLock::new(|| Parameters::derive(PARTIAL_ROUNDS_WIDTH_3));
static WIDTH_5: LazyLock<Parameters<5>> =
    LazyLock::new(|| Parameters::derive(PARTIAL_ROUNDS_WIDTH_5));

/// Poseidon of two elements, 243 constraints. `tag` separates domains; circomlib's hash has tag 0.
pub fn hash_2<A: Arithmetic>(a: &mut A, tag: Field, [x, y]: [A::Value; 2]) -> A::Value {
    let state = [a.constant(tag), x, y];
    let [out, ..] = WIDTH_3.permute(a, state);
    out
}

/// Poseidon of four elements, 300 constraints. `tag` separates domains; circomlib's hash has tag 0.
pub fn hash_4<A: Arithmetic>(a: &mut A, tag: Field, [x, y, z, w]: [A::Value; 4]) -> A::Value {
    let state = [a.constant(tag), x, y, z, w];
    let [out, ..] = WIDTH_5.permute(a, state);
    out
}

/// A domain tag: up to 31 ASCII bytes as an integer.
pub fn tag(name: &str) -> Field {
    Field::from_le_bytes_mod_order(name.as_bytes())
}

impl<const W: usize> Parameters<W> {
    fn derive(partial_rounds: usize) -> Self {
        let (constants, matrix) = find_poseidon_ark_and_mds::<Field>(
            u64::from(Field::MODULUS_BIT_SIZE),
            W - 1,
            FULL_ROUNDS as u64,
            partial_rounds as u64,
            0,
        );
        let constants: Vec<[Field; W]> = constants
            .iter()
            .map(|row| array::from_fn(|i| row[i]))
            .collect();
        let mds: [[Field; W]; W] = array::from_fn(|i| array::from_fn(|j| matrix[i][j]));

        // A partial round leaves all but the first element alone, so their constants pass through the S-box and
        // are moved, through the matrix, into the next round.
        let mut moved = [Field::zero(); W];
        let mut scalars = Vec::with_capacity(partial_rounds);
        for round in constants.iter().skip(HALF_FULL_ROUNDS).take(partial_rounds) {
            let mut sum: [Field; W] = array::from_fn(|i| round[i] + moved[i]);
            scalars.push(sum[0]);
            sum[0] = Field::zero();
            moved = apply(&mds, &sum);
        }
        let mut last: [[Field; W]; HALF_FULL_ROUNDS] =
            array::from_fn(|i| constants[HALF_FULL_ROUNDS + partial_rounds + i]);
        for (constant, extra) in last[0].iter_mut().zip(moved) {
            *constant += extra;
        }

        // From the last partial round to the first: matrix = sparse * diag(1, block); the block commutes with
        // the S-box of the first element, so it joins the matrix of the round before.
        let mut matrix = mds;
        let mut partial = Vec::with_capacity(partial_rounds);
        for scalar in scalars.into_iter().rev() {
            let (sparse, block) = factor(&matrix);
            partial.push((scalar, sparse));
            matrix = multiply(&block, &mds);
        }
        partial.reverse();

        Self {
            mds,
            first: array::from_fn(|i| constants[i]),
            before_partial: matrix,
            partial,
            last,
        }
    }

    fn permute<A: Arithmetic>(&self, a: &mut A, mut state: [A::Value; W]) -> [A::Value; W] {
        for (round, constants) in self.first.iter().enumerate() {
            let matrix = if round + 1 == HALF_FULL_ROUNDS {
                &self.before_partial
            } else {
                &self.mds
            };
            state = full_round(a, &state, constants, matrix);
        }
        for (constant, sparse) in &self.partial {
            let first = a.add_constant(&state[0], *constant);
            state[0] = power_5(a, &first);
            let mixed = a.dot(&sparse.row, &state);
            for i in 1..W {
                state[i] = a.add_scaled(&state[i], sparse.column[i], &state[0]);
            }
            state[0] = mixed;
        }
        for constants in &self.last {
            state = full_round(a, &state, constants, &self.mds);
        }
        state
    }
}

fn full_round<A: Arithmetic, const W: usize>(
    a: &mut A,
    state: &[A::Value; W],
    constants: &[Field; W],
    matrix: &[[Field; W]; W],
) -> [A::Value; W] {
    let powers: [A::Value; W] = array::from_fn(|i| {
        let sum = a.add_constant(&state[i], constants[i]);
        power_5(a, &sum)
    });
    array::from_fn(|i| a.dot(&matrix[i], &powers))
}

fn power_5<A: Arithmetic>(a: &mut A, x: &A::Value) -> A::Value {
    let square = a.product(x, x);
    let fourth = a.product(&square, &square);
    // The fourth power stays out of the second factor, which is the one that costs a multiplication in G2.
    a.product(&fourth, x)
}

fn apply<const W: usize>(matrix: &[[Field; W]; W], vector: &[Field; W]) -> [Field; W] {
    array::from_fn(|i| Field::sum_of_products(&matrix[i], vector))
}

fn multiply<const W: usize>(left: &[[Field; W]; W], right: &[[Field; W]; W]) -> [[Field; W]; W] {
    array::from_fn(|i| array::from_fn(|j| (0..W).map(|k| left[i][k] * right[k][j]).sum()))
}

/// `matrix = sparse * block` with `block = diag(1, ...)`.
fn factor<const W: usize>(matrix: &[[Field; W]; W]) -> (Sparse<W>, [[Field; W]; W]) {
    let block: [[Field; W]; W] = array::from_fn(|i| {
        array::from_fn(|j| match (i, j) {
            (0, 0) => Field::one(),
            (0, _) | (_, 0) => Field::zero(),
            _ => matrix[i][j],
        })
    });
    let inverse = invert(&block);
    let row = array::from_fn(|j| (0..W).map(|k| matrix[0][k] * inverse[k][j]).sum());
    let column = array::from_fn(|i| matrix[i][0]);
    (Sparse { row, column }, block)
}

/// Gauss and Jordan. The matrices here are submatrices of products of Cauchy matrices, so they are regular; a
/// singular one would show in the published vectors below.
fn invert<const W: usize>(matrix: &[[Field; W]; W]) -> [[Field; W]; W] {
    let mut left = *matrix;
    let mut right: [[Field; W]; W] =
        array::from_fn(|i| array::from_fn(|j| if i == j { Field::one() } else { Field::zero() }));
    for pivot in 0..W {
        if let Some(row) = (pivot..W).find(|&row| !left[row][pivot].is_zero()) {
            left.swap(pivot, row);
            right.swap(pivot, row);
        }
        let scale = left[pivot][pivot].inverse().unwrap_or_default();
        for j in 0..W {
            left[pivot][j] *= scale;
            right[pivot][j] *= scale;
        }
        for i in (0..W).filter(|&i| i != pivot) {
            let scale = left[i][pivot];
            for j in 0..W {
                let (l, r) = (left[pivot][j], right[pivot][j]);
                left[i][j] -= scale * l;
                right[i][j] -= scale * r;
            }
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    /// Vectors of circomlib's `test/poseidoncircuit.js`.
    #[test]
    fn hashes_match_circomlib() {
        let n = |n: u64| Field::from(n);
        assert_eq!(
            hash_2(&mut Native, Field::zero(), [n(1), n(2)]),
            Field::from_str(
                "7853200120776062878684798364095072458815029376092732009249414926327459813530"
            )
            .unwrap()
        );
        assert_eq!(
            hash_4(&mut Native, Field::zero(), [n(1), n(2), n(3), n(4)]),
            Field::from_str(
                "18821383157269793795438455681495246036402687001665670618754263018637548127333"
            )
            .unwrap()
        );
    }

    #[test]
    fn another_tag_gives_another_hash() {
        let inputs = [Field::one(), Field::one()];
        assert_ne!(
            hash_2(&mut Native, tag("a"), inputs),
            hash_2(&mut Native, tag("b"), inputs)
        );
    }
}
