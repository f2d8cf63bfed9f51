//! The corpus: `corpus/TARGET/NAME`. Files called `honest-...` are written by `cargo run -p fuzz --example corpus`
//! and must be accepted; the others are inputs that once broke something.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use crate::{Target, Verdict};

/// How the names of honest files begin.
pub const HONEST: &str = "honest-";

/// The folder of a target's corpus.
pub fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// All files of a target in the order of their names.
///
/// # Errors
/// When the folder can't be read.
pub fn read(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder(target))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.push((name.into_owned(), fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}

/// Writes a target's honest files: all of them anew, or only those that are missing or that `run` refuses by now.
///
/// # Errors
/// When they can't be written.
pub fn write(target: &Target, anew: bool) -> io::Result<()> {
    let folder = folder(target);
    fs::create_dir_all(&folder)?;
    let good: BTreeSet<String> = read(target)?
        .into_iter()
        .filter(|(_, bytes)| {
            // A target whose own fixtures are of an old version panics.
            let run = || (target.run)(bytes);
            !anew && catch_unwind(run).is_ok_and(|verdict| verdict == Verdict::Accepted)
        })
        .map(|(name, _)| name)
        .collect();
    let honest: BTreeMap<String, Vec<u8>> = (target.honest)()
        .into_iter()
        .map(|(name, bytes)| (format!("{HONEST}{name}"), bytes))
        .collect();
    for (name, _) in read(target)? {
        if name.starts_with(HONEST) && !honest.contains_key(&name) {
            fs::remove_file(folder.join(name))?;
        }
    }
    for (name, bytes) in honest {
        if !good.contains(&name) {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
