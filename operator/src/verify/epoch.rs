//! The certificate of a new epoch: this operator signs only for a group that it holds a share of, on disk, which
//! it checked when the refresh finished.

use protocol::{
    epoch::EpochClaim,
    message::{Refusal, Rule},
    vault::Vault,
};
use threshold::{
    GroupInfo,
    sign::{Message, Tweak},
};

/// A claim that this operator is willing to sign.
#[derive(Clone, Debug)]
pub struct VerifiedEpoch {
    claim: EpochClaim,
    messages: [Message; 1],
}

impl VerifiedEpoch {
    /// What is claimed.
    pub fn claim(&self) -> &EpochClaim {
        &self.claim
    }

    /// What to sign.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }
}

/// Judges a claim by the group of the own new share.
///
/// # Errors
/// A [`Refusal`] under S12.
pub fn check(
    vault: &Vault,
    own: Option<&GroupInfo>,
    claim: &EpochClaim,
) -> Result<VerifiedEpoch, Refusal> {
    let own = own.ok_or_else(|| {
        let reason = format!("this operator holds no share of epoch {}", claim.epoch);
        Refusal::new(Rule::S12, reason)
    })?;
    if own.group_key() != vault.group().group_key() || EpochClaim::new(vault.id(), own) != *claim {
        return Err(Refusal::new(
            Rule::S12,
            "the claim is not about this vault and the group that this operator holds a new share of",
        ));
    }
    Ok(VerifiedEpoch {
        claim: *claim,
        messages: [Message {
            digest: claim.digest(),
            tweak: Tweak::Untweaked,
        }],
    })
}

#[cfg(test)]
mod tests {
    use ledger::VaultId;

    use super::*;
    use crate::testing;

    #[test]
    fn only_the_own_new_group_of_this_vault_is_signed_for() {
        let vault = testing::vault();
        let own = testing::refreshed()[0].group();
        let claim = EpochClaim::new(vault.id(), own);
        let verified = check(vault, Some(own), &claim).unwrap();
        assert_eq!(verified.messages()[0].digest, claim.digest());
        let other_vault = EpochClaim {
            vault: VaultId([9; 32]),
            ..claim
        };
        let other_epoch = EpochClaim { epoch: 2, ..claim };
        let other_group = EpochClaim {
            group: vault.group().digest(),
            ..claim
        };
        for bad in [other_vault, other_epoch, other_group] {
            assert_eq!(
                check(vault, Some(own), &bad).unwrap_err().rule,
                Rule::S12,
                "{bad:?}"
            );
        }
        assert_eq!(check(vault, None, &claim).unwrap_err().rule, Rule::S12);
    }
}
