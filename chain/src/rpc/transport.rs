//! One HTTP request to bitcoind and its bounded reply.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::sync::RwLock;

use super::settings::Login;
use super::{Request, RpcError, RpcSettings, SettingsError, code};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a reply, beyond what the call itself waits for. A node that flushes its caches
/// can be silent for a while.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle connections are dropped before bitcoind drops them (`rpcservertimeout`, 30 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A block has 4,000,000 weight units, so at most as many bytes, and twice that in hex.
const MAX_REPLY_BYTES: usize = 9 << 20;
/// `__cookie__:` and 64 hex digits, with room to spare.
const MAX_COOKIE_BYTES: u64 = 1024;
/// Longest wait that a caller can ask the node for.
pub(super) const MAX_WAIT_MILLIS: u64 = 60_000;
/// A refusal's words go into logs and to users.
const MAX_MESSAGE_CHARS: usize = 500;

/// A client of one bitcoind. Clones share connections and credentials.
#[derive(Clone)]
pub struct BitcoinRpc {
    shared: Arc<Shared>,
    url: Url,
}

struct Shared {
    client: Client,
    login: Login,
    /// The last cookie read; a new one is read when the node refuses it.
    cookie: RwLock<Option<(String, String)>>,
    next_id: AtomicU64,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Option<ReplyError>,
}

#[derive(Deserialize)]
struct ReplyError {
    code: i64,
    message: String,
}

impl BitcoinRpc {
    /// A client for the node of `settings`. Does not connect yet.
    pub fn new(settings: &RpcSettings) -> Result<Self, SettingsError> {
        let (url, login) = settings.checked()?;
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()
            .map_err(SettingsError::Client)?;
        let shared = Shared {
            client,
            login,
            cookie: RwLock::new(None),
            next_id: AtomicU64::new(1),
        };
        Ok(Self {
            shared: Arc::new(shared),
            url,
        })
    }

    /// The same node, with calls going to its wallet `name`.
    #[must_use]
    pub fn with_wallet(&self, name: &str) -> Self {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().push("wallet").push(name);
        }
        Self {
            shared: Arc::clone(&self.shared),
            url,
        }
    }

    /// Sends one call and reads its reply, which may take `wait` longer than usual.
    pub(super) async fn call_with<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &[Value],
        wait: Duration,
    ) -> Result<T, RpcError> {
        let timeout = REPLY_TIMEOUT.saturating_add(wait);
        let mut first = true;
        loop {
            let (user, password) = self.credentials(!first).await?;
            let response = self
                .shared
                .client
                .post(self.url.clone())
                .basic_auth(user, Some(password))
                .json(&Request {
                    jsonrpc: "1.0",
                    id: self.shared.next_id.fetch_add(1, Ordering::Relaxed),
                    method,
                    params,
                })
                .timeout(timeout)
                .send()
                .await
                .map_err(|error| self.unreachable(error))?;
            let status = response.status();
            match status {
                // A restarted node has written a new cookie: read it and ask once more.
                StatusCode::UNAUTHORIZED
                    if first && matches!(self.shared.login, Login::Cookie(_)) =>
                {
                    first = false;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(RpcError::Unauthorized {
                        url: self.url.to_string(),
                        status: status.as_u16(),
                    });
                }
                StatusCode::SERVICE_UNAVAILABLE => {
                    return Err(RpcError::Overloaded {
                        url: self.url.to_string(),
                    });
                }
                // Refusals come with status 404 or 500 and a body that says more.
                _ => {
                    let body = self.read_bounded(method, response).await?;
                    return read_reply(method, status.as_u16(), &body);
                }
            }
        }
    }

    async fn credentials(&self, refused: bool) -> Result<(String, String), RpcError> {
        let path = match &self.shared.login {
            Login::Password { user, password } => return Ok((user.clone(), password.clone())),
            Login::Cookie(path) => path,
        };
        if !refused && let Some(cookie) = self.shared.cookie.read().await.clone() {
            return Ok(cookie);
        }
        let mut kept = self.shared.cookie.write().await;
        // Forget the old one first: if the file is gone, the next call must look again.
        *kept = None;
        let cookie = read_cookie(path).await?;
        *kept = Some(cookie.clone());
        Ok(cookie)
    }

    async fn read_bounded(
        &self,
        method: &str,
        mut response: reqwest::Response,
    ) -> Result<Vec<u8>, RpcError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(error))?
        {
            if body.len().saturating_add(chunk.len()) > MAX_REPLY_BYTES {
                return Err(RpcError::TooLarge {
                    method: method.to_owned(),
                    limit: MAX_REPLY_BYTES,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: reqwest::Error) -> RpcError {
        RpcError::Unreachable {
            url: self.url.to_string(),
            source: error.without_url(),
        }
    }
}

impl fmt::Debug for BitcoinRpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BitcoinRpc({})", self.url)
    }
}

async fn read_cookie(path: &Path) -> Result<(String, String), RpcError> {
    let unreadable = |source| RpcError::Cookie {
        path: path.display().to_string(),
        source,
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_COOKIE_BYTES)
        .read_to_string(&mut text)
        .await
        .map_err(unreadable)?;
    match text.trim_end().split_once(':') {
        Some((user, password)) => Ok((user.to_owned(), password.to_owned())),
        None => Err(RpcError::CookieFormat {
            path: path.display().to_string(),
        }),
    }
}

/// Reads the body of an answer to `method` that came with an HTTP status.
///
/// # Errors
/// bitcoind's refusal, or [`RpcError::BadReply`].
pub fn read_reply<T: DeserializeOwned>(
    method: &str,
    status: u16,
    body: &[u8],
) -> Result<T, RpcError> {
    let reply: Reply = serde_json::from_slice(body)
        .map_err(|error| RpcError::bad_reply(method, format!("{error} (HTTP {status})")))?;
    if let Some(error) = reply.error {
        let message: String = error.message.chars().take(MAX_MESSAGE_CHARS).collect();
        return Err(match error.code {
            code::IN_WARMUP => RpcError::WarmingUp { message },
            code => RpcError::Rpc {
                method: method.to_owned(),
                code,
                message,
            },
        });
    }
    serde_json::from_value(reply.result).map_err(|error| RpcError::bad_reply(method, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code_and_words() {
        let body =
            br#"{"result":null,"error":{"code":-8,"message":"Block height out of range"},"id":1}"#;
        let error = read_reply::<String>("getblockhash", 500, body).unwrap_err();
        assert_eq!(error.code(), Some(code::INVALID_PARAMETER));
        assert!(!error.is_transient());
        assert_eq!(
            error.to_string(),
            "getblockhash: Block height out of range (code -8)"
        );
    }

    #[test]
    fn warming_up_is_transient() {
        let body =
            br#"{"result":null,"error":{"code":-28,"message":"Loading block index"},"id":1}"#;
        let error = read_reply::<String>("getblockhash", 500, body).unwrap_err();
        assert!(error.is_transient(), "{error}");
    }

    #[test]
    fn a_reply_that_is_not_json_rpc_is_refused() {
        for body in [&b"<html>"[..], b"[]", b"{\"result\":7}"] {
            let error = read_reply::<String>("m", 200, body).unwrap_err();
            assert!(matches!(error, RpcError::BadReply { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_cookie_without_a_colon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".cookie");
        tokio::fs::write(&path, "nonsense").await.unwrap();
        assert!(matches!(
            read_cookie(&path).await,
            Err(RpcError::CookieFormat { .. })
        ));
        tokio::fs::write(&path, "__cookie__:ab:cd\n").await.unwrap();
        assert_eq!(
            read_cookie(&path).await.unwrap(),
            ("__cookie__".to_owned(), "ab:cd".to_owned())
        );
    }
}
