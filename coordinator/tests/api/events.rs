//! Following what changes.

use std::time::Duration;

use axum::{body::Body, http::Request};
use coordinator::{
    events::{Change, EVENTS, Event, MAX_EVENTS},
    queue,
    records::Request as Wish,
};
use futures::StreamExt as _;
use protocol::pipeline::request::Input;
use serde_json::{Value, json};
use storage::Changes;
use tower::ServiceExt as _;

use crate::setting::{Setting, deposit_outpoint, from, get};

/// Longest wait for an event.
const BOUND: Duration = Duration::from_secs(20);

/// A client's end of a stream.
struct Following {
    body: axum::body::BodyDataStream,
    text: String,
}

#[derive(Debug, PartialEq)]
struct Seen {
    id: Option<u64>,
    topic: Option<String>,
    data: Value,
}

impl Following {
    async fn begin(setting: &Setting, request: Request<Body>) -> Self {
        let response = setting.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body().into_data_stream(),
            text: String::new(),
        }
    }

    /// The next block of lines; `None` at the end.
    async fn next(&mut self) -> Option<Seen> {
        while !self.text.contains("\n\n") {
            let more = tokio::time::timeout(BOUND, self.body.next()).await;
            let more = more.expect("something comes in time")?.unwrap();
            self.text.push_str(std::str::from_utf8(&more).unwrap());
        }
        let (block, rest) = self.text.split_once("\n\n").unwrap();
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::to_owned)
        };
        let seen = Seen {
            id: field("id: ").map(|id| id.parse().unwrap()),
            topic: field("event: "),
            data: field("data: ").map_or(Value::Null, |data| {
                serde_json::from_str(&data).unwrap_or(json!(data))
            }),
        };
        self.text = rest.to_owned();
        Some(seen)
    }

    /// The next event; comments are passed over.
    async fn event(&mut self) -> Seen {
        loop {
            let seen = self.next().await.expect("the stream goes on");
            if seen.topic.is_some() {
                return seen;
            }
        }
    }
}

fn step(setting: &Setting, number: u8, input: Input) {
    let store = &setting.reader.store;
    let mut changes = Changes::new();
    let request = Wish::Deposit(deposit_outpoint(number));
    queue::mark(store, &mut changes, &request, |progress| {
        progress.take(input, None, 1);
    })
    .unwrap();
    store.commit(changes).unwrap();
}

fn tip(setting: &Setting, heights: std::ops::Range<u32>) {
    let mut changes = Changes::new();
    for height in heights {
        let hash = bitcoin::hashes::Hash::from_byte_array([3; 32]);
        let change = Change::Tip(height, hash);
        changes.append(&EVENTS, &Event { at_ms: 1, change });
    }
    setting.reader.store.commit(changes).unwrap();
}

#[tokio::test]
async fn changes_are_told_as_they_happen_and_again_after_an_id() {
    let setting = Setting::new();
    let mut live = Following::begin(&setting, get("/v1/events")).await;
    let first = live.next().await.unwrap();
    assert_eq!((first.id, first.topic), (Some(0), None));
    step(&setting, 1, Input::Ready);
    let queued = live.event().await;
    assert_eq!(
        (queued.id, queued.topic.as_deref()),
        (Some(1), Some("deposit"))
    );
    assert_eq!(
        (
            &queued.data["outpoint"],
            &queued.data["status"],
            &queued.data["topic"]
        ),
        (
            &json!(deposit_outpoint(1).to_string()),
            &json!("queued"),
            &json!("deposit")
        )
    );
    step(&setting, 1, Input::Ready);
    step(&setting, 1, Input::Taken);
    let batched = live.event().await;
    assert_eq!(
        (batched.id, &batched.data["status"]),
        (Some(2), &json!("batched")),
        "once for one change"
    );

    let mut again = Following::begin(&setting, get("/v1/events?after=0")).await;
    assert_eq!(
        (again.event().await, again.event().await),
        (queued, batched)
    );
}

#[tokio::test]
async fn a_client_goes_on_where_it_was_after_the_coordinators_restart() {
    let setting = Setting::new();
    for input in [Input::Ready, Input::Taken] {
        step(&setting, 1, input);
    }
    let mut live = Following::begin(&setting, get("/v1/events?after=0")).await;
    let has = live.event().await.id.unwrap();
    drop(live);
    let setting = setting.restarted();
    step(&setting, 1, Input::Signed);
    let mut request = get("/v1/events?after=0");
    // The header is the newer one.
    let id = has.to_string().parse().unwrap();
    request.headers_mut().insert("last-event-id", id);
    let mut live = Following::begin(&setting, request).await;
    let mut next = async || {
        let seen = live.event().await;
        (
            seen.id.unwrap(),
            seen.data["status"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(next().await, (2, "batched".to_owned()));
    assert_eq!(next().await, (3, "signed".to_owned()));
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_said_to_be_gone() {
    let setting = Setting::new();
    let last = u32::try_from(MAX_EVENTS).unwrap() + 2;
    tip(&setting, 0..50_000);
    tip(&setting, 50_000..100_000);
    tip(&setting, 100_000..last);
    for gone in ["0", "1", "100003", &u64::MAX.to_string()] {
        setting
            .get(&format!("/v1/events?after={gone}"))
            .await
            .problem(410, "events_gone");
    }
    let mut live = Following::begin(&setting, get("/v1/events?after=2")).await;
    assert_eq!(live.event().await.data["height"], 2);
    Following::begin(&setting, get("/v1/events?after=100002")).await;

    // A client that is too slow for the log is told where it has a gap.
    let mut slow = Following::begin(&setting, get("/v1/events?after=100000")).await;
    assert_eq!(slow.next().await.unwrap().id, Some(100_000));
    tip(&setting, 0..60_000);
    tip(&setting, 0..60_000);
    assert_eq!(slow.event().await.topic.as_deref(), Some("reset"));
    assert_eq!(slow.next().await, None, "then the stream ends");
}

#[tokio::test]
async fn only_the_topics_asked_for_come() {
    let setting = Setting::new();
    step(&setting, 1, Input::Ready);
    tip(&setting, 7..8);
    step(&setting, 2, Input::Ready);
    let mut live = Following::begin(&setting, get("/v1/events?after=0&topic=tip,alarm")).await;
    let seen = live.event().await;
    assert_eq!((seen.id, &seen.data["height"]), (Some(2), &json!(7)));
    tip(&setting, 8..9);
    assert_eq!(live.event().await.data["height"], 8);
    for bad in ["topic=weather", "topic=", "after=-1", "since=1"] {
        setting
            .get(&format!("/v1/events?{bad}"))
            .await
            .problem(400, "invalid_query");
    }
    let mut request = get("/v1/events");
    request
        .headers_mut()
        .insert("last-event-id", "one".parse().unwrap());
    crate::setting::call(&setting.router, request)
        .await
        .problem(400, "invalid_query");
}

#[tokio::test]
async fn one_address_has_a_share_of_the_streams_and_gets_it_back() {
    let setting = Setting::new();
    let ask = || from(get("/v1/events"), "192.0.2.1:7");
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Following::begin(&setting, ask()).await);
    }
    crate::setting::call(&setting.router, ask())
        .await
        .problem(503, "too_many_streams");
    Following::begin(&setting, from(get("/v1/events"), "192.0.2.2:7")).await;
    drop(open);
    Following::begin(&setting, ask()).await;
}

#[tokio::test]
async fn streams_end_when_the_coordinator_stops() {
    let setting = Setting::new();
    let mut live = Following::begin(&setting, get("/v1/events")).await;
    assert!(live.next().await.is_some());
    let Setting { live: known, .. } = setting;
    drop(known);
    assert_eq!(live.next().await, None);
}
