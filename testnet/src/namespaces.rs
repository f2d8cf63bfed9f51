//! Hosts of their own on one machine: each node in a Linux network namespace with two devices.
//!
//! ```text
//! wide  10.x.0.k   to the other nodes, over a line with delay and loss
//! own   10.x.1.k   to its Bitcoin node and its users, which are outside, over a perfect line
//! ```
//!
//! Needs root, `ip` (Debian: iproute2) and `/dev/net/tun`. This process carries, delays and loses the packets (`line.rs`), so
//! that it works alike on kernels with and without `netem`, and can change while the nodes run.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use tokio_tun::Tun;

use crate::line::{Line, Quality, Setting};

const TUN_DEVICE: &str = "/dev/net/tun";
/// Names of our namespaces begin so; then comes the id of the process that made them.
const PREFIX: &str = "drawbridge-";
/// Hosts in one network.
const MAX_HOSTS: usize = 250;
/// The outside's place in the perfect network.
const OUTSIDE: u8 = 254;

/// A node's host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its namespace.
    pub namespace: String,
    /// Where the other nodes reach it.
    pub wide: Ipv4Addr,
    /// Where its users reach it.
    pub own: Ipv4Addr,
}

/// The hosts; gone when dropped.
#[derive(Debug)]
pub struct Namespaces {
    /// One for each node.
    pub hosts: Vec<Host>,
    /// Where the hosts reach the outside.
    pub outside: Ipv4Addr,
    /// Who delays and loses packets, for people.
    pub emulator: &'static str,
    wide: Option<Line>,
    own: Option<Line>,
}

/// Why this machine can't have namespaces; `None` if it can.
pub fn obstacle() -> Option<String> {
    if !Path::new(TUN_DEVICE).exists() {
        return Some(format!("the kernel has no {TUN_DEVICE}"));
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    let made = ip(&["netns", "add", &probe]);
    let _ = ip(&["netns", "del", &probe]);
    made.err().map(|error| {
        format!("no network namespace can be made (root and iproute2 are needed): {error:#}")
    })
}

impl Namespaces {
    /// Makes `count` hosts with lines of this quality between them.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn new(count: usize, quality: &Setting) -> anyhow::Result<Self> {
        ensure!(count <= MAX_HOSTS, "at most {MAX_HOSTS} hosts");
        remove_stale();
        // Two networks on one machine do not meet.
        let process = std::process::id();
        let net = 64_u8.saturating_add(u8::try_from(process % 128)?);
        let outside = Ipv4Addr::new(10, net, 1, OUTSIDE);
        let mut namespaces = Self {
            hosts: Vec::new(),
            outside,
            emulator: "this process",
            wide: None,
            own: None,
        };
        let (mut wide, mut own) = (Vec::new(), Vec::new());
        let device = tun(&format!("db{process}o"))?;
        configure(&[], device.name(), outside)?;
        own.push((outside, device));
        for number in 1..=u8::try_from(count)? {
            let host = Host {
                namespace: format!("{PREFIX}{process}-{number}"),
                wide: Ipv4Addr::new(10, net, 0, number),
                own: Ipv4Addr::new(10, net, 1, number),
            };
            ip(&["netns", "add", &host.namespace])?;
            // Known from here on, so that it is removed whatever comes.
            namespaces.hosts.push(host.clone());
            ip(&["-n", &host.namespace, "link", "set", "lo", "up"])?;
            for (devices, letter, address) in
                [(&mut wide, 'w', host.wide), (&mut own, 'o', host.own)]
            {
                let device = tun(&format!("db{process}{letter}{number}"))?;
                ip(&["link", "set", device.name(), "netns", &host.namespace])?;
                configure(&["-n", &host.namespace], device.name(), address)?;
                devices.push((address, device));
            }
        }
        namespaces.wide = Some(Line::between(wide, quality));
        namespaces.own = Some(Line::between(own, &Setting::new(Quality::PERFECT)));
        Ok(namespaces)
    }

    /// Packets between nodes that were carried, and that were lost as far as this process lost them.
    pub fn packets(&self) -> (u64, u64) {
        self.wide.as_ref().map(Line::packets).unwrap_or_default()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for host in &self.hosts {
            if let Err(error) = ip(&["netns", "del", &host.namespace]) {
                tracing::warn!(namespace = host.namespace, %error, "a namespace is left");
            }
        }
    }
}

fn tun(name: &str) -> anyhow::Result<Tun> {
    let mut devices = Tun::builder()
        .name(name)
        .build()
        .with_context(|| format!("the network device {name} can't be made"))?;
    devices.pop().context("no network device")
}

fn configure(place: &[&str], device: &str, address: Ipv4Addr) -> anyhow::Result<()> {
    let with_net = format!("{address}/24");
    ip(&[place, &["addr", "add", &with_net, "dev", device]].concat())?;
    ip(&[place, &["link", "set", device, "up"]].concat())
}

/// Namespaces of processes that were killed.
fn remove_stale() {
    let Ok(listed) = Command::new("ip").args(["netns", "list"]).output() else {
        return;
    };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} can't be run"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}
