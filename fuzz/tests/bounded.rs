//! The bounded run: each target, its corpus, and so many seeded mutations of it. See docs/fuzzing.md.
//!
//! `FUZZ_SEED` and `FUZZ_EXECUTIONS` replace seed and number.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use fuzz::{
    Target, Verdict, corpus,
    mutate::Mutator,
    targets::{all, named},
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const SEED: u64 = 1;

macro_rules! targets {
    ($($name:ident)*) => {
        /// One test a target, so that each has its line in the report.
        mod survives_mutated_bytes {
            $( #[test] fn $name() { super::run(stringify!($name)); } )*
        }

        #[test]
        fn every_target_has_its_run() {
            let names: Vec<_> = all().iter().map(|target| target.name).collect();
            let mut tested = vec![$( stringify!($name) ),*];
            let mut named = names.clone();
            tested.sort_unstable();
            named.sort_unstable();
            assert_eq!(tested, named);
        }
    };
}

targets! {
    account_address curve_encodings operations
    key_share group signing_rounds key_generation refresh repair sealed_file
    gossip ask answer evidence batch_body commitment_script deposit_terms roster_and_parameters
    chunk_proof verifying_key attestation_document
    peer_stream bitcoind_reply block coordinator_documents deposit_backup
    stored_rows stored_keys api_operation admin_request operator_files operator_backup verifier
}

#[test]
fn every_target_has_its_libfuzzer_binary() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
    let binaries: Vec<&str> = manifest["bin"]
        .as_array()
        .unwrap()
        .iter()
        .map(|binary| binary["name"].as_str().unwrap())
        .collect();
    let names: Vec<_> = all().iter().map(|target| target.name).collect();
    assert_eq!(binaries, names);
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Memory is counted for the whole process: one target at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn run(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = named(name);
    let files = corpus::read(&target).unwrap();
    let honest = |name: &str| name.starts_with(corpus::HONEST);
    assert!(files.iter().any(|(name, _)| honest(name)), "{REWRITE}");
    for (name, bytes) in &files {
        // The first call of its kind also makes tables that the process keeps; they are no cost of the input.
        drop(panic::catch_unwind(|| (target.run)(bytes)));
        let verdict = call(&target, bytes, name).verdict;
        let expected = !honest(name) || verdict == Verdict::Accepted;
        assert!(expected, "{name} of {} is refused: {REWRITE}", target.name);
    }
    let pool: Vec<Vec<u8>> = files.into_iter().map(|(_, bytes)| bytes).collect();
    let seed = setting("FUZZ_SEED", SEED);
    let executions = setting("FUZZ_EXECUTIONS", target.executions.into());
    let mut mutator = Mutator::new(seed, &pool);
    let (mut accepted, mut slowest, mut most) = (0, Duration::ZERO, 0);
    for execution in 0..executions {
        let input = mutator.next_input();
        let called = call(
            &target,
            &input,
            &format!("seed {seed}, execution {execution}"),
        );
        accepted += u64::from(called.verdict == Verdict::Accepted);
        slowest = slowest.max(called.time);
        most = most.max(called.memory);
    }
    println!(
        "{name}: {executions} executions from seed {seed}, {accepted} accepted; slowest {:.1} ms, most memory {} KiB",
        slowest.as_secs_f64() * 1e3,
        most >> 10
    );
}

const REWRITE: &str = "the corpus is not of this version; write it anew: cargo run --release --workspace --example corpus";

struct Called {
    verdict: Verdict,
    time: Duration,
    memory: usize,
}

/// Calls a target once; what goes wrong is printed with the input that did it.
fn call(target: &Target, input: &[u8], which: &str) -> Called {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let start = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let time = start.elapsed();
    let memory = MEMORY.peak_usage().saturating_sub(before);
    let complain = |what: String| -> ! {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("finding-{}", target.name));
        fs::write(&path, input).unwrap();
        panic!(
            "{} on {which}: {what}\n  input: {}\n  as a file: {}\n  keep it: copy it into fuzz/corpus/{}",
            target.name,
            hex(input),
            path.display(),
            target.name
        );
    };
    match result {
        Err(_) => complain("panicked (see above)".to_owned()),
        Ok(_) if memory > target.memory => {
            complain(format!("took {memory} bytes, more than {}", target.memory))
        }
        Ok(verdict) => Called {
            verdict,
            time,
            memory,
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
