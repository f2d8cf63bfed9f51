//! How much fits into one batch: inputs that one signing session takes, and weight of a standard transaction.

use bitcoin::{TxOut, Weight};
use ledger::Operation;
use protocol::{batch::MAX_TOP_UPS, transaction::MAX_WEIGHT};
use threshold::{GroupInfo, sign::max_messages};

/// An input with its witness: 41 bytes four times, and 66 bytes of witness once.
pub(crate) const INPUT: Weight = Weight::from_wu(4 * 41 + 66);
/// Everything but deposits and withdrawals: version, lock time, counts, marker and flag (4 * 14 + 2), the treasury's
/// input and output (4 * 43), the commitment (4 * 64), and the top-ups.
const REST: Weight =
    Weight::from_wu((4 * 14 + 2) + 4 * 43 + 4 * 64 + (1 + MAX_TOP_UPS as u64) * INPUT.to_wu());

/// What is left of it.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    inputs: usize,
    weight: Weight,
}

impl Room {
    /// Of an empty batch that this group signs. Treasury and top-ups have their place.
    pub fn new(group: &GroupInfo) -> Self {
        Self::for_session(max_messages(
            group.signers().len(),
            group.threshold().into(),
        ))
    }

    fn for_session(messages: usize) -> Self {
        Self {
            inputs: messages.saturating_sub(1).saturating_sub(MAX_TOP_UPS),
            weight: MAX_WEIGHT - REST,
        }
    }

    /// Makes room for an operation. Gives whether there was enough; if not, nothing has changed.
    pub fn take(&mut self, operation: &Operation) -> bool {
        let (inputs, weight) = match operation {
            Operation::Deposit { .. } => (1, INPUT),
            Operation::Withdraw {
                amount,
                script_pubkey,
                ..
            } => {
                let output = TxOut {
                    value: *amount,
                    script_pubkey: script_pubkey.clone(),
                };
                (0, output.weight())
            }
            Operation::Transfer { .. } => (0, Weight::ZERO),
        };
        let left = self
            .inputs
            .checked_sub(inputs)
            .zip(self.weight.checked_sub(weight));
        if let Some((inputs, weight)) = left {
            *self = Self { inputs, weight };
        }
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::{
        Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, Witness, absolute::LockTime,
        hashes::Hash as _, transaction::Version,
    };
    use ledger::{AccountIndex, AccountSecret, SequenceNumber, WithdrawRequest};
    use protocol::transaction::Commitment;

    use super::*;

    fn deposit() -> Operation {
        Operation::Deposit {
            account: ledger::AccountKey::sequence(1)[0],
            amount: Amount::from_sat(20_000),
            outpoint: OutPoint::null(),
        }
    }

    fn p2tr() -> ScriptBuf {
        ScriptBuf::from_bytes([&[0x51, 0x20][..], &[2; 32]].concat())
    }

    fn withdrawal() -> Operation {
        WithdrawRequest {
            sender: AccountIndex(0),
            nonce: 0,
            amount: Amount::from_sat(20_000),
            fee: Amount::from_sat(1_500),
            script_pubkey: p2tr(),
            last_valid: SequenceNumber(9),
        }
        .sign(
            &AccountSecret::generate(&mut rand::rngs::OsRng),
            &ledger::VaultId([1; 32]),
        )
    }

    /// What a signed batch with all of its top-ups weighs.
    fn weight(deposits: usize, withdrawals: usize) -> Weight {
        let input = TxIn {
            previous_output: OutPoint::null(),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::from_slice(&[[0; 64]]),
        };
        let output = TxOut {
            value: Amount::from_sat(20_000),
            script_pubkey: p2tr(),
        };
        let commitment = Commitment {
            sequence: SequenceNumber(1),
            supply: Amount::ZERO,
            digest: [0; 32],
        };
        let note = TxOut {
            value: Amount::ZERO,
            script_pubkey: commitment.script(),
        };
        let mut outputs = vec![output; 1 + withdrawals];
        outputs.insert(1, note);
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![input; 1 + deposits + MAX_TOP_UPS],
            output: outputs,
        };
        assert_eq!(transaction.compute_txid().as_byte_array().len(), 32);
        transaction.weight()
    }

    /// How many fit after these.
    fn fill(room: &mut Room, operation: &Operation) -> usize {
        (0..).take_while(|_| room.take(operation)).count()
    }

    #[test]
    fn a_full_batch_is_a_standard_transaction_and_one_more_would_not_be() {
        let mut room = Room::for_session(usize::MAX);
        let (deposits, withdrawals) = (500, fill_after(&mut room, 500));
        assert!(weight(deposits, withdrawals) <= MAX_WEIGHT);
        assert!(weight(deposits, withdrawals + 1) > MAX_WEIGHT);
        let all = fill(&mut Room::for_session(usize::MAX), &deposit());
        assert!(weight(all, 0) <= MAX_WEIGHT && weight(all + 1, 0) > MAX_WEIGHT);
        let all = fill(&mut Room::for_session(usize::MAX), &withdrawal());
        assert!(weight(0, all) <= MAX_WEIGHT && weight(0, all + 1) > MAX_WEIGHT);
        assert!(all > 2_000);
    }

    fn fill_after(room: &mut Room, deposits: usize) -> usize {
        assert!((0..deposits).all(|_| room.take(&deposit())));
        fill(room, &withdrawal())
    }

    #[test]
    fn a_session_of_many_signers_takes_fewer_inputs_and_any_payouts_beside_them() {
        let messages = max_messages(100, 67);
        let mut room = Room::for_session(messages);
        assert_eq!(fill(&mut room, &deposit()), messages - 1 - MAX_TOP_UPS);
        assert!(room.take(&withdrawal()));
    }
}
