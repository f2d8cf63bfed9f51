use std::path::Path;

use tempfile::TempDir;
use threshold::seal::Cost;
use zeroize::Zeroizing;

use super::*;
use crate::{generate, testing};

struct Node {
    folder: TempDir,
    identity: Arc<Identity>,
    refresh: Refresh,
}

fn keys(folder: &Path) -> KeyFiles {
    let passphrase = Zeroizing::new("correct horse".to_owned());
    KeyFiles::new(folder.to_owned(), passphrase, Cost::Fast)
}

fn open(folder: &Path, identity: &Arc<Identity>) -> Refresh {
    let keys = Arc::new(keys(folder));
    let share = keys.load_share().unwrap().unwrap();
    let (refresh, shares) = Refresh::open(
        keys,
        Arc::new(testing::roster().clone()),
        identity.clone(),
        generate::context(testing::roster(), testing::parameters()),
        &share,
    )
    .unwrap();
    let of_disk: BTreeMap<u32, GroupInfo> = shares
        .iter()
        .map(|(epoch, share)| (*epoch, share.group().clone()))
        .collect();
    assert_eq!(refresh.pending(), &of_disk);
    refresh
}

impl Node {
    fn new(index: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        keys(folder.path())
            .save_share(testing::share(index))
            .unwrap();
        let identity = Arc::new(testing::identity(index));
        let refresh = open(folder.path(), &identity);
        Self {
            folder,
            identity,
            refresh,
        }
    }

    fn restart(&mut self) {
        self.refresh = open(self.folder.path(), &self.identity);
    }

    fn keys(&self) -> KeyFiles {
        keys(self.folder.path())
    }

    fn own_epoch(&self) -> u32 {
        self.keys().load_share().unwrap().unwrap().group().epoch()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn stage(&self) -> Stage {
        self.refresh.progress().unwrap().1.stage
    }
}

fn nodes() -> Vec<Node> {
    (0..3).map(Node::new).collect()
}

fn begin_all(nodes: &mut [Node]) {
    for node in nodes {
        assert_eq!(node.refresh.begin(false).unwrap(), Begun::Now(1));
    }
}

/// Everybody asks everybody whom it misses something from, once.
fn round(nodes: &mut [Node]) {
    for asking in 0..nodes.len() {
        let Some(Ask::Refresh { base, epoch }) = nodes[asking].refresh.question() else {
            continue;
        };
        for wanted in nodes[asking].refresh.wanted() {
            let own = nodes[asking].identity.public();
            let peer = nodes
                .iter_mut()
                .find(|node| node.identity.public() == wanted)
                .unwrap();
            match peer.refresh.answer(&own, &base, epoch) {
                Ok(Answer::Refresh { epoch, messages }) => {
                    let asking = &mut nodes[asking].refresh;
                    asking.take(&wanted, epoch, &messages).unwrap();
                }
                Ok(other) => panic!("{other:?}"),
                Err(refusal) => nodes[asking].refresh.refused(wanted, &refusal),
            }
        }
    }
}

fn finish(nodes: &mut [Node]) {
    for _ in 0..6 {
        round(nodes);
    }
}

#[test]
fn new_shares_lie_beside_the_old_until_the_certificate() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    finish(&mut nodes);
    let group = nodes[0].refresh.pending()[&1].clone();
    assert_eq!(group.group_key(), testing::share(0).group().group_key());
    for node in &mut nodes {
        assert_eq!(node.refresh.pending()[&1], group);
        assert_eq!(node.own_epoch(), 0);
        assert_eq!(
            node.files(),
            [
                "key-share-epoch-1.sealed",
                "key-share.sealed",
                "refresh-seed.sealed"
            ]
        );
        assert_eq!(node.refresh.begin(false).unwrap(), Begun::Finished(1));
        node.refresh.promote(1).unwrap();
        assert_eq!(node.own_epoch(), 1);
        assert_eq!(node.files(), ["key-share.sealed"]);
        assert!(node.refresh.progress().is_none() && node.refresh.pending().is_empty());
        node.restart();
        assert_eq!(node.refresh.base, group);
    }
}

#[test]
fn a_restart_after_any_message_changes_nothing() {
    for rounds in 0..5 {
        for who in 0..3 {
            let mut nodes = nodes();
            begin_all(&mut nodes);
            for _ in 0..rounds {
                round(&mut nodes);
            }
            nodes[who].restart();
            assert_eq!(nodes[who].refresh.progress().unwrap().0, 1);
            finish(&mut nodes);
            let group = &nodes[0].refresh.pending()[&1];
            assert!(
                nodes
                    .iter()
                    .all(|node| node.refresh.pending()[&1] == *group)
            );
        }
    }
}

#[test]
fn all_or_nobody_and_whose_administrator_has_not_asked_is_known() {
    let mut nodes = nodes();
    for node in &mut nodes[..2] {
        node.refresh.begin(false).unwrap();
    }
    finish(&mut nodes);
    let missing = nodes[2].identity.public();
    for node in &nodes[..2] {
        assert_eq!(node.stage(), Stage::Round1);
        assert_eq!(node.refresh.wanted(), BTreeSet::from([missing]));
        assert!(node.refresh.unwilling()[&missing].contains("has not asked"));
        assert!(node.refresh.pending().is_empty());
    }
    assert!(nodes[2].refresh.question().is_none());
    assert_eq!(nodes[2].files(), ["key-share.sealed"]);
    assert_eq!(nodes[0].refresh.begin(false).unwrap(), Begun::Before(1));
    nodes[2].refresh.begin(false).unwrap();
    finish(&mut nodes);
    assert!(nodes.iter().all(|node| node.refresh.pending().len() == 1));
    assert!(nodes[0].refresh.unwilling().is_empty());
}

#[test]
fn a_crash_between_certificate_and_rename_leaves_both_and_is_settled_at_start() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    finish(&mut nodes);
    let certified = nodes[0].refresh.pending()[&1].clone();
    // Before the rename.
    settle(&nodes[0].keys(), &certified).unwrap();
    assert_eq!(nodes[0].own_epoch(), 1);
    // Again, and after everything: nothing to do. The seed of the old share goes when the node opens.
    settle(&nodes[0].keys(), &certified).unwrap();
    assert_eq!(
        nodes[0].files(),
        ["key-share.sealed", "refresh-seed.sealed"]
    );
    nodes[0].restart();
    assert_eq!(nodes[0].files(), ["key-share.sealed"]);
    assert!(nodes[0].refresh.progress().is_none());
    // A certificate of a group that this node has no share of changes nothing.
    let other = testing::refresh_to(1)[0].group().clone();
    settle(&nodes[1].keys(), &other).unwrap();
    assert_eq!(nodes[1].own_epoch(), 0);
    assert!(nodes[1].refresh.promote(2).is_err());
    assert_eq!(nodes[1].own_epoch(), 0);
}

#[test]
fn another_attempt_has_another_number_and_shares_stay_until_theirs_or_a_later_one_is_certified() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    finish(&mut nodes);
    for node in &mut nodes {
        assert_eq!(node.refresh.begin(true).unwrap(), Begun::Now(2));
    }
    finish(&mut nodes);
    for node in &mut nodes {
        let epochs: Vec<_> = node.refresh.pending().keys().copied().collect();
        assert_eq!(epochs, [1, 2]);
        node.restart();
    }
    // The certificate of the second comes first at one, that of the first at another.
    nodes[0].refresh.promote(2).unwrap();
    assert_eq!(nodes[0].own_epoch(), 2);
    assert_eq!(nodes[0].files(), ["key-share.sealed"]);
    nodes[1].refresh.promote(1).unwrap();
    assert_eq!(nodes[1].own_epoch(), 1);
    nodes[1].refresh.promote(2).unwrap();
    assert_eq!(nodes[1].own_epoch(), 2);
    assert_eq!(nodes[1].files(), ["key-share.sealed"]);
}

#[test]
fn those_that_have_not_finished_go_along_with_a_new_attempt_and_those_that_have_do_not() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    finish(&mut nodes);
    // 1 and 2 lose their machines' work and new shares: for them nothing was finished.
    for node in &mut nodes[1..] {
        std::fs::remove_file(node.folder.path().join("key-share-epoch-1.sealed")).unwrap();
        node.restart();
    }
    assert_eq!(nodes[2].refresh.begin(true).unwrap(), Begun::Now(2));
    round(&mut nodes);
    assert_eq!(nodes[1].refresh.progress().unwrap().0, 2);
    assert_eq!(nodes[0].refresh.progress().unwrap().0, 1);
    assert!(nodes[0].refresh.pending().contains_key(&1));
    assert_eq!(nodes[0].refresh.begin(true).unwrap(), Begun::Now(2));
    finish(&mut nodes);
    assert!(
        nodes
            .iter()
            .all(|node| node.refresh.pending().contains_key(&2))
    );
}

#[test]
fn nobody_can_raise_the_number_far() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    let (peer, base) = (nodes[1].identity.public(), nodes[0].refresh.base.digest());
    for epoch in [u32::MAX, 2 + MAX_SKIP] {
        nodes[0].refresh.answer(&peer, &base, epoch).unwrap();
        nodes[0].refresh.take(&peer, epoch, &[]).unwrap();
        assert_eq!(nodes[0].refresh.progress().unwrap().0, 1);
    }
    nodes[0].refresh.take(&peer, 1 + MAX_SKIP, &[]).unwrap();
    assert_eq!(nodes[0].refresh.progress().unwrap().0, 1 + MAX_SKIP);
}

#[test]
fn two_polynomials_end_it_without_a_share_and_it_begins_again_under_another_number() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    // 2 shows 0 another polynomial than 1.
    let mut other_face = Node::new(2);
    other_face.refresh.begin(false).unwrap();
    let (zero, liar) = (nodes[0].identity.public(), nodes[2].identity.public());
    let base = nodes[0].refresh.base.digest();
    let Answer::Refresh { messages, .. } = other_face.refresh.answer(&zero, &base, 1).unwrap()
    else {
        panic!("no messages")
    };
    nodes[0].refresh.take(&liar, 1, &messages).unwrap();
    finish(&mut nodes);
    let culprit = testing::roster().signer(&liar).unwrap();
    for node in &nodes[..2] {
        let (_, progress) = node.refresh.progress().unwrap();
        assert!(progress.failure.unwrap().culprits().contains(&culprit));
        assert!(node.refresh.pending().is_empty());
        assert_eq!(node.own_epoch(), 0);
    }
    // Still a failure after a restart would be no use: the messages come again. The administrators begin anew.
    for node in &mut nodes {
        assert_eq!(node.refresh.begin(true).unwrap(), Begun::Now(2));
    }
    finish(&mut nodes);
    assert!(
        nodes
            .iter()
            .all(|node| node.refresh.pending().contains_key(&2))
    );
}

#[test]
fn strangers_and_holders_of_other_shares_get_no_answer() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    let base = nodes[0].refresh.base.digest();
    let stranger = Identity::from_secret(&[99; 32]).public();
    let operator = nodes[1].identity.public();
    for (peer, base) in [(stranger, base), (operator, [0; 32])] {
        let refusal = nodes[0].refresh.answer(&peer, &base, 1).unwrap_err();
        assert_eq!(refusal.rule, Rule::S12);
    }
}

#[test]
fn a_message_that_another_has_signed_changes_nothing() {
    let mut nodes = nodes();
    begin_all(&mut nodes);
    let base = nodes[0].refresh.base.digest();
    let (zero, one, two) = (
        nodes[0].identity.public(),
        nodes[1].identity.public(),
        nodes[2].identity.public(),
    );
    let Answer::Refresh { messages, .. } = nodes[1].refresh.answer(&zero, &base, 1).unwrap() else {
        panic!("no messages")
    };
    nodes[0].refresh.take(&two, 1, &messages).unwrap();
    assert_eq!(nodes[0].refresh.wanted(), BTreeSet::from([one, two]));
    nodes[0].refresh.take(&one, 1, &messages).unwrap();
    assert_eq!(nodes[0].refresh.wanted(), BTreeSet::from([two]));
}

#[test]
fn a_share_of_another_refresh_never_replaces_one_that_waits() {
    let node = Node::new(0);
    let (first, second) = (testing::refresh_to(1), testing::refresh_to(1));
    let keys = node.keys();
    keys.save_pending(&first[0]).unwrap();
    keys.save_pending(&first[0]).unwrap();
    assert!(matches!(
        keys.save_pending(&second[0]),
        Err(KeyFileError::OtherShare(_))
    ));
    let kept = keys.load_pending().unwrap();
    assert_eq!(kept[&1].group(), first[0].group());
}

#[test]
fn the_certificate_of_all_new_shares_changes_the_vaults_epoch_and_nothing_else() {
    use protocol::epoch::EpochError;

    let (vault, shares) = (testing::vault(), testing::refreshed());
    let certificate = testing::epoch_certificate(shares);
    let after = vault.at_epoch(&certificate).unwrap();
    assert_eq!(after.id(), vault.id());
    assert_eq!(after.script_pubkey(), vault.script_pubkey());
    assert_eq!(after.group(), shares[0].group());
    let mut other_vault = certificate.clone();
    other_vault.vault.0[0] ^= 1;
    assert_eq!(other_vault.verify(vault), Err(EpochError::Other("vault")));
    // The signature is about this group: not another refresh, and not the shares of key generation.
    for group in [
        testing::refresh_to(1)[0].group().clone(),
        vault.group().clone(),
    ] {
        let mut forged = certificate.clone();
        forged.group = group;
        assert_eq!(forged.verify(vault), Err(EpochError::Signature));
    }
    // A genesis certificate's signature is none of an epoch.
    let mut genesis = certificate;
    genesis.signature = vault.certificate().signature;
    assert_eq!(genesis.verify(vault), Err(EpochError::Signature));
}
