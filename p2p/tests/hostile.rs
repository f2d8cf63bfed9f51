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
    identity::Keypair,
    noise, ping,
    request_response::{self, Codec, ProtocolSupport},
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use p2p::{GOSSIP_BURST, MAX_ASK_BYTES, MAX_GOSSIP_BYTES, Names};
use support::{NETWORK, Node, caller, cluster, identity, key, start, until, within};
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
    let mut liar = liar(9, &node);
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
    (node, liar)
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
async fn answer_to(liar: &mut Swarm<Liar>, node: &Node, data: Vec<u8>) -> Option<Vec<u8>> {
    let id = libp2p::identity::PublicKey::from(
        libp2p::identity::ed25519::PublicKey::try_from_bytes(&node.key.0).unwrap(),
    );
    liar.behaviour_mut()
        .ask
        .send_request(&id.to_peer_id(), data);
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
    let node = start(1, vec![caller(2)]).await;
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
    let friend = start(2, vec![node.address()]).await;
    node.connected_to(vec![friend.key]).await;
}

#[tokio::test]
async fn a_node_does_not_talk_to_a_stranger_who_answers_at_a_peers_address() {
    let stranger = start(9, vec![caller(1)]).await;
    let mut fake = stranger.address();
    fake.key = key(2);
    let node = start(1, vec![fake, caller(9)]).await;
    // The call is refused by us, whatever the stranger would like; it is refused again and again.
    until(|| stranger.network.counts().connections_refused >= 2).await;
    assert_eq!(node.network.connected(), []);
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
    let late = nodes[1].network.publish(b"still here".to_vec()).await;
    assert_eq!(late, Ok(()));
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
    let too_large = u32::try_from(MAX_ASK_BYTES + 1)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    assert_eq!(answer_to(&mut liar, &node, too_large).await, None);
    assert_eq!(answer_to(&mut liar, &node, vec![0, 0, 1, 0, 7]).await, None);
    assert_eq!(answer_to(&mut liar, &node, vec![0]).await, None);
    // A good one on the same connection is answered: status 0, length 2, "ok".
    let network = node.network.clone();
    let server = tokio::spawn(async move {
        loop {
            if let p2p::Event::Ask { data, reply, from } = node.next().await {
                assert_eq!((data.as_slice(), from), (b"hi".as_slice(), key(9)));
                reply.send(b"ok".to_vec());
                return node;
            }
        }
    });
    let fine = Node {
        key: key(1),
        network,
        events: tokio::sync::mpsc::channel(1).1,
    };
    let answer = answer_to(&mut liar, &fine, vec![0, 0, 0, 2, b'h', b'i']).await;
    assert_eq!(answer.unwrap(), [0, 0, 0, 0, 2, b'o', b'k']);
    let mut node = server.await.unwrap();
    assert!(
        node.events.try_recv().is_err(),
        "no other question came through"
    );
}

#[tokio::test]
async fn a_flood_is_cut_to_its_rate_while_others_get_through() {
    const FLOOD: u32 = 2 * GOSSIP_BURST;
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
        while let Ok(event) = node.events.try_recv() {
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
