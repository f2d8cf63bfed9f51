//! Nodes that keep to the rules, over loopback.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod support;

use std::{collections::BTreeSet, time::Duration};

use p2p::{
    AskError, Event, HEARTBEAT_INTERVAL, MAX_ASK_BYTES, MAX_GOSSIP_BYTES, MAX_OPEN_ASKS_PER_PEER,
    Network, PeerAddress, PeerState, PublishError, Refusal, Settings, StartError,
};
use support::{
    NETWORK, Node, TCP, caller, cluster, identity, key, start, start_at, start_with, until, within,
};

/// Takes all events, as a node does, and answers questions by what `answer` makes of them.
fn serve(node: Node, answer: impl Fn(Vec<u8>) -> Option<Vec<u8>> + Send + 'static) -> Network {
    let Node {
        network,
        mut events,
        ..
    } = node;
    let handle = network.clone();
    tokio::spawn(async move {
        // The network ends with its last handle.
        let _network = network;
        while let Some(event) = events.recv().await {
            if let Event::Ask { data, reply, .. } = event {
                match answer(data) {
                    Some(data) => reply.send(data),
                    None => drop(reply),
                }
            }
        }
    });
    handle
}

const GREETING: &[u8] = b"greeting ";

fn is_greeting(data: &[u8]) -> bool {
    data.starts_with(GREETING)
}

/// Connected is not yet subscribed: all greet until everybody has heard everybody else.
async fn all_hear_all(nodes: &mut [Node]) {
    let mut heard = vec![BTreeSet::new(); nodes.len()];
    let others = nodes.len() - 1;
    within(async {
        for round in 0_u32.. {
            for node in nodes.iter() {
                node.publish(&[GREETING, &round.to_be_bytes()].concat())
                    .await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            for (node, heard) in nodes.iter_mut().zip(&mut heard) {
                while let Some(event) = node.events.try_recv() {
                    if let Event::Gossip { from, .. } = event {
                        heard.insert(from);
                    }
                }
            }
            if heard.iter().all(|heard| heard.len() == others) {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn gossip_reaches_all_others_once_with_its_author() {
    let mut nodes = cluster(&[1, 2, 3, 4, 5]).await;
    all_hear_all(&mut nodes).await;
    let largest = vec![7; MAX_GOSSIP_BYTES];
    nodes[0].publish(b"proposal").await;
    nodes[1].publish(b"proposal").await;
    nodes[0].publish(&largest).await;
    let (a, b) = (nodes[0].key, nodes[1].key);
    let all: BTreeSet<_> = [
        (a, b"proposal".to_vec()),
        (b, b"proposal".to_vec()),
        (a, largest),
    ]
    .into();
    for node in &mut nodes {
        let own = node.key;
        let expected: BTreeSet<_> = all
            .iter()
            .filter(|(from, _)| *from != own)
            .cloned()
            .collect();
        let mut got = BTreeSet::new();
        while got.len() < expected.len() {
            let message = node.next_gossip().await;
            if !is_greeting(&message.1) {
                assert!(got.insert(message), "a message came twice");
            }
        }
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn gossip_travels_over_a_peer_in_the_middle() {
    let middle = start(1, vec![caller(2), caller(3)]).await;
    let left = start(2, vec![middle.address(), caller(3)]).await;
    let mut right = start(3, vec![middle.address(), caller(2)]).await;
    middle.connected_to(vec![left.key, right.key]).await;
    // The middle may not have learnt yet who listens on the right: say it until it arrives.
    let say = async {
        for round in 0_u32.. {
            left.publish(&round.to_be_bytes()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (from, _) = tokio::select! {
        heard = right.next_gossip() => heard,
        () = say => unreachable!(),
    };
    assert_eq!(from, left.key);
    assert_eq!(left.network.connected(), [middle.key]);
}

#[tokio::test]
async fn a_question_is_answered_by_the_peer_that_was_asked() {
    let mut nodes = cluster(&[1, 2, 3]).await;
    let (third, second) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let (second_key, third_key) = (second.key, third.key);
    serve(second, |data| Some([b"second ", data.as_slice()].concat()));
    serve(third, |data| Some([b"third ", data.as_slice()].concat()));
    let first = &nodes[0].network;
    let ask = |peer, data: &[u8]| first.ask(peer, data.to_vec());
    let (a, b) = tokio::join!(ask(second_key, b"hello"), ask(third_key, b"hello"));
    assert_eq!(
        (a.unwrap(), b.unwrap()),
        (b"second hello".to_vec(), b"third hello".to_vec())
    );
    let largest = vec![5; MAX_ASK_BYTES - 7];
    let answer = within(ask(second_key, &largest)).await.unwrap();
    assert_eq!(answer.len(), MAX_ASK_BYTES);
    let stranger = key(99);
    assert_eq!(
        ask(stranger, b"").await,
        Err(AskError::UnknownPeer(stranger))
    );
}

#[tokio::test]
async fn the_asker_learns_why_there_is_no_answer() {
    let mut nodes = cluster(&[1, 2]).await;
    let second = nodes.pop().unwrap();
    let second_key = second.key;
    serve(second, |data| {
        (data != b"silence").then(|| vec![0; MAX_ASK_BYTES + 1])
    });
    let first = &nodes[0].network;
    let silence = within(first.ask(second_key, b"silence".to_vec())).await;
    assert_eq!(silence, Err(AskError::Refused(Refusal::NoAnswer)));
    let large = within(first.ask(second_key, b"large".to_vec())).await;
    assert_eq!(large, Err(AskError::Refused(Refusal::AnswerTooLarge)));
}

#[tokio::test]
async fn what_is_too_large_is_not_sent() {
    let nodes = cluster(&[1, 2]).await;
    let gossip = nodes[0]
        .network
        .publish(vec![0; MAX_GOSSIP_BYTES + 1])
        .await;
    assert_eq!(gossip, Err(PublishError::TooLarge(MAX_GOSSIP_BYTES + 1)));
    let question = nodes[0]
        .network
        .ask(nodes[1].key, vec![0; MAX_ASK_BYTES + 1])
        .await;
    assert_eq!(question, Err(AskError::TooLarge(MAX_ASK_BYTES + 1)));
}

#[tokio::test]
async fn a_question_waits_for_its_peer_to_come() {
    let first = start(1, vec![caller(2)]).await;
    let network = first.network.clone();
    let question = tokio::spawn(async move { network.ask(key(2), b"there?".to_vec()).await });
    let second = start(2, vec![first.address()]).await;
    serve(second, |_| Some(b"yes".to_vec()));
    assert_eq!(within(question).await.unwrap().unwrap(), b"yes");
}

#[tokio::test]
async fn many_questions_to_one_peer_wait_for_one_another() {
    let mut nodes = cluster(&[1, 2]).await;
    let second = nodes.pop().unwrap();
    let second_key = second.key;
    serve(second, Some);
    let ask = |i: u32| nodes[0].network.ask(second_key, i.to_be_bytes().to_vec());
    let answers = within(futures::future::join_all((0..200).map(ask))).await;
    for (i, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), u32::try_from(i).unwrap().to_be_bytes());
    }
}

#[tokio::test]
async fn a_peer_that_restarts_is_connected_again_and_heard() {
    let mut nodes = cluster(&[1, 2]).await;
    let (second, mut first) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let listen = second.network.listen_addresses().remove(0);
    assert!(matches!(first.next().await, Event::Connected(peer) if peer == second.key));
    second.network.shutdown().await;
    first.connected_to(vec![]).await;
    assert!(matches!(first.next().await, Event::Disconnected(peer) if peer == second.key));
    // The same port and key.
    let again = start_at(2, &listen, vec![first.address()]).await;
    first.connected_to(vec![again.key]).await;
    assert!(matches!(first.next().await, Event::Connected(peer) if peer == again.key));
    again.publish(b"back").await;
    assert_eq!(first.next_gossip().await, (again.key, b"back".to_vec()));
}

#[tokio::test]
async fn the_one_who_stayed_calls_a_restarted_peer() {
    let listener = start(1, vec![caller(2)]).await;
    let address = listener.network.listen_addresses().remove(0);
    let other = start(2, vec![listener.address()]).await;
    other.connected_to(vec![listener.key]).await;
    listener.network.shutdown().await;
    other.connected_to(vec![]).await;
    // Knows no address of the other, so the call must come from there.
    let listener = start_at(1, &address, vec![caller(2)]).await;
    listener.connected_to(vec![other.key]).await;
}

#[tokio::test]
async fn a_node_too_slow_to_take_its_events_loses_the_oldest_gossip_and_refuses_questions() {
    let mut nodes = cluster(&[1, 2]).await;
    let (mut slow, first) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let said = u32::try_from(p2p::MAX_GOSSIP_WAITING_PER_PEER).unwrap() + 10;
    for i in 0..said {
        first.publish(&i.to_be_bytes()).await;
    }
    until(|| slow.peer(first.key).gossip_dropped == 10).await;
    let shown = slow.peer(first.key);
    assert_eq!(shown.gossip_waiting, p2p::MAX_GOSSIP_WAITING_PER_PEER);
    assert_eq!(slow.network.counts().gossip_dropped, 10);
    let ask = |network: Network| async move { network.ask(slow_key(), vec![]).await };
    let asking: Vec<_> = (0..MAX_OPEN_ASKS_PER_PEER)
        .map(|_| tokio::spawn(ask(first.network.clone())))
        .collect();
    until(|| slow.peer(first.key).asks_open == MAX_OPEN_ASKS_PER_PEER).await;
    drop(asking);
    // What it takes in the end is the latest, in order.
    let next = slow.next_gossip().await;
    assert_eq!(next, (first.key, 10_u32.to_be_bytes().to_vec()));
}

fn slow_key() -> protocol::identity::PeerKey {
    key(2)
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let first = start(1, vec![caller(2)]).await;
    // Nobody listens at the first; at the second is somebody else.
    let other = start(9, vec![caller(2)]).await;
    let mut addresses = vec!["/ip4/127.0.0.1/tcp/1".to_owned()];
    addresses.extend(other.network.listen_addresses());
    addresses.extend(first.network.listen_addresses());
    let second = start(
        2,
        vec![PeerAddress {
            key: first.key,
            addresses,
        }],
    )
    .await;
    second.connected_to(vec![first.key]).await;
    let listening = first.network.listen_addresses().remove(0);
    let address = second.peer(first.key).address.unwrap();
    assert!(address.starts_with(&listening), "{address}");
}

#[tokio::test]
async fn a_peer_shows_what_it_runs_how_far_it_is_and_why_it_is_away() {
    // Long enough that a busy machine does not take them for silent.
    let beat = Duration::from_secs(2);
    let first = start_with(1, &[TCP], vec![caller(2)], beat).await;
    let second = start(2, vec![first.address()]).await;
    let (first_key, second_key) = (first.key, second.key);
    let second = serve(second, Some);
    until(|| first.peer(second_key).heartbeats >= 3).await;
    let shown = first.peer(second_key);
    assert_eq!(shown.state, PeerState::Connected);
    assert_eq!(shown.why, None);
    let agent = format!("drawbridge/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(shown.agent, Some(agent));
    assert!(shown.rtt_us.unwrap() > 0);
    assert!(shown.sees_us_at.unwrap().starts_with("/ip4/127.0.0.1/tcp/"));
    assert!(first.network.counts().heartbeats >= 3);
    second.shutdown().await;
    until(|| first.peer(second_key).state == PeerState::Away).await;
    assert!(first.peer(second_key).why.is_some());
    // Nobody listens there any more: the reason for failing calls is shown.
    let lonely = start(
        3,
        vec![PeerAddress {
            key: first_key,
            addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
        }],
    )
    .await;
    until(|| {
        lonely
            .peer(first_key)
            .why
            .is_some_and(|why| why.contains("refused"))
    })
    .await;
}

#[tokio::test]
async fn a_node_that_does_not_look_at_its_events_is_shown_as_silent_until_it_does() {
    let beat = Duration::from_millis(300);
    let first = start_with(1, &[TCP], vec![caller(2)], beat).await;
    let hung = start(2, vec![first.address()]).await;
    until(|| first.network.counts().peers_silent >= 1).await;
    until(|| first.peer(hung.key).state == PeerState::Silent).await;
    assert_eq!(first.network.connected(), []);
    assert!(first.peer(hung.key).why.unwrap().contains("heartbeats"));
    assert!(first.network.counts().heartbeats_missed >= 3);
    // It comes back to life.
    let awake = hung.key;
    let _network = serve(hung, Some);
    first.connected_to(vec![awake]).await;
    let answer = within(first.network.ask(awake, b"there?".to_vec())).await;
    assert_eq!(answer.unwrap(), b"there?");
}

#[tokio::test]
async fn a_name_is_as_good_as_an_address() {
    let first = start(1, vec![caller(2)]).await;
    let mut named = first.address();
    for address in &mut named.addresses {
        *address = address.replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    }
    let second = start(2, vec![named]).await;
    second.connected_to(vec![first.key]).await;
}

#[tokio::test]
async fn after_a_shutdown_the_port_is_free_and_calls_say_so() {
    let first = start(1, vec![caller(2)]).await;
    let listen = first.network.listen_addresses().remove(0);
    let network = first.network.clone();
    let waiting = tokio::spawn(async move { network.ask(key(2), vec![]).await });
    first.network.shutdown().await;
    assert_eq!(within(waiting).await.unwrap(), Err(AskError::ShutDown));
    assert_eq!(
        first.network.publish(vec![]).await,
        Err(PublishError::ShutDown)
    );
    let again = start_at(1, &listen, vec![]).await;
    assert_eq!(again.network.listen_addresses(), [listen]);
}

#[tokio::test]
async fn wrong_settings_are_refused_with_the_setting_named() {
    let settings = |listen: &str, peers: Vec<PeerAddress>, network: &str| Settings {
        listen: vec![listen.to_owned()],
        peers,
        network: network.to_owned(),
        heartbeat: HEARTBEAT_INTERVAL,
    };
    let any = "/ip4/127.0.0.1/tcp/0";
    let refused = async |settings: Settings| {
        p2p::start(&identity(1), &settings)
            .await
            .expect_err("must not start")
    };
    for bad in [
        "127.0.0.1:7000",
        "/ip4/127.0.0.1/udp/7000",
        "/dns4/localhost/tcp/7000",
        "/memory/1",
        "",
    ] {
        let error = refused(settings(bad, vec![], NETWORK)).await;
        assert!(matches!(error, StartError::Address(_)), "{bad}: {error}");
    }
    let error = refused(settings(any, vec![], "a/b")).await;
    assert!(matches!(error, StartError::NetworkName(_)), "{error}");
    let error = refused(settings(any, vec![caller(2), caller(2)], NETWORK)).await;
    assert!(matches!(error, StartError::DuplicatePeer(_)), "{error}");
    let many = (0..=p2p::MAX_PEERS as u16).map(|i| {
        let mut secret = [0; 32];
        secret[..2].copy_from_slice(&i.to_be_bytes());
        let key = protocol::identity::Identity::from_secret(&secret).public();
        PeerAddress {
            key,
            addresses: vec![],
        }
    });
    let error = refused(settings(any, many.collect(), NETWORK)).await;
    assert!(matches!(error, StartError::TooManyPeers(_)), "{error}");
    let taken = start(3, vec![]).await;
    let address = &taken.network.listen_addresses()[0];
    let error = refused(settings(address, vec![], NETWORK)).await;
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
}
