//! What nodes tell one another, the batches, and the files that they agree on.

use bitcoin::Script;
use ledger::{Ledger, SequenceNumber, chunk_inputs};
use protocol::{
    batch::Body,
    blame::{Evidence, EvidenceError, Statement},
    deposit::DepositTerms,
    epoch::EpochCertificate,
    identity::Signed,
    message::{self, Answer, Ask, DKG_DOMAIN, Gossip, REFRESH_DOMAIN, Refusal, Rule, Subject},
    parameters::Parameters,
    repair::{DELTA_DOMAIN, RepairAnswer, RepairAsk, RunDelta, RunSplit, SPLIT_DOMAIN},
    request::UserRequest,
    roster::Roster,
    transaction::Commitment,
    vault::{GenesisCertificate, Vault, VaultKey},
};
use serde::{Serialize, de::DeserializeOwned};
use threshold::{SignerId, dkg, sign::Package};

use super::{read_either, select, selected};
use crate::{
    Target, Verdict,
    honest::{self, honest},
};

pub(super) const TARGETS: [Target; 8] = [
    Target {
        name: "gossip",
        run: gossip,
        honest: honest_gossip,
        executions: 20_000,
        memory: 4 << 20,
    },
    Target {
        name: "ask",
        run: ask,
        honest: honest_ask,
        executions: 20_000,
        memory: 4 << 20,
    },
    Target {
        name: "answer",
        run: answer,
        honest: honest_answer,
        executions: 10_000,
        memory: 4 << 20,
    },
    Target {
        name: "evidence",
        run: evidence,
        honest: honest_evidence,
        executions: 4_000,
        memory: 4 << 20,
    },
    Target {
        name: "batch_body",
        run: body,
        honest: honest_body,
        executions: 4_000,
        memory: 8 << 20,
    },
    Target {
        name: "commitment_script",
        run: commitment,
        honest: honest_commitment,
        executions: 200_000,
        memory: 64 << 10,
    },
    Target {
        name: "deposit_terms",
        run: terms,
        honest: honest_terms,
        executions: 4_000,
        memory: 1 << 20,
    },
    Target {
        name: "roster_and_parameters",
        run: files,
        honest: honest_files,
        executions: 10_000,
        memory: 4 << 20,
    },
];

/// A message has one encoding.
fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let message: T = message::decode(bytes).ok()?;
    assert_eq!(message::encode(&message), bytes, "a second encoding");
    Some(message)
}

/// A certificate that opens the vault is the one that all operators signed; a transaction that the history takes for the
/// next batch says what its commitment says.
fn gossip(bytes: &[u8]) -> Verdict {
    let Some(gossip) = read::<Gossip>(bytes) else {
        return Verdict::Refused;
    };
    let honest = honest();
    match gossip {
        Gossip::Proposal { subject, .. } => {
            let own = Subject::Batch(honest.candidate.clone());
            let coordinator = honest::identity(honest::OPERATORS).public();
            assert_eq!(
                subject.session(&coordinator) == own.session(&coordinator),
                subject == own
            );
        }
        Gossip::Genesis(certificate) => check_certificate(certificate),
        Gossip::Epoch(certificate) => check_epoch(&certificate),
        Gossip::Signed { transaction, .. } => {
            if let Some(next) = honest.treasury.next(honest.vault.key(), &transaction) {
                assert_eq!(
                    next.commitment.script(),
                    transaction.output[1].script_pubkey
                );
                assert_eq!(next.outpoint.txid, transaction.compute_txid());
            }
        }
    }
    Verdict::Accepted
}

fn check_certificate(certificate: GenesisCertificate) {
    let honest = honest();
    let key: VaultKey = honest.vault.key().clone();
    if let Ok(vault) = Vault::open(key, certificate, honest::VERIFYING_KEY_HASH) {
        assert_eq!(vault.certificate(), honest.vault.certificate());
    }
}

fn check_epoch(certificate: &EpochCertificate) {
    if certificate.verify(&honest().vault).is_ok() {
        assert_eq!(*certificate, honest::upkeep().certificate);
    }
}

fn honest_gossip() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let proposal = |subject| message::encode(&Gossip::Proposal { subject, round: 3 });
    vec![
        ("batch", proposal(Subject::Batch(honest.candidate.clone()))),
        (
            "genesis",
            proposal(Subject::Genesis(honest.vault.genesis_output().clone())),
        ),
        (
            "certificate",
            message::encode(&Gossip::Genesis(honest.vault.certificate().clone())),
        ),
        (
            "epoch",
            message::encode(&Gossip::Epoch(honest::upkeep().certificate.clone())),
        ),
        (
            "signed",
            message::encode(&Gossip::Signed {
                candidate: honest.candidate.clone(),
                transaction: honest.transaction.clone(),
            }),
        ),
    ]
}

/// A sign request is usable only with a signer's own commitments in it.
fn ask(bytes: &[u8]) -> Verdict {
    let Some(ask) = read::<Ask>(bytes) else {
        return Verdict::Refused;
    };
    match ask {
        Ask::Keep { body, .. } => {
            let _ = Body::decode(&body);
        }
        Ask::Sign { commitments, .. } => {
            let (nonces, unused) = &honest().unused;
            let package = Package {
                messages: unused.messages.clone(),
                commitments,
            };
            let share = &honest().shares[2];
            if nonces.check(share, &package).is_ok() {
                let own = share.signer();
                assert_eq!(package.commitments[&own], unused.commitments[&own]);
            }
        }
        Ask::Repair(RepairAsk::Run { run, splits }) => {
            let _ = run.check(honest().shares[0].group());
            for split in &splits {
                check_signed(split, SPLIT_DOMAIN, |author, said| {
                    let upkeep = honest::upkeep();
                    said.run == upkeep.run.id() && upkeep.splits.get(&author) == Some(&said.split)
                });
            }
        }
        _ => {}
    }
    Verdict::Accepted
}

/// What carries an operator's signature was said by that operator.
fn check_signed<T: Serialize + DeserializeOwned>(
    signed: &Signed<T>,
    domain: &str,
    has_said: impl FnOnce(SignerId, &T) -> bool,
) {
    if let Ok((author, said)) = signed.verify(domain)
        && let Some(author) = honest::roster().signer(&author)
    {
        assert!(has_said(author, said), "{author} has not said this");
    }
}

fn honest_ask() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let (_, unused) = &honest.unused;
    let session = honest::session(&honest.candidate);
    let upkeep = honest::upkeep();
    let split = |index: usize| {
        let split = RunSplit {
            run: upkeep.run.id(),
            split: upkeep.splits[&honest::signer(index)].clone(),
        };
        honest::identity(index).sign(SPLIT_DOMAIN, split)
    };
    let asks = [
        (
            "key-generation",
            Ask::Dkg {
                context: honest::CONTEXT,
            },
        ),
        ("group", Ask::Group),
        ("genesis", Ask::Genesis),
        ("body", Ask::Body(honest.candidate.body)),
        (
            "keep",
            Ask::Keep {
                candidate: honest.candidate.clone(),
                body: honest.body.encode(),
            },
        ),
        ("batch", Ask::Batch(SequenceNumber(1))),
        (
            "accept",
            Ask::Accept {
                session,
                epoch: 0,
                commitments: unused.commitments[&honest::signer(2)].clone(),
            },
        ),
        (
            "refuse",
            Ask::Refuse {
                session,
                refusal: refusal(),
            },
        ),
        (
            "sign",
            Ask::Sign {
                session,
                epoch: 0,
                attempt: 1,
                commitments: unused.commitments.clone(),
            },
        ),
        ("attest", Ask::Attest { nonce: [6; 32] }),
        ("epoch", Ask::Epoch),
        (
            "refresh",
            Ask::Refresh {
                base: honest.shares[0].group().digest(),
                epoch: honest::EPOCH,
            },
        ),
        ("repair-ready", Ask::Repair(RepairAsk::Ready)),
        (
            "repair-run",
            Ask::Repair(RepairAsk::Run {
                run: upkeep.run.clone(),
                splits: vec![split(0), split(1)],
            }),
        ),
        ("delta", Ask::Delta(upkeep.run.clone())),
        ("request-terms", Ask::Request(user_requests()[0].clone())),
        ("request-signed", Ask::Request(user_requests()[1].clone())),
        (
            "requests",
            Ask::Requests {
                after: user_requests()[1].name(),
            },
        ),
        ("genesis-height", Ask::GenesisHeight),
        ("pool", Ask::Pool { epoch: 0 }),
        (
            "sign-pooled",
            Ask::SignPooled {
                subject: Subject::Batch(honest.candidate.clone()),
                epoch: 0,
                attempt: 1,
                commitments: unused.commitments.clone(),
            },
        ),
    ];
    asks.map(|(name, ask)| (name, message::encode(&ask))).into()
}

/// Terms and a signed operation of the honest batch.
fn user_requests() -> Vec<UserRequest> {
    let body = &honest().body;
    let signed = body
        .operations
        .iter()
        .find(|operation| operation.signature().is_some());
    vec![
        UserRequest::Terms(body.terms[0].clone()),
        UserRequest::Signed(signed.unwrap().clone()),
    ]
}

fn refusal() -> Refusal {
    let operation = honest().body.operation_ids().next().unwrap();
    Refusal::new(Rule::S3, "the operation has expired").of(operation)
}

/// What an operator has signed is what it has said: key generation, refresh, shares, repair.
fn answer(bytes: &[u8]) -> Verdict {
    let Some(answer) = read::<Answer>(bytes) else {
        return Verdict::Refused;
    };
    let (honest, upkeep) = (honest(), honest::upkeep());
    let told = |list: &[(usize, dkg::Message)], author: SignerId, said: &dkg::Message| {
        list.iter()
            .any(|(from, message)| honest::signer(*from) == author && message == said)
    };
    match answer {
        Answer::Dkg(messages) => {
            for signed in &messages {
                check_signed(signed, DKG_DOMAIN, |author, said| {
                    told(&honest.key_generation, author, said)
                });
            }
        }
        Answer::Refresh { messages, .. } => {
            for signed in &messages {
                check_signed(signed, REFRESH_DOMAIN, |author, said| {
                    told(&upkeep.refresh, author, said)
                });
            }
        }
        Answer::Genesis(Some(certificate)) => check_certificate(certificate),
        Answer::Epoch {
            certificate: Some(certificate),
            ..
        } => check_epoch(&certificate),
        Answer::Body(Some(body)) | Answer::Batch(Some((_, body))) => {
            let _ = Body::decode(&body);
        }
        Answer::Shares(signed) => {
            let by = honest::identity(0).public();
            let session = honest::session(&honest.candidate);
            let own = signed == honest.statement;
            let verified = Statement::verify(signed, &by, &session, 1).is_ok();
            assert_eq!(verified, own);
        }
        Answer::Repair(RepairAnswer::Split(signed)) => {
            check_signed(&signed, SPLIT_DOMAIN, |author, said| {
                upkeep.splits.get(&author) == Some(&said.split)
            });
        }
        Answer::Repair(RepairAnswer::Accusation(signed)) | Answer::Delta(signed) => {
            check_signed(&signed, DELTA_DOMAIN, |author, said| {
                author == honest::signer(0) && said.delta == upkeep.delta
            });
        }
        _ => {}
    }
    Verdict::Accepted
}

fn honest_answer() -> Vec<(&'static str, Vec<u8>)> {
    let (honest, upkeep) = (honest(), honest::upkeep());
    let signed = |told: &[(usize, dkg::Message)], domain: &str| {
        let (from, message) = &told[0];
        honest::identity(*from).sign(domain, message.clone())
    };
    let body = honest.body.encode();
    let first = honest::identity(0);
    let delta = RunDelta {
        run: upkeep.run.id(),
        to: honest::signer(1),
        delta: upkeep.delta.clone(),
    };
    let split = RunSplit {
        run: upkeep.run.id(),
        split: upkeep.splits[&honest::signer(0)].clone(),
    };
    let sigma = upkeep.sigmas[&honest::signer(0)].clone();
    let accusation = RepairAnswer::Accusation(first.sign(DELTA_DOMAIN, delta.clone()));
    let answers = [
        (
            "key-generation",
            Answer::Dkg(vec![signed(&honest.key_generation, DKG_DOMAIN)]),
        ),
        (
            "group",
            Answer::Group(Some(honest.shares[0].group().clone())),
        ),
        (
            "genesis",
            Answer::Genesis(Some(honest.vault.certificate().clone())),
        ),
        ("body", Answer::Body(Some(body.clone()))),
        ("kept", Answer::Kept(honest.candidate.body)),
        (
            "batch",
            Answer::Batch(Some((honest.candidate.clone(), body))),
        ),
        ("taken", Answer::Taken),
        ("shares", Answer::Shares(honest.statement.clone())),
        ("refused", Answer::Refused(refusal())),
        ("attestation", Answer::Attestation(Some(vec![0xd2; 64]))),
        (
            "epoch",
            Answer::Epoch {
                certificate: Some(upkeep.certificate.clone()),
                pending: vec![upkeep.certificate.group.clone()],
            },
        ),
        (
            "refresh",
            Answer::Refresh {
                epoch: honest::EPOCH,
                messages: vec![signed(&upkeep.refresh, REFRESH_DOMAIN)],
            },
        ),
        ("repair-ready", Answer::Repair(RepairAnswer::Ready)),
        (
            "repair-split",
            Answer::Repair(RepairAnswer::Split(first.sign(SPLIT_DOMAIN, split))),
        ),
        (
            "repair-waiting",
            Answer::Repair(RepairAnswer::Waiting(vec![honest::signer(1)])),
        ),
        ("repair-sum", Answer::Repair(RepairAnswer::Sum(sigma))),
        ("repair-accusation", Answer::Repair(accusation)),
        ("delta", Answer::Delta(first.sign(DELTA_DOMAIN, delta))),
        ("requests", Answer::Requests(user_requests())),
        ("genesis-height", Answer::GenesisHeight(Some(104))),
        (
            "pool",
            Answer::Pool(honest.unused.1.commitments.values().cloned().collect()),
        ),
    ];
    answers
        .map(|(name, answer)| (name, message::encode(&answer)))
        .into()
}

/// Whatever is shown beside it, an honest operator's statement condemns nobody.
fn evidence(bytes: &[u8]) -> Verdict {
    let Some(evidence) = read_either::<Evidence>(bytes) else {
        return Verdict::Refused;
    };
    match evidence.check(&honest::roster()) {
        Ok(fault) => panic!("an honest operator is condemned: {fault:?}"),
        Err(EvidenceError::Innocent) => Verdict::Accepted,
        Err(_) => Verdict::Refused,
    }
}

fn honest_evidence() -> Vec<(&'static str, Vec<u8>)> {
    let honest = honest();
    let evidence = Evidence {
        group: honest.shares[0].group().clone(),
        messages: honest.package.messages.clone(),
        commitments: honest.package.commitments.clone(),
        statement: honest.statement.clone(),
    };
    vec![
        (
            "wire",
            selected(0, &postcard::to_stdvec(&evidence).unwrap()),
        ),
        ("json", selected(1, &serde_json::to_vec(&evidence).unwrap())),
    ]
}

/// A body has one encoding, and its operations can be replayed, put into chunks and paid out, or are refused.
fn body(bytes: &[u8]) -> Verdict {
    let Ok(body) = Body::decode(bytes) else {
        return Verdict::Refused;
    };
    assert_eq!(body.encode(), bytes, "a second encoding");
    let honest = honest();
    for terms in &body.terms {
        let _ = terms.address(&honest.vault.group_key());
    }
    assert_eq!(body.operation_ids().count(), body.operations.len());
    assert!(body.withdrawals().len() <= body.operations.len());
    let mut ledger = Ledger::new();
    if let Ok(transition) = ledger.apply_batch(&body.operations, &body.vault, body.sequence) {
        let digests = transition.digests();
        let inputs = chunk_inputs(&body.vault, &body.operations, &digests).unwrap();
        assert_eq!(inputs, transition.chunk_inputs());
    }
    Verdict::Accepted
}

fn honest_body() -> Vec<(&'static str, Vec<u8>)> {
    let mut empty = honest().body.clone();
    empty.operations.clear();
    empty.terms.clear();
    empty.proofs.clear();
    empty.digests.truncate(1);
    vec![("batch", honest().body.encode()), ("empty", empty.encode())]
}

/// The script of output 1 has one form.
fn commitment(bytes: &[u8]) -> Verdict {
    let script = Script::from_bytes(bytes);
    match Commitment::parse(script) {
        Some(commitment) => {
            assert_eq!(commitment.script().as_script(), script, "a second form");
            Verdict::Accepted
        }
        None => Verdict::Refused,
    }
}

fn honest_commitment() -> Vec<(&'static str, Vec<u8>)> {
    let output = &honest().transaction.output[1];
    vec![("first-batch", output.script_pubkey.to_bytes())]
}

/// Terms on the wire and as JSON. Other terms, another address.
fn terms(bytes: &[u8]) -> Verdict {
    let Some(terms) = read_either::<DepositTerms>(bytes) else {
        return Verdict::Refused;
    };
    let vault = &honest().vault;
    let _ = terms.check(vault.id(), vault.parameters());
    let _ = terms.credited(terms.min_deposit);
    if let Ok(address) = terms.address(&vault.group_key()) {
        let own = honest::terms(vault.id(), 0);
        let same = own.address(&vault.group_key()).unwrap() == address;
        assert_eq!(same, own == terms);
    }
    Verdict::Accepted
}

fn honest_terms() -> Vec<(&'static str, Vec<u8>)> {
    let terms = honest::terms(honest().vault.id(), 0);
    vec![
        ("wire", selected(0, &postcard::to_stdvec(&terms).unwrap())),
        ("json", selected(1, &serde_json::to_vec(&terms).unwrap())),
    ]
}

/// TOML that an operator gets from others. A roster and parameters that pass their checks make a vault key, or a
/// clear error.
fn files(bytes: &[u8]) -> Verdict {
    let (which, rest) = select(bytes);
    let Ok(text) = std::str::from_utf8(rest) else {
        return Verdict::Refused;
    };
    let group = honest().shares[0].group().clone();
    if which % 2 == 0 {
        let Ok(roster) = toml::from_str::<Roster>(text) else {
            return Verdict::Refused;
        };
        let again: Roster = toml::from_str(&toml::to_string(&roster).unwrap()).unwrap();
        assert_eq!(again, roster);
        if roster.validate().is_ok() {
            assert_eq!(roster.signers().len(), roster.operators.len());
            assert_eq!(roster.hash() == honest::roster().hash(), same_keys(&roster));
            VaultKey::new(group, honest::parameters(), roster).unwrap();
        }
    } else {
        let Ok(parameters) = toml::from_str::<Parameters>(text) else {
            return Verdict::Refused;
        };
        let own = honest::parameters();
        assert_eq!(parameters.hash() == own.hash(), parameters == own);
        if parameters.validate().is_ok() {
            let _ = VaultKey::new(group, parameters, honest::roster());
        }
    }
    Verdict::Accepted
}

fn same_keys(roster: &Roster) -> bool {
    let own = honest::roster();
    roster.threshold == own.threshold && roster.signers() == own.signers()
}

fn honest_files() -> Vec<(&'static str, Vec<u8>)> {
    let roster = toml::to_string(&honest::roster()).unwrap();
    let parameters = toml::to_string(&honest::parameters()).unwrap();
    let plain = Parameters {
        recovery: None,
        ..honest::parameters()
    };
    let plain = toml::to_string(&plain).unwrap();
    vec![
        ("roster", selected(0, roster.as_bytes())),
        ("parameters", selected(1, parameters.as_bytes())),
        ("without-recovery", selected(1, plain.as_bytes())),
    ]
}
