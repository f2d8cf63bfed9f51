//! Whose shares are wrong. [`verify_shares`] asks FROST about each share by itself, which computes all of the
//! attempt anew each time. [`culprits`] computes it once, checks all shares as one random combination of
//! their equations, and asks FROST only about those that must be wrong.
//!
//! The equation of signer i's share z of one message (RFC 9591 section 5.4, with BIP-340's signs and
//! BIP-341's tweak t):
//!
//! ```text
//! z·G = ±(D_i + ρ_i·E_i) + λ_i·c·(±(±Y_i + t·G))
//! ```

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use bitcoin::hashes::Hash as _;
use bitcoin::key::TapTweak as _;
use bitcoin::secp256k1::Parity;
use bitcoin::taproot::{TapNodeHash, TapTweakHash};
use frost_secp256k1_tr::{
    Ciphersuite as _, Field as _, Group as _, Secp256K1Group, Secp256K1ScalarField,
    Secp256K1Sha256TR,
};
use rayon::prelude::*;

use super::encoding::PAIR_LEN;
use super::{Message, Package, PackageError, SECP, Shares, Tweak, tweaked};
use crate::{GroupInfo, SignerId, hash};

type Scalar = <Secp256K1ScalarField as frost_secp256k1_tr::Field>::Scalar;
type Point = <Secp256K1Group as frost_secp256k1_tr::Group>::Element;

/// Equations that are combined at once: bounds the memory for multiples of their points.
const CHUNK: usize = 512;

/// Checks one signer's shares (RFC 9591 section 5.4), each by FROST itself.
///
/// # Errors
/// [`BadShare`] says which share of whom is wrong, or what about the package.
pub fn verify_shares(
    group: &GroupInfo,
    package: &Package,
    from: SignerId,
    shares: &Shares,
) -> Result<(), BadShare> {
    package.check(group)?;
    if !package.commitments.contains_key(&from) {
        return Err(BadShare::NotInPackage(from));
    }
    check_count(package, from, shares)?;
    let wrong = (0..shares.len())
        .into_par_iter()
        .find_first(|message| !is_right(group, package, from, shares, *message));
    match wrong {
        Some(message) => Err(BadShare::Invalid { from, message }),
        None => Ok(()),
    }
}

fn check_count(package: &Package, from: SignerId, shares: &Shares) -> Result<(), BadShare> {
    let (have, need) = (shares.len(), package.messages.len());
    if have == need {
        Ok(())
    } else {
        Err(BadShare::Count { from, have, need })
    }
}

/// FROST's word on one share.
fn is_right(
    group: &GroupInfo,
    package: &Package,
    from: SignerId,
    shares: &Shares,
    message: usize,
) -> bool {
    let (Some(tweak), Some(session), Some(share)) = (
        package.messages.get(message).map(|message| &message.tweak),
        package.session(message),
        shares.0.get(message),
    ) else {
        return false;
    };
    let keys = tweaked(group.package_of([from]), tweak);
    keys.verifying_shares()
        .get(&from.frost())
        .is_some_and(|verifying| {
            frost_core::verify_signature_share(
                from.frost(),
                verifying,
                share,
                &session,
                keys.verifying_key(),
            )
            .is_ok()
        })
}

/// Why a signer's shares are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadShare {
    /// The package is not one that the group can sign; nobody's share is to blame.
    #[error("the signing package is unusable")]
    Package(#[from] PackageError),
    /// The sender does not sign in this session.
    #[error("{0} has no commitments in the package")]
    NotInPackage(SignerId),
    /// Not a share per message.
    #[error("{from} sent {have} shares, not {need}")]
    Count {
        /// The culprit.
        from: SignerId,
        /// Shares sent.
        have: usize,
        /// Messages in the package.
        need: usize,
    },
    /// A share does not verify.
    #[error("share {message} of {from} does not verify")]
    Invalid {
        /// The culprit.
        from: SignerId,
        /// Index of the message.
        message: usize,
    },
}

/// Which of these signers of the package sent a wrong share, or the wrong number of them. Not all
/// signers of the package have to be there.
///
/// # Errors
/// [`BadShare`] if the package is unusable, or somebody does not sign in this session; nobody is a culprit
/// then.
pub fn culprits<T: Borrow<Shares>>(
    group: &GroupInfo,
    package: &Package,
    shares: &BTreeMap<SignerId, T>,
) -> Result<BTreeSet<SignerId>, BadShare> {
    package.check(group)?;
    let mut culprits = BTreeSet::new();
    let mut counted = BTreeMap::new();
    for (from, theirs) in shares {
        if !package.commitments.contains_key(from) {
            return Err(BadShare::NotInPackage(*from));
        }
        match check_count(package, *from, theirs.borrow()) {
            Ok(()) => drop(counted.insert(*from, theirs.borrow())),
            Err(_) => drop(culprits.insert(*from)),
        }
    }
    // Without the equations, which no usable package lacks, FROST is asked about everything.
    let equations = Equations::of(group, package);
    let holds = |some: &BTreeMap<SignerId, &Shares>| {
        equations
            .as_ref()
            .is_some_and(|equations| equations.hold(some))
    };
    if counted.is_empty() || holds(&counted) {
        return Ok(culprits);
    }
    for (from, theirs) in counted {
        // Nobody is blamed on the word of the code in this file.
        if !holds(&BTreeMap::from([(from, theirs)]))
            && verify_shares(group, package, from, theirs).is_err()
        {
            culprits.insert(from);
        }
    }
    Ok(culprits)
}

/// What the equations of one package have in common.
struct Equations<'a> {
    package: &'a Package,
    signers: BTreeMap<SignerId, Signer>,
    messages: Vec<Equation>,
    /// Nobody can choose shares after the factors that combine them, which come of a hash of both.
    seed: [u8; 32],
}

/// What does not change from message to message.
struct Signer {
    /// Where it is in the package.
    place: usize,
    verifying: Point,
    lagrange: Scalar,
}

/// What the equations of one message's shares have in common.
struct Equation {
    /// Of all signers, in the order of the package.
    hiding: Vec<Point>,
    binding: Vec<Point>,
    factors: Vec<Scalar>,
    /// The sign of the nonces: R has to be even.
    nonce_sign: Scalar,
    /// The challenge, with the signs that the verifying shares take.
    of_share: Scalar,
    /// The challenge times the tweak, with its sign.
    of_generator: Scalar,
}

impl<'a> Equations<'a> {
    fn of(group: &GroupInfo, package: &'a Package) -> Option<Self> {
        let ids: Vec<SignerId> = package.commitments.keys().copied().collect();
        let places = ids
            .iter()
            .map(|id| scalar(&id.to_bytes()))
            .collect::<Option<Vec<_>>>()?;
        let signers = ids
            .iter()
            .enumerate()
            .map(|(place, id)| {
                let signer = Signer {
                    place,
                    verifying: point(&group.verifying_share(*id)?.serialize().ok()?)?,
                    lagrange: lagrange(&places, place)?,
                };
                Some((*id, signer))
            })
            .collect::<Option<_>>()?;
        let key = group.verifying_key().serialize().ok()?;
        let messages = (0..package.messages.len())
            .into_par_iter()
            .map(|message| Equation::of(group, *key.first()?, package, message))
            .collect::<Option<_>>()?;
        Some(Self {
            package,
            signers,
            messages,
            seed: package.hash(group).0,
        })
    }

    /// Whether a random combination of the equations of all these shares holds. If one of them is wrong,
    /// it does with probability 2⁻¹²⁸.
    fn hold(&self, shares: &BTreeMap<SignerId, &Shares>) -> bool {
        let bytes: Vec<Vec<u8>> = shares
            .iter()
            .map(|(id, shares)| {
                let shares = shares.0.iter().flat_map(|share| share.serialize());
                id.to_bytes().into_iter().chain(shares).collect()
            })
            .collect();
        let parts = bytes.iter().map(Vec::as_slice);
        let seed = hash::tagged(
            "drawbridge/share-check",
            std::iter::once(self.seed.as_slice()).chain(parts),
        );
        let messages: Vec<usize> = (0..self.package.messages.len()).collect();
        messages
            .par_chunks(CHUNK.div_ceil(shares.len().max(1)))
            .all(|chunk| self.combine(&seed, shares, chunk) == Some(Secp256K1Group::identity()))
    }

    /// The combination for some of the messages.
    fn combine(
        &self,
        seed: &[u8; 32],
        shares: &BTreeMap<SignerId, &Shares>,
        messages: &[usize],
    ) -> Option<Point> {
        let (mut scalars, mut points) = (Vec::new(), Vec::new());
        let mut of_generator = Secp256K1ScalarField::zero();
        for (id, shares) in shares {
            let signer = self.signers.get(id)?;
            let mut of_verifying = Secp256K1ScalarField::zero();
            for message in messages {
                let equation = self.messages.get(*message)?;
                let share = scalar(
                    shares
                        .0
                        .get(*message)?
                        .serialize()
                        .as_slice()
                        .try_into()
                        .ok()?,
                )?;
                let factor = random(seed, signer.place, *message)?;
                scalars.push(factor);
                points.push(*equation.hiding.get(signer.place)?);
                scalars.push(factor * *equation.factors.get(signer.place)?);
                points.push(*equation.binding.get(signer.place)?);
                // The sign of the nonces on the other side: a factor of 128 bits is half the work.
                let factor = factor * equation.nonce_sign;
                of_verifying += factor * signer.lagrange * equation.of_share;
                of_generator += factor * (signer.lagrange * equation.of_generator - share);
            }
            scalars.push(of_verifying);
            points.push(signer.verifying);
        }
        scalars.push(of_generator);
        points.push(Secp256K1Group::generator());
        Some(multiply(&scalars, &points))
    }
}

impl Equation {
    /// `key_prefix` is the first byte of the encoded group key: its sign.
    fn of(group: &GroupInfo, key_prefix: u8, package: &Package, message: usize) -> Option<Self> {
        let Message { digest, tweak } = package.messages.get(message)?;
        let target = Target::of(group, tweak)?;
        let mut listed = Vec::new();
        let (mut hiding, mut binding) = (Vec::new(), Vec::new());
        for (id, commitments) in &package.commitments {
            let pair = commitments.pair_bytes(message)?;
            listed.extend(id.to_bytes());
            listed.extend(pair);
            let (first, second) = pair.split_at(PAIR_LEN / 2);
            hiding.push(point(first)?);
            binding.push(point(second)?);
        }
        // RFC 9591 section 4.4.
        let mut prefix = vec![2];
        prefix.extend(target.key);
        prefix.extend(Secp256K1Sha256TR::H4(digest));
        prefix.extend(Secp256K1Sha256TR::H5(&listed));
        let factors: Vec<Scalar> = package
            .commitments
            .keys()
            .map(|id| Secp256K1Sha256TR::H1(&[prefix.as_slice(), &id.to_bytes()].concat()))
            .collect();
        let nonce = hiding
            .iter()
            .fold(multiply(&factors, &binding), |sum, point| sum + *point);
        let nonce = Secp256K1Group::serialize(&nonce).ok()?;
        let (nonce_prefix, nonce_x) = nonce.split_first()?;
        let challenge = Secp256K1Sha256TR::H2(&[nonce_x, &target.key, digest.as_slice()].concat());
        Some(Self {
            hiding,
            binding,
            factors,
            nonce_sign: sign(*nonce_prefix == 3),
            of_share: challenge * target.sign * sign(key_prefix == 3),
            of_generator: challenge * target.sign * target.tweak,
        })
    }
}

/// The key under which a message's signature verifies.
struct Target {
    /// Its x-coordinate.
    key: [u8; 32],
    /// -1 if the tweaked key is odd.
    sign: Scalar,
    /// What was added to the private key.
    tweak: Scalar,
}

impl Target {
    fn of(group: &GroupInfo, tweak: &Tweak) -> Option<Self> {
        let key = group.group_key().to_x_only();
        let Tweak::KeyPath(root) = tweak else {
            return Some(Self {
                key: key.serialize(),
                sign: Secp256K1ScalarField::one(),
                tweak: Secp256K1ScalarField::zero(),
            });
        };
        let root = root.map(TapNodeHash::from_byte_array);
        let (output, parity) = key.tap_tweak(&SECP, root);
        let tweak = TapTweakHash::from_key_and_tweak(key, root).to_scalar();
        Some(Self {
            key: output.to_x_only_public_key().serialize(),
            sign: sign(parity == Parity::Odd),
            tweak: scalar(&tweak.to_be_bytes())?,
        })
    }
}

/// The interpolation coefficient at 0 (RFC 9591 section 4.2).
fn lagrange(places: &[Scalar], own: usize) -> Option<Scalar> {
    let x = places.get(own)?;
    let (mut above, mut below) = (Secp256K1ScalarField::one(), Secp256K1ScalarField::one());
    for (place, other) in places.iter().enumerate() {
        if place != own {
            above *= *other;
            below *= *other - *x;
        }
    }
    Some(above * Secp256K1ScalarField::invert(&below).ok()?)
}

fn sign(negative: bool) -> Scalar {
    let one = Secp256K1ScalarField::one();
    if negative { -one } else { one }
}

/// 128 bits of a hash.
fn random(seed: &[u8; 32], signer: usize, message: usize) -> Option<Scalar> {
    let index = [signer, message].map(|index| index.to_le_bytes());
    let digest = hash::tagged(
        "drawbridge/share-check/factor",
        [seed.as_slice(), &index[0], &index[1]],
    );
    let mut bytes = [0; 32];
    bytes
        .iter_mut()
        .skip(16)
        .zip(digest)
        .for_each(|(to, from)| *to = from);
    scalar(&bytes)
}

fn scalar(bytes: &[u8; 32]) -> Option<Scalar> {
    Secp256K1ScalarField::deserialize(bytes).ok()
}

fn point(bytes: &[u8]) -> Option<Point> {
    Secp256K1Group::deserialize(&bytes.try_into().ok()?).ok()
}

/// The sum of all products: Straus' method, four bits at a time. In variable time, which does not matter
/// with public values only.
fn multiply(scalars: &[Scalar], points: &[Point]) -> Point {
    let tables: Vec<(Vec<Point>, [u8; 32])> = points
        .iter()
        .zip(scalars)
        .map(|(point, scalar)| {
            let multiples = (0..16).scan(Secp256K1Group::identity(), |multiple, _| {
                let this = *multiple;
                *multiple = this + *point;
                Some(this)
            });
            let digits = Secp256K1ScalarField::serialize(scalar);
            (multiples.collect(), digits)
        })
        .collect();
    let mut sum = Secp256K1Group::identity();
    for byte in 0..32 {
        for shift in [4, 0] {
            for _ in 0..4 {
                sum = sum + sum;
            }
            for (multiples, digits) in &tables {
                let digit = digits.get(byte).map_or(0, |byte| (byte >> shift) & 15);
                if digit > 0
                    && let Some(multiple) = multiples.get(usize::from(digit))
                {
                    sum += *multiple;
                }
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::KeyShare;
    use crate::dkg::{Ceremony, Machine, Seed};
    use crate::sign::{commit, sign as give};

    /// A 2-of-3 group; another one for each context.
    fn group(context: u8) -> Vec<KeyShare> {
        let ids: BTreeSet<SignerId> = (0..3).map(|i| SignerId::derive(&[i; 32])).collect();
        let mut machines: Vec<(SignerId, Machine)> = ids
            .iter()
            .map(|me| {
                let ceremony = Ceremony {
                    me: *me,
                    signers: ids.clone(),
                    threshold: 2,
                    context: [context; 32],
                };
                let seed = Seed::from_bytes(&me.to_bytes());
                (*me, Machine::new(ceremony, &seed).unwrap())
            })
            .collect();
        for _ in 0..5 {
            for to in 0..3 {
                for from in (0..3).filter(|from| *from != to) {
                    for message in machines[from].1.messages_for(machines[to].0) {
                        let from = machines[from].0;
                        machines[to].1.receive(from, message).unwrap();
                    }
                }
            }
        }
        machines
            .iter()
            .map(|(_, machine)| machine.finished().unwrap().to_secret_bytes().unwrap())
            .map(|bytes| KeyShare::from_secret_bytes(&bytes).unwrap())
            .collect()
    }

    /// Every sign that a key, a tweaked key and a nonce can have comes up among these groups and messages.
    #[test]
    fn the_combination_holds_for_right_shares_and_fails_for_one_that_is_off_by_one() {
        let mut signs = BTreeSet::new();
        for context in 0..4 {
            let shares = group(context);
            let group = shares[0].group();
            let mut rng = StdRng::seed_from_u64(u64::from(context));
            let messages: Vec<Message> = (0..24)
                .map(|i| Message {
                    digest: [i; 32],
                    tweak: [
                        Tweak::Untweaked,
                        Tweak::KeyPath(None),
                        Tweak::KeyPath(Some([i; 32])),
                    ][usize::from(i % 3)],
                })
                .collect();
            let (nonces, commitments): (Vec<_>, BTreeMap<_, _>) = shares[..2]
                .iter()
                .map(|share| {
                    let (nonces, commitments) = commit(share, messages.len(), &mut rng).unwrap();
                    (nonces, (share.signer(), commitments))
                })
                .unzip();
            let package = Package {
                messages,
                commitments,
            };
            let mut answers: BTreeMap<SignerId, Shares> = shares
                .iter()
                .zip(nonces)
                .map(|(share, nonces)| (share.signer(), give(share, nonces, &package).unwrap()))
                .collect();
            let equations = Equations::of(group, &package).unwrap();
            let all = |answers: &BTreeMap<SignerId, Shares>| {
                equations.hold(&answers.iter().map(|(id, shares)| (*id, shares)).collect())
            };
            assert!(all(&answers));
            let one = Secp256K1ScalarField::one();
            let odd = group.verifying_key().serialize().unwrap()[0] == 3;
            for (message, equation) in equations.messages.iter().enumerate() {
                let target = Target::of(group, &package.messages[message].tweak).unwrap();
                signs.insert((odd, target.sign == one, equation.nonce_sign == one));
            }
            let from = *answers.keys().next().unwrap();
            let mut bytes: Vec<u8> =
                postcard::from_bytes(&postcard::to_stdvec(&answers[&from]).unwrap()).unwrap();
            bytes[23 * 32 + 31] ^= 1;
            answers.insert(from, Shares::try_from(bytes).unwrap());
            assert!(!all(&answers));
        }
        assert_eq!(signs.len(), 8, "{signs:?}");
    }

    #[test]
    fn products_add_up() {
        let scalars: Vec<Scalar> = (0..5)
            .map(|i| random(&[7; 32], i, 0).unwrap())
            .chain([Secp256K1ScalarField::zero(), -Secp256K1ScalarField::one()])
            .collect();
        let points: Vec<Point> = (0..7)
            .map(|i| Secp256K1Group::generator() * random(&[8; 32], i, 0).unwrap())
            .collect();
        let expected = scalars
            .iter()
            .zip(&points)
            .fold(Secp256K1Group::identity(), |sum, (scalar, point)| {
                sum + *point * *scalar
            });
        assert_eq!(multiply(&scalars, &points), expected);
    }
}
