//! For administrators: dead letters and the audit log. Nothing in here answers without a token of the settings.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use axum::{
    Json,
    extract::{ConnectInfo, FromRequestParts, Path, State},
    http::{header, request::Parts},
    routing::{get, post},
};
use protocol::api::{
    ActDocument, ActList, ActPage, ActRequest, DeadLetterList, MAX_REASON_BYTES, Page,
};

use super::{
    Route, Shared,
    extract::{Body, Query, limit_of},
    limit::{Rates, client},
    problem::{Code, Failure},
};
use crate::{
    admin::{self, AUDIT, Act, AdminError, LetterName},
    live::Reader,
    token::{self, AdminToken},
};

/// Wrong tokens a second of one address; bursts of twice as many are told that they are wrong.
const TRIES_PER_SECOND: u32 = 5;

/// Who may act, and how often anybody may try.
pub(super) struct Gate {
    tokens: Vec<AdminToken>,
    started: Instant,
    rates: Mutex<Rates>,
}

impl Gate {
    /// For these administrators.
    pub(super) fn new(tokens: Vec<AdminToken>) -> Self {
        Self {
            tokens,
            started: Instant::now(),
            rates: Mutex::new(Rates::new(TRIES_PER_SECOND)),
        }
    }

    fn take(&self, from: IpAddr) -> bool {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Every value of the table is a valid one.
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.take(from, now)
    }
}

/// Somebody with a token; holds its label.
struct Administrator(String);

impl FromRequestParts<Shared> for Administrator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Failure> {
        if api.gate.tokens.is_empty() {
            let detail =
                "the settings have no admin_tokens; `drawbridge-coordinator admin-token` makes one";
            return Err(Failure::new(Code::AdminOff, detail));
        }
        let presented = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        if let Some(label) = presented.and_then(|token| token::who(&api.gate.tokens, token)) {
            return Ok(Self(label.to_owned()));
        }
        // Whoever is right is let in first: behind a proxy, others could use up the address's tries.
        let from = address(parts);
        if !api.gate.take(client(from)) {
            let detail = "this address has sent no right token, too often; wait a second";
            return Err(Failure::new(Code::RateLimited, detail));
        }
        if presented.is_none() {
            let detail = "send the header Authorization: Bearer TOKEN";
            return Err(Failure::new(Code::Unauthorized, detail));
        }
        tracing::warn!(%from, "a wrong administrator's token was sent");
        let detail = "no admin_tokens entry of the settings has this token's hash";
        Err(Failure::new(Code::Unauthorized, detail))
    }
}

/// Where a request comes from.
pub(super) fn address(parts: &Parts) -> IpAddr {
    let from = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    from.map_or(IpAddr::from([0; 4]), |ConnectInfo(from)| from.ip())
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Unknown => {
                let detail = "it was decided already, or never was; list the dead letters again";
                Self::new(Code::UnknownDeadLetter, detail)
            }
            AdminError::NotDroppable => Self::because(Code::NotDroppable, &error),
            AdminError::NoVault => Self::because(Code::NoGenesis, &error),
            AdminError::Read(error) => error.into(),
            AdminError::Stage(error) => Self::internal(&error),
        }
    }
}

/// Lists work that has failed too often, of all queues: the cause, the attempts, and where its subject is now.
#[utoipa::path(get, path = "/v1/admin/dead-letters", tag = "admin", security(("admin_token" = [])),
    responses((status = 200, description = "The dead letters", body = DeadLetterList)))]
async fn letters(
    State(api): State<Shared>,
    _: Administrator,
) -> Result<Json<DeadLetterList>, Failure> {
    let all = |reader: &Reader| {
        let (items, total) = admin::dead_letters(&reader.store)?;
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        Ok(DeadLetterList { items, total })
    };
    api.look(all).await.map(Json)
}

/// Queues a dead letter again, in its old place and with no attempts counted.
#[utoipa::path(post, path = "/v1/admin/dead-letters/{queue}/{key}/retry", tag = "admin",
    security(("admin_token" = [])),
    params(("queue" = String, Path, description = "Queue, as listed"),
        ("key" = String, Path, description = "Key, as listed")),
    request_body = ActRequest,
    responses((status = 200, description = "Done, and in the audit log", body = ActDocument)))]
async fn retry(
    State(api): State<Shared>,
    Administrator(who): Administrator,
    Path(name): Path<(String, String)>,
    Body(request): Body<ActRequest>,
) -> Result<Json<ActDocument>, Failure> {
    decide(&api, name, request, move |reader, name, reason| {
        admin::retry(reader, name, &who, reason)
    })
    .await
}

/// Drops a dead letter: a request is refused, with the reason; a batch without signatures is given up, and its
/// requests wait again. A batch with signatures is never dropped.
#[utoipa::path(post, path = "/v1/admin/dead-letters/{queue}/{key}/drop", tag = "admin",
    security(("admin_token" = [])),
    params(("queue" = String, Path, description = "Queue, as listed"),
        ("key" = String, Path, description = "Key, as listed")),
    request_body = ActRequest,
    responses((status = 200, description = "Done, and in the audit log", body = ActDocument)))]
async fn discard(
    State(api): State<Shared>,
    Administrator(who): Administrator,
    Path(name): Path<(String, String)>,
    Body(request): Body<ActRequest>,
) -> Result<Json<ActDocument>, Failure> {
    decide(&api, name, request, move |reader, name, reason| {
        admin::discard(reader, name, &who, reason)
    })
    .await
}

async fn decide(
    api: &Shared,
    (queue, key): (String, String),
    request: ActRequest,
    act: impl FnOnce(&Reader, LetterName, &str) -> Result<Act, AdminError> + Send + 'static,
) -> Result<Json<ActDocument>, Failure> {
    let reason = request.reason.trim().to_owned();
    if reason.is_empty() || reason.len() > MAX_REASON_BYTES {
        let detail = format!("reason has {} bytes, must have 1 to 500", reason.len());
        return Err(Failure::new(Code::InvalidBody, detail));
    }
    let name = LetterName::parse(&queue, &key);
    let name = name.ok_or_else(|| Failure::from(AdminError::Unknown))?;
    let done = api.look(move |reader| {
        let act = act(reader, name, &reason)?;
        let id = reader.store.last_number(&AUDIT)?;
        Ok(document((id, act)))
    });
    done.await.map(Json)
}

/// Lists what administrators have done, newest first.
#[utoipa::path(get, path = "/v1/admin/audit", tag = "admin", security(("admin_token" = [])),
    params(ActPage),
    responses((status = 200, description = "A part of the audit log", body = ActList)))]
async fn audit(
    State(api): State<Shared>,
    _: Administrator,
    Query(page): Query<ActPage>,
) -> Result<Json<ActList>, Failure> {
    let limit = limit_of(&Page {
        limit: page.limit,
        ..Page::default()
    })?;
    let part = move |reader: &Reader| {
        // One more tells whether there is a next page.
        let wanted = limit.saturating_add(1);
        let mut acts = reader.store.newest_entries(&AUDIT, page.after, wanted)?;
        let has_more = acts.len() > limit;
        acts.truncate(limit);
        let next = acts.last().filter(|_| has_more).map(|(id, _)| *id);
        Ok(ActList {
            items: acts.into_iter().map(document).collect(),
            next,
        })
    };
    api.look(part).await.map(Json)
}

fn document((id, act): (u64, Act)) -> ActDocument {
    ActDocument {
        id,
        at_ms: act.at_ms,
        who: act.who,
        act: act.kind,
        subject: act.subject,
        reason: act.reason,
        outcome: act.outcome,
    }
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    let codes = |more: &[Code]| {
        let mut codes = vec![Code::AdminOff, Code::Unauthorized, Code::Storage];
        codes.extend(more);
        codes
    };
    let decisions = codes(&[Code::UnknownDeadLetter, Code::NotDroppable, Code::NoGenesis]);
    vec![
        Route::new("/v1/admin/dead-letters", get(letters), &codes(&[])),
        Route::new(
            "/v1/admin/dead-letters/{queue}/{key}/retry",
            post(retry),
            &decisions,
        )
        .with_body(),
        Route::new(
            "/v1/admin/dead-letters/{queue}/{key}/drop",
            post(discard),
            &decisions,
        )
        .with_body(),
        Route::new("/v1/admin/audit", get(audit), &codes(&[Code::InvalidQuery])),
    ]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(letters, retry, discard, audit))]
pub(super) struct Doc;
