//! A small file system in memory for one node's data, to be filled up.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// What takes the room.
const FILLER: &str = "filler";
/// The filler grows by so much at a time; the last bytes one by one.
const STEP: usize = 64 * 1024;

/// A mounted tmpfs. Dropping it unmounts it, with what is on it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one over an empty folder.
    ///
    /// # Errors
    /// Without the right to mount, for example.
    pub fn mount(path: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mebibytes}m,mode=0700"))
            .arg("drawbridge-small-disk")
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .context("there is no mount")?;
        ensure!(
            output.status.success(),
            "a small disk can't be mounted ({}); this scenario needs root, or a mount namespace: \
             unshare --map-root-user --mount ./testnet/run.sh ...",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Is this folder on it?
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.path)
    }

    /// Takes all room but about `left` bytes.
    ///
    /// # Errors
    /// Any but that there is no room left.
    pub fn fill(&self, left: u64) -> anyhow::Result<()> {
        let path = self.path.join(FILLER);
        let mut file = File::options().create(true).append(true).open(&path)?;
        let chunk = vec![0xff_u8; STEP];
        let mut step = STEP;
        while step > 0 {
            let part = chunk.get(..step).unwrap_or_default();
            match file.write_all(part) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => step /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        let size = file.metadata()?.len();
        file.set_len(size.saturating_sub(left))?;
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// What the system said.
    pub fn make_room(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.path.join(FILLER))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that has not ended keeps it until it does.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .stdin(Stdio::null())
            .status();
    }
}
