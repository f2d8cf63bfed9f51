//! Proving and verifying key: made once for a circuit version, kept in files that say what they are.
//!
//! ```text
//! magic "DRAWKEY\0" | kind u8 | format u16 | circuit version u32 | label length u16 | label
//!   | payload length u64 | SHA-256 of the payload | payload        integers little-endian
//! ```
//!
//! The label says how the key was made. Whoever made it alone, as here, could forge proofs; a ceremony's key will
//! carry another label.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use ark_bn254::{Bn254, Fr};
use ark_groth16::{Groth16, PreparedVerifyingKey, prepare_verifying_key};
use ark_relations::gr1cs::{
    ConstraintSynthesizer, ConstraintSystemRef, LinearCombination, SynthesisError, Variable,
};
use ark_serialize::CanonicalDeserialize as _;
use rand::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    builder::{PUBLIC_INPUTS, Terms},
    chunk::{CONSTRAINTS, ChunkAssignment, assign, padding, public},
};

/// Goes up with every change of the circuit; keys of other versions are refused.
pub const CIRCUIT_VERSION: u32 = 1;

/// How these keys were made.
pub const SETUP_LABEL: &str = "single-party setup, for tests only";

/// File name of the proving key, tens of megabytes.
pub const PROVING_KEY_FILE: &str = "chunk-proving.key";

/// File name of the verifying key, under a kilobyte.
pub const VERIFYING_KEY_FILE: &str = "chunk-verifying.key";

const LOCK_FILE: &str = "chunk-keys.lock";
const MAGIC: [u8; 8] = *b"DRAWKEY\0";
const FORMAT_VERSION: u16 = 1;
const KIND_PROVING: u8 = 1;
const KIND_VERIFYING: u8 = 2;
/// Longer key files are refused before they are read.
const MAX_KEY_FILE_BYTES: u64 = 512 << 20;
const MAX_LABEL_BYTES: usize = 256;

/// Why keys cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is not a key file, or is cut off.
    #[error("not a key file, or truncated: {0}")]
    Malformed(&'static str),
    /// A key for another circuit.
    #[error("the key is for circuit version {found}, this program has {CIRCUIT_VERSION}")]
    CircuitVersion {
        /// The file's version.
        found: u32,
    },
    /// The contents have changed since they were written.
    #[error("the key's SHA-256 does not match its contents")]
    Hash,
    /// Proving and verifying key do not belong together.
    #[error("proving key and verifying key are not of one setup: {proving} and {verifying}")]
    Mismatch {
        /// Of the proving key.
        proving: VerifyingKeyHash,
        /// Of the verifying key.
        verifying: VerifyingKeyHash,
    },
    /// Making a new pair would change the verifying key that others rely on.
    #[error("there is a verifying key but no proving key: copy the proving key here")]
    ProvingKeyMissing,
    /// The setup itself failed.
    #[error("the setup failed")]
    Setup(#[source] SynthesisError),
}

/// SHA-256 of circuit version and verifying key: nodes of a network compare it, and the vault id depends on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VerifyingKeyHash(#[serde(with = "hex::serde")] pub [u8; 32]);

impl fmt::Display for VerifyingKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VerifyingKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKeyHash({self})")
    }
}

impl FromStr for VerifyingKeyHash {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Checks proofs. Prepared once; cheap to share by reference.
#[derive(Clone)]
pub struct VerifyingKey {
    prepared: PreparedVerifyingKey<Bn254>,
    hash: VerifyingKeyHash,
    label: String,
}

impl VerifyingKey {
    fn new(key: &ark_groth16::VerifyingKey<Bn254>, label: String) -> Result<Self, KeyError> {
        if key.gamma_abc_g1.len() != 1 + PUBLIC_INPUTS {
            return Err(KeyError::Malformed(
                "the verifying key has another number of public inputs",
            ));
        }
        let mut hash = Sha256::new();
        hash.update(CIRCUIT_VERSION.to_le_bytes());
        hash.update(payload(key, true)?);
        Ok(Self {
            prepared: prepare_verifying_key(key),
            hash: VerifyingKeyHash(hash.finalize().into()),
            label,
        })
    }

    /// The key's name.
    pub fn hash(&self) -> VerifyingKeyHash {
        self.hash
    }

    /// How the key was made; [`SETUP_LABEL`] for one that is for tests only.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn prepared(&self) -> &PreparedVerifyingKey<Bn254> {
        &self.prepared
    }

    pub(crate) fn key(&self) -> &ark_groth16::VerifyingKey<Bn254> {
        &self.prepared.vk
    }

    /// The contents of its file.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] if it is too large to encode, which it is not.
    pub fn to_file_bytes(&self) -> Result<Vec<u8>, KeyError> {
        frame(KIND_VERIFYING, &self.label, &payload(self.key(), true)?)
    }

    /// Reads the contents of a file; checks every point.
    ///
    /// # Errors
    /// [`KeyError`] for a file that is truncated, altered, or for another circuit.
    pub fn from_file_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let (label, encoded) = unframe(KIND_VERIFYING, bytes)?;
        let key = ark_groth16::VerifyingKey::deserialize_compressed(encoded)
            .map_err(|_| KeyError::Malformed("the verifying key's points"))?;
        // arkworks takes any coordinates for a point at infinity, and bytes after the last point.
        if payload(&key, true)? != encoded {
            return Err(KeyError::Malformed(
                "the verifying key's points are not in their one encoding",
            ));
        }
        Self::new(&key, label)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// As [`Self::from_file_bytes`], or [`KeyError::Io`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::from_file_bytes(&read(path)?)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({}, {})", self.hash, self.label)
    }
}

/// Makes proofs. Tens of megabytes: share it by reference.
pub struct ProvingKey {
    key: ark_groth16::ProvingKey<Bn254>,
    label: String,
}

impl ProvingKey {
    /// Hash of the verifying key that checks its proofs.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] if the key is for another number of public inputs.
    pub fn verifying_key(&self) -> Result<VerifyingKey, KeyError> {
        VerifyingKey::new(&self.key.vk, self.label.clone())
    }

    pub(crate) fn inner(&self) -> &ark_groth16::ProvingKey<Bn254> {
        &self.key
    }

    /// Whether the key's sizes are the circuit's.
    pub(crate) fn fits(&self) -> bool {
        let (variables, inputs) = (CONSTRAINTS.variables, CONSTRAINTS.inputs());
        let domain = (CONSTRAINTS.len() + inputs).next_power_of_two();
        let key = &self.key;
        key.a_query.len() == variables
            && key.b_g1_query.len() == variables
            && key.b_g2_query.len() == variables
            && key.l_query.len() == variables - inputs
            && key.h_query.len() == domain - 1
            && key.vk.gamma_abc_g1.len() == inputs
    }

    /// Reads the file. The points are checked by the file's hash only, not one by one: a wrong key can only make
    /// proofs that nobody accepts.
    ///
    /// # Errors
    /// [`KeyError`] for a file that is truncated, altered, or for another circuit.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let bytes = read(path)?;
        let (label, payload) = unframe(KIND_PROVING, &bytes)?;
        let key = ark_groth16::ProvingKey::deserialize_uncompressed_unchecked(payload)
            .map_err(|_| KeyError::Malformed("the proving key's points"))?;
        let key = Self { key, label };
        if !key.fits() {
            return Err(KeyError::Malformed(
                "the proving key is for a circuit of another size",
            ));
        }
        Ok(key)
    }
}

impl fmt::Debug for ProvingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProvingKey({})", self.label)
    }
}

/// Both keys of one setup.
#[derive(Debug)]
pub struct Keys {
    /// Makes proofs.
    pub proving: ProvingKey,
    /// Checks them.
    pub verifying: VerifyingKey,
}

/// What [`Keys::ensure`] is doing, for a progress display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupStep {
    /// Reading keys that are there.
    Loading,
    /// Making new ones: up to a minute.
    Generating {
        /// Size of the circuit.
        constraints: usize,
    },
    /// Writing them.
    Writing,
}

impl Keys {
    /// Makes a new pair. Whoever knows what `rng` gave can forge proofs.
    ///
    /// # Errors
    /// [`KeyError::Setup`].
    pub fn setup<R: RngCore + CryptoRng>(rng: &mut R) -> Result<Self, KeyError> {
        let key = Groth16::<Bn254>::generate_random_parameters_with_reduction(SetupCircuit, rng)
            .map_err(KeyError::Setup)?;
        let verifying = VerifyingKey::new(&key.vk, SETUP_LABEL.to_owned())?;
        Ok(Self {
            proving: ProvingKey {
                key,
                label: SETUP_LABEL.to_owned(),
            },
            verifying,
        })
    }

    /// Reads both keys from a folder.
    ///
    /// # Errors
    /// [`KeyError`] for either file, or if they are not of one setup.
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        let verifying = VerifyingKey::load(&folder.join(VERIFYING_KEY_FILE))?;
        let proving = ProvingKey::load(&folder.join(PROVING_KEY_FILE))?;
        let (found, expected) = (proving.verifying_key()?.hash, verifying.hash);
        if found != expected {
            return Err(KeyError::Mismatch {
                proving: found,
                verifying: expected,
            });
        }
        Ok(Self { proving, verifying })
    }

    /// Writes both keys into a folder, each file at once or not at all; the verifying key last.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), KeyError> {
        let bytes = frame(
            KIND_PROVING,
            &self.proving.label,
            &payload(&self.proving.key, false)?,
        )?;
        write_atomically(&folder.join(PROVING_KEY_FILE), &bytes)?;
        write_atomically(
            &folder.join(VERIFYING_KEY_FILE),
            &self.verifying.to_file_bytes()?,
        )
    }

    /// Reads the keys in a folder, or makes them and writes them there. Several processes may call it at once: one
    /// makes the keys, the others wait.
    ///
    /// # Errors
    /// [`KeyError`]; keys that are there but do not load are an error, never replaced.
    pub fn ensure<R: RngCore + CryptoRng>(
        folder: &Path,
        rng: &mut R,
        mut progress: impl FnMut(SetupStep),
    ) -> Result<Self, KeyError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        let lock_path = folder.join(LOCK_FILE);
        let lock = fs::File::create(&lock_path).map_err(io_error(&lock_path))?;
        lock.lock().map_err(io_error(&lock_path))?;
        let there = |name| folder.join(name).exists();
        match (there(PROVING_KEY_FILE), there(VERIFYING_KEY_FILE)) {
            (true, true) => {
                progress(SetupStep::Loading);
                Self::load(folder)
            }
            (false, true) => Err(KeyError::ProvingKeyMissing),
            // A proving key alone is what a crash between the two writes leaves: nobody has relied on it yet.
            (_, false) => {
                progress(SetupStep::Generating {
                    constraints: CONSTRAINTS.len(),
                });
                let keys = Self::setup(rng)?;
                progress(SetupStep::Writing);
                keys.write(folder)?;
                Ok(keys)
            }
        }
    }
}

/// Hands the recorded constraints to arkworks.
struct SetupCircuit;

impl ConstraintSynthesizer<Fr> for SetupCircuit {
    fn generate_constraints(self, cs: ConstraintSystemRef<Fr>) -> Result<(), SynthesisError> {
        let chunk = padding();
        let variables = assign(public(&chunk.inputs()), &ChunkAssignment::from(&chunk));
        let inputs = CONSTRAINTS.inputs();
        for (i, value) in variables.iter().enumerate().skip(1) {
            if i < inputs {
                let _ = cs.new_input_variable(|| Ok(*value))?;
            } else {
                let _ = cs.new_witness_variable(|| Ok(*value))?;
            }
        }
        let combination = |terms: &Terms| {
            let terms = terms.iter().map(|&(coefficient, variable)| {
                let variable = match variable {
                    0 => Variable::One,
                    i if i < inputs => Variable::instance(i),
                    i => Variable::witness(i - inputs),
                };
                (coefficient, variable)
            });
            LinearCombination(terms.collect())
        };
        let [a, b, c] = CONSTRAINTS.matrices.as_slice() else {
            return Err(SynthesisError::AssignmentMissing);
        };
        for ((a, b), c) in a.iter().zip(b).zip(c) {
            cs.enforce_r1cs_constraint(|| combination(a), || combination(b), || combination(c))?;
        }
        Ok(())
    }
}

fn payload(
    key: &impl ark_serialize::CanonicalSerialize,
    compressed: bool,
) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    if compressed {
        key.serialize_compressed(&mut bytes)
    } else {
        key.serialize_uncompressed(&mut bytes)
    }
    .map_err(|_| KeyError::Malformed("the key cannot be encoded"))?;
    Ok(bytes)
}

fn frame(kind: u8, label: &str, payload: &[u8]) -> Result<Vec<u8>, KeyError> {
    let label_len =
        u16::try_from(label.len()).map_err(|_| KeyError::Malformed("the label is too long"))?;
    let mut bytes = Vec::with_capacity(payload.len() + MAX_LABEL_BYTES);
    bytes.extend(MAGIC);
    bytes.push(kind);
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend(CIRCUIT_VERSION.to_le_bytes());
    bytes.extend(label_len.to_le_bytes());
    bytes.extend(label.as_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(Sha256::digest(payload));
    bytes.extend(payload);
    Ok(bytes)
}

/// The label and the payload, after all checks that need no curve arithmetic.
fn unframe(kind: u8, mut bytes: &[u8]) -> Result<(String, &[u8]), KeyError> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], KeyError> {
        let (head, tail) = bytes
            .split_first_chunk::<N>()
            .ok_or(KeyError::Malformed("the file ends early"))?;
        *bytes = tail;
        Ok(*head)
    }
    if take(&mut bytes)? != MAGIC {
        return Err(KeyError::Malformed("it does not start like a key file"));
    }
    if take(&mut bytes)? != [kind] {
        return Err(KeyError::Malformed("it is the other kind of key"));
    }
    if u16::from_le_bytes(take(&mut bytes)?) != FORMAT_VERSION {
        return Err(KeyError::Malformed("unknown format version"));
    }
    let found = u32::from_le_bytes(take(&mut bytes)?);
    if found != CIRCUIT_VERSION {
        return Err(KeyError::CircuitVersion { found });
    }
    let label_len = usize::from(u16::from_le_bytes(take(&mut bytes)?));
    if label_len > MAX_LABEL_BYTES {
        return Err(KeyError::Malformed("the label is too long"));
    }
    let (label, mut bytes) = bytes
        .split_at_checked(label_len)
        .ok_or(KeyError::Malformed("the file ends early"))?;
    let label = String::from_utf8(label.to_vec())
        .map_err(|_| KeyError::Malformed("the label is not text"))?;
    let payload_len = u64::from_le_bytes(take(&mut bytes)?);
    let hash: [u8; 32] = take(&mut bytes)?;
    if bytes.len() as u64 != payload_len {
        return Err(KeyError::Malformed(
            "the file ends early or goes on too long",
        ));
    }
    if <[u8; 32]>::from(Sha256::digest(bytes)) != hash {
        return Err(KeyError::Hash);
    }
    Ok((label, bytes))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> KeyError + use<> {
    let path = path.to_owned();
    move |source| KeyError::Io { path, source }
}

fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let size = fs::metadata(path).map_err(io_error(path))?.len();
    if size > MAX_KEY_FILE_BYTES {
        return Err(KeyError::Malformed("the file is too large"));
    }
    fs::read(path).map_err(io_error(path))
}

/// Writes a file beside `path`, syncs it and renames it into place.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let beside = path.with_extension("partial");
    let mut file = fs::File::create(&beside).map_err(io_error(&beside))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io_error(&beside))?;
    fs::rename(&beside, path).map_err(io_error(path))?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io_error(folder))?;
    }
    Ok(())
}
