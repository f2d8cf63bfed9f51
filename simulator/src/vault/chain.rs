//! A model of the Bitcoin network: one best chain that may be reorganised, and one mempool with fees, replacement,
//! eviction and relative time-locks. Every node asks this chain; each follows it at its own pace.
//!
//! Whether a signature is good is not asked here: what spends the vault's coins must have been announced by
//! [`Chain::authorise`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, Sequence, Transaction, TxIn,
    TxMerkleNode, TxOut, Txid, Witness, absolute::LockTime, block, hashes::Hash as _,
    transaction::Version,
};

/// Unconfirmed ancestors that a transaction may have, itself included (Bitcoin Core's default).
const MAX_ANCESTORS: usize = 25;
/// Transactions that one replacement may evict (BIP-125).
const MAX_REPLACED: usize = 100;

/// An unspent output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coin {
    /// What it pays.
    pub output: TxOut,
    /// Height of its block.
    pub height: u32,
}

#[derive(Clone, Debug)]
struct Pooled {
    transaction: Arc<Transaction>,
    fee: u64,
    vbytes: u64,
}

impl Pooled {
    /// In sats per 1,000 virtual bytes.
    fn rate(&self) -> u64 {
        self.fee
            .saturating_mul(1_000)
            .checked_div(self.vbytes)
            .unwrap_or(0)
    }
}

/// A transaction that waits, as `getmempoolentry` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spender {
    /// What it pays.
    pub fee: u64,
    /// Its virtual size.
    pub vbytes: u64,
    /// How many go with it, itself included.
    pub descendants: usize,
    /// What these pay together.
    pub descendant_fees: u64,
}

/// What comes of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is in the mempool now, or was.
    Pooled,
    /// It is in the chain.
    Confirmed,
    /// It is not taken, and why.
    Rejected(&'static str),
}

/// Chain and mempool.
pub struct Chain {
    blocks: Vec<Arc<Block>>,
    coins: HashMap<OutPoint, Coin>,
    undo: Vec<Vec<(OutPoint, Coin)>>,
    confirmed: HashMap<Txid, u32>,
    pool: BTreeMap<Txid, Pooled>,
    /// Scripts whose coins only an authorised transaction spends, but for the refund path.
    guarded: HashSet<ScriptBuf>,
    authorised: HashSet<Txid>,
    /// Fee and virtual size of what was submitted.
    sizes: HashMap<Txid, (u64, u64)>,
    /// The least that the mempool takes, in sats per 1,000 virtual bytes.
    pub floor: u64,
    /// The least that miners take, in the same unit.
    pub market: u64,
    made: u32,
}

/// A transaction that nobody's signature is modelled of.
pub fn pay(inputs: &[(OutPoint, Sequence)], outputs: Vec<TxOut>) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: inputs
            .iter()
            .map(|(previous_output, sequence)| TxIn {
                previous_output: *previous_output,
                script_sig: ScriptBuf::new(),
                sequence: *sequence,
                witness: Witness::new(),
            })
            .collect(),
        output: outputs,
    }
}

impl Chain {
    /// A chain of one block, with these coins in it.
    pub fn new(coins: Vec<(OutPoint, TxOut)>, guarded: HashSet<ScriptBuf>) -> Self {
        let coins = coins
            .into_iter()
            .map(|(outpoint, output)| (outpoint, Coin { output, height: 0 }))
            .collect();
        Self {
            blocks: vec![Arc::new(empty_block(0, 0, Vec::new()))],
            coins,
            undo: vec![Vec::new()],
            confirmed: HashMap::new(),
            pool: BTreeMap::new(),
            guarded,
            authorised: HashSet::new(),
            sizes: HashMap::new(),
            floor: 1_000,
            market: 1_000,
            made: 0,
        }
    }

    /// Height of the tip.
    pub fn height(&self) -> u32 {
        u32::try_from(self.blocks.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// The block at a height.
    pub fn block(&self, height: u32) -> Option<&Arc<Block>> {
        self.blocks.get(usize::try_from(height).ok()?)
    }

    /// An unspent output of the best chain.
    pub fn coin(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    /// How deep an unspent output is: 1 in the tip's block.
    pub fn confirmations(&self, coin: &Coin) -> u32 {
        self.height().saturating_add(1).saturating_sub(coin.height)
    }

    /// All coins that pay a script of these, in outpoint order.
    pub fn coins_of(&self, is_wanted: impl Fn(&TxOut) -> bool) -> Vec<(OutPoint, Coin)> {
        let mut found: Vec<(OutPoint, Coin)> = self
            .coins
            .iter()
            .filter(|(_, coin)| is_wanted(&coin.output))
            .map(|(outpoint, coin)| (*outpoint, coin.clone()))
            .collect();
        found.sort_unstable_by_key(|(outpoint, _)| *outpoint);
        found
    }

    /// Height of a transaction's block.
    pub fn confirmed_at(&self, txid: &Txid) -> Option<u32> {
        self.confirmed.get(txid).copied()
    }

    /// Whether it waits in the mempool.
    pub fn is_pooled(&self, txid: &Txid) -> bool {
        self.pool.contains_key(txid)
    }

    /// Transactions in the mempool.
    #[cfg(test)]
    fn pooled(&self) -> usize {
        self.pool.len()
    }

    /// The signatures that it needs exist.
    pub fn authorise(&mut self, txid: Txid) {
        self.authorised.insert(txid);
    }

    /// Offers a transaction to the mempool.
    pub fn submit(&mut self, transaction: &Arc<Transaction>, vbytes: u64) -> Taken {
        let txid = transaction.compute_txid();
        if self.confirmed.contains_key(&txid) {
            return Taken::Confirmed;
        }
        if self.pool.contains_key(&txid) {
            return Taken::Pooled;
        }
        let Some(paid) = self.paid(transaction, &txid) else {
            return Taken::Rejected("an input is missing, locked or not signed for");
        };
        let pooled = Pooled {
            transaction: transaction.clone(),
            fee: paid,
            vbytes,
        };
        self.sizes.insert(txid, (paid, vbytes));
        if pooled.rate() < self.floor {
            return Taken::Rejected("the fee is below the mempool's minimum");
        }
        let replaced = self.conflicts(transaction);
        if !replaced.is_empty() {
            let (mut fees, mut best) = (0_u64, 0_u64);
            for other in replaced.iter().filter_map(|txid| self.pool.get(txid)) {
                fees = fees.saturating_add(other.fee);
                best = best.max(other.rate());
            }
            if replaced.len() > MAX_REPLACED
                || pooled.fee < fees.saturating_add(vbytes)
                || pooled.rate() <= best
            {
                return Taken::Rejected("the fee does not pay for what it would replace");
            }
        }
        if self.ancestors(transaction).len() >= MAX_ANCESTORS {
            return Taken::Rejected("too many unconfirmed ancestors");
        }
        for txid in replaced {
            self.pool.remove(&txid);
        }
        self.pool.insert(txid, pooled);
        Taken::Pooled
    }

    /// What it pays to miners, if everything that it spends is there to be spent in the next block.
    fn paid(&self, transaction: &Transaction, txid: &Txid) -> Option<u64> {
        let next = self.height().saturating_add(1);
        let mut value = 0_u64;
        for input in &transaction.input {
            let spent = input.previous_output;
            let coin = self.coins.get(&spent);
            let output = match coin {
                Some(coin) => &coin.output,
                None => self.pooled_output(&spent)?,
            };
            let lock = match input.sequence.to_relative_lock_time() {
                Some(bitcoin::relative::LockTime::Blocks(blocks)) => u32::from(blocks.value()),
                _ => 0,
            };
            if lock > 0 && coin.is_none_or(|coin| coin.height.saturating_add(lock) > next) {
                return None;
            }
            if lock == 0
                && self.guarded.contains(&output.script_pubkey)
                && !self.authorised.contains(txid)
            {
                return None;
            }
            value = value.checked_add(output.value.to_sat())?;
        }
        let out = transaction
            .output
            .iter()
            .map(|output| output.value.to_sat());
        value.checked_sub(out.fold(0, u64::saturating_add))
    }

    fn pooled_output(&self, outpoint: &OutPoint) -> Option<&TxOut> {
        let parent = self.pool.get(&outpoint.txid)?;
        let index = usize::try_from(outpoint.vout).ok()?;
        parent.transaction.output.get(index)
    }

    /// What in the mempool spends the same, with all that builds on it.
    fn conflicts(&self, transaction: &Transaction) -> BTreeSet<Txid> {
        let spent: HashSet<OutPoint> = spends(transaction).collect();
        let direct = self
            .pool
            .iter()
            .filter(|(_, other)| spends(&other.transaction).any(|input| spent.contains(&input)))
            .map(|(txid, _)| *txid)
            .collect();
        self.with_descendants(direct)
    }

    /// These and all that spends their outputs.
    pub fn with_descendants(&self, mut found: BTreeSet<Txid>) -> BTreeSet<Txid> {
        loop {
            let more: Vec<Txid> = self
                .pool
                .iter()
                .filter(|(txid, other)| {
                    !found.contains(*txid)
                        && spends(&other.transaction).any(|input| found.contains(&input.txid))
                })
                .map(|(txid, _)| *txid)
                .collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    /// What it builds on in the mempool.
    fn ancestors(&self, transaction: &Transaction) -> HashSet<Txid> {
        let mut found = HashSet::new();
        let mut open: Vec<Txid> = spends(transaction).map(|input| input.txid).collect();
        while let Some(txid) = open.pop() {
            if let Some(parent) = self.pool.get(&txid)
                && found.insert(txid)
            {
                open.extend(spends(&parent.transaction).map(|input| input.txid));
            }
        }
        found
    }

    /// What in the mempool spends this coin: its fee and virtual bytes, and with all that builds on it how many they are and
    /// what they pay.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<Spender> {
        let mut all = self.pool.iter();
        let (txid, pooled) =
            all.find(|(_, pooled)| spends(&pooled.transaction).any(|input| input == *outpoint))?;
        let evicted = self.with_descendants(BTreeSet::from([*txid]));
        let fees = evicted.iter().filter_map(|txid| self.pool.get(txid));
        Some(Spender {
            fee: pooled.fee,
            vbytes: pooled.vbytes,
            descendants: evicted.len(),
            descendant_fees: fees.fold(0, |sum, one| sum.saturating_add(one.fee)),
        })
    }

    /// Fees and virtual bytes of what it builds on in the mempool.
    fn ancestry(&self, transaction: &Transaction) -> (u64, u64) {
        let ancestors = self.ancestors(transaction);
        let pooled = ancestors.iter().filter_map(|txid| self.pool.get(txid));
        pooled.fold((0, 0), |(fees, vbytes), one| {
            (
                fees.saturating_add(one.fee),
                vbytes.saturating_add(one.vbytes),
            )
        })
    }

    /// What miners take: whatever pays enough together with all that it builds on.
    fn chosen(&self, wanted: impl Fn(&Txid) -> bool) -> HashSet<Txid> {
        let mut chosen = HashSet::new();
        for (txid, pooled) in &self.pool {
            let (fees, vbytes) = self.ancestry(&pooled.transaction);
            let fees = fees.saturating_add(pooled.fee);
            let vbytes = vbytes.saturating_add(pooled.vbytes);
            if fees.saturating_mul(1_000) >= self.market.saturating_mul(vbytes) {
                let mut package = self.ancestors(&pooled.transaction);
                package.insert(*txid);
                if package.iter().all(&wanted) {
                    chosen.extend(package);
                }
            }
        }
        chosen
    }

    /// The mempool's minimum rises: what pays less goes, and all that builds on it. Gives how many went.
    pub fn evict_below(&mut self, floor: u64) -> usize {
        self.floor = floor;
        let poor = self
            .pool
            .iter()
            .filter(|(_, pooled)| pooled.rate() < floor)
            .map(|(txid, _)| *txid)
            .collect();
        let gone = self.with_descendants(poor);
        self.pool.retain(|txid, _| !gone.contains(txid));
        gone.len()
    }

    /// A block with these first, and then of the mempool what pays enough and `wanted` does not leave out.
    pub fn mine(
        &mut self,
        time_s: u32,
        first: Vec<Arc<Transaction>>,
        wanted: impl Fn(&Txid) -> bool,
    ) {
        let height = self.height().saturating_add(1);
        let mut undo = Vec::new();
        let mut held = Vec::new();
        for transaction in first {
            self.pool.remove(&transaction.compute_txid());
            if self
                .paid(&transaction, &transaction.compute_txid())
                .is_some()
            {
                self.connect(&transaction, height, &mut undo);
                held.push((*transaction).clone());
            }
        }
        self.drop_impossible();
        let chosen = self.chosen(wanted);
        loop {
            // What spends coins of the chain alone can be next.
            let next: Vec<Txid> = self
                .pool
                .iter()
                .filter(|(txid, pooled)| {
                    chosen.contains(*txid)
                        && spends(&pooled.transaction).all(|input| self.coins.contains_key(&input))
                })
                .map(|(txid, _)| *txid)
                .collect();
            if next.is_empty() {
                break;
            }
            for txid in next {
                if let Some(pooled) = self.pool.remove(&txid) {
                    self.connect(&pooled.transaction, height, &mut undo);
                    held.push((*pooled.transaction).clone());
                }
            }
        }
        self.made = self.made.saturating_add(1);
        self.blocks
            .push(Arc::new(empty_block(time_s, self.made, held)));
        self.undo.push(undo);
    }

    fn connect(
        &mut self,
        transaction: &Transaction,
        height: u32,
        undo: &mut Vec<(OutPoint, Coin)>,
    ) {
        let txid = transaction.compute_txid();
        for input in spends(transaction) {
            if let Some(coin) = self.coins.remove(&input) {
                undo.push((input, coin));
            }
        }
        for (vout, output) in (0..).zip(&transaction.output) {
            let coin = Coin {
                output: output.clone(),
                height,
            };
            self.coins.insert(OutPoint::new(txid, vout), coin);
        }
        self.confirmed.insert(txid, height);
    }

    /// The last `depth` blocks leave the chain; what they held waits again, as far as it can.
    pub fn disconnect(&mut self, depth: u32) {
        for _ in 0..depth {
            if self.blocks.len() <= 1 {
                return;
            }
            let (Some(block), Some(undo)) = (self.blocks.pop(), self.undo.pop()) else {
                return;
            };
            for transaction in &block.txdata {
                let txid = transaction.compute_txid();
                self.confirmed.remove(&txid);
                for vout in (0..).take(transaction.output.len()) {
                    self.coins.remove(&OutPoint::new(txid, vout));
                }
            }
            let made: HashSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
            let older = undo
                .into_iter()
                .filter(|(outpoint, _)| !made.contains(&outpoint.txid));
            self.coins.extend(older);
            for transaction in &block.txdata {
                let txid = transaction.compute_txid();
                // What a miner has put in by itself waits for another miner that does.
                if let Some((fee, vbytes)) = self.sizes.get(&txid).copied() {
                    let transaction = Arc::new(transaction.clone());
                    let pooled = Pooled {
                        transaction,
                        fee,
                        vbytes,
                    };
                    self.pool.insert(txid, pooled);
                }
            }
        }
        self.drop_impossible();
    }

    /// Takes out of the mempool what a block made impossible.
    fn drop_impossible(&mut self) {
        loop {
            let gone: Vec<Txid> = self
                .pool
                .iter()
                .filter(|(txid, pooled)| self.paid(&pooled.transaction, txid).is_none())
                .map(|(txid, _)| *txid)
                .collect();
            if gone.is_empty() {
                return;
            }
            for txid in gone {
                self.pool.remove(&txid);
            }
        }
    }
}

/// The outputs that a transaction spends.
pub fn spends(transaction: &Transaction) -> impl Iterator<Item = OutPoint> + '_ {
    transaction.input.iter().map(|input| input.previous_output)
}

fn empty_block(time: u32, nonce: u32, txdata: Vec<Transaction>) -> Block {
    Block {
        header: block::Header {
            version: block::Version::TWO,
            prev_blockhash: BlockHash::all_zeros(),
            merkle_root: TxMerkleNode::all_zeros(),
            time,
            bits: CompactTarget::from_consensus(0),
            nonce,
        },
        txdata,
    }
}

/// An output.
pub fn output(sats: u64, script_pubkey: ScriptBuf) -> TxOut {
    TxOut {
        value: Amount::from_sat(sats),
        script_pubkey,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coin(n: u8) -> OutPoint {
        OutPoint::new(Txid::from_byte_array([n; 32]), 0)
    }

    fn script(n: u8) -> ScriptBuf {
        ScriptBuf::from_bytes(vec![n])
    }

    fn chain() -> Chain {
        let coins = (1..=3)
            .map(|n| (coin(n), output(10_000, script(n))))
            .collect();
        Chain::new(coins, HashSet::from([script(3)]))
    }

    fn spend(n: u8, sats: u64) -> Arc<Transaction> {
        let input = (coin(n), Sequence::ENABLE_RBF_NO_LOCKTIME);
        Arc::new(pay(&[input], vec![output(sats, script(9))]))
    }

    #[test]
    fn a_replacement_pays_for_all_that_it_evicts() {
        let mut chain = chain();
        let first = spend(1, 9_000);
        assert_eq!(chain.submit(&first, 100), Taken::Pooled);
        let child = Arc::new(pay(
            &[(OutPoint::new(first.compute_txid(), 0), Sequence::MAX)],
            vec![output(7_000, script(9))],
        ));
        assert_eq!(chain.submit(&child, 100), Taken::Pooled);
        // 1,000 + 2,000 sats wait; 3,050 do not pay for the replacement's own bytes.
        let poor = chain.submit(&spend(1, 6_950), 100);
        assert!(matches!(poor, Taken::Rejected(_)), "{poor:?}");
        assert_eq!(chain.submit(&spend(1, 6_900), 100), Taken::Pooled);
        assert_eq!(chain.pooled(), 1, "the child went with its parent");
    }

    #[test]
    fn what_a_reorganisation_takes_out_waits_again_unless_it_is_double_spent() {
        let mut chain = chain();
        let (one, two) = (spend(1, 9_000), spend(2, 9_000));
        chain.submit(&one, 100);
        chain.submit(&two, 100);
        chain.mine(1, Vec::new(), |_| true);
        assert_eq!(chain.confirmed_at(&one.compute_txid()), Some(1));
        chain.disconnect(1);
        assert!(chain.is_pooled(&one.compute_txid()));
        chain.mine(2, vec![spend(1, 8_000)], |_| false);
        assert!(!chain.is_pooled(&one.compute_txid()), "its coin is gone");
        assert!(chain.is_pooled(&two.compute_txid()));
        assert_eq!(chain.confirmed_at(&one.compute_txid()), None);
        assert!(chain.coin(&coin(2)).is_some());
    }

    #[test]
    fn a_guarded_coin_is_spent_by_what_is_authorised_or_once_its_lock_is_over() {
        let mut chain = chain();
        let key_path = spend(3, 9_000);
        assert!(matches!(chain.submit(&key_path, 100), Taken::Rejected(_)));
        let refund = Arc::new(pay(
            &[(coin(3), Sequence::from_height(2))],
            vec![output(9_000, script(9))],
        ));
        assert!(matches!(chain.submit(&refund, 100), Taken::Rejected(_)));
        chain.mine(1, Vec::new(), |_| true);
        assert_eq!(chain.submit(&refund, 100), Taken::Pooled);
        chain.authorise(key_path.compute_txid());
        assert!(
            matches!(chain.submit(&key_path, 100), Taken::Rejected(_)),
            "the same fee does not replace"
        );
    }

    #[test]
    fn a_rising_minimum_evicts_what_pays_less_with_its_descendants() {
        let mut chain = chain();
        let parent = spend(1, 9_900);
        assert_eq!(chain.submit(&parent, 100), Taken::Pooled);
        let child = Arc::new(pay(
            &[(OutPoint::new(parent.compute_txid(), 0), Sequence::MAX)],
            vec![output(5_000, script(9))],
        ));
        chain.submit(&child, 100);
        chain.submit(&spend(2, 5_000), 100);
        assert_eq!(chain.evict_below(2_000), 2);
        assert_eq!(chain.pooled(), 1);
        assert!(matches!(chain.submit(&parent, 100), Taken::Rejected(_)));
    }

    #[test]
    fn a_child_pays_for_its_parent() {
        let mut chain = chain();
        chain.market = 3_000;
        let parent = spend(1, 9_900);
        chain.submit(&parent, 100);
        chain.mine(1, Vec::new(), |_| true);
        assert_eq!(chain.pooled(), 1);
        let child = Arc::new(pay(
            &[(OutPoint::new(parent.compute_txid(), 0), Sequence::MAX)],
            vec![output(9_300, script(9))],
        ));
        chain.submit(&child, 100);
        assert_eq!(chain.ancestry(&child), (100, 100));
        chain.mine(2, Vec::new(), |_| true);
        assert_eq!(chain.pooled(), 0);
    }
}
