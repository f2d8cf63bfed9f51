//! How many pushes a second reach the disk, with 1, 8 and 32 threads pushing at once, beside what
//! the disk itself does: `cargo bench --profile release -p storage --bench queue`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../../benches/steal.rs"]
mod steal;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use steal::Steal;
use storage::{Changes, Queue, QueueDef, QueueLimits, Schema, Store};

const JOBS: QueueDef<u64, Vec<u8>> = QueueDef::new("jobs", 1).limits(QueueLimits {
    max_len: 10_000_000,
    remember_done: 1_000,
});
/// About the size of a signed operation.
const ITEM_BYTES: usize = 256;
const RUN: Duration = Duration::from_secs(3);
const PRODUCERS: [u64; 3] = [1, 8, 32];

fn main() {
    let steal = Steal::now();
    // Under the build directory: the system's temporary folder may be memory, which syncs for free.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    println!(
        "{ITEM_BYTES}-byte items, {} s a line, on {}",
        RUN.as_secs(),
        folder.path().display()
    );
    println!(
        "{:<34} {:>12} {:>14} {:>10}",
        "", "per second", "ms per push", "x fsync"
    );
    let disk = fsyncs_per_second(folder.path());
    line("fdatasync after each append", disk, 1, disk);
    for producers in PRODUCERS {
        let rate = pushes_per_second(&folder.path().join(producers.to_string()), producers);
        line(
            &format!("synced pushes, {producers} at once"),
            rate,
            producers,
            disk,
        );
    }
    let disk_again = fsyncs_per_second(folder.path());
    line("fdatasync after each append, again", disk_again, 1, disk);
    println!("\n{steal}");
}

fn line(what: &str, rate: f64, at_once: u64, disk: f64) {
    let ms = 1_000.0 * at_once as f64 / rate;
    println!("{what:<34} {rate:>12.0} {ms:>14.3} {:>10.2}", rate / disk);
}

fn fsyncs_per_second(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("fsync")).unwrap();
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < RUN {
        file.write_all(&[7; ITEM_BYTES]).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn pushes_per_second(folder: &Path, producers: u64) -> f64 {
    let schema = Schema {
        kind: "bench",
        network: "bench",
        columns: &[JOBS.name()],
    };
    let store = Store::open(folder, &schema).unwrap();
    let queue = store.queue(&JOBS).unwrap();
    let (start, next) = (Instant::now(), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| produce(&store, &queue, start, &next));
        }
    });
    let (rate, pushed) = (next.load(Ordering::Relaxed), queue.lengths().ready as u64);
    assert_eq!(rate, pushed, "every acknowledged push is there");
    rate as f64 / start.elapsed().as_secs_f64()
}

fn produce(store: &Store, queue: &Queue<u64, Vec<u8>>, start: Instant, next: &AtomicU64) {
    while start.elapsed() < RUN {
        let mut changes = Changes::new();
        let key = next.fetch_add(1, Ordering::Relaxed);
        queue
            .push(&mut changes, &key, &vec![7; ITEM_BYTES])
            .unwrap();
        store.commit(changes).unwrap();
    }
}
