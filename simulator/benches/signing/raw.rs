//! Signing by `frost-secp256k1-tr` alone, on one thread.
//!
//! The critical path of n inputs is n times: one signer's `round1::commit`, the same signer's
//! `round2::sign_with_tweak`, the coordinator's `aggregate_with_tweak`. The other signers work at the same time on
//! hosts of their own. No encoding, no message, no check that FROST does not make by itself.

use std::{collections::BTreeMap, hint::black_box};

use frost_secp256k1_tr as frost;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use simulator::Group;

use crate::{
    machine::Took,
    session::{digest, root},
};

pub struct Raw {
    keys: Vec<frost::keys::KeyPackage>,
    public: frost::keys::PublicKeyPackage,
    rng: ChaCha20Rng,
}

impl Raw {
    pub fn new(group: &Group) -> Self {
        let mut rng = ChaCha20Rng::from_seed([0xFA; 32]);
        let list = frost::keys::IdentifierList::Default;
        let (secrets, public) =
            frost::keys::generate_with_dealer(group.operators, group.threshold, list, &mut rng)
                .unwrap();
        let keys = secrets.into_values().take(group.threshold.into());
        Self {
            keys: keys.map(|secret| secret.try_into().unwrap()).collect(),
            public,
            rng,
        }
    }

    /// The critical path of so many inputs.
    pub fn critical_path(&mut self, inputs: usize) -> Took {
        let mut path = Took::default();
        for input in 0..inputs {
            path += self.input(input);
        }
        path
    }

    fn input(&mut self, input: usize) -> Took {
        let mut path = Took::default();
        let mut nonces = Vec::new();
        let mut commitments = BTreeMap::new();
        for (i, key) in self.keys.iter().enumerate() {
            let ((own, public), took) =
                Took::by(|| black_box(frost::round1::commit(key.signing_share(), &mut self.rng)));
            if i == 0 {
                path += took;
            }
            nonces.push(own);
            commitments.insert(*key.identifier(), public);
        }
        let package = frost::SigningPackage::new(commitments, &digest(input));
        let root = root(input);
        let mut shares = BTreeMap::new();
        for (i, (key, nonces)) in self.keys.iter().zip(&nonces).enumerate() {
            let (share, took) = Took::by(|| {
                frost::round2::sign_with_tweak(&package, nonces, key, Some(&root)).unwrap()
            });
            if i == 0 {
                path += took;
            }
            shares.insert(*key.identifier(), share);
        }
        let (_, took) = Took::by(|| {
            black_box(
                frost::aggregate_with_tweak(&package, &shares, &self.public, Some(&root)).unwrap(),
            )
        });
        path + took
    }
}
