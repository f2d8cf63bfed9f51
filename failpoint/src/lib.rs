//! The places at which a process may die and must not matter: before and after every durable write, every message and
//! every transaction that leaves it.
//!
//! ```text
//!   Store::commit, Network::publish, ask, Reply::send, send_transaction, files
//!        `--> before(deed, place) ... the deed itself ... after(deed, place)
//!                  `--> the hook, if the program has set one
//! ```
//!
//! No list of them is kept by hand: a point is named by the line of code that asks for the deed
//! ([`std::panic::Location`], handed on by `#[track_caller]`). The nodes' own programs set no hook, so that a point costs one load
//! there, and neither a setting nor a variable can kill them. The testnet's program does
//! (`docs/decisions/0020-failpoints.md`).
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

use std::{fmt, panic::Location, sync::OnceLock};

/// What is about to happen, or has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deed {
    /// A synced write to the database.
    Write,
    /// A file that is written, renamed or removed.
    File,
    /// A message to another node.
    Send,
    /// A transaction to the own Bitcoin node.
    Submit,
}

/// On which side of the deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Moment {
    /// It has not happened.
    Before,
    /// It has happened, and nobody has been told.
    After,
}

/// A point that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// What is done there.
    pub deed: Deed,
    /// On which side of it.
    pub moment: Moment,
    /// The line that asks for it.
    pub place: &'static Location<'static>,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = match self.moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        let deed = match self.deed {
            Deed::Write => "write",
            Deed::File => "file",
            Deed::Send => "send",
            Deed::Submit => "submit",
        };
        let (file, line) = (self.place.file(), self.place.line());
        write!(f, "{moment} {deed} {file}:{line}")
    }
}

type Hook = Box<dyn Fn(Point) + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// There is a hook already; it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadySet;

impl fmt::Display for AlreadySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this process has a failpoint hook already")
    }
}

impl std::error::Error for AlreadySet {}

/// Has `hook` called at every point from now on, by the thread that reaches it.
///
/// # Errors
/// [`AlreadySet`] the second time.
pub fn set(hook: impl Fn(Point) + Send + Sync + 'static) -> Result<(), AlreadySet> {
    HOOK.set(Box::new(hook)).map_err(|_| AlreadySet)
}

/// The deed is about to happen.
pub fn before(deed: Deed, place: &'static Location<'static>) {
    reach(deed, Moment::Before, place);
}

/// The deed has happened.
pub fn after(deed: Deed, place: &'static Location<'static>) {
    reach(deed, Moment::After, place);
}

fn reach(deed: Deed, moment: Moment, place: &'static Location<'static>) {
    if let Some(hook) = HOOK.get() {
        hook(Point {
            deed,
            moment,
            place,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static REACHED: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[track_caller]
    fn deed() {
        let place = Location::caller();
        before(Deed::Submit, place);
        after(Deed::Submit, place);
    }

    #[test]
    fn a_point_is_named_by_the_line_that_asks_and_reaches_the_hook_once_there_is_one() {
        deed();
        set(|point| REACHED.lock().unwrap().push(point.to_string())).unwrap();
        let line = line!() + 1;
        deed();
        let place = format!("{}:{line}", file!());
        let expected = ["before", "after"].map(|moment| format!("{moment} submit {place}"));
        assert_eq!(*REACHED.lock().unwrap(), expected);
        assert_eq!(set(|_| ()), Err(AlreadySet));
    }
}
