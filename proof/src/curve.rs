//! Multiplication on `ark-ed-on-bn254` in the circuit.
//!
//! Montgomery coordinates with the incomplete addition law: 3 constraints an addition, 5 for 2P + Q. The law has
//! no answer for P + P or P - P, so each use below says why its summands are never equal or opposite. All points
//! are multiples of a point of prime order L > 2^250, so it is enough to look at the factors. The last additions
//! use the complete Edwards law.

use std::{array, sync::LazyLock};

use ark_ec::{
    AffineRepr as _, CurveGroup as _,
    twisted_edwards::{MontCurveConfig, TECurveConfig},
};
use ark_ed_on_bn254::{EdwardsAffine, EdwardsConfig, EdwardsProjective, Fr as Scalar};
use ark_ff::{Field as _, One as _, PrimeField as _};
use ledger::Field;

use crate::builder::Builder;

/// Bits of a signature's scalar: the group order has 251.
pub(crate) const SCALAR_BITS: usize = Scalar::MODULUS_BIT_SIZE as usize;

const WINDOW_BITS: usize = 2;
/// Windows below the top bit: 4^125 = 2^250.
const WINDOWS: usize = (SCALAR_BITS - 1) / WINDOW_BITS;

const A: Field = <EdwardsConfig as MontCurveConfig>::COEFF_A;
const B: Field = <EdwardsConfig as MontCurveConfig>::COEFF_B;
const D: Field = <EdwardsConfig as TECurveConfig>::COEFF_D;

/// A point in affine coordinates: (x, y) on the Edwards curve or (u, v) on the Montgomery one.
pub(crate) type Point<V> = [V; 2];

/// Constants of the fixed-base multiplication.
struct FixedBase {
    /// Montgomery coordinates of -3, -1, 1, 3 times 4^i * G/2.
    windows: Vec<[[Field; 4]; 2]>,
    /// Edwards coordinates of what is added at the end, if the top bit is 0 and if it is 1.
    corrections: [EdwardsAffine; 2],
}

static GENERATOR: LazyLock<FixedBase> = LazyLock::new(|| {
    let generator = EdwardsAffine::generator().into_group();
    let half = generator * Scalar::from(2u8).inverse().unwrap_or_default();
    let mut base = half;
    let mut windows = Vec::with_capacity(WINDOWS);
    for _ in 0..WINDOWS {
        let triple = base + base + base;
        let points = [-triple, -base, base, triple].map(to_montgomery);
        windows.push([points.map(|[u, _]| u), points.map(|[_, v]| v)]);
        base = triple + base;
    }
    // Now base = 2^250 * G/2: the windows add up to (2s' - 2^250 + 1) * G/2 for the low 250 bits s'.
    let zero = (base - half).into_affine();
    let one = (base - half + base + base).into_affine();
    FixedBase {
        windows,
        corrections: [zero, one],
    }
});

fn to_montgomery(point: EdwardsProjective) -> Point<Field> {
    let point = point.into_affine();
    let u = ratio(Field::one() + point.y, Field::one() - point.y);
    [u, ratio(u, point.x)]
}

/// The quotient, or zero where there is none: then no witness satisfies the constraint either, or the caller has
/// excluded it.
fn ratio(numerator: Field, denominator: Field) -> Field {
    numerator * denominator.inverse().unwrap_or_default()
}

/// A new variable `q` with `q * denominator = numerator`. Unique, as callers ensure `denominator != 0`.
fn quotient<C: Builder>(b: &mut C, numerator: &C::Value, denominator: &C::Value) -> C::Value {
    let value = ratio(b.value(numerator), b.value(denominator));
    let out = b.witness(value);
    b.enforce(&out, denominator, numerator);
    out
}

/// A new variable for the third point's u: B * slope^2 - A - sum. A variable of its own, as linear combinations
/// would grow from addition to addition.
fn third_u<C: Builder>(b: &mut C, slope: &C::Value, sum: &C::Value) -> C::Value {
    let square = b.value(slope).square();
    let u = b.witness(B * square - A - b.value(sum));
    let zero = b.zero();
    let scaled = b.add_scaled(&zero, B, slope);
    let total = b.add(&u, sum);
    let total = b.add_constant(&total, A);
    b.enforce(&scaled, slope, &total);
    u
}

/// A new variable for the third point's v: slope * (pu - u) - pv.
fn third_v<C: Builder>(
    b: &mut C,
    slope: &C::Value,
    [pu, pv]: &Point<C::Value>,
    u: &C::Value,
) -> C::Value {
    let back = b.sub(pu, u);
    let v = b.witness(b.value(slope) * b.value(&back) - b.value(pv));
    let total = b.add(&v, pv);
    b.enforce(slope, &back, &total);
    v
}

/// P + Q for P not Q or -Q; 3 constraints.
fn add<C: Builder>(b: &mut C, p: &Point<C::Value>, [qu, qv]: &Point<C::Value>) -> Point<C::Value> {
    let [pu, pv] = p;
    let (rise, run) = (b.sub(qv, pv), b.sub(qu, pu));
    let slope = quotient(b, &rise, &run);
    let sum = b.add(pu, qu);
    let u = third_u(b, &slope, &sum);
    let v = third_v(b, &slope, p, &u);
    [u, v]
}

/// 2P for P of prime order; 4 constraints.
fn double<C: Builder>(b: &mut C, p: &Point<C::Value>) -> Point<C::Value> {
    let [u, v] = p;
    let square = b.product(u, u);
    let one = b.constant(Field::one());
    let rise = b.add_scaled(&one, Field::from(3u8), &square);
    let rise = b.add_scaled(&rise, A + A, u);
    let zero = b.zero();
    let run = b.add_scaled(&zero, B + B, v);
    let slope = quotient(b, &rise, &run);
    let sum = b.add(u, u);
    let new_u = third_u(b, &slope, &sum);
    let new_v = third_v(b, &slope, p, &new_u);
    [new_u, new_v]
}

/// (P + Q) + P for P not Q or -Q, and P + Q not P or -P; 5 constraints: the v coordinate of P + Q is skipped.
fn double_add<C: Builder>(
    b: &mut C,
    p: &Point<C::Value>,
    [qu, qv]: &Point<C::Value>,
) -> Point<C::Value> {
    let [pu, pv] = p;
    let (rise, run) = (b.sub(qv, pv), b.sub(qu, pu));
    let slope = quotient(b, &rise, &run);
    let sum = b.add(pu, qu);
    let ru = third_u(b, &slope, &sum);
    // slope + second slope = 2 pv / (pu - ru)
    let (rise, run) = (b.add(pv, pv), b.sub(pu, &ru));
    let both = quotient(b, &rise, &run);
    let second = b.sub(&both, &slope);
    let sum = b.add(&ru, pu);
    let u = third_u(b, &second, &sum);
    let v = third_v(b, &second, p, &u);
    [u, v]
}

/// To Edwards coordinates; 2 constraints. v = 0 only at the point of order two, and u = -1 nowhere on the curve.
fn to_edwards<C: Builder>(b: &mut C, [u, v]: &Point<C::Value>) -> Point<C::Value> {
    let x = quotient(b, u, v);
    let (above, below) = (
        b.add_constant(u, -Field::one()),
        b.add_constant(u, Field::one()),
    );
    [x, quotient(b, &above, &below)]
}

/// The complete Edwards addition law for a = 1; 6 constraints.
pub(crate) fn add_edwards<C: Builder>(
    b: &mut C,
    [px, py]: &Point<C::Value>,
    [qx, qy]: &Point<C::Value>,
) -> Point<C::Value> {
    let (xy, yx) = (b.product(px, qy), b.product(py, qx));
    // (py - px)(qx + qy) = yx + yy - xx - xy
    let (left, right) = (b.sub(py, px), b.add(qx, qy));
    let mixed = b.product(&left, &right);
    let product = b.product(&xy, &yx);
    let one = b.constant(Field::one());
    let (plus, minus) = (
        b.add_scaled(&one, D, &product),
        b.add_scaled(&one, -D, &product),
    );
    let top_x = b.add(&xy, &yx);
    let mixed = b.add(&mixed, &xy);
    let top_y = b.sub(&mixed, &yx);
    [quotient(b, &top_x, &plus), quotient(b, &top_y, &minus)]
}

/// s * G from the 251 boolean bits of s; 4 constraints for two bits.
pub(crate) fn mul_generator<C: Builder>(b: &mut C, bits: &[C::Value]) -> Point<C::Value> {
    let table = &*GENERATOR;
    let (low, top) = bits.split_at(bits.len().min(SCALAR_BITS - 1));
    let mut sum: Option<Point<C::Value>> = None;
    for (window, pair) in table.windows.iter().zip(low.chunks_exact(WINDOW_BITS)) {
        let [low, high] = pair else { continue };
        let both = b.product(low, high);
        let point = window.map(|[k0, k1, k2, k3]| {
            let constant = b.constant(k0);
            let with_low = b.add_scaled(&constant, k1 - k0, low);
            let with_high = b.add_scaled(&with_low, k2 - k0, high);
            b.add_scaled(&with_high, k3 - k2 - k1 + k0, &both)
        });
        // The sum so far is below 4^i times G/2, in size, and the window's point at least 4^i times; together
        // they stay below 4^(i+1) <= 2^250 < L. So neither their sum nor their difference is the identity.
        sum = Some(match sum {
            Some(sum) => add(b, &sum, &point),
            None => point,
        });
    }
    let sum = sum.unwrap_or_else(|| array::from_fn(|_| b.zero()));
    // An odd multiple, below 2^250, of a point of prime order: not the identity, nor of order two.
    let sum = to_edwards(b, &sum);
    let [zero, one] = table.corrections;
    let correction = [(zero.x, one.x), (zero.y, one.y)].map(|(zero, one)| {
        let constant = b.constant(zero);
        top.first().map_or_else(
            || constant.clone(),
            |top| b.add_scaled(&constant, one - zero, top),
        )
    });
    add_edwards(b, &sum, &correction)
}

/// (2^n + 2c + 1) * P from the n boolean bits of c, for n below 248 and P of prime order, in Edwards coordinates;
/// 6 constraints a bit.
pub(crate) fn mul_challenge<C: Builder>(
    b: &mut C,
    [x, y]: &Point<C::Value>,
    bits: &[C::Value],
) -> Point<C::Value> {
    // P is not the identity, so y != 1, nor of order two, so x != 0.
    let one = b.constant(Field::one());
    let (above, below) = (b.add(&one, y), b.sub(&one, y));
    let u = quotient(b, &above, &below);
    let v = quotient(b, &u, x);
    let point = [u, v];
    let mut sum = double(b, &point);
    for bit in bits.iter().rev() {
        let minus_one = b.constant(-Field::one());
        let sign = b.add_scaled(&minus_one, Field::from(2u8), bit);
        let [u, v] = &point;
        let signed = [u.clone(), b.product(&sign, v)];
        // The sum is k * P with 2 <= k < 2^(n+1): k, and k +- 1, differ from +-1 and +-k modulo L.
        sum = double_add(b, &sum, &signed);
    }
    to_edwards(b, &sum)
}

/// A valid point for rows that have no key to show.
pub(crate) fn placeholder() -> EdwardsAffine {
    EdwardsAffine::generator()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bits,
        builder::{PUBLIC_INPUTS, Shape},
    };
    use ark_ff::{UniformRand as _, Zero as _};
    use rand::SeedableRng as _;

    fn shape() -> Shape {
        Shape::new([Field::zero(); PUBLIC_INPUTS])
    }

    fn values(
        b: &Shape,
        point: Point<<Shape as ledger::poseidon::Arithmetic>::Value>,
    ) -> EdwardsAffine {
        let [x, y] = point.map(|v| b.value(&v));
        EdwardsAffine::new_unchecked(x, y)
    }

    #[test]
    fn multiples_of_the_generator_match_native_ones() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut cases = vec![
            Scalar::zero(),
            Scalar::one(),
            -Scalar::one(),
            Scalar::from(2u8),
        ];
        cases.extend((0..3).map(|_| Scalar::rand(&mut rng)));
        for scalar in cases {
            let mut b = shape();
            let bits = bits::booleans(&mut b, &bits::low_bits(&scalar, SCALAR_BITS));
            let out = mul_generator(&mut b, &bits);
            assert_eq!(
                values(&b, out),
                (EdwardsAffine::generator() * scalar).into_affine()
            );
        }
    }

    #[test]
    fn multiples_by_a_challenge_match_native_ones() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let key = (EdwardsAffine::generator() * Scalar::rand(&mut rng)).into_affine();
        for c in [
            0,
            1,
            u128::MAX,
            1 << 127,
            0x1234_5678_9abc_def0_1234_5678_9abc_def0,
        ] {
            let mut b = shape();
            let bits = bits::booleans(&mut b, &bits::low_bits(&Field::from(c), 128));
            let point = [b.witness(key.x), b.witness(key.y)];
            let out = mul_challenge(&mut b, &point, &bits);
            let top = Scalar::from(1u128 << 127) + Scalar::from(1u128 << 127);
            let factor = top + Scalar::from(c) + Scalar::from(c) + Scalar::one();
            assert_eq!(values(&b, out), (key * factor).into_affine());
        }
    }
}
