//! The coordinator's REST API, one method an endpoint. Answers are bounded and typed; nothing in
//! them is believed here: `vault`, `account`, `deposit` and `send` check what can be checked.

use std::time::Duration;

use protocol::api::{
    AccountDocument, BatchDocument, BatchList, DepositAddressDocument, DepositAddressRequest,
    DepositDocument, DepositList, FeesDocument, MAX_PAGE, OperationDocument, OperationRequest,
    Page, Problem, StatusDocument, VaultDocument,
};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer: a page of batches with their transactions and proofs fits many times.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Longest text of a problem document that is shown.
const MAX_SHOWN_CHARS: usize = 500;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is no URL of a coordinator.
    #[error("'{url}' is no coordinator's URL: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The HTTP client can't be built.
    #[error("the HTTP client cannot be built")]
    Build(#[source] reqwest::Error),
    /// No connection, or it broke, or no answer in time.
    #[error(
        "the coordinator at {url} cannot be reached; is it running, and is --coordinator right?"
    )]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// The coordinator says what is wrong.
    #[error("the coordinator refuses: {}", .0.detail)]
    Problem(Box<Problem>),
    /// The answer is not what the API promises.
    #[error(
        "{path} of the coordinator gives no usable answer: {reason}; is --coordinator a coordinator of this version?"
    )]
    BadAnswer {
        /// Which call.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl ClientError {
    /// The stable code of a problem document.
    #[must_use]
    pub fn problem_code(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => Some(&problem.code),
            _ => None,
        }
    }

    /// Whether the request may have been carried out all the same: it left this machine, and the
    /// answer was lost, unreadable, or a fault of the coordinator (HTTP 5xx).
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Url { .. } | Self::Build(_) => false,
            Self::Unreachable { source, .. } => !source.is_connect(),
            Self::Problem(problem) => problem.status >= 500,
            Self::BadAnswer { .. } => true,
        }
    }
}

/// A client of one coordinator. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// A client for `http://host:port`. Does not connect yet.
    ///
    /// # Errors
    /// [`ClientError::Url`]. There is no TLS in here; reach a remote coordinator through a tunnel. What
    /// is at stake without it is privacy, not money: all answers that count are checked.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let wrong = |reason| ClientError::Url {
            url: url.to_owned(),
            reason,
        };
        let mut base = Url::parse(url).map_err(|_| wrong("expected http://host:port"))?;
        if base.scheme() == "https" {
            return Err(wrong("https is not supported; use http through a tunnel"));
        }
        if base.scheme() != "http" || base.host_str().is_none() {
            return Err(wrong("expected http://host:port"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong("it must not hold a login"));
        }
        base.set_query(None);
        base.set_fragment(None);
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(ClientError::Build)?;
        Ok(Self { http, base })
    }

    /// The coordinator's address.
    pub fn url(&self) -> &Url {
        &self.base
    }

    /// `GET /v1/vault`
    pub async fn vault(&self) -> Result<VaultDocument, ClientError> {
        self.get(&["v1", "vault"]).await
    }

    /// `GET /v1/fees`
    pub async fn fees(&self) -> Result<FeesDocument, ClientError> {
        self.get(&["v1", "fees"]).await
    }

    /// `GET /v1/status`
    pub async fn status(&self) -> Result<StatusDocument, ClientError> {
        self.get(&["v1", "status"]).await
    }

    /// `GET /healthz`: does the process answer?
    pub async fn is_healthy(&self) -> Result<bool, ClientError> {
        self.probe("healthz").await
    }

    /// `GET /readyz`: does it take requests?
    pub async fn is_ready(&self) -> Result<bool, ClientError> {
        self.probe("readyz").await
    }

    /// `POST /v1/deposit-addresses`. [`crate::Wallet::deposit_address`] checks the answer; this does not.
    pub async fn deposit_address(
        &self,
        request: &DepositAddressRequest,
    ) -> Result<DepositAddressDocument, ClientError> {
        self.post(&["v1", "deposit-addresses"], request).await
    }

    /// `GET /v1/deposits`
    pub async fn deposits(&self, page: &Page) -> Result<DepositList, ClientError> {
        self.list(&["v1", "deposits"], page).await
    }

    /// `GET /v1/deposits/{txid:vout}`
    pub async fn deposit(&self, outpoint: &str) -> Result<DepositDocument, ClientError> {
        self.get(&["v1", "deposits", outpoint]).await
    }

    /// `GET /v1/accounts/{address}`; `None` while the account has no leaf.
    pub async fn account(&self, address: &str) -> Result<Option<AccountDocument>, ClientError> {
        match self.get(&["v1", "accounts", address]).await {
            Ok(account) => Ok(Some(account)),
            Err(error) if error.problem_code() == Some("unknown_account") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `POST /v1/operations`. Sending the same again is harmless.
    pub async fn submit(
        &self,
        request: &OperationRequest,
    ) -> Result<OperationDocument, ClientError> {
        self.post(&["v1", "operations"], request).await
    }

    /// `GET /v1/operations/{id}`
    pub async fn operation(&self, id: &str) -> Result<OperationDocument, ClientError> {
        self.get(&["v1", "operations", id]).await
    }

    /// `GET /v1/batches`
    pub async fn batches(&self, page: &Page) -> Result<BatchList, ClientError> {
        self.list(&["v1", "batches"], page).await
    }

    /// `GET /v1/batches/{sequence}`
    pub async fn batch(&self, sequence: u64) -> Result<BatchDocument, ClientError> {
        self.get(&["v1", "batches", &sequence.to_string()]).await
    }

    async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        page: &Page,
    ) -> Result<T, ClientError> {
        let mut url = self.at(path);
        {
            let mut query = url.query_pairs_mut();
            if let Some(limit) = page.limit {
                query.append_pair("limit", &limit.min(MAX_PAGE).to_string());
            }
            if let Some(after) = &page.after {
                query.append_pair("after", after);
            }
            if let Some(account) = &page.account {
                query.append_pair("account", account);
            }
        }
        self.call(Method::GET, url, None::<&()>).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.call(Method::GET, self.at(path), None::<&()>).await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, self.at(path), Some(body)).await
    }

    /// `base` with further segments, each escaped.
    fn at(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An http URL always has segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    async fn probe(&self, path: &str) -> Result<bool, ClientError> {
        let answer = self.http.get(self.at(&[path])).send().await;
        Ok(answer
            .map_err(|source| self.unreachable(source))?
            .status()
            .is_success())
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let path = url.path().to_owned();
        let bad = |reason: String| ClientError::BadAnswer {
            path: path.clone(),
            reason,
        };
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer
            .chunk()
            .await
            .map_err(|source| self.unreachable(source))?
        {
            if bytes.len().saturating_add(chunk.len()) > MAX_ANSWER_BYTES {
                return Err(bad(format!("more than {MAX_ANSWER_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()));
        }
        Err(problem(status, &bytes).map_or_else(
            || bad(format!("HTTP {status} without a problem document")),
            |problem| ClientError::Problem(Box::new(problem)),
        ))
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable {
            url: self.base.to_string(),
            source: source.without_url(),
        }
    }
}

/// A problem document fit for a terminal.
fn problem(status: StatusCode, bytes: &[u8]) -> Option<Problem> {
    let mut problem: Problem = serde_json::from_slice(bytes).ok()?;
    problem.status = status.as_u16();
    for text in [
        &mut problem.kind,
        &mut problem.title,
        &mut problem.detail,
        &mut problem.code,
    ] {
        *text = printable(text);
    }
    Some(problem)
}

/// Without control characters, which could rewrite a terminal, and not too long.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(MAX_SHOWN_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_plain_http_without_a_login() {
        for bad in ["", "x", "https://h:1", "ftp://h", "http://u:p@h", "unix:/x"] {
            assert!(
                matches!(Client::new(bad), Err(ClientError::Url { .. })),
                "{bad}"
            );
        }
        let client = Client::new("http://127.0.0.1:8080/sub/?q#f").unwrap();
        assert_eq!(
            client.at(&["v1", "a/b"]).as_str(),
            "http://127.0.0.1:8080/sub/v1/a%2Fb"
        );
    }

    #[test]
    fn a_problem_cannot_rewrite_the_terminal() {
        let text = r#"{"type":"/p","title":"t","status":1,"detail":"a\u001b[2Jb","code":"c"}"#;
        let problem = problem(StatusCode::CONFLICT, text.as_bytes()).unwrap();
        assert_eq!((problem.status, problem.detail.as_str()), (409, "a [2Jb"));
    }

    #[tokio::test]
    async fn only_what_left_this_machine_may_have_arrived() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = Client::new(&url).unwrap().vault().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(!error.may_have_arrived());

        let text = r#"{"type":"/p","title":"t","status":1,"detail":"d","code":"c"}"#;
        for (status, unsure) in [(422, false), (503, true)] {
            let status = StatusCode::from_u16(status).unwrap();
            let problem = problem(status, text.as_bytes()).unwrap();
            let error = ClientError::Problem(Box::new(problem));
            assert_eq!(error.may_have_arrived(), unsure);
        }
    }
}
