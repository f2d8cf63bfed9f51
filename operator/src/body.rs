//! Gets what a verdict needs: the body of a candidate, from own disk or from peers, by its hash; and what the
//! own Bitcoin node says of the outputs that the batch wants to spend.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bitcoin::OutPoint;
use chain::{
    BitcoinRpc, RpcError,
    rpc::{MempoolInfo, UnspentOutput},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use node::history;
use protocol::{
    batch::{Body, BodyHash, Candidate, MAX_TOP_UPS},
    identity::PeerKey,
    message::{Answer, Ask, Refusal, Rule},
};
use storage::Store;

use crate::peers::Peers;

/// Operators asked for a body that its coordinator does not give.
const MAX_ASKED: usize = 4;
/// Questions to the own node at a time.
const PARALLEL_LOOKS: usize = 4;
/// How often the own node is asked again that seems to be behind the coordinator's, and the pause between.
const MAX_LOOKS: u32 = 8;
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The encoded body of a candidate: kept here, or from its coordinator, or from other operators.
///
/// # Errors
/// A [`Refusal`] under S12 when nobody gives it, or what they give has another hash.
pub async fn pull(
    store: &Store,
    peers: &Peers,
    coordinator: PeerKey,
    hash: BodyHash,
) -> Result<Vec<u8>, Refusal> {
    let kept = history::kept_body(store, &hash)
        .map_err(|error| Refusal::new(Rule::S11, format!("own database: {error}")))?;
    if let Some(body) = kept {
        return Ok(body);
    }
    let others = peers
        .operators()
        .into_iter()
        .filter(|peer| *peer != coordinator)
        .take(MAX_ASKED);
    let mut reason = "nobody who is connected has the body".to_owned();
    for peer in std::iter::once(coordinator).chain(others) {
        match peers.ask(peer, &Ask::Body(hash)).await {
            Ok(Answer::Body(Some(body))) if Body::hash_encoded(&body) == hash => return Ok(body),
            Ok(Answer::Body(Some(_))) => reason = format!("the body from {peer} has another hash"),
            Ok(_) => {}
            Err(error) => tracing::debug!(%peer, %error, "no body"),
        }
    }
    Err(Refusal::new(Rule::S12, reason))
}

/// Reads a body, and checks its size against the vault's before anything is done with it.
///
/// # Errors
/// A [`Refusal`] under S12 for bytes that are no body, under S3 for too many operations.
pub fn decode(bytes: &[u8], max_operations: u16) -> Result<Body, Refusal> {
    let body = Body::decode(bytes).map_err(|error| Refusal::new(Rule::S12, error.to_string()))?;
    if body.operations.len() > usize::from(max_operations) {
        return Err(Refusal::new(
            Rule::S3,
            format!(
                "{} operations, more than {max_operations}",
                body.operations.len()
            ),
        ));
    }
    Ok(body)
}

/// What the own node says of all deposits and top-ups; those that it does not know are not in the map. Waits a
/// little for confirmations that are missing: the coordinator's node may have seen a block earlier.
///
/// # Errors
/// A [`Refusal`] under S1 when the own node does not answer.
pub async fn outputs(
    rpc: &BitcoinRpc,
    candidate: &Candidate,
    body: &Body,
    confirmations: u32,
) -> Result<BTreeMap<OutPoint, UnspentOutput>, Refusal> {
    let wanted = body
        .deposits()
        .count()
        .saturating_add(candidate.top_ups.len());
    let mut looks = 0;
    loop {
        let found = look(rpc, candidate, body).await?;
        let deep = found
            .values()
            .filter(|output| output.confirmations >= confirmations)
            .count();
        looks += 1;
        if deep >= wanted || looks >= MAX_LOOKS {
            return Ok(found);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn look(
    rpc: &BitcoinRpc,
    candidate: &Candidate,
    body: &Body,
) -> Result<BTreeMap<OutPoint, UnspentOutput>, Refusal> {
    if candidate.top_ups.len() > MAX_TOP_UPS {
        return Err(Refusal::new(
            Rule::S2,
            format!("more than {MAX_TOP_UPS} top-ups"),
        ));
    }
    let outpoints: BTreeSet<OutPoint> = body
        .deposits()
        .map(|(outpoint, _)| *outpoint)
        .chain(candidate.top_ups.iter().copied())
        .collect();
    let looks = outpoints.into_iter().map(|outpoint| async move {
        // Of the best chain only: what is in a mempool may go away again.
        Ok::<_, RpcError>((outpoint, rpc.unspent_output(outpoint, false).await?))
    });
    let found: Vec<_> = stream::iter(looks)
        .buffer_unordered(PARALLEL_LOOKS)
        .try_collect()
        .await
        .map_err(no_node)?;
    Ok(found
        .into_iter()
        .filter_map(|(outpoint, output)| Some((outpoint, output?)))
        .collect())
}

/// What the own node asks of transactions before it relays them.
///
/// # Errors
/// A [`Refusal`] under S1 when the own node does not answer.
pub async fn mempool(rpc: &BitcoinRpc) -> Result<MempoolInfo, Refusal> {
    rpc.mempool_info().await.map_err(no_node)
}

/// What the own node says of one output, and its chain's height then.
///
/// # Errors
/// A [`Refusal`] under S1 when the own node does not answer.
pub async fn output(
    rpc: &BitcoinRpc,
    outpoint: OutPoint,
) -> Result<Option<(UnspentOutput, u32)>, Refusal> {
    let Some(output) = rpc.unspent_output(outpoint, false).await.map_err(no_node)? else {
        return Ok(None);
    };
    let info = rpc.chain_info().await.map_err(no_node)?;
    // A block between the two looks would give a wrong height: look again when it is proposed again.
    Ok((info.best_block == output.best_block).then_some((output, info.blocks)))
}

fn no_node(error: RpcError) -> Refusal {
    Refusal::new(
        Rule::S1,
        format!("this operator's Bitcoin node does not answer: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn malformed_bodies_are_refused_with_a_reason() {
        let (_, body, _) = testing::confirmed_batch(50_000);
        let good = body.encode();
        assert_eq!(decode(&good, 1).unwrap(), body);
        let other_version = [&[9], good.get(1..).unwrap()].concat();
        let trailing = [good.as_slice(), &[0]].concat();
        let mut shapeless = body.clone();
        shapeless.terms.clear();
        for bytes in [
            Vec::new(),
            vec![1],
            other_version,
            trailing,
            good[..good.len() - 1].to_vec(),
            shapeless.encode(),
        ] {
            let refusal = decode(&bytes, 64).unwrap_err();
            assert_eq!(refusal.rule, Rule::S12);
            assert!(!refusal.reason.is_empty());
        }
        assert_eq!(decode(&good, 0).unwrap_err().rule, Rule::S3);
    }
}
