//! Bits: decompositions that have exactly one solution.

use ark_ff::{BigInteger as _, One as _, PrimeField};
use ledger::Field;

use crate::builder::Builder;

/// The lowest `count` bits of `value`, lowest first, as zeros and ones.
pub(crate) fn low_bits<F: PrimeField>(value: &F, count: usize) -> Vec<Field> {
    let mut bits = value.into_bigint().to_bits_le();
    bits.resize(count, false);
    bits.into_iter().map(Field::from).collect()
}

/// New boolean variables. One constraint a bit.
pub(crate) fn booleans<B: Builder>(b: &mut B, bits: &[Field]) -> Vec<B::Value> {
    bits.iter()
        .map(|bit| {
            let bit = b.witness(*bit);
            b.assert_boolean(&bit);
            bit
        })
        .collect()
}

/// `sum of 2^i * bits[i]`.
pub(crate) fn compose<B: Builder>(b: &mut B, bits: &[B::Value]) -> B::Value {
    let mut power = Field::one();
    let mut sum = b.zero();
    for bit in bits {
        sum = b.add_scaled(&sum, power, bit);
        power += power;
    }
    sum
}

/// `value < 2^count`; count + 1 constraints. For counts below the field's 253.
pub(crate) fn assert_range<B: Builder>(b: &mut B, value: &B::Value, count: u32) {
    let bits = low_bits(&b.value(value), count as usize);
    let bits = booleans(b, &bits);
    let sum = compose(b, &bits);
    b.assert_equal(&sum, value);
}

/// The integer that the boolean `bits` spell, lowest first, is at most the one that `bound` spells; both have the
/// same number of bits.
pub(crate) fn assert_at_most<B: Builder>(b: &mut B, bits: &[B::Value], bound: &[bool]) {
    // `equal` is 1 as long as all bits so far, from the top, are ones where the bound has ones.
    let mut equal: Option<B::Value> = None;
    let mut zeros: Option<B::Value> = None;
    for (bit, &bound_bit) in bits.iter().zip(bound).rev() {
        if bound_bit {
            settle(b, &equal, zeros.take());
            equal = Some(match equal {
                Some(equal) => b.product(&equal, bit),
                None => bit.clone(),
            });
        } else {
            // Sums of at most 254 booleans: zero only if each is.
            zeros = Some(match zeros {
                Some(sum) => b.add(&sum, bit),
                None => bit.clone(),
            });
        }
    }
    settle(b, &equal, zeros);
}

/// Where the bound has a run of zeros, equal so far means that the bits are zero as well.
fn settle<B: Builder>(b: &mut B, equal: &Option<B::Value>, zeros: Option<B::Value>) {
    let Some(zeros) = zeros else { return };
    match equal {
        Some(equal) => {
            let zero = b.zero();
            b.enforce(equal, &zeros, &zero);
        }
        None => b.assert_zero(&zeros),
    }
}

/// The bits of `modulus - 1`: the largest canonical value.
pub(crate) fn largest<F: PrimeField>() -> Vec<bool> {
    let mut bits = (-F::one()).into_bigint().to_bits_le();
    bits.truncate(F::MODULUS_BIT_SIZE as usize);
    bits
}

/// All bits of a field element, with the one canonical solution. `hint` overrides what the prover puts there.
pub(crate) fn canonical_bits<B: Builder>(
    b: &mut B,
    value: &B::Value,
    hint: Option<&[Field]>,
) -> Vec<B::Value> {
    let size = Field::MODULUS_BIT_SIZE as usize;
    let own;
    let bits = match hint {
        Some(hint) => hint,
        None => {
            own = low_bits(&b.value(value), size);
            &own
        }
    };
    let bits = booleans(b, bits);
    let sum = compose(b, &bits);
    b.assert_equal(&sum, value);
    assert_at_most(b, &bits, &largest::<Field>());
    bits
}
