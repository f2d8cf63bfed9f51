//! Numbers for Prometheus: requests as they pass, and gauges that are set when somebody asks.

use std::{sync::OnceLock, time::Instant};

use axum::{
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::Response,
};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use node::history::History;
use storage::{Key, Queue};

use super::{
    name_of,
    problem::{Code, Failure},
    status::unready,
    with_history,
};
use crate::{
    blame,
    live::Reader,
    pool,
    records::{BROADCAST, CONFIRM, PROVE, REQUESTS, SIGN},
};

/// Media type of Prometheus' text format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const REQUESTS_TOTAL: &str = "drawbridge_http_requests_total";
const REQUEST_SECONDS: &str = "drawbridge_http_request_seconds";
const QUEUE_ITEMS: &str = "drawbridge_queue_items";
/// Upper bounds of the buckets of every histogram, in seconds.
const SECONDS: [f64; 10] = [0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the process's recorder, once. Anything that counts, counts into it from then on.
pub fn install() {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS);
        let handle = builder.and_then(PrometheusBuilder::install_recorder);
        let handle = handle
            .inspect_err(|error| tracing::error!(%error, "no metrics"))
            .ok();
        describe_counter!(REQUESTS_TOTAL, "HTTP requests by route, method and status");
        describe_histogram!(REQUEST_SECONDS, "Time to answer a request, by route");
        describe_gauge!(QUEUE_ITEMS, "Items in a durable queue by where they are");
        describe_gauge!("drawbridge_treasury_sat", "What the treasury holds");
        describe_gauge!("drawbridge_supply_sat", "Sum of all balances");
        describe_gauge!("drawbridge_surplus_sat", "Treasury less supply");
        describe_gauge!("drawbridge_sequence", "Latest confirmed batch");
        describe_gauge!("drawbridge_accounts", "Accounts in the ledger");
        describe_gauge!("drawbridge_height", "Height of the chain as taken in");
        describe_gauge!("drawbridge_connected", "Roster members connected");
        describe_gauge!("drawbridge_ready", "1 when requests are taken");
        describe_counter!(
            blame::BLAMES_TOTAL,
            "Bad shares by operator, since the start"
        );
        describe_counter!(
            pool::SIGNED_TOTAL,
            "Batches signed with nonces that operators had handed out ahead of time"
        );
        describe_gauge!(blame::KEPT, "Pieces of evidence kept, by operator");
        describe_gauge!("drawbridge_alarm", "1 when signing has stopped (S14)");
        handle
    });
}

/// Moves samples to their histograms; without it they pile up while nobody asks for them.
pub fn upkeep() {
    if let Some(Some(handle)) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// Counts a request and its time.
pub async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    // Labels have few values, whatever clients send.
    let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
    let method = method_name(request.method());
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    histogram!(REQUEST_SECONDS, "route" => route.clone()).record(started.elapsed().as_secs_f64());
    counter!(REQUESTS_TOTAL, "route" => route, "method" => method, "status" => status).increment(1);
    response
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Everything, in Prometheus' text format.
pub fn render(reader: &Reader) -> Result<String, Failure> {
    let Some(Some(handle)) = HANDLE.get() else {
        return Err(Failure::new(
            Code::Internal,
            "another recorder was installed in this process",
        ));
    };
    let store = &reader.store;
    set_lengths("requests", &store.queue(&REQUESTS)?);
    set_lengths("prove", &store.queue(&PROVE)?);
    set_lengths("sign", &store.queue(&SIGN)?);
    set_lengths("broadcast", &store.queue(&BROADCAST)?);
    set_lengths("confirm", &store.queue(&CONFIRM)?);
    let look = |history: &History| (history.head(), history.ledger().accounts().len());
    if let Some((head, accounts)) = with_history(reader, look) {
        let (treasury, supply) = (head.value.to_sat(), head.commitment.supply.to_sat());
        set("drawbridge_treasury_sat", treasury);
        set("drawbridge_supply_sat", supply);
        set("drawbridge_surplus_sat", treasury.saturating_sub(supply));
        set("drawbridge_sequence", head.commitment.sequence.0);
        set("drawbridge_accounts", count(accounts));
    }
    for (operator, pieces) in blame::counts(store, &reader.roster)? {
        gauge!(blame::KEPT, "operator" => name_of(reader, &operator)).set(as_float(count(pieces)));
    }
    let live = reader.live.borrow().clone();
    set("drawbridge_height", live.height.into());
    set("drawbridge_connected", count(live.connected.len()));
    set("drawbridge_ready", unready(reader).is_none().into());
    set("drawbridge_alarm", live.alarm.is_some().into());
    Ok(handle.render())
}

fn set_lengths<K: Key, T: serde::Serialize + serde::de::DeserializeOwned>(
    name: &'static str,
    queue: &Queue<K, T>,
) {
    let lengths = queue.lengths();
    for (place, items) in [
        ("ready", lengths.ready),
        ("waiting", lengths.waiting),
        ("dead", lengths.dead),
    ] {
        gauge!(QUEUE_ITEMS, "queue" => name, "place" => place).set(as_float(count(items)));
    }
}

fn set(name: &'static str, value: u64) {
    gauge!(name).set(as_float(value));
}

fn count(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}

/// Exact up to 2^53, which is more than there are sats.
#[allow(clippy::cast_precision_loss, reason = "Prometheus knows floats only")]
fn as_float(value: u64) -> f64 {
    value as f64
}
