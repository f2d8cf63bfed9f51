//! Where lies are told: connected operators, coins on the chain, an honest proposal to change, and an accomplice
//! who signs whatever is asked.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, ScriptBuf};
use ledger::{
    AccountIndex, AccountKey, AccountSecret, Operation, SequenceNumber, TransferRequest, VaultId,
    WithdrawRequest,
};
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, SessionId, Subject},
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept},
};

use super::{
    coins::{Coins, Deposit, Purse},
    course::Placement,
    draft::{Draft, Proofs, Proposal},
    lie::{Answered, Finding, Kind, Lie},
    pages::Pages,
    settings::Caps,
    standing::Standing,
    wire::{Said, Wire},
};

/// Sats of the honest proposal's operations.
const TRANSFER: u64 = 10_000;
const PAYOUTS: [u64; 2] = [30_000, 20_000];
/// Fee rate of the honest proposal, in sats per virtual byte.
const FEE_RATE: u64 = 20;
/// Batches for which the accomplice's signatures are good.
const VALID_FOR: u64 = 100;

/// An account whose owner helps the liar.
pub struct Accomplice {
    secret: AccountSecret,
    /// Its leaf.
    pub index: AccountIndex,
    /// Its next nonce.
    pub nonce: u64,
}

impl Accomplice {
    /// With an account in the ledger.
    ///
    /// # Errors
    /// When it has none.
    pub fn new(secret: AccountSecret, standing: &Standing) -> anyhow::Result<Self> {
        let (index, account) = standing
            .ledger
            .account_by_key(&secret.public())
            .context("the accomplice has no account")?;
        Ok(Self {
            index,
            nonce: account.nonce,
            secret,
        })
    }

    /// Its key.
    pub fn key(&self) -> AccountKey {
        self.secret.public()
    }

    /// A signed transfer. `after` counts the operations that it signs before.
    pub fn transfer(
        &self,
        after: u64,
        recipient: AccountKey,
        amount: Amount,
        terms: &Terms,
    ) -> Operation {
        TransferRequest {
            sender: self.index,
            nonce: self.nonce.saturating_add(after),
            amount,
            fee: terms.fee,
            recipient,
            last_valid: terms.last_valid,
        }
        .sign(&self.secret, &terms.vault)
    }

    /// A signed withdrawal. `after` counts the operations that it signs before.
    pub fn withdraw(
        &self,
        after: u64,
        script_pubkey: ScriptBuf,
        amount: Amount,
        terms: &Terms,
    ) -> Operation {
        WithdrawRequest {
            sender: self.index,
            nonce: self.nonce.saturating_add(after),
            amount,
            fee: terms.fee,
            script_pubkey,
            last_valid: terms.last_valid,
        }
        .sign(&self.secret, &terms.vault)
    }
}

/// What a signed operation says beside what it does.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// For which vault.
    pub vault: VaultId,
    /// Its fee.
    pub fee: Amount,
    /// The last batch that may hold it.
    pub last_valid: SequenceNumber,
}

/// Everything that lies are made of.
pub struct Stage {
    /// The first liar.
    pub wire: Wire,
    /// The second.
    pub second: Wire,
    /// The operators' pages.
    pub pages: Pages,
    /// What is known of the vault.
    pub standing: Standing,
    /// Outputs with one thing wrong.
    pub coins: Coins,
    /// Signs anything.
    pub accomplice: Accomplice,
    /// The operators' caps.
    pub caps: Caps,
    /// Where the honest proposal pays.
    pub payees: [ScriptBuf; 2],
    /// Where a thief would like to be paid.
    pub thief: ScriptBuf,
    /// The honest batch.
    pub honest: Draft,
    /// And its proposal.
    pub proposal: Proposal,
    /// Its transaction, as the operators will rebuild it.
    pub transaction: BatchTransaction,
    digests: Mutex<BTreeMap<PeerKey, String>>,
}

/// What a stage is set up from.
pub struct Parts {
    /// The first liar.
    pub wire: Wire,
    /// The second.
    pub second: Wire,
    /// The operators' pages.
    pub pages: Pages,
    /// What is known of the vault.
    pub standing: Standing,
    /// Outputs with one thing wrong.
    pub coins: Coins,
    /// Signs anything.
    pub accomplice: Accomplice,
    /// The operators' caps.
    pub caps: Caps,
}

impl Stage {
    /// Makes the honest proposal and notes where each operator stands.
    ///
    /// # Errors
    /// When the proposal can't be made, or is not what an honest coordinator would build.
    pub async fn set(parts: Parts, purse: &Purse) -> anyhow::Result<Self> {
        let Parts {
            wire,
            second,
            pages,
            standing,
            coins,
            accomplice,
            caps,
        } = parts;
        let mut scripts = Vec::new();
        for _ in 0..3 {
            scripts.push(purse.address().await?.script_pubkey());
        }
        let [first, second_payee, thief] = scripts.try_into().unwrap_or_default();
        let payees = [first, second_payee];
        let honest = honest(&standing, &coins, &accomplice, &payees)?;
        let transaction = rebuild(&standing, &coins, &honest)?;
        let proposal = honest.seal(&standing, Proofs::Remade, &[]).await?;
        ensure!(
            proposal.candidate.txid == transaction.unsigned.compute_txid(),
            "the honest proposal is not what the vault's rules build"
        );
        let stage = Self {
            wire,
            second,
            pages,
            standing,
            coins,
            accomplice,
            caps,
            payees,
            thief,
            honest,
            proposal,
            transaction,
            digests: Mutex::default(),
        };
        for operator in stage.operators() {
            stage.note(&operator).await?;
        }
        Ok(stage)
    }

    /// The operators' keys, in roster order.
    pub fn operators(&self) -> Vec<PeerKey> {
        let operators = self.wire.operators.iter();
        operators.map(|operator| operator.key).collect()
    }

    /// The honest proposal's proofs.
    pub fn proofs(&self) -> Vec<Vec<u8>> {
        let body = self.proposal.body.as_deref();
        let body = body.map(protocol::batch::Body::decode);
        body.and_then(Result::ok)
            .map(|body| body.proofs)
            .unwrap_or_default()
    }

    /// What the accomplice's operations say when nothing is wrong with them.
    pub fn lawful(&self, fee: Amount) -> Terms {
        lawful(&self.standing, fee)
    }

    /// Notes where an operator stands; lies must leave it there.
    ///
    /// # Errors
    /// When its page can't be read.
    pub async fn note(&self, operator: &PeerKey) -> anyhow::Result<()> {
        let digest = self.pages.read(operator).await?.state_digest;
        self.digests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(*operator, digest);
        Ok(())
    }

    /// Tells a lie to all operators and looks at what it did.
    pub async fn tell(&self, lie: Lie) -> Finding {
        let (kind, proofs) = (lie.kind.clone(), lie.proofs);
        match self.try_tell(lie).await {
            Ok(answers) => Finding::new(kind, Some(proofs), answers),
            Err(error) => Finding::failed(kind, Some(proofs), &error),
        }
    }

    async fn try_tell(&self, lie: Lie) -> anyhow::Result<Vec<Answered>> {
        let proofs = self.proofs();
        let mut proposal = lie.draft.seal(&self.standing, lie.proofs, &proofs).await?;
        if let Some(twist) = lie.twist {
            twist(&mut proposal);
        }
        self.put(&lie.kind, &proposal).await
    }

    /// Proposes and takes down every operator's answer.
    ///
    /// # Errors
    /// When an operator gives none.
    pub async fn put(&self, kind: &Kind, proposal: &Proposal) -> anyhow::Result<Vec<Answered>> {
        if let Some(body) = &proposal.body {
            self.wire.serve(proposal.candidate.body, body.clone());
        }
        self.put_subject(kind, &proposal.subject()).await
    }

    /// As [`Self::put`], for any subject.
    ///
    /// # Errors
    /// When an operator gives no answer.
    pub async fn put_subject(
        &self,
        kind: &Kind,
        subject: &Subject,
    ) -> anyhow::Result<Vec<Answered>> {
        let said = self.wire.propose(subject, 0).await?;
        let mut answers = Vec::new();
        for (operator, said) in said {
            let mut answer = match said {
                Said::Refused(refusal) => Answered::refused(kind, &refusal),
                Said::Accepted(_) => Answered::wrong("ACCEPTED"),
            };
            answer.change = self.change(&operator, subject).await?;
            answers.push(answer);
        }
        Ok(answers)
    }

    /// What a refused proposal has left behind at an operator.
    async fn change(
        &self,
        operator: &PeerKey,
        subject: &Subject,
    ) -> anyhow::Result<Option<String>> {
        if let Some(change) = self.moved(operator).await? {
            return Ok(Some(change));
        }
        let session = subject.session(&self.wire.me);
        if let Some(change) = self.is_open(operator, session).await? {
            return Ok(Some(change));
        }
        let Subject::Batch(candidate) = subject else {
            return Ok(None);
        };
        // The honest body is kept, and rightly: it was verified in another session.
        if candidate.body == self.proposal.candidate.body {
            return Ok(None);
        }
        match self.wire.ask(*operator, &Ask::Body(candidate.body)).await? {
            Answer::Body(None) => Ok(None),
            _ => Ok(Some("the body was kept".to_owned())),
        }
    }

    /// Whether an operator has promised anything, or its treasury is another one.
    ///
    /// # Errors
    /// When its page can't be read.
    pub async fn moved(&self, operator: &PeerKey) -> anyhow::Result<Option<String>> {
        let page = self.pages.read(operator).await?;
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let before = digests.get(operator).context("an operator unknown here")?;
        Ok((*before != page.state_digest)
            .then(|| format!("state digest {} instead of {before}", page.state_digest)))
    }

    async fn is_open(
        &self,
        operator: &PeerKey,
        session: SessionId,
    ) -> anyhow::Result<Option<String>> {
        let answer = self
            .wire
            .sign(*operator, session, 1, BTreeMap::new())
            .await?;
        Ok(match answer {
            Answer::Refused(refusal) if refusal.reason.contains("not known here") => None,
            Answer::Refused(refusal) => Some(format!("the session is still there: {refusal}")),
            Answer::Shares { .. } => Some("A SHARE".to_owned()),
            _ => Some("an answer that is none to a sign request".to_owned()),
        })
    }
}

fn lawful(standing: &Standing, fee: Amount) -> Terms {
    Terms {
        vault: standing.vault.id(),
        fee,
        last_valid: SequenceNumber(standing.next().0.saturating_add(VALID_FOR)),
    }
}

/// Two deposits, a transfer and two withdrawals, with one top-up.
fn honest(
    standing: &Standing,
    coins: &Coins,
    accomplice: &Accomplice,
    payees: &[ScriptBuf; 2],
) -> anyhow::Result<Draft> {
    let parameters = standing.vault.parameters();
    let mut operations = Vec::new();
    for deposit in &coins.good {
        operations.push(credit(deposit)?);
    }
    let [_, other] = &coins.good;
    operations.push(accomplice.transfer(
        0,
        other.terms.account,
        Amount::from_sat(TRANSFER),
        &lawful(standing, parameters.transfer_fee),
    ));
    for ((payee, sats), after) in payees.iter().zip(PAYOUTS).zip(1..) {
        operations.push(accomplice.withdraw(
            after,
            payee.clone(),
            Amount::from_sat(sats),
            &lawful(standing, parameters.withdraw_fee),
        ));
    }
    let [top_up, _] = coins.top_ups;
    let mut draft = Draft {
        vault: standing.vault.id(),
        sequence: standing.next(),
        parent: standing.head.outpoint,
        operations,
        terms: coins.good.iter().map(|good| good.terms.clone()).collect(),
        values: coins.good.iter().map(|good| good.value).collect(),
        top_ups: vec![top_up],
        fee: Amount::ZERO,
        placement: Placement::Lawful,
        proven_for: standing.vault.id(),
    };
    let vbytes = rebuild(standing, coins, &draft)?.weight().to_vbytes_ceil();
    draft.fee = Amount::from_sat(vbytes.saturating_mul(FEE_RATE));
    Ok(draft)
}

/// The operation that credits a deposit by its terms; all of it where the terms credit nothing.
pub fn credit(deposit: &Deposit) -> anyhow::Result<Operation> {
    let value = deposit.value;
    Ok(Operation::Deposit {
        account: deposit.terms.account,
        amount: deposit
            .terms
            .credited(value)
            .or(value.checked_sub(deposit.terms.fee))
            .context("a deposit below its fee")?,
        outpoint: deposit.outpoint,
    })
}

/// The honest transaction, as the vault's own code builds it.
fn rebuild(standing: &Standing, coins: &Coins, draft: &Draft) -> anyhow::Result<BatchTransaction> {
    let deposits: Vec<Swept> = coins
        .good
        .iter()
        .map(|good| {
            Ok(Swept {
                outpoint: good.outpoint,
                value: good.value,
                address: good.terms.address(&standing.vault.group_key())?,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let course = draft.course(standing);
    let withdrawals: Vec<_> = draft
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Withdraw {
                amount,
                script_pubkey,
                ..
            } => Some(bitcoin::TxOut {
                value: *amount,
                script_pubkey: script_pubkey.clone(),
            }),
            _ => None,
        })
        .collect();
    let plan = BatchPlan {
        treasury: &standing.head,
        deposits: &deposits,
        top_ups: &draft.top_ups,
        withdrawals: &withdrawals,
        next: Commitment {
            sequence: draft.sequence,
            supply: course.supply,
            digest: course
                .digests
                .last()
                .copied()
                .unwrap_or_default()
                .to_bytes(),
        },
        fee: draft.fee,
    };
    Ok(BatchTransaction::build(standing.vault.key(), &plan)?)
}
