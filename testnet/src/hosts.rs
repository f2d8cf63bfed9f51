//! Where the nodes of a local network live, and how far apart: side by side on loopback, or on hosts of their own with
//! delay and loss between them. Where this system makes no network namespaces, each connection goes through a relay that
//! delays instead.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    line::{Quality, Relay, Setting},
    namespaces::{self, Namespaces},
    report::Report,
};

/// Each host has its ports for itself.
const PEER_PORT: u16 = 7_000;
const HTTP_PORT: u16 = 8_080;

/// Which hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// All nodes on this one.
    #[default]
    Loopback,
    /// A network namespace for each.
    Namespaces,
}

/// What the nodes talk over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// TCP with Noise.
    #[default]
    Tcp,
    /// QUIC, which is UDP with TLS 1.3.
    Quic,
}

impl Transport {
    fn address(self, ip: Ipv4Addr, port: u16) -> String {
        match self {
            Self::Tcp => format!("/ip4/{ip}/tcp/{port}"),
            Self::Quic => format!("/ip4/{ip}/udp/{port}/quic-v1"),
        }
    }
}

/// The hosts of a network.
#[derive(Debug)]
pub struct Hosts {
    lines: Lines,
    transport: Transport,
    quality: Setting,
    /// What people should know about them.
    pub description: String,
}

#[derive(Debug)]
enum Lines {
    Loopback,
    Namespaces(Namespaces),
    Relays(Vec<Relay>),
}

/// One node's place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it listens for the others.
    pub listen: String,
    /// Where the others find it.
    pub address: String,
    /// Where it listens for its users.
    pub http: String,
    /// Its namespace.
    pub namespace: Option<String>,
}

impl Place {
    /// What starts a node's program here; in a namespace, a script in the node's folder.
    ///
    /// # Errors
    /// When the script can't be written.
    pub fn program(&self, folder: &Path, program: PathBuf) -> anyhow::Result<PathBuf> {
        let Some(namespace) = &self.namespace else {
            return Ok(program);
        };
        let script = folder.join("on-its-host.sh");
        let text = format!(
            "#!/bin/sh\nexec ip netns exec {namespace} '{}' \"$@\"\n",
            program.display()
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700))?;
        Ok(script)
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            lines: Lines::Loopback,
            transport: Transport::Tcp,
            quality: Setting::new(Quality::PERFECT),
            description: "all nodes on one host".to_owned(),
        }
    }
}

impl Hosts {
    /// Makes hosts for `count` nodes.
    ///
    /// # Errors
    /// What the system refuses; QUIC where relays must delay the connections, which are TCP's.
    pub fn new(
        kind: Kind,
        transport: Transport,
        count: usize,
        quality: Quality,
    ) -> anyhow::Result<Self> {
        if kind == Kind::Loopback {
            return Ok(Self {
                transport,
                ..Self::default()
            });
        }
        let setting = Setting::new(quality);
        let milliseconds = quality.delay.as_millis();
        if let Some(why) = namespaces::obstacle() {
            anyhow::ensure!(
                transport == Transport::Tcp,
                "no hosts of their own: {why}; relays delay TCP only, so leave out --transport quic"
            );
            return Ok(Self {
                lines: Lines::Relays(Vec::new()),
                transport,
                quality: setting,
                description: format!(
                    "NO hosts of their own: {why}. Every connection goes through a relay that delays by \
                     {milliseconds} ms each way instead, and loses nothing"
                ),
            });
        }
        let namespaces = Namespaces::new(count, &setting)?;
        Ok(Self {
            description: format!(
                "{count} hosts in network namespaces, {milliseconds} ms one way, {} % loss, by {}",
                quality.loss_percent, namespaces.emulator
            ),
            lines: Lines::Namespaces(namespaces),
            transport,
            quality: setting,
        })
    }

    /// Are there delays?
    pub fn are_apart(&self) -> bool {
        !matches!(self.lines, Lines::Loopback)
    }

    /// From here on, no delay and no loss.
    pub fn bring_together(&self) {
        self.quality.set(Quality::PERFECT);
    }

    /// Where Bitcoin's node is found from the hosts, if not on loopback.
    pub fn outside(&self) -> Option<Ipv4Addr> {
        match &self.lines {
            Lines::Namespaces(namespaces) => Some(namespaces.outside),
            Lines::Loopback | Lines::Relays(_) => None,
        }
    }

    /// Packets between the nodes that were carried, and lost.
    pub fn packets(&self) -> Option<(u64, u64)> {
        match &self.lines {
            Lines::Namespaces(namespaces) => Some(namespaces.packets()),
            Lines::Loopback | Lines::Relays(_) => None,
        }
    }

    /// The place of the next node, each to be asked for once, in turn from 0.
    ///
    /// # Errors
    /// No free port, or more nodes than hosts.
    pub fn place(&mut self, number: usize) -> anyhow::Result<Place> {
        match &mut self.lines {
            Lines::Namespaces(namespaces) => {
                let host = namespaces
                    .hosts
                    .get(number)
                    .context("more nodes than hosts")?;
                let listen = self.transport.address(host.wide, PEER_PORT);
                Ok(Place {
                    address: listen.clone(),
                    listen,
                    http: format!("{}:{HTTP_PORT}", host.own),
                    namespace: Some(host.namespace.clone()),
                })
            }
            Lines::Loopback | Lines::Relays(_) => {
                let port = free_port()?;
                let mut place = Place {
                    listen: self.transport.address(Ipv4Addr::LOCALHOST, port),
                    address: self.transport.address(Ipv4Addr::LOCALHOST, port),
                    http: format!("127.0.0.1:{}", free_port()?),
                    namespace: None,
                };
                if let Lines::Relays(relays) = &mut self.lines {
                    let relay = Relay::to(port, self.quality.clone())?;
                    place.address = self.transport.address(Ipv4Addr::LOCALHOST, relay.port());
                    relays.push(relay);
                }
                Ok(place)
            }
        }
    }
}

/// A loopback port that is free now.
///
/// # Errors
/// There is none.
pub fn free_port() -> anyhow::Result<u16> {
    // Below the ports of outgoing connections: one of those may take a port before the node listens on it.
    const FIRST: u32 = 20_000;
    const PORTS: u32 = 12_000;
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST.saturating_add(start.wrapping_add(asked).checked_rem(PORTS).unwrap_or(0));
        let port = u16::try_from(port)?;
        let here = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(here).is_ok() && UdpSocket::bind(here).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port from {FIRST} on is free")
}

/// What signing took, first proposal to verified signatures, in ms: the first batch with the delay, and the last without,
/// which is what the nodes compute.
pub fn signing_ms(report: &Report) -> Option<(u64, u64)> {
    let (first, last) = (report.batches.first()?, report.batches.last()?);
    if first.sequence == last.sequence {
        return None;
    }
    Some((first.signing_ms?, last.signing_ms?))
}

/// How many round trips the first batch's signing took, in words.
pub fn round_trips(report: &Report, hosts: &Hosts, delay: Duration) -> String {
    let Some((apart, compute)) = signing_ms(report) else {
        return "  round trips   not counted: there are no two batches signed here\n".to_owned();
    };
    let trip = (2 * delay.as_millis()).max(1);
    let count = |ms: u64| ms as f64 / trip as f64;
    let mut text = format!(
        "  hosts         {}\n  signing       {apart} ms with the delay (first batch), {compute} ms without (last batch: compute)\n  \
         round trips   ({apart} - {compute}) / {trip} ms = {:.1}\n",
        hosts.description,
        count(apart.saturating_sub(compute)),
    );
    if let (Some(first), Some(last)) = (report.batches.first(), report.batches.last()) {
        let (a, b) = (&first.stage_ms, &last.stage_ms);
        for (what, with, without) in [
            ("proposal out, body asked for", a.gossip, b.gossip),
            (
                "body back, data kept by the others (S8), accept",
                a.verify,
                b.verify,
            ),
            ("waiting for t accepts", a.round1, b.round1),
            ("sign request, shares (round 2)", a.round2, b.round2),
        ] {
            let (with, without) = (with.unwrap_or(0), without.unwrap_or(0));
            text.push_str(&format!(
                "                {:>4.1}  {what}: {with} ms, {without} ms without\n",
                count(with.saturating_sub(without)),
            ));
        }
    }
    if let Some((carried, lost)) = hosts.packets() {
        text.push_str(&format!("  packets       {carried} carried, {lost} lost\n"));
    }
    text
}
