//! Table descriptors and the encoding of values: one byte of format version, then postcard.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use crate::MAX_VALUE_BYTES;

/// The name of a column family: what [`crate::Schema`] lists. Comes from [`Table::name`],
/// [`crate::QueueDef::name`] or [`crate::LogDef::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnName {
    pub(crate) prefix: &'static str,
    pub(crate) name: &'static str,
}

impl std::fmt::Display for ColumnName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.prefix, self.name)
    }
}

/// A table's description, meant to be a constant:
/// `pub const BATCHES: Table<u64, BatchRecord> = Table::new("batches", 1);`
pub struct Table<K, V> {
    prefix: &'static str,
    name: &'static str,
    version: u8,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Table<K, V> {
    /// A table whose rows carry `version`. Raise it when the encoding of `V` changes: rows of
    /// another version are then refused instead of misread.
    pub const fn new(name: &'static str, version: u8) -> Self {
        Self::within("table.", name, version)
    }

    pub(crate) const fn within(prefix: &'static str, name: &'static str, version: u8) -> Self {
        Self {
            prefix,
            name,
            version,
            types: PhantomData,
        }
    }

    /// The table's name, for [`crate::Schema`].
    pub const fn name(&self) -> ColumnName {
        ColumnName {
            prefix: self.prefix,
            name: self.name,
        }
    }

    /// A row's value as it is stored.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn encode(&self, value: &V) -> Result<Vec<u8>, EncodeError>
    where
        V: Serialize,
    {
        encode_value(self.version, value)
    }

    /// The value of a stored row.
    ///
    /// # Errors
    /// [`DecodeError`] for a row of another format version, or a damaged one.
    pub fn decode(&self, bytes: &[u8]) -> Result<V, DecodeError>
    where
        V: DeserializeOwned,
    {
        decode_value(self.version, bytes)
    }

    pub(crate) fn version(&self) -> u8 {
        self.version
    }
}

/// Why a value could not be encoded: always a fault in our own code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The type cannot be written as postcard.
    #[error("value does not encode")]
    Postcard(#[source] postcard::Error),
    /// More than [`MAX_VALUE_BYTES`].
    #[error("value has {0} bytes, the bound is {MAX_VALUE_BYTES}")]
    TooLarge(usize),
}

/// Why stored bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another format version: written by another release.
    #[error("value has format version {found}, this program reads {expected}")]
    Version {
        /// The byte that was found.
        found: u8,
        /// The version of the table's description.
        expected: u8,
    },
    /// Not an encoding of the value's type.
    #[error("value does not decode")]
    Postcard(#[source] postcard::Error),
    /// Bytes were left after the value, or there were none.
    #[error("value is empty or has bytes after its end")]
    Length,
    /// The key is not one of the table's key type.
    #[error("key has a wrong length")]
    Key,
}

pub(crate) fn encode_value<V: Serialize>(version: u8, value: &V) -> Result<Vec<u8>, EncodeError> {
    let bytes = postcard::to_extend(value, vec![version]).map_err(EncodeError::Postcard)?;
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(EncodeError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

pub(crate) fn decode_value<V: DeserializeOwned>(
    version: u8,
    bytes: &[u8],
) -> Result<V, DecodeError> {
    let (&found, body) = bytes.split_first().ok_or(DecodeError::Length)?;
    if found != version {
        return Err(DecodeError::Version {
            found,
            expected: version,
        });
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(DecodeError::Postcard)?;
    if !rest.is_empty() {
        return Err(DecodeError::Length);
    }
    Ok(value)
}
