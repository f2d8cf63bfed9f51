//! What the command line takes, and its help texts.

use std::path::PathBuf;

use bitcoin::{Amount, FeeRate, Network, OutPoint};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ledger::VaultId;
use wallet::{Request, Target, send::DEFAULT_VALID_FOR};

const EXAMPLES: &str = "\
Examples:
  drawbridge new-key --network regtest             make a wallet
  drawbridge deposit-address                       where to pay BTC to
  drawbridge deposits                              what has arrived
  drawbridge balance
  drawbridge transfer --to zkbcrt1... --amount 25000
  drawbridge withdraw --to bcrt1q... --amount 40000
  drawbridge wait 5f0c...e1                        until it is final
  drawbridge refund --outpoint 9a3e...:0 --to bcrt1q... --fee-rate 2 \\
      --cookie-file ~/.bitcoin/regtest/.cookie     take an uncredited deposit back

Amounts are in sats. The passphrase comes from --passphrase-file, else from
$DRAWBRIDGE_PASSPHRASE, else you are asked. Exit code: 0 done, 1 error, 2 wrong usage.";

/// Pay BTC into a Drawbridge vault, send zkBTC, and get BTC back.
#[derive(Parser)]
#[command(name = "drawbridge", version, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Folder of the wallet [default: ~/.drawbridge]
    #[arg(long, global = true, value_name = "DIR", env = "DRAWBRIDGE_WALLET")]
    pub wallet: Option<PathBuf>,
    /// The coordinator to ask
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DRAWBRIDGE_COORDINATOR",
        default_value = "http://127.0.0.1:8080"
    )]
    pub coordinator: String,
    /// bitcoin, testnet, testnet4, signet or regtest; needed for new-key, else must be the wallet's
    #[arg(long, global = true, env = "DRAWBRIDGE_NETWORK", value_parser = network)]
    pub network: Option<Network>,
    /// File with the passphrase on its first line
    #[arg(long, global = true, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Accept only this vault, even at first use (64 hex digits)
    #[arg(long, global = true, value_name = "ID", env = "DRAWBRIDGE_VAULT_ID")]
    pub vault_id: Option<VaultId>,
    /// Accept only these vault parameters: a JSON file, as operators publish it
    #[arg(long, global = true, value_name = "FILE")]
    pub vault_parameters: Option<PathBuf>,
    /// Print JSON: the reply on stdout, an error on stderr
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a wallet: an account and a refund key, encrypted
    #[command(after_help = "\
Examples:
  drawbridge new-key --network regtest
  drawbridge new-key --network signet --wallet ./alice --passphrase-file alice.pass

Writes wallet.key and refuses to overwrite one. Back up the folder after each
deposit-address: it then holds all that a refund needs.")]
    NewKey,
    /// Print the account's address, to receive zkBTC
    Address,
    /// Derive your deposit address, compare it with the coordinator's, back it up
    #[command(after_help = "\
Examples:
  drawbridge deposit-address
  drawbridge deposit-address --vault-id 8d1f...c0 --vault-parameters parameters.json

The address is derived here from the vault's key and your own keys. If the
coordinator says anything else, there is an error and nothing to pay to.
At first use the wallet remembers vault id, group key and terms, and accepts
no others later. With --vault-id you need not trust even the first answer.")]
    DepositAddress,
    /// List payments to your deposit address
    #[command(after_help = "Example:\n  drawbridge deposits --limit 5")]
    Deposits {
        /// At most this many (1 to 100)
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
        limit: u16,
        /// Continue after this one (`next` of the page before)
        #[arg(long, value_name = "TXID:VOUT")]
        after: Option<String>,
    },
    /// Print the balance, its Merkle proof checked
    Balance,
    /// Send zkBTC to another account
    #[command(after_help = "\
Examples:
  drawbridge transfer --to zkbcrt1... --amount 25000
  drawbridge transfer --to zkbcrt1... --amount 25000 --fee 200 --valid-for 6

Prints the operation's id, computed here. Sending the same operation again is
harmless; a new 'transfer' is a second payment.")]
    Transfer {
        /// The recipient's account address
        #[arg(long, value_name = "ADDRESS")]
        to: String,
        #[command(flatten)]
        send: Send,
    },
    /// Burn zkBTC and have the vault pay BTC
    #[command(after_help = "\
Examples:
  drawbridge withdraw --to bcrt1q... --amount 40000
  drawbridge withdraw --to bcrt1q... --amount 40000 --json

The address gets the whole amount; the fee comes on top of it.")]
    Withdraw {
        /// The Bitcoin address that is paid
        #[arg(long, value_name = "BTCADDRESS")]
        to: String,
        #[command(flatten)]
        send: Send,
    },
    /// Wait until a transfer, withdrawal or deposit is done
    #[command(after_help = "\
Examples:
  drawbridge wait 5f0c...e1                          an operation
  drawbridge wait 9a3e...77:0 --for confirmed        a deposit
  drawbridge wait 5f0c...e1 --timeout 600 || echo not yet

Credit a payment only when it is final.")]
    Wait {
        /// Operation id, or txid:vout of a deposit
        #[arg(value_name = "ID")]
        request: Request,
        /// How far
        #[arg(long = "for", value_enum, default_value_t = For::Final)]
        target: For,
        /// Give up after this many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 7200)]
        timeout: u64,
    },
    /// Print how coordinator and vault are, what things cost, and what this wallet has pinned
    Status,
    /// Take an uncredited deposit back after the time-lock, with your own bitcoind only
    #[command(after_help = "\
Examples:
  drawbridge refund --outpoint 9a3e...:0 --to bcrt1q... --fee-rate 2 --cookie-file ~/.bitcoin/regtest/.cookie
  drawbridge refund --outpoint 9a3e...:0 --to bc1q... --fee-rate 8.5 --bitcoind http://127.0.0.1:8332 \\
      --rpc-user me --rpc-password secret --dry-run

Needs no coordinator. Before the time-lock is over it says how many blocks are
missing and sends nothing. --dry-run prints the signed transaction.")]
    Refund(RefundArguments),
    /// Print how to refund with Bitcoin Core alone
    #[command(after_help = "\
Examples:
  drawbridge import-descriptor
  drawbridge import-descriptor --show-secret         with the refund private key

Whoever sees the secret can take your refunds (not your zkBTC).")]
    ImportDescriptor {
        /// Only this deposit address [default: all that were shown]
        #[arg(long, value_name = "BTCADDRESS")]
        address: Option<String>,
        /// Print the refund private key within the descriptor
        #[arg(long)]
        show_secret: bool,
    },
}

#[derive(Args)]
pub struct Send {
    /// What the recipient gets, in sats
    #[arg(long, value_name = "SAT", value_parser = amount)]
    pub amount: Amount,
    /// What you pay on top, in sats [default: the vault's smallest]
    #[arg(long, value_name = "SAT", value_parser = amount)]
    pub fee: Option<Amount>,
    /// Expires after this many batches
    #[arg(long, value_name = "BATCHES", default_value_t = DEFAULT_VALID_FOR)]
    pub valid_for: u64,
}

#[derive(Args)]
pub struct RefundArguments {
    /// The deposit
    #[arg(long, value_name = "TXID:VOUT")]
    pub outpoint: OutPoint,
    /// A Bitcoin address of your own
    #[arg(long, value_name = "BTCADDRESS")]
    pub to: String,
    /// Miner fee in sat/vB, decimals allowed
    #[arg(long, value_name = "N", value_parser = fee_rate)]
    pub fee_rate: FeeRate,
    /// RPC address of your bitcoind [default: 127.0.0.1 and the network's usual port]
    #[arg(long, value_name = "URL")]
    pub bitcoind: Option<String>,
    /// bitcoind's .cookie file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rpc_user", "rpc_password"], required_unless_present = "rpc_user")]
    pub cookie_file: Option<PathBuf>,
    /// RPC user, instead of a cookie file
    #[arg(long, value_name = "USER", requires = "rpc_password")]
    pub rpc_user: Option<String>,
    /// RPC password
    #[arg(
        long,
        value_name = "PASSWORD",
        requires = "rpc_user",
        env = "DRAWBRIDGE_RPC_PASSWORD",
        hide_env_values = true
    )]
    pub rpc_password: Option<String>,
    /// Print the signed transaction and do not send it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum For {
    /// In a block
    Confirmed,
    /// Deep enough to count on
    Final,
}

impl From<For> for Target {
    fn from(value: For) -> Self {
        match value {
            For::Confirmed => Self::Confirmed,
            For::Final => Self::Final,
        }
    }
}

fn network(text: &str) -> Result<Network, String> {
    Network::from_core_arg(text)
        .ok()
        .or_else(|| text.parse().ok())
        .ok_or_else(|| "expected bitcoin, testnet, testnet4, signet or regtest".to_owned())
}

fn amount(text: &str) -> Result<Amount, String> {
    text.parse()
        .ok()
        .map(Amount::from_sat)
        .filter(|amount| *amount <= Amount::MAX_MONEY)
        .ok_or_else(|| "expected whole sats, at most 21 million BTC".to_owned())
}

/// Sats for 1,000 weight units in one sat/vB.
const KWU_PER_SAT_VB: f64 = 250.0;

/// Rounded up to whole sats for 1,000 weight units; the bounds are checked where the fee is used.
fn fee_rate(text: &str) -> Result<FeeRate, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "expected a number of sat/vB".to_owned())?;
    let highest = f64::from(u32::MAX);
    let per_kwu = (rate * KWU_PER_SAT_VB).ceil();
    if !(0.0..=highest).contains(&per_kwu) {
        return Err("expected a number of sat/vB".to_owned());
    }
    // In bounds and whole, so the conversion is exact.
    Ok(FeeRate::from_sat_per_kwu(per_kwu as u64))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn rates_and_amounts_are_read_exactly_or_not_at_all() {
        assert_eq!(fee_rate("1"), Ok(FeeRate::from_sat_per_kwu(250)));
        assert_eq!(fee_rate("8.5"), Ok(FeeRate::from_sat_per_kwu(2_125)));
        for bad in ["", "-1", "NaN", "inf", "1e30", "x"] {
            assert!(fee_rate(bad).is_err(), "{bad}");
        }
        assert_eq!(amount("25000"), Ok(Amount::from_sat(25_000)));
        for bad in ["", "-1", "0.1", "2100000000000001", "18446744073709551616"] {
            assert!(amount(bad).is_err(), "{bad}");
        }
        assert_eq!(network("main"), Ok(Network::Bitcoin));
        assert_eq!(network("regtest"), Ok(Network::Regtest));
        assert!(network("moon").is_err());
    }
}
