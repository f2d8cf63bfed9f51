//! What this operator is willing to sign: its own limits (S6), and what batches may cost (S5). In a file of its own,
//! which the running node reads again when it changes; no two operators need the same.
//!
//! The default file is made from the comments on the fields below, so the two can't drift apart.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use bitcoin::{Address, Amount, Script, ScriptBuf, address::NetworkUnchecked};
use node::files::{self, FileError};
use protocol::parameters::Parameters;
use serde::{Deserialize, Serialize};

use crate::settings::section;

/// Name of the policy file in the operator's folder.
pub const FILE_NAME: &str = "policy.toml";
/// Longest window in blocks: two weeks.
const MAX_WINDOW_BLOCKS: u32 = 2_016;
/// Most blocked outputs.
const MAX_BLOCKED: usize = 10_000;
/// Most tiers of confirmations.
const MAX_TIERS: usize = 32;

section! {
    /// The policy file.
    PolicyFile, TEMPLATE {
        /// Length of the rolling windows below in blocks, 1 to 2,016. What this operator's own chain has confirmed
        /// within them counts.
        window_blocks: u32 = "window_blocks = 144",
        /// Outputs that no withdrawal may pay: Bitcoin addresses, or output scripts in hex.
        #[serde(default)]
        blocked: Vec<String> = "blocked = []",
    }
    tables {
        /// Limits on withdrawals.
        withdrawals: Withdrawals,
        /// Caps on miner fees.
        fees: Fees,
        /// Confirmations of deposits by amount.
        #[serde(default)]
        deposits: Vec<Tier>,
    }
}

section! {
    /// Limits on withdrawals (S6). A limit that is left out does not limit.
    Withdrawals, WITHDRAWALS_TEMPLATE {
        /// A withdrawal above this waits until this operator's administrator approves it, in sats.
        #[serde(default)]
        hold_above_sat: Option<u64> = "hold_above_sat = 100_000_000",
        /// Largest single withdrawal, in sats. Approval does not lift it.
        #[serde(default)]
        largest_sat: Option<u64> = "largest_sat = 1_000_000_000",
        /// Withdrawals of one batch together, in sats.
        #[serde(default)]
        batch_sat: Option<u64> = "batch_sat = 2_000_000_000",
        /// Number of withdrawals in one batch.
        #[serde(default)]
        batch_count: Option<u64> = "# batch_count = 64",
        /// Withdrawals within the window together, in sats.
        #[serde(default)]
        window_sat: Option<u64> = "window_sat = 5_000_000_000",
        /// Number of withdrawals within the window.
        #[serde(default)]
        window_count: Option<u64> = "# window_count = 5_000",
    }
}

section! {
    /// Caps on miner fees; a batch above one is refused (S5).
    Fees, FEES_TEMPLATE {
        /// Highest miner fee of one batch, in sats.
        max_fee_sat: u64 = "max_fee_sat = 500_000",
        /// Highest fee rate of a batch, in sats per virtual byte.
        max_fee_rate_sat_per_vb: u64 = "max_fee_rate_sat_per_vb = 300",
        /// Miner fees within the window beyond the fees that users paid, in sats.
        max_net_fees_sat: u64 = "max_net_fees_sat = 1_000_000",
    }
}

section! {
    /// Confirmations that deposits of an amount need before this operator signs for them.
    Tier, TIER_TEMPLATE {
        /// From this amount on, in sats.
        from_sat: u64 = "# from_sat = 100_000_000",
        /// Confirmations, where that is more than the vault asks for.
        confirmations: u32 = "# confirmations = 30",
    }
}

impl Fees {
    /// Highest miner fee of one batch.
    pub fn max_fee(&self) -> Amount {
        Amount::from_sat(self.max_fee_sat)
    }
}

/// Why a policy can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file can't be read or parsed.
    #[error("the policy can't be read")]
    File(#[from] FileError),
    /// A number that lets nothing through, or that is none.
    #[error("{path}: '{field}' is out of range")]
    Range {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// A blocked output that is neither address nor script.
    #[error(
        "{path}: '{entry}' in 'blocked' is neither an address of this vault's network nor an output script in hex"
    )]
    Blocked {
        /// The file.
        path: PathBuf,
        /// What stands there.
        entry: String,
    },
    /// A deposit with so many confirmations is too close to its refund to be signed for (S2).
    #[error(
        "{path}: a deposit with {confirmations} confirmations is too close to its refund: ask for {most} at most"
    )]
    Confirmations {
        /// The file.
        path: PathBuf,
        /// What the tier asks for.
        confirmations: u32,
        /// What the vault's parameters leave room for.
        most: u32,
    },
}

/// A policy that was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    file: PolicyFile,
    blocked: BTreeSet<ScriptBuf>,
}

impl Policy {
    /// Reads and checks a policy file.
    ///
    /// # Errors
    /// [`PolicyError`], which names file and field.
    pub fn load(path: &Path, parameters: &Parameters) -> Result<Self, PolicyError> {
        Self::parse(path, &files::read(path)?, parameters)
    }

    /// Checks the text of the policy file at `path`.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(path: &Path, text: &str, parameters: &Parameters) -> Result<Self, PolicyError> {
        let file: PolicyFile = files::parse_toml(path, text)?;
        if let Some(field) = out_of_range(&file) {
            let path = path.to_owned();
            return Err(PolicyError::Range { path, field });
        }
        // S2: a batch must be able to confirm before a refund opens.
        let most = u32::from(parameters.refund_delay)
            .saturating_sub(parameters.replacement_delay.into())
            .saturating_sub(parameters.bump_window.into());
        if let Some(tier) = file.deposits.iter().find(|tier| tier.confirmations > most) {
            return Err(PolicyError::Confirmations {
                path: path.to_owned(),
                confirmations: tier.confirmations,
                most,
            });
        }
        let blocked = file.blocked.iter().map(|entry| {
            script(entry, parameters).ok_or_else(|| PolicyError::Blocked {
                path: path.to_owned(),
                entry: entry.clone(),
            })
        });
        let blocked = blocked.collect::<Result<_, _>>()?;
        Ok(Self { file, blocked })
    }

    /// The file's fields.
    pub fn file(&self) -> &PolicyFile {
        &self.file
    }

    /// Length of the rolling windows.
    pub fn window_blocks(&self) -> u32 {
        self.file.window_blocks
    }

    /// Limits on withdrawals.
    pub fn withdrawals(&self) -> &Withdrawals {
        &self.file.withdrawals
    }

    /// Caps on miner fees.
    pub fn fees(&self) -> &Fees {
        &self.file.fees
    }

    /// May a withdrawal pay this script?
    pub fn is_blocked(&self, script: &Script) -> bool {
        self.blocked.contains(script)
    }

    /// Does a withdrawal of this amount need approval?
    pub fn holds(&self, amount: Amount) -> bool {
        let above = self.file.withdrawals.hold_above_sat;
        above.is_some_and(|above| amount.to_sat() > above)
    }

    /// Confirmations that a deposit of this value needs; 0 where only the vault's own count.
    pub fn confirmations(&self, value: Amount) -> u32 {
        let tiers = self.file.deposits.iter();
        tiers
            .filter(|tier| value.to_sat() >= tier.from_sat)
            .map(|tier| tier.confirmations)
            .max()
            .unwrap_or(0)
    }
}

/// The policy in force, and the file that it comes from.
pub struct PolicyKeeper {
    path: PathBuf,
    parameters: Arc<Parameters>,
    current: Arc<Policy>,
    /// What the file held at the last look, or why it could not be read.
    seen: Result<String, String>,
    problem: Option<String>,
}

/// The policy in force, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The file that it comes from.
    pub path: PathBuf,
    /// The policy in force.
    pub policy: PolicyFile,
    /// Why the file, as it is now, is not in force.
    pub problem: Option<String>,
}

/// What a look at the policy file has found.
#[derive(Debug)]
pub enum Look {
    /// The file is as it was.
    Same,
    /// Another policy is in force.
    Changed,
    /// The file can't be used; the policy before it stays in force.
    Bad(PolicyError),
}

impl PolicyKeeper {
    /// Loads the policy that a node starts with.
    ///
    /// # Errors
    /// [`PolicyError`]: without a policy nothing is signed.
    pub fn open(path: PathBuf, parameters: Arc<Parameters>) -> Result<Self, PolicyError> {
        let text = files::read(&path)?;
        let current = Arc::new(Policy::parse(&path, &text, &parameters)?);
        Ok(Self {
            path,
            parameters,
            current,
            seen: Ok(text),
            problem: None,
        })
    }

    /// The policy in force.
    pub fn current(&self) -> &Arc<Policy> {
        &self.current
    }

    /// Why the file, as it is now, is not in force.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The policy in force, for people.
    pub fn shown(&self) -> Shown {
        Shown {
            path: self.path.clone(),
            policy: self.current.file.clone(),
            problem: self.problem.clone(),
        }
    }

    /// Looks at the file again. Waits for the disk.
    pub fn look(&mut self) -> Look {
        let read = files::read(&self.path);
        let seen = read.as_ref().map_err(ToString::to_string).cloned();
        if seen == self.seen {
            return Look::Same;
        }
        self.seen = seen;
        let parsed = read
            .map_err(PolicyError::from)
            .and_then(|text| Policy::parse(&self.path, &text, &self.parameters));
        match parsed {
            Ok(policy) => {
                self.problem = None;
                if policy == *self.current {
                    return Look::Same;
                }
                self.current = Arc::new(policy);
                Look::Changed
            }
            Err(error) => {
                self.problem = Some(describe(&error));
                Look::Bad(error)
            }
        }
    }
}

/// An error with its source, in one line.
fn describe(error: &PolicyError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// The first field whose value makes no sense.
fn out_of_range(file: &PolicyFile) -> Option<&'static str> {
    let PolicyFile {
        window_blocks,
        blocked,
        withdrawals,
        fees,
        deposits,
    } = file;
    let money = Amount::MAX_MONEY.to_sat();
    let limit = |value: Option<u64>| value.is_none_or(|value| value <= money);
    let fee = |value: u64| value > 0 && value <= money;
    [
        (
            (1..=MAX_WINDOW_BLOCKS).contains(window_blocks),
            "window_blocks",
        ),
        (blocked.len() <= MAX_BLOCKED, "blocked"),
        (
            limit(withdrawals.hold_above_sat),
            "withdrawals.hold_above_sat",
        ),
        (limit(withdrawals.largest_sat), "withdrawals.largest_sat"),
        (limit(withdrawals.batch_sat), "withdrawals.batch_sat"),
        (limit(withdrawals.window_sat), "withdrawals.window_sat"),
        (fee(fees.max_fee_sat), "fees.max_fee_sat"),
        (
            fee(fees.max_fee_rate_sat_per_vb),
            "fees.max_fee_rate_sat_per_vb",
        ),
        (fees.max_net_fees_sat <= money, "fees.max_net_fees_sat"),
        (deposits.len() <= MAX_TIERS, "deposits"),
        (
            deposits.iter().all(|tier| tier.from_sat <= money),
            "deposits.from_sat",
        ),
    ]
    .into_iter()
    .find_map(|(good, field)| (!good).then_some(field))
}

/// The script of an address of the network, or in hex.
fn script(entry: &str, parameters: &Parameters) -> Option<ScriptBuf> {
    if let Ok(address) = entry.parse::<Address<NetworkUnchecked>>() {
        let address = address.require_network(parameters.network).ok()?;
        return Some(address.script_pubkey());
    }
    ScriptBuf::from_hex(entry)
        .ok()
        .filter(|script| !script.is_empty())
}

/// The policy file with its defaults, each explained.
pub fn template() -> String {
    format!(
        "# Policy of one Drawbridge operator: what it is willing to sign. The running node reads this file again when\n\
         # it changes; `drawbridge-operator policy check` says whether it would take it. Amounts are in sats.\n\n\
         {TEMPLATE}# Limits on withdrawals. A limit that is left out does not limit.\n\
         [withdrawals]\n{WITHDRAWALS_TEMPLATE}# Caps on what batches may cost.\n\
         [fees]\n{FEES_TEMPLATE}# Confirmations of deposits by amount: one such table for each amount.\n\
         # [[deposits]]\n{}\n",
        TIER_TEMPLATE.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn parse(text: &str) -> Result<Policy, PolicyError> {
        Policy::parse(Path::new(FILE_NAME), text, testing::parameters())
    }

    /// The template with every example switched on.
    fn everything() -> String {
        let text = template();
        let lines = text.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_default_file_loads_and_explains_every_field() {
        let policy = parse(&template()).unwrap();
        assert_eq!(policy.window_blocks(), 144);
        assert!(!policy.holds(Amount::ONE_BTC));
        assert!(policy.holds(Amount::ONE_BTC + Amount::ONE_SAT));
        let full = parse(&everything()).unwrap();
        assert_eq!(full.withdrawals().window_count, Some(5_000));
        let text = template();
        let value = toml::Value::try_from(full.file()).unwrap();
        for (table, fields) in value.as_table().unwrap() {
            let names: Vec<&String> = match fields {
                toml::Value::Table(fields) => fields.keys().collect(),
                toml::Value::Array(rows) => rows
                    .iter()
                    .filter_map(toml::Value::as_table)
                    .flat_map(toml::Table::keys)
                    .collect(),
                _ => vec![table],
            };
            for name in names {
                assert!(text.contains(&format!("{name} =")), "{name}");
            }
        }
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        for (from, to, name) in [
            ("window_blocks", "windows = 1\nwindow_blocks", "windows"),
            ("largest_sat", "biggest_sat = 1\nlargest_sat", "biggest_sat"),
            ("max_fee_sat", "max_fees = 1\nmax_fee_sat", "max_fees"),
            ("from_sat", "above_sat = 1\nfrom_sat", "above_sat"),
        ] {
            let error = parse(&everything().replacen(from, to, 1)).unwrap_err();
            let PolicyError::File(source) = error else {
                panic!("{error}")
            };
            assert!(source.to_string().contains(name), "{source}");
        }
    }

    #[test]
    fn a_number_that_makes_no_sense_is_an_error_that_names_its_field() {
        for (from, to, name) in [
            ("window_blocks = 144", "window_blocks = 0", "window_blocks"),
            (
                "window_blocks = 144",
                "window_blocks = 2017",
                "window_blocks",
            ),
            ("max_fee_sat = 500_000", "max_fee_sat = 0", "max_fee_sat"),
            (
                "largest_sat = 1_000_000_000",
                "largest_sat = 2_100_000_000_000_001",
                "largest_sat",
            ),
        ] {
            let error = parse(&template().replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let parameters = testing::parameters();
        let most = parameters.refund_delay - parameters.replacement_delay - parameters.bump_window;
        let deep =
            |n: u16| everything().replace("confirmations = 30", &format!("confirmations = {n}"));
        parse(&deep(most)).unwrap();
        assert!(matches!(
            parse(&deep(most + 1)),
            Err(PolicyError::Confirmations { .. })
        ));
    }

    #[test]
    fn blocked_outputs_are_addresses_of_the_network_or_scripts() {
        let with = |entry: &str| {
            parse(&template().replace("blocked = []", &format!("blocked = [\"{entry}\"]")))
        };
        let script = testing::vault_key().script_pubkey();
        let address = testing::vault_key().address().unwrap();
        for entry in [address.to_string(), script.to_hex_string()] {
            let policy = with(&entry).unwrap();
            assert!(policy.is_blocked(script), "{entry}");
            assert!(!policy.is_blocked(&ScriptBuf::new()));
        }
        let elsewhere = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
        for entry in [elsewhere, "0014zz", ""] {
            let error = with(entry).unwrap_err();
            assert!(matches!(error, PolicyError::Blocked { .. }), "{error}");
        }
    }

    #[test]
    fn the_highest_tier_that_a_deposit_reaches_counts() {
        let tiers = "[[deposits]]\nfrom_sat = 1_000\nconfirmations = 3\n\
                     [[deposits]]\nfrom_sat = 10\nconfirmations = 9\n\
                     [[deposits]]\nfrom_sat = 2_000\nconfirmations = 20\n";
        let policy = parse(&format!("{}{tiers}", template())).unwrap();
        for (value, confirmations) in [(9, 0), (10, 9), (1_000, 9), (1_999, 9), (2_000, 20)] {
            assert_eq!(policy.confirmations(Amount::from_sat(value)), confirmations);
        }
    }

    #[test]
    fn a_changed_file_is_taken_and_a_bad_one_keeps_the_policy_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let parameters = Arc::new(testing::parameters().clone());
        assert!(PolicyKeeper::open(path.clone(), parameters.clone()).is_err());
        std::fs::write(&path, template()).unwrap();
        let mut keeper = PolicyKeeper::open(path.clone(), parameters).unwrap();
        assert!(matches!(keeper.look(), Look::Same));

        let window = |keeper: &PolicyKeeper| keeper.current().window_blocks();
        std::fs::write(&path, template().replace("= 144", "= 99")).unwrap();
        assert!(matches!(keeper.look(), Look::Changed));
        assert_eq!(window(&keeper), 99);
        std::fs::write(&path, "window_blocks = 7\n").unwrap();
        assert!(matches!(keeper.look(), Look::Bad(_)));
        assert!(matches!(keeper.look(), Look::Same), "it is told once");
        assert_eq!(window(&keeper), 99);
        assert!(keeper.problem().unwrap().contains("withdrawals"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(keeper.look(), Look::Bad(_)));
        assert_eq!(window(&keeper), 99);
        std::fs::write(&path, template().replace("= 144", "= 99")).unwrap();
        assert!(matches!(keeper.look(), Look::Same));
        assert_eq!(keeper.problem(), None);
    }
}
