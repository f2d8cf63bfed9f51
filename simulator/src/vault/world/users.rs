//! What users do, and what becomes of their requests: accepted once they are here and elsewhere.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use bitcoin::{Amount, OutPoint, Sequence, Txid};
use ledger::{Operation, SequenceNumber, TransferRequest, WithdrawRequest};
use protocol::request::{Sender, check_signed};
use rand::{Rng as _, seq::SliceRandom as _};

use super::{Act, Asked, Fault, Message, Node, USERS, World};
use crate::{
    signatures::Signatures,
    vault::{
        chain::{output, pay},
        view::View,
    },
};

/// Virtual bytes of a payment.
const PAYMENT_VBYTES: u64 = 150;
/// Sats in a user's coin.
const COIN: u64 = 200_000;
/// Other nodes that must have a request before it is answered "accepted".
const COPIES: usize = 1;

impl<C: Signatures> World<C> {
    pub(super) fn act(&mut self, user: usize, act: Act) {
        match act {
            Act::Deposit(sats) => self.deposit(user, sats, false),
            Act::TopUp => self.deposit(user, 30_000, true),
            Act::Transfer | Act::Withdraw => self.ask(user, act),
        }
    }

    fn deposit(&mut self, user: usize, sats: u64, is_top_up: bool) {
        let fee = self.rate().saturating_mul(PAYMENT_VBYTES) / 1_000;
        let (Some(keys), Some(wallet)) = (self.place.users.get(user), self.wallets.get_mut(user))
        else {
            return;
        };
        let Some(coin) = wallet.funds.pop() else {
            return;
        };
        let script = if is_top_up {
            self.place.vault.script_pubkey().clone()
        } else {
            keys.address.script_pubkey.clone()
        };
        let change = COIN.saturating_sub(sats).saturating_sub(fee);
        let paid = pay(
            &[(coin, Sequence::ENABLE_RBF_NO_LOCKTIME)],
            vec![output(sats, script), output(change, keys.script.clone())],
        );
        let outpoint = OutPoint::new(paid.compute_txid(), 0);
        self.chain.submit(&Arc::new(paid), PAYMENT_VBYTES);
        self.note(|| format!("user {user} pays {sats} sat: {outpoint}"));
        self.payments.insert(outpoint);
    }

    /// Signs an operation that the user's balance covers, and gives it to a coordinator.
    fn ask(&mut self, user: usize, act: Act) {
        let up: Vec<usize> = (0..self.coordinators.len())
            .filter(|i| self.is_up(Node::Coordinator(*i)))
            .collect();
        let Some(coordinator) = up.choose(&mut self.schedule.rng).copied() else {
            return;
        };
        // A user without an account leaves it to the next one.
        let signed = (0..USERS)
            .map(|i| (user + i) % USERS)
            .find_map(|user| self.sign_operation(user, act, coordinator));
        let Some(operation) = signed else {
            return;
        };
        self.note(|| format!("coordinator {coordinator} is asked for {operation:?}"));
        self.take_request(coordinator, operation);
    }

    fn sign_operation(&mut self, user: usize, act: Act, coordinator: usize) -> Option<Operation> {
        let keys = self.place.users.get(user)?;
        let one = self.coordinators.get(coordinator)?;
        let ledger = self.books.ledger(&one.view.digest())?;
        let (index, account) = ledger.account_by_key(&keys.account)?;
        let wallet = self.wallets.get_mut(user)?;
        let open = wallet
            .signed
            .iter()
            .filter(|other| other.sender() == Some(index) && other.nonce() >= Some(account.nonce));
        let (mut nonce, mut balance) = (account.nonce, account.balance.to_sat());
        for other in open {
            nonce = nonce.max(other.nonce()?.saturating_add(1));
            let spent = other.amount().to_sat().saturating_add(other.fee().to_sat());
            balance = balance.saturating_sub(spent);
        }
        let rng = &mut self.schedule.rng;
        let ahead = *[1, 3, 100, 100, 100].choose(rng)?;
        let last_valid =
            SequenceNumber(one.view.head().commitment.sequence.0.saturating_add(ahead));
        let parameters = self.place.vault.parameters();
        let vault = self.place.vault.id();
        let operation = if act == Act::Transfer {
            let amount = rng
                .gen_range(1_000..10_000)
                .min(balance.checked_sub(1_000)?);
            let other = self.place.users.choose(rng)?.account;
            TransferRequest {
                sender: index,
                nonce,
                amount: Amount::from_sat(amount.max(1)),
                fee: parameters.transfer_fee,
                recipient: other,
                last_valid,
            }
            .sign(&keys.secret, &vault)
        } else {
            let amount = rng
                .gen_range(2_000..15_000)
                .min(balance.checked_sub(3_000)?);
            WithdrawRequest {
                sender: index,
                nonce,
                amount: Amount::from_sat(amount.max(600)),
                fee: parameters.withdraw_fee,
                script_pubkey: keys.script.clone(),
                last_valid,
            }
            .sign(&keys.secret, &vault)
        };
        wallet.signed.push(operation.clone());
        Some(operation)
    }

    /// As the API does: checked, written, passed on, and then accepted.
    fn take_request(&mut self, coordinator: usize, operation: Operation) {
        let Some(key) = key_of(&operation) else {
            return;
        };
        let Some(one) = self.coordinators.get(coordinator) else {
            return;
        };
        let sender = self.sender(&one.view, &operation);
        if !self.may_be_kept(&operation, sender) {
            self.note(|| format!("coordinator {coordinator} refuses it"));
            return;
        }
        self.drop_void(Node::Coordinator(coordinator), key);
        if let Some(one) = self.coordinators.get_mut(coordinator) {
            one.requests.entry(key).or_insert(Asked {
                operation,
                in_batch: None,
                is_accepted: false,
                kept_by: BTreeSet::new(),
            });
        }
        self.pass_requests_on(coordinator);
    }

    /// `protocol::request::check_signed`, once for all nodes that know the same of the sender.
    fn may_be_kept(&mut self, operation: &Operation, sender: Option<Sender>) -> bool {
        let mut hasher = DefaultHasher::new();
        operation.hash(&mut hasher);
        sender
            .map(|sender| (sender.key, sender.nonce, sender.next))
            .hash(&mut hasher);
        let (vault, parameters) = (self.place.vault.id(), self.place.vault.parameters());
        *self
            .checked
            .entry(hasher.finish())
            .or_insert_with(|| check_signed(operation, sender, &vault, parameters).is_ok())
    }

    fn sender(&self, view: &View, operation: &Operation) -> Option<Sender> {
        let ledger = self.books.ledger(&view.digest())?;
        let account = ledger.account(operation.sender()?)?;
        Some(Sender {
            key: account.key,
            nonce: account.nonce,
            next: SequenceNumber(view.head().commitment.sequence.0.saturating_add(1)),
        })
    }

    /// Copies of requests go to whoever has not said that it keeps them.
    pub(super) fn pass_requests_on(&mut self, coordinator: usize) {
        let from = Node::Coordinator(coordinator);
        let others: Vec<Node> = self
            .nodes()
            .into_iter()
            .filter(|node| *node != from)
            .collect();
        let Some(one) = self.coordinators.get(coordinator) else {
            return;
        };
        if !one.is_honest {
            return;
        }
        let mut copies = Vec::new();
        for asked in one
            .requests
            .values()
            .filter(|asked| asked.in_batch.is_none())
        {
            let missing = others.iter().filter(|node| !asked.kept_by.contains(node));
            copies.extend(missing.map(|node| (*node, asked.operation.clone())));
        }
        for (to, operation) in copies {
            self.send(from, to, Message::Copy(operation));
        }
    }

    /// Drops what is kept for this account and nonce if it can't be carried out any more: a reorganisation may have given the
    /// account's place to somebody else.
    fn drop_void(&mut self, node: Node, key: (u32, u64)) {
        let kept = match node {
            Node::Operator(i) => self
                .operators
                .get(i)
                .and_then(|one| Some((one.requests.get(&key)?, &one.view))),
            Node::Coordinator(i) => self.coordinators.get(i).and_then(|one| {
                let asked = one
                    .requests
                    .get(&key)
                    .filter(|asked| asked.in_batch.is_none());
                Some((&asked?.operation, &one.view))
            }),
        };
        let Some((operation, view)) = kept else {
            return;
        };
        let (operation, sender) = (operation.clone(), self.sender(view, operation));
        if self.may_be_kept(&operation, sender) {
            return;
        }
        match node {
            Node::Operator(i) => {
                if let Some(one) = self.operators.get_mut(i) {
                    one.requests.remove(&key);
                }
            }
            Node::Coordinator(i) => {
                if let Some(one) = self.coordinators.get_mut(i) {
                    one.requests.remove(&key);
                }
            }
        }
    }

    /// Another node wants a request kept here.
    pub(super) fn keep_copy(&mut self, to: Node, from: Node, operation: Operation) {
        let Some(key) = key_of(&operation) else {
            return;
        };
        let view = match to {
            Node::Operator(i) => self.operators.get(i).map(|one| &one.view),
            Node::Coordinator(i) => self.coordinators.get(i).map(|one| &one.view),
        };
        let Some(view) = view else { return };
        let sender = self.sender(view, &operation);
        if !self.may_be_kept(&operation, sender) {
            return;
        }
        self.drop_void(to, key);
        let keeps = self.fault != Some(Fault::SkipsCopies);
        match to {
            Node::Operator(i) => {
                if let Some(one) = self.operators.get_mut(i).filter(|_| keeps) {
                    one.requests.entry(key).or_insert(operation);
                }
            }
            Node::Coordinator(i) => {
                if let Some(one) = self.coordinators.get_mut(i).filter(|_| keeps) {
                    one.requests.entry(key).or_insert(Asked {
                        operation,
                        in_batch: None,
                        is_accepted: false,
                        kept_by: BTreeSet::from([from]),
                    });
                }
            }
        }
        self.send(to, from, Message::Kept(key.0, key.1));
    }

    pub(super) fn copy_is_kept(&mut self, coordinator: usize, by: Node, key: (u32, u64)) {
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return;
        };
        let is_honest = one.is_honest;
        let Some(asked) = one.requests.get_mut(&key) else {
            return;
        };
        asked.kept_by.insert(by);
        // Only what honest nodes have is counted on: who lies to a user owes nobody anything.
        let kept = asked.kept_by.iter().filter(|node| match node {
            Node::Operator(i) => self
                .operators
                .get(*i)
                .is_some_and(|one| one.signing.plan.conduct.is_honest()),
            Node::Coordinator(_) => true,
        });
        let is_enough = is_honest && kept.count() >= COPIES;
        if is_enough && !std::mem::replace(&mut asked.is_accepted, true) {
            let operation = asked.operation.clone();
            let id = operation.id(&self.place.vault.id());
            self.accepted.entry(id).or_insert(operation);
        }
    }

    /// A coordinator that has lost its disk asks everybody.
    pub(super) fn ask_for_requests(&mut self, coordinator: usize) {
        let Some(one) = self.coordinators.get(coordinator) else {
            return;
        };
        for node in one.to_ask.clone() {
            self.send(Node::Coordinator(coordinator), node, Message::AskRequests);
        }
    }

    pub(super) fn give_requests(&mut self, to: Node, from: Node) {
        let list = match to {
            Node::Operator(i) => self
                .operators
                .get(i)
                .map(|one| one.requests.values().cloned().collect()),
            Node::Coordinator(i) => self.coordinators.get(i).map(|one| {
                let asked = one.requests.values();
                asked.map(|asked| asked.operation.clone()).collect()
            }),
        };
        if let Some(list) = list {
            self.send(to, from, Message::Requests(list));
        }
    }

    pub(super) fn take_requests(&mut self, coordinator: usize, from: Node, list: Vec<Operation>) {
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return;
        };
        one.to_ask.remove(&from);
        for operation in list {
            let Some(key) = key_of(&operation) else {
                continue;
            };
            one.requests.entry(key).or_insert(Asked {
                operation,
                in_batch: None,
                is_accepted: false,
                kept_by: BTreeSet::from([from]),
            });
        }
    }

    /// Gives batch data to whoever asks for it.
    pub(super) fn give_batch(&mut self, to: Node, from: Node, txid: Txid) {
        let batch = match to {
            Node::Operator(i) => self
                .operators
                .get(i)
                .and_then(|one| one.view.batches.get(&txid)),
            Node::Coordinator(i) => self
                .coordinators
                .get(i)
                .and_then(|one| one.view.batches.get(&txid)),
        };
        if let Some((candidate, body)) = batch.cloned() {
            self.send(to, from, Message::Batch(candidate, body));
        }
    }
}

pub(super) fn key_of(operation: &Operation) -> Option<(u32, u64)> {
    Some((operation.sender()?.0, operation.nonce()?))
}
