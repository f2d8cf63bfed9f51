//! The wire format of questions and answers on plain bytes, for the fuzz targets.

use std::io;

use futures::{executor::block_on, io::Cursor};
use libp2p::{StreamProtocol, request_response::Codec as _};

pub use crate::Refusal;
use crate::codec::{AskCodec, Question};

const NAME: StreamProtocol = StreamProtocol::new("/ask");

/// What a peer asks by sending these bytes; `None` for a heartbeat, which has no content.
///
/// # Errors
/// Bytes that are no question.
pub fn read_question(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let read = block_on(AskCodec::default().read_request(&NAME, &mut Cursor::new(bytes)));
    read.map(|question| match question {
        Question::Bytes { data, .. } => Some(data),
        Question::Heartbeat => None,
    })
}

/// What a peer answers by sending these bytes.
///
/// # Errors
/// Bytes that are no answer.
pub fn read_answer(bytes: &[u8]) -> io::Result<Result<Vec<u8>, Refusal>> {
    block_on(AskCodec::default().read_response(&NAME, &mut Cursor::new(bytes)))
}

/// The bytes of a question.
///
/// # Errors
/// A question above the bound.
pub fn write_question(data: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let question = Question::Bytes { data, room: None };
    block_on(AskCodec::default().write_request(&NAME, &mut bytes, question))?;
    Ok(bytes)
}

/// The bytes of an answer.
///
/// # Errors
/// An answer above the bound.
pub fn write_answer(answer: Result<Vec<u8>, Refusal>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    block_on(AskCodec::default().write_response(&NAME, &mut bytes, answer))?;
    Ok(bytes)
}
