//! The administrator's way into a running operator: a Unix socket in the data folder, for this user and root
//! only. No port is open for it, and what is not in [`Request`] can't be asked for.
//!
//! ```text
//! drawbridge-operator CMD --one line of JSON--> admin.sock --> the loop (run/administer.rs)
//!                         <--{"ok": ...} or {"error": "..."}--'
//! ```
//!
//! One request a connection. Connections, sizes and times are bounded. `status` is answered even while the loop
//! is busy, with what it has shown last.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufRead as _, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::UnixStream as BlockingStream,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use crate::status::Status;

/// The socket's name in the data folder.
pub const SOCKET: &str = "admin.sock";
/// Longest request in bytes, with its line end.
pub const MAX_REQUEST_BYTES: u64 = 64 * 1_024;
/// Longest reply in bytes that a client reads.
pub const MAX_REPLY_BYTES: u64 = 16 * 1_024 * 1_024;
/// Connections served at once; others wait.
const MAX_CONNECTIONS: usize = 4;
/// Requests that wait for the loop.
const MAX_WAITING: usize = MAX_CONNECTIONS;
/// How long a client may take to say what it wants, and to take the reply.
const TALK_TIME: Duration = Duration::from_secs(5);
/// How long the loop may take.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long the loop may take for a status, before the last one shown is given.
const STATUS_TIME: Duration = Duration::from_secs(1);
/// How long a client waits: longer than the server ever takes.
const CLIENT_TIME: Duration = Duration::from_secs(20);
/// Pause after a connection that can't be taken, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Longest path that fits into a socket's address (`sun_path` has 108 bytes, one of them ends it).
const MAX_SOCKET_PATH: usize = 107;

/// What an administrator can ask of a running operator.
// A variant without fields is written with braces: serde checks unknown fields in those only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What it is doing: [`Status`].
    Status {},
    /// Accounts of the own ledger from an index on: [`crate::export::Page`].
    Ledger {
        /// The first index.
        from: usize,
    },
    /// Stop signing until it is resumed, also over restarts.
    Pause {
        /// Why; operators' and coordinators' status pages show it.
        reason: String,
    },
    /// Sign again.
    Resume {},
    /// Take back an alarm that somebody has looked at (S14).
    ClearAlarm {
        /// What was found; it goes into the log.
        reason: String,
    },
    /// The policy in force: [`crate::policy::Shown`].
    Policy {},
    /// What waits for a decision: [`crate::decisions::Listing`].
    Pending {},
    /// Let an operation that waits be signed.
    Approve {
        /// Its id.
        operation: String,
    },
    /// Sign no batch with this operation.
    Reject {
        /// Its id.
        operation: String,
    },
    /// Begin a refresh of all shares, or take part in it: [`crate::refresh::Begun`].
    Refresh {
        /// Give an attempt up that has not led to a certificate, and begin another.
        anew: bool,
    },
    /// Begin the repair of this operator's lost share.
    Repair {},
    /// Whom an approval would be for: [`crate::repair::Candidate`].
    RepairCandidate {
        /// An operator's name in the roster, or its key.
        operator: String,
    },
    /// Approve that an operator's share is repaired: [`crate::repair::Candidate`].
    RepairApprove {
        /// The identity key that gets the share.
        key: String,
        /// The epoch at which the administrator has looked at it.
        epoch: u32,
    },
}

impl Request {
    /// Whether it changes nothing. What changes something is logged.
    fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Status {}
                | Self::Ledger { .. }
                | Self::Policy {}
                | Self::Pending {}
                | Self::RepairCandidate { .. }
        )
    }
}

/// What comes back: a value, or a reason for people.
pub type Outcome = Result<Value, String>;

/// A request on its way to the loop, and where the outcome goes.
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Outcome>,
}

/// The line that goes back.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Ok(Value),
    Error(String),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on it.
    #[error("another process answers on {0}: two operators must not share a data folder")]
    Answers(PathBuf),
    /// There is something else of that name.
    #[error("{0} is there and is no socket; move it away")]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a running operator has not answered.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No socket, or nobody behind it.
    #[error("no operator is running on {0}: start it with 'drawbridge-operator run'")]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error("{0} belongs to another user: run this as the operator's user or as root")]
    Denied(PathBuf),
    /// No reply in time.
    #[error("the operator on {0} has not answered within {limit} s", limit = CLIENT_TIME.as_secs())]
    Silent(PathBuf),
    /// The connection broke.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No reply as this version writes them.
    #[error("the operator's reply can't be read; is it another version?")]
    Reply,
    /// The operator says no.
    #[error("{0}")]
    Refused(String),
}

/// The socket; removed when dropped.
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Opens the socket in `folder`, which is private, and serves it until the runtime ends. A socket that an earlier
/// run left behind is removed if nobody answers on it.
///
/// # Errors
/// [`ListenError`].
pub fn listen(
    folder: &Path,
    status: watch::Receiver<Status>,
) -> Result<(Socket, mpsc::Receiver<Asked>), ListenError> {
    let path = folder.join(SOCKET);
    let io = |source| ListenError::Io {
        path: path.clone(),
        source,
    };
    remove_stale(&path)?;
    let (short, _folder) = addressable(&path).map_err(io)?;
    let listener = UnixListener::bind(short).map_err(io)?;
    let socket = Socket(path.clone());
    fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(io)?;
    let (asks, asked) = mpsc::channel(MAX_WAITING);
    tokio::spawn(serve(listener, asks, status));
    Ok((socket, asked))
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |source| ListenError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let (short, _folder) = addressable(path).map_err(io)?;
    match BlockingStream::connect(short) {
        Ok(_) => Err(ListenError::Answers(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// The same socket under a path that fits into an address. A long one goes by the descriptor of its folder,
/// which must stay open meanwhile.
fn addressable(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok((path.to_owned(), None));
    }
    let folder = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let name = path.file_name().unwrap_or_default();
    Ok((Path::new(&short).join(name), Some(folder)))
}

async fn serve(listener: UnixListener, asks: mpsc::Sender<Asked>, status: watch::Receiver<Status>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (asks, status) = (asks.clone(), status.clone());
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, asks, status).await {
                        tracing::debug!(%error, "an administrator's connection broke");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket takes no connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection: one request, one reply.
async fn converse(
    stream: UnixStream,
    asks: mpsc::Sender<Asked>,
    status: watch::Receiver<Status>,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.into_split();
    let outcome = if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        let mut reader = BufReader::new(reader.take(MAX_REQUEST_BYTES));
        let mut line = Vec::new();
        match timeout(TALK_TIME, reader.read_until(b'\n', &mut line)).await {
            Ok(read) => {
                read?;
                answer(&line, asks, status).await
            }
            Err(_) => Err(format!("no request within {} s", TALK_TIME.as_secs())),
        }
    } else {
        Err("only the operator's user and root may ask".to_owned())
    };
    let reply = match outcome {
        Ok(value) => Reply::Ok(value),
        Err(reason) => Reply::Error(reason),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    let written = timeout(TALK_TIME, async {
        writer.write_all(&line).await?;
        writer.shutdown().await
    });
    written.await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn answer(
    line: &[u8],
    asks: mpsc::Sender<Asked>,
    status: watch::Receiver<Status>,
) -> Outcome {
    if !line.ends_with(b"\n") {
        return Err(format!(
            "a request is one line of JSON, {MAX_REQUEST_BYTES} bytes at most"
        ));
    }
    let request: Request =
        serde_json::from_slice(line).map_err(|error| format!("no such request: {error}"))?;
    let is_status = request == Request::Status {};
    if request.only_reads() {
        tracing::debug!(?request, "the administrator asks");
    } else {
        tracing::info!(?request, "the administrator asks");
    }
    let limit = if is_status { STATUS_TIME } else { ANSWER_TIME };
    let (reply, outcome) = oneshot::channel();
    let answered = timeout(limit, async {
        asks.send(Asked { request, reply }).await.ok()?;
        outcome.await.ok()
    });
    match answered.await {
        Ok(Some(outcome)) => outcome,
        Ok(None) => Err("the operator is stopping".to_owned()),
        Err(_) if is_status => {
            serde_json::to_value(&*status.borrow()).map_err(|error| error.to_string())
        }
        Err(_) => Err(format!(
            "the operator is busy and has not answered within {} s; what was asked may still happen: look at 'status'",
            ANSWER_TIME.as_secs()
        )),
    }
}

/// Asks the operator behind `socket`. Blocks, for a bounded time.
///
/// # Errors
/// [`AdminError`]; [`AdminError::Refused`] holds the operator's own words.
pub fn ask(socket: &Path, request: &Request) -> Result<Value, AdminError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AdminError::NotRunning(socket.to_owned())
        }
        io::ErrorKind::PermissionDenied => AdminError::Denied(socket.to_owned()),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            AdminError::Silent(socket.to_owned())
        }
        _ => AdminError::Io {
            path: socket.to_owned(),
            source,
        },
    };
    let mut line = serde_json::to_vec(request).map_err(|_| AdminError::Reply)?;
    line.push(b'\n');
    let (short, _folder) = addressable(socket).map_err(io)?;
    let mut stream = BlockingStream::connect(short).map_err(io)?;
    stream.set_read_timeout(Some(CLIENT_TIME)).map_err(io)?;
    stream.set_write_timeout(Some(CLIENT_TIME)).map_err(io)?;
    stream.write_all(&line).map_err(io)?;
    let mut reply = Vec::new();
    io::BufReader::new(stream.take(MAX_REPLY_BYTES))
        .read_until(b'\n', &mut reply)
        .map_err(io)?;
    match serde_json::from_slice(&reply).map_err(|_| AdminError::Reply)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(reason) => Err(AdminError::Refused(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(height: u32) -> watch::Sender<Status> {
        watch::Sender::new(Status {
            height,
            ..Status::default()
        })
    }

    /// Asks from another thread, as another process would.
    async fn ask_beside(folder: &Path, request: Request) -> Result<Value, AdminError> {
        let socket = folder.join(SOCKET);
        tokio::task::spawn_blocking(move || ask(&socket, &request))
            .await
            .unwrap()
    }

    /// Writes bytes and reads what comes back.
    async fn say(folder: &Path, bytes: &[u8]) -> Value {
        let mut stream = UnixStream::connect(folder.join(SOCKET)).await.unwrap();
        // A server that has heard enough may hang up before all is written.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut reply = Vec::new();
        // Nor does it read what is too long; the rest of the connection is an error then.
        let _ = stream.read_to_end(&mut reply).await;
        serde_json::from_slice(&reply).unwrap()
    }

    #[tokio::test]
    async fn a_request_reaches_the_loop_and_its_outcome_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let status = shown(1);
        let (_socket, mut asked) = listen(dir.path(), status.subscribe()).unwrap();
        for outcome in [Ok(serde_json::json!({"a": 1})), Err("not now".to_owned())] {
            let (answer, ()) = tokio::join!(ask_beside(dir.path(), Request::Status {}), async {
                let ask = asked.recv().await.unwrap();
                assert_eq!(ask.request, Request::Status {});
                ask.reply.send(outcome.clone()).unwrap();
            });
            match (answer, outcome) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected),
                (Err(AdminError::Refused(reason)), Err(expected)) => assert_eq!(reason, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_busy_loop_does_not_keep_the_status_from_being_seen() {
        let status = shown(77);
        let (asks, _nobody_listens) = mpsc::channel(1);
        let line = b"{\"command\":\"status\"}\n";
        let value = answer(line, asks, status.subscribe()).await.unwrap();
        assert_eq!(value["height"], 77);
    }

    #[tokio::test]
    async fn what_is_no_request_is_answered_with_a_reason_and_reaches_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let status = shown(1);
        let (_socket, mut asked) = listen(dir.path(), status.subscribe()).unwrap();
        let too_long = vec![b' '; usize::try_from(MAX_REQUEST_BYTES).unwrap() + 10];
        for (bytes, reason) in [
            (
                b"{\"command\":\"open_sesame\"}\n".to_vec(),
                "no such request",
            ),
            (
                b"{\"command\":\"status\",\"force\":true}\n".to_vec(),
                "unknown field `force`",
            ),
            (b"\xff\xfe\n".to_vec(), "no such request"),
            (b"{\"command\":\"status\"}".to_vec(), "one line of JSON"),
            (Vec::new(), "one line of JSON"),
            (too_long, "bytes at most"),
        ] {
            let reply = say(dir.path(), &bytes).await;
            let error = reply["error"].as_str().unwrap();
            assert!(error.contains(reason), "{error}");
        }
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_socket_is_private_and_gone_after_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let (socket, _asked) = listen(dir.path(), shown(1).subscribe()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        drop(socket);
        assert!(!path.exists());
        assert!(matches!(
            ask(&path, &Request::Status {}),
            Err(AdminError::NotRunning(_))
        ));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        // As SIGKILL leaves it: bound once, and nobody behind it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_socket, _asked) = listen(dir.path(), shown(1).subscribe()).unwrap();
        assert!(matches!(
            listen(dir.path(), shown(1).subscribe()),
            Err(ListenError::Answers(_))
        ));
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(SOCKET), "something else").unwrap();
        assert!(matches!(
            listen(other.path(), shown(1).subscribe()),
            Err(ListenError::NoSocket(_))
        ));
    }

    #[tokio::test]
    async fn a_long_path_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let status = shown(5);
        let (_socket, mut asked) = listen(&deep, status.subscribe()).unwrap();
        let (answer, ()) = tokio::join!(ask_beside(&deep, Request::Status {}), async {
            let ask = asked.recv().await.unwrap();
            ask.reply.send(Ok(Value::from(9))).unwrap();
        });
        assert_eq!(answer.unwrap(), 9);
    }
}
