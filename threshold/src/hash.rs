//! Tagged SHA-256 in BIP-340's form, so that no two uses of a hash here can meet.

use sha2::{Digest as _, Sha256};

/// `SHA256(SHA256(tag) ‖ SHA256(tag) ‖ parts...)` (BIP-340, "Design"). Parts are of fixed length or
/// carry their own length: the callers see to it that no two different inputs concatenate alike.
pub(crate) fn tagged<'a>(tag: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let tag = Sha256::digest(tag.as_bytes());
    let mut hasher = Sha256::new();
    hasher.update(tag);
    hasher.update(tag);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// 32 bytes for serde: hex where people read it, plain bytes on the wire.
pub(crate) mod bytes32 {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.serialize_str(&hex::encode(bytes))
        } else {
            bytes.serialize(to)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        if from.is_human_readable() {
            let text = String::deserialize(from)?;
            let mut bytes = [0; 32];
            hex::decode_to_slice(&text, &mut bytes)
                .map_err(|_| D::Error::custom("not 64 hex digits"))?;
            Ok(bytes)
        } else {
            <[u8; 32]>::deserialize(from)
        }
    }
}
