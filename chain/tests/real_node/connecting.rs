//! Credentials, networks, and nodes that are not there.

use std::error::Error;

use bitcoin::Network;
use chain::{BitcoinRpc, FollowError, Follower, Position, RpcError, RpcSettings};

use crate::node;

#[tokio::test]
async fn wrong_credentials_are_refused_with_a_clear_error() {
    let (node, dir) = node().await;
    let url = node.settings().url;

    let password = RpcSettings::with_password(&url, "nobody", "wrong");
    let error = BitcoinRpc::new(&password)
        .unwrap()
        .chain_info()
        .await
        .unwrap_err();
    assert!(
        matches!(error, RpcError::Unauthorized { status: 401, .. }),
        "{error}"
    );
    assert!(!error.is_transient());

    let file = dir.path().join("stale.cookie");
    std::fs::write(&file, "__cookie__:0000").unwrap();
    let stale = BitcoinRpc::new(&RpcSettings::with_cookie(&url, &file)).unwrap();
    let error = stale.chain_info().await.unwrap_err();
    assert!(matches!(error, RpcError::Unauthorized { .. }), "{error}");

    // The node writes a new cookie at each start; the client finds it without being restarted.
    std::fs::copy(dir.path().join("regtest/.cookie"), &file).unwrap();
    assert_eq!(stale.chain_info().await.unwrap().chain, "regtest");

    let mut follower = Follower::new(
        BitcoinRpc::new(&password).unwrap(),
        Network::Regtest,
        Position::starting_at(0),
    );
    let error = follower.next().await.unwrap_err();
    assert!(matches!(
        error,
        FollowError::Rpc(RpcError::Unauthorized { .. })
    ));
}

#[tokio::test]
async fn a_node_with_a_password_is_reached_with_it() {
    let dir = tempfile::tempdir().unwrap();
    // Format of rpcauth: user:salt$hex(HMAC-SHA256(key = salt, password)); here for "opens".
    let options = crate::bitcoind::BitcoindOptions {
        extra_args: vec![format!("-rpcauth=bridge:{SALT}${DIGEST_OF_OPENS}")],
        ..Default::default()
    };
    let node = crate::bitcoind::Bitcoind::start_with(dir.path(), options)
        .await
        .unwrap();
    let with = |password| {
        let url = node.settings().url;
        BitcoinRpc::new(&RpcSettings::with_password(url, "bridge", password)).unwrap()
    };
    assert!(with("opens").chain_info().await.is_ok());
    let error = with("Opens").chain_info().await.unwrap_err();
    assert!(matches!(error, RpcError::Unauthorized { .. }), "{error}");
}

const SALT: &str = "8f3c";
const DIGEST_OF_OPENS: &str = "30db497343afda827aaa68b7e3d240ef07b214ac4ecc4f9dfcfb24d55a7faf1d";

#[tokio::test]
async fn a_node_on_another_network_is_refused() {
    let (node, _dir) = node().await;
    let error = node.rpc().check_network(Network::Signet).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "bitcoind is on network regtest, but signet is configured"
    );
    let mut follower = Follower::new(node.rpc(), Network::Bitcoin, Position::starting_at(0));
    let error = follower.next().await.unwrap_err();
    assert!(
        matches!(error, FollowError::Rpc(RpcError::WrongNetwork { .. })),
        "{error}"
    );
    assert!(error.source().unwrap().to_string().contains("regtest"));
}

#[tokio::test]
async fn a_node_that_is_down_is_unreachable_and_not_more() {
    let (mut node, dir) = node().await;
    let rpc = node.rpc();
    rpc.chain_info().await.unwrap();
    node.kill();
    let error = rpc.chain_info().await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());

    let gone = RpcSettings::with_cookie(node.settings().url, dir.path().join("none"));
    let error = BitcoinRpc::new(&gone)
        .unwrap()
        .chain_info()
        .await
        .unwrap_err();
    assert!(matches!(error, RpcError::Cookie { .. }), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_refused_call_keeps_the_nodes_code() {
    let (node, _dir) = node().await;
    let error = node
        .rpc()
        .call::<String>("nosuchcall", &[])
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(chain::rpc::code::METHOD_NOT_FOUND));
    assert_eq!(node.rpc().block_hash_at(1).await.unwrap(), None);
}
