//! Bad shares: what is kept of them, shown, and checked by others.

use std::{collections::BTreeMap, sync::Arc};

use coordinator::{
    api,
    blame::{self, MAX_PER_OPERATOR},
};
use protocol::{
    blame::{Evidence, ROUND2_DOMAIN, Round2},
    identity::Identity,
    message::Subject,
    roster::Roster,
};
use rand::rngs::OsRng;
use serde_json::{Value, json};
use threshold::sign::{Message, Package, Shares, Tweak, commit, sign};

use crate::setting::{RATE, Setting, group};

/// A coordinator of operators whose identities are at hand.
struct Court {
    setting: Setting,
    identities: Vec<Identity>,
}

fn court() -> Court {
    let mut setting = Setting::new();
    let identities: Vec<_> = [[1; 32], [2; 32]]
        .iter()
        .map(Identity::from_secret)
        .collect();
    let mut roster = Roster::clone(&setting.reader.roster);
    for (member, identity) in roster.operators.iter_mut().zip(&identities) {
        member.key = identity.public();
    }
    setting.reader.roster = Arc::new(roster);
    setting.router = api::router(setting.reader.clone(), RATE, Vec::new());
    Court {
        setting,
        identities,
    }
}

impl Court {
    fn subject(&self) -> Subject {
        Subject::Genesis(self.setting.vault.certificate().genesis.clone())
    }

    /// The first operator's shares of a session about three messages, the second one of them as `spoil` makes it.
    fn evidence(&self, attempt: u32, spoil: impl Fn(&mut u8)) -> Evidence {
        let roster = &self.setting.reader.roster;
        let machines = group(roster);
        let messages = [1, 2, 3].map(|byte| Message {
            digest: [byte; 32],
            tweak: Tweak::KeyPath(None),
        });
        let (mut nonces, mut commitments) = (BTreeMap::new(), BTreeMap::new());
        for machine in &machines {
            let share = machine.finished().unwrap();
            let (secret, public) = commit(share, messages.len(), &mut OsRng).unwrap();
            nonces.insert(share.signer(), secret);
            commitments.insert(share.signer(), public);
        }
        let package = Package {
            messages: messages.to_vec(),
            commitments,
        };
        let me = roster.signer(&self.identities[0].public()).unwrap();
        let share = machines.iter().map(|machine| machine.finished().unwrap());
        let share = share
            .into_iter()
            .find(|share| share.signer() == me)
            .unwrap();
        let (_, next) = commit(share, messages.len(), &mut OsRng).unwrap();
        let shares = sign(share, nonces.remove(&me).unwrap(), &package).unwrap();
        let mut bytes: Vec<u8> = (0..3)
            .flat_map(|input| shares.share_bytes(input).unwrap())
            .collect();
        spoil(&mut bytes[63]);
        let subject = self.subject();
        let said = Round2 {
            session: subject.session(&roster.coordinators[0].key),
            attempt,
            package: package.hash(share.group()),
            shares: Shares::try_from(bytes).unwrap(),
            next,
        };
        Evidence {
            group: share.group().clone(),
            messages: package.messages,
            commitments: package.commitments,
            statement: self.identities[0].sign(ROUND2_DOMAIN, said),
        }
    }

    fn keep(&self, evidence: &Evidence) {
        let reader = &self.setting.reader;
        let fault = evidence.check(&reader.roster).unwrap();
        let changes = blame::changes(&reader.store, &self.subject(), &fault, evidence).unwrap();
        reader.store.commit(changes).unwrap();
    }

    async fn blames(&self) -> Vec<Value> {
        let list = self.setting.get("/v1/blame").await.ok();
        list["items"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn a_bad_share_is_shown_with_all_that_somebody_else_needs_to_check_it() {
    let court = court();
    assert!(court.blames().await.is_empty());
    let evidence = court.evidence(7, |byte| *byte ^= 1);
    court.keep(&evidence);
    court.keep(&evidence);
    let blames = court.blames().await;
    let [blame] = blames.as_slice() else {
        panic!("{blames:?}")
    };
    assert_eq!(
        (&blame["operator"], &blame["attempt"], &blame["input"]),
        (&json!("node-1"), &json!(7), &json!(1))
    );
    assert_eq!(blame["evidence"], Value::Null);
    let path = format!("/v1/blame/{}", evidence.id());
    let shown = court.setting.get(&path).await.ok();
    assert_eq!(shown["evidence"]["message"], hex::encode([2; 32]));
    let commitments = shown["evidence"]["commitments"].as_object().unwrap();
    assert_eq!(commitments.len(), 2);
    let status = court.setting.get("/v1/status").await.ok();
    assert_eq!(status["blamed"], json!(["node-1"]));

    let folder = tempfile::tempdir().unwrap();
    let check = |document: &Value| {
        let file = folder.path().join("blame.json");
        std::fs::write(&file, document.to_string()).unwrap();
        blame::check_file(&file, &court.setting.reader.roster)
    };
    let lines = check(&shown).unwrap();
    assert!(lines[0].starts_with("node-1 "), "{lines:?}");
    assert!(lines[0].ends_with("the share of input 1 does not verify"));
    assert_eq!(
        check(&json!({ "items": [&shown, &shown] })).unwrap().len(),
        2
    );

    // Against another one, without evidence, and with evidence that somebody has changed.
    let mut framed = shown.clone();
    framed["operator_key"] = json!(court.identities[1].public().to_string());
    assert!(check(&framed).is_err());
    assert!(check(blame).is_err());
    let mut other = evidence.clone();
    other.messages[0].digest = [9; 32];
    let mut changed = shown.clone();
    changed["evidence"]["encoded"] = json!(hex::encode(other.encode()));
    assert!(check(&changed).is_err());
    let mut innocent = shown.clone();
    let right = court.evidence(7, |_| {});
    innocent["evidence"]["encoded"] = json!(hex::encode(right.encode()));
    assert!(check(&innocent).is_err());
}

#[tokio::test]
async fn of_each_operator_the_newest_evidence_is_kept_and_the_rest_gives_way() {
    let court = court();
    let pieces: Vec<_> = (1..=MAX_PER_OPERATOR as u32 + 2)
        .map(|attempt| court.evidence(attempt, |byte| *byte ^= 1))
        .collect();
    pieces.iter().for_each(|piece| court.keep(piece));
    let mut kept: Vec<u64> = court
        .blames()
        .await
        .iter()
        .map(|blame| blame["attempt"].as_u64().unwrap())
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, [3, 4, 5, 6]);
    for (piece, is_kept) in [(&pieces[0], false), (&pieces[5], true)] {
        let path = format!("/v1/blame/{}", piece.id());
        let answer = court.setting.get(&path).await;
        if is_kept {
            answer.ok();
        } else {
            answer.problem(404, "unknown_blame");
        }
    }
    court
        .setting
        .get("/v1/blame/nothing")
        .await
        .problem(400, "invalid_parameter");
}
