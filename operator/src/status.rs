//! What this operator is doing, for people and monitors: `/healthz` (the process answers), `/readyz` (it can
//! verify and sign), `/metrics` (Prometheus), `/v1/status` (JSON). Reads only; nothing secret is in it.

use std::{net::SocketAddr, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

/// Longest time that a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest request; none of the pages reads a body.
const MAX_REQUEST_BYTES: usize = 1_024;

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// This operator's public identity.
    pub identity: String,
    /// `key generation`, `genesis`, `syncing` or `open`.
    pub stage: &'static str,
    /// Why it is not ready to sign; `None` when it is.
    pub not_ready: Option<String>,
    /// Why it has stopped signing for good (S14).
    pub alarm: Option<String>,
    /// What key generation waits for, while it runs.
    pub key_generation: Option<KeyGeneration>,
    /// The group key, in hex.
    pub group_key: Option<String>,
    /// Where the genesis is to be paid to, and where the treasury is.
    pub vault_address: Option<String>,
    /// The vault's id.
    pub vault: Option<String>,
    /// The latest canonical batch.
    pub sequence: Option<u64>,
    /// Its treasury in sats.
    pub treasury_sat: Option<u64>,
    /// The supply after it in sats.
    pub supply_sat: Option<u64>,
    /// Height up to which the own chain has been followed.
    pub height: u32,
    /// Whether the own Bitcoin node answers.
    pub bitcoind_reachable: bool,
    /// Names of the operators and coordinators that are connected.
    pub connected: Vec<String>,
    /// Sessions that are open.
    pub sessions: usize,
}

/// Where key generation stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyGeneration {
    /// Which messages are waited for.
    pub stage: String,
    /// Names of those from whom they have not come.
    pub missing: Vec<String>,
    /// Why it has stopped, if it has.
    pub failure: Option<String>,
}

/// Why the pages can't be served.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The address can't be bound.
    #[error("can't listen on {address} for the status pages")]
    Listen {
        /// From the settings.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Metrics can't be collected.
    #[error("metrics can't be set up")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
}

#[derive(Clone)]
struct Pages {
    status: watch::Receiver<Status>,
    metrics: PrometheusHandle,
}

/// Starts to serve the pages; they end with the process.
///
/// # Errors
/// [`StatusError`].
pub async fn serve(
    address: SocketAddr,
    status: watch::Receiver<Status>,
) -> Result<(), StatusError> {
    let metrics = PrometheusBuilder::new()
        .install_recorder()
        .map_err(StatusError::Metrics)?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| StatusError::Listen { address, source })?;
    let router = router(Pages { status, metrics });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the status pages have stopped");
        }
    });
    Ok(())
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|State(pages): State<Pages>| async move { pages.metrics.render() }),
        )
        .route(
            "/v1/status",
            get(|State(pages): State<Pages>| async move { Json(pages.status.borrow().clone()) }),
        )
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            PAGE_TIMEOUT,
        ))
        .layer(RequestBodyLimitLayer::new(MAX_REQUEST_BYTES))
        .with_state(pages)
}

async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    match &pages.status.borrow().not_ready {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
