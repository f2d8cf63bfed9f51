//! Top-ups: outputs that pay the vault directly and credit nobody. They stay where they are until a batch would leave
//! the treasury with little beyond the supply; that batch, or its fee bump, collects them as further inputs.
//!
//! ```text
//! payment to the vault's address --detect--> known --confirmed, surplus low--> input of a batch --final--> forgotten
//! ```

use bitcoin::{Amount, FeeRate};
use protocol::{
    batch::{Candidate, MAX_TOP_UPS},
    transaction::TopUp,
};
use storage::{Changes, Direction};

use crate::{
    batch::is_ripe,
    pipeline::{Pipeline, StageError},
    records::TOP_UPS,
    room,
};

/// Smaller outputs are left alone: to spend one could cost more than it brings, and anybody can make them.
pub const LEAST: Amount = Amount::from_sat(10_000);
/// Rows looked at, by outpoint.
const MAX_LOOKED: usize = 1_000;
/// Outputs about which the node is asked.
const MAX_ASKED: usize = 4 * MAX_TOP_UPS;

/// Confirmed, unspent outputs that pay the vault directly, at most [`MAX_TOP_UPS`]; the largest is the last.
///
/// # Errors
/// [`StageError`].
pub async fn ripe(pipeline: &Pipeline) -> Result<Vec<TopUp>, StageError> {
    let mut known = pipeline
        .store
        .iter(&TOP_UPS, .., Direction::Forward, MAX_LOOKED)?
        .map(|row| row.map(|(_, record)| record.top_up))
        .collect::<Result<Vec<TopUp>, _>>()?;
    known.sort_unstable_by_key(|top_up| std::cmp::Reverse(top_up.value));
    let mut ripe = Vec::new();
    for top_up in known.into_iter().take(MAX_ASKED) {
        let unspent = pipeline.rpc.unspent_output(top_up.outpoint, false).await?;
        if unspent.is_some_and(|output| is_ripe(&output, pipeline.vault.parameters())) {
            ripe.push(top_up);
        }
        if ripe.len() >= MAX_TOP_UPS {
            break;
        }
    }
    ripe.reverse();
    Ok(ripe)
}

/// Those that are still confirmed and unspent.
///
/// # Errors
/// [`StageError`].
pub async fn still_ripe(pipeline: &Pipeline, used: &[TopUp]) -> Result<Vec<TopUp>, StageError> {
    let mut ripe = Vec::new();
    for top_up in used {
        let unspent = pipeline.rpc.unspent_output(top_up.outpoint, false).await?;
        if unspent.is_some_and(|output| is_ripe(&output, pipeline.vault.parameters())) {
            ripe.push(*top_up);
        }
    }
    Ok(ripe)
}

/// Takes the largest of `spare` into `used`, if there is room, and if it brings more than it costs at that rate. Gives
/// whether it did.
pub fn collect(spare: &mut Vec<TopUp>, used: &mut Vec<TopUp>, rate: FeeRate) -> bool {
    let Some(top_up) = spare.last().copied() else {
        return false;
    };
    let cost = rate.fee_wu(room::INPUT).unwrap_or(Amount::MAX_MONEY);
    if used.len() >= MAX_TOP_UPS || top_up.value <= cost {
        return false;
    }
    spare.pop();
    used.push(top_up);
    // The transaction has them in outpoint order.
    used.sort_unstable();
    true
}

/// Forgets what a final batch has collected. Before that, a block with another candidate could leave it unspent.
pub fn forget(changes: &mut Changes, candidate: &Candidate) {
    for outpoint in &candidate.top_ups {
        changes.delete(&TOP_UPS, outpoint);
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::{OutPoint, Txid, hashes::Hash as _};

    use super::*;

    fn top_up(n: u8, sats: u64) -> TopUp {
        TopUp {
            outpoint: OutPoint::new(Txid::from_byte_array([n; 32]), 0),
            value: Amount::from_sat(sats),
        }
    }

    #[test]
    fn the_largest_comes_first_and_all_stand_in_outpoint_order() {
        let mut spare = vec![top_up(9, 10_000), top_up(1, 20_000), top_up(5, 30_000)];
        let mut used = Vec::new();
        let rate = FeeRate::from_sat_per_vb(1).unwrap();
        assert!(collect(&mut spare, &mut used, rate));
        assert_eq!(used, [top_up(5, 30_000)]);
        assert!(collect(&mut spare, &mut used, rate));
        assert_eq!(used, [top_up(1, 20_000), top_up(5, 30_000)]);
        assert!(collect(&mut spare, &mut used, rate));
        assert!(!collect(&mut spare, &mut used, rate));
    }

    #[test]
    fn what_costs_more_than_it_brings_stays_and_so_does_what_there_is_no_room_for() {
        let rate = FeeRate::from_sat_per_vb(200).unwrap();
        let mut spare = vec![top_up(1, 11_000)];
        let mut used = Vec::new();
        assert!(!collect(&mut spare, &mut used, rate));
        let mut used = vec![top_up(2, 20_000); MAX_TOP_UPS];
        let cheap = FeeRate::from_sat_per_vb(1).unwrap();
        assert!(!collect(&mut spare, &mut used, cheap));
        assert_eq!(spare.len(), 1);
    }
}
