//! Bytes that are no message, no body, no point: refused under S12 at the layer that reads them.

use std::time::Duration;

use anyhow::ensure;
use ark_ed_on_bn254::EdwardsAffine;
use ark_serialize::CanonicalSerialize as _;
use protocol::{
    batch::{MAX_BODY_BYTES, MAX_PROOF_BYTES},
    identity::{Identity, PeerKey},
    message::{Answer, Ask, Gossip, Rule, SessionId, encode},
};
use rand::RngCore as _;
use threshold::sign::MAX_MESSAGES;

use super::{
    lie::{Answered, Finding, Kind, Layer, Lie},
    stage::Stage,
    wire,
};

const S12: &[Rule] = &[Rule::S12];
/// How long an operator may take to count a message that it could not read.
const COUNTED: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Bytes of a pair of nonce commitments.
const PAIR: usize = 66;

const fn kind(name: &'static str, changed: &'static str, says: &'static str) -> Kind {
    Kind::new(Layer::Encoding, name, changed, S12, says)
}

/// All that are bodies.
pub fn lies(stage: &Stage) -> Vec<Lie> {
    let bytes = |name, changed, says, change: fn(&mut Vec<u8>)| {
        Lie::new(kind(name, changed, says), &stage.honest)
            .twist(move |proposal| proposal.with_body_bytes(change))
    };
    let mut lies = vec![
        bytes(
            "body of another version",
            "a body whose version byte is 9",
            "body version",
            |body| {
                if let Some(version) = body.first_mut() {
                    *version = 9;
                }
            },
        ),
        bytes(
            "body with a byte more",
            "a body with a trailing byte",
            "encoding",
            |body| body.push(0),
        ),
        bytes(
            "body truncated",
            "a body without its last byte",
            "encoding",
            |body| {
                body.pop();
            },
        ),
        bytes(
            "body of no bytes",
            "an empty body",
            "body version",
            Vec::clear,
        ),
        bytes(
            "body of noise",
            "a version byte and 400 random bytes",
            "encoding",
            |body| {
                body.resize(401, 0);
                if let Some((_, noise)) = body.split_first_mut() {
                    rand::rngs::OsRng.fill_bytes(noise);
                }
            },
        ),
        bytes(
            "body not canonical",
            "a body with a length in one byte more than it needs",
            "encoding",
            |body| {
                if let Some(length) = body.get_mut(1) {
                    *length |= 0x80;
                    body.insert(2, 0);
                }
            },
        ),
        bytes(
            "body too large",
            "a body of 4 MiB and one byte",
            "larger than",
            |body| {
                body.resize(MAX_BODY_BYTES.saturating_add(1), 0);
            },
        ),
        Lie::new(
            kind(
                "body with another hash",
                "bytes that are not those that the candidate names",
                "another hash",
            ),
            &stage.honest,
        )
        .twist(|proposal| proposal.candidate.body.0 = [0x55; 32]),
        Lie::new(
            kind(
                "body withheld",
                "a candidate whose body nobody gives",
                "nobody",
            ),
            &stage.honest,
        )
        .twist(|proposal| {
            proposal.candidate.body.0 = [0x66; 32];
            proposal.body = None;
        }),
        Lie::new(
            kind("proof too long", "a proof of 257 bytes", "proofs"),
            &stage.honest,
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                if let Some(proof) = body.proofs.first_mut() {
                    proof.resize(MAX_PROOF_BYTES.saturating_add(1), 0);
                }
            });
        }),
        Lie::new(
            kind(
                "terms missing",
                "deposit terms for one deposit less",
                "deposit terms",
            ),
            &stage.honest,
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                body.terms.pop();
            });
        }),
        Lie::new(
            kind(
                "digests missing",
                "a digest less than proofs and one",
                "digests",
            ),
            &stage.honest,
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                body.digests.pop();
            });
        }),
    ];
    lies.extend(account_keys(stage));
    lies
}

/// Account keys that are no point of the prime-order subgroup.
fn account_keys(stage: &Stage) -> Vec<Lie> {
    let key = stage.accomplice.key();
    let point = key.point();
    let compressed = |point: EdwardsAffine| {
        let mut bytes = Vec::new();
        // A vector takes any encoding.
        let _ = point.serialize_compressed(&mut bytes);
        bytes
    };
    let (zero, one) = (ledger::Field::from(0_u8), ledger::Field::from(1_u8));
    let cases = [
        (
            "account key is the identity",
            "a deposit for the identity of the curve",
            compressed(EdwardsAffine::new_unchecked(zero, one)),
        ),
        (
            "account key of order two",
            "a deposit for the point (0, -1)",
            compressed(EdwardsAffine::new_unchecked(zero, -one)),
        ),
        (
            "account key of mixed order",
            "a deposit for the key plus the point of order two",
            compressed(EdwardsAffine::new_unchecked(-point.x, -point.y)),
        ),
        (
            "account key not canonical",
            "a deposit for a key whose y is beyond the modulus",
            vec![0xff; 32],
        ),
        (
            "account key off the curve",
            "a deposit for a y that has no x",
            off_the_curve(),
        ),
    ];
    cases
        .into_iter()
        .map(|(name, changed, bytes)| {
            Lie::new(kind(name, changed, "encoding"), &stage.honest).twist(move |proposal| {
                proposal.with_body_bytes(|body| replace(body, &key.to_bytes(), &bytes));
            })
        })
        .collect()
}

fn off_the_curve() -> Vec<u8> {
    let mut bytes = [0; 32];
    for low in 2..=u8::MAX {
        if let Some(byte) = bytes.first_mut() {
            *byte = low;
        }
        if ledger::AccountKey::from_bytes(&bytes) == Err(ledger::DecodeError::NotOnCurve) {
            break;
        }
    }
    bytes.to_vec()
}

/// Puts `to` in the place of every `from`, which is as long.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let mut place = 0_usize;
    while let Some(found) = bytes.get_mut(place..place.saturating_add(from.len())) {
        if found == from {
            found.copy_from_slice(to);
        }
        place = place.saturating_add(1);
    }
}

/// All that are messages.
pub async fn messages(stage: &Stage) -> Vec<Finding> {
    let mut findings = Vec::new();
    let proposal = encode(&Gossip::Proposal {
        subject: stage.proposal.subject(),
        round: 900,
    });
    for (kind, bytes) in damaged("gossip", &proposal) {
        findings.push(finding(kind.clone(), unread_gossip(stage, bytes).await));
    }
    let question = encode(&Ask::Body(stage.proposal.candidate.body));
    for (kind, bytes) in damaged("question", &question) {
        findings.push(finding(
            kind.clone(),
            refused_question(stage, &kind, bytes).await,
        ));
    }
    for (kind, bytes) in sign_requests(stage) {
        findings.push(finding(
            kind.clone(),
            refused_question(stage, &kind, bytes).await,
        ));
    }
    findings
}

pub(super) fn finding(kind: Kind, answers: anyhow::Result<Vec<Answered>>) -> Finding {
    match answers {
        Ok(answers) => Finding::new(kind, None, answers),
        Err(error) => Finding::failed(kind, None, &error),
    }
}

/// One good message, damaged in every way that a decoder can meet.
fn damaged(what: &str, good: &[u8]) -> Vec<(Kind, Vec<u8>)> {
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        bytes
    };
    let kinds: [(Kind, Kind, Vec<u8>); 6] = [
        (
            kind(
                "gossip of another version",
                "a proposal whose version byte is 9",
                "version",
            ),
            kind(
                "question of another version",
                "a question whose version byte is 9",
                "version",
            ),
            changed(&|bytes| {
                if let Some(version) = bytes.first_mut() {
                    *version = 9;
                }
            }),
        ),
        (
            kind(
                "gossip of no bytes",
                "a message with a version byte and nothing else",
                "encoding",
            ),
            kind(
                "question of no bytes",
                "a question with a version byte and nothing else",
                "encoding",
            ),
            changed(&|bytes| bytes.truncate(1)),
        ),
        (
            kind(
                "gossip truncated",
                "a proposal without its last byte",
                "encoding",
            ),
            kind(
                "question truncated",
                "a question without its last byte",
                "encoding",
            ),
            changed(&|bytes| {
                bytes.pop();
            }),
        ),
        (
            kind(
                "gossip with a byte more",
                "a proposal with a trailing byte",
                "encoding",
            ),
            kind(
                "question with a byte more",
                "a question with a trailing byte",
                "encoding",
            ),
            changed(&|bytes| bytes.push(0)),
        ),
        (
            kind(
                "gossip of an unknown kind",
                "a message of kind 99",
                "encoding",
            ),
            kind(
                "question of an unknown kind",
                "a question of kind 99",
                "encoding",
            ),
            changed(&|bytes| {
                if let Some(variant) = bytes.get_mut(1) {
                    *variant = 99;
                }
            }),
        ),
        (
            kind(
                "gossip not canonical",
                "a proposal whose kind takes one byte more than it needs",
                "encoding",
            ),
            kind(
                "question not canonical",
                "a question whose kind takes one byte more than it needs",
                "encoding",
            ),
            changed(&|bytes| {
                if let Some(variant) = bytes.get_mut(1) {
                    *variant |= 0x80;
                    bytes.insert(2, 0);
                }
            }),
        ),
    ];
    kinds
        .into_iter()
        .map(|(gossip, question, bytes)| (if what == "gossip" { gossip } else { question }, bytes))
        .collect()
}

/// Gossip has no answer: the operator counts it under the rule, and goes on.
async fn unread_gossip(stage: &Stage, bytes: Vec<u8>) -> anyhow::Result<Vec<Answered>> {
    let mut before = Vec::new();
    for operator in stage.operators() {
        before.push((operator, stage.pages.refusals(&operator, "S12").await?));
    }
    stage.wire.gossip(bytes).await?;
    let mut answers = Vec::new();
    for (operator, before) in before {
        let counted = counted(stage, &operator, before).await?;
        let mut answer = if counted {
            Answered::other(
                "S12",
                "counted in operator_refusals; gossip has no answer".to_owned(),
                true,
            )
        } else {
            Answered::wrong("NOT COUNTED")
        };
        answer.change = stage.moved(&operator).await?;
        answers.push(answer);
    }
    Ok(answers)
}

async fn counted(stage: &Stage, operator: &PeerKey, before: u64) -> anyhow::Result<bool> {
    let start = tokio::time::Instant::now();
    while start.elapsed() < COUNTED {
        if stage.pages.refusals(operator, "S12").await? > before {
            return Ok(true);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(false)
}

/// Asks every operator with these bytes.
///
/// # Errors
/// When one does not answer.
pub(super) async fn refused_question(
    stage: &Stage,
    kind: &Kind,
    bytes: Vec<u8>,
) -> anyhow::Result<Vec<Answered>> {
    let mut answers = Vec::new();
    for operator in stage.operators() {
        let mut answer = match stage.wire.ask_bytes(operator, bytes.clone()).await? {
            Answer::Refused(refusal) => Answered::refused(kind, &refusal),
            Answer::Shares { .. } => Answered::wrong("A SHARE"),
            _ => Answered::wrong("ANSWERED"),
        };
        answer.change = stage.moved(&operator).await?;
        answers.push(answer);
    }
    Ok(answers)
}

/// Sign requests with nonce commitments that are no points, and a signer that is none.
fn sign_requests(stage: &Stage) -> Vec<(Kind, Vec<u8>)> {
    let Some(operator) = stage.wire.operators.first() else {
        return Vec::new();
    };
    let signer = postcard::to_stdvec(&operator.signer).unwrap_or_default();
    let generator = bitcoin::secp256k1::constants::GENERATOR_X;
    let point = |tag: u8, x: &[u8; 32]| [&[tag], x.as_slice()].concat();
    let good = point(2, &generator);
    let pair = |hiding: Vec<u8>| [hiding, good.clone()].concat();
    // x = 5 has no y on secp256k1.
    let mut five = [0; 32];
    if let Some(last) = five.last_mut() {
        *last = 5;
    }
    let whole = |commitments: Vec<u8>| sign_request(&signer, &commitments);
    vec![
        (
            kind(
                "nonce point off the curve",
                "a commitment whose x has no y",
                "encoding",
            ),
            whole(pair(point(2, &five))),
        ),
        (
            kind(
                "nonce point at infinity",
                "a commitment to the nonce zero",
                "encoding",
            ),
            whole(pair(vec![0; 33])),
        ),
        (
            kind(
                "nonce point not canonical",
                "a commitment with an x beyond the modulus",
                "encoding",
            ),
            whole(pair(point(2, &[0xff; 32]))),
        ),
        (
            kind(
                "nonce point in another form",
                "a commitment in SEC1's compact form",
                "encoding",
            ),
            whole(pair(point(5, &generator))),
        ),
        (
            kind(
                "half a commitment",
                "a commitment without its last byte",
                "encoding",
            ),
            {
                let mut short = pair(good.clone());
                short.pop();
                whole(short)
            },
        ),
        (
            kind(
                "too many commitments",
                "one pair of commitments more than any session has",
                "encoding",
            ),
            whole(pair(good.clone()).repeat(MAX_MESSAGES.saturating_add(1))),
        ),
        (
            kind(
                "signer zero",
                "the identifier 0, at which the key itself lies",
                "encoding",
            ),
            sign_request(&vec![0; signer.len()], &pair(good.clone())),
        ),
        (
            kind(
                "signer beyond the order",
                "an identifier of 2^256 - 1",
                "encoding",
            ),
            sign_request(&vec![0xff; signer.len()], &pair(good.clone())),
        ),
    ]
    .into_iter()
    .inspect(|(_, bytes)| debug_assert!(bytes.len() > PAIR))
    .collect()
}

/// The bytes of a sign request for one signer, whatever signer and commitments are.
fn sign_request(signer: &[u8], commitments: &[u8]) -> Vec<u8> {
    let mut bytes = open_sign_request(SessionId([0x77; 32]), 1, 1);
    bytes.extend(signer);
    bytes.extend(postcard::to_stdvec(commitments).unwrap_or_default());
    bytes
}

/// A sign request up to its map of commitments, which is said to have so many entries.
pub(super) fn open_sign_request(session: SessionId, attempt: u32, entries: u8) -> Vec<u8> {
    let mut bytes = encode(&Ask::Sign {
        session,
        epoch: wire::EPOCH,
        attempt,
        commitments: Default::default(),
    });
    // An empty map is one byte, its length; the map is what a sign request ends with.
    if let Some(length) = bytes.last_mut() {
        *length = entries;
    }
    bytes
}

/// A node outside the roster gets no connection.
///
/// # Errors
/// When it can't even listen.
pub async fn stranger(stage: &Stage) -> anyhow::Result<Finding> {
    let unknown = kind(
        "stranger",
        "a coordinator that the roster does not name",
        "",
    )
    .note("no rule is named on the wire: the connection ends with the handshake");
    let mut secret = [0; 32];
    rand::rngs::OsRng.fill_bytes(&mut secret);
    let vault = stage.standing.vault.key();
    let (network, _events) = wire::join(
        &Identity::from_secret(&secret),
        &[],
        vault.roster(),
        vault.parameters(),
    )
    .await?;
    let mut answers = Vec::new();
    for operator in stage.operators() {
        let asked = network.ask(operator, encode(&Ask::Group)).await;
        let mut answer = match asked {
            Err(error @ (p2p::AskError::NotConnected | p2p::AskError::Failed(_))) => {
                Answered::other("S12", error.to_string(), true)
            }
            other => Answered::other("CONNECTED", format!("{other:?}"), false),
        };
        answer.change = stage.moved(&operator).await?;
        answers.push(answer);
    }
    network.shutdown().await;
    ensure!(!answers.is_empty(), "no operator was called");
    Ok(Finding::new(unknown, None, answers))
}
