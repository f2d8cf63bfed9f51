//! What an administrator may do, and that nobody else may.

use std::path::Path;

use axum::{
    body::Body,
    http::{Request, header},
};
use coordinator::{
    admin::{self, AUDIT},
    api,
    events::{self, EVENTS},
    prove,
    records::{
        BATCHES, BROADCAST, BatchKey, MAX_PROVING, PROVE, Progress, REQUESTS, Request as Wish,
        RequestKey, columns,
    },
};
use node::history::ALARM;
use protocol::{api::RequestStatus, pipeline::request::Input};
use serde_json::{Value, json};
use storage::{Changes, Place, QueueDef, RetryPolicy, Schema, Store};

use crate::setting::{Answer, RATE, Setting, call, deposit_outpoint, get, post};

const LETTERS: &str = "/v1/admin/dead-letters";
const AUDIT_LOG: &str = "/v1/admin/audit";
/// The first attempt is the last.
const ONCE: RetryPolicy = RetryPolicy {
    first_ms: 1,
    longest_ms: 1,
    max_attempts: 1,
};

fn with_token(mut request: Request<Body>, token: &str) -> Request<Body> {
    let value = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
    request
}

async fn ask(setting: &Setting, path: &str) -> Answer {
    call(
        &setting.router,
        with_token(get(path), &setting.admin.secret),
    )
    .await
}

async fn decide(setting: &Setting, path: &str, reason: &str) -> Answer {
    let body = json!({ "reason": reason }).to_string();
    let request = with_token(post(path, body), &setting.admin.secret);
    call(&setting.router, request).await
}

/// Batch 2 waits for its proofs and fails until it is a dead letter.
fn fail_proving(setting: &Setting) {
    let store = &setting.reader.store;
    let queue = store.queue(&PROVE).unwrap();
    let mut changes = Changes::new();
    queue.push(&mut changes, &(2, 0), &2).unwrap();
    store.commit(changes).unwrap();
    let mut now = 1_000_000;
    for _ in 0..MAX_PROVING {
        now += 60_000;
        let lease = queue.lease(now, 1_000).unwrap().expect("it is tried again");
        let record = store.get(&BATCHES, &2).unwrap().unwrap();
        let mut changes = Changes::new();
        prove::fail(
            store,
            &mut changes,
            lease,
            record,
            "the key is damaged",
            now,
        )
        .unwrap();
        store.commit(changes).unwrap();
    }
}

/// A request that has failed once, in a queue that is open with [`ONCE`].
fn fail_request(setting: &Setting) -> String {
    let store = &setting.reader.store;
    let once = QueueDef::<RequestKey, Wish>::new("requests", 1).retry(ONCE);
    let queue = store.queue(&once).unwrap();
    let request = Wish::Deposit(deposit_outpoint(2));
    let mut changes = Changes::new();
    coordinator::queue::mark(store, &mut changes, &request, |progress| {
        progress.take(Input::Ready, None, 5);
    })
    .unwrap();
    queue.push(&mut changes, &([7; 32], 0), &request).unwrap();
    store.commit(changes).unwrap();
    let lease = queue.lease(9, 9).unwrap().unwrap();
    let mut changes = Changes::new();
    queue.retry(&mut changes, lease, 10, "it does not fit");
    store.commit(changes).unwrap();
    format!("{LETTERS}/requests/{}.0", hex::encode([7; 32]))
}

#[tokio::test]
async fn without_tokens_in_the_settings_there_are_no_administrators() {
    let setting = Setting::new();
    let router = api::router(setting.reader.clone(), RATE, Vec::new());
    let request = with_token(get(LETTERS), &setting.admin.secret);
    call(&router, request).await.problem(403, "admin_off");
}

#[tokio::test]
async fn nothing_is_told_or_done_without_a_token_of_the_settings() {
    let setting = Setting::new();
    fail_proving(&setting);
    let retry = format!("{LETTERS}/prove/2.0/retry");
    let body = json!({ "reason": "why not" }).to_string();
    let bare = setting.get(LETTERS).await;
    bare.problem(401, "unauthorized");
    assert_eq!(bare.headers[header::WWW_AUTHENTICATE], "Bearer");
    for wrong in [
        "",
        "drawbridge-admin-",
        &hex::encode(setting.admin.entry.hash),
    ] {
        let request = with_token(post(&retry, body.clone()), wrong);
        call(&setting.router, request)
            .await
            .problem(401, "unauthorized");
    }
    let mut basic = get(AUDIT_LOG);
    let value = format!("Basic {}", setting.admin.secret).parse().unwrap();
    basic.headers_mut().insert(header::AUTHORIZATION, value);
    call(&setting.router, basic)
        .await
        .problem(401, "unauthorized");
    let prove = setting.reader.store.queue(&PROVE).unwrap();
    assert_eq!(prove.place(&(2, 0)).unwrap(), Some(Place::Dead));
    assert_eq!(setting.reader.store.last_number(&AUDIT).unwrap(), 0);
}

#[tokio::test]
async fn tokens_can_not_be_tried_fast() {
    let setting = Setting::new();
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(setting.get(AUDIT_LOG).await.status.as_u16());
    }
    assert!(answers.contains(&429), "{answers:?}");
    assert!(answers.contains(&401), "{answers:?}");
    // Neither others nor an administrator at the same address are slowed down by it.
    setting.get("/v1/status").await.ok();
    ask(&setting, AUDIT_LOG).await.ok();
}

#[tokio::test]
async fn a_batch_that_can_not_be_proven_is_shown_with_its_cause_and_tried_again_on_request() {
    let setting = Setting::new();
    fail_proving(&setting);
    let list = ask(&setting, LETTERS).await.ok();
    assert_eq!(list["total"], 1);
    let letter = &list["items"][0];
    assert_eq!(
        (&letter["queue"], &letter["key"], &letter["subject"]),
        (&json!("prove"), &json!("2.0"), &json!("batch 2"))
    );
    assert_eq!(
        (&letter["cause"], &letter["attempts"], &letter["failed_ms"]),
        (
            &json!("the key is damaged"),
            &json!(MAX_PROVING),
            &json!(1_000_000 + 60_000 * u64::from(MAX_PROVING))
        )
    );
    let batch = setting.get("/v1/batches/2").await.ok();
    let reason = batch["reason"].as_str().unwrap();
    assert!(reason.contains("the key is damaged"), "{reason}");
    assert!(reason.contains("an administrator"), "{reason}");

    let retry = format!("{LETTERS}/prove/2.0/retry");
    decide(&setting, &retry, " ")
        .await
        .problem(422, "invalid_body");
    let act = decide(&setting, &retry, "the key is back").await.ok();
    assert_eq!(
        (&act["who"], &act["act"], &act["subject"], &act["reason"]),
        (
            &json!("alice"),
            &json!("retry"),
            &json!("prove 2.0"),
            &json!("the key is back")
        )
    );
    let prove = setting.reader.store.queue(&PROVE).unwrap();
    assert_eq!(prove.place(&(2, 0)).unwrap(), Some(Place::Queued));
    decide(&setting, &retry, "again")
        .await
        .problem(404, "unknown_dead_letter");
    let log = ask(&setting, AUDIT_LOG).await.ok();
    assert_eq!(log, json!({ "items": [act], "next": null }));
}

#[tokio::test]
async fn a_dropped_batch_is_given_up_and_its_requests_wait_again() {
    let setting = Setting::new();
    let mut changes = Changes::new();
    let request = Wish::Deposit(deposit_outpoint(1));
    coordinator::queue::mark(&setting.reader.store, &mut changes, &request, |progress| {
        progress.take(Input::Ready, None, 5);
        progress.take(Input::Taken, None, 6);
    })
    .unwrap();
    setting.reader.store.commit(changes).unwrap();
    fail_proving(&setting);
    let drop = format!("{LETTERS}/prove/2.0/drop");
    let act = decide(&setting, &drop, "form another one").await.ok();
    assert_eq!(act["act"], "drop");
    assert_eq!(
        setting.get("/v1/batches/2").await.ok()["status"],
        "abandoned"
    );
    let outpoint = deposit_outpoint(1);
    let deposit = setting.get(&format!("/v1/deposits/{outpoint}")).await.ok();
    assert_eq!(
        (&deposit["status"], &deposit["reason"]),
        (
            &json!("queued"),
            &json!("given up by an administrator: form another one")
        )
    );
    let waiting = setting.reader.store.queue(&REQUESTS).unwrap();
    let waiting = waiting.items(9).unwrap();
    assert!(
        waiting
            .iter()
            .any(|(_, wish)| *wish == Wish::Deposit(outpoint))
    );
    let list = ask(&setting, LETTERS).await.ok();
    assert_eq!(list, json!({ "items": [], "total": 0 }));
}

#[tokio::test]
async fn a_dropped_request_is_refused_with_the_administrators_reason() {
    let setting = Setting::new();
    let path = fail_request(&setting);
    let list = ask(&setting, LETTERS).await.ok();
    assert_eq!(list["items"][0]["cause"], "it does not fit");
    decide(&setting, &format!("{path}/drop"), "asked by its user")
        .await
        .ok();
    let outpoint = deposit_outpoint(2);
    let deposit = setting.get(&format!("/v1/deposits/{outpoint}")).await.ok();
    assert_eq!(
        (&deposit["status"], &deposit["reason"]),
        (
            &json!("refused"),
            &json!("dropped by an administrator: asked by its user")
        )
    );
}

#[tokio::test]
async fn a_signed_batch_is_never_dropped() {
    let setting = Setting::new();
    let store = &setting.reader.store;
    let once = QueueDef::<BatchKey, u64>::new("broadcast", 1).retry(ONCE);
    let queue = store.queue(&once).unwrap();
    let mut changes = Changes::new();
    queue.push(&mut changes, &(3, 0), &3).unwrap();
    store.commit(changes).unwrap();
    let lease = queue.lease(1, 1).unwrap().unwrap();
    let mut changes = Changes::new();
    queue.retry(&mut changes, lease, 1, "mempool full");
    store.commit(changes).unwrap();
    let list = ask(&setting, LETTERS).await.ok();
    assert_eq!(list["items"][0]["droppable"], false);
    decide(
        &setting,
        &format!("{LETTERS}/broadcast/3.0/drop"),
        "away with it",
    )
    .await
    .problem(409, "not_droppable");
    let broadcast = store.queue(&BROADCAST).unwrap();
    assert_eq!(broadcast.place(&(3, 0)).unwrap(), Some(Place::Dead));
    assert_eq!(store.last_number(&AUDIT).unwrap(), 0);
}

#[tokio::test]
async fn a_request_that_is_elsewhere_is_not_queued_twice() {
    let setting = Setting::new();
    let path = format!("{}/retry", fail_request(&setting));
    let store = &setting.reader.store;
    let mut changes = Changes::new();
    let request = Wish::Deposit(deposit_outpoint(2));
    coordinator::queue::mark(store, &mut changes, &request, |progress| progress.tries = 1).unwrap();
    store.commit(changes).unwrap();
    let act = decide(&setting, &path, "once more").await.ok();
    let outcome = act["outcome"].as_str().unwrap();
    assert!(outcome.contains("elsewhere"), "{outcome}");
    let queue = store.queue(&REQUESTS).unwrap();
    assert_eq!(queue.place(&([7; 32], 0)).unwrap(), Some(Place::Done));
    assert!(queue.lease(100, 1).unwrap().is_none());
}

#[tokio::test]
async fn the_audit_log_comes_newest_first_in_pages() {
    let setting = Setting::new();
    let path = format!("{}/retry", fail_request(&setting));
    let queue = setting.reader.store.queue(&REQUESTS).unwrap();
    for round in 0..3 {
        decide(&setting, &path, &format!("round {round}"))
            .await
            .ok();
        let lease = queue.lease(100 + round, 1).unwrap().unwrap();
        let mut changes = Changes::new();
        queue.retry(&mut changes, lease, 100 + round, "not yet");
        setting.reader.store.commit(changes).unwrap();
    }
    let reasons = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap().iter();
        items
            .map(|act| act["reason"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = ask(&setting, &format!("{AUDIT_LOG}?limit=2")).await.ok();
    assert_eq!(reasons(&first), ["round 2", "round 1"]);
    let rest = format!("{AUDIT_LOG}?limit=2&after={}", first["next"]);
    let rest = ask(&setting, &rest).await.ok();
    assert_eq!(
        (reasons(&rest), &rest["next"]),
        (vec!["round 0".into()], &Value::Null)
    );
    drop(queue);
    let setting = setting.restarted();
    assert_eq!(
        ask(&setting, AUDIT_LOG).await.ok()["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn a_cleared_alarm_is_in_the_audit_log_and_told_of() {
    let setting = Setting::new();
    let store = &setting.reader.store;
    assert_eq!(admin::clear_alarm(store, "nothing to clear").unwrap(), None);
    let mut changes = Changes::new();
    changes.put(&ALARM, &(), &"a theft".to_owned());
    store.commit(changes).unwrap();
    for _ in 0..2 {
        let mut changes = Changes::new();
        let history = setting.reader.history.read().unwrap();
        events::announce(store, history.as_ref().unwrap(), true, &mut changes).unwrap();
        store.commit(changes).unwrap();
    }
    let cleared = admin::clear_alarm(store, "a false one").unwrap();
    assert_eq!(cleared.as_deref(), Some("a theft"));
    let log = ask(&setting, AUDIT_LOG).await.ok();
    assert_eq!(log["items"].as_array().unwrap().len(), 1);
    let act = &log["items"][0];
    assert_eq!(
        (&act["act"], &act["who"], &act["subject"], &act["reason"]),
        (
            &json!("clear_alarm"),
            &json!("command line"),
            &json!("a theft"),
            &json!("a false one")
        )
    );
    let alarms: Vec<_> = store
        .entries(&EVENTS, 0, 100)
        .unwrap()
        .into_iter()
        .filter_map(|(_, event)| match event.change {
            events::Change::Alarm(reason) => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(alarms, [Some("a theft".to_owned()), None]);
}

/// Copies a database, of its newest log file only so many bytes: as a crash in the middle of a write leaves it.
fn torn(from: &Path, to: &Path, keep: impl Fn(u64) -> u64) {
    std::fs::create_dir_all(to).unwrap();
    let files: Vec<_> = std::fs::read_dir(from)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let is_log = |name: &str| Path::new(name).extension().is_some_and(|end| end == "log");
    let names = files
        .iter()
        .map(|file| file.file_name().into_string().unwrap());
    let newest = names.filter(|name| is_log(name)).max().unwrap();
    for file in files {
        let name = file.file_name().into_string().unwrap();
        if name == "LOCK" || !file.file_type().unwrap().is_file() {
            continue;
        }
        let copy = to.join(&name);
        std::fs::copy(file.path(), &copy).unwrap();
        if name == newest {
            let copy = std::fs::File::options().write(true).open(copy).unwrap();
            copy.set_len(keep(copy.metadata().unwrap().len())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_crash_leaves_the_act_with_its_entry_and_its_event_or_none_of_them() {
    let setting = Setting::new();
    let path = fail_request(&setting);
    let before = setting.reader.store.last_number(&EVENTS).unwrap();
    let log_bytes = |dir: &Path| -> u64 {
        let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
        let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        let newest = logs.max_by_key(|file| file.file_name()).unwrap();
        newest.metadata().unwrap().len()
    };
    let start = log_bytes(setting.folder());
    decide(&setting, &format!("{path}/drop"), "it must go")
        .await
        .ok();
    let end = log_bytes(setting.folder());
    assert!(end > start, "the act is in the log file");
    let mut seen = Vec::new();
    for keep in [start, start + 1, (start + end) / 2, end - 1, end] {
        let copy = tempfile::tempdir().unwrap();
        torn(setting.folder(), copy.path(), |_| keep);
        let schema = Schema {
            kind: "coordinator",
            network: "test",
            columns: &columns(),
        };
        let store = Store::open(copy.path(), &schema).unwrap();
        let is_refused = coordinator::queue::progress(&store, &Wish::Deposit(deposit_outpoint(2)))
            .unwrap()
            .is_some_and(|progress: Progress| progress.status == RequestStatus::Refused);
        let place = store
            .queue(&REQUESTS)
            .unwrap()
            .place(&([7; 32], 0))
            .unwrap();
        let events = store.last_number(&EVENTS).unwrap() - before;
        seen.push((
            is_refused,
            place,
            store.last_number(&AUDIT).unwrap(),
            events,
        ));
    }
    let none = (false, Some(Place::Dead), 0, 0);
    let all = (true, Some(Place::Done), 1, 1);
    assert_eq!(seen, [none, none, none, none, all]);
}
