//! What comes over a stream from a peer, from bitcoind, and from a coordinator to a wallet.

use std::collections::HashSet;

use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, FeeRate, Network, OutPoint, ScriptBuf, TxMerkleNode,
    Txid, Weight,
    block::{Header, Version},
    consensus::encode,
    hashes::Hash as _,
};
use chain::{
    fees::{FeeSettings, choose_fee_rate},
    replace::{Replaced, Signed, raise},
    rpc::{
        BlockRef, ChainInfo, FeeEstimate, MempoolEntry, MempoolInfo, MempoolVerdict, UnspentOutput,
        read_reply,
    },
    scan,
};
use ledger::Ledger;
use p2p::fuzzing::{Refusal, read_answer, read_question, write_answer, write_question};
use protocol::api::{AccountDocument, VaultDocument};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wallet::{DepositBackup, PinnedVault, account};

use super::{select, selected, verdict};
use crate::{
    Target, Verdict,
    honest::{self, honest},
};

pub(super) const TARGETS: [Target; 5] = [
    Target {
        name: "peer_stream",
        run: stream,
        honest: honest_stream,
        executions: 50_000,
        memory: 1 << 20,
    },
    Target {
        name: "bitcoind_reply",
        run: reply,
        honest: honest_reply,
        executions: 100_000,
        memory: 2 << 20,
    },
    Target {
        name: "block",
        run: block,
        honest: honest_block,
        executions: 50_000,
        memory: 8 << 20,
    },
    Target {
        name: "coordinator_documents",
        run: documents,
        honest: honest_documents,
        executions: 10_000,
        memory: 2 << 20,
    },
    Target {
        name: "deposit_backup",
        run: backup,
        honest: honest_backup,
        executions: 4_000,
        memory: 1 << 20,
    },
];

const NETWORK: Network = Network::Regtest;

/// Questions and answers; bytes after the end of one belong to whatever comes next.
fn stream(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    let (written, read) = if which % 2 == 0 {
        let Ok(question) = read_question(rest) else {
            return Verdict::Refused;
        };
        let Some(question) = question else {
            return Verdict::Accepted;
        };
        let written = write_question(question.clone()).unwrap();
        let again = read_question(&written).unwrap();
        (written, again == Some(question))
    } else {
        let Ok(answer) = read_answer(rest) else {
            return Verdict::Refused;
        };
        let written = write_answer(answer.clone()).unwrap();
        let again = read_answer(&written).unwrap();
        (written, again == answer)
    };
    assert!(read);
    assert!(rest.starts_with(&written), "a second encoding");
    Verdict::Accepted
}

fn honest_stream() -> Vec<(&'static str, Vec<u8>)> {
    let data = b"what a node says".to_vec();
    vec![
        (
            "question",
            selected(0, &write_question(data.clone()).unwrap()),
        ),
        ("answer", selected(1, &write_answer(Ok(data)).unwrap())),
        (
            "refusal",
            selected(1, &write_answer(Err(Refusal::Busy)).unwrap()),
        ),
    ]
}

/// Bodies of bitcoind's answers, read as each of the things that it is asked for. A node that lies about fees gets
/// no rate above the ceiling.
fn reply(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    match which % 9 {
        0 => taken::<ChainInfo>(rest),
        1 => taken::<Option<UnspentOutput>>(rest),
        2 => match read_reply::<MempoolInfo>("m", 200, rest) {
            Ok(info) => fee_rate(None, info.min_fee_rate.max(info.min_relay_fee_rate)),
            Err(_) => Verdict::Refused,
        },
        3 => match read_reply::<FeeEstimate>("m", 200, rest) {
            Ok(estimate) => fee_rate(estimate.fee_rate, FeeRate::BROADCAST_MIN),
            Err(_) => Verdict::Refused,
        },
        4 => taken::<Vec<MempoolVerdict>>(rest),
        5 => match read_reply::<Option<MempoolEntry>>("m", 500, rest) {
            Ok(entry) => replacement(entry),
            Err(error) => verdict(Err::<(), _>(error)),
        },
        6 => taken::<BlockRef>(rest),
        7 => taken::<BlockHash>(rest),
        _ => match read_reply::<String>("m", 200, rest) {
            Ok(hex) => verdict(encode::deserialize_hex::<bitcoin::Transaction>(&hex)),
            Err(error) => {
                assert!(error.to_string().len() < 4_096);
                Verdict::Refused
            }
        },
    }
}

fn taken<T: DeserializeOwned>(body: &[u8]) -> Verdict {
    verdict(read_reply::<T>("m", 500, body))
}

/// The highest rate that is paid, whatever a node says.
const CEILING: u64 = 200;

const FEES: FeeSettings = FeeSettings {
    target_blocks: 6,
    margin_percent: 10,
    floor_sat_per_vb: 1,
    ceiling_sat_per_vb: CEILING,
    fallback_sat_per_vb: Some(2),
    bump_after_blocks: 6,
    bump_percent: 25,
};

/// What a node says of the mempool makes no replacement dearer than the ceiling.
fn replacement(entry: Option<MempoolEntry>) -> Verdict {
    let rate = FeeRate::BROADCAST_MIN;
    let mempool = MempoolInfo {
        size: 1,
        min_fee_rate: rate,
        min_relay_fee_rate: rate,
        incremental_fee_rate: rate,
        dust_fee_rate: FeeRate::DUST,
    };
    let signed = Signed {
        fee: Amount::from_sat(1_000),
        weight: Weight::from_wu(2_000),
    };
    let replaced = Replaced {
        signed: Some(signed),
        entry,
    };
    if let Ok(raised) = raise(&replaced, signed.weight, rate, &mempool, &FEES) {
        assert!(signed.fee < raised.least && raised.least <= raised.wanted);
        assert!(raised.wanted.to_sat() <= CEILING * signed.weight.to_vbytes_ceil());
    }
    Verdict::Accepted
}

fn fee_rate(estimate: Option<FeeRate>, least: FeeRate) -> Verdict {
    if let Ok(rate) = choose_fee_rate(estimate, least, &FEES) {
        assert!(rate <= FeeRate::from_sat_per_vb(CEILING).unwrap() && rate >= least);
    }
    Verdict::Accepted
}

fn honest_reply() -> Vec<(&'static str, Vec<u8>)> {
    let hash = "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206";
    let result = |which: u8, result: &str| {
        let body = format!("{{\"result\":{result},\"error\":null,\"id\":1}}");
        selected(which, body.as_bytes())
    };
    vec![
        (
            "chain-info",
            result(
                0,
                &format!(
                    r#"{{"chain":"regtest","blocks":101,"headers":101,"bestblockhash":"{hash}","time":1296688602,"initialblockdownload":false,"pruned":true,"pruneheight":7}}"#
                ),
            ),
        ),
        (
            "output",
            result(
                1,
                &format!(
                    r#"{{"bestblock":"{hash}","confirmations":3,"value":0.05000000,"scriptPubKey":{{"hex":"51"}},"coinbase":true}}"#
                ),
            ),
        ),
        ("no-output", result(1, "null")),
        (
            "mempool-info",
            result(
                2,
                r#"{"size":3,"mempoolminfee":0.00001000,"minrelaytxfee":0.00001000,"incrementalrelayfee":0.00001000}"#,
            ),
        ),
        (
            "estimate",
            result(3, r#"{"feerate":0.00012345,"blocks":2}"#),
        ),
        (
            "verdicts",
            result(
                4,
                &format!(r#"[{{"txid":"{hash}","allowed":true,"vsize":141}}]"#),
            ),
        ),
        (
            "mempool-entry",
            result(
                5,
                &format!(
                    r#"{{"wtxid":"{hash}","vsize":141,"fees":{{"base":0.00000141,"descendant":0.00009141}},"descendantcount":3,"ancestorcount":1,"time":1700000000}}"#
                ),
            ),
        ),
        (
            "tip",
            result(6, &format!(r#"{{"height":7,"hash":"{hash}"}}"#)),
        ),
        ("hash", result(7, &format!("\"{hash}\""))),
        (
            "transaction",
            result(
                8,
                &format!("\"{}\"", encode::serialize_hex(&honest().transaction)),
            ),
        ),
        (
            "other-result",
            result(7, &format!("\"{}\"", Txid::all_zeros())),
        ),
    ]
}

/// A block: its hash and the root of its transactions are what they are asked for by; then it is searched.
fn block(bytes: &[u8]) -> Verdict {
    let Ok(block) = encode::deserialize::<Block>(bytes) else {
        return Verdict::Refused;
    };
    if !block.check_merkle_root() {
        return Verdict::Refused;
    }
    let honest = honest();
    let scripts = HashSet::from([honest.vault.script_pubkey().clone(), ScriptBuf::new()]);
    for found in scan::find_deposits(&block, &scripts) {
        assert!(scripts.contains(&found.script_pubkey));
    }
    for found in scan::find_spends(&block, &HashSet::from([honest.treasury.outpoint])) {
        assert_eq!(found.outpoint, honest.treasury.outpoint);
        if let Some(next) = honest.treasury.next(honest.vault.key(), found.transaction) {
            assert_eq!(next.commitment.sequence.0, 1);
        }
    }
    Verdict::Accepted
}

fn honest_block() -> Vec<(&'static str, Vec<u8>)> {
    let mut block = Block {
        header: Header {
            version: Version::TWO,
            prev_blockhash: BlockHash::all_zeros(),
            merkle_root: TxMerkleNode::all_zeros(),
            time: 1_700_000_000,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: 0,
        },
        txdata: vec![honest().transaction.clone()],
    };
    block.header.merkle_root = block.compute_merkle_root().unwrap();
    vec![("batch", encode::serialize(&block))]
}

/// What a wallet asks a coordinator for.
#[derive(Serialize, Deserialize)]
struct Documents {
    vault: VaultDocument,
    account: AccountDocument,
}

/// A vault that a wallet accepts is the one that its operators certified, and a balance that it believes is the one in
/// the ledger.
fn documents(bytes: &[u8]) -> Verdict {
    let Ok(documents) = serde_json::from_slice::<Documents>(bytes) else {
        return Verdict::Refused;
    };
    let honest = honest();
    let Ok(pinned) = PinnedVault::from_document(NETWORK, &documents.vault) else {
        return Verdict::Refused;
    };
    if pinned.group_key == honest.vault.group_key() {
        assert_eq!(pinned.vault_id, honest.vault.id());
    }
    let key = honest::user(0).public();
    let address = key.to_address(NETWORK);
    let own_digest = documents.vault.digest == Some(honest.transition.digest_after().to_string());
    match account::prove(&key, &address, documents.account, &documents.vault) {
        Ok(proven) => {
            if own_digest {
                assert_eq!(proven.balance, Amount::from_sat(89_900));
            }
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

fn honest_documents() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let mut ledger = Ledger::new();
    let (body, vault) = (&honest.body, &honest.vault);
    ledger
        .apply_batch(&body.operations, &body.vault, body.sequence)
        .unwrap();
    let key = honest::user(0).public();
    let (index, account) = ledger.account_by_key(&key).unwrap();
    let account = AccountDocument {
        account: key.to_address(NETWORK),
        index: index.0,
        balance_sat: account.balance.to_sat(),
        nonce: account.nonce,
        sequence: 1,
        root: ledger.state().root.to_string(),
        path: ledger
            .path(index)
            .unwrap()
            .siblings()
            .iter()
            .map(|level| level.iter().map(ToString::to_string).collect())
            .collect(),
        pending: Vec::new(),
    };
    let genesis = vault.genesis_output();
    let parameters = vault.parameters();
    let vault = VaultDocument {
        network: NETWORK.to_string(),
        vault_id: Some(vault.id().to_string()),
        group_key: Some(vault.group_key().to_string()),
        address: None,
        descriptor: None,
        threshold: honest::THRESHOLD,
        operators: honest::OPERATORS,
        genesis: Some(genesis.outpoint.to_string()),
        genesis_sat: Some(genesis.amount.to_sat()),
        genesis_signature: Some(vault.certificate().signature.to_string()),
        verifying_key_hash: hex::encode(genesis.verifying_key_hash),
        setup: proof::SETUP_LABEL.to_owned(),
        parameters_hash: hex::encode(genesis.parameters_hash),
        roster_hash: hex::encode(genesis.roster_hash),
        treasury: Some(OutPoint::new(honest.candidate.txid, 0).to_string()),
        treasury_sat: 0,
        supply_sat: ledger.supply().to_sat(),
        surplus_sat: 0,
        sequence: 1,
        digest: Some(ledger.digest().to_string()),
        refund_delay_blocks: parameters.refund_delay,
        min_deposit_sat: parameters.min_deposit.to_sat(),
        deposit_fee_sat: parameters.deposit_fee.to_sat(),
        deposit_confirmations: parameters.deposit_confirmations,
        final_confirmations: parameters.final_confirmations,
        epoch: Some(0),
    };
    let documents = Documents { vault, account };
    vec![("documents", serde_json::to_vec(&documents).unwrap())]
}

/// A wallet's backup of a deposit address: every field follows from the terms, or it is refused.
fn backup(bytes: &[u8]) -> Verdict {
    let Ok(backup) = serde_json::from_slice::<DepositBackup>(bytes) else {
        return Verdict::Refused;
    };
    match backup.derived() {
        Ok(derived) => {
            assert_eq!(derived.script_pubkey, backup.script_pubkey);
            Verdict::Accepted
        }
        Err(_) => Verdict::Refused,
    }
}

fn honest_backup() -> Vec<(&'static str, Vec<u8>)> {
    let vault = &honest().vault;
    let pinned = PinnedVault {
        network: NETWORK,
        vault_id: vault.id(),
        group_key: vault.group_key(),
        refund_delay_blocks: vault.parameters().refund_delay,
        min_deposit_sat: vault.parameters().min_deposit.to_sat(),
        deposit_fee_sat: vault.parameters().deposit_fee.to_sat(),
    };
    let account = honest::user(0).public();
    let backup = DepositBackup::derive(&pinned, account, honest::refund_key()).unwrap();
    vec![("backup", serde_json::to_vec(&backup).unwrap())]
}
