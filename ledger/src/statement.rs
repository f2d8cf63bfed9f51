//! What a chunk's proof says, written once for native code and circuit: how an operation becomes rows, what a
//! row of each kind does, and which values are hashed in which order.
//!
//! ```text
//! Deposit  -> [Deposit]            row --message()--> m  (what a sender signs; the operation's id)
//! Transfer -> [Send, Receive]      C_0 = start(vault)
//! Withdraw -> [Withdraw]           C_{i+1} = Poseidon(C_i, m, m', m'')   three rows a link
//! padding  -> [Noop]               public inputs: digest before, digest after, last C
//! ```
//!
//! A row's message packs what the circuit looks into (kind, amount, fee, sender's index and nonce: all of known
//! width, so the packing is injective), then the target (recipient key, or script limbs), then `detail`: a hash
//! of what the circuit carries but need not read (vault id, last valid sequence number, script length, outpoint).

use std::sync::LazyLock;

use ark_ff::{Field as _, Zero as _};
use serde::{Deserialize, Serialize};

use crate::{
    AccountIndex, Digest, Field, Operation, OperationError, VaultId,
    encoding::{self, limbs},
    poseidon::{Arithmetic, Native, hash_2, hash_4, tag},
};

/// Leaf updates in one chunk, and so in one proof.
pub const CHUNK_ROWS: usize = 8;

/// Rows of one operation at most; they never split over chunks.
pub const MAX_ROWS_PER_OPERATION: usize = 2;

/// Messages that one link of the commitment takes.
const ROWS_PER_LINK: usize = 3;

const KIND_BITS: u32 = 3;
/// Bits of an amount, fee, balance, supply or nonce.
pub const AMOUNT_BITS: u32 = 64;
/// Bits of an account's index: two a level of the tree.
pub const INDEX_BITS: u32 = 24;

static MESSAGE_TAG: LazyLock<Field> = LazyLock::new(|| tag("drawbridge/message"));
static SIGNED_DETAIL_TAG: LazyLock<Field> = LazyLock::new(|| tag("drawbridge/signed-detail"));
static DEPOSIT_DETAIL_TAG: LazyLock<Field> = LazyLock::new(|| tag("drawbridge/deposit-detail"));
static CHALLENGE_TAG: LazyLock<Field> = LazyLock::new(|| tag("drawbridge/challenge"));
static COMMITMENT_TAG: LazyLock<Field> = LazyLock::new(|| tag("drawbridge/commitment"));
static START_TAG: LazyLock<Field> = LazyLock::new(|| tag("drawbridge/commitment-start"));

/// What a row does. The numbers are part of the signed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Padding: changes nothing.
    Noop = 0,
    /// Credits a key with new money.
    Deposit = 1,
    /// Debits a sender; leaves (amount, recipient key) in the carry.
    Send = 2,
    /// Credits exactly what the carry holds.
    Receive = 3,
    /// Debits a sender and burns.
    Withdraw = 4,
}

impl Kind {
    /// All kinds, by number.
    pub const ALL: [Self; 5] = [
        Self::Noop,
        Self::Deposit,
        Self::Send,
        Self::Receive,
        Self::Withdraw,
    ];

    /// The number that stands for the kind in messages.
    pub fn code(self) -> u64 {
        self as u64
    }

    /// What a row of this kind does: the one table behind replay and circuit.
    pub const fn effect(self) -> Effect {
        const NOTHING: Effect = Effect {
            balance: Change { amount: 0, fee: 0 },
            supply: Change { amount: 0, fee: 0 },
            signed: false,
            credits_target: false,
            opens_carry: false,
            closes_carry: false,
        };
        match self {
            Self::Noop => NOTHING,
            Self::Deposit => Effect {
                balance: Change { amount: 1, fee: 0 },
                supply: Change { amount: 1, fee: 0 },
                credits_target: true,
                ..NOTHING
            },
            Self::Send => Effect {
                balance: Change {
                    amount: -1,
                    fee: -1,
                },
                supply: Change { amount: 0, fee: -1 },
                signed: true,
                opens_carry: true,
                ..NOTHING
            },
            Self::Receive => Effect {
                balance: Change { amount: 1, fee: 0 },
                credits_target: true,
                closes_carry: true,
                ..NOTHING
            },
            Self::Withdraw => Effect {
                balance: Change {
                    amount: -1,
                    fee: -1,
                },
                supply: Change {
                    amount: -1,
                    fee: -1,
                },
                signed: true,
                ..NOTHING
            },
        }
    }
}

/// What a row does to the leaf, the supply and the carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Change of the leaf's balance.
    pub balance: Change,
    /// Change of the supply.
    pub supply: Change,
    /// The leaf's key must have signed the row's message; its nonce goes up by one.
    pub signed: bool,
    /// The leaf's key must be the row's target; the leaf may be new.
    pub credits_target: bool,
    /// Leaves (amount, target) for the next row.
    pub opens_carry: bool,
    /// Takes (amount, target) from the row before.
    pub closes_carry: bool,
}

/// How often the row's amount and fee enter a sum: -1, 0 or 1 times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Times the amount.
    pub amount: i8,
    /// Times the fee.
    pub fee: i8,
}

impl Change {
    /// `value` plus the change.
    ///
    /// # Errors
    /// [`OperationError::InsufficientBalance`] below zero, [`OperationError::Overflow`] above 64 bits.
    pub fn apply(self, value: u64, amount: u64, fee: u64) -> Result<u64, OperationError> {
        // Three terms of at most 64 bits: no i128 overflow.
        let sum = i128::from(value)
            + i128::from(self.amount) * i128::from(amount)
            + i128::from(self.fee) * i128::from(fee);
        if sum < 0 {
            return Err(OperationError::InsufficientBalance {
                balance: value,
                needed: i128::from(value)
                    .abs_diff(sum)
                    .try_into()
                    .unwrap_or(u64::MAX),
            });
        }
        u64::try_from(sum).map_err(|_| OperationError::Overflow)
    }
}

/// One leaf update as an operation asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What it does.
    pub kind: Kind,
    /// Sats credited or debited.
    pub amount: u64,
    /// Sats that leave balance and supply and stay in the treasury; zero in unsigned rows.
    pub fee: u64,
    /// The sender, in signed rows; else zero.
    pub sender: AccountIndex,
    /// The sender's nonce, in signed rows; else zero.
    pub nonce: u64,
    /// The credited key's coordinates, or the limbs of a withdrawal's script.
    #[serde(with = "encoding::field_pair")]
    pub target: [Field; 2],
    /// Hash of the fields that the circuit does not read.
    #[serde(with = "encoding::field")]
    pub detail: Field,
}

/// A row's message, its fields still separate. Same order natively and in the circuit.
#[derive(Clone, Debug)]
pub struct MessageFields<V> {
    /// [`Kind::code`]; below 2^3.
    pub kind: V,
    /// Below 2^64.
    pub amount: V,
    /// Below 2^64.
    pub fee: V,
    /// Sender's index + 2^24 * nonce in signed rows, else zero; below 2^88.
    pub signer: V,
    /// Key coordinates or script limbs.
    pub target: [V; 2],
    /// Hash of everything else.
    pub detail: V,
}

impl Row {
    /// The padding row.
    pub fn noop() -> Self {
        Self {
            kind: Kind::Noop,
            amount: 0,
            fee: 0,
            sender: AccountIndex(0),
            nonce: 0,
            target: [Field::zero(); 2],
            detail: Field::zero(),
        }
    }

    /// The rows of `operation`, in order: one, or two for a transfer.
    pub fn of(operation: &Operation, vault: &VaultId) -> (Self, Option<Self>) {
        let [v0, v1] = limbs::<2>(&vault.0);
        match operation {
            Operation::Deposit {
                account,
                amount,
                outpoint,
            } => {
                let mut bytes = [0u8; 36];
                let txid: &[u8; 32] = outpoint.txid.as_ref();
                for (to, from) in bytes
                    .iter_mut()
                    .zip(txid.iter().chain(&outpoint.vout.to_le_bytes()))
                {
                    *to = *from;
                }
                let [o0, o1] = limbs::<2>(&bytes);
                let row = Self {
                    kind: Kind::Deposit,
                    amount: amount.to_sat(),
                    target: [account.point().x, account.point().y],
                    detail: hash_4(&mut Native, *DEPOSIT_DETAIL_TAG, [v0, v1, o0, o1]),
                    ..Self::noop()
                };
                (row, None)
            }
            Operation::Transfer {
                sender,
                nonce,
                amount,
                fee,
                recipient,
                last_valid,
                ..
            } => {
                let send = Self {
                    kind: Kind::Send,
                    amount: amount.to_sat(),
                    fee: fee.to_sat(),
                    sender: *sender,
                    nonce: *nonce,
                    target: [recipient.point().x, recipient.point().y],
                    detail: signed_detail([v0, v1], last_valid.0, 0),
                };
                let receive = Self {
                    kind: Kind::Receive,
                    amount: send.amount,
                    target: send.target,
                    ..Self::noop()
                };
                (send, Some(receive))
            }
            Operation::Withdraw {
                sender,
                nonce,
                amount,
                fee,
                script_pubkey,
                last_valid,
                ..
            } => {
                let script = script_pubkey.as_bytes();
                let row = Self {
                    kind: Kind::Withdraw,
                    amount: amount.to_sat(),
                    fee: fee.to_sat(),
                    sender: *sender,
                    nonce: *nonce,
                    target: limbs::<2>(script),
                    detail: signed_detail([v0, v1], last_valid.0, script.len() as u64),
                };
                (row, None)
            }
        }
    }

    /// The row's message: what a sender signs, and what the commitment commits to.
    pub fn message(&self) -> Field {
        let signer =
            Field::from(u128::from(self.sender.0) + (u128::from(self.nonce) << INDEX_BITS));
        message(
            &mut Native,
            MessageFields {
                kind: Field::from(self.kind.code()),
                amount: Field::from(self.amount),
                fee: Field::from(self.fee),
                signer,
                target: self.target,
                detail: self.detail,
            },
        )
    }
}

fn signed_detail([v0, v1]: [Field; 2], last_valid: u64, script_len: u64) -> Field {
    let packed = Field::from(u128::from(last_valid) + (u128::from(script_len) << AMOUNT_BITS));
    hash_4(
        &mut Native,
        *SIGNED_DETAIL_TAG,
        [v0, v1, packed, Field::zero()],
    )
}

/// 2^bits.
pub fn power_of_two(bits: u32) -> Field {
    Field::from(2u8).pow([u64::from(bits)])
}

/// Poseidon of a row's fields, packed.
pub fn message<A: Arithmetic>(a: &mut A, fields: MessageFields<A::Value>) -> A::Value {
    let MessageFields {
        kind,
        amount,
        fee,
        signer,
        target: [t0, t1],
        detail,
    } = fields;
    let amount_at = KIND_BITS;
    let fee_at = amount_at + AMOUNT_BITS;
    let signer_at = fee_at + AMOUNT_BITS;
    let packed = a.add_scaled(&kind, power_of_two(amount_at), &amount);
    let packed = a.add_scaled(&packed, power_of_two(fee_at), &fee);
    let packed = a.add_scaled(&packed, power_of_two(signer_at), &signer);
    hash_4(a, *MESSAGE_TAG, [packed, t0, t1, detail])
}

/// The hash whose low 128 bits are a signature's challenge.
pub fn challenge_hash<A: Arithmetic>(
    a: &mut A,
    [rx, ry]: [A::Value; 2],
    key_x: A::Value,
    message: A::Value,
) -> A::Value {
    hash_4(a, *CHALLENGE_TAG, [rx, ry, key_x, message])
}

/// A used leaf; circomlib's Poseidon of (key.x, key.y, balance, nonce).
pub fn leaf<A: Arithmetic>(
    a: &mut A,
    key: [A::Value; 2],
    balance: A::Value,
    nonce: A::Value,
) -> A::Value {
    let [x, y] = key;
    hash_4(a, Field::zero(), [x, y, balance, nonce])
}

/// An inner node of the tree; circomlib's Poseidon of its four children.
pub fn node<A: Arithmetic>(a: &mut A, children: [A::Value; 4]) -> A::Value {
    hash_4(a, Field::zero(), children)
}

/// The digest of a state; circomlib's Poseidon of (root, supply).
pub fn state_digest<A: Arithmetic>(a: &mut A, root: A::Value, supply: A::Value) -> A::Value {
    hash_2(a, Field::zero(), [root, supply])
}

/// Where the commitment of each of a vault's chunks starts.
pub fn commitment_start(vault: &VaultId) -> Digest {
    let [v0, v1] = limbs::<2>(&vault.0);
    Digest(hash_2(&mut Native, *START_TAG, [v0, v1]))
}

/// The chain over the rows' messages, from `start`.
pub fn commitment<A: Arithmetic>(a: &mut A, start: A::Value, messages: &[A::Value]) -> A::Value {
    let zero = a.constant(Field::zero());
    messages.chunks(ROWS_PER_LINK).fold(start, |link, group| {
        let mut group = group.iter().cloned();
        let [m0, m1, m2] = std::array::from_fn(|_| group.next().unwrap_or_else(|| zero.clone()));
        hash_4(a, *COMMITMENT_TAG, [link, m0, m1, m2])
    })
}

/// The public inputs of one chunk's proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkInputs {
    /// Digest of the state before the chunk.
    pub digest_before: Digest,
    /// Digest of the state after it.
    pub digest_after: Digest,
    /// Commitment to its rows, and through [`commitment_start`] to the vault.
    pub commitment: Digest,
}

/// Why public inputs cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkInputsError {
    /// A batch of n chunks has n + 1 digests.
    #[error("{chunks} chunks link up {expected} digests, got {found}", expected = chunks + 1)]
    Digests {
        /// Chunks that the operations fill.
        chunks: usize,
        /// Digests given.
        found: usize,
    },
}

/// Splits operations into chunks of at most [`CHUNK_ROWS`] rows, keeping each operation's rows together. The only
/// place that decides it.
pub(crate) fn split_chunks(operations: &[Operation]) -> Vec<&[Operation]> {
    let mut chunks = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, operation) in operations.iter().enumerate() {
        let more = operation.row_count();
        if rows + more > CHUNK_ROWS {
            chunks.push(operations.get(start..i).unwrap_or_default());
            (start, rows) = (i, 0);
        }
        rows += more;
    }
    if rows > 0 {
        chunks.push(operations.get(start..).unwrap_or_default());
    }
    chunks
}

/// How many chunks, and so proofs, a batch of these operations has.
pub fn chunk_count(operations: &[Operation]) -> usize {
    split_chunks(operations).len()
}

/// The public inputs of a batch's proofs, from the operations themselves. `digests` are the states' digests from
/// before the first chunk to after the last.
///
/// # Errors
/// [`ChunkInputsError::Digests`] if their number does not fit the operations.
pub fn chunk_inputs(
    vault: &VaultId,
    operations: &[Operation],
    digests: &[Digest],
) -> Result<Vec<ChunkInputs>, ChunkInputsError> {
    let chunks = split_chunks(operations);
    if digests.len() != chunks.len() + 1 {
        return Err(ChunkInputsError::Digests {
            chunks: chunks.len(),
            found: digests.len(),
        });
    }
    let start = commitment_start(vault);
    let before_and_after = digests.iter().zip(digests.iter().skip(1));
    Ok(chunks
        .into_iter()
        .zip(before_and_after)
        .map(|(operations, (before, after))| {
            let mut messages: Vec<Field> = Vec::with_capacity(CHUNK_ROWS);
            for operation in operations {
                let (first, second) = Row::of(operation, vault);
                messages.extend(
                    [Some(first), second]
                        .into_iter()
                        .flatten()
                        .map(|row| row.message()),
                );
            }
            messages.resize(CHUNK_ROWS, Row::noop().message());
            ChunkInputs {
                digest_before: *before,
                digest_after: *after,
                commitment: Digest(commitment(&mut Native, start.0, &messages)),
            }
        })
        .collect())
}
