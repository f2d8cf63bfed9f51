//! One node of a local network: a process that is started, killed, stopped, asked and read.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

use super::{BACKUP_PASSPHRASE, PASSPHRASE, binary};
use crate::{crasher::Claims, saboteur::Fault, small_disk::SmallDisk};

/// How long a process may take to end by itself before it is killed, or to answer its administrator.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node.
pub struct Node {
    /// Its name in the roster, and its folder's.
    pub name: String,
    /// Where its pages are: `/metrics` and others.
    pub pages: String,
    binary: PathBuf,
    /// Set while the node misbehaves.
    fault: Option<Fault>,
    /// Set while the node dies wherever it can.
    crashes: Option<Claims>,
    settings: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// Of the latest process.
    pid: u32,
    /// Where its data are, if that can be filled up.
    disk: Option<SmallDisk>,
}

impl Node {
    /// A node that was laid out in `folder`, whose name is the node's, and is not started yet.
    pub(super) fn new(folder: &Path, binary: PathBuf, log: PathBuf, pages: String) -> Self {
        let name = folder.file_name().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            pages,
            binary,
            fault: None,
            crashes: None,
            settings: folder.join("settings.toml"),
            log,
            child: None,
            pid: 0,
            disk: None,
        }
    }

    /// Starts the process; its log goes on where it ended.
    ///
    /// # Errors
    /// When the binary can't be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = match (self.fault, &self.crashes) {
            (None, None) => Command::new(&self.binary),
            (Some(_), _) => Command::new(binary("drawbridge-saboteur")?),
            (None, Some(_)) => Command::new(binary("drawbridge-crasher")?),
        };
        command.args(["run", "--settings"]).arg(&self.settings);
        if let Some(claims) = self.crashes.as_ref().filter(|_| self.fault.is_none()) {
            command.args(claims.arguments());
        }
        if let Some(fault) = self.fault {
            command.args(["--fault", fault.name()]);
        }
        let child = command
            .env("DRAWBRIDGE_PASSPHRASE", PASSPHRASE)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {}", self.binary.display()))?;
        self.pid = child.id().unwrap_or_default();
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL, as a power cut would do it.
    ///
    /// # Errors
    /// When the process can't be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL for one that does not listen. Gives whether it ended by itself.
    pub async fn stop(&mut self) -> bool {
        let Some(mut child) = self.child.take() else {
            return true;
        };
        if let Some(pid) = child.id() {
            // The shell's own kill: no crate for one signal, and a small Debian has no program of that name.
            let _ = Command::new("sh")
                .args(["-c", &format!("kill {pid}")])
                .status()
                .await;
        }
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await.is_ok();
        if !ended {
            let _ = child.kill().await;
        }
        ended
    }

    /// Runs another command of the node's program, such as `status`, and gives the JSON that it prints.
    ///
    /// # Errors
    /// What the command says, or that it takes too long.
    pub async fn ask(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let running = Command::new(&self.binary)
            .args(arguments)
            .arg("--json")
            .env("DRAWBRIDGE_OPERATOR_SETTINGS", &self.settings)
            .env("DRAWBRIDGE_PASSPHRASE", PASSPHRASE)
            .env("DRAWBRIDGE_BACKUP_PASSPHRASE", BACKUP_PASSPHRASE)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, running)
            .await
            .with_context(|| format!("{arguments:?} takes too long"))??;
        ensure!(
            output.status.success(),
            "{} {arguments:?}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("the command printed no JSON")
    }

    /// From its next start on the node dies wherever nobody has died yet.
    pub(super) fn crash(&mut self, claims: Claims) {
        self.crashes = Some(claims);
    }

    /// Its data are on this.
    pub(super) fn set_disk(&mut self, disk: SmallDisk) {
        self.disk = Some(disk);
    }

    /// Where its data are, if that can be filled up.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// The node's settings file.
    pub fn settings(&self) -> &Path {
        &self.settings
    }

    /// From its next start on the operator misbehaves, or behaves again.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// From now on the node runs with another settings file.
    pub fn use_settings(&mut self, settings: PathBuf) {
        self.settings = settings;
    }

    /// Starts the process again if it has died at a point that it has claimed. Gives the point.
    ///
    /// # Errors
    /// When it has ended in any other way, or can't be started.
    pub fn rise(&mut self) -> anyhow::Result<Option<String>> {
        let (Some(claims), Some(child)) = (&self.crashes, &mut self.child) else {
            return Ok(None);
        };
        if child.try_wait()?.is_none() {
            return Ok(None);
        }
        let point = claims.of(self.pid)?.with_context(|| {
            format!(
                "{} has ended by itself; its log is {}",
                self.name,
                self.log.display()
            )
        })?;
        self.start()?;
        Ok(Some(point))
    }

    /// From its next start on the node dies nowhere.
    pub fn spare(&mut self) {
        self.crashes = None;
    }

    /// Is the process there?
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Has it been started, and ended by itself where it should not? One that was killed has no process, and one that dies
    /// wherever it can is to [`Self::rise`].
    pub(super) fn has_failed(&mut self) -> bool {
        self.child.is_some() && self.crashes.is_none() && !self.is_running()
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How long its log is, in bytes.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn log_length(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read(&self.log)?.len())
    }

    /// The lines of its log behind so many bytes.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn said_since(&self, seen: usize) -> anyhow::Result<Vec<String>> {
        let log = std::fs::read(&self.log)?;
        let new = String::from_utf8_lossy(log.get(seen..).unwrap_or_default());
        Ok(new.lines().map(str::to_owned).collect())
    }
}
