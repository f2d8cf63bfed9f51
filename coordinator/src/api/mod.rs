//! The REST API, version 1: one file a resource. Documents are in `protocol::api`; everything that can
//! go wrong is in [`problem`]; `docs/api.md` explains both to integrators.
//!
//! ```text
//! serve (connections) --> record --> ensure --> catch panic --> guard (rates, time) --> resource
//!                         metrics    problem documents          limit                   Api::look
//! ```
//!
//! A resource looks at the database and the history on a blocking thread, and changes nothing but
//! through `queue::accept`, `terms::Shown` and `admin`.

use std::sync::{Arc, PoisonError};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn, from_fn_with_state},
    routing::MethodRouter,
};
use node::history::History;
use protocol::{api::MAX_REQUEST_BYTES, identity::PeerKey, vault::Vault};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{live::Reader, token::AdminToken};
use limit::Limits;
use problem::{Code, Failure};

mod accounts;
mod admin;
mod batches;
mod blame;
mod deposits;
mod events;
mod extract;
mod limit;
mod metrics;
mod openapi;
mod operations;
pub mod problem;
mod serve;
mod slow;
mod status;
mod vault;
mod waits;

pub use events::MAX_STREAMS;
pub use serve::serve;

/// What the handlers share.
struct Api {
    reader: Reader,
    gate: admin::Gate,
    streams: events::Streams,
}

type Shared = Arc<Api>;

impl Api {
    /// Reads the database or the history, off the async threads.
    async fn look<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let reader = self.reader.clone();
        match tokio::task::spawn_blocking(move || read(&reader)).await {
            Ok(result) => result,
            Err(error) => Err(Failure::internal(&error)),
        }
    }
}

/// The vault, once there is one.
fn vault_of(reader: &Reader) -> Result<Arc<Vault>, Failure> {
    let live = reader.live.borrow();
    live.vault.clone().ok_or_else(|| no_genesis(&live.phase))
}

fn no_genesis(phase: &str) -> Failure {
    Failure::new(
        Code::NoGenesis,
        format!("try again when /readyz answers 200; now: {phase}"),
    )
}

/// Looks at the history, once there is one.
fn with_history<T>(reader: &Reader, look: impl FnOnce(&History) -> T) -> Option<T> {
    // The pipeline keeps the history usable, or stops the process.
    let history = reader
        .history
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    history.as_ref().map(look)
}

/// A node's name in the roster, else its key.
fn name_of(reader: &Reader, key: &PeerKey) -> String {
    let member = reader.roster.members().find(|member| member.key == *key);
    member.map_or_else(|| key.to_string(), |member| member.name.clone())
}

/// One path with its methods, and the problems that are its own.
struct Route {
    path: &'static str,
    methods: MethodRouter<Shared>,
    problems: Vec<Code>,
}

impl Route {
    fn new(path: &'static str, methods: MethodRouter<Shared>, problems: &[Code]) -> Self {
        Self {
            path,
            methods,
            problems: problems.to_vec(),
        }
    }

    /// Its handler reads a JSON body.
    fn with_body(mut self) -> Self {
        self.problems.extend(Code::BODY);
        self
    }
}

fn routes() -> Vec<Route> {
    let parts = [
        deposits::routes(),
        accounts::routes(),
        operations::routes(),
        batches::routes(),
        blame::routes(),
        events::routes(),
        admin::routes(),
        vault::routes(),
        status::routes(),
        openapi::routes(),
        problem::routes(),
    ];
    parts.into_iter().flatten().collect()
}

/// Every path of the API, `/docs` aside, as OpenAPI writes them.
pub fn paths() -> Vec<&'static str> {
    routes().iter().map(|route| route.path).collect()
}

/// What one client address may take. Behind a reverse proxy all clients have the proxy's.
#[derive(Clone, Copy, Debug)]
pub struct PerAddress {
    /// Requests a second; bursts of twice as many pass.
    pub requests_per_second: u32,
    /// Streams of events at a time.
    pub event_streams: usize,
}

/// The API over what `reader` sees, with these bounds, and administrators with these tokens.
pub fn router(reader: Reader, bounds: PerAddress, admins: Vec<AdminToken>) -> Router {
    metrics::install();
    let limits = Arc::new(Limits::new(bounds.requests_per_second));
    let api: Shared = Arc::new(Api {
        reader,
        gate: admin::Gate::new(admins),
        streams: events::Streams::new(bounds.event_streams),
    });
    let mut router = Router::new();
    for route in routes() {
        router = router.route(route.path, route.methods);
    }
    router
        .merge(openapi::pages())
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(from_fn_with_state(limits, limit::guard))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(from_fn(problem::ensure))
        .layer(from_fn(metrics::record))
        .with_state(api)
}
