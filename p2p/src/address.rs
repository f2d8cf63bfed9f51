//! Where a node listens and where its peers are: multiaddresses over TCP or QUIC. A host may be a name; it
//! says only where to call. Who answers there is proved by the handshake, so a lying name server can
//! keep us away from a peer and nothing more.

use std::{fmt, io, net::IpAddr, str::FromStr, time::Duration};

use libp2p::{Multiaddr, multiaddr::Protocol};
use serde::Serialize;

/// For the system to find out where a name leads.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one name, this many addresses are called.
const MAX_RESOLVED: usize = 4;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP with Noise and Yamux.
    Tcp,
    /// QUIC, which is UDP with TLS 1.3.
    Quic,
}

impl Transport {
    /// Of an address that this crate has made or taken.
    pub(crate) fn of(address: &Multiaddr) -> Self {
        if address.iter().any(|part| matches!(part, Protocol::QuicV1)) {
            Self::Quic
        } else {
            Self::Tcp
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        })
    }
}

/// Which kinds of IP address a name may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

/// Where a peer can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    full: Multiaddr,
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip,
    Name(String, Family),
}

/// Not an address over TCP or QUIC.
#[derive(Debug)]
pub(crate) struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let full: Multiaddr = text.parse().map_err(|_| NotAnAddress)?;
        let mut parts = full.iter();
        let host = match parts.next() {
            Some(Protocol::Ip4(_) | Protocol::Ip6(_)) => Host::Ip,
            Some(Protocol::Dns(name)) => Host::Name(name.into_owned(), Family::Any),
            Some(Protocol::Dns4(name)) => Host::Name(name.into_owned(), Family::V4),
            Some(Protocol::Dns6(name)) => Host::Name(name.into_owned(), Family::V6),
            _ => return Err(NotAnAddress),
        };
        let port = match (parts.next(), parts.next(), parts.next()) {
            (Some(Protocol::Tcp(port)), None, None) => port,
            (Some(Protocol::Udp(port)), Some(Protocol::QuicV1), None) => port,
            _ => return Err(NotAnAddress),
        };
        Ok(Self { full, host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.full.fmt(f)
    }
}

impl Address {
    /// To listen there, which takes an IP address.
    pub fn to_listen(&self) -> Option<Multiaddr> {
        (self.host == Host::Ip).then(|| self.full.clone())
    }

    /// The IP addresses to call.
    ///
    /// # Errors
    /// The name leads nowhere, or the system does not say in time.
    pub async fn resolve(self) -> io::Result<Vec<Multiaddr>> {
        let Host::Name(name, family) = &self.host else {
            return Ok(vec![self.full]);
        };
        let lookup = tokio::net::lookup_host((name.as_str(), self.port));
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, lookup)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved"))??;
        let wanted = found.map(|address| address.ip()).filter(|ip| match family {
            Family::Any => true,
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
        });
        let addresses: Vec<_> = wanted.take(MAX_RESOLVED).map(|ip| self.at(ip)).collect();
        if addresses.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name leads nowhere",
            ));
        }
        Ok(addresses)
    }

    fn at(&self, ip: IpAddr) -> Multiaddr {
        let host = Multiaddr::from(ip);
        match Transport::of(&self.full) {
            Transport::Tcp => host.with(Protocol::Tcp(self.port)),
            Transport::Quic => host.with(Protocol::Udp(self.port)).with(Protocol::QuicV1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_a_tcp_or_quic_port() {
        for good in [
            "/ip4/192.0.2.1/tcp/7000",
            "/ip6/2001:db8::1/tcp/7000",
            "/dns4/operator.example/tcp/7000",
            "/ip6/2001:db8::1/udp/7000/quic-v1",
        ] {
            let address: Address = good.parse().unwrap();
            assert_eq!(address.to_string(), good);
            let listens = address.to_listen().is_some();
            assert_eq!(listens, good.starts_with("/ip"), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:7000",
            "/memory/1",
            "/ip4/192.0.2.1",
            "/ip4/192.0.2.1/udp/7000",
            "/ip4/192.0.2.1/udp/7000/quic",
            "/ip4/192.0.2.1/tcp/7000/ws",
            "/ip4/192.0.2.1/tcp/7000/quic-v1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_becomes_addresses_of_its_family_with_the_same_port() {
        let resolve = async |text: &str| text.parse::<Address>().unwrap().resolve().await;
        let found = resolve("/dns4/localhost/tcp/7001").await.unwrap();
        let expected: Multiaddr = "/ip4/127.0.0.1/tcp/7001".parse().unwrap();
        assert!(found.contains(&expected), "{found:?}");
        resolve("/dns4/no-such-host.invalid/tcp/1")
            .await
            .unwrap_err();
    }
}
