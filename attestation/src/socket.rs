//! Documents from a helper beside the node, over a Unix socket: the helper speaks to the platform (in an enclave,
//! to `/dev/nsm`), the node does not have to know how.
//!
//! ```text
//! node:   u32 (65), version (1), public key (32), nonce (32)
//! helper: u32 (length), document             length 0: it has none
//! ```
//!
//! Lengths are big-endian. One request a connection.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{Attest, Claim, MAX_DOCUMENT_BYTES};

/// Version of what is spoken over the socket.
const VERSION: u8 = 1;
/// A request without its length.
const REQUEST_BYTES: usize = 65;
/// Longest time that one question may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// Nobody listens there.
    #[error("no attestation helper at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The helper went away, or took too long.
    #[error("the attestation helper did not answer")]
    Io(#[from] std::io::Error),
    /// The other side speaks something else.
    #[error("not a request or an answer of an attestation helper")]
    Format,
    /// More than any document has.
    #[error(
        "the attestation helper's document has {0} bytes; at most {MAX_DOCUMENT_BYTES} are taken"
    )]
    TooLarge(usize),
    /// The helper has none.
    #[error("the attestation helper has no document")]
    NoDocument,
}

/// Asks a helper.
#[derive(Clone, Debug)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// The helper that listens at `path`. It is looked for at each question.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Attest for Socket {
    fn attest(&self, claim: &Claim) -> Result<Vec<u8>, AttestError> {
        let stream = UnixStream::connect(&self.path).map_err(|source| AttestError::Connect {
            path: self.path.clone(),
            source,
        })?;
        let mut line = Line::new(stream);
        let version = [VERSION];
        let request = [version.as_slice(), &claim.key, &claim.nonce].concat();
        line.send(&request)?;
        let length = line.length()?;
        if length > MAX_DOCUMENT_BYTES {
            return Err(AttestError::TooLarge(length));
        }
        if length == 0 {
            return Err(AttestError::NoDocument);
        }
        let mut document = vec![0; length];
        line.read(&mut document)?;
        Ok(document)
    }
}

/// The helper's side: answers the one request that comes over `stream` with what `source` gives.
///
/// # Errors
/// [`AttestError`] when the request can't be read, `source` has no document (the other side has been told), or the
/// answer can't be sent.
pub fn answer(stream: UnixStream, source: &dyn Attest) -> Result<(), AttestError> {
    let mut line = Line::new(stream);
    if line.length()? != REQUEST_BYTES {
        return Err(AttestError::Format);
    }
    let (mut version, mut key, mut nonce) = ([0; 1], [0; 32], [0; 32]);
    line.read(&mut version)?;
    line.read(&mut key)?;
    line.read(&mut nonce)?;
    if version != [VERSION] {
        return Err(AttestError::Format);
    }
    match source.attest(&Claim { key, nonce }) {
        Ok(document) => line.send(&document),
        Err(error) => {
            line.send(&[])?;
            Err(error)
        }
    }
}

/// A connection with an end: neither side can hold the other up for longer.
struct Line {
    stream: UnixStream,
    end: Instant,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        let end = Instant::now() + TIMEOUT;
        Self { stream, end }
    }

    fn left(&self) -> Result<Duration, AttestError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AttestError::Io(ErrorKind::TimedOut.into()));
        }
        Ok(left)
    }

    fn send(&mut self, body: &[u8]) -> Result<(), AttestError> {
        let length = u32::try_from(body.len()).map_err(|_| AttestError::TooLarge(body.len()))?;
        let frame = [length.to_be_bytes().as_slice(), body].concat();
        self.stream.set_write_timeout(Some(self.left()?))?;
        Ok(self.stream.write_all(&frame)?)
    }

    fn length(&mut self) -> Result<usize, AttestError> {
        let mut length = [0; 4];
        self.read(&mut length)?;
        usize::try_from(u32::from_be_bytes(length)).map_err(|_| AttestError::Format)
    }

    fn read(&mut self, mut into: &mut [u8]) -> Result<(), AttestError> {
        while !into.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(into) {
                Ok(0) => return Err(AttestError::Io(ErrorKind::UnexpectedEof.into())),
                Ok(count) => into = into.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
