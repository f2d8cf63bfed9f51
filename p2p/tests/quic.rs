//! Nodes over QUIC: as over TCP.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod support;

use p2p::Transport;
use support::{QUIC, TCP, caller, key, start_at, start_with, until};

#[tokio::test]
async fn nodes_talk_over_quic_as_over_tcp_and_say_which() {
    let beat = p2p::HEARTBEAT_INTERVAL;
    let mut first = start_with(1, &[TCP, QUIC], vec![caller(2), caller(3)], beat).await;
    let at = |kind: &str| {
        let mut address = first.address();
        address.addresses.retain(|text| text.contains(kind));
        address
    };
    let over_quic = start_at(2, QUIC, vec![at("quic-v1"), caller(3)]).await;
    let over_tcp = start_at(3, TCP, vec![at("tcp"), over_quic.address()]).await;
    first.connected_to(vec![key(2), key(3)]).await;
    over_tcp.connected_to(vec![key(1), key(2)]).await;
    assert_eq!(first.peer(key(2)).transport, Some(Transport::Quic));
    assert_eq!(first.peer(key(3)).transport, Some(Transport::Tcp));
    assert_eq!(over_tcp.peer(key(2)).transport, Some(Transport::Quic));
    over_quic.publish(b"by quic").await;
    assert_eq!(first.next_gossip().await, (key(2), b"by quic".to_vec()));
}

#[tokio::test]
async fn a_stranger_is_refused_at_the_handshake_over_quic_too() {
    let node = start_at(1, QUIC, vec![caller(2)]).await;
    let stranger = start_at(9, QUIC, vec![node.address()]).await;
    until(|| node.network.counts().connections_refused >= 1).await;
    assert_eq!(node.network.connected(), []);
    assert_eq!(stranger.network.connected(), []);
    let friend = start_at(2, QUIC, vec![node.address()]).await;
    node.connected_to(vec![friend.key]).await;
}
