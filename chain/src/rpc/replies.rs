//! Types of the replies that the bridge reads. Fields that it does not use are left out.

use bitcoin::{Amount, BlockHash, FeeRate, Script, ScriptBuf, Txid, Weight, Wtxid};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Satoshi in a kilo-virtual-byte's rate over those in a kilo-weight-unit's.
const WEIGHT_PER_VBYTE: u64 = 4;

/// State of the node's best chain (`getblockchaininfo`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChainInfo {
    /// bitcoind's name of the network: `main`, `test`, `testnet4`, `signet` or `regtest`.
    pub chain: String,
    /// Height of the best chain's last block.
    pub blocks: u32,
    /// Height of the best header, at or above `blocks`.
    pub headers: u32,
    /// Hash of the best chain's last block.
    #[serde(rename = "bestblockhash")]
    pub best_block: BlockHash,
    /// Time in the best chain's last block, in seconds since 1970.
    pub time: u64,
    /// Whether the node is still catching up with the network. On regtest it says so whenever its
    /// last block is more than a day old.
    #[serde(rename = "initialblockdownload")]
    pub initial_block_download: bool,
    /// Whether old blocks are deleted.
    pub pruned: bool,
    /// The lowest block that is there in full, on a pruned node.
    #[serde(rename = "pruneheight")]
    pub prune_height: Option<u32>,
}

/// A block's place and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockRef {
    /// Height, 0 at genesis.
    pub height: u32,
    /// Hash of the header.
    pub hash: BlockHash,
}

/// An unspent output (`gettxout`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnspentOutput {
    /// What it holds.
    pub value: Amount,
    /// What it pays to.
    pub script_pubkey: ScriptBuf,
    /// 1 in the tip's block, 0 in the mempool.
    pub confirmations: u32,
    /// Whether it comes from a coinbase transaction, spendable after 100 blocks only.
    pub coinbase: bool,
    /// The tip at which the node looked.
    pub best_block: BlockHash,
}

impl<'de> Deserialize<'de> for UnspentOutput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Script {
            hex: ScriptBuf,
        }
        #[derive(Deserialize)]
        struct Raw {
            #[serde(deserialize_with = "btc")]
            value: Amount,
            #[serde(rename = "scriptPubKey")]
            script: Script,
            confirmations: u32,
            coinbase: bool,
            bestblock: BlockHash,
        }
        let raw = Raw::deserialize(deserializer)?;
        Ok(Self {
            value: raw.value,
            script_pubkey: raw.script.hex,
            confirmations: raw.confirmations,
            coinbase: raw.coinbase,
            best_block: raw.bestblock,
        })
    }
}

/// What the mempool thinks of a transaction (`testmempoolaccept`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MempoolVerdict {
    /// The transaction.
    pub txid: Txid,
    /// Whether it would be taken.
    #[serde(default)]
    pub allowed: bool,
    /// Virtual size in vbytes as policy counts it, if allowed.
    pub vsize: Option<u64>,
    /// Why not.
    #[serde(rename = "reject-reason")]
    pub reject_reason: Option<String>,
}

/// A transaction in the mempool (`getmempoolentry`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MempoolEntry {
    /// Hash with witness.
    pub wtxid: Wtxid,
    /// Virtual size in vbytes as policy counts it.
    pub vsize: u64,
    /// Fee of this transaction alone.
    pub fee: Amount,
    /// Transactions of the mempool that go if this one goes: itself, and all that spend from it.
    pub descendants: u64,
    /// What these pay together.
    pub descendant_fees: Amount,
    /// Transactions of the mempool that it builds on, itself included: 1 when all that it spends is confirmed.
    pub ancestors: u64,
    /// When it came in, in seconds since 1970.
    pub time: u64,
}

impl<'de> Deserialize<'de> for MempoolEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fees {
            #[serde(deserialize_with = "btc")]
            base: Amount,
            #[serde(deserialize_with = "btc")]
            descendant: Amount,
        }
        #[derive(Deserialize)]
        struct Raw {
            wtxid: Wtxid,
            vsize: u64,
            fees: Fees,
            descendantcount: u64,
            ancestorcount: u64,
            time: u64,
        }
        let raw = Raw::deserialize(deserializer)?;
        Ok(Self {
            wtxid: raw.wtxid,
            vsize: raw.vsize,
            fee: raw.fees.base,
            descendants: raw.descendantcount,
            descendant_fees: raw.fees.descendant,
            ancestors: raw.ancestorcount,
            time: raw.time,
        })
    }
}

/// What the mempool asks of a transaction (`getmempoolinfo`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MempoolInfo {
    /// Transactions in it.
    pub size: u64,
    /// Rate below which a transaction is refused now; rises when the mempool is full.
    #[serde(rename = "mempoolminfee", deserialize_with = "btc_per_kvb")]
    pub min_fee_rate: FeeRate,
    /// Rate below which a transaction is never relayed.
    #[serde(rename = "minrelaytxfee", deserialize_with = "btc_per_kvb")]
    pub min_relay_fee_rate: FeeRate,
    /// What a replacement must add to the fee rate that it replaces (BIP-125, rule 4).
    #[serde(rename = "incrementalrelayfee", deserialize_with = "btc_per_kvb")]
    pub incremental_fee_rate: FeeRate,
    /// Rate at which an output that costs more to spend than it holds is dust. Only Bitcoin Knots says it; elsewhere it
    /// is [`DEFAULT_DUST_FEE_RATE`], unless the node's operator has set another.
    #[serde(
        rename = "dustrelayfee",
        default = "default_dust_fee_rate",
        deserialize_with = "btc_per_kvb"
    )]
    pub dust_fee_rate: FeeRate,
}

/// Bitcoin Core's default of `-dustrelayfee`: 3 sat/vB.
pub const DEFAULT_DUST_FEE_RATE: FeeRate = FeeRate::DUST;

fn default_dust_fee_rate() -> FeeRate {
    DEFAULT_DUST_FEE_RATE
}

impl MempoolInfo {
    /// The least that an output to this script must hold for nodes to relay it.
    #[must_use]
    pub fn dust_limit(&self, script: &Script) -> Amount {
        script.minimal_non_dust_custom(self.dust_fee_rate)
    }

    /// The least that a transaction of this weight must pay for nodes to relay it at all, however empty the mempool.
    #[must_use]
    pub fn least_fee(&self, weight: Weight) -> Amount {
        self.min_relay_fee_rate
            .fee_wu(Weight::from_vb_unchecked(weight.to_vbytes_ceil()))
            .unwrap_or(Amount::MAX_MONEY)
    }
}

/// An estimate of the fee rate (`estimatesmartfee`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FeeEstimate {
    /// The rate; absent while the node has seen too little.
    #[serde(rename = "feerate", default, deserialize_with = "optional_btc_per_kvb")]
    pub fee_rate: Option<FeeRate>,
}

/// bitcoind writes amounts as decimal numbers of BTC. All 21e14 of them survive the way through
/// an `f64`, because its shortest decimal form is what gets parsed.
fn btc<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
    Amount::from_btc(f64::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// BTC per 1,000 vbytes; rounded up, since a rate below what is asked for is refused.
fn btc_per_kvb<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FeeRate, D::Error> {
    let per_kvb = btc(deserializer)?.to_sat();
    Ok(FeeRate::from_sat_per_kwu(
        per_kvb.div_ceil(WEIGHT_PER_VBYTE),
    ))
}

fn optional_btc_per_kvb<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<FeeRate>, D::Error> {
    #[derive(Deserialize)]
    struct Rate(#[serde(deserialize_with = "btc_per_kvb")] FeeRate);
    Ok(Option::<Rate>::deserialize(deserializer)?.map(|rate| rate.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_come_through_to_the_satoshi() {
        for (text, sats) in [
            ("0.00000001", 1),
            ("1e-8", 1),
            ("0.29999999", 29_999_999),
            ("20999999.97690000", 2_099_999_997_690_000),
            ("20999999.99999999", 2_099_999_999_999_999),
        ] {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            assert_eq!(btc(&mut deserializer).unwrap(), Amount::from_sat(sats));
        }
        let mut negative = serde_json::Deserializer::from_str("-1.0");
        assert!(btc(&mut negative).is_err());
    }

    #[test]
    fn an_estimate_may_be_absent() {
        let none: FeeEstimate =
            serde_json::from_str(r#"{"errors":["Insufficient data"],"blocks":2}"#).unwrap();
        assert_eq!(none.fee_rate, None);
        let some: FeeEstimate =
            serde_json::from_str(r#"{"feerate":0.00012345,"blocks":2}"#).unwrap();
        // 12,345 sat/kvB are 3,086.25 sat/kwu.
        assert_eq!(some.fee_rate, Some(FeeRate::from_sat_per_kwu(3_087)));
    }

    #[test]
    fn what_a_mempool_asks_of_an_output_and_of_a_fee_is_what_its_node_says() {
        let said = |dust: &str| -> MempoolInfo {
            let text = format!(
                r#"{{"size":0,"mempoolminfee":0.00002,"minrelaytxfee":0.000001,"incrementalrelayfee":0.00001{dust}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let taproot = ScriptBuf::from_hex(&format!("5120{}", "01".repeat(32))).unwrap();
        // Bitcoin Core does not say its dust rate.
        assert_eq!(said("").dust_limit(&taproot), Amount::from_sat(330));
        let strict = said(r#","dustrelayfee":0.00006"#);
        assert_eq!(strict.dust_limit(&taproot), Amount::from_sat(660));
        // 0.1 sat/vB, and 141 vbytes for 561 weight units.
        assert_eq!(strict.least_fee(Weight::from_wu(561)), Amount::from_sat(15));
    }

    #[test]
    fn an_unspent_output_reads_as_bitcoind_writes_it() {
        let text = r#"{"bestblock":"0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
            "confirmations":3,"value":0.05000000,"scriptPubKey":{"asm":"1","desc":"x","hex":"51","type":"x"},
            "coinbase":true}"#;
        let output: UnspentOutput = serde_json::from_str(text).unwrap();
        assert_eq!(output.value, Amount::from_sat(5_000_000));
        assert_eq!(output.confirmations, 3);
        assert!(output.coinbase);
        assert_eq!(output.script_pubkey, ScriptBuf::from_hex("51").unwrap());
    }
}
