//! Nodes over loopback TCP, and waiting for conditions with a bound.

#![allow(dead_code, reason = "not everything in every test binary")]

use std::{future::Future, time::Duration};

use p2p::{Event, Events, Network, PeerAddress, PeerStatus, Settings};
use protocol::identity::{Identity, PeerKey};
use tokio::time::timeout;

/// Bound of every wait here; conditions usually hold within a fraction of a second.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const NETWORK: &str = "regtest-test";

pub struct Node {
    pub key: PeerKey,
    pub network: Network,
    pub events: Events,
}

pub fn identity(seed: u8) -> Identity {
    Identity::from_secret(&[seed; 32])
}

pub fn key(seed: u8) -> PeerKey {
    identity(seed).public()
}

/// A peer that will call us.
pub fn caller(seed: u8) -> PeerAddress {
    PeerAddress {
        key: key(seed),
        addresses: vec![],
    }
}

pub const TCP: &str = "/ip4/127.0.0.1/tcp/0";
pub const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Heartbeats in most tests: nobody is taken for silent because a test does not look at its events.
const SELDOM: Duration = Duration::from_secs(600);

pub async fn start_at(seed: u8, listen: &str, peers: Vec<PeerAddress>) -> Node {
    start_with(seed, &[listen], peers, SELDOM).await
}

pub async fn start_with(
    seed: u8,
    listen: &[&str],
    peers: Vec<PeerAddress>,
    heartbeat: Duration,
) -> Node {
    let settings = Settings {
        listen: listen.iter().map(|address| (*address).to_owned()).collect(),
        peers,
        network: NETWORK.to_owned(),
        heartbeat,
    };
    let (network, events) = p2p::start(&identity(seed), &settings).await.unwrap();
    Node {
        key: key(seed),
        network,
        events,
    }
}

pub async fn start(seed: u8, peers: Vec<PeerAddress>) -> Node {
    start_at(seed, TCP, peers).await
}

impl Node {
    pub fn address(&self) -> PeerAddress {
        PeerAddress {
            key: self.key,
            addresses: self.network.listen_addresses(),
        }
    }

    pub async fn next(&mut self) -> Event {
        within(self.events.recv())
            .await
            .expect("the network is running")
    }

    pub async fn next_gossip(&mut self) -> (PeerKey, Vec<u8>) {
        loop {
            if let Event::Gossip { from, data } = self.next().await {
                return (from, data);
            }
        }
    }

    /// How it stands with a peer.
    pub fn peer(&self, key: PeerKey) -> PeerStatus {
        let peers = self.network.peers();
        peers
            .into_iter()
            .find(|peer| peer.key == key)
            .expect("a peer")
    }

    /// Waits until exactly these are connected.
    pub async fn connected_to(&self, mut keys: Vec<PeerKey>) {
        keys.sort_unstable();
        until(|| self.network.connected() == keys).await;
    }

    /// Publishes as soon as somebody is there to hear it.
    pub async fn publish(&self, data: &[u8]) {
        let publish = async {
            while let Err(error) = self.network.publish(data.to_vec()).await {
                assert_eq!(error, p2p::PublishError::NoPeers);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(publish).await;
    }
}

/// `seeds.len()` nodes, each connected to all others.
pub async fn cluster(seeds: &[u8]) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for seed in seeds {
        let known: Vec<PeerAddress> = nodes.iter().map(Node::address).collect();
        let later = seeds[nodes.len() + 1..].iter().map(|seed| caller(*seed));
        nodes.push(start(*seed, known.into_iter().chain(later).collect()).await);
    }
    for node in &nodes {
        let others = nodes
            .iter()
            .map(|other| other.key)
            .filter(|other| *other != node.key);
        node.connected_to(others.collect()).await;
    }
    nodes
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

pub async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
