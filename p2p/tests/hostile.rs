//! Peers that break the rules: strangers, garbage, floods, oversized messages. They are raw libp2p
//! swarms or sockets, because our own node would not send such things.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder,
    gossipsub::{self, MessageAuthenticity, ValidationMode},
    identify,
    identity::Keypair,
    noise, ping,
    request_response::{self, Codec, ProtocolSupport},
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use p2p::{GOSSIP_BURST, MAX_ASK_BYTES, MAX_GOSSIP_BYTES, Names, PeerState};
use protocol::identity::PeerKey;
use support::{
    NETWORK, Node, TCP, caller, cluster, identity, key, start, start_at, start_with, until, within,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{sleep, timeout},
};

/// Says whatever it likes.
#[derive(NetworkBehaviour)]
struct Liar {
    gossip: gossipsub::Behaviour,
    ask: request_response::Behaviour<Shouter>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// Writes its bytes as they are, without a length or a bound.
#[derive(Clone, Default)]
struct Shouter;

impl Codec for Shouter {
    type Protocol = libp2p::StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &Self::Protocol, _: &mut T) -> std::io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        Ok(vec![])
    }

    async fn read_response<T>(&mut self, _: &Self::Protocol, io: &mut T) -> std::io::Result<Vec<u8>>
    where
        T: futures::AsyncRead + Unpin + Send,
    {
        let mut data = Vec::new();
        futures::AsyncReadExt::read_to_end(io, &mut data).await?;
        Ok(data)
    }

    async fn write_request<T>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        data: Vec<u8>,
    ) -> std::io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        futures::AsyncWriteExt::write_all(io, &data).await
    }

    async fn write_response<T>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        data: Vec<u8>,
    ) -> std::io::Result<()>
    where
        T: futures::AsyncWrite + Unpin + Send,
    {
        futures::AsyncWriteExt::write_all(io, &data).await
    }
}

fn liar(seed: u8, calls: &Node) -> Swarm<Liar> {
    liar_called(seed, calls, Names::new(NETWORK).unwrap().node)
}

/// One that says of itself what it likes.
fn liar_called(seed: u8, calls: &Node, itself: String) -> Swarm<Liar> {
    let names = Names::new(NETWORK).unwrap();
    let key = Keypair::ed25519_from_bytes(identity(seed).secret_bytes()).unwrap();
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(names.gossip.clone())
        .validation_mode(ValidationMode::Strict)
        .max_transmit_size(16 * MAX_GOSSIP_BYTES)
        .connection_handler_queue_len(100_000)
        .flood_publish(true)
        .build()
        .unwrap();
    let mut gossip =
        gossipsub::Behaviour::new(MessageAuthenticity::Signed(key.clone()), config).unwrap();
    gossip.subscribe(&names.topic).unwrap();
    let ask = request_response::Behaviour::with_codec(
        Shouter,
        [(names.ask, ProtocolSupport::Full)],
        request_response::Config::default().with_request_timeout(Duration::from_secs(5)),
    );
    let identify =
        identify::Config::new(itself, key.public()).with_agent_version("liar".to_owned());
    let mut swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_| Liar {
            gossip,
            ask,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::default(),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    let address: Multiaddr = calls.network.listen_addresses()[0].parse().unwrap();
    swarm.dial(address).unwrap();
    swarm
}

/// A node that also knows node 2, and a liar on its list who knows that the node listens to gossip.
async fn node_and_liar() -> (Node, Swarm<Liar>) {
    let node = start(1, vec![caller(2), caller(9)]).await;
    let liar = subscribed(liar(9, &node)).await;
    (node, liar)
}

/// A liar that knows that somebody listens to gossip.
async fn subscribed(mut liar: Swarm<Liar>) -> Swarm<Liar> {
    within(async {
        loop {
            let event = liar.select_next_some().await;
            if let SwarmEvent::Behaviour(LiarEvent::Gossip(gossipsub::Event::Subscribed {
                ..
            })) = event
            {
                return;
            }
        }
    })
    .await;
    liar
}

fn peer_id(key: PeerKey) -> libp2p::PeerId {
    let key = libp2p::identity::ed25519::PublicKey::try_from_bytes(&key.0).unwrap();
    libp2p::identity::PublicKey::from(key).to_peer_id()
}

fn shout(liar: &mut Swarm<Liar>, data: Vec<u8>) {
    let topic = Names::new(NETWORK).unwrap().topic;
    liar.behaviour_mut().gossip.publish(topic, data).unwrap();
}

/// Lets the liar work until the future is done.
async fn while_running<T>(liar: &mut Swarm<Liar>, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(within(future));
    loop {
        tokio::select! {
            done = &mut future => return done,
            _ = liar.select_next_some() => {}
        }
    }
}

/// What the node answers to raw bytes on the question protocol; `None` if it hangs up.
async fn answer_to(liar: &mut Swarm<Liar>, node: PeerKey, data: Vec<u8>) -> Option<Vec<u8>> {
    liar.behaviour_mut().ask.send_request(&peer_id(node), data);
    within(async {
        loop {
            match liar.select_next_some().await {
                SwarmEvent::Behaviour(LiarEvent::Ask(request_response::Event::Message {
                    message: request_response::Message::Response { response, .. },
                    ..
                })) => return (!response.is_empty()).then_some(response),
                SwarmEvent::Behaviour(LiarEvent::Ask(
                    request_response::Event::OutboundFailure { .. },
                )) => return None,
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_stranger_is_refused_at_the_handshake() {
    for listen in [TCP] {
        let node = start_at(1, listen, vec![caller(2)]).await;
        let mut stranger = liar(9, &node);
        within(async {
            loop {
                let event = stranger.select_next_some().await;
                if let SwarmEvent::ConnectionClosed { .. }
                | SwarmEvent::OutgoingConnectionError { .. } = event
                {
                    return;
                }
            }
        })
        .await;
        until(|| node.network.counts().connections_refused == 1).await;
        assert_eq!(node.network.connected(), []);
        // One who is on the list still gets in.
        let friend = start_at(2, listen, vec![node.address()]).await;
        node.connected_to(vec![friend.key]).await;
    }
}

#[tokio::test]
async fn a_node_does_not_talk_to_a_stranger_who_answers_at_a_peers_address() {
    for listen in [TCP] {
        let stranger = start_at(9, listen, vec![caller(1)]).await;
        let mut fake = stranger.address();
        fake.key = key(2);
        let node = start_at(1, listen, vec![fake, caller(9)]).await;
        until(|| {
            let why = node.peer(key(2)).why.unwrap_or_default();
            why.starts_with("somebody else answers")
        })
        .await;
        assert_eq!(node.network.connected(), []);
        assert_eq!(stranger.network.connected(), []);
    }
}

#[tokio::test]
async fn garbage_on_the_port_does_no_harm() {
    let mut nodes = cluster(&[1, 2]).await;
    let address = nodes[0].network.listen_addresses()[0].clone();
    let port: u16 = address.rsplit('/').next().unwrap().parse().unwrap();
    let mut held = Vec::new();
    for i in 0..50_u8 {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // Some say nothing, some begin a message and never end it, some send no message at all. Only the
        // last are refused at once; the others hold their places during what follows.
        let garbage: &[u8] = match i % 3 {
            0 => &[],
            1 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            _ => &[0xff; 4096],
        };
        // It may have hung up already, which is fine.
        let _ = socket.write_all(garbage).await;
        held.push(socket);
    }
    until(|| nodes[0].network.counts().connections_refused >= 16).await;
    nodes[1].publish(b"still here").await;
    assert_eq!(nodes[0].next_gossip().await.1, b"still here");
    drop(held);
}

#[tokio::test]
async fn gossip_above_the_bound_is_refused_by_the_receiver() {
    let (mut node, mut liar) = node_and_liar().await;
    shout(&mut liar, vec![1; MAX_GOSSIP_BYTES + 1]);
    until_counted(&node, &mut liar, |counts| counts.gossip_invalid == 1).await;
    // Larger than any frame may be: the stream ends, and the node lives on.
    shout(&mut liar, vec![2; 4 * MAX_GOSSIP_BYTES]);
    while_running(&mut liar, sleep(Duration::from_millis(300))).await;
    let friend = start(2, vec![node.address()]).await;
    friend.publish(b"fine").await;
    let (from, data) = while_running(&mut liar, node.next_gossip()).await;
    assert_eq!((from, data.as_slice()), (friend.key, b"fine".as_slice()));
}

async fn until_counted(
    node: &Node,
    liar: &mut Swarm<Liar>,
    condition: impl Fn(p2p::Counts) -> bool,
) {
    while_running(liar, until(|| condition(node.network.counts()))).await;
}

#[tokio::test]
async fn questions_above_the_bound_or_cut_short_are_refused_by_the_receiver() {
    let (mut node, mut liar) = node_and_liar().await;
    let me = node.key;
    let too_large = u32::try_from(MAX_ASK_BYTES + 1).unwrap().to_be_bytes();
    let too_large = [&[0], too_large.as_slice()].concat();
    for bad in [
        too_large,
        vec![0, 0, 0, 1, 0, 7],
        vec![0, 0],
        vec![9, 0, 0, 0, 0],
        vec![],
    ] {
        assert_eq!(answer_to(&mut liar, me, bad).await, None);
    }
    // A good one on the same connection is answered: status 0, length 2, "ok".
    let server = tokio::spawn(async move {
        loop {
            if let p2p::Event::Ask { data, reply, from } = node.next().await {
                assert_eq!((data.as_slice(), from), (b"hi".as_slice(), key(9)));
                reply.send(b"ok".to_vec());
                return node;
            }
        }
    });
    let answer = answer_to(&mut liar, me, vec![0, 0, 0, 0, 2, b'h', b'i']).await;
    assert_eq!(answer.unwrap(), [0, 0, 0, 0, 2, b'o', b'k']);
    let mut node = server.await.unwrap();
    let other = node.events.try_recv();
    assert!(other.is_none(), "no other question came through: {other:?}");
}

#[tokio::test]
async fn a_peer_of_another_version_or_vault_is_told_apart_and_not_talked_to() {
    let (ours, other) = (
        Names::new(NETWORK).unwrap(),
        Names::new("signet-other").unwrap(),
    );
    for (itself, why) in [
        (
            ours.node.replace("/1/", "/2/"),
            "speaks version 2, this node speaks 1: upgrade this node",
        ),
        (ours.node.replace("/1/", "/0/"), "speaks version 0"),
        (
            other.node,
            "is of another vault or roster (network signet-other",
        ),
        ("kubo/0.1".to_owned(), "is no Drawbridge node"),
    ] {
        let node = start(1, vec![caller(9)]).await;
        let mut liar = liar_called(9, &node, itself.clone());
        let told = until(|| {
            let shown = node.peer(key(9));
            shown.state == PeerState::Unfit && shown.why.is_some_and(|said| said.contains(why))
        });
        while_running(&mut liar, told).await;
        assert_eq!(node.network.connected(), [], "{itself}");
        assert_eq!(node.network.counts().peers_unfit, 1);
        assert_eq!(node.peer(key(9)).agent.as_deref(), Some("liar"));
        // It was hung up on.
        assert!(!liar.is_connected(&peer_id(node.key)) || hung_up(&mut liar).await);
    }
}

async fn hung_up(liar: &mut Swarm<Liar>) -> bool {
    within(async {
        while !matches!(
            liar.select_next_some().await,
            SwarmEvent::ConnectionClosed { .. }
        ) {}
        true
    })
    .await
}

/// A peer that takes part and then stops to read: its swarm is not driven any more, so its buffers fill, then
/// the connection's, then the node's queue for it.
#[tokio::test]
async fn a_peer_that_reads_nothing_slows_nobody_and_is_called_silent() {
    // Long enough that all are connected, and the queue is full, before the one that reads nothing is cut off.
    let beat = Duration::from_secs(2);
    let node = start_with(1, &[TCP], vec![caller(2), caller(9)], beat).await;
    let mut stuck = subscribed(liar(9, &node)).await;
    let friend = start(2, vec![node.address()]).await;
    while_running(&mut stuck, node.connected_to(vec![key(2), key(9)])).await;
    let friend_key = friend.key;
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let mut events = friend.events;
    let network = friend.network;
    tokio::spawn(async move {
        let _network = network;
        while let Some(event) = events.recv().await {
            if let p2p::Event::Gossip { data, .. } = event {
                let _ = heard.send(data);
            }
        }
    });
    // Connected is not yet subscribed: what is sent before that the friend does not get.
    within(async {
        while hears.is_empty() {
            // A peer that is not there yet is no error here.
            let _ = node.network.publish(b"hello".to_vec()).await;
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Nobody drives `stuck` from here on. More than the sockets and the queue for it can hold.
    let mut unsent = 0;
    for i in 0_u32.. {
        let mut large = vec![0; MAX_GOSSIP_BYTES];
        large[..4].copy_from_slice(&i.to_be_bytes());
        let published = node.network.publish(large.clone()).await;
        if published == Err(p2p::PublishError::TooFast) {
            sleep(Duration::from_millis(10)).await;
        } else {
            assert_eq!(published, Ok(()));
            // The friend has each before the next is sent: it waits for nobody.
            within(async { while hears.recv().await.unwrap() != large {} }).await;
        }
        unsent = node.peer(key(9)).gossip_unsent;
        if unsent > 0 {
            break;
        }
    }
    assert!(unsent > 0);
    until(|| node.peer(key(9)).state == PeerState::Silent).await;
    assert_eq!(node.network.connected(), [friend_key]);
    assert_eq!(node.peer(friend_key).gossip_unsent, 0);
    // The connection itself goes too, although nobody takes what is left to be written.
    until(|| node.peer(key(9)).transport.is_none()).await;
    drop(stuck);
}

#[tokio::test]
async fn a_flood_is_cut_to_its_rate_while_others_get_through() {
    // Without an end in practice: however slow the machine, the rate does not make up for it.
    const FLOOD: u32 = 50 * GOSSIP_BURST;
    let mut node = start(1, vec![caller(2), caller(9)]).await;
    let friend = start(2, vec![node.address()]).await;
    node.connected_to(vec![friend.key]).await;
    let mut liar = liar(9, &node);
    let topic = Names::new(NETWORK).unwrap().topic;
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        while sent < FLOOD {
            // As fast as the connection takes it.
            while sent < FLOOD
                && liar
                    .behaviour_mut()
                    .gossip
                    .publish(topic.clone(), sent.to_be_bytes())
                    .is_ok()
            {
                sent += 1;
                if sent % 100 == 0 {
                    break;
                }
            }
            let _ = timeout(Duration::from_millis(5), liar.select_next_some()).await;
        }
        loop {
            liar.select_next_some().await;
        }
    });
    let (mut from_liar, mut from_friend) = (0_u32, 0_u32);
    let mut said = 0_u32;
    let started = tokio::time::Instant::now();
    while node.network.counts().gossip_over_rate < 100 || from_friend < 20 {
        assert!(
            started.elapsed() < support::PATIENCE,
            "{:?}",
            node.network.counts()
        );
        if friend
            .network
            .publish(format!("friend {said}").into_bytes())
            .await
            .is_ok()
        {
            said += 1;
        }
        while let Some(event) = node.events.try_recv() {
            match event {
                p2p::Event::Gossip { from, .. } if from == key(9) => from_liar += 1,
                p2p::Event::Gossip { .. } => from_friend += 1,
                _ => {}
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    let seconds = u32::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!(
        from_liar <= GOSSIP_BURST + seconds * p2p::GOSSIP_RATE,
        "{from_liar}"
    );
    assert!(from_liar < FLOOD);
    flood.abort();
}
