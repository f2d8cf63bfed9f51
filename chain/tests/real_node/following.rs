//! The follower on a chain that grows, is reorganised, and whose node dies.

use bitcoin::{BlockHash, Network};
use chain::{ChainEvent, FollowError, Follower, Position, Step};
use serde_json::json;
use tokio::time::timeout;

use crate::bitcoind::{Bitcoind, BitcoindOptions};
use crate::{PATIENCE, node};

fn follower(node: &Bitcoind, position: Position) -> Follower {
    Follower::new(node.rpc(), Network::Regtest, position)
}

async fn next(follower: &mut Follower) -> Step {
    timeout(PATIENCE, follower.next()).await.unwrap().unwrap()
}

async fn take(follower: &mut Follower, events: usize) -> Vec<(char, u32, BlockHash)> {
    let mut seen = Vec::new();
    for _ in 0..events {
        seen.push(short(&next(follower).await.event));
    }
    seen
}

fn short(event: &ChainEvent) -> (char, u32, BlockHash) {
    match event {
        ChainEvent::Connected {
            height,
            hash,
            block,
        } => {
            assert_eq!(block.block_hash(), *hash);
            ('+', *height, *hash)
        }
        ChainEvent::Disconnected {
            height,
            hash,
            block,
        } => {
            // A killed node may have lost it.
            assert!(
                block
                    .as_ref()
                    .is_none_or(|block| block.block_hash() == *hash)
            );
            ('-', *height, *hash)
        }
    }
}

async fn invalidate(node: &Bitcoind, hash: BlockHash) {
    let () = node
        .rpc()
        .call("invalidateblock", &[json!(hash)])
        .await
        .unwrap();
}

#[tokio::test]
async fn it_gives_each_block_once_and_in_order() {
    let (mut node, _dir) = node().await;
    let mined = node.mine(5).await.unwrap();
    let mut follower = follower(&node, Position::starting_at(2));
    let expected: Vec<_> = (2..=5).map(|h| ('+', h, mined[h as usize - 1])).collect();
    assert_eq!(take(&mut follower, 4).await, expected);
    assert_eq!(follower.try_next().await.unwrap(), None);

    // A block that comes while the follower waits.
    let (step, mined) = tokio::join!(next(&mut follower), node.mine(1));
    assert_eq!(short(&step.event), ('+', 6, mined.unwrap()[0]));
    assert_eq!(step.position.tip().unwrap().height, 6);
    assert_eq!(follower.position(), &step.position);
    assert!(follower.status().borrow().reachable);
    assert_eq!(follower.status().borrow().blocks, 6);
}

#[tokio::test]
async fn a_reorganisation_disconnects_newest_first_and_connects_the_other_branch() {
    let (mut node, _dir) = node().await;
    let old = node.mine(6).await.unwrap();
    let mut follower = follower(&node, Position::starting_at(0));
    take(&mut follower, 7).await;

    invalidate(&node, old[3]).await;
    // The node's chain is the beginning of what was seen: no reason to take anything back yet.
    assert_eq!(follower.try_next().await.unwrap(), None);
    let new = mine_other(&node, 4).await;
    assert_ne!(new[0], old[3]);
    assert_eq!(
        take(&mut follower, 7).await,
        [
            ('-', 6, old[5]),
            ('-', 5, old[4]),
            ('-', 4, old[3]),
            ('+', 4, new[0]),
            ('+', 5, new[1]),
            ('+', 6, new[2]),
            ('+', 7, new[3]),
        ]
    );
    assert_eq!(follower.try_next().await.unwrap(), None);
}

#[tokio::test]
async fn a_shorter_branch_that_differs_is_a_reorganisation_too() {
    let (mut node, _dir) = node().await;
    let old = node.mine(5).await.unwrap();
    let mut follower = follower(&node, Position::starting_at(1));
    take(&mut follower, 5).await;
    invalidate(&node, old[1]).await;
    let new = mine_other(&node, 1).await;
    let first = next(&mut follower).await;
    assert!(
        matches!(
            &first.event,
            ChainEvent::Disconnected { block: Some(_), .. }
        ),
        "what the block held is handed on"
    );
    assert_eq!(short(&first.event), ('-', 5, old[4]));
    assert_eq!(
        take(&mut follower, 4).await,
        [
            ('-', 4, old[3]),
            ('-', 3, old[2]),
            ('-', 2, old[1]),
            ('+', 2, new[0]),
        ]
    );
}

#[tokio::test]
async fn a_branch_from_another_node_is_followed() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let listening = BitcoindOptions {
        listen: true,
        ..Default::default()
    };
    let mut first = Bitcoind::start(dirs[0].path()).await.unwrap();
    let mut second = Bitcoind::start_with(dirs[1].path(), listening)
        .await
        .unwrap();
    let old = first.mine(3).await.unwrap();
    let mut follower = follower(&first, Position::starting_at(1));
    take(&mut follower, 3).await;

    let new = second.mine(4).await.unwrap();
    first.connect_to(&second).await.unwrap();
    first.wait_for_same_tip(&second).await.unwrap();
    let seen = take(&mut follower, 7).await;
    assert_eq!(seen[0], ('-', 3, old[2]));
    assert_eq!(seen[2], ('-', 1, old[0]));
    assert_eq!(seen[6], ('+', 4, new[3]));
    first.disconnect_all().await.unwrap();
}

#[tokio::test]
async fn it_goes_on_from_a_stored_position_even_across_a_reorganisation() {
    let (mut node, _dir) = node().await;
    let old = node.mine(4).await.unwrap();
    let mut before = follower(&node, Position::starting_at(1));
    take(&mut before, 3).await;
    let stored = serde_json::to_string(before.position()).unwrap();
    drop(before);

    let mut after = follower(&node, serde_json::from_str(&stored).unwrap());
    assert_eq!(take(&mut after, 1).await, [('+', 4, old[3])]);
    drop(after);

    invalidate(&node, old[2]).await;
    let new = mine_other(&node, 2).await;
    let mut after = follower(&node, serde_json::from_str(&stored).unwrap());
    assert_eq!(
        take(&mut after, 3).await,
        [('-', 3, old[2]), ('+', 3, new[0]), ('+', 4, new[1])]
    );
}

#[tokio::test]
async fn a_reorganisation_below_what_is_remembered_is_an_alarm() {
    let (mut node, _dir) = node().await;
    let mined = node.mine(5).await.unwrap();
    // As after more blocks than a position keeps: taken in from 1 on, only 4 and 5 remembered.
    let stored = json!({"start": 1, "next": 6, "hashes": [mined[3], mined[4]]});
    let position: Position = serde_json::from_value(stored).unwrap();
    invalidate(&node, mined[2]).await;
    mine_other(&node, 4).await;
    let mut follower = follower(&node, position.clone());
    let error = timeout(PATIENCE, follower.next())
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            error,
            FollowError::TooDeep {
                remembered: 2,
                oldest: 4
            }
        ),
        "{error}"
    );
    assert_eq!(follower.position(), &position);
}

#[tokio::test]
async fn a_node_that_is_killed_and_restarted_is_followed_on() {
    let (mut node, _dir) = node().await;
    let mined = node.mine(2).await.unwrap();
    let mut follower = follower(&node, Position::starting_at(1));
    take(&mut follower, 2).await;
    let mut status = follower.status();
    let following = tokio::spawn(async move { (follower.next().await, follower) });

    node.kill();
    timeout(PATIENCE, status.wait_for(|s| !s.reachable))
        .await
        .unwrap()
        .unwrap();
    assert!(!following.is_finished(), "a dead node must be waited for");
    node.restart().await.unwrap();
    // A kill may lose the last blocks of a node; on regtest they are mined again, or others.
    let tip = node.rpc().chain_info().await.unwrap();
    assert!(tip.blocks <= 2);
    let new = node.mine(3 - tip.blocks).await.unwrap();

    let (step, mut follower) = timeout(PATIENCE, following).await.unwrap().unwrap();
    let mut seen = vec![short(&step.unwrap().event)];
    while seen.last().unwrap().1 < 3 || seen.last().unwrap().0 == '-' {
        seen.push(short(&next(&mut follower).await.event));
    }
    assert_eq!(seen.last().unwrap(), &('+', 3, *new.last().unwrap()));
    if tip.best_block == mined[1] {
        assert_eq!(seen.len(), 1);
    }
    assert!(follower.status().borrow().reachable);
}

#[tokio::test]
async fn dropping_a_wait_loses_no_event() {
    let (mut node, _dir) = node().await;
    let mut follower = follower(&node, Position::starting_at(1));
    let mut mined = Vec::new();
    for _ in 0..3 {
        // Given up while it waits at the tip.
        let waited = timeout(std::time::Duration::from_millis(50), follower.next()).await;
        assert!(waited.is_err());
        mined.extend(node.mine(1).await.unwrap());
        let height = u32::try_from(mined.len()).unwrap();
        let expected = ('+', height, *mined.last().unwrap());
        assert_eq!(take(&mut follower, 1).await, [expected]);
    }
}

/// Mines to a fresh address, so that the blocks differ from those that were invalidated.
async fn mine_other(node: &Bitcoind, blocks: u32) -> Vec<BlockHash> {
    let address = node.new_address().await.unwrap();
    node.mine_to(blocks, &address).await.unwrap()
}
