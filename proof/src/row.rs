//! One row in the circuit: a leaf before becomes a leaf after, and the tree, the supply and the carry with it.
//!
//! ```text
//! leaf before ──path──> root before     kind, amount, fee, target, detail ──> message ──> signature
//!      │ kind's effect                                                           └──> commitment
//! leaf after  ──path──> root after      (amount, target) ──carry──> next row
//! ```

use ark_ff::{One as _, Zero as _};
use ledger::{
    ARITY, DEPTH, Field, LeafUpdate,
    statement::{self, AMOUNT_BITS, Change, Effect, INDEX_BITS, Kind, MessageFields, power_of_two},
};

use crate::{
    bits::{assert_at_most, assert_range, booleans, canonical_bits, compose, largest, low_bits},
    builder::Builder,
    curve::{self, Point},
};

/// Bits of the hash that are the challenge (`ledger::AccountKey::verify`).
const CHALLENGE_BITS: usize = 128;

/// Kinds that have a flag of their own; padding is what is none of them.
const FLAGGED: [Kind; 4] = [Kind::Deposit, Kind::Send, Kind::Receive, Kind::Withdraw];

/// Everything that the prover chooses for one row. Nothing here is trusted.
#[derive(Clone, Debug)]
pub(crate) struct RowAssignment {
    /// One for the row's kind, in the order of [`FLAGGED`].
    pub flags: [Field; FLAGGED.len()],
    pub amount: Field,
    pub fee: Field,
    pub target: [Field; 2],
    pub detail: Field,
    /// Bits of the leaf's index, lowest first.
    pub index_bits: Vec<Field>,
    /// Before the row, from the leaf's level upwards: the children of the nodes above it.
    pub children: [[Field; ARITY]; DEPTH],
    /// Whether the leaf was used.
    pub used: Field,
    pub key: [Field; 2],
    pub balance: Field,
    pub nonce: Field,
    /// The signature's R.
    pub nonce_point: [Field; 2],
    /// The signature's s, lowest bit first.
    pub scalar_bits: Vec<Field>,
    /// Overrides the challenge hash's bits.
    pub hash_bits: Option<Vec<Field>>,
}

impl From<&LeafUpdate> for RowAssignment {
    fn from(update: &LeafUpdate) -> Self {
        let LeafUpdate {
            row,
            signature,
            index,
            before,
            after,
            path,
        } = update;
        let leaf = before
            .as_ref()
            .map_or_else(Default::default, ledger::Account::leaf);
        let account = before.or(*after);
        let key = account.map_or_else(curve::placeholder, |account| account.key.point());
        let (nonce_point, scalar) = match signature {
            Some(signature) => (signature.nonce_point(), signature.scalar()),
            None => (curve::placeholder(), ark_ed_on_bn254::Fr::zero()),
        };
        Self {
            flags: FLAGGED.map(|kind| Field::from(kind == row.kind)),
            amount: Field::from(row.amount),
            fee: Field::from(row.fee),
            target: row.target,
            detail: row.detail,
            index_bits: low_bits(&Field::from(index.0), INDEX_BITS as usize),
            children: path.children(*index, leaf).0,
            used: Field::from(before.is_some()),
            key: [key.x, key.y],
            balance: before
                .map_or_else(Field::zero, |account| Field::from(account.balance.to_sat())),
            nonce: before.map_or_else(Field::zero, |account| Field::from(account.nonce)),
            nonce_point: [nonce_point.x, nonce_point.y],
            scalar_bits: low_bits(&scalar, curve::SCALAR_BITS),
            hash_bits: None,
        }
    }
}

/// What a row hands to the next one.
#[derive(Clone)]
pub(crate) struct Chain<V> {
    /// Root of the tree.
    pub root: V,
    pub supply: V,
    pub carry: Carry<V>,
}

/// What a debit leaves for the credit after it: all zero, or `open` is one.
#[derive(Clone)]
pub(crate) struct Carry<V> {
    pub open: V,
    pub amount: V,
    pub target: [V; 2],
}

/// The row's kind, as linear combinations of its flags.
struct Flags<V>([V; FLAGGED.len()]);

impl<V: Clone> Flags<V> {
    /// Sum of `factor(effect)` over the kinds; the kind's own factor, as exactly one kind holds.
    fn choose<B: Builder<Value = V>>(&self, b: &mut B, factor: impl Fn(Kind) -> i64) -> V {
        b.dot(&FLAGGED.map(|kind| Field::from(factor(kind))), &self.0)
    }

    fn has<B: Builder<Value = V>>(&self, b: &mut B, property: impl Fn(Effect) -> bool) -> V {
        self.choose(b, |kind| i64::from(property(kind.effect())))
    }

    /// `value` after the change that `pick` finds in the kind's effect.
    fn change<B: Builder<Value = V>>(
        &self,
        b: &mut B,
        value: &V,
        [amount, fee]: [&V; 2],
        pick: impl Fn(Effect) -> Change,
    ) -> V {
        let amount_factor = self.choose(b, |kind| i64::from(pick(kind.effect()).amount));
        let fee_factor = self.choose(b, |kind| i64::from(pick(kind.effect()).fee));
        let amount = b.product(&amount_factor, amount);
        let fee = b.product(&fee_factor, fee);
        let sum = b.add(value, &amount);
        b.add(&sum, &fee)
    }
}

/// Adds one row's constraints; returns its message, and what follows for the next row.
pub(crate) fn synthesize<B: Builder>(
    b: &mut B,
    row: &RowAssignment,
    chain: Chain<B::Value>,
) -> (B::Value, Chain<B::Value>) {
    let flags = kind_flags(b, row);
    let amount = b.witness(row.amount);
    let fee = b.witness(row.fee);
    assert_range(b, &amount, AMOUNT_BITS);
    assert_range(b, &fee, AMOUNT_BITS);
    let target = row.target.map(|value| b.witness(value));
    let detail = b.witness(row.detail);
    let index_bits = booleans(b, &row.index_bits);
    let key = row.key.map(|value| b.witness(value));
    let nonce = b.witness(row.nonce);

    let sums = [&amount, &fee];
    let (leaf_before, leaf_after) = leaves(b, row, &flags, &key, &nonce, sums);
    let (root_before, root_after) = climb(b, row, &index_bits, leaf_before, leaf_after);
    b.assert_equal(&root_before, &chain.root);
    let supply = flags.change(b, &chain.supply, sums, |effect| effect.supply);

    let credits = flags.has(b, |effect| effect.credits_target);
    assert_equal_if(b, &credits, &key, &target);
    let carry = pass_carry(b, &flags, &chain.carry, &amount, &target);

    let signed = flags.has(b, |effect| effect.signed);
    let index = compose(b, &index_bits);
    let signer = b.add_scaled(&index, power_of_two(INDEX_BITS), &nonce);
    let signer = b.product(&signed, &signer);
    let kind = flags.choose(b, |kind| i64::try_from(kind.code()).unwrap_or_default());
    let message = statement::message(
        b,
        MessageFields {
            kind,
            amount,
            fee,
            signer,
            target,
            detail,
        },
    );
    check_signature(b, row, &signed, &key, &message);

    let end = Chain {
        root: root_after,
        supply,
        carry,
    };
    (message, end)
}

/// Booleans of which at most one is set.
fn kind_flags<B: Builder>(b: &mut B, row: &RowAssignment) -> Flags<B::Value> {
    let flags = Flags(row.flags.map(|flag| {
        let flag = b.witness(flag);
        b.assert_boolean(&flag);
        flag
    }));
    let active = flags.choose(b, |_| 1);
    b.assert_boolean(&active);
    flags
}

/// The leaf before and after. Key and path are shared, so neither can change.
fn leaves<B: Builder>(
    b: &mut B,
    row: &RowAssignment,
    flags: &Flags<B::Value>,
    key: &Point<B::Value>,
    nonce: &B::Value,
    sums: [&B::Value; 2],
) -> (B::Value, B::Value) {
    let used = b.witness(row.used);
    let balance = b.witness(row.balance);
    b.assert_boolean(&used);
    let unused = b.not(&used);
    let zero = b.zero();
    b.enforce(&unused, &balance, &zero);
    b.enforce(&unused, nonce, &zero);
    let signed = flags.has(b, |effect| effect.signed);
    b.enforce(&signed, &unused, &zero);

    let hash = statement::leaf(b, key.clone(), balance.clone(), nonce.clone());
    let before = b.product(&used, &hash);

    // Balances before are below 2^64 by induction, so the sum cannot wrap around the field's modulus.
    let balance = flags.change(b, &balance, sums, |effect| effect.balance);
    assert_range(b, &balance, AMOUNT_BITS);
    let nonce = b.add(nonce, &signed);
    let hash = statement::leaf(b, key.clone(), balance, nonce);
    // A leaf is used afterwards unless it was unused and the row is padding.
    let active = flags.choose(b, |_| 1);
    let idle = b.not(&active);
    let unused_after = b.product(&unused, &idle);
    let used_after = b.not(&unused_after);
    let after = b.product(&used_after, &hash);
    (before, after)
}

/// From the leaf to the root, with the same siblings for both.
fn climb<B: Builder>(
    b: &mut B,
    row: &RowAssignment,
    index_bits: &[B::Value],
    mut before: B::Value,
    mut after: B::Value,
) -> (B::Value, B::Value) {
    for (children, bits) in row.children.iter().zip(index_bits.chunks_exact(2)) {
        let [low, high] = bits else { continue };
        let children = children.map(|child| b.witness(child));
        let [c0, c1, c2, c3] = &children;

        // The child at the index's position is the node that we come from.
        let (step_left, step_right) = (b.sub(c1, c0), b.sub(c3, c2));
        let (left, right) = (b.product(low, &step_left), b.product(low, &step_right));
        let (left, right) = (b.add(c0, &left), b.add(c2, &right));
        let (step, rest) = (b.sub(&right, &left), b.sub(&before, &left));
        b.enforce(high, &step, &rest);

        // After the row that child is another one, and its siblings are the same.
        let difference = b.sub(&after, &before);
        let at_low = b.product(low, &difference);
        let at_high = b.product(high, &difference);
        let at_3 = b.product(high, &at_low);
        let (at_1, at_2) = (b.sub(&at_low, &at_3), b.sub(&at_high, &at_3));
        let elsewhere = b.add(&at_low, &at_2);
        let at_0 = b.sub(&difference, &elsewhere);
        let new = [
            b.add(c0, &at_0),
            b.add(c1, &at_1),
            b.add(c2, &at_2),
            b.add(c3, &at_3),
        ];

        before = statement::node(b, children);
        after = statement::node(b, new);
    }
    (before, after)
}

/// `flag * (a - b) = 0`, for both coordinates.
fn assert_equal_if<B: Builder>(
    b: &mut B,
    flag: &B::Value,
    left: &Point<B::Value>,
    right: &Point<B::Value>,
) {
    let zero = b.zero();
    for (left, right) in left.iter().zip(right) {
        let difference = b.sub(left, right);
        b.enforce(flag, &difference, &zero);
    }
}

/// The row takes exactly what the carry holds, which is nothing unless it closes one; and leaves its own.
fn pass_carry<B: Builder>(
    b: &mut B,
    flags: &Flags<B::Value>,
    carry: &Carry<B::Value>,
    amount: &B::Value,
    target: &Point<B::Value>,
) -> Carry<B::Value> {
    let closes = flags.has(b, |effect| effect.closes_carry);
    let opens = flags.has(b, |effect| effect.opens_carry);
    b.assert_equal(&closes, &carry.open);
    let [x, y] = target;
    let [carry_x, carry_y] = &carry.target;
    for (value, carried) in [(amount, &carry.amount), (x, carry_x), (y, carry_y)] {
        b.enforce(&closes, value, carried);
    }
    Carry {
        amount: b.product(&opens, amount),
        target: [b.product(&opens, x), b.product(&opens, y)],
        open: opens,
    }
}

/// s * G = R + e * key in signed rows. R is then on the curve because the other two points are; the key was
/// checked natively when it entered the ledger.
fn check_signature<B: Builder>(
    b: &mut B,
    row: &RowAssignment,
    signed: &B::Value,
    key: &Point<B::Value>,
    message: &B::Value,
) {
    let nonce_point = row.nonce_point.map(|value| b.witness(value));
    let [key_x, _] = key;
    let hash = statement::challenge_hash(b, nonce_point.clone(), key_x.clone(), message.clone());
    let hash_bits = canonical_bits(b, &hash, row.hash_bits.as_deref());
    let (challenge, _) = hash_bits.split_at(CHALLENGE_BITS.min(hash_bits.len()));
    let [x, y] = curve::mul_challenge(b, key, challenge);
    let zero = b.zero();
    let minus_x = b.add_scaled(&zero, -Field::one(), &x);

    let scalar_bits = booleans(b, &row.scalar_bits);
    assert_at_most(b, &scalar_bits, &largest::<ark_ed_on_bn254::Fr>());
    let left = curve::mul_generator(b, &scalar_bits);
    let expected = curve::add_edwards(b, &left, &[minus_x, y]);
    assert_equal_if(b, signed, &expected, &nonce_point);
}
