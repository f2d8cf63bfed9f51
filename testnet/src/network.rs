//! A local network: one bitcoind, one coordinator and n operators, each a process of its own with its own
//! folder, keys and ports, as they would run on hosts of their own.

mod process;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Network as BitcoinNetwork};
use chain::rpc::RpcSettings;
use node::files;
use proof::{Keys, PROVING_KEY_FILE, SetupStep, VERIFYING_KEY_FILE};
use protocol::{
    parameters::Parameters,
    roster::{Member, Roster},
};
use wallet::Client;

pub use process::Node;

use crate::{
    bitcoind::{Bitcoind, BitcoindOptions},
    crasher::{Claims, Crashes, Role},
    hosts::{Hosts, Place, free_port},
    liar::settings::Caps,
    small_disk::SmallDisk,
};

/// Sats that fund the vault: its first surplus, out of which miner fees come.
pub const GENESIS: Amount = Amount::from_sat(1_000_000);
/// Surplus in sats below which a batch collects top-ups, where a scenario asks for quick bumps: more than [`GENESIS`].
pub const LOW_SURPLUS: u64 = 1_050_000;
/// Blocks that pass a batch over before its fee is raised, where a scenario asks for it.
pub const BUMP_AFTER_BLOCKS: u16 = 3;
/// Passphrase of the operators' key files.
pub const PASSPHRASE: &str = "local network only";
/// Passphrase of their backups.
pub const BACKUP_PASSPHRASE: &str = "local backups only";

/// Entries that an operator hands out ahead of time, where nonces are.
const POOL_ENTRIES: i64 = 4;

/// How large the network is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Operators (n).
    pub operators: usize,
    /// Signers needed (t).
    pub threshold: u16,
}

/// How a scenario's network differs from the usual one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Further coordinators in the roster, with an identity each. The scenario starts them, if anybody does.
    pub coordinators: usize,
    /// Miner fees at a rate that users' fees don't cover, and operators whose caps are near.
    pub tight_fees: bool,
    /// The nodes die wherever they can.
    pub crashes: Option<Crashes>,
    /// The data of the coordinator and of the first operator are on disks of so many MiB.
    pub small_disks: Option<u32>,
    /// Most operations in one batch, where that is not the default; and a coordinator that takes requests faster.
    pub max_operations: Option<u16>,
    /// A coordinator that raises a fee after [`BUMP_AFTER_BLOCKS`], not only when a reorganisation has long been over;
    /// and that takes a surplus below [`LOW_SURPLUS`] for low.
    pub quick_bumps: bool,
    /// Operators that hand out nonces ahead of time, and a coordinator that uses them.
    pub nonce_pool: bool,
}

impl Extras {
    /// The operators' caps.
    pub fn caps(self) -> Caps {
        if self.tight_fees {
            Caps {
                max_fee_sat: 100_000,
                max_fee_rate_sat_per_vb: 150,
                max_net_fees_sat: 36_000,
                window_blocks: 144,
            }
        } else {
            Caps {
                max_fee_sat: 500_000,
                max_fee_rate_sat_per_vb: 300,
                max_net_fees_sat: 1_000_000,
                window_blocks: 144,
            }
        }
    }

    /// What the coordinator pays when the chain has no estimate, in sats per virtual byte.
    fn fee_rate(self) -> u64 {
        if self.tight_fees { 20 } else { 2 }
    }

    /// Blocks that may pass a batch over before it pays more.
    fn bump_after_blocks(self) -> u16 {
        if self.quick_bumps {
            BUMP_AFTER_BLOCKS
        } else {
            4 * BUMP_AFTER_BLOCKS
        }
    }
}

/// The network.
pub struct LocalNetwork {
    /// Its Bitcoin node.
    pub bitcoind: Bitcoind,
    /// The operators.
    pub operators: Vec<Node>,
    /// The coordinator.
    pub coordinator: Node,
    /// Speaks to the coordinator.
    pub client: Client,
    /// Where all folders and logs are.
    pub dir: PathBuf,
    /// The agreed parameters.
    pub parameters: Parameters,
    /// Where the nodes live.
    pub hosts: Hosts,
    /// Who has died where, as told, and was started again.
    pub deaths: Vec<(String, String)>,
}

/// The binary of that name in the folder of this program, where the nodes' binaries are too.
///
/// # Errors
/// When it is not there: the workspace must be built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Test binaries are one folder further down.
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "{name} is not beside {}: build the workspace first",
            own.display()
        )
    })
}

/// The proof keys of this circuit version, made once for this machine.
///
/// # Errors
/// When they can't be made, read or written.
pub fn proof_keys(progress: impl FnMut(SetupStep)) -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("DRAWBRIDGE_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            std::env::var_os("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("drawbridge"))
        })
        .or_else(|| {
            std::env::var_os("HOME").map(|dir| PathBuf::from(dir).join(".cache/drawbridge"))
        })
        .context("set HOME or DRAWBRIDGE_CACHE to a folder for the proof keys")?;
    let folder = cache.join(format!("keys-{}", proof::CIRCUIT_VERSION));
    Keys::ensure(&folder, &mut rand::rngs::OsRng, progress)?;
    Ok(folder)
}

impl LocalNetwork {
    /// Lays the folders out and starts every process. `dir` must be empty or not exist.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start(dir: &Path, size: Size, keys: &Path) -> anyhow::Result<Self> {
        Self::start_with(dir, size, keys, Extras::default()).await
    }

    /// As [`Self::start`], with what a scenario needs beside.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start_with(
        dir: &Path,
        size: Size,
        keys: &Path,
        extras: Extras,
    ) -> anyhow::Result<Self> {
        Self::start_on(Hosts::default(), dir, size, keys, extras).await
    }

    /// As [`Self::start_with`], on these hosts: one for each operator, then one for each coordinator.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start_on(
        hosts: Hosts,
        dir: &Path,
        size: Size,
        keys: &Path,
        extras: Extras,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        ensure!(
            fs::read_dir(dir)?.next().is_none(),
            "{} is not empty: choose another folder",
            dir.display()
        );
        let dir = dir.canonicalize()?;
        let mut options = BitcoindOptions::default();
        if let Some(outside) = hosts.outside() {
            options.extra_args = vec![
                format!("-rpcbind={outside}"),
                format!("-rpcallowip={outside}/24"),
            ];
        }
        let bitcoind = Bitcoind::start_with(dir.join("bitcoind"), options).await?;
        let mut network = Self::lay_out(hosts, &dir, size, keys, extras, bitcoind)?;
        network.bitcoind.mine(101).await?;
        for node in network
            .operators
            .iter_mut()
            .chain([&mut network.coordinator])
        {
            node.start()?;
        }
        Ok(network)
    }

    fn lay_out(
        mut hosts: Hosts,
        dir: &Path,
        size: Size,
        keys: &Path,
        extras: Extras,
        bitcoind: Bitcoind,
    ) -> anyhow::Result<Self> {
        let mut parameters = Parameters::defaults(BitcoinNetwork::Regtest);
        if let Some(most) = extras.max_operations {
            parameters.max_operations = most;
        }
        parameters.validate()?;
        let logs = dir.join("logs");
        fs::create_dir_all(&logs)?;
        let mut disks = Vec::new();
        if let Some(mebibytes) = extras.small_disks {
            for name in ["coordinator-1", "operator-1"] {
                let data = dir.join(name).join("data");
                files::create_private_folder(&data)?;
                disks.push(SmallDisk::mount(&data, mebibytes)?);
            }
        }
        let mut operators = Vec::new();
        let mut places = Vec::new();
        for number in 1..=size.operators {
            let place = hosts.place(places.len())?;
            operators.push(member(dir, &format!("operator-{number}"), &place)?);
            places.push(place);
        }
        let coordinator_place = hosts.place(places.len())?;
        let coordinator = member(dir, "coordinator-1", &coordinator_place)?;
        let mut coordinators = vec![coordinator.clone()];
        for number in 2..=extras.coordinators.saturating_add(1) {
            let place = hosts.place(size.operators.saturating_add(number).saturating_sub(1))?;
            coordinators.push(member(dir, &format!("coordinator-{number}"), &place)?);
        }
        let roster = Roster {
            threshold: size.threshold,
            operators: operators.clone(),
            coordinators,
            attestation: Default::default(),
        };
        roster.validate()?;
        fs::write(dir.join("roster.toml"), toml::to_string(&roster)?)?;
        fs::write(dir.join("vault.toml"), toml::to_string(&parameters)?)?;
        let node =
            |member: &Member, program: &str, pages: &str, place: &Place| -> anyhow::Result<Node> {
                let folder = dir.join(&member.name);
                let binary = place.program(&folder, binary(program)?)?;
                let log = logs.join(format!("{}.log", member.name));
                let mut node = Node::new(&folder, binary, log, format!("http://{pages}"));
                if let Some(crashes) = extras.crashes {
                    let role = Role::of(program);
                    node.crash(Claims::lay_out(&dir.join("crashes"), role, crashes)?);
                }
                Ok(node)
            };
        let mut rpc = bitcoind.settings();
        if let Some(outside) = hosts.outside() {
            rpc.url = rpc.url.replace("127.0.0.1", &outside.to_string());
        }
        let mut operator_nodes = Vec::new();
        for (member, place) in operators.iter().zip(&places) {
            let pages = write_operator(dir, member, place, keys, &rpc, extras)?;
            operator_nodes.push(node(member, "drawbridge-operator", &pages, place)?);
        }
        let place = coordinator_place;
        let http = place.http.clone();
        write_coordinator(dir, &coordinator, &place, keys, &rpc, extras)?;
        let mut coordinator_node = node(&coordinator, "drawbridge-coordinator", &http, &place)?;
        for node in operator_nodes.iter_mut().chain([&mut coordinator_node]) {
            let data = dir.join(&node.name).join("data");
            let own = disks.iter().position(|disk| disk.holds(&data));
            if let Some(index) = own {
                node.set_disk(disks.swap_remove(index));
            }
        }
        Ok(Self {
            operators: operator_nodes,
            coordinator: coordinator_node,
            client: Client::new(&format!("http://{http}"))?,
            bitcoind,
            dir: dir.to_owned(),
            parameters,
            hosts,
            deaths: Vec::new(),
        })
    }

    /// Batches that the coordinator has had signed with nonces from the pool, since it was started.
    ///
    /// # Errors
    /// When its metrics can't be read.
    pub async fn pooled_batches(&self) -> anyhow::Result<u64> {
        let response = reqwest::get(format!("{}/metrics", self.coordinator.pages)).await?;
        let metrics = response.error_for_status()?.text().await?;
        let mut lines = metrics.lines();
        let count = lines.find_map(|line| line.strip_prefix("drawbridge_pooled_batches_total "));
        Ok(count.map_or(Ok(0), |count| count.trim().parse())?)
    }

    /// The coordinator stops, and starts again with other settings for when a batch is formed.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn set_batching(&mut self, size: usize, age: Duration) -> anyhow::Result<()> {
        self.coordinator.stop().await;
        let file = self.coordinator.settings().to_owned();
        let mut settings: toml::Table = fs::read_to_string(&file)?.parse()?;
        let mut batching = toml::Table::new();
        batching.insert("size".into(), i64::try_from(size)?.into());
        batching.insert("age_ms".into(), i64::try_from(age.as_millis())?.into());
        settings.insert("batching".into(), batching.into());
        fs::write(&file, toml::to_string(&settings)?)?;
        self.coordinator.start()
    }

    /// Waits until `check` gives a value, and looks after the processes meanwhile.
    ///
    /// # Errors
    /// The time is over, or a process has ended.
    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut check: impl AsyncFnMut(&mut Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = check(self).await? {
                return Ok(value);
            }
            for node in self.operators.iter_mut().chain([&mut self.coordinator]) {
                if let Some(point) = node.rise()? {
                    self.deaths.push((node.name.clone(), point));
                }
                ensure!(
                    !node.has_failed(),
                    "{} has ended; its log is {}",
                    node.name,
                    node.log().display()
                );
            }
            ensure!(
                start.elapsed() < limit,
                "{what} did not happen within {} s",
                limit.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops every process. Gives the names of those that had to be killed.
    pub async fn stop(&mut self) -> Vec<String> {
        let mut stubborn = Vec::new();
        for node in self.operators.iter_mut().chain([&mut self.coordinator]) {
            if !node.stop().await {
                stubborn.push(node.name.clone());
            }
        }
        if let Err(error) = self.bitcoind.stop().await {
            stubborn.push(format!("bitcoind ({error})"));
        }
        stubborn
    }
}

fn member(dir: &Path, name: &str, place: &Place) -> anyhow::Result<Member> {
    let folder = dir.join(name);
    files::create_private_folder(&folder.join("data"))?;
    let identity = files::create_identity(&folder.join("data/identity"))?;
    Ok(Member {
        name: name.to_owned(),
        key: identity.public(),
        founding_key: None,
        addresses: vec![place.address.clone()],
    })
}

/// An operator's policy with these limits on withdrawals.
pub fn policy(withdrawals: &str) -> String {
    policy_with(Extras::default().caps(), withdrawals)
}

fn policy_with(caps: Caps, withdrawals: &str) -> String {
    let Caps {
        max_fee_sat,
        max_fee_rate_sat_per_vb,
        max_net_fees_sat,
        window_blocks,
    } = caps;
    format!(
        "window_blocks = {window_blocks}\n\n[withdrawals]\n{withdrawals}\n\n[fees]\n\
         max_fee_sat = {max_fee_sat}\nmax_fee_rate_sat_per_vb = {max_fee_rate_sat_per_vb}\n\
         max_net_fees_sat = {max_net_fees_sat}\n"
    )
}

/// Gives the address of its status pages.
fn write_operator(
    dir: &Path,
    member: &Member,
    place: &Place,
    keys: &Path,
    rpc: &RpcSettings,
    extras: Extras,
) -> anyhow::Result<String> {
    let folder = dir.join(&member.name);
    let passphrase = folder.join("passphrase");
    fs::write(&passphrase, PASSPHRASE)?;
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600))?;
    let settings = toml::toml! {
        data_dir = "data"
        identity = "data/identity"
        roster = "../roster.toml"
        parameters = "../vault.toml"
        passphrase_file = "passphrase"
        policy = "policy.toml"
        sealing = "fast"
    };
    let mut settings = settings;
    fs::write(folder.join("policy.toml"), policy_with(extras.caps(), ""))?;
    if extras.nonce_pool {
        settings.insert("nonce_pool".into(), POOL_ENTRIES.into());
    }
    settings.insert(
        "verifying_key".into(),
        path_value(&keys.join(VERIFYING_KEY_FILE)),
    );
    settings.insert("listen".into(), toml::Value::try_from([&place.listen])?);
    let pages = format!("127.0.0.1:{}", free_port()?);
    settings.insert("status_listen".into(), pages.clone().into());
    settings.insert("bitcoind".into(), toml::Value::try_from(rpc)?);
    fs::write(folder.join("settings.toml"), toml::to_string(&settings)?)?;
    Ok(pages)
}

fn write_coordinator(
    dir: &Path,
    member: &Member,
    place: &Place,
    keys: &Path,
    rpc: &RpcSettings,
    extras: Extras,
) -> anyhow::Result<()> {
    ensure!(
        keys.join(PROVING_KEY_FILE).is_file(),
        "no proving key in {}",
        keys.display()
    );
    let mut settings = toml::toml! {
        data_dir = "data"
        roster = "../roster.toml"
        parameters = "../vault.toml"
        requests_per_second = 200
        [fees]
        target_blocks = 6
        margin_percent = 10
        floor_sat_per_vb = 1
        ceiling_sat_per_vb = 200
        [batching]
        size = 5
        age_ms = 8_000
    };
    if let Some(fees) = settings.get_mut("fees").and_then(toml::Value::as_table_mut) {
        let rate = i64::try_from(extras.fee_rate())?;
        fees.insert("fallback_sat_per_vb".into(), rate.into());
        fees.insert(
            "bump_after_blocks".into(),
            i64::from(extras.bump_after_blocks()).into(),
        );
    }
    if extras.quick_bumps {
        settings.insert(
            "top_up_below_sat".into(),
            i64::try_from(LOW_SURPLUS)?.into(),
        );
    }
    if extras.crashes.is_some()
        && let Some(batching) = settings
            .get_mut("batching")
            .and_then(toml::Value::as_table_mut)
    {
        batching.insert("age_ms".into(), 1_500.into());
    }
    if extras.nonce_pool {
        settings.insert("nonce_pool".into(), true.into());
    }
    if extras.max_operations.is_some() {
        settings.insert("requests_per_second".into(), 2_000.into());
    }
    settings.insert("keys".into(), path_value(keys));
    settings.insert("listen".into(), toml::Value::try_from([&place.listen])?);
    settings.insert("http".into(), place.http.clone().into());
    settings.insert("bitcoind".into(), toml::Value::try_from(rpc)?);
    fs::write(
        dir.join(&member.name).join("settings.toml"),
        toml::to_string(&settings)?,
    )?;
    Ok(())
}

fn path_value(path: &Path) -> toml::Value {
    toml::Value::String(path.to_string_lossy().into_owned())
}
