//! JSON-RPC over HTTP to a bitcoind on this host or network.
//!
//! `transport` sends one request and reads one bounded reply; [`replies`] gives the replies that
//! the bridge reads their types; this file has one method for each call that the bridge makes.
//! Whatever a node answers is checked as far as it can be: a block or a transaction must hash to
//! what was asked for.

mod replies;
mod settings;
mod transport;

use std::panic::Location;
use std::time::Duration;

use bitcoin::block::Header;
use bitcoin::consensus::encode;
use bitcoin::{Address, Block, BlockHash, FeeRate, Network, OutPoint, Transaction, Txid};
use failpoint::Deed;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use replies::{
    BlockRef, ChainInfo, DEFAULT_DUST_FEE_RATE, FeeEstimate, MempoolEntry, MempoolInfo,
    MempoolVerdict, UnspentOutput,
};
pub use settings::{RpcSettings, SettingsError};
pub use transport::{BitcoinRpc, read_reply};

/// Codes of bitcoind's `rpc/protocol.h` that change what the bridge does.
pub mod code {
    /// RPC_VERIFY_ERROR: a transaction's inputs are missing or spent, among others.
    pub const VERIFY_ERROR: i64 = -25;
    /// RPC_VERIFY_REJECTED: consensus or the mempool's policy refuses a transaction.
    pub const VERIFY_REJECTED: i64 = -26;
    /// RPC_VERIFY_ALREADY_IN_UTXO_SET: outputs of the transaction are confirmed and unspent.
    pub const ALREADY_IN_UTXO_SET: i64 = -27;
    /// RPC_IN_WARMUP: the node has started and does not answer yet.
    pub const IN_WARMUP: i64 = -28;
    /// RPC_INVALID_ADDRESS_OR_KEY: no such block, transaction or mempool entry.
    pub const NOT_FOUND: i64 = -5;
    /// RPC_INVALID_PARAMETER: a height above the tip, among others.
    pub const INVALID_PARAMETER: i64 = -8;
    /// RPC_DESERIALIZATION_ERROR: the bytes are no transaction.
    pub const DESERIALIZATION_ERROR: i64 = -22;
    /// RPC_METHOD_NOT_FOUND.
    pub const METHOD_NOT_FOUND: i64 = -32601;
}

/// Why a call to bitcoind failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// No connection, or it broke, or the node did not answer in time.
    #[error("bitcoind at {url} cannot be reached")]
    Unreachable {
        /// Where the node should be.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// The cookie file, which bitcoind writes when it starts and removes when it stops, cannot be read.
    #[error("bitcoind's cookie file {path} cannot be read (is bitcoind running?)")]
    Cookie {
        /// The file from the settings.
        path: String,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The cookie file does not hold `user:password`.
    #[error("bitcoind's cookie file {path} has no 'user:password' in it")]
    CookieFormat {
        /// The file from the settings.
        path: String,
    },
    /// The node refuses the credentials, or this host (`rpcallowip`).
    #[error("bitcoind at {url} refuses the credentials (HTTP {status})")]
    Unauthorized {
        /// The node's address.
        url: String,
        /// 401 for the credentials, 403 for the host.
        status: u16,
    },
    /// The node's work queue is full.
    #[error("bitcoind at {url} is overloaded")]
    Overloaded {
        /// The node's address.
        url: String,
    },
    /// The node has started and does not answer yet (code -28).
    #[error("bitcoind is still starting: {message}")]
    WarmingUp {
        /// What it is doing.
        message: String,
    },
    /// The node is on another network than the settings say.
    #[error("bitcoind is on network {found}, but {expected} is configured")]
    WrongNetwork {
        /// The configured network.
        expected: Network,
        /// The network, or the unknown genesis block, of the node.
        found: String,
    },
    /// The node answered with an error.
    #[error("{method}: {message} (code {code})")]
    Rpc {
        /// The call.
        method: String,
        /// bitcoind's error code, see [`code`].
        code: i64,
        /// bitcoind's words.
        message: String,
    },
    /// The reply is longer than any that the call can have.
    #[error("{method}: reply above {limit} bytes")]
    TooLarge {
        /// The call.
        method: String,
        /// Bytes allowed.
        limit: usize,
    },
    /// The reply is not what the call returns, or not what was asked for.
    #[error("{method}: unusable reply: {reason}")]
    BadReply {
        /// The call.
        method: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl RpcError {
    /// Whether waiting can help: the node is down, starting or overloaded.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Cookie { .. }
                | Self::Overloaded { .. }
                | Self::WarmingUp { .. }
        )
    }

    /// bitcoind's error code, if it was bitcoind that refused.
    #[must_use]
    pub fn code(&self) -> Option<i64> {
        match self {
            Self::Rpc { code, .. } => Some(*code),
            Self::WarmingUp { .. } => Some(code::IN_WARMUP),
            _ => None,
        }
    }

    fn bad_reply(method: &str, reason: impl std::fmt::Display) -> Self {
        Self::BadReply {
            method: method.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Turns one error code into `None`, for calls where it means "there is no such thing".
fn none_on<T>(result: Result<T, RpcError>, absent: i64) -> Result<Option<T>, RpcError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(RpcError::Rpc { code, .. }) if code == absent => Ok(None),
        Err(error) => Err(error),
    }
}

impl BitcoinRpc {
    /// Any call, with its parameters by position. For calls that have no method here, such as a
    /// wallet's (see [`BitcoinRpc::with_wallet`]).
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<T, RpcError> {
        self.call_with(method, params, Duration::ZERO).await
    }

    /// State of the node's best chain.
    pub async fn chain_info(&self) -> Result<ChainInfo, RpcError> {
        self.call("getblockchaininfo", &[]).await
    }

    /// Checks by name and by genesis block that the node is on `network`.
    ///
    /// # Errors
    /// [`RpcError::WrongNetwork`], or what keeps the node from answering.
    pub async fn check_network(&self, network: Network) -> Result<(), RpcError> {
        let wrong = |found: String| RpcError::WrongNetwork {
            expected: network,
            found,
        };
        let info = self.chain_info().await?;
        if info.chain != network.to_core_arg() {
            return Err(wrong(info.chain));
        }
        let expected = bitcoin::constants::genesis_block(network).block_hash();
        match self.block_hash_at(0).await? {
            Some(genesis) if genesis == expected => Ok(()),
            Some(genesis) => Err(wrong(format!(
                "{} with genesis block {genesis}",
                info.chain
            ))),
            None => Err(RpcError::bad_reply("getblockhash", "no genesis block")),
        }
    }

    /// Hash of the best chain's last block.
    pub async fn best_block_hash(&self) -> Result<BlockHash, RpcError> {
        self.call("getbestblockhash", &[]).await
    }

    /// Hash of the best chain's block at `height`; `None` above the tip.
    pub async fn block_hash_at(&self, height: u32) -> Result<Option<BlockHash>, RpcError> {
        let reply = self.call("getblockhash", &[json!(height)]).await;
        none_on(reply, code::INVALID_PARAMETER)
    }

    /// A block's header; `None` if the node does not know the block.
    pub async fn block_header(&self, hash: BlockHash) -> Result<Option<Header>, RpcError> {
        let method = "getblockheader";
        let reply = self.call(method, &[json!(hash), json!(false)]).await;
        let Some(raw) = none_on::<String>(reply, code::NOT_FOUND)? else {
            return Ok(None);
        };
        let header: Header =
            encode::deserialize_hex(&raw).map_err(|error| RpcError::bad_reply(method, error))?;
        if header.block_hash() != hash {
            return Err(RpcError::bad_reply(method, "another block's header"));
        }
        Ok(Some(header))
    }

    /// A block, on the best chain or not. Its hash and the root of its transactions are checked.
    ///
    /// # Errors
    /// [`RpcError::Rpc`] with [`code::NOT_FOUND`] for an unknown block, -1 for a pruned one.
    pub async fn block(&self, hash: BlockHash) -> Result<Block, RpcError> {
        let method = "getblock";
        let raw: String = self.call(method, &[json!(hash), json!(0)]).await?;
        let block: Block =
            encode::deserialize_hex(&raw).map_err(|error| RpcError::bad_reply(method, error))?;
        if block.block_hash() != hash || !block.check_merkle_root() {
            return Err(RpcError::bad_reply(method, "another block's content"));
        }
        Ok(block)
    }

    /// An output that is unspent: on the best chain, or with `include_mempool` after the mempool's
    /// transactions too (then an output of the mempool counts, and one that it spends does not).
    pub async fn unspent_output(
        &self,
        outpoint: OutPoint,
        include_mempool: bool,
    ) -> Result<Option<UnspentOutput>, RpcError> {
        let params = [
            json!(outpoint.txid),
            json!(outpoint.vout),
            json!(include_mempool),
        ];
        self.call("gettxout", &params).await
    }

    /// A transaction of the mempool, or of `block`. Without an index of all transactions the node
    /// finds a confirmed one only if it is told the block. `None` if it does not find it.
    pub async fn transaction(
        &self,
        txid: Txid,
        block: Option<BlockHash>,
    ) -> Result<Option<Transaction>, RpcError> {
        let method = "getrawtransaction";
        let mut params = vec![json!(txid), json!(false)];
        params.extend(block.map(|hash| json!(hash)));
        let reply = self.call(method, &params).await;
        let Some(raw) = none_on::<String>(reply, code::NOT_FOUND)? else {
            return Ok(None);
        };
        let transaction: Transaction =
            encode::deserialize_hex(&raw).map_err(|error| RpcError::bad_reply(method, error))?;
        if transaction.compute_txid() != txid {
            return Err(RpcError::bad_reply(method, "another transaction"));
        }
        Ok(Some(transaction))
    }

    /// Hands a transaction to the node as it is. [`crate::submit::submit`] explains the refusals.
    #[track_caller]
    pub fn send_transaction<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> impl Future<Output = Result<Txid, RpcError>> + use<'a> {
        self.send_transaction_for(Location::caller(), transaction)
    }

    /// [`BitcoinRpc::send_transaction`] for a caller who is known by the line that asked for it.
    pub(crate) async fn send_transaction_for(
        &self,
        place: &'static Location<'static>,
        transaction: &Transaction,
    ) -> Result<Txid, RpcError> {
        let raw = encode::serialize_hex(transaction);
        failpoint::before(Deed::Submit, place);
        let reply = self.call("sendrawtransaction", &[json!(raw)]).await;
        failpoint::after(Deed::Submit, place);
        reply
    }

    /// Whether the mempool would take a transaction, without handing it over.
    pub async fn test_mempool_accept(
        &self,
        transaction: &Transaction,
    ) -> Result<MempoolVerdict, RpcError> {
        let method = "testmempoolaccept";
        let raw = encode::serialize_hex(transaction);
        let verdicts: Vec<MempoolVerdict> = self.call(method, &[json!([raw])]).await?;
        let verdict = verdicts.into_iter().next();
        verdict.ok_or_else(|| RpcError::bad_reply(method, "no verdict"))
    }

    /// A transaction's entry in the mempool; `None` if it is not there.
    pub async fn mempool_entry(&self, txid: Txid) -> Result<Option<MempoolEntry>, RpcError> {
        let reply = self.call("getmempoolentry", &[json!(txid)]).await;
        none_on(reply, code::NOT_FOUND)
    }

    /// The entry of what spends an output in the mempool; `None` if nothing there does.
    pub async fn mempool_spender(
        &self,
        outpoint: OutPoint,
    ) -> Result<Option<MempoolEntry>, RpcError> {
        #[derive(Deserialize)]
        struct Spent {
            #[serde(rename = "spendingtxid")]
            by: Option<Txid>,
        }
        let method = "gettxspendingprevout";
        let asked = json!([{ "txid": outpoint.txid, "vout": outpoint.vout }]);
        let spent: Vec<Spent> = self.call(method, &[asked]).await?;
        let spent = spent.into_iter().next();
        let spent = spent.ok_or_else(|| RpcError::bad_reply(method, "no answer"))?;
        match spent.by {
            Some(txid) => self.mempool_entry(txid).await,
            None => Ok(None),
        }
    }

    /// What the mempool asks of a transaction at present.
    pub async fn mempool_info(&self) -> Result<MempoolInfo, RpcError> {
        self.call("getmempoolinfo", &[]).await
    }

    /// The node's estimate of the fee rate that confirms within `target_blocks` (1 to 1,008);
    /// `None` while it has seen too little, as always on regtest.
    pub async fn estimate_fee_rate(&self, target_blocks: u16) -> Result<Option<FeeRate>, RpcError> {
        let estimate: FeeEstimate = self
            .call("estimatesmartfee", &[json!(target_blocks)])
            .await?;
        Ok(estimate.fee_rate)
    }

    /// Waits until the best chain is at least `height` long, `timeout` at most, and returns its tip.
    /// The call occupies one of the node's RPC threads for as long as it waits.
    pub async fn wait_for_height(
        &self,
        height: u32,
        timeout: Duration,
    ) -> Result<BlockRef, RpcError> {
        let millis = wait_millis(timeout);
        self.call_with(
            "waitforblockheight",
            &[json!(height), json!(millis)],
            timeout,
        )
        .await
    }

    /// Waits for the next change of the best chain's tip, `timeout` at most, and returns the tip.
    /// A change just before the call goes unnoticed; [`BitcoinRpc::wait_for_height`] has no such gap.
    pub async fn wait_for_new_block(&self, timeout: Duration) -> Result<BlockRef, RpcError> {
        let millis = wait_millis(timeout);
        self.call_with("waitfornewblock", &[json!(millis)], timeout)
            .await
    }

    /// A new address of the wallet that this client addresses, checked to be of `network`.
    pub async fn new_wallet_address(&self, network: Network) -> Result<Address, RpcError> {
        let method = "getnewaddress";
        let text: String = self.call(method, &[]).await?;
        let address: Address<_> = text
            .parse()
            .map_err(|error| RpcError::bad_reply(method, error))?;
        address
            .require_network(network)
            .map_err(|error| RpcError::bad_reply(method, error))
    }
}

/// bitcoind takes 0 for "for ever", so the shortest wait is a millisecond.
fn wait_millis(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, transport::MAX_WAIT_MILLIS)
}

/// The request body of JSON-RPC as bitcoind reads it.
#[derive(Serialize)]
struct Request<'a> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: &'a [Value],
}
