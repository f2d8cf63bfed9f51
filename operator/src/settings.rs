//! This operator's own settings: paths, addresses, its Bitcoin node. What it is willing to sign is in its policy
//! ([`crate::policy`]); what all nodes of the vault must agree on is in the roster and the vault parameters.
//!
//! The default file is made from the comments on the fields below, so the two can't drift apart.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bitcoin::Network;
use chain::RpcSettings;
use node::files::{self, FileError};
use protocol::message::MAX_POOL;
use serde::{Deserialize, Serialize};

use crate::passphrase::{self, Source};

/// Name of the settings file in the operator's folder.
pub const FILE_NAME: &str = "operator.toml";

/// Declares a settings section and the text of its default file. Tables of their own come last, after `tables`; their
/// text is put together by hand.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $name:ident, $template:ident {
            $( $(#[doc = $doc:literal])* $(#[serde($($serde:tt)*)])? $field:ident: $type:ty = $default:literal, )*
        }
        $(tables {
            $( $(#[doc = $table_doc:literal])* $(#[serde($($table_serde:tt)*)])? $table:ident: $table_type:ty, )*
        })?
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])* $(#[serde($($serde)*)])? pub $field: $type, )*
            $($( $(#[doc = $table_doc])* $(#[serde($($table_serde)*)])? pub $table: $table_type, )*)?
        }

        const $template: &str = concat!(
            $( $("#", $doc, "\n",)* $default, "\n\n", )*
        );
    };
}
pub(crate) use section;

section! {
    /// The whole settings file.
    Settings, TEMPLATE {
        /// Folder of the database and the key files. Relative paths start at this file's folder.
        data_dir: PathBuf = "data_dir = \"data\"",
        /// The file with this operator's secret identity; its public half is in the roster.
        identity: PathBuf = "identity = \"identity\"",
        /// The roster, the same for all nodes of the vault.
        roster: PathBuf = "roster = \"roster.toml\"",
        /// The vault parameters, the same for all nodes of the vault.
        parameters: PathBuf = "parameters = \"vault.toml\"",
        /// The verifying key of the proofs, the same for all nodes of the vault.
        verifying_key: PathBuf = "verifying_key = \"verifying.key\"",
        /// What this operator is willing to sign. The running node reads this file again when it changes.
        policy: PathBuf = "policy = \"policy.toml\"",
        /// Multiaddresses to listen on for the other nodes.
        listen: Vec<String> = "listen = [\"/ip4/0.0.0.0/tcp/9000\"]",
        /// Where to serve /healthz, /readyz, /metrics and /v1/status. A loopback address: there is no
        /// login. Leave it out to serve nothing.
        #[serde(default)]
        status_listen: Option<SocketAddr> = "# status_listen = \"127.0.0.1:9100\"",
        /// A file with the passphrase of the key files, readable by its owner only. Without it the passphrase
        /// comes from the environment variable DRAWBRIDGE_PASSPHRASE, or is asked for at a terminal.
        #[serde(default)]
        passphrase_file: Option<PathBuf> = "# passphrase_file = \"passphrase\"",
        /// How much work a guess of the passphrase costs: "standard", or "fast" on regtest only.
        #[serde(default)]
        sealing: Sealing = "# sealing = \"standard\"",
        /// The first block to look at when the genesis certificate is known but its block is not (a
        /// restored operator): the height of the genesis output's block, or any lower one.
        #[serde(default)]
        scan_from: u32 = "# scan_from = 0",
        /// How many sets of nonces each coordinator may hold ahead of time, at most 8, so that a batch is signed in one
        /// round trip. 0: none. They live in memory for a minute at most.
        #[serde(default)]
        nonce_pool: usize = "# nonce_pool = 0",
        /// The Unix socket of the helper that gives this operator's attestation documents, where the roster requires
        /// one (docs/attestation.md). Whoever can write to it can have documents made.
        #[serde(default)]
        attestation_socket: Option<PathBuf> = "# attestation_socket = \"/run/attestation.sock\"",
    }
    tables {
        /// The own Bitcoin node.
        bitcoind: RpcSettings,
    }
}

const BITCOIND_TEMPLATE: &str = "\
# http://host:port of the own node. No TLS: keep it on this host or in a tunnel.
url = \"http://127.0.0.1:8332\"

# The .cookie file that bitcoind writes into its data folder at every start; or user and password.
cookie_file = \"/var/lib/bitcoind/.cookie\"
# user = \"drawbridge\"
# password = \"...\"
";

/// How much work a guess of the passphrase costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sealing {
    /// RFC 9106's choice for machines with little memory.
    #[default]
    Standard,
    /// Next to none, for throw-away networks.
    Fast,
}

impl From<Sealing> for threshold::seal::Cost {
    fn from(sealing: Sealing) -> Self {
        match sealing {
            Sealing::Standard => Self::Standard,
            Sealing::Fast => Self::Fast,
        }
    }
}

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read or parsed.
    #[error("the settings can't be read")]
    File(#[from] FileError),
    /// Nothing to listen on, so that nobody could connect.
    #[error("'listen' is empty: give one multiaddress at least, such as \"/ip4/0.0.0.0/tcp/9000\"")]
    Listen,
    /// The status pages would be open to the network.
    #[error("'status_listen' is {0}: it has no login and must be a loopback address")]
    StatusListen(SocketAddr),
    /// More nonces ahead of time than a coordinator may hold.
    #[error("'nonce_pool' is {0}: a coordinator holds at most {MAX_POOL} of one operator")]
    NoncePool(usize),
    /// Cheap sealing where money is real.
    #[error("'sealing = \"fast\"' is for regtest only, not for {0}")]
    Sealing(Network),
    /// The login is incomplete or in the wrong place.
    #[error("the section [bitcoind] can't be used")]
    Bitcoind(#[from] chain::SettingsError),
}

impl Settings {
    /// Reads and checks the settings file; relative paths become paths from its folder.
    ///
    /// # Errors
    /// [`SettingsError`], which names file, line and field.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let mut settings: Self = files::load_toml(path)?;
        if settings.bitcoind.password.is_some() {
            files::check_private(path)?;
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let own = [
            Some(&mut settings.data_dir),
            Some(&mut settings.identity),
            Some(&mut settings.roster),
            Some(&mut settings.parameters),
            Some(&mut settings.verifying_key),
            Some(&mut settings.policy),
            settings.passphrase_file.as_mut(),
            settings.attestation_socket.as_mut(),
            settings.bitcoind.cookie_file.as_mut(),
        ];
        for file in own.into_iter().flatten() {
            // An absolute path stays as it is.
            *file = folder.join(&*file);
        }
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.listen.is_empty() {
            return Err(SettingsError::Listen);
        }
        if let Some(address) = self
            .status_listen
            .filter(|address| !address.ip().is_loopback())
        {
            return Err(SettingsError::StatusListen(address));
        }
        if self.nonce_pool > MAX_POOL {
            return Err(SettingsError::NoncePool(self.nonce_pool));
        }
        Ok(())
    }

    /// What the network allows.
    ///
    /// # Errors
    /// [`SettingsError::Sealing`].
    pub fn check_network(&self, network: Network) -> Result<(), SettingsError> {
        if self.sealing == Sealing::Fast && network != Network::Regtest {
            return Err(SettingsError::Sealing(network));
        }
        Ok(())
    }

    /// Where the passphrase of the key files comes from: the file, else the environment, else the terminal.
    pub fn passphrase(&self) -> Source<'_> {
        Source {
            what: "the key share",
            file: self.passphrase_file.as_deref(),
            option: "'passphrase_file' in the settings",
            variable: passphrase::NODE_VARIABLE,
        }
    }
}

/// The settings file with its defaults, each explained.
pub fn template() -> String {
    format!(
        "# Settings of one Drawbridge operator. Restart it after a change.\n\n\
         {TEMPLATE}# The own Bitcoin node.\n[bitcoind]\n{BITCOIND_TEMPLATE}"
    )
}

/// [`template`] for an operator that is restored: it begins to follow the chain at the genesis, where that is known.
pub fn restored_template(genesis_height: Option<u32>) -> String {
    match genesis_height {
        Some(height) => template().replace("# scan_from = 0", &format!("scan_from = {height}")),
        None => template(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, text).unwrap();
        Settings::load(&path)
    }

    #[test]
    fn the_default_file_loads_and_explains_every_field() {
        let settings = load(&template()).unwrap();
        assert_eq!(settings.policy.file_name().unwrap(), "policy.toml");
        assert!(settings.data_dir.is_absolute());
        let text = template();
        let value = toml::Value::try_from(&settings).unwrap();
        for field in value.as_table().unwrap().keys() {
            assert!(
                text.contains(&format!("{field} =")) || text.contains(&format!("[{field}]")),
                "{field}"
            );
        }
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        for (from, to, name) in [
            ("data_dir =", "date_dir = 1\ndata_dir =", "date_dir"),
            ("policy =", "polizei = 1\npolicy =", "polizei"),
            ("url =", "uri = \"\"\nurl =", "uri"),
        ] {
            let error = load(&template().replacen(from, to, 1)).unwrap_err();
            let SettingsError::File(source) = error else {
                panic!("{error}")
            };
            assert!(source.to_string().contains(name), "{source}");
        }
    }

    #[test]
    fn settings_that_open_the_node_to_the_world_are_refused() {
        let open = template().replace(
            "# status_listen = \"127.0.0.1:9100\"",
            "status_listen = \"0.0.0.0:9100\"",
        );
        assert!(matches!(load(&open), Err(SettingsError::StatusListen(_))));
        let deaf = template().replace("listen = [\"/ip4/0.0.0.0/tcp/9000\"]", "listen = []");
        assert!(matches!(load(&deaf), Err(SettingsError::Listen)));
    }

    #[test]
    fn settings_with_a_password_must_be_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let text = template()
            .replace("cookie_file =", "# cookie_file =")
            .replace("# user =", "user =")
            .replace("# password =", "password =");
        std::fs::write(&path, text).unwrap();
        for (mode, is_good) in [(0o640, false), (0o600, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Settings::load(&path).is_ok(), is_good, "{mode:o}");
        }
    }

    #[test]
    fn cheap_sealing_is_for_regtest() {
        let settings =
            load(&template().replace("# sealing = \"standard\"", "sealing = \"fast\"")).unwrap();
        assert!(settings.check_network(Network::Regtest).is_ok());
        assert!(matches!(
            settings.check_network(Network::Bitcoin),
            Err(SettingsError::Sealing(_))
        ));
    }
}
