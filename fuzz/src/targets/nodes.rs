//! What nodes read from their own disk and from clients.

use bitcoin::{Amount, Network, OutPoint, TxOut, Txid};
use coordinator::records::{
    self, BatchRecord, Bump, BumpFailure, DepositRecord, OperationRecord, Progress, RefusedFee,
    SignedCandidate, TopUpRecord,
};
use node::history::{self, Confirmed};
use operator::held::Held;
use protocol::{
    api::{BatchStatus, OperationRequest, RequestStatus, StageTimes},
    signer::Promise,
    transaction::{TopUp, Treasury},
};
use serde::{Serialize, de::DeserializeOwned};
use storage::{Key, Table};

use super::{select, selected};
use crate::{
    Target, Verdict,
    honest::{self, honest},
};

pub(super) const TARGETS: [Target; 3] = [
    Target {
        name: "stored_rows",
        run: rows,
        honest: honest_rows,
        executions: 20_000,
        memory: 8 << 20,
    },
    Target {
        name: "stored_keys",
        run: keys,
        honest: honest_keys,
        executions: 100_000,
        memory: 64 << 10,
    },
    Target {
        name: "api_operation",
        run: operation,
        honest: honest_operation,
        executions: 20_000,
        memory: 1 << 20,
    },
];

/// The tables of operators that are their own business, by what is in them.
const HELD: Table<(u64, Txid, [u8; 32]), Held> = Table::new("held", 2);
const PROMISES: Table<(u64, OutPoint), Promise> = Table::new("promises", 2);

/// A row as a store reads it, of each table. What a damaged disk gives is an error, or a value that can be written again.
fn rows(bytes: &[u8]) -> Verdict {
    let (which, row) = select(bytes);
    match which % 15 {
        0 => read(&history::BODIES, row),
        1 => read(&history::CANDIDATES, row),
        2 => read(&history::CONFIRMED, row),
        3 => read(&history::POSITION, row),
        4 => read(&node::certificate::CERTIFICATE, row),
        5 => read(&records::TERMS, row),
        6 => read(&records::DEPOSITS, row),
        7 => read(&records::TOP_UPS, row),
        8 => read(&records::OPERATIONS, row),
        9 => read(&records::BATCHES, row),
        10 => read(&records::GROUP, row),
        11 => read(&HELD, row),
        12 => read(&PROMISES, row),
        13 => read(&node::certificate::EPOCH, row),
        _ => read(&records::LEFT_OUT, row),
    }
}

fn read<K, V: Serialize + DeserializeOwned>(table: &Table<K, V>, row: &[u8]) -> Verdict {
    let Ok(value) = table.decode(row) else {
        return Verdict::Refused;
    };
    let written = table.encode(&value).unwrap();
    let again = table.decode(&written).unwrap();
    assert_eq!(table.encode(&again).unwrap(), written);
    Verdict::Accepted
}

fn row<K, V: Serialize>(which: u8, table: &Table<K, V>, value: &V) -> Vec<u8> {
    selected(which, &table.encode(value).unwrap())
}

fn honest_rows() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let body = honest.body.encode();
    let next = honest
        .treasury
        .next(honest.vault.key(), &honest.transaction)
        .unwrap();
    let confirmed = Confirmed {
        treasury: next,
        height: 110,
        txid: honest.candidate.txid,
    };
    let progress = Progress::new(RequestStatus::Queued, 1_700_000_000_000);
    let top_up = TopUp {
        outpoint: honest.treasury.outpoint,
        value: Amount::from_sat(7_000),
    };
    let promise = Promise {
        sequence: honest.candidate.sequence,
        parent: honest.candidate.parent,
        batch: honest.body.batch(),
        body: honest.candidate.body,
        fee: honest.candidate.fee,
        txid: honest.candidate.txid,
        height: 109,
    };
    vec![
        ("body", row(0, &history::BODIES, &body)),
        ("candidate", row(1, &history::CANDIDATES, &honest.candidate)),
        ("confirmed", row(2, &history::CONFIRMED, &confirmed)),
        (
            "certificate",
            row(
                4,
                &node::certificate::CERTIFICATE,
                honest.vault.certificate(),
            ),
        ),
        ("terms", row(5, &records::TERMS, &honest.body.terms[0])),
        (
            "deposit",
            row(
                6,
                &records::DEPOSITS,
                &DepositRecord {
                    outpoint: top_up.outpoint,
                    terms: honest.body.terms[0].hash(),
                    value: top_up.value,
                    height: 105,
                    progress: progress.clone(),
                },
            ),
        ),
        (
            "top-up",
            row(
                7,
                &records::TOP_UPS,
                &TopUpRecord {
                    top_up,
                    height: 105,
                },
            ),
        ),
        (
            "operation",
            row(
                8,
                &records::OPERATIONS,
                &OperationRecord {
                    operation: honest.body.operations[3].clone(),
                    progress,
                },
            ),
        ),
        (
            "batch",
            row(9, &records::BATCHES, &batch_record(&next, top_up)),
        ),
        ("group", row(10, &records::GROUP, honest.shares[0].group())),
        ("promise", row(12, &PROMISES, &promise)),
        (
            "epoch",
            row(13, &node::certificate::EPOCH, &honest::upkeep().certificate),
        ),
    ]
}

fn batch_record(next: &Treasury, top_up: TopUp) -> BatchRecord {
    let honest = honest();
    let transaction = &honest.transaction;
    BatchRecord {
        sequence: honest.body.sequence,
        tries: 0,
        status: BatchStatus::Signed,
        reason: None,
        requests: vec![records::Request::Deposit(top_up.outpoint)],
        operations: honest.body.operations.clone(),
        terms: honest.body.terms.clone(),
        values: vec![top_up.value],
        top_ups: vec![top_up],
        fee: honest.candidate.fee,
        body: Some(honest.candidate.body),
        candidate: Some(honest.candidate.clone()),
        transaction: Some(transaction.clone()),
        candidates: vec![SignedCandidate {
            candidate: honest.candidate.clone(),
            top_ups: vec![top_up],
            transaction: transaction.clone(),
            height: 101,
            at_ms: 1,
        }],
        bump: Some(Bump {
            candidate: honest.candidate.clone(),
            top_ups: vec![top_up],
        }),
        bump_failure: Some(BumpFailure {
            reason: "above the caps".to_owned(),
            height: 102,
            refused: Some(RefusedFee::TooHigh(honest.candidate.fee)),
        }),
        shape: (transaction.input.len(), transaction.output.len()),
        treasury: next.value,
        supply: next.commitment.supply,
        signers: vec![honest::identity(0).public()],
        blamed: Vec::new(),
        refusals: Vec::new(),
        attempts: 1,
        signing_ms: Some(1_000),
        broadcast_ms: None,
        height: None,
        stage_ms: StageTimes::default(),
    }
}

/// Keys have one encoding.
fn keys(bytes: &[u8]) -> Verdict {
    let (which, key) = select(bytes);
    match which % 4 {
        0 => key_of::<(u64, OutPoint)>(key),
        1 => key_of::<([u8; 32], OutPoint)>(key),
        2 => key_of::<(u32, u64)>(key),
        _ => key_of::<()>(key),
    }
}

fn key_of<K: Key>(bytes: &[u8]) -> Verdict {
    match K::decode(bytes) {
        Some(key) => {
            assert_eq!(key.to_bytes(), bytes);
            Verdict::Accepted
        }
        None => Verdict::Refused,
    }
}

fn honest_keys() -> Vec<(&'static str, Vec<u8>)> {
    let outpoint = honest().treasury.outpoint;
    vec![
        ("promise", selected(0, &(1_u64, outpoint).to_bytes())),
        (
            "deposit-of",
            selected(1, &([7_u8; 32], outpoint).to_bytes()),
        ),
        ("pending", selected(2, &(3_u32, 4_u64).to_bytes())),
    ]
}

/// A signed operation as clients send it. What is taken reads the same when it is sent again.
fn operation(bytes: &[u8]) -> Verdict {
    const NETWORK: Network = Network::Regtest;
    let Ok(request) = serde_json::from_slice::<OperationRequest>(bytes) else {
        return Verdict::Refused;
    };
    let Ok(operation) = request.operation(NETWORK) else {
        return Verdict::Refused;
    };
    if operation.check_form().is_err() {
        return Verdict::Refused;
    }
    let again = OperationRequest::of(NETWORK, &operation).unwrap();
    assert_eq!(again.operation(NETWORK).unwrap(), operation);
    let id = operation.id(&honest().vault.id());
    let own = honest().body.operation_ids().any(|own| own == id);
    let same = honest().body.operations.iter().any(|own| {
        let payout = |op: &ledger::Operation| match op {
            ledger::Operation::Withdraw { script_pubkey, .. } => TxOut {
                value: op.amount(),
                script_pubkey: script_pubkey.clone(),
            },
            _ => TxOut::NULL,
        };
        (
            own.sender(),
            own.nonce(),
            own.amount(),
            own.fee(),
            payout(own),
        ) == (
            operation.sender(),
            operation.nonce(),
            operation.amount(),
            operation.fee(),
            payout(&operation),
        )
    });
    assert!(same || !own, "another operation of the same id");
    Verdict::Accepted
}

fn honest_operation() -> Vec<(&'static str, Vec<u8>)> {
    let json = |index: usize| {
        let operation = &honest().body.operations[index];
        let request = OperationRequest::of(Network::Regtest, operation).unwrap();
        serde_json::to_vec(&request).unwrap()
    };
    vec![("transfer", json(2)), ("withdrawal", json(3))]
}
