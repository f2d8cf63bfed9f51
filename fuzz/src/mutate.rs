//! Random changes to valid bytes, each following from a seed: bits, bytes, ranges, lengths, numbers in text, 32-byte
//! fields, and parts of other inputs.

use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// No input grows beyond this, in bytes.
pub const MAX_INPUT_BYTES: usize = 1 << 16;
/// Most changes to one input.
const MAX_CHANGES: u32 = 6;

const BYTES: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, b'0'];
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    2_100_000_000_000_000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];
const WORDS: [&[u8]; 14] = [
    b"-1",
    b"1e308",
    b"1e-400",
    b"18446744073709551615",
    b"18446744073709551616",
    b"0.1",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"\xff",
    b"\"\\ud800\"",
    b"[[[[[[[[[[[[[[[[",
];
/// Field and group orders (big-endian) whose neighbours no canonical encoding has.
const ORDERS: [&str; 5] = [
    // BN254: scalar field, base field.
    "30644e72e131a029b85045b68181585d2833e84879b9709143e1f593f0000001",
    "30644e72e131a029b85045b68181585d97816a916871ca8d3c208c16d87cfd47",
    // ed-on-bn254: order of the prime subgroup.
    "060c89ce5c263405370a08b6d0302b0bab3eedb83920ee0a677297dc392126f1",
    // secp256k1: base field, order.
    "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f",
    "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
];

/// Makes inputs from others.
pub struct Mutator<'a> {
    rng: ChaCha8Rng,
    pool: &'a [Vec<u8>],
}

impl<'a> Mutator<'a> {
    /// The same seed makes the same inputs from the same pool, which is not empty.
    pub fn new(seed: u64, pool: &'a [Vec<u8>]) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            pool,
        }
    }

    /// An input with some changes.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.other().to_vec();
        // One change half of the time: most checks look at one thing.
        let mut changes = 1;
        while changes < MAX_CHANGES && self.rng.gen_bool(0.5) {
            changes += 1;
        }
        for _ in 0..changes {
            self.change(&mut input);
            input.truncate(MAX_INPUT_BYTES);
        }
        input
    }

    fn other(&mut self) -> &'a [u8] {
        &self.pool[self.rng.gen_range(0..self.pool.len())]
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.gen_range(0..=input.len());
        match self.rng.gen_range(0..14) {
            0..=2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.rng.gen_range(0..8);
                }
            }
            3 => {
                let byte = BYTES[self.rng.gen_range(0..BYTES.len())];
                self.overwrite(input, at, &[byte]);
            }
            4 => input.truncate(at),
            5 => {
                let end = self.end(input, at);
                input.drain(at..end);
            }
            6 => {
                let mut bytes = vec![0; self.rng.gen_range(1..=16)];
                self.rng.fill_bytes(&mut bytes);
                insert(input, at, &bytes);
            }
            7 => {
                let end = self.end(input, at);
                let range = input[at..end].to_vec();
                let to = self.rng.gen_range(0..=input.len());
                insert(input, to, &range);
            }
            8 => self.swap(input),
            9 => {
                let other = self.other();
                let cut = self.rng.gen_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[cut..]);
            }
            10 => {
                let other = self.other();
                let from = self.rng.gen_range(0..=other.len());
                let end = self.end(other, from);
                self.overwrite(input, at, &other[from..end]);
            }
            11 => self.length(input, at),
            12 => self.number(input, at),
            _ => self.field(input, at),
        }
    }

    /// Where a range ends that starts at `at`: mostly a few bytes on.
    fn end(&mut self, input: &[u8], at: usize) -> usize {
        let rest = input.len() - at;
        let few = [1, 2, 4, 8, 32, 33, 64, rest];
        let most = few[self.rng.gen_range(0..few.len())].min(rest);
        at + self.rng.gen_range(0..=most)
    }

    fn overwrite(&mut self, input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
        let end = input.len().min(at + bytes.len());
        input.splice(at..end, bytes.iter().copied());
    }

    /// Two ranges of one length change places.
    fn swap(&mut self, input: &mut [u8]) {
        let lengths = [1, 4, 8, 32, 33, 64];
        let length = lengths[self.rng.gen_range(0..lengths.len())];
        let Some(last) = input.len().checked_sub(length) else {
            return;
        };
        let (a, b) = (self.rng.gen_range(0..=last), self.rng.gen_range(0..=last));
        for i in 0..length {
            input.swap(a + i, b + i);
        }
    }

    /// A length or count, in one of the encodings that formats here use.
    fn length(&mut self, input: &mut Vec<u8>, at: usize) {
        let rest = u64::try_from(input.len() - at).unwrap();
        let number = match self.rng.gen_range(0..4) {
            0 => rest.wrapping_add(self.rng.gen_range(0..4)).wrapping_sub(2),
            _ => NUMBERS[self.rng.gen_range(0..NUMBERS.len())],
        };
        let bytes = match self.rng.gen_range(0..6) {
            0 => vec![u8::try_from(number & 0xff).unwrap()],
            1 => number.to_le_bytes()[..2].to_vec(),
            2 => number.to_le_bytes()[..4].to_vec(),
            3 => number.to_be_bytes()[4..].to_vec(),
            4 => number.to_le_bytes().to_vec(),
            _ => {
                // A varint takes the place of one byte, so that what follows stays where it was.
                let varint = postcard::to_stdvec(&number).unwrap();
                let end = input.len().min(at + 1);
                input.splice(at..end, varint);
                return;
            }
        };
        self.overwrite(input, at, &bytes);
    }

    /// The decimal number at or after `at`, or a word in its place.
    fn number(&mut self, input: &mut Vec<u8>, at: usize) {
        let Some(start) = input[at..].iter().position(u8::is_ascii_digit) else {
            return;
        };
        let start = at + start;
        let digits = input[start..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let with = if self.rng.gen_bool(0.5) {
            WORDS[self.rng.gen_range(0..WORDS.len())].to_vec()
        } else {
            NUMBERS[self.rng.gen_range(0..NUMBERS.len())]
                .to_string()
                .into_bytes()
        };
        input.splice(start..start + digits, with);
    }

    /// 32 bytes that are no canonical field element, or the first or last one that is.
    fn field(&mut self, input: &mut Vec<u8>, at: usize) {
        let mut bytes = hex::decode(ORDERS[self.rng.gen_range(0..ORDERS.len())]).unwrap();
        match self.rng.gen_range(0..5) {
            0 => bytes[31] -= 1,
            1 => bytes[31] += 1,
            2 => bytes.fill(0),
            3 => bytes.fill(0xff),
            _ => {}
        }
        if self.rng.gen_bool(0.5) {
            bytes.reverse();
        }
        self.overwrite(input, at, &bytes);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_inputs_again_and_another_seed_others() {
        let pool = vec![vec![7; 100], b"{\"amount\":12}".to_vec(), Vec::new()];
        let inputs = |seed| -> Vec<_> {
            let mut mutator = Mutator::new(seed, &pool);
            (0..2_000).map(|_| mutator.next_input()).collect()
        };
        let first = inputs(1);
        assert_eq!(first, inputs(1));
        assert_ne!(first, inputs(2));
        assert!(first.iter().all(|input| input.len() <= MAX_INPUT_BYTES));
        let changed = first.iter().filter(|input| !pool.contains(input)).count();
        assert!(changed > 1_500, "{changed} of 2,000 inputs differ");
    }
}
