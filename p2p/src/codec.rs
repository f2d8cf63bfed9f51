//! Questions and answers on the wire: a length of 4 bytes, big-endian, then so many bytes. Before a question
//! stands a byte for its kind, before an answer one for its status. A length above the bound is refused before any memory is taken for
//! it, and memory grows only with what has arrived.

use std::{io, sync::Arc};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, request_response::Codec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{MAX_ASK_BYTES, MAX_OPEN_ASK_BYTES, SMALL_ASK_BYTES};

/// Unit in which memory for large questions is shared out, in bytes.
const ROOM_UNIT_BYTES: usize = 1024;
const QUESTION: u8 = 0;
const HEARTBEAT: u8 = 1;
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

/// What is asked.
#[derive(Debug)]
pub(crate) enum Question {
    /// The node's own bytes, with their share of the memory for questions if it is a large one of somebody
    /// else.
    Bytes {
        data: Vec<u8>,
        room: Option<OwnedSemaphorePermit>,
    },
    /// "Is your node there?"
    Heartbeat,
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
        let mut kind = [0];
        io.read_exact(&mut kind).await?;
        match kind {
            [QUESTION] => {}
            [HEARTBEAT] => return Ok(Question::Heartbeat),
            [other] => return Err(invalid(format!("unknown kind {other} of a question"))),
        }
        let len = read_len(io).await?;
        let room = if len > SMALL_ASK_BYTES {
            let units = u32::try_from(len.div_ceil(ROOM_UNIT_BYTES)).map_err(io::Error::other)?;
            let room = Arc::clone(&self.room).try_acquire_many_owned(units);
            Some(room.map_err(|_| io::Error::other("no room for another large question"))?)
        } else {
            None
        };
        Ok(Question::Bytes {
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
        match question {
            Question::Bytes { data, .. } => write(io, QUESTION, &data).await,
            Question::Heartbeat => io.write_all(&[HEARTBEAT]).await,
        }
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
            Ok(data) => write(io, ANSWERED, &data).await,
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

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, head: u8, data: &[u8]) -> io::Result<()> {
    if data.len() > MAX_ASK_BYTES {
        return Err(invalid(format!(
            "message of {} bytes is too large to send",
            data.len()
        )));
    }
    let len = u32::try_from(data.len()).map_err(io::Error::other)?;
    io.write_all(&[head]).await?;
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

    fn bytes(question: io::Result<Question>) -> (Vec<u8>, Option<OwnedSemaphorePermit>) {
        match question.unwrap() {
            Question::Bytes { data, room } => (data, room),
            Question::Heartbeat => panic!("a heartbeat"),
        }
    }

    #[test]
    fn questions_and_answers_read_back() {
        let mut codec = AskCodec::default();
        let mut wire = Vec::new();
        block_on(codec.write_request(&NAME, &mut wire, Question::Heartbeat)).unwrap();
        let heartbeat = question(&wire, &mut codec).unwrap();
        assert!(matches!(heartbeat, Question::Heartbeat));
        for data in [vec![], vec![7; 100_000]] {
            let mut wire = Vec::new();
            let sent = Question::Bytes {
                data: data.clone(),
                room: None,
            };
            block_on(codec.write_request(&NAME, &mut wire, sent)).unwrap();
            assert_eq!(bytes(question(&wire, &mut codec)).0, data);
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
        let head = [&[QUESTION], claimed.to_be_bytes().as_slice()].concat();
        let error = question(&head, &mut codec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let mut wire = Vec::new();
        let sent = Question::Bytes {
            data: vec![0; MAX_ASK_BYTES + 1],
            room: None,
        };
        block_on(codec.write_request(&NAME, &mut wire, sent)).unwrap_err();
        assert_eq!(wire, [0; 0]);
    }

    #[test]
    fn a_truncated_message_and_an_unknown_kind_or_status_are_refused() {
        let mut codec = AskCodec::default();
        let error = question(&[QUESTION, 0, 0, 0, 9, 1, 2, 3], &mut codec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = question(&[99, 0, 0, 0, 0], &mut codec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        block_on(codec.read_response(&NAME, &mut Cursor::new(&[99]))).unwrap_err();
    }

    #[test]
    fn large_questions_share_bounded_memory_and_small_ones_pass_beside_them() {
        let mut codec = AskCodec::default();
        let mut large = vec![QUESTION];
        large.extend(u32::try_from(MAX_ASK_BYTES).unwrap().to_be_bytes());
        large.extend(vec![0; MAX_ASK_BYTES]);
        let fit = MAX_OPEN_ASK_BYTES / MAX_ASK_BYTES;
        let mut held: Vec<_> = (0..fit)
            .map(|_| bytes(question(&large, &mut codec)).1)
            .collect();
        question(&large, &mut codec).unwrap_err();
        question(&[QUESTION, 0, 0, 0, 1, 5], &mut codec).unwrap();
        held.pop();
        question(&large, &mut codec).unwrap();
    }
}
