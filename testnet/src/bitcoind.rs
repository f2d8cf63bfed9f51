//! A real bitcoind on regtest, for tests and for the local network.
//!
//! Needs nothing of this crate, so that the tests of `chain`, which this crate uses, can include
//! this file as a module of their own.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bitcoin::{Address, Amount, BlockHash, Network, Txid};
use chain::{BitcoinRpc, RpcError, RpcSettings, SettingsError};
use serde_json::{Value, json};

/// The wallet that owns all mined coins.
pub const MINER_WALLET: &str = "miner";
/// Blocks until a coinbase output can be spent.
pub const COINBASE_MATURITY: u32 = 100;

/// Longest wait for a started node to answer, or for a stopped one to end.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between looks at a condition.
const POLL: Duration = Duration::from_millis(25);
/// Another process may take a free port before bitcoind does.
const START_ATTEMPTS: usize = 3;
/// Blocks per call, so that each call stays within the client's timeout.
const BLOCKS_PER_CALL: u32 = 200;
/// End of the node's log that goes into an error.
const LOG_TAIL_BYTES: usize = 2_000;
/// `RPC_WALLET_NOT_FOUND`.
const WALLET_NOT_FOUND: i64 = -18;
/// `RPC_WALLET_ALREADY_LOADED`.
const WALLET_ALREADY_LOADED: i64 = -35;

/// Why a node could not be run or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitcoindError {
    /// `get-bitcoind.sh` found none and could not get one; its stderr has said why.
    #[error("no bitcoind: {0} failed, see its messages above")]
    NotFound(PathBuf),
    /// A file, folder, port or process could not be had.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node ended by itself.
    #[error("bitcoind ended with {status}; the end of its output:\n{log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last lines that it wrote.
        log: String,
    },
    /// The node did not do it in time.
    #[error("bitcoind did not {0} within {limit} s", limit = PATIENCE.as_secs())]
    TimedOut(&'static str),
    /// A call was refused.
    #[error("bitcoind refused a call")]
    Rpc(#[from] RpcError),
    /// The node's address made no client.
    #[error("bitcoind's settings")]
    Settings(#[from] SettingsError),
    /// A reply is not what the call gives.
    #[error("bitcoind: {0}")]
    Unexpected(&'static str),
    /// A peer-to-peer connection needs a node that listens.
    #[error("this bitcoind does not listen for peers (BitcoindOptions::listen)")]
    NotListening,
}

/// How a node differs from the usual one, which talks to no peers.
#[derive(Clone, Debug, Default)]
pub struct BitcoindOptions {
    /// Listen on a loopback port, so that other nodes can connect.
    pub listen: bool,
    /// Further arguments; the last of two equal ones counts.
    pub extra_args: Vec<String>,
}

/// A running regtest node with a wallet. Dropping it kills it; its folder stays.
#[derive(Debug)]
pub struct Bitcoind {
    binary: PathBuf,
    dir: PathBuf,
    network: Network,
    options: BitcoindOptions,
    rpc_port: u16,
    p2p_port: u16,
    child: Option<Child>,
    rpc: BitcoinRpc,
    mining_address: Option<Address>,
}

impl Bitcoind {
    /// Starts a node that keeps its data in `dir` (made if missing), waits until it answers, and
    /// makes or loads its wallet. Nothing is mined yet.
    pub async fn start(dir: impl Into<PathBuf>) -> Result<Self, BitcoindError> {
        Self::start_with(dir, BitcoindOptions::default()).await
    }

    /// As [`Bitcoind::start`], with options.
    pub async fn start_with(
        dir: impl Into<PathBuf>,
        options: BitcoindOptions,
    ) -> Result<Self, BitcoindError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(io(format!("cannot make {}", dir.display())))?;
        let dir = std::path::absolute(&dir).map_err(io("cannot find the current folder"))?;
        let binary = find_bitcoind().await?;
        let mut attempt = 1;
        loop {
            let (rpc_port, p2p_port) = free_ports()?;
            let mut node = Self {
                rpc: BitcoinRpc::new(&settings_for(&dir, rpc_port))?,
                binary: binary.clone(),
                dir: dir.clone(),
                network: Network::Regtest,
                options: options.clone(),
                rpc_port,
                p2p_port,
                child: None,
                mining_address: None,
            };
            match node.launch().await {
                Ok(()) => return Ok(node),
                Err(BitcoindError::Ended { .. }) if attempt < START_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// A client with full rights.
    #[must_use]
    pub fn rpc(&self) -> BitcoinRpc {
        self.rpc.clone()
    }

    /// A client whose wallet calls go to the miner's wallet.
    #[must_use]
    pub fn miner(&self) -> BitcoinRpc {
        self.rpc.with_wallet(MINER_WALLET)
    }

    /// What a bridge node's settings say to use this node.
    #[must_use]
    pub fn settings(&self) -> RpcSettings {
        settings_for(&self.dir, self.rpc_port)
    }

    /// The node's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process id, while the node runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where peers connect, if the node listens.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.options
            .listen
            .then_some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.p2p_port)))
    }

    /// Mines `blocks` blocks to the miner's wallet.
    pub async fn mine(&mut self, blocks: u32) -> Result<Vec<BlockHash>, BitcoindError> {
        let address = match &self.mining_address {
            Some(address) => address.clone(),
            None => {
                let address = self.new_address().await?;
                self.mining_address = Some(address.clone());
                address
            }
        };
        self.mine_to(blocks, &address).await
    }

    /// Mines `blocks` blocks whose coinbases pay `address`.
    pub async fn mine_to(
        &self,
        blocks: u32,
        address: &Address,
    ) -> Result<Vec<BlockHash>, BitcoindError> {
        let mut hashes = Vec::new();
        let mut left = blocks;
        while left > 0 {
            let now = left.min(BLOCKS_PER_CALL);
            let params = [json!(now), json!(address.to_string())];
            let mined: Vec<BlockHash> = self.rpc.call("generatetoaddress", &params).await?;
            hashes.extend(mined);
            left = left.saturating_sub(now);
        }
        Ok(hashes)
    }

    /// Takes a block, and all that follow it, out of the best chain. What they held goes back into the mempool.
    pub async fn invalidate(&self, block: BlockHash) -> Result<(), BitcoindError> {
        Ok(self.rpc.call("invalidateblock", &[json!(block)]).await?)
    }

    /// Mines `blocks` blocks that leave out whatever the mempool holds. The first has `transactions` (raw, in hex),
    /// taken as they are, whether the mempool would take them or not.
    pub async fn mine_only(
        &self,
        blocks: u32,
        transactions: &[String],
    ) -> Result<Vec<BlockHash>, BitcoindError> {
        // Another address each time: a block that was invalidated must not come out again.
        let address = self.new_address().await?.to_string();
        let mut hashes = Vec::new();
        let mut held = transactions;
        for _ in 0..blocks {
            let params = [json!(address), json!(held)];
            let mined: Value = self.rpc.call("generateblock", &params).await?;
            let hash = mined.get("hash").cloned().unwrap_or(Value::Null);
            let hash = serde_json::from_value(hash)
                .map_err(|_| BitcoindError::Unexpected("generateblock gave no hash"))?;
            hashes.push(hash);
            held = &[];
        }
        Ok(hashes)
    }

    /// Restarts the node with an empty mempool. Its wallet gives its own transactions to it again.
    pub async fn forget_mempool(&mut self) -> Result<(), BitcoindError> {
        self.stop().await?;
        let kept = self.dir.join("regtest").join("mempool.dat");
        match std::fs::remove_file(&kept) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("cannot remove the mempool's file")(error));
            }
            _ => {}
        }
        self.launch().await
    }

    /// Sends `amount` to `address` from the miner's wallet; mine to confirm it. The wallet has
    /// something to spend once it has mined 101 blocks.
    pub async fn fund(&self, address: &Address, amount: Amount) -> Result<Txid, BitcoindError> {
        Ok(send(&self.miner(), &[(address, amount)]).await?)
    }

    /// A new address of the miner's wallet.
    pub async fn new_address(&self) -> Result<Address, BitcoindError> {
        Ok(self.miner().new_wallet_address(Network::Regtest).await?)
    }

    /// Connects this node to `peer`, which must listen.
    pub async fn connect_to(&self, peer: &Self) -> Result<(), BitcoindError> {
        let address = peer.peer_address().ok_or(BitcoindError::NotListening)?;
        let params = [json!(address.to_string()), json!("onetry")];
        let () = self.rpc.call("addnode", &params).await?;
        let connected = async || Ok(!self.peers().await?.is_empty());
        wait_until("connect to its peer", connected).await
    }

    /// Cuts all of this node's connections to peers.
    pub async fn disconnect_all(&self) -> Result<(), BitcoindError> {
        for peer in self.peers().await? {
            let id = peer.get("id").cloned().unwrap_or(Value::Null);
            let dropped = self
                .rpc
                .call::<()>("disconnectnode", &[json!(""), id])
                .await;
            // It may have gone by itself; the wait below is what counts.
            if let Err(error) = dropped
                && error.code().is_none()
            {
                return Err(error.into());
            }
        }
        let alone = async || Ok(self.peers().await?.is_empty());
        wait_until("drop its peers", alone).await
    }

    /// Waits until this node's best chain ends with the same block as `peer`'s.
    pub async fn wait_for_same_tip(&self, peer: &Self) -> Result<(), BitcoindError> {
        let same =
            async || Ok(self.rpc.best_block_hash().await? == peer.rpc.best_block_hash().await?);
        wait_until("reach its peer's tip", same).await
    }

    /// Stops the node in good order and waits for its end.
    pub async fn stop(&mut self) -> Result<(), BitcoindError> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        let asked: Result<String, _> = self.rpc.call("stop", &[]).await;
        if let Err(error) = asked
            && !error.is_transient()
        {
            return Err(error.into());
        }
        let deadline = Instant::now() + PATIENCE;
        while child
            .try_wait()
            .map_err(io("cannot wait for bitcoind"))?
            .is_none()
        {
            if Instant::now() > deadline {
                self.kill();
                return Err(BitcoindError::TimedOut("stop"));
            }
            tokio::time::sleep(POLL).await;
        }
        self.child = None;
        Ok(())
    }

    /// Ends the node at once, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Either call fails only if the process has ended, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a stopped or killed node again, on the same ports and folder.
    pub async fn restart(&mut self) -> Result<(), BitcoindError> {
        self.kill();
        self.launch().await
    }

    /// From its next start on the node is on this network, with no chain of it but the genesis block unless it had
    /// more, and has these further arguments.
    pub fn be_on(&mut self, network: Network, extra_args: &[&str]) {
        self.network = network;
        self.options.extra_args = extra_args
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect();
    }

    async fn launch(&mut self) -> Result<(), BitcoindError> {
        let output = File::create(self.output_path()).map_err(io("cannot make bitcoind's log"))?;
        let errors = output
            .try_clone()
            .map_err(io("cannot make bitcoind's log"))?;
        let child = Command::new(&self.binary)
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(io(format!("cannot run {}", self.binary.display())))?;
        self.child = Some(child);
        self.wait_until_ready().await?;
        if self.network == Network::Regtest {
            self.load_wallet().await?;
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("-chain={}", self.network.to_core_arg()),
            format!("-datadir={}", self.dir.display()),
            "-server=1".to_owned(),
            format!("-rpcport={}", self.rpc_port),
            format!("-rpccookiefile={}", cookie(&self.dir).display()),
            "-rpcbind=127.0.0.1".to_owned(),
            "-rpcallowip=127.0.0.1".to_owned(),
            // Every follower's long poll occupies a thread, and on a laptop all share one node.
            "-rpcthreads=64".to_owned(),
            "-rpcworkqueue=256".to_owned(),
            "-txindex=0".to_owned(),
            "-fallbackfee=0.00005".to_owned(),
            "-connect=0".to_owned(),
            "-dnsseed=0".to_owned(),
            "-discover=0".to_owned(),
            "-listenonion=0".to_owned(),
            "-dbcache=32".to_owned(),
            "-maxmempool=50".to_owned(),
            "-printtoconsole=0".to_owned(),
        ];
        if self.options.listen {
            arguments.push("-listen=1".to_owned());
            arguments.push(format!("-bind=127.0.0.1:{}", self.p2p_port));
        } else {
            arguments.push("-listen=0".to_owned());
        }
        arguments.extend(self.options.extra_args.iter().cloned());
        arguments
    }

    async fn wait_until_ready(&mut self) -> Result<(), BitcoindError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().map_err(io("cannot wait for bitcoind"))?
            {
                self.child = None;
                let log = self.output_tail();
                return Err(BitcoindError::Ended { status, log });
            }
            match self.rpc.check_network(self.network).await {
                Ok(()) => return Ok(()),
                // A killed node leaves a stale cookie behind until the new one is written.
                Err(error) if error.is_transient() => {}
                Err(RpcError::Unauthorized { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(BitcoindError::TimedOut("answer"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn load_wallet(&self) -> Result<(), BitcoindError> {
        let name = [json!(MINER_WALLET)];
        match self.rpc.call::<Value>("loadwallet", &name).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(WALLET_ALREADY_LOADED) => Ok(()),
            Err(error) if error.code() == Some(WALLET_NOT_FOUND) => {
                let _: Value = self.rpc.call("createwallet", &name).await?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn peers(&self) -> Result<Vec<Value>, BitcoindError> {
        Ok(self.rpc.call("getpeerinfo", &[]).await?)
    }

    fn output_path(&self) -> PathBuf {
        self.dir.join("bitcoind.out")
    }

    fn output_tail(&self) -> String {
        let output = std::fs::read(self.output_path()).unwrap_or_default();
        let from = output.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(output.get(from..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Bitcoind {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Pays these addresses from a wallet, with a lock time of 0. Left to itself, a wallet takes a height, at times an earlier
/// one (against fee sniping); Knots relays no transaction whose lock time is 21 (`-rejectparasites`), and on a young
/// regtest chain that comes up once in a thousand payments.
pub async fn send(wallet: &BitcoinRpc, to: &[(&Address, Amount)]) -> Result<Txid, RpcError> {
    #[derive(serde::Deserialize)]
    struct Sent {
        txid: Txid,
    }
    let outputs: Vec<Value> = to
        .iter()
        .map(|(address, amount)| json!({ address.to_string(): amount.to_btc() }))
        .collect();
    let options = json!({ "locktime": 0 });
    let params = [
        json!(outputs),
        json!(null),
        json!("unset"),
        json!(null),
        options,
    ];
    let sent: Sent = wallet.call("send", &params).await?;
    Ok(sent.txid)
}

fn settings_for(dir: &Path, rpc_port: u16) -> RpcSettings {
    RpcSettings::with_cookie(format!("http://127.0.0.1:{rpc_port}"), cookie(dir))
}

/// One place for every network, so that the same settings lead to the node whatever it is.
fn cookie(dir: &Path) -> PathBuf {
    dir.join("regtest").join(".cookie")
}

/// Two different ports that were free a moment ago.
fn free_ports() -> Result<(u16, u16), BitcoindError> {
    let listen = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok((listener.local_addr()?.port(), listener))
    };
    let (first, _held) = listen().map_err(io("cannot find a free port"))?;
    let (second, _) = listen().map_err(io("cannot find a free port"))?;
    Ok((first, second))
}

/// Runs `get-bitcoind.sh`, which looks at `$BITCOIND` and PATH first and may fetch one. Where the
/// script is out of reach, as for a binary that was copied elsewhere, those two are all there is.
async fn find_bitcoind() -> Result<PathBuf, BitcoindError> {
    let Some(script) = script_path() else {
        let named = std::env::var_os("BITCOIND").filter(|path| !path.is_empty());
        return Ok(named.map_or_else(|| PathBuf::from("bitcoind"), PathBuf::from));
    };
    let output = tokio::process::Command::new(&script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .map_err(io(format!("cannot run {}", script.display())))?;
    let path = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    if !output.status.success() || path.is_empty() {
        return Err(BitcoindError::NotFound(script));
    }
    Ok(PathBuf::from(path))
}

fn script_path() -> Option<PathBuf> {
    let at_run_time = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let at_build_time = Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    [at_run_time, at_build_time]
        .into_iter()
        .flatten()
        .map(|of_crate| of_crate.join("../testnet/get-bitcoind.sh"))
        .find(|script| script.is_file())
}

async fn wait_until(
    what: &'static str,
    condition: impl AsyncFn() -> Result<bool, BitcoindError>,
) -> Result<(), BitcoindError> {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await? {
        if Instant::now() > deadline {
            return Err(BitcoindError::TimedOut(what));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BitcoindError {
    let what = what.into();
    move |source| BitcoindError::Io { what, source }
}
