//! One stored seed, and from it one polynomial for each ceremony: a node that restarts in the middle
//! goes on with the polynomial that it has already committed to, and never uses it elsewhere.

use std::fmt;

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit as _, StreamCipher as _};
use rand::{CryptoRng, RngCore};
use zeroize::Zeroizing;

use super::CeremonyId;
use crate::{SignerId, hash};

/// Names the way from seed to polynomial. The number of the FROST crate's major version is part of it: a
/// version that drew its randomness in another order would make another round-1 package from the same
/// seed, and a proof of knowledge that repeats a nonce gives its secret away.
const DERIVATION: &str = "drawbridge/dkg/polynomial/v1/frost-secp256k1-tr-3";

/// 32 secret bytes of the system's randomness, made once before key generation and kept sealed until
/// it is over. Zeroized on drop.
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    /// A fresh one.
    pub fn random<R: RngCore + CryptoRng>(rng: &mut R) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// The stored one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The secret bytes, to be sealed ([`crate::seal`]) and never stored otherwise (S10).
    pub fn secret_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The randomness of `me` in one ceremony, the same every time.
    pub(super) fn stream(&self, ceremony: &CeremonyId, me: SignerId) -> SeedStream {
        let me = me.to_bytes();
        let key = Zeroizing::new(hash::tagged(
            DERIVATION,
            [self.0.as_slice(), ceremony.0.as_slice(), me.as_slice()],
        ));
        SeedStream::new(&key)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(redacted)")
    }
}

/// ChaCha20's key stream (RFC 8439) as a source of randomness; the cipher zeroizes itself on drop.
pub(crate) struct SeedStream(ChaCha20);

impl SeedStream {
    /// The stream of a key that serves nothing else.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(ChaCha20::new(key.into(), &[0; 12].into()))
    }
}

impl RngCore for SeedStream {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, to: &mut [u8]) {
        to.fill(0);
        self.0.apply_keystream(to);
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(to);
        Ok(())
    }
}

impl CryptoRng for SeedStream {}
