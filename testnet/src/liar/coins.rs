//! The outputs that lies are about: real ones, on a real chain, each with one thing wrong with it.

use anyhow::{Context as _, ensure};
use bitcoin::{
    Address, Amount, BlockHash, Network, OutPoint, ScriptBuf,
    secp256k1::{Keypair, Secp256k1},
};
use chain::BitcoinRpc;
use ledger::{AccountKey, AccountSecret};
use protocol::{deposit::DepositTerms, transaction::TopUp, vault::Vault};
use rand::rngs::OsRng;
use serde_json::json;

use crate::bitcoind::{self, MINER_WALLET};

/// Blocks per call, so that each call stays within the client's timeout.
const BLOCKS_PER_CALL: u32 = 200;

/// An output that pays a deposit address, and what that address promises.
#[derive(Clone, Debug)]
pub struct Deposit {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds.
    pub value: Amount,
    /// What its address commits to.
    pub terms: DepositTerms,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Coins {
    /// Good ones: what the honest proposal sweeps.
    pub good: [Deposit; 2],
    /// Its refund opens within the replacement delay and the bump window.
    pub late: Deposit,
    /// One confirmation less than the parameters ask for.
    pub young: Deposit,
    /// In the mempool.
    pub unconfirmed: Deposit,
    /// Below the smallest deposit.
    pub small: Deposit,
    /// From a coinbase transaction, with enough confirmations for any other.
    pub mined: Deposit,
    /// An output of somebody else, as deep as the good ones.
    pub foreign: TopUp,
    /// Good top-ups, in outpoint order.
    pub top_ups: [TopUp; 2],
    /// In the mempool.
    pub unconfirmed_top_up: TopUp,
    /// From a coinbase transaction.
    pub mined_top_up: TopUp,
}

/// A wallet with regtest coins, and a miner.
pub struct Purse {
    rpc: BitcoinRpc,
    network: Network,
}

impl Purse {
    /// The local network's own wallet.
    pub fn new(rpc: &BitcoinRpc, network: Network) -> Self {
        Self {
            rpc: rpc.with_wallet(MINER_WALLET),
            network,
        }
    }

    /// A new address of the wallet.
    ///
    /// # Errors
    /// When bitcoind does not give one.
    pub async fn address(&self) -> anyhow::Result<Address> {
        Ok(self.rpc.new_wallet_address(self.network).await?)
    }

    /// Mines blocks.
    ///
    /// # Errors
    /// When bitcoind does not do it.
    pub async fn mine(&self, blocks: u32) -> anyhow::Result<()> {
        let address = self.address().await?;
        let mut left = blocks;
        while left > 0 {
            let now = left.min(BLOCKS_PER_CALL);
            self.mine_to(&address, now).await?;
            left = left.saturating_sub(now);
        }
        Ok(())
    }

    async fn mine_to(&self, address: &Address, blocks: u32) -> anyhow::Result<Vec<BlockHash>> {
        let params = [json!(blocks), json!(address.to_string())];
        Ok(self.rpc.call("generatetoaddress", &params).await?)
    }

    /// Pays a script; the payment is in the mempool then.
    ///
    /// # Errors
    /// When bitcoind does not do it.
    pub async fn pay(&self, script: &ScriptBuf, amount: Amount) -> anyhow::Result<OutPoint> {
        let address = Address::from_script(script, self.network)?;
        let txid = bitcoind::send(&self.rpc, &[(&address, amount)]).await?;
        let transaction = self
            .rpc
            .transaction(txid, None)
            .await?
            .context("own payment not found")?;
        let vout = transaction
            .output
            .iter()
            .position(|output| output.script_pubkey == *script)
            .context("own payment has no such output")?;
        Ok(OutPoint::new(txid, u32::try_from(vout)?))
    }

    /// A block whose coinbase pays a script.
    ///
    /// # Errors
    /// When bitcoind does not do it.
    pub async fn coinbase(&self, script: &ScriptBuf) -> anyhow::Result<TopUp> {
        let address = Address::from_script(script, self.network)?;
        let block = self.mine_to(&address, 1).await?;
        let block = block.first().context("no block was mined")?;
        let block = self.rpc.block(*block).await?;
        let coinbase = block.coinbase().context("a block without coinbase")?;
        let (vout, output) = coinbase
            .output
            .iter()
            .enumerate()
            .find(|(_, output)| output.script_pubkey == *script)
            .context("the coinbase pays another script")?;
        Ok(TopUp {
            outpoint: OutPoint::new(coinbase.compute_txid(), u32::try_from(vout)?),
            value: output.value,
        })
    }

    /// Height of the chain.
    ///
    /// # Errors
    /// When bitcoind does not say.
    pub async fn height(&self) -> anyhow::Result<u32> {
        Ok(self.rpc.chain_info().await?.blocks)
    }

    async fn top_up(&self, script: &ScriptBuf, sats: u64) -> anyhow::Result<TopUp> {
        let value = Amount::from_sat(sats);
        Ok(TopUp {
            outpoint: self.pay(script, value).await?,
            value,
        })
    }
}

/// Fresh terms of the vault for an account.
pub fn terms(vault: &Vault, account: AccountKey) -> anyhow::Result<DepositTerms> {
    let refund = Keypair::new(&Secp256k1::new(), &mut OsRng);
    let (refund, _) = refund.x_only_public_key();
    Ok(DepositTerms::offered(
        vault.id(),
        vault.parameters(),
        account,
        refund,
    ))
}

/// Puts all of them on the chain. `account` owns the first good deposit, a new key every other.
///
/// # Errors
/// When bitcoind does not do it, or the parameters leave no room for a lie.
pub async fn lay_out(purse: &Purse, vault: &Vault, account: AccountKey) -> anyhow::Result<Coins> {
    let parameters = vault.parameters();
    let confirmations = parameters.deposit_confirmations;
    ensure!(
        confirmations > 1,
        "a deposit with fewer confirmations than one is none"
    );
    let deposit = async |account: Option<AccountKey>, sats: u64| -> anyhow::Result<Deposit> {
        let account = account.unwrap_or_else(|| AccountSecret::generate(&mut OsRng).public());
        let terms = terms(vault, account)?;
        let script = terms.address(&vault.group_key())?.script_pubkey;
        let value = Amount::from_sat(sats);
        Ok(Deposit {
            outpoint: purse.pay(&script, value).await?,
            value,
            terms,
        })
    };
    let late = deposit(None, 60_000).await?;
    let margin = parameters
        .replacement_delay
        .saturating_add(parameters.bump_window);
    purse
        .mine(parameters.refund_delay.saturating_sub(margin).into())
        .await?;
    let mined = {
        let terms = terms(vault, AccountSecret::generate(&mut OsRng).public())?;
        let script = terms.address(&vault.group_key())?.script_pubkey;
        let coin = purse.coinbase(&script).await?;
        Deposit {
            outpoint: coin.outpoint,
            value: coin.value,
            terms,
        }
    };
    let mined_top_up = purse.coinbase(vault.script_pubkey()).await?;
    let good = [
        deposit(Some(account), 150_000).await?,
        deposit(None, 90_000).await?,
    ];
    let small = deposit(None, parameters.min_deposit.to_sat().saturating_sub(1)).await?;
    let foreign = purse
        .top_up(&purse.address().await?.script_pubkey(), 70_000)
        .await?;
    let mut top_ups = [
        purse.top_up(vault.script_pubkey(), 40_000).await?,
        purse.top_up(vault.script_pubkey(), 50_000).await?,
    ];
    top_ups.sort_unstable();
    purse.mine(confirmations).await?;
    let young = deposit(None, 60_000).await?;
    purse.mine(confirmations.saturating_sub(1)).await?;
    Ok(Coins {
        good,
        late,
        young,
        unconfirmed: deposit(None, 60_000).await?,
        small,
        mined,
        foreign,
        top_ups,
        unconfirmed_top_up: purse.top_up(vault.script_pubkey(), 30_000).await?,
        mined_top_up,
    })
}
