//! A node that dies wherever it can: the real coordinator or operator with a hook at every point where something durable
//! is written or something leaves it ([`failpoint`]). All nodes of a role share a folder in which each point is claimed once:
//!
//! ```text
//! point reached --> in the sample? --> claimed before? --no--> file made, process aborted
//!                        '-- no, or yes: it goes on -------------------------'  and started again by the network
//! ```
//!
//! So every point that is ever reached kills exactly one node of its role, the first time that any of them gets there, and
//! a node that was killed has passed all points that it dies at no more.

use std::{
    collections::HashSet,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use bitcoin::hashes::{Hash as _, sha256};
use failpoint::Point;

/// Where the points are noted that were reached and are not in the sample.
const SPARED: &str = "spared";
/// What a crasher logs last.
pub const DIES: &str = "dies here, as told";

/// At which of the points nodes die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashes {
    /// At one point in so many; 1 for all.
    pub one_in: u64,
    /// Chooses them.
    pub seed: u64,
}

impl Crashes {
    /// At every point.
    pub const EVERYWHERE: Self = Self { one_in: 1, seed: 0 };

    fn has(&self, point: &str) -> bool {
        // The same on every machine and with every compiler.
        let hash = sha256::Hash::hash(format!("{}/{point}", self.seed).as_bytes());
        let [first, second, ..] = hash.to_byte_array();
        u64::from(u16::from_be_bytes([first, second])).is_multiple_of(self.one_in.max(1))
    }
}

/// Which program a crasher runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// `drawbridge-coordinator`.
    Coordinator,
    /// `drawbridge-operator`.
    Operator,
}

impl Role {
    /// Of the program of that name.
    pub fn of(program: &str) -> Self {
        if program.ends_with("coordinator") {
            Self::Coordinator
        } else {
            Self::Operator
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Operator => "operator",
        }
    }
}

/// Where the nodes of a role claim points.
#[derive(Clone, Debug)]
pub struct Claims {
    role: Role,
    folder: PathBuf,
    crashes: Crashes,
}

impl Claims {
    /// Makes the folder.
    ///
    /// # Errors
    /// What the system said.
    pub fn lay_out(dir: &Path, role: Role, crashes: Crashes) -> anyhow::Result<Self> {
        let folder = dir.join(role.name());
        fs::create_dir_all(folder.join(SPARED))?;
        Ok(Self {
            role,
            folder,
            crashes,
        })
    }

    /// What the crasher is started with.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            "--role".to_owned(),
            self.role.name().to_owned(),
            "--claims".to_owned(),
            self.folder.to_string_lossy().into_owned(),
            "--one-in".to_owned(),
            self.crashes.one_in.to_string(),
            "--seed".to_owned(),
            self.crashes.seed.to_string(),
        ]
    }

    /// The point that a process has died at.
    ///
    /// # Errors
    /// When a claim can't be read.
    pub fn of(&self, pid: u32) -> anyhow::Result<Option<String>> {
        for (point, by) in claims_in(&self.folder)? {
            if by == pid {
                return Ok(Some(point));
            }
        }
        Ok(None)
    }
}

/// The points in a folder of claims, and who has claimed them.
fn claims_in(folder: &Path) -> anyhow::Result<Vec<(String, u32)>> {
    let mut claims = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_file() {
            let text = fs::read_to_string(&path)?;
            // One that is being written at this moment is whole by the next look.
            if let Some((pid, point)) = text.split_once(' ') {
                claims.push((point.to_owned(), pid.parse()?));
            }
        }
    }
    Ok(claims)
}

/// Points at which a node of the role has died, and points that were reached and spared.
///
/// # Errors
/// When a claim can't be read.
pub fn reached(dir: &Path, role: Role) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let folder = dir.join(role.name());
    let names = |folder: &Path| -> anyhow::Result<Vec<String>> {
        let mut names: Vec<_> = claims_in(folder)?
            .into_iter()
            .map(|claim| claim.0)
            .collect();
        names.sort();
        Ok(names)
    };
    Ok((names(&folder)?, names(&folder.join(SPARED))?))
}

/// The hook.
pub struct Crasher {
    folder: PathBuf,
    crashes: Crashes,
    /// Points that don't kill this process.
    passed: Mutex<HashSet<Point>>,
}

impl Crasher {
    /// With this folder of claims.
    pub fn new(folder: PathBuf, crashes: Crashes) -> Self {
        Self {
            folder,
            crashes,
            passed: Mutex::default(),
        }
    }

    /// Dies here, or notes that it does not.
    ///
    /// # Panics
    /// When nothing can be noted: the test is worth nothing then.
    #[allow(clippy::panic, reason = "a hook has nobody to tell")]
    pub fn reach(&self, point: Point) {
        let is_new = self
            .passed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(point);
        if !is_new {
            return;
        }
        let name = point.to_string();
        let dies = self.crashes.has(&name);
        let folder = if dies {
            self.folder.clone()
        } else {
            self.folder.join(SPARED)
        };
        match claim(&folder, &name) {
            Ok(true) if dies => {
                tracing::warn!(point = name, "{DIES}");
                std::process::abort();
            }
            Ok(_) => {}
            Err(error) => panic!("{}: {error}", folder.display()),
        }
    }
}

/// Gives whether nobody had claimed the point.
fn claim(folder: &Path, point: &str) -> io::Result<bool> {
    let name = point.replace(['/', ' '], "_");
    let file = fs::File::options()
        .write(true)
        .create_new(true)
        .open(folder.join(name));
    match file {
        Ok(mut file) => {
            file.write_all(format!("{} {point}", std::process::id()).as_bytes())?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_claimed_once_and_says_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::lay_out(dir.path(), Role::Operator, Crashes::EVERYWHERE).unwrap();
        let point = "before write operator/src/promises.rs:1";
        assert!(claim(&claims.folder, point).unwrap());
        assert!(!claim(&claims.folder, point).unwrap());
        let own = std::process::id();
        assert_eq!(claims.of(own).unwrap().as_deref(), Some(point));
        assert_eq!(claims.of(own.wrapping_add(1)).unwrap(), None);
        let (died, spared) = reached(dir.path(), Role::Operator).unwrap();
        assert_eq!((died.len(), spared.len()), (1, 0));
    }

    #[test]
    fn a_sample_depends_on_the_seed_and_has_about_its_share() {
        let points: Vec<String> = (0..4_000)
            .map(|n| format!("before write a.rs:{n}"))
            .collect();
        let sample = |seed| -> Vec<&String> {
            let crashes = Crashes { one_in: 8, seed };
            points.iter().filter(|point| crashes.has(point)).collect()
        };
        assert!((400..600).contains(&sample(1).len()), "{}", sample(1).len());
        assert_ne!(sample(1), sample(2));
        assert!(points.iter().all(|point| Crashes::EVERYWHERE.has(point)));
    }
}
