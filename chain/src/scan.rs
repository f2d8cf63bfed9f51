//! Finds in a block what the vault cares about: outputs to its scripts, and spends of its outputs.
//!
//! Pure: a block and what to watch go in, findings come out, in block order.

use std::collections::HashSet;

use bitcoin::{Amount, Block, OutPoint, ScriptBuf, Transaction, Txid};

/// An output that pays a watched script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundOutput {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds; may be below any limit, even 0.
    pub value: Amount,
    /// The watched script.
    pub script_pubkey: ScriptBuf,
    /// Whether it comes from the coinbase, spendable after 100 blocks only.
    pub coinbase: bool,
}

/// An input that spends a watched output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundSpend<'a> {
    /// The watched output.
    pub outpoint: OutPoint,
    /// The spending transaction's hash.
    pub txid: Txid,
    /// The spending transaction.
    pub transaction: &'a Transaction,
    /// Which of its inputs spends the output.
    pub input_index: usize,
}

/// All outputs of `block` that pay a script of `watched`, whether the same block spends them or not.
#[must_use]
pub fn find_deposits(block: &Block, watched: &HashSet<ScriptBuf>) -> Vec<FoundOutput> {
    let mut found = Vec::new();
    for transaction in &block.txdata {
        let mut paying = transaction
            .output
            .iter()
            .zip(0u32..)
            .filter(|(output, _)| watched.contains(output.script_pubkey.as_script()))
            .peekable();
        // Hashing a transaction costs more than looking at its outputs; most pay nobody here.
        if paying.peek().is_none() {
            continue;
        }
        let txid = transaction.compute_txid();
        let coinbase = transaction.is_coinbase();
        found.extend(paying.map(|(output, vout)| FoundOutput {
            outpoint: OutPoint { txid, vout },
            value: output.value,
            script_pubkey: output.script_pubkey.clone(),
            coinbase,
        }));
    }
    found
}

/// All spends of an outpoint of `watched` within `block`.
#[must_use]
pub fn find_spends<'a>(block: &'a Block, watched: &HashSet<OutPoint>) -> Vec<FoundSpend<'a>> {
    let mut found = Vec::new();
    for transaction in &block.txdata {
        for (input_index, input) in transaction.input.iter().enumerate() {
            if watched.contains(&input.previous_output) {
                found.push(FoundSpend {
                    outpoint: input.previous_output,
                    txid: transaction.compute_txid(),
                    transaction,
                    input_index,
                });
            }
        }
    }
    found
}

/// The spend of `outpoint`, say the treasury, within `block`. There is at most one in a valid block.
#[must_use]
pub fn find_spend(block: &Block, outpoint: OutPoint) -> Option<FoundSpend<'_>> {
    find_spends(block, &HashSet::from([outpoint])).pop()
}

#[cfg(test)]
mod tests {
    use bitcoin::absolute::LockTime;
    use bitcoin::hashes::Hash;
    use bitcoin::{Network, Sequence, TxIn, TxOut, Witness, transaction::Version};

    use super::*;

    fn script(tag: u8) -> ScriptBuf {
        ScriptBuf::from_bytes(vec![tag])
    }

    fn transaction(inputs: &[OutPoint], outputs: &[(u64, u8)]) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: inputs
                .iter()
                .map(|previous_output| TxIn {
                    previous_output: *previous_output,
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                    witness: Witness::new(),
                })
                .collect(),
            output: outputs
                .iter()
                .map(|(sats, tag)| TxOut {
                    value: Amount::from_sat(*sats),
                    script_pubkey: script(*tag),
                })
                .collect(),
        }
    }

    fn block(transactions: Vec<Transaction>) -> Block {
        let mut block = bitcoin::constants::genesis_block(Network::Regtest);
        block.txdata = transactions;
        block
    }

    fn outpoint(tag: u8, vout: u32) -> OutPoint {
        OutPoint {
            txid: Txid::from_byte_array([tag; 32]),
            vout,
        }
    }

    #[test]
    fn deposits_are_the_outputs_to_watched_scripts_in_block_order() {
        let coinbase = transaction(&[OutPoint::null()], &[(50, 1), (7, 9)]);
        let payment = transaction(&[outpoint(1, 0)], &[(3, 9), (10, 2), (11, 1), (12, 1)]);
        let block = block(vec![coinbase.clone(), payment.clone()]);
        let found = find_deposits(&block, &HashSet::from([script(1), script(2)]));
        let seen: Vec<_> = found
            .iter()
            .map(|f| (f.outpoint, f.value.to_sat(), f.coinbase))
            .collect();
        let (mined, paid) = (coinbase.compute_txid(), payment.compute_txid());
        assert_eq!(
            seen,
            [
                (OutPoint::new(mined, 0), 50, true),
                (OutPoint::new(paid, 1), 10, false),
                (OutPoint::new(paid, 2), 11, false),
                (OutPoint::new(paid, 3), 12, false),
            ]
        );
        assert_eq!(found[1].script_pubkey, script(2));
        assert!(find_deposits(&block, &HashSet::new()).is_empty());
    }

    #[test]
    fn a_spend_is_found_by_its_whole_outpoint() {
        let spending = transaction(&[outpoint(1, 0), outpoint(2, 7)], &[(1, 1)]);
        let block = block(vec![
            transaction(&[OutPoint::null()], &[(1, 1)]),
            spending.clone(),
        ]);
        let found = find_spend(&block, outpoint(2, 7)).unwrap();
        assert_eq!(
            (found.txid, found.input_index),
            (spending.compute_txid(), 1)
        );
        assert_eq!(found.transaction, &spending);
        assert_eq!(find_spend(&block, outpoint(2, 6)), None);
        assert_eq!(find_spend(&block, outpoint(3, 7)), None);
    }
}
