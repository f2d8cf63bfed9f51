//! Two ways to run the circuit's code: [`Shape`] records the constraints, once per process; [`Assignment`] only
//! computes the variables, for each proof. Same code, so the same variables in the same order.

use std::collections::BTreeMap;

use ark_ff::{Field as _, One as _, PrimeField as _, Zero as _};
use ledger::{Field, poseidon::Arithmetic};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

/// Public inputs of a chunk's proof: digest before, digest after, commitment.
pub(crate) const PUBLIC_INPUTS: usize = 3;

/// Rank-1 constraints over variables: number 0 is the constant one, then the public inputs, then the witness.
pub(crate) trait Builder: Arithmetic {
    /// What `value` is in this run.
    fn value(&self, value: &Self::Value) -> Field;

    /// The public input number `i`.
    fn public(&mut self, i: usize) -> Self::Value;

    /// A new variable that the prover may choose.
    fn witness(&mut self, value: Field) -> Self::Value;

    /// `a * b = c`.
    fn enforce(&mut self, a: &Self::Value, b: &Self::Value, c: &Self::Value);

    fn zero(&mut self) -> Self::Value {
        self.constant(Field::zero())
    }

    fn add(&mut self, a: &Self::Value, b: &Self::Value) -> Self::Value {
        self.add_scaled(a, Field::one(), b)
    }

    fn sub(&mut self, a: &Self::Value, b: &Self::Value) -> Self::Value {
        self.add_scaled(a, -Field::one(), b)
    }

    /// `1 - a`.
    fn not(&mut self, a: &Self::Value) -> Self::Value {
        let one = self.constant(Field::one());
        self.sub(&one, a)
    }

    fn assert_zero(&mut self, a: &Self::Value) {
        let (one, zero) = (self.constant(Field::one()), self.zero());
        self.enforce(a, &one, &zero);
    }

    fn assert_equal(&mut self, a: &Self::Value, b: &Self::Value) {
        let difference = self.sub(a, b);
        self.assert_zero(&difference);
    }

    /// `a * (1 - a) = 0`.
    fn assert_boolean(&mut self, a: &Self::Value) {
        let (not, zero) = (self.not(a), self.zero());
        self.enforce(a, &not, &zero);
    }
}

/// A product's variable and constraint, for both builders.
fn product<B: Builder>(b: &mut B, x: &B::Value, y: &B::Value) -> B::Value {
    let value = b.value(x) * b.value(y);
    let out = b.witness(value);
    b.enforce(x, y, &out);
    out
}

/// Values only.
pub(crate) struct Assignment {
    variables: Vec<Field>,
}

impl Assignment {
    pub(crate) fn new(public: [Field; PUBLIC_INPUTS], capacity: usize) -> Self {
        let mut variables = Vec::with_capacity(capacity);
        variables.push(Field::one());
        variables.extend(public);
        Self { variables }
    }

    pub(crate) fn finish(self) -> Vec<Field> {
        self.variables
    }
}

impl Arithmetic for Assignment {
    type Value = Field;

    fn constant(&mut self, value: Field) -> Field {
        value
    }

    fn add_constant(&mut self, value: &Field, constant: Field) -> Field {
        *value + constant
    }

    fn add_scaled(&mut self, value: &Field, factor: Field, other: &Field) -> Field {
        *value + factor * other
    }

    fn dot<const N: usize>(&mut self, factors: &[Field; N], values: &[Field; N]) -> Field {
        Field::sum_of_products(factors, values)
    }

    fn product(&mut self, a: &Field, b: &Field) -> Field {
        product(self, a, b)
    }
}

impl Builder for Assignment {
    fn value(&self, value: &Field) -> Field {
        *value
    }

    fn public(&mut self, i: usize) -> Field {
        self.variables.get(1 + i).copied().unwrap_or_default()
    }

    fn witness(&mut self, value: Field) -> Field {
        self.variables.push(value);
        value
    }

    fn enforce(&mut self, _: &Field, _: &Field, _: &Field) {}
}

/// One side of a constraint: coefficients and variables, in the order of the variables.
pub(crate) type Terms = Vec<(Field, usize)>;

/// A linear combination and its value.
#[derive(Clone)]
pub(crate) struct Linear {
    terms: Terms,
    value: Field,
}

/// Records the constraints.
pub(crate) struct Shape {
    values: Assignment,
    matrices: [Vec<Terms>; 3],
}

impl Shape {
    pub(crate) fn new(public: [Field; PUBLIC_INPUTS]) -> Self {
        Self {
            values: Assignment::new(public, 0),
            matrices: Default::default(),
        }
    }

    pub(crate) fn finish(self) -> Constraints {
        Constraints {
            matrices: self.matrices.into(),
            variables: self.values.variables.len(),
        }
    }

    /// The sum of scaled combinations, one term a variable, none with a zero coefficient.
    fn merge<'a>(parts: impl IntoIterator<Item = (Field, &'a Linear)>) -> Linear {
        let mut value = Field::zero();
        let mut terms = BTreeMap::<usize, Field>::new();
        for (factor, part) in parts {
            value += factor * part.value;
            for (coefficient, variable) in &part.terms {
                *terms.entry(*variable).or_default() += factor * coefficient;
            }
        }
        let terms = terms
            .into_iter()
            .filter(|(_, c)| !c.is_zero())
            .map(|(v, c)| (c, v))
            .collect();
        Linear { terms, value }
    }

    fn variable(index: usize, value: Field) -> Linear {
        Linear {
            terms: vec![(Field::one(), index)],
            value,
        }
    }
}

impl Arithmetic for Shape {
    type Value = Linear;

    fn constant(&mut self, value: Field) -> Linear {
        let terms = if value.is_zero() {
            Vec::new()
        } else {
            vec![(value, 0)]
        };
        Linear { terms, value }
    }

    fn add_constant(&mut self, value: &Linear, constant: Field) -> Linear {
        let constant = self.constant(constant);
        self.add(value, &constant)
    }

    fn add_scaled(&mut self, value: &Linear, factor: Field, other: &Linear) -> Linear {
        Self::merge([(Field::one(), value), (factor, other)])
    }

    fn dot<const N: usize>(&mut self, factors: &[Field; N], values: &[Linear; N]) -> Linear {
        Self::merge(factors.iter().copied().zip(values))
    }

    fn product(&mut self, a: &Linear, b: &Linear) -> Linear {
        product(self, a, b)
    }
}

impl Builder for Shape {
    fn value(&self, value: &Linear) -> Field {
        value.value
    }

    fn public(&mut self, i: usize) -> Linear {
        let value = self.values.public(i);
        Self::variable(1 + i, value)
    }

    fn witness(&mut self, value: Field) -> Linear {
        let index = self.values.variables.len();
        self.values.witness(value);
        Self::variable(index, value)
    }

    fn enforce(&mut self, a: &Linear, b: &Linear, c: &Linear) {
        for (matrix, side) in self.matrices.iter_mut().zip([a, b, c]) {
            matrix.push(side.terms.clone());
        }
    }
}

/// The constraints of a circuit, the same for every proof.
pub(crate) struct Constraints {
    /// Left, right, and output sides; one entry a constraint.
    pub(crate) matrices: Vec<Vec<Terms>>,
    /// Constant one, public inputs and witness.
    pub(crate) variables: usize,
}

impl Constraints {
    /// Constraints.
    pub(crate) fn len(&self) -> usize {
        self.matrices.first().map_or(0, Vec::len)
    }

    /// The constant one and the public inputs.
    pub(crate) fn inputs(&self) -> usize {
        1 + PUBLIC_INPUTS
    }

    /// SHA-256 of the variables' number and of each constraint's sides.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.variables as u64).to_le_bytes());
        for terms in self.matrices.iter().flatten() {
            hash.update((terms.len() as u64).to_le_bytes());
            for (coefficient, variable) in terms {
                hash.update((*variable as u64).to_le_bytes());
                for limb in coefficient.into_bigint().as_ref() {
                    hash.update(limb.to_le_bytes());
                }
            }
        }
        hash.finalize().into()
    }

    /// The first constraint that the variables do not satisfy. A missing variable counts as zero.
    pub(crate) fn unsatisfied(&self, variables: &[Field]) -> Option<usize> {
        let [a, b, c] = self.matrices.as_slice() else {
            return Some(0);
        };
        let evaluate = |terms: &Terms| -> Field {
            terms
                .iter()
                .map(|(coefficient, variable)| {
                    *coefficient * variables.get(*variable).copied().unwrap_or_default()
                })
                .sum()
        };
        a.par_iter()
            .zip(b)
            .zip(c)
            .position_first(|((a, b), c)| evaluate(a) * evaluate(b) != evaluate(c))
    }
}
