//! Keys: fixed-width encodings whose byte order is the order of the values, so that a table reads
//! in key order and tuples can be scanned by their first part.

use bitcoin::{BlockHash, OutPoint, Txid, hashes::Hash as _};

/// A key of a table or queue. Every value of a type encodes to exactly [`Key::WIDTH`] bytes, and
/// `a < b` exactly when the encoding of `a` sorts before that of `b`.
pub trait Key: Sized {
    /// Bytes of every encoding.
    const WIDTH: usize;
    /// Appends the encoding.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads an encoding of exactly [`Key::WIDTH`] bytes; `None` if it is not one.
    fn decode(bytes: &[u8]) -> Option<Self>;

    /// The encoding on its own.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::WIDTH);
        self.encode(&mut out);
        out
    }
}

/// The key of a table with a single row.
impl Key for () {
    const WIDTH: usize = 0;
    fn encode(&self, _: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

macro_rules! unsigned_key {
    ($($t:ty),*) => {$(
        /// Big-endian.
        impl Key for $t {
            const WIDTH: usize = size_of::<$t>();
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(<$t>::from_be_bytes)
            }
        }
    )*};
}
unsigned_key!(u8, u16, u32, u64);

/// The bytes themselves.
impl<const N: usize> Key for [u8; N] {
    const WIDTH: usize = N;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

/// The 32 bytes in internal (not displayed) order.
impl Key for Txid {
    const WIDTH: usize = 32;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_byte_array());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_byte_array)
    }
}

/// The 32 bytes in internal (not displayed) order.
impl Key for BlockHash {
    const WIDTH: usize = 32;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_byte_array());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_byte_array)
    }
}

/// 36 bytes: the transaction id in internal order, then the index, big-endian.
impl Key for OutPoint {
    const WIDTH: usize = 36;
    fn encode(&self, out: &mut Vec<u8>) {
        self.txid.encode(out);
        self.vout.encode(out);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (txid, vout) = <(Txid, u32)>::decode(bytes)?;
        Some(Self { txid, vout })
    }
}

impl<A: Key, B: Key> Key for (A, B) {
    const WIDTH: usize = A::WIDTH + B::WIDTH;
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (a, b) = bytes.split_at_checked(A::WIDTH)?;
        Some((A::decode(a)?, B::decode(b)?))
    }
}

impl<A: Key, B: Key, C: Key> Key for (A, B, C) {
    const WIDTH: usize = A::WIDTH + B::WIDTH + C::WIDTH;
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
        self.2.encode(out);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (a, rest) = bytes.split_at_checked(A::WIDTH)?;
        let (b, c) = rest.split_at_checked(B::WIDTH)?;
        Some((A::decode(a)?, B::decode(b)?, C::decode(c)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outpoint(seed: [u8; 32], vout: u32) -> OutPoint {
        OutPoint {
            txid: Txid::from_byte_array(seed),
            vout,
        }
    }

    proptest! {
        #[test]
        fn encodings_keep_order_and_width_and_read_back(
            a in any::<(u64, u32, [u8; 4])>(), b in any::<(u64, u32, [u8; 4])>(),
        ) {
            let (x, y) = (a.to_bytes(), b.to_bytes());
            prop_assert_eq!(x.len(), <(u64, u32, [u8; 4])>::WIDTH);
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
            prop_assert_eq!(Key::decode(&x), Some(a));
            prop_assert_eq!(<(u64, u32, [u8; 4])>::decode(&x[1..]), None);
        }

        #[test]
        fn outpoints_take_36_bytes_and_sort_by_index_within_a_transaction(
            seed in any::<[u8; 32]>(), i in any::<u32>(), j in any::<u32>(),
        ) {
            let (a, b) = (outpoint(seed, i), outpoint(seed, j));
            prop_assert_eq!(a.to_bytes().len(), 36);
            prop_assert_eq!(i.cmp(&j), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(OutPoint::decode(&a.to_bytes()), Some(a));
        }
    }
}
