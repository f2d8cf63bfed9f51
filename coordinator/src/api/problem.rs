//! Everything that can go wrong at the edge: one stable code a kind, and the RFC 9457 document that
//! carries it. No answer with an error status leaves without one.

use std::{any::Any, borrow::Cow, fmt};

use axum::{
    Json,
    body::Body,
    extract::Request,
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use protocol::api::Problem;
use storage::ReadError;

use super::{Route, extract::Segment};
use crate::{copies::TooFewCopies, terms::KeepError};

/// The media type of a problem document (RFC 9457 section 6.1).
pub const MEDIA_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $status:literal $code:literal $title:literal,)*) => {
        /// What went wrong. The names on the wire are stable; `docs/api.md` lists them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* #[doc = $title] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the wire, in snake_case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// The kind in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    // The request as such
    MalformedRequest = 400 "malformed_request" "The request can't be read",
    MalformedBody = 400 "malformed_body" "The body is not JSON",
    InvalidQuery = 400 "invalid_query" "A query parameter is unknown or out of range",
    InvalidParameter = 400 "invalid_parameter" "A part of the path has the wrong form",
    NotFound = 404 "not_found" "No such endpoint",
    MethodNotAllowed = 405 "method_not_allowed" "The endpoint has no such method",
    BodyTimeout = 408 "body_timeout" "The body did not arrive in time",
    BodyTooLarge = 413 "body_too_large" "The body is too large",
    UnsupportedMediaType = 415 "unsupported_media_type" "The body must be application/json",
    InvalidBody = 422 "invalid_body" "A field is missing, unknown or of the wrong type",
    RateLimited = 429 "rate_limited" "Too many requests from this address",

    // Things that are not there
    UnknownAccount = 404 "unknown_account" "The account has no leaf in the ledger",
    UnknownDeposit = 404 "unknown_deposit" "No such deposit was seen",
    UnknownOperation = 404 "unknown_operation" "No such operation was accepted here",
    UnknownBatch = 404 "unknown_batch" "There is no such batch",
    UnknownBlame = 404 "unknown_blame" "No such evidence is kept here",
    UnknownDeadLetter = 404 "unknown_dead_letter" "There is no such dead letter",
    UnknownProblem = 404 "unknown_problem" "There is no such problem code",

    EventsGone = 410 "events_gone" "The events after this id are not kept here",

    // Administrators
    AdminOff = 403 "admin_off" "This coordinator has no administrators",
    Unauthorized = 401 "unauthorized" "No administrator's token, or a wrong one",
    NotDroppable = 409 "not_droppable" "What is signed can't be dropped",

    // Values
    WrongNetwork = 422 "wrong_network" "The address is for another network",
    InvalidAccount = 422 "invalid_account" "Not an account's address",
    InvalidRefundKey = 422 "invalid_refund_key" "Not an x-only public key",
    InvalidAddress = 422 "invalid_address" "Not a Bitcoin address",
    MalformedSignature = 422 "malformed_signature" "Not the canonical encoding of a signature",

    // The ledger's rules
    UnknownSender = 422 "unknown_sender" "The sender has no leaf in the ledger",
    StaleNonce = 409 "stale_nonce" "The nonce has been used",
    FutureNonce = 409 "future_nonce" "Operations with earlier nonces are missing",
    NonceTaken = 409 "nonce_taken" "Another operation with this nonce waits",
    TooManyWaiting = 409 "too_many_waiting" "The account has too many operations that wait",
    InsufficientBalance = 422 "insufficient_balance" "The sender can't pay amount and fee",
    Expired = 422 "expired" "The last valid batch is over",
    BadSignature = 422 "bad_signature" "The signature is not the sender's",
    BelowDust = 422 "below_dust" "The payout would be dust",
    NonStandardScript = 422 "non_standard_script" "The payout's script is not a standard one",
    FeeTooLow = 422 "fee_too_low" "The fee is below the vault's smallest",
    ZeroAmount = 422 "zero_amount" "The amount is zero",
    Overflow = 422 "overflow" "An amount overflows",
    LedgerFull = 503 "ledger_full" "The ledger has no free leaf",

    // The coordinator's state
    NoGenesis = 503 "no_genesis" "The vault has no genesis yet",
    NotCurrent = 503 "not_current" "The ledger is behind the chain",
    NotReady = 503 "not_ready" "The coordinator is not ready",
    QueueFull = 503 "queue_full" "The queue of requests is full",
    Full = 503 "full" "No more deposit addresses can be kept",
    TooFewCopies = 503 "too_few_copies" "Too few other nodes have stored the request",
    Busy = 503 "busy" "Too many requests at once",
    TooManyStreams = 503 "too_many_streams" "Too many streams of events",
    Timeout = 503 "timeout" "The answer took too long",
    Storage = 500 "storage" "The database failed",
    Internal = 500 "internal" "A fault of the coordinator",
}

impl Code {
    /// Can any endpoint answer with it? These come from the layers around all endpoints.
    pub const EVERYWHERE: &'static [Self] =
        &[Self::RateLimited, Self::Busy, Self::Timeout, Self::Internal];
    /// What any endpoint that reads a JSON body can answer.
    pub const BODY: &'static [Self] = &[
        Self::MalformedBody,
        Self::BodyTimeout,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidBody,
    ];

    /// Seconds after which the same request may work.
    const fn retry_after_s(self) -> Option<&'static str> {
        match self {
            Self::RateLimited | Self::Busy => Some("1"),
            Self::NotCurrent | Self::QueueFull | Self::TooFewCopies | Self::Timeout => Some("5"),
            Self::NoGenesis | Self::NotReady | Self::TooManyStreams => Some("30"),
            _ => None,
        }
    }

    /// For an answer that was made outside this crate, and says no more than its status.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::BodyTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => Self::InvalidBody,
            StatusCode::TOO_MANY_REQUESTS => Self::RateLimited,
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            _ if status.is_client_error() => Self::MalformedRequest,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An answer that is a problem document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What is wrong this time and what to do, for people.
    pub detail: Cow<'static, str>,
}

impl Failure {
    /// A problem of a kind, with its detail.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }

    /// A problem whose detail is an error and what caused it.
    pub fn because(code: Code, error: &dyn std::error::Error) -> Self {
        Self::new(code, with_causes(error))
    }

    /// A fault in here. What exactly goes to the log, not to the client.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = with_causes(error), "the API met an internal fault");
        Self::new(Code::Internal, "see the coordinator's log")
    }

    /// The document.
    pub fn document(&self) -> Problem {
        Problem {
            kind: format!("/problems/{}", self.code),
            title: self.code.title().to_owned(),
            status: self.code.status(),
            detail: self.detail.to_string(),
            code: self.code.as_str().to_owned(),
        }
    }
}

impl From<TooFewCopies> for Failure {
    fn from(error: TooFewCopies) -> Self {
        Self::because(Code::TooFewCopies, &error)
    }
}

impl From<KeepError> for Failure {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Full => Self::new(Code::Full, "use an address that you were given before"),
            KeepError::Storage(reason) => {
                tracing::error!(reason, "deposit terms could not be stored");
                Self::new(
                    Code::Storage,
                    "the terms could not be stored; do not pay to this address",
                )
            }
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        tracing::error!(
            error = with_causes(&error),
            "the API can't read the database"
        );
        Self::new(
            Code::Storage,
            "the database can't be read; see the coordinator's log",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.document())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.code.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}

/// `error: cause: cause`.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Nothing is routed here.
pub async fn not_found(uri: Uri) -> Failure {
    Failure::new(
        Code::NotFound,
        format!("there is no {}; /docs lists the endpoints", uri.path()),
    )
}

/// The path is known, with another method.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Failure {
    let detail = format!(
        "{} does not take {method}; the Allow header says what it takes",
        uri.path()
    );
    Failure::new(Code::MethodNotAllowed, detail)
}

/// A handler panicked; the panic hook has logged where.
pub fn panicked(_: Box<dyn Any + Send>) -> Response {
    Failure::new(
        Code::Internal,
        "the request met a bug; see the coordinator's log",
    )
    .into_response()
}

/// Makes a problem document of any other answer with an error status.
pub async fn ensure(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let media_type = response.headers().get(header::CONTENT_TYPE);
    if !is_error || media_type.is_some_and(|found| found.as_bytes() == MEDIA_TYPE.as_bytes()) {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    let code = Code::of_status(status);
    let made = Failure::new(code, code.title()).into_response();
    let (made, body) = made.into_parts();
    parts.status = made.status;
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_ENCODING);
    // `extend` would append a second content type to the first.
    for (name, value) in &made.headers {
        parts.headers.insert(name, value.clone());
    }
    Response::from_parts(parts, Body::new(body))
}

/// What a problem's `type` leads to.
#[utoipa::path(get, path = "/problems/{code}", tag = "meta",
    params(("code" = String, Path, description = "Code of a problem document")),
    responses((status = 200, description = "The kind of problem in words", body = String,
        content_type = "text/plain")))]
pub async fn explain(Segment(code): Segment) -> Result<String, Failure> {
    let known = Code::ALL.iter().find(|known| known.as_str() == code);
    let known =
        known.ok_or_else(|| Failure::new(Code::UnknownProblem, "docs/api.md lists the codes"))?;
    Ok(format!("{known} ({}): {}\n", known.status(), known.title()))
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::new(
        "/problems/{code}",
        get(explain),
        &[Code::UnknownProblem],
    )]
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::to_bytes, middleware::from_fn};
    use tower::ServiceExt as _;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    async fn broken() -> &'static str {
        panic!("on purpose")
    }

    async fn answer(path: &str) -> (StatusCode, Problem) {
        let bare = |status: StatusCode| get(move || async move { (status, "words") });
        let router: Router = Router::new()
            .route("/panic", get(broken))
            .route("/teapot", bare(StatusCode::IM_A_TEAPOT))
            .route("/gateway", bare(StatusCode::BAD_GATEWAY))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn(ensure));
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        let bytes = to_bytes(response.into_body(), 4096).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_panic_and_a_bare_error_become_problem_documents() {
        for (path, code) in [
            ("/panic", Code::Internal),
            ("/gateway", Code::Internal),
            ("/teapot", Code::MalformedRequest),
        ] {
            let (status, problem) = answer(path).await;
            assert_eq!(problem.code, code.as_str(), "{path}");
            assert_eq!(status.as_u16(), problem.status, "{path}");
        }
    }

    #[test]
    fn codes_are_different_and_in_snake_case() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for name in names {
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
        }
    }
}
