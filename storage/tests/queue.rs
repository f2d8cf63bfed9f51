//! The queue on a real disk: single properties, then random steps against a model.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use storage::{
    Changes, Lease, Lengths, Place, PushError, Queue, QueueDef, QueueLimits, RetryPolicy, Schema,
    Store, Table,
};

const MAX_LEN: usize = 6;
const REMEMBER: u64 = 3;
const ATTEMPTS: u32 = 3;
const FIRST_MS: u64 = 100;
const LONGEST_MS: u64 = 150;
const LEASE_MS: u64 = 50;

const JOBS: QueueDef<u64, String> = QueueDef::new("jobs", 1)
    .limits(QueueLimits {
        max_len: MAX_LEN,
        remember_done: REMEMBER,
    })
    .retry(RetryPolicy {
        first_ms: FIRST_MS,
        longest_ms: LONGEST_MS,
        max_attempts: ATTEMPTS,
    });
const NEXT: QueueDef<u64, String> = QueueDef::new("next", 1);
const ROWS: Table<u64, String> = Table::new("rows", 1);
const SCHEMA: Schema<'static> = Schema {
    kind: "coordinator",
    network: "regtest",
    columns: &[JOBS.name(), NEXT.name(), ROWS.name()],
};

struct Fixture {
    store: Store,
    queue: Queue<u64, String>,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &SCHEMA).unwrap();
        let queue = store.queue(&JOBS).unwrap();
        Self {
            store,
            queue,
            folder,
        }
    }

    fn restart(self) -> Self {
        let Self {
            store,
            queue,
            folder,
        } = self;
        drop((store, queue));
        let store = Store::open(folder.path(), &SCHEMA).unwrap();
        let queue = store.queue(&JOBS).unwrap();
        Self {
            store,
            queue,
            folder,
        }
    }

    fn commit(&self, f: impl FnOnce(&mut Changes)) {
        let mut changes = Changes::new();
        f(&mut changes);
        self.store.commit(changes).unwrap();
    }

    fn push(&self, key: u64) -> Result<(), PushError> {
        let mut changes = Changes::new();
        self.queue.push(&mut changes, &key, &format!("job {key}"))?;
        self.store.commit(changes).unwrap();
        Ok(())
    }

    fn lease(&self, now: u64) -> Option<Lease<u64, String>> {
        self.queue.lease(now, LEASE_MS).unwrap()
    }

    fn keys(&self) -> Vec<u64> {
        self.queue
            .items(100)
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }
}

#[test]
fn items_come_oldest_first_and_only_once_while_leased() {
    let f = Fixture::new();
    for key in [30, 10, 20] {
        f.push(key).unwrap();
    }
    let order: Vec<u64> = std::iter::from_fn(|| f.lease(0).map(|lease| lease.key)).collect();
    assert_eq!(order, [30, 10, 20]);
    assert_eq!(f.queue.next_due_ms(), Some(LEASE_MS));
    assert_eq!(
        f.lease(LEASE_MS).unwrap().key,
        30,
        "the first lease ran out"
    );
}

#[test]
fn a_step_moves_from_one_queue_to_the_next_in_one_commit() {
    let f = Fixture::new();
    let next = f.store.queue(&NEXT).unwrap();
    f.push(1).unwrap();
    let lease = f.lease(0).unwrap();
    let mut changes = Changes::new();
    changes.put(&ROWS, &1, &lease.item);
    next.push(&mut changes, &1, &"next".to_owned()).unwrap();
    f.queue.ack(&mut changes, lease);
    assert_eq!(
        (f.keys(), next.items(9).unwrap().len()),
        (vec![1], 0),
        "nothing before the commit"
    );
    f.store.commit(changes).unwrap();
    assert_eq!(f.keys(), [0; 0]);
    assert_eq!(next.items(9).unwrap(), [(1, "next".to_owned())]);
    assert_eq!(f.store.get(&ROWS, &1).unwrap().as_deref(), Some("job 1"));
}

#[test]
fn pushing_a_key_again_does_nothing_while_it_is_queued_dead_or_remembered() {
    let f = Fixture::new();
    f.commit(|changes| {
        for text in ["first", "second"] {
            f.queue.push(changes, &1, &text.to_owned()).unwrap();
        }
    });
    assert_eq!(f.queue.items(9).unwrap(), [(1, "first".to_owned())]);
    let lease = f.lease(0).unwrap();
    f.commit(|changes| f.queue.ack(changes, lease));
    f.push(1).unwrap();
    assert_eq!(f.keys(), [0; 0]);
    assert_eq!(f.queue.place(&1).unwrap(), Some(Place::Done));
    // After REMEMBER other keys it is forgotten.
    for key in 2..2 + REMEMBER {
        f.push(key).unwrap();
        let lease = f.lease(0).unwrap();
        f.commit(|changes| f.queue.ack(changes, lease));
    }
    assert_eq!(f.queue.place(&1).unwrap(), None);
    f.push(1).unwrap();
    assert_eq!(f.keys(), [1]);
}

#[test]
fn the_bound_counts_what_is_collected_and_not_yet_committed() {
    let f = Fixture::new();
    let mut changes = Changes::new();
    for key in 0..MAX_LEN as u64 {
        f.queue.push(&mut changes, &key, &String::new()).unwrap();
    }
    let mut other = Changes::new();
    let full = f.queue.push(&mut other, &99, &String::new()).unwrap_err();
    assert!(
        matches!(
            full,
            PushError::QueueFull {
                max_len: MAX_LEN,
                ..
            }
        ),
        "{full}"
    );
    drop(changes);
    f.push(99).unwrap();
    assert_eq!(f.keys(), [99]);
}

#[test]
fn attempts_wait_longer_and_end_as_a_dead_letter_that_an_operator_decides_about() {
    let f = Fixture::new();
    f.push(1).unwrap();
    f.push(2).unwrap();
    let mut now = 0;
    for attempt in 1..=ATTEMPTS {
        let lease = f.lease(now).unwrap();
        assert_eq!((lease.key, lease.attempts), (1, attempt - 1));
        f.commit(|changes| f.queue.retry(changes, lease, now, "no fee estimate"));
        if attempt < ATTEMPTS {
            let wait = if attempt == 1 { FIRST_MS } else { LONGEST_MS };
            let other = f.lease(now).expect("the other item is not held up");
            assert_eq!(other.key, 2);
            f.queue.release(other);
            now += wait;
        }
    }
    let dead = f.queue.dead_letters(9).unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].key, dead[0].attempts), (1, ATTEMPTS));
    assert_eq!(dead[0].error, "no fee estimate");
    assert_eq!(f.queue.dead_letter(&1).unwrap().as_ref(), Some(&dead[0]));
    assert_eq!(f.queue.dead_letter(&2).unwrap(), None);
    let f = f.restart();
    assert_eq!(
        f.queue.lengths(),
        Lengths {
            ready: 0,
            waiting: 1,
            dead: 1,
            done: 0
        }
    );
    f.commit(|changes| f.queue.requeue(changes, &1));
    assert_eq!(f.keys(), [1, 2], "back in its old place");
    assert_eq!(f.lease(now).unwrap().attempts, 0);
}

#[test]
fn what_can_be_had_is_counted_after_a_restart_and_when_a_wait_is_over() {
    let f = Fixture::new();
    for key in 1..=3 {
        f.push(key).unwrap();
    }
    assert_eq!(f.queue.ready_at(0), 3);
    let f = f.restart();
    assert_eq!(f.queue.ready_at(0), 3, "nothing was pushed or leased since");
    let leased = f.lease(0).unwrap();
    assert_eq!(f.queue.ready_at(LEASE_MS - 1), 2);
    assert_eq!(f.queue.ready_at(LEASE_MS), 3);
    let _ = leased;
}

#[test]
fn a_back_off_outlives_a_restart_and_a_lease_does_not() {
    let f = Fixture::new();
    f.push(1).unwrap();
    f.push(2).unwrap();
    let lease = f.lease(1_000).unwrap();
    f.commit(|changes| f.queue.retry(changes, lease, 1_000, "later"));
    assert_eq!(f.lease(1_000).unwrap().key, 2);
    let f = f.restart();
    assert_eq!(f.lease(1_000).unwrap().key, 2, "leased before the restart");
    assert!(
        f.lease(1_000 + FIRST_MS - 1)
            .is_none_or(|lease| lease.key != 1)
    );
    assert_eq!(f.lease(1_000 + FIRST_MS).unwrap().key, 1);
}

#[test]
fn a_clock_that_jumps_back_does_not_hold_an_item_for_long() {
    let f = Fixture::new();
    f.push(1).unwrap();
    let year = 365 * 24 * 60 * 60 * 1000;
    let lease = f.lease(50 * year).unwrap();
    f.commit(|changes| f.queue.retry(changes, lease, 50 * year, "later"));
    assert_eq!(f.lease(49 * year).unwrap().key, 1);
}

#[test]
fn work_done_after_the_lease_ran_out_is_done() {
    let f = Fixture::new();
    f.push(1).unwrap();
    let slow = f.lease(0).unwrap();
    let second = f.lease(LEASE_MS).unwrap();
    f.commit(|changes| f.queue.ack(changes, slow));
    f.commit(|changes| f.queue.retry(changes, second, LEASE_MS, "was done already"));
    assert_eq!(
        f.queue.lengths(),
        Lengths {
            ready: 0,
            waiting: 0,
            dead: 0,
            done: 1
        }
    );
    assert!(f.lease(10_000).is_none());
}

#[test]
fn a_step_for_another_stores_queue_is_refused() {
    let (a, b) = (Fixture::new(), Fixture::new());
    let mut changes = Changes::new();
    a.queue.push(&mut changes, &1, &String::new()).unwrap();
    b.store.commit(changes).unwrap_err();
    assert_eq!((a.keys(), b.keys()), (vec![], vec![]));
}

/// What can be done to a queue.
#[derive(Clone, Debug)]
enum Step {
    Push(Vec<u64>),
    Lease,
    Ack(usize),
    Retry(usize),
    Release(usize),
    Requeue(u64),
    Discard(u64),
    Wait(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12_u64;
    prop_oneof![
        6 => prop::collection::vec(key.clone(), 1..4).prop_map(Step::Push),
        6 => Just(Step::Lease),
        3 => (0..4_usize).prop_map(Step::Ack),
        5 => (0..4_usize).prop_map(Step::Retry),
        1 => (0..4_usize).prop_map(Step::Release),
        1 => key.clone().prop_map(Step::Requeue),
        1 => key.prop_map(Step::Discard),
        3 => (0..200_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

#[derive(Clone, Debug)]
struct ModelItem {
    key: u64,
    attempts: u32,
    not_before: u64,
    leased_until: u64,
}

/// The queue as its documentation tells it, without a disk.
#[derive(Default)]
struct Model {
    now: u64,
    next: u64,
    items: BTreeMap<u64, ModelItem>,
    dead: BTreeMap<u64, u64>,
    done: VecDeque<u64>,
}

impl Model {
    fn knows(&self, key: u64) -> bool {
        self.items.values().any(|item| item.key == key)
            || self.dead.values().any(|dead| *dead == key)
            || self.done.contains(&key)
    }

    fn push(&mut self, key: u64) -> bool {
        if self.knows(key) {
            return true;
        }
        if self.items.len() + self.dead.len() >= MAX_LEN {
            return false;
        }
        let item = ModelItem {
            key,
            attempts: 0,
            not_before: 0,
            leased_until: 0,
        };
        self.items.insert(self.next, item);
        self.next += 1;
        true
    }

    fn lease(&mut self) -> Option<u64> {
        let now = self.now;
        let mut items = self.items.iter_mut();
        let (seq, item) =
            items.find(|(_, item)| item.not_before <= now && item.leased_until <= now)?;
        item.leased_until = now + LEASE_MS;
        Some(*seq)
    }

    fn finish(&mut self, key: u64) {
        self.done.push_back(key);
        if self.done.len() as u64 > REMEMBER {
            self.done.pop_front();
        }
    }

    fn ack(&mut self, seq: u64) {
        if let Some(item) = self.items.remove(&seq) {
            self.finish(item.key);
        }
    }

    fn retry(&mut self, seq: u64) {
        let now = self.now;
        let Some(item) = self.items.get_mut(&seq) else {
            return;
        };
        item.attempts += 1;
        item.leased_until = 0;
        item.not_before = now
            + if item.attempts == 1 {
                FIRST_MS
            } else {
                LONGEST_MS
            };
        if item.attempts == ATTEMPTS {
            let key = item.key;
            self.items.remove(&seq);
            self.dead.insert(seq, key);
        }
    }

    fn take_dead(&mut self, key: u64) -> Option<u64> {
        let seq = *self.dead.iter().find(|(_, dead)| **dead == key)?.0;
        self.dead.remove(&seq);
        Some(seq)
    }
}

/// Leases with their item's number and their end.
type Held = Vec<((u64, u64), Lease<u64, String>)>;

fn apply(f: Fixture, model: &mut Model, held: &mut Held, step: Step) -> Fixture {
    let pick = |held: &mut Held, i: usize| (i < held.len()).then(|| held.remove(i));
    match step {
        Step::Push(keys) => {
            let mut changes = Changes::new();
            // Repeats in one set take a slot until the commit, so the model sees each key once.
            let mut unique = keys;
            unique.sort_unstable();
            unique.dedup();
            for key in unique {
                let pushed = f
                    .queue
                    .push(&mut changes, &key, &format!("job {key}"))
                    .is_ok();
                assert_eq!(pushed, model.push(key), "push {key}");
            }
            f.store.commit(changes).unwrap();
        }
        Step::Lease => {
            let (real, seq) = (f.lease(model.now), model.lease());
            assert_eq!(
                real.as_ref().map(|l| l.key),
                seq.map(|seq| model.items[&seq].key)
            );
            if let (Some(lease), Some(seq)) = (real, seq) {
                assert_eq!(lease.attempts, model.items[&seq].attempts);
                assert_eq!(lease.item, format!("job {}", lease.key));
                held.push(((seq, model.items[&seq].leased_until), lease));
            }
        }
        Step::Ack(i) => {
            if let Some(((seq, _), lease)) = pick(held, i) {
                f.commit(|changes| f.queue.ack(changes, lease));
                model.ack(seq);
            }
        }
        Step::Retry(i) => {
            if let Some(((seq, _), lease)) = pick(held, i) {
                f.commit(|changes| f.queue.retry(changes, lease, model.now, "failed"));
                model.retry(seq);
            }
        }
        Step::Release(i) => {
            if let Some(((seq, until), lease)) = pick(held, i) {
                f.queue.release(lease);
                if let Some(item) = model.items.get_mut(&seq)
                    && item.leased_until == until
                {
                    item.leased_until = 0;
                }
            }
        }
        Step::Requeue(key) => {
            f.commit(|changes| f.queue.requeue(changes, &key));
            if let Some(seq) = model.take_dead(key) {
                let item = ModelItem {
                    key,
                    attempts: 0,
                    not_before: 0,
                    leased_until: 0,
                };
                model.items.insert(seq, item);
            }
        }
        Step::Discard(key) => {
            f.commit(|changes| f.queue.discard(changes, &key));
            if model.take_dead(key).is_some() {
                model.finish(key);
            }
        }
        Step::Wait(ms) => model.now += ms,
        Step::Restart => {
            held.clear();
            for item in model.items.values_mut() {
                item.leased_until = 0;
            }
            return f.restart();
        }
    }
    f
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_steps_agree_with_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let (mut f, mut model, mut held) = (Fixture::new(), Model::default(), Held::new());
        for step in steps {
            f = apply(f, &mut model, &mut held, step);
            let queued: Vec<u64> = model.items.values().map(|item| item.key).collect();
            prop_assert_eq!(f.keys(), queued);
            let dead: Vec<u64> =
                f.queue.dead_letters(100).unwrap().into_iter().map(|d| d.key).collect();
            prop_assert_eq!(dead, model.dead.values().copied().collect::<Vec<_>>());
            let lengths = f.queue.lengths();
            prop_assert_eq!(lengths.ready + lengths.waiting, model.items.len());
            prop_assert_eq!((lengths.dead, lengths.done), (model.dead.len(), model.done.len() as u64));
            for key in 0..12 {
                prop_assert_eq!(f.queue.place(&key).unwrap().is_some(), model.knows(key));
            }
        }
    }
}
