//! What this operator is doing, for people and monitors: `/healthz` (the process answers), `/readyz` (it can
//! verify and sign), `/metrics` (Prometheus), `/v1/status` (JSON). Reads only; nothing secret is in it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use node::clock;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch};
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

/// Longest time that a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest request; none of the pages reads a body.
const MAX_REQUEST_BYTES: usize = 1_024;
/// Upper bounds of the buckets of every histogram, in seconds.
const SECONDS: [f64; 12] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0,
];
/// Pause between two clean-ups of the metrics; without them samples pile up while nobody asks for them.
const UPKEEP: Duration = Duration::from_secs(10);

/// Age in ms from which on a shown status says that the loop does not move: it renews the status every second.
const STALE_MS: u64 = 30_000;
/// Verdicts shown; the oldest gives way.
pub const MAX_VERDICTS: usize = 32;

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// When this was shown, in Unix ms. Old when the loop does not move.
    pub shown_ms: u64,
    /// This operator's name in the roster.
    pub name: String,
    /// This operator's public identity.
    pub identity: String,
    /// `starting`, `key generation`, `share lost`, `genesis`, `syncing` or `open`.
    pub stage: String,
    /// Why it is not ready to sign; `None` when it is.
    pub not_ready: Option<String>,
    /// Why it has stopped signing for good (S14).
    pub alarm: Option<String>,
    /// Why a restored or repaired operator does not sign yet (S7).
    pub quarantine: Option<Quarantine>,
    /// What key generation waits for, while it runs.
    pub key_generation: Option<KeyGeneration>,
    /// A refresh of the shares that the administrator has asked for.
    pub refresh: Option<Refresh>,
    /// The repair of this operator's lost share that the administrator has asked for.
    pub repair: Option<Repair>,
    /// Why a refresh should follow soon; `None` if nothing asks for one.
    pub refresh_due: Option<String>,
    /// The group key, in hex.
    pub group_key: Option<String>,
    /// Which generation of shares this operator signs with: 0 after key generation, one more with each refresh.
    pub epoch: Option<u32>,
    /// Where the genesis is to be paid to, and where the treasury is.
    pub vault_address: Option<String>,
    /// The vault's id.
    pub vault: Option<String>,
    /// The height from which on the own chain was followed: the `scan_from` of a restored operator.
    pub followed_from: Option<u32>,
    /// The latest canonical batch.
    pub sequence: Option<u64>,
    /// Its treasury in sats.
    pub treasury_sat: Option<u64>,
    /// The supply after it in sats.
    pub supply_sat: Option<u64>,
    /// Height up to which the own chain has been followed.
    pub height: u32,
    /// Hash of the block at that height.
    pub tip: Option<String>,
    /// Whether the own Bitcoin node answers.
    pub bitcoind_reachable: bool,
    /// Height of the own Bitcoin node's best block.
    pub bitcoind_height: u32,
    /// Names of the operators and coordinators that are connected.
    pub connected: Vec<String>,
    /// Names of those in the roster that are not.
    pub missing: Vec<String>,
    /// The other operators' attestations; empty where the roster requires none.
    pub attested: Vec<Attestation>,
    /// Sessions that are open.
    pub sessions: usize,
    /// Sessions for which nonces are held.
    pub nonces: usize,
    /// Batches that a share was given for, as many as are held in memory (S7).
    pub promises: usize,
    /// Hash of the treasury, the promises and the alarm: what a refusal leaves as it was.
    pub state_digest: String,
    /// Why its administrator has paused signing; `None` when it is not paused.
    pub paused: Option<String>,
    /// Operations that wait for its administrator's approval.
    pub pending: usize,
    /// Why the policy file, as it is now, is not in force; an earlier one is then.
    pub policy_problem: Option<String>,
    /// The last verdicts on what was proposed, newest first; at most [`MAX_VERDICTS`].
    pub verdicts: VecDeque<Verdict>,
}

/// How long an operator waits that has lost its promises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Height from which on it signs again at the latest; `None` before it has caught up with the chain.
    pub until_height: Option<u32>,
    /// For people.
    pub reason: String,
}

/// What this operator thought of a proposal or a sign request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// When, in Unix ms; the last time, if it was more than once.
    pub at_ms: u64,
    /// How often in a row: a refused proposal is often repeated.
    pub times: u32,
    /// Whose proposal.
    pub coordinator: String,
    /// Its session.
    pub session: String,
    /// What it was about: a batch or the genesis.
    pub subject: String,
    /// `verified`, `signed` or `refused`.
    pub result: String,
    /// The rule that it broke.
    pub rule: Option<String>,
    /// The operations that broke it, where some did.
    pub operations: Vec<String>,
    /// Why, for people.
    pub reason: Option<String>,
}

impl Status {
    /// What is shown before the loop runs.
    pub fn starting() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shown_ms: clock::now_ms(),
            stage: "starting".to_owned(),
            not_ready: Some("the operator is starting".to_owned()),
            ..Self::default()
        }
    }

    /// Why this operator can't sign now; `None` if it can. A status that is not renewed is a reason too.
    pub fn why_not_ready(&self, now_ms: u64) -> Option<String> {
        let age_ms = now_ms.saturating_sub(self.shown_ms);
        if age_ms > STALE_MS {
            return Some(format!("the loop has not moved for {} s", age_ms / 1_000));
        }
        self.not_ready.clone()
    }
}

impl Verdict {
    fn is_again(&self, earlier: &Self) -> bool {
        (&self.session, &self.result, &self.rule, &self.reason)
            == (
                &earlier.session,
                &earlier.result,
                &earlier.rule,
                &earlier.reason,
            )
    }
}

/// Puts a verdict in front; one that only repeats the newest is counted there.
pub fn note(verdicts: &mut VecDeque<Verdict>, mut verdict: Verdict) {
    if let Some(newest) = verdicts.front()
        && verdict.is_again(newest)
    {
        verdict.times = newest.times.saturating_add(verdict.times);
        verdicts.pop_front();
    }
    verdicts.push_front(verdict);
    verdicts.truncate(MAX_VERDICTS);
}

/// Where key generation stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyGeneration {
    /// Which messages are waited for.
    pub stage: String,
    /// Names of those from whom they have not come.
    pub missing: Vec<String>,
    /// Why it has stopped, if it has.
    pub failure: Option<String>,
}

/// An operator's attestation, as this one sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// The operator's name.
    pub name: String,
    /// Whether it has valid evidence now. Without, it has no part in making keys and shares.
    pub attested: bool,
    /// Until when, Unix ms; it is renewed before.
    pub until_ms: Option<u64>,
    /// What was wrong with its last answer.
    pub problem: Option<String>,
}

/// Where a refresh stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// The epoch that it leads to.
    pub epoch: u32,
    /// Which messages are waited for; `certificate` once the new share is on disk.
    pub stage: String,
    /// Names of those from whom they have not come.
    pub missing: Vec<String>,
    /// What operators say that take no part yet, by name.
    pub unwilling: BTreeMap<String, String>,
    /// Why it has stopped, if it has. The administrators can begin it again.
    pub failure: Option<String>,
}

/// Where the repair of a lost share stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// What is waited for.
    pub stage: String,
    /// Names of the operators that have not answered that.
    pub missing: Vec<String>,
    /// What operators say that do not help, by name.
    pub refused: BTreeMap<String, String>,
    /// How operators have spoiled it, by name. They are not asked again.
    pub blamed: BTreeMap<String, String>,
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
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(StatusError::Metrics)?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| StatusError::Listen { address, source })?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut pause = tokio::time::interval(UPKEEP);
        loop {
            pause.tick().await;
            upkeep.run_upkeep();
        }
    });
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
    match pages.status.borrow().why_not_ready(clock::now_ms()) {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(session: &str, at_ms: u64) -> Verdict {
        Verdict {
            at_ms,
            times: 1,
            session: session.to_owned(),
            ..Verdict::default()
        }
    }

    #[test]
    fn a_repeated_verdict_is_counted_and_the_oldest_give_way() {
        let mut verdicts = VecDeque::new();
        for at_ms in 1..=5 {
            note(&mut verdicts, verdict("a", at_ms));
        }
        assert_eq!(verdicts.len(), 1);
        assert_eq!((verdicts[0].at_ms, verdicts[0].times), (5, 5));
        for number in 0..2 * MAX_VERDICTS {
            note(&mut verdicts, verdict(&number.to_string(), 6));
        }
        assert_eq!(verdicts.len(), MAX_VERDICTS);
        assert_eq!(
            verdicts[0].session,
            (2 * MAX_VERDICTS - 1).to_string(),
            "newest first"
        );
    }

    #[test]
    fn a_loop_that_has_not_moved_is_not_ready() {
        let mut status = Status::starting();
        assert!(status.why_not_ready(status.shown_ms).is_some());
        status.not_ready = None;
        assert_eq!(status.why_not_ready(status.shown_ms + STALE_MS), None);
        let reason = status.why_not_ready(status.shown_ms + STALE_MS + 1);
        assert!(reason.is_some_and(|reason| reason.contains("30 s")));
    }
}
