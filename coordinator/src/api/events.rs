//! Server-sent events: every change, in the order in which it was written, to whoever follows.
//!
//! A stream reads the log page by page as its client takes it, so a slow client costs a page; `slow` closes the
//! connection of one that takes nothing. It comes back with the last id that it has.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{FromRequestParts, State},
    http::{HeaderMap, request::Parts},
    response::{
        IntoResponse as _, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use protocol::api::{EventDocument, EventsQuery, Topic};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    Api, Route, Shared,
    admin::address,
    extract::Query,
    limit::{Connections, Slot, client},
    problem::{Code, Failure},
};
use crate::{
    events::{EVENTS, document},
    live::Reader,
};

/// Streams of all clients.
pub const MAX_STREAMS: usize = 128;
/// Events read at a time.
const PAGE: usize = 200;
/// How often a stream at its end looks for more; a look costs no disk.
const POLL: Duration = Duration::from_millis(200);
/// Without an event for so long, a comment says that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A stream ends after this long; its client comes back where it was.
const LONGEST: Duration = Duration::from_secs(3_600);
/// When a client comes back, in ms.
const COME_BACK: Duration = Duration::from_secs(2);

/// Room for streams.
pub(super) struct Streams {
    per_address: usize,
    clients: Arc<Connections>,
    /// One page is read at a time: streams that pass over a long log, and send nothing of it, take one core at most.
    reading: Semaphore,
}

impl Streams {
    pub(super) fn new(per_address: usize) -> Self {
        Self {
            per_address,
            clients: Arc::new(Connections::new(MAX_STREAMS, per_address)),
            reading: Semaphore::new(1),
        }
    }
}

/// Room for one stream.
struct Seat {
    _slot: Slot,
}

impl FromRequestParts<Shared> for Seat {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Failure> {
        let slot = api.streams.clients.open(client(address(parts)));
        slot.map(|_slot| Self { _slot }).ok_or_else(|| {
            let of_address = api.streams.per_address;
            let detail = format!(
                "{MAX_STREAMS} streams are open, or {of_address} of this address; close one"
            );
            Failure::new(Code::TooManyStreams, detail)
        })
    }
}

/// Follows what changes, as server-sent events: `event` is the topic, `id` goes up, `data` is an event document in JSON.
/// An event `reset` says that what comes next is not kept any more. Comments keep the connection alive.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "Continue after the event with this id")),
    responses((status = 200, description = "Events until either side closes", body = EventDocument,
        content_type = "text/event-stream")))]
async fn follow(
    State(api): State<Shared>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
    seat: Seat,
) -> Result<Response, Failure> {
    let topics = topics_of(query.topic.as_deref())?;
    let after = match headers.get("last-event-id") {
        None => query.after,
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| text.parse().ok());
            let detail = "Last-Event-ID is a decimal number";
            Some(id.ok_or_else(|| Failure::new(Code::InvalidQuery, detail))?)
        }
    };
    let position = api.look(move |reader| start(reader, after)).await?;
    let first = Event::default()
        .comment("following")
        .id(position.to_string())
        .retry(COME_BACK);
    let stream = Stream {
        api,
        position,
        topics,
        ready: VecDeque::from([first]),
        is_over: false,
        said: Instant::now(),
        ends: Instant::now() + LONGEST,
        _seat: seat,
    };
    let events = futures::stream::unfold(stream, |mut stream| async {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    Ok(([("x-accel-buffering", "no")], Sse::new(events)).into_response())
}

fn topics_of(text: Option<&str>) -> Result<BTreeSet<Topic>, Failure> {
    let Some(text) = text else {
        return Ok(Topic::ALL.into());
    };
    text.split(',')
        .map(|name| {
            let topic = Topic::ALL.into_iter().find(|topic| topic.as_str() == name);
            topic.ok_or_else(|| {
                let names = Topic::ALL.map(Topic::as_str).join(", ");
                let detail = format!("there is no topic \"{name}\"; there are {names}");
                Failure::new(Code::InvalidQuery, detail)
            })
        })
        .collect()
}

/// The event to go on after, if all that came after it is still there.
fn start(reader: &Reader, after: Option<u64>) -> Result<u64, Failure> {
    let last = reader.store.last_number(&EVENTS)?;
    let Some(after) = after else {
        return Ok(last);
    };
    let next = reader.store.entries(&EVENTS, after, 1)?;
    let following = after.checked_add(1);
    let is_there = next.first().is_some_and(|(id, _)| Some(*id) == following);
    if is_there || after == last {
        return Ok(after);
    }
    let detail = format!(
        "what came after event {after} is not kept here (the newest is {last}); read the resources that you follow, \
         then follow without an id"
    );
    Err(Failure::new(Code::EventsGone, detail))
}

/// One client's place in the log.
struct Stream {
    api: Arc<Api>,
    position: u64,
    topics: BTreeSet<Topic>,
    ready: VecDeque<Event>,
    is_over: bool,
    said: Instant,
    ends: Instant,
    _seat: Seat,
}

impl Stream {
    /// The next event; `None` when the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.said = Instant::now();
                return Some(event);
            }
            // The sender of what is known goes away when the coordinator stops.
            let has_stopped = self.api.reader.live.has_changed().is_err();
            if self.is_over || has_stopped || Instant::now() >= self.ends {
                return None;
            }
            if self.said.elapsed() >= HEARTBEAT {
                // With the id, so that a client of a quiet topic does not fall behind.
                let id = self.position.to_string();
                self.ready
                    .push_back(Event::default().comment("alive").id(id));
                continue;
            }
            let last = self.api.reader.store.last_number(&EVENTS).ok()?;
            if last == self.position {
                tokio::time::sleep(POLL).await;
                continue;
            }
            self.read().await?;
        }
    }

    /// Takes a page of the log.
    async fn read(&mut self) -> Option<()> {
        let after = self.position;
        let page = move |reader: &Reader| Ok(reader.store.entries(&EVENTS, after, PAGE)?);
        let page = {
            let _turn = self.api.streams.reading.acquire().await.ok()?;
            self.api.look(page).await.ok()?
        };
        for (id, event) in page {
            if Some(id) != self.position.checked_add(1) {
                self.is_over = true;
                let gone = Event::default()
                    .event("reset")
                    .data("events are missing here; read the resources that you follow");
                self.ready.push_back(gone);
                return Some(());
            }
            self.position = id;
            let document = document(event);
            let topic = document.topic();
            if self.topics.contains(&topic) {
                let event = Event::default().id(id.to_string()).event(topic.as_str());
                self.ready.push_back(event.json_data(&document).ok()?);
            }
        }
        Some(())
    }
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    let codes = [
        Code::InvalidQuery,
        Code::EventsGone,
        Code::TooManyStreams,
        Code::Storage,
    ];
    vec![Route::new("/v1/events", get(follow), &codes)]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(follow), components(schemas(EventDocument)))]
pub(super) struct Doc;
