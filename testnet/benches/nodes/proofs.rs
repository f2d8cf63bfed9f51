//! What proving and verifying cost without nodes: the same kinds of batches that the basic scenario makes.

use std::path::Path;

use bitcoin::{Amount, OutPoint, ScriptBuf, Txid, hashes::Hash as _};
use ledger::{
    AccountIndex, AccountSecret, ChunkWitness, Ledger, Operation, SequenceNumber, TransferRequest,
    VaultId, WithdrawRequest,
};
use node::cost::{Cost, Stopwatch};
use proof::{Keys, prove_chunk, verify_chunk};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;

const VAULT: VaultId = VaultId([1; 32]);
const LAST_VALID: SequenceNumber = SequenceNumber(2);
/// Proofs of each chunk, and verifications of each proof.
const TURNS: usize = 3;

/// Mean cost of a chunk.
pub struct ChunkCosts {
    /// `prove_chunk`.
    pub prove: Cost,
    /// `verify_chunk`.
    pub verify: Cost,
}

/// Proves and verifies with the keys in this folder.
pub fn take(keys: &Path) -> ChunkCosts {
    let keys = Keys::load(keys).unwrap();
    let (mut prove, mut verify) = (Cost::default(), Cost::default());
    let chunks = chunks();
    for chunk in chunks.iter().cycle().take(TURNS * chunks.len()) {
        let watch = Stopwatch::process();
        let proof = prove_chunk(&keys.proving, chunk).unwrap();
        prove += watch.cost();
        let watch = Stopwatch::process();
        verify_chunk(&keys.verifying, &chunk.inputs(), &proof).unwrap();
        verify += watch.cost();
    }
    let count = u32::try_from(TURNS * chunks.len()).unwrap();
    let mean = |cost: Cost| Cost {
        wall: cost.wall / count,
        cpu: cost.cpu / count,
    };
    ChunkCosts {
        prove: mean(prove),
        verify: mean(verify),
    }
}

/// Three deposits; then two deposits, a transfer and two withdrawals.
fn chunks() -> Vec<ChunkWitness> {
    let users: Vec<AccountSecret> = (0..3)
        .map(|seed| AccountSecret::generate(&mut ChaCha20Rng::seed_from_u64(seed)))
        .collect();
    let deposit = |user: usize, vout| Operation::Deposit {
        account: users[user].public(),
        amount: Amount::from_sat(300_000),
        outpoint: OutPoint::new(Txid::from_byte_array([5; 32]), vout),
    };
    let transfer = TransferRequest {
        sender: AccountIndex(0),
        nonce: 0,
        amount: Amount::from_sat(50_000),
        fee: Amount::from_sat(10),
        recipient: users[1].public(),
        last_valid: LAST_VALID,
    };
    let withdraw = |user: usize, sender| {
        let request = WithdrawRequest {
            sender: AccountIndex(sender),
            nonce: 0,
            amount: Amount::from_sat(80_000),
            fee: Amount::from_sat(10),
            script_pubkey: ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([3; 20])),
            last_valid: LAST_VALID,
        };
        request.sign(&users[user], &VAULT)
    };
    let batches = [
        vec![deposit(0, 0), deposit(1, 1), deposit(2, 2)],
        vec![
            deposit(0, 3),
            deposit(2, 4),
            transfer.sign(&users[0], &VAULT),
            withdraw(1, 1),
            withdraw(2, 2),
        ],
    ];
    let mut ledger = Ledger::new();
    (1..)
        .zip(batches)
        .flat_map(|(sequence, batch)| {
            let transition = ledger.apply_batch(&batch, &VAULT, SequenceNumber(sequence));
            transition.unwrap().chunks
        })
        .collect()
}
