//! The three operations, and the requests that become signed ones.

use bitcoin::{Amount, OutPoint, ScriptBuf};
use serde::{Deserialize, Serialize};

use crate::{
    AccountIndex, AccountKey, AccountSecret, Digest, OperationError, OperationId, SequenceNumber,
    Signature, VaultId, script::check_output_script, statement::Row,
};

/// What changes the ledger. A batch is a list of these, in the order of the Bitcoin transaction's inputs and
/// outputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Credits a key for a confirmed Bitcoin output; mints.
    Deposit {
        /// The key to credit; gets the next free index if it has none.
        account: AccountKey,
        /// Sats credited: the output's value less the deposit fee.
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        amount: Amount,
        /// The output that the batch sweeps.
        outpoint: OutPoint,
    },
    /// Moves sats from a sender's account to a key.
    Transfer {
        /// The sender's account.
        sender: AccountIndex,
        /// The sender's nonce: the number of operations it has signed before.
        nonce: u64,
        /// Sats the recipient gets.
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        amount: Amount,
        /// Sats on top that stay in the treasury.
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        fee: Amount,
        /// Who gets it; gets the next free index if it has none.
        recipient: AccountKey,
        /// The last batch that may hold this operation.
        last_valid: SequenceNumber,
        /// By the sender, over [`TransferRequest::message`].
        signature: Signature,
    },
    /// Burns sats of a sender's account and pays them on Bitcoin.
    Withdraw {
        /// The sender's account.
        sender: AccountIndex,
        /// The sender's nonce.
        nonce: u64,
        /// Sats of the Bitcoin output.
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        amount: Amount,
        /// Sats on top that stay in the treasury.
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        fee: Amount,
        /// The output's script; a standard one.
        script_pubkey: ScriptBuf,
        /// The last batch that may hold this operation.
        last_valid: SequenceNumber,
        /// By the sender, over [`WithdrawRequest::message`].
        signature: Signature,
    },
}

impl Operation {
    /// The operation's name in this vault; see [`OperationId`].
    pub fn id(&self, vault: &VaultId) -> OperationId {
        OperationId(Digest(Row::of(self, vault).0.message()).to_bytes())
    }

    /// Sats moved, without the fee.
    pub fn amount(&self) -> Amount {
        match self {
            Self::Deposit { amount, .. }
            | Self::Transfer { amount, .. }
            | Self::Withdraw { amount, .. } => *amount,
        }
    }

    /// Sats that stay in the treasury; none for a deposit, whose fee is taken before it is credited.
    pub fn fee(&self) -> Amount {
        match self {
            Self::Deposit { .. } => Amount::ZERO,
            Self::Transfer { fee, .. } | Self::Withdraw { fee, .. } => *fee,
        }
    }

    /// The sender's account, of a signed operation.
    pub fn sender(&self) -> Option<AccountIndex> {
        match self {
            Self::Deposit { .. } => None,
            Self::Transfer { sender, .. } | Self::Withdraw { sender, .. } => Some(*sender),
        }
    }

    /// The sender's nonce, of a signed operation.
    pub fn nonce(&self) -> Option<u64> {
        match self {
            Self::Deposit { .. } => None,
            Self::Transfer { nonce, .. } | Self::Withdraw { nonce, .. } => Some(*nonce),
        }
    }

    /// The last batch that may hold it, of a signed operation.
    pub fn last_valid(&self) -> Option<SequenceNumber> {
        match self {
            Self::Deposit { .. } => None,
            Self::Transfer { last_valid, .. } | Self::Withdraw { last_valid, .. } => {
                Some(*last_valid)
            }
        }
    }

    /// The sender's signature, of a signed operation.
    pub fn signature(&self) -> Option<&Signature> {
        match self {
            Self::Deposit { .. } => None,
            Self::Transfer { signature, .. } | Self::Withdraw { signature, .. } => Some(signature),
        }
    }

    /// Whether its signature is by `key` in this vault; never for a deposit.
    pub fn is_signed_by(&self, key: &AccountKey, vault: &VaultId) -> bool {
        let message = Digest(Row::of(self, vault).0.message());
        self.signature()
            .is_some_and(|signature| key.verify(&message, signature))
    }

    /// Leaf updates that it needs: two for a transfer, else one.
    pub fn row_count(&self) -> usize {
        match self {
            Self::Transfer { .. } => 2,
            Self::Deposit { .. } | Self::Withdraw { .. } => 1,
        }
    }

    /// What can be said without a ledger: the amount is not zero, and a withdrawal pays a standard script above
    /// dust. [`crate::Ledger::apply`] checks it as well.
    ///
    /// # Errors
    /// [`OperationError::ZeroAmount`], [`OperationError::NonStandardScript`] or [`OperationError::Dust`].
    pub fn check_form(&self) -> Result<(), OperationError> {
        if self.amount() == Amount::ZERO {
            return Err(OperationError::ZeroAmount);
        }
        if let Self::Withdraw {
            amount,
            script_pubkey,
            ..
        } = self
        {
            check_output_script(script_pubkey, *amount)?;
        }
        Ok(())
    }
}

/// A transfer before it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// The sender's account.
    pub sender: AccountIndex,
    /// The sender's next nonce.
    pub nonce: u64,
    /// Sats the recipient gets.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub amount: Amount,
    /// Sats on top that stay in the treasury.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub fee: Amount,
    /// Who gets it.
    pub recipient: AccountKey,
    /// The last batch that may hold it.
    pub last_valid: SequenceNumber,
}

impl TransferRequest {
    /// What the sender signs.
    pub fn message(&self, vault: &VaultId) -> Digest {
        Digest(Row::of(&self.with(Signature::unset()), vault).0.message())
    }

    /// Signs the request for one vault.
    pub fn sign(&self, secret: &AccountSecret, vault: &VaultId) -> Operation {
        self.with(secret.sign(&self.message(vault)))
    }

    fn with(&self, signature: Signature) -> Operation {
        let Self {
            sender,
            nonce,
            amount,
            fee,
            recipient,
            last_valid,
        } = *self;
        Operation::Transfer {
            sender,
            nonce,
            amount,
            fee,
            recipient,
            last_valid,
            signature,
        }
    }
}

/// A withdrawal before it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawRequest {
    /// The sender's account.
    pub sender: AccountIndex,
    /// The sender's next nonce.
    pub nonce: u64,
    /// Sats of the Bitcoin output.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub amount: Amount,
    /// Sats on top that stay in the treasury.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub fee: Amount,
    /// The output's script; a standard one.
    pub script_pubkey: ScriptBuf,
    /// The last batch that may hold it.
    pub last_valid: SequenceNumber,
}

impl WithdrawRequest {
    /// What the sender signs.
    pub fn message(&self, vault: &VaultId) -> Digest {
        Digest(Row::of(&self.with(Signature::unset()), vault).0.message())
    }

    /// Signs the request for one vault.
    pub fn sign(&self, secret: &AccountSecret, vault: &VaultId) -> Operation {
        self.with(secret.sign(&self.message(vault)))
    }

    fn with(&self, signature: Signature) -> Operation {
        Operation::Withdraw {
            sender: self.sender,
            nonce: self.nonce,
            amount: self.amount,
            fee: self.fee,
            script_pubkey: self.script_pubkey.clone(),
            last_valid: self.last_valid,
            signature,
        }
    }
}
