//! The vault: everything that a wallet needs to check addresses, proofs and reserves by itself.

use axum::{Json, extract::State, routing::get};
use bitcoin::Amount;
use protocol::api::VaultDocument;

use super::{
    Route, Shared,
    problem::{Code, Failure},
    with_history,
};
use crate::live::Reader;

/// Group key, genesis certificate, treasury, supply and surplus.
#[utoipa::path(get, path = "/v1/vault", tag = "vault",
    responses((status = 200, description = "The vault; before genesis with nulls", body = VaultDocument)))]
async fn show(State(api): State<Shared>) -> Result<Json<VaultDocument>, Failure> {
    api.look(|reader| Ok(document(reader))).await.map(Json)
}

fn document(reader: &Reader) -> VaultDocument {
    let live = reader.live.borrow().clone();
    let parameters = &reader.parameters;
    let head = with_history(reader, node::history::History::head);
    let certificate = live.vault.as_ref().map(|vault| vault.certificate());
    let treasury = head.map_or(Amount::ZERO, |head| head.value);
    let supply = head.map_or(Amount::ZERO, |head| head.commitment.supply);
    VaultDocument {
        network: parameters.network.to_string(),
        vault_id: live.vault.as_ref().map(|vault| vault.id().to_string()),
        group_key: live.key.as_ref().map(|key| key.group_key().to_string()),
        epoch: live.key.as_ref().map(|key| key.group().epoch()),
        address: live
            .key
            .as_ref()
            .and_then(|key| key.address())
            .map(|address| address.to_string()),
        descriptor: live.key.as_ref().map(|key| key.descriptor()),
        threshold: reader.roster.threshold,
        operators: reader.roster.operators.len(),
        genesis: certificate.map(|certificate| certificate.genesis.outpoint.to_string()),
        genesis_sat: certificate.map(|certificate| certificate.genesis.amount.to_sat()),
        genesis_signature: certificate.map(|certificate| certificate.signature.to_string()),
        verifying_key_hash: hex::encode(reader.verifying_key_hash),
        setup: reader.setup.clone(),
        parameters_hash: hex::encode(parameters.hash()),
        roster_hash: hex::encode(reader.roster.hash()),
        treasury: head.map(|head| head.outpoint.to_string()),
        treasury_sat: treasury.to_sat(),
        supply_sat: supply.to_sat(),
        // S5 keeps it from being negative.
        surplus_sat: treasury.to_sat().saturating_sub(supply.to_sat()),
        sequence: head.map_or(0, |head| head.commitment.sequence.0),
        digest: head.map(|head| hex::encode(head.commitment.digest)),
        refund_delay_blocks: parameters.refund_delay,
        min_deposit_sat: parameters.min_deposit.to_sat(),
        deposit_fee_sat: parameters.deposit_fee.to_sat(),
        deposit_confirmations: parameters.deposit_confirmations,
        final_confirmations: parameters.final_confirmations,
    }
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::new("/v1/vault", get(show), &[Code::Storage])]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(show))]
pub(super) struct Doc;
