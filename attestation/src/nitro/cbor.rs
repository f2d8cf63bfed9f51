//! Maps and arrays entry by entry. Both encodings of their length occur in documents of different years; strings
//! have definite lengths only.

use minicbor::{Decoder, data::Type};

use crate::VerifyError;

/// What the decoder said in detail does not matter to anybody: a document comes from a program.
pub(super) fn bad(_: minicbor::decode::Error) -> VerifyError {
    VerifyError::Encoding("the CBOR is cut short or of another shape")
}

/// Reads a map; `entry` reads a key and its value.
pub(super) fn map<'b>(
    decoder: &mut Decoder<'b>,
    entry: impl FnMut(&mut Decoder<'b>) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let length = decoder.map().map_err(bad)?;
    entries(decoder, length, entry)
}

/// Reads an array; `entry` reads an element.
pub(super) fn array<'b>(
    decoder: &mut Decoder<'b>,
    entry: impl FnMut(&mut Decoder<'b>) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let length = decoder.array().map_err(bad)?;
    entries(decoder, length, entry)
}

/// A length that lies ends at the end of the input: every entry takes a byte or fails.
fn entries<'b>(
    decoder: &mut Decoder<'b>,
    length: Option<u64>,
    mut entry: impl FnMut(&mut Decoder<'b>) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    if let Some(length) = length {
        for _ in 0..length {
            entry(decoder)?;
        }
        return Ok(());
    }
    while decoder.datatype().map_err(bad)? != Type::Break {
        entry(decoder)?;
    }
    decoder.set_position(decoder.position().saturating_add(1));
    Ok(())
}

/// Nothing may follow what was read: one document, one meaning.
pub(super) fn end(decoder: &Decoder) -> Result<(), VerifyError> {
    if decoder.position() == decoder.input().len() {
        Ok(())
    } else {
        Err(VerifyError::Trailing)
    }
}
