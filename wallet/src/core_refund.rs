//! How to take a deposit back with Bitcoin Core alone, when even this program is gone.

use bitcoin::{NetworkKind, PrivateKey, secp256k1::SecretKey};
use miniscript::descriptor::checksum;
use zeroize::Zeroizing;

use crate::deposit::BackupError;
use crate::{DepositBackup, Wallet};

/// What Bitcoin Core needs to refund one deposit address.
pub struct CoreImport {
    /// The Bitcoin address.
    pub address: String,
    /// Relative time-lock in blocks: the input's `sequence`.
    pub refund_delay_blocks: u16,
    /// The descriptor without any secret.
    pub public_descriptor: String,
    /// The descriptor with the refund private key in place: whoever has it can take refunds.
    pub secret_descriptor: Zeroizing<String>,
}

/// Why there is nothing to import.
#[derive(Debug, thiserror::Error)]
pub enum CoreImportError {
    /// The saved address is damaged.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The refund key in the terms is another wallet's.
    #[error("the refund key of this deposit address is another wallet's")]
    OtherKey,
    /// Not printable ASCII; a descriptor always is.
    #[error("the descriptor has no checksum: {0}")]
    Checksum(String),
}

impl Wallet {
    /// The descriptor of a saved deposit address, with the refund private key in it.
    ///
    /// # Errors
    /// [`CoreImportError`]; see its variants.
    pub fn core_import(&self, backup: &DepositBackup) -> Result<CoreImport, CoreImportError> {
        let derived = backup.derived()?;
        if derived.terms.refund != self.refund_key() {
            return Err(CoreImportError::OtherKey);
        }
        let network = NetworkKind::from(self.network());
        let wif = self
            .secrets
            .with_refund_keypair(|pair| {
                let mut inner: SecretKey = pair.secret_key();
                let wif = Zeroizing::new(PrivateKey::new(inner, network).to_wif());
                inner.non_secure_erase();
                wif
            })
            .ok_or(CoreImportError::OtherKey)?;
        let public = derived.descriptor.to_string();
        let body = public.split('#').next().unwrap_or_default();
        let key = format!("pk({})", derived.terms.refund);
        let body = Zeroizing::new(body.replacen(&key, &format!("pk({})", *wif), 1));
        let mut engine = checksum::Engine::new();
        engine
            .input(&body)
            .map_err(|error| CoreImportError::Checksum(error.to_string()))?;
        Ok(CoreImport {
            address: backup.address.clone(),
            refund_delay_blocks: derived.terms.refund_delay,
            secret_descriptor: Zeroizing::new(format!("{}#{}", *body, engine.checksum())),
            public_descriptor: public,
        })
    }
}

impl CoreImport {
    /// Step by step, for a shell with `bitcoin-cli`. Holds the private key only if `show_secret`.
    pub fn instructions(&self, show_secret: bool) -> Zeroizing<String> {
        let descriptor = if show_secret {
            self.secret_descriptor.as_str()
        } else {
            "<DESCRIPTOR WITH THE PRIVATE KEY: add --show-secret to see it>"
        };
        let Self {
            address,
            refund_delay_blocks,
            public_descriptor,
            ..
        } = self;
        Zeroizing::new(format!(
            "\
Refund of {address} with Bitcoin Core alone
(26 or newer; add -regtest, -signet ... to each bitcoin-cli as your network needs)

Public descriptor, to check: bitcoin-cli deriveaddresses '{public_descriptor}'

1. A wallet that will hold the refund key:
   bitcoin-cli -named createwallet wallet_name=refund blank=true
2. Import (\"timestamp\":0 scans the whole chain; use the Unix time of the payment to be quicker):
   bitcoin-cli -rpcwallet=refund importdescriptors '[{{\"desc\":\"{descriptor}\",\"timestamp\":0}}]'
3. Find the deposit; it needs {refund_delay_blocks} confirmations:
   bitcoin-cli -rpcwallet=refund listunspent
4. Spend it (AMOUNT is the deposit less the miner fee; about 140 vbytes):
   PSBT=$(bitcoin-cli createpsbt '[{{\"txid\":\"TXID\",\"vout\":VOUT,\"sequence\":{refund_delay_blocks}}}]' '[{{\"YOUR_ADDRESS\":AMOUNT}}]')
   PSBT=$(bitcoin-cli -rpcwallet=refund walletprocesspsbt \"$PSBT\" | sed -n 's/.*\"psbt\": \"\\(.*\\)\".*/\\1/p')
   bitcoin-cli finalizepsbt \"$PSBT\"
   bitcoin-cli sendrawtransaction HEX

Keep shell history in mind: the descriptor of step 2 holds a private key.
"
        ))
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;
    use miniscript::{Descriptor, DescriptorPublicKey};

    use super::*;
    use crate::PinnedVault;
    use crate::vault::tests::document;

    #[test]
    fn the_secret_descriptor_has_the_address_of_the_public_one() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = Wallet::create(dir.path().join("w"), "pass", Network::Regtest).unwrap();
        let vault = PinnedVault::from_document(Network::Regtest, &document()).unwrap();
        let backup =
            DepositBackup::derive(&vault, wallet.account_key(), wallet.refund_key()).unwrap();
        let import = wallet.core_import(&backup).unwrap();

        let secp = bitcoin::secp256k1::Secp256k1::new();
        let (descriptor, keys) =
            Descriptor::<DescriptorPublicKey>::parse_descriptor(&secp, &import.secret_descriptor)
                .unwrap();
        assert_eq!(keys.len(), 1);
        let address = descriptor
            .at_derivation_index(0)
            .unwrap()
            .address(Network::Regtest)
            .unwrap();
        assert_eq!(address.to_string(), backup.address);

        assert!(
            import
                .instructions(true)
                .contains(import.secret_descriptor.as_str())
        );
        let wif = import
            .secret_descriptor
            .split("pk(")
            .nth(1)
            .unwrap()
            .split(')')
            .next()
            .unwrap();
        assert!(!import.instructions(false).contains(wif));
    }
}
