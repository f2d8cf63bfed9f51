//! What a process that holds secrets does before it touches one (S10): no core dumps, no files that others can
//! read, and no panic that prints what it was working on.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write as _},
    panic::PanicHookInfo,
};

use rustix::{
    fs::Mode,
    process::{self, DumpableBehavior, Resource, Rlimit},
};

/// Why the process can't be hardened.
#[derive(Debug, thiserror::Error)]
#[error("the system does not let this process turn core dumps off")]
pub struct HardenError(#[source] io::Error);

/// Turns core dumps off, for this process and those it starts; keeps debuggers of other users, and of the same
/// user, away; lets new files be for their owner only; and replaces the panic message.
///
/// # Errors
/// [`HardenError`]: a process with secrets must not start then.
pub fn harden() -> Result<(), HardenError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    process::setrlimit(Resource::Core, none).map_err(|errno| HardenError(errno.into()))?;
    // A limit of 0 does not stop dumps that go to a pipe (core(5)); this does.
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| HardenError(errno.into()))?;
    process::umask(Mode::RWXG | Mode::RWXO);
    std::panic::set_hook(Box::new(|panic| {
        // There is nowhere left to report to when stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{}", describe(panic));
    }));
    Ok(())
}

/// Where it panicked, and what the source code says about it. A message that was put together at run time may hold
/// a value, and which one nobody can know here: it is left out.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let place = panic
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let words = panic
        .payload()
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(the message is left out: it could hold a secret)");
    let mut text = format!("panicked at {place}: {words}");
    // Names of functions, no values. Only when RUST_BACKTRACE asks for it.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        text.push('\n');
        text.push_str(&trace.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    // One test: hook, mask and limits belong to the process, and nextest gives each test its own.
    #[test]
    fn a_hardened_process_dumps_no_core_makes_private_files_and_panics_without_values() {
        use std::os::unix::fs::PermissionsExt as _;
        harden().unwrap();
        assert_eq!(process::getrlimit(Resource::Core).current, Some(0));
        assert_eq!(
            process::dumpable_behavior().unwrap(),
            DumpableBehavior::NotDumpable
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        std::panic::set_hook(Box::new(move |panic| {
            heard.lock().unwrap().push(describe(panic));
        }));
        let secret = std::hint::black_box(1_234_567_u32);
        let _ = std::panic::catch_unwind(|| panic!("the scalar is {secret}"));
        let failed: Result<(), u32> = std::hint::black_box(Err(secret));
        let _ = std::panic::catch_unwind(|| failed.unwrap());
        let _ = std::panic::catch_unwind(|| panic!("plain words"));
        let _ = std::panic::take_hook();
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 3);
        for text in told.iter() {
            assert!(
                text.contains("harden.rs") && !text.contains("1234567"),
                "{text}"
            );
        }
        assert!(told[2].contains("plain words"));
    }
}
