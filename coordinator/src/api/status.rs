//! How the coordinator is: for people, for wallets, and for those who run it.

use axum::{Json, extract::State, http::header, response::IntoResponse, routing::get};
use node::history::History;
use protocol::api::{BatchDocument, BatchStatus, FeesDocument, StatusDocument};
use storage::Direction;

use super::{
    Route, Shared, batches, metrics, name_of,
    problem::{Code, Failure},
    with_history,
};
use crate::{
    blame,
    live::Reader,
    records::{BATCHES, LEFT_OUT, REQUESTS},
};

/// Most left-out requests that are counted.
const MAX_COUNTED: usize = 1_000;

/// What deposits, transfers and withdrawals cost.
#[utoipa::path(get, path = "/v1/fees", tag = "vault",
    responses((status = 200, description = "The fees", body = FeesDocument)))]
async fn fees(State(api): State<Shared>) -> Json<FeesDocument> {
    let parameters = &api.reader.parameters;
    Json(FeesDocument {
        deposit_fee_sat: parameters.deposit_fee.to_sat(),
        min_deposit_sat: parameters.min_deposit.to_sat(),
        transfer_fee_sat: parameters.transfer_fee.to_sat(),
        withdraw_fee_sat: parameters.withdraw_fee.to_sat(),
        fee_rate_sat_per_vb: api.reader.live.borrow().fee_rate_sat_per_vb,
    })
}

/// What the coordinator works at.
#[utoipa::path(get, path = "/v1/status", tag = "status",
    responses((status = 200, description = "The status", body = StatusDocument)))]
async fn status(State(api): State<Shared>) -> Result<Json<StatusDocument>, Failure> {
    api.look(document).await.map(Json)
}

fn document(reader: &Reader) -> Result<StatusDocument, Failure> {
    let live = reader.live.borrow().clone();
    let lengths = reader.store.queue(&REQUESTS)?.lengths();
    let batch = match reader.store.last(&BATCHES)? {
        Some((_, record)) if is_in_work(record.status) => Some(batches::document(
            reader,
            &record,
            batches::Detail::Summary,
        )?),
        _ => None,
    };
    // The record gets them when signing ends.
    let batch = batch.map(|batch| BatchDocument {
        refusals: if live.refusals.is_empty() {
            batch.refusals
        } else {
            let refusals = live.refusals.iter();
            refusals
                .map(|(by, why)| batches::refusal(reader, by, why))
                .collect()
        },
        ..batch
    });
    let left_out = reader
        .store
        .iter(&LEFT_OUT, .., Direction::Forward, MAX_COUNTED)?;
    let head = with_history(reader, History::head);
    Ok(StatusDocument {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: unready(reader).is_none(),
        phase: live.phase,
        height: live.height,
        connected: live
            .connected
            .iter()
            .map(|key| name_of(reader, key))
            .collect(),
        sequence: head.map_or(0, |head| head.commitment.sequence.0),
        queued: u64::try_from(lengths.ready.saturating_add(lengths.waiting)).unwrap_or(u64::MAX),
        left_out: u64::try_from(left_out.count()).unwrap_or(u64::MAX),
        batch,
        blamed: blame::counts(&reader.store, &reader.roster)?
            .iter()
            .map(|(key, _)| name_of(reader, key))
            .collect(),
        top_up_sat: live.top_up.map(bitcoin::Amount::to_sat),
        alarm: live.alarm,
    })
}

fn is_in_work(status: BatchStatus) -> bool {
    match status {
        BatchStatus::Formed
        | BatchStatus::Proven
        | BatchStatus::Signed
        | BatchStatus::Broadcast => true,
        BatchStatus::Confirmed | BatchStatus::Final | BatchStatus::Abandoned => false,
    }
}

/// Why requests should go elsewhere; `None` when this coordinator is ready.
pub(super) fn unready(reader: &Reader) -> Option<String> {
    let live = reader.live.borrow().clone();
    if let Some(alarm) = live.alarm {
        return Some(format!("alarm: {alarm}"));
    }
    if live.vault.is_none() {
        return Some(format!("there is no genesis yet: {}", live.phase));
    }
    if !live.bitcoind {
        return Some("bitcoind does not answer".to_owned());
    }
    if live.is_behind {
        return Some(format!(
            "the blocks from before the start are being taken in; at height {}",
            live.height
        ));
    }
    match with_history(reader, History::is_current) {
        None => Some("the history is being opened".to_owned()),
        Some(false) => Some("the data of a confirmed batch is being fetched".to_owned()),
        Some(true) => None,
    }
}

/// Does the process answer?
#[utoipa::path(get, path = "/healthz", tag = "status",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Does the coordinator take requests?
#[utoipa::path(get, path = "/readyz", tag = "status",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn readyz(State(api): State<Shared>) -> Result<&'static str, Failure> {
    let reason = api.look(|reader| Ok(unready(reader))).await?;
    reason.map_or(Ok("ready\n"), |reason| {
        Err(Failure::new(Code::NotReady, reason))
    })
}

/// Counters, latencies and gauges for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "status",
    responses((status = 200, description = "In Prometheus' text format", body = String,
        content_type = "text/plain")))]
async fn show_metrics(State(api): State<Shared>) -> Result<impl IntoResponse, Failure> {
    let text = api.look(metrics::render).await?;
    Ok(([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text))
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("/v1/fees", get(fees), &[]),
        Route::new("/v1/status", get(status), &[Code::Storage]),
        Route::new("/healthz", get(healthz), &[]),
        Route::new("/readyz", get(readyz), &[Code::NotReady]),
        Route::new("/metrics", get(show_metrics), &[Code::Storage]),
    ]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(fees, status, healthz, readyz, show_metrics))]
pub(super) struct Doc;
