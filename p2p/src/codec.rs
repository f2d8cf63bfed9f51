//! Questions and answers on the wire: a length of 4 bytes, big-endian, then so many bytes; an answer has
//! one byte of status before it. A length above the bound is refused before any memory is taken for
//! it, and memory grows only with what has arrived.

use std::{io, sync::Arc};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, request_response::Codec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{MAX_ASK_BYTES, MAX_OPEN_ASK_BYTES, SMALL_ASK_BYTES};

/// Unit in which memory for large questions is shared out, in bytes.
const ROOM_UNIT_BYTES: usize = 1024;
const ANSWERED: u8 = 0;

/// Why a peer gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// We ask more often than it allows.
    #[error("too many questions in a short time")]
    TooFast,
    /// It has too much to do already.
    #[error("the peer is busy")]
    Busy,
    /// The peer has nothing to say to this question.
    #[error("the peer gave no answer")]
    NoAnswer,
    /// The answer is above [`MAX_ASK_BYTES`].
    #[error("the answer is too large")]
    AnswerTooLarge,
}

impl Refusal {
    const ALL: [(u8, Self); 4] = [
        (1, Self::TooFast),
        (2, Self::Busy),
        (3, Self::NoAnswer),
        (4, Self::AnswerTooLarge),
    ];

    fn to_byte(self) -> u8 {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == self)
            .map_or(u8::MAX, |(byte, _)| *byte)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == byte)
            .map(|(_, refusal)| *refusal)
    }
}

/// A question, with its share of the memory for questions if it is a large one of somebody else.
#[derive(Debug)]
pub(crate) struct Question {
    pub data: Vec<u8>,
    pub room: Option<OwnedSemaphorePermit>,
}

pub(crate) type Answer = Result<Vec<u8>, Refusal>;

#[derive(Clone, Debug)]
pub(crate) struct AskCodec {
    room: Arc<Semaphore>,
}

impl Default for AskCodec {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MAX_OPEN_ASK_BYTES / ROOM_UNIT_BYTES)),
        }
    }
}

impl Codec for AskCodec {
    type Protocol = StreamProtocol;
    type Request = Question;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Question>
    where
        T: AsyncRead + Unpin + Send,
    {
        let len = read_len(io).await?;
        let room = if len > SMALL_ASK_BYTES {
            let units = u32::try_from(len.div_ceil(ROOM_UNIT_BYTES)).map_err(io::Error::other)?;
            let room = Arc::clone(&self.room).try_acquire_many_owned(units);
            Some(room.map_err(|_| io::Error::other("no room for another large question"))?)
        } else {
            None
        };
        Ok(Question {
            data: read_body(io, len).await?,
            room,
        })
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut status = [0];
        io.read_exact(&mut status).await?;
        let [status] = status;
        if status == ANSWERED {
            let len = read_len(io).await?;
            return Ok(Ok(read_body(io, len).await?));
        }
        match Refusal::from_byte(status) {
            Some(refusal) => Ok(Err(refusal)),
            None => Err(invalid(format!("unknown status {status} of an answer"))),
        }
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        question: Question,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &question.data).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        answer: Answer,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match answer {
            Ok(data) => {
                io.write_all(&[ANSWERED]).await?;
                write(io, &data).await
            }
            Err(refusal) => io.write_all(&[refusal.to_byte()]).await,
        }
    }
}

async fn read_len<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<usize> {
    let mut len = [0; 4];
    io.read_exact(&mut len).await?;
    let len = usize::try_from(u32::from_be_bytes(len)).map_err(io::Error::other)?;
    if len > MAX_ASK_BYTES {
        return Err(invalid(format!(
            "message of {len} bytes, the bound is {MAX_ASK_BYTES}"
        )));
    }
    Ok(len)
}

async fn read_body<T: AsyncRead + Unpin + Send>(io: &mut T, len: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    io.take(u64::try_from(len).map_err(io::Error::other)?)
        .read_to_end(&mut data)
        .await?;
    if data.len() == len {
        Ok(data)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, data: &[u8]) -> io::Result<()> {
    if data.len() > MAX_ASK_BYTES {
        return Err(invalid(format!(
            "message of {} bytes is too large to send",
            data.len()
        )));
    }
    let len = u32::try_from(data.len()).map_err(io::Error::other)?;
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(data).await
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    const NAME: StreamProtocol = StreamProtocol::new("/ask");

    fn question(bytes: &[u8], codec: &mut AskCodec) -> io::Result<Question> {
        block_on(codec.read_request(&NAME, &mut Cursor::new(bytes)))
    }

    #[test]
    fn questions_and_answers_read_back() {
        let mut codec = AskCodec::default();
        for data in [vec![], vec![7; 100_000]] {
            let mut wire = Vec::new();
            let sent = Question {
                data: data.clone(),
                room: None,
            };
            block_on(codec.write_request(&NAME, &mut wire, sent)).unwrap();
            assert_eq!(question(&wire, &mut codec).unwrap().data, data);
            let refusals = Refusal::ALL.map(|(_, refusal)| Err(refusal));
            for answer in refusals.into_iter().chain([Ok(data.clone())]) {
                let mut wire = Vec::new();
                block_on(codec.write_response(&NAME, &mut wire, answer.clone())).unwrap();
                let read = block_on(codec.read_response(&NAME, &mut Cursor::new(&wire)));
                assert_eq!(read.unwrap(), answer);
            }
        }
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_its_bytes_are_read() {
        let mut codec = AskCodec::default();
        let claimed = u32::try_from(MAX_ASK_BYTES).unwrap() + 1;
        let error = question(&claimed.to_be_bytes(), &mut codec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let mut wire = Vec::new();
        let sent = Question {
            data: vec![0; MAX_ASK_BYTES + 1],
            room: None,
        };
        block_on(codec.write_request(&NAME, &mut wire, sent)).unwrap_err();
        assert_eq!(wire, [0; 0]);
    }

    #[test]
    fn a_truncated_message_and_an_unknown_status_are_refused() {
        let mut codec = AskCodec::default();
        let error = question(&[0, 0, 0, 9, 1, 2, 3], &mut codec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        block_on(codec.read_response(&NAME, &mut Cursor::new(&[99]))).unwrap_err();
    }

    #[test]
    fn large_questions_share_bounded_memory_and_small_ones_pass_beside_them() {
        let mut codec = AskCodec::default();
        let mut large = u32::try_from(MAX_ASK_BYTES).unwrap().to_be_bytes().to_vec();
        large.extend(vec![0; MAX_ASK_BYTES]);
        let fit = MAX_OPEN_ASK_BYTES / MAX_ASK_BYTES;
        let mut held: Vec<_> = (0..fit)
            .map(|_| question(&large, &mut codec).unwrap().room)
            .collect();
        question(&large, &mut codec).unwrap_err();
        question(&[0, 0, 0, 1, 5], &mut codec).unwrap();
        held.pop();
        question(&large, &mut codec).unwrap();
    }
}
