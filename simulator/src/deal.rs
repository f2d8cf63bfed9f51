//! Keys for simulated groups. A dealer makes them: no money depends on them, and key generation by 100
//! operators takes a minute. Nothing else in this workspace has a dealer.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use frost_secp256k1_tr::{
    Identifier,
    keys::{IdentifierList, KeyPackage, VerifyingShare, generate_with_dealer},
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use serde::Serialize;
use threshold::{KeyShare, SignerId};

use crate::schedule::Group;

/// Why there are no keys.
#[derive(Debug)]
pub struct DealError(pub(crate) String);

impl std::fmt::Display for DealError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no keys were dealt: {}", self.0)
    }
}

impl std::error::Error for DealError {}

/// A group's public side as `threshold::GroupInfo` reads it.
#[derive(Serialize)]
struct Public {
    epoch: u32,
    threshold: u16,
    verifying_key: frost_secp256k1_tr::VerifyingKey,
    verifying_shares: BTreeMap<SignerId, VerifyingShare>,
    transcript: [u8; 32],
}

/// The shares of all signers of a group, the same ones each time, in the order of the signers.
///
/// # Errors
/// [`DealError`] for sizes that no group has.
pub fn deal(group: &Group) -> Result<Vec<KeyShare>, DealError> {
    let failed = |error: &dyn std::fmt::Display| DealError(error.to_string());
    let ids: BTreeMap<Identifier, SignerId> = group
        .signers()
        .map(|id| Ok((Identifier::deserialize(&id.to_bytes())?, id)))
        .collect::<Result<_, frost_secp256k1_tr::Error>>()
        .map_err(|error| failed(&error))?;
    let list: Vec<Identifier> = ids.keys().copied().collect();
    let mut rng = ChaCha20Rng::from_seed([0xDE; 32]);
    let (secrets, public) = generate_with_dealer(
        group.operators,
        group.threshold,
        IdentifierList::Custom(&list),
        &mut rng,
    )
    .map_err(|error| failed(&error))?;
    let public = Public {
        epoch: 0,
        threshold: group.threshold,
        verifying_key: *public.verifying_key(),
        verifying_shares: public
            .verifying_shares()
            .iter()
            .filter_map(|(id, share)| Some((*ids.get(id)?, *share)))
            .collect(),
        transcript: [0; 32],
    };
    let public = postcard::to_stdvec(&public).map_err(|error| failed(&error))?;
    let mut shares = secrets
        .into_iter()
        .map(|(id, secret)| {
            let key = KeyPackage::try_from(secret).map_err(|error| failed(&error))?;
            // KeyShare::to_secret_bytes: format, signer, secret scalar, group.
            let mut bytes = vec![1];
            bytes.extend(id.serialize());
            bytes.extend(key.signing_share().serialize());
            bytes.extend(&public);
            KeyShare::from_secret_bytes(&bytes).map_err(|error| failed(&error))
        })
        .collect::<Result<Vec<_>, _>>()?;
    shares.sort_by_key(KeyShare::signer);
    Ok(shares)
}

/// [`deal`], once a group and process.
pub(crate) fn dealt(group: &Group) -> Result<&'static [KeyShare], DealError> {
    static DEALT: Mutex<Vec<(Group, &'static [KeyShare])>> = Mutex::new(Vec::new());
    let mut dealt = DEALT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, shares)) = dealt.iter().find(|(known, _)| known == group) {
        return Ok(shares);
    }
    // Kept until the process ends.
    let shares: &'static [KeyShare] = Vec::leak(deal(group)?);
    dealt.push((*group, shares));
    Ok(shares)
}
