//! A line between hosts: takes each IPv4 packet that one network device sends and gives it to the device that
//! has its destination, after a delay, or loses it. It does what `tc netem` does, on kernels that have none, to
//! the real packets of the real TCP and QUIC. And a [`Relay`], which delays the bytes of TCP connections, for systems on
//! which packets are out of reach.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::Rng as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_tun::Tun;

/// Packets on their way to one host; more are lost, as in a router.
const MAX_PACKETS: usize = 8_192;
/// Longest packet that a device sends.
const MAX_PACKET_BYTES: usize = 65_536;

/// How good a line is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// One way.
    pub delay: Duration,
    /// Lost packets out of 100.
    pub loss_percent: f64,
}

impl Quality {
    /// No delay, no loss.
    pub const PERFECT: Self = Self {
        delay: Duration::ZERO,
        loss_percent: 0.0,
    };
}

/// How good lines are now.
#[derive(Clone, Debug)]
pub struct Setting(Arc<Mutex<Quality>>);

impl Setting {
    /// So good, until it is set again.
    pub fn new(quality: Quality) -> Self {
        Self(Arc::new(Mutex::new(quality)))
    }

    /// For what is sent from now on.
    pub fn set(&self, quality: Quality) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = quality;
    }

    /// As it is now.
    pub fn get(&self) -> Quality {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a line has done.
#[derive(Debug, Default)]
struct Counters {
    carried: AtomicU64,
    lost: AtomicU64,
}

/// A line that works until it is dropped.
#[derive(Debug)]
pub struct Line {
    counters: Arc<Counters>,
    tasks: Vec<JoinHandle<()>>,
}

impl Line {
    /// Connects devices, each with its host's address.
    pub fn between(devices: Vec<(Ipv4Addr, Tun)>, quality: &Setting) -> Self {
        let counters = Arc::new(Counters::default());
        let mut ends = HashMap::new();
        let mut tasks = Vec::new();
        let mut readers = Vec::new();
        for (address, device) in devices {
            let device = Arc::new(device);
            let (sender, receiver) = mpsc::channel(MAX_PACKETS);
            ends.insert(address, sender);
            tasks.push(tokio::spawn(deliver(device.clone(), receiver)));
            readers.push(device);
        }
        let ends = Arc::new(ends);
        for device in readers {
            let carrying = carry(device, ends.clone(), quality.clone(), counters.clone());
            tasks.push(tokio::spawn(carrying));
        }
        Self { counters, tasks }
    }

    /// Packets carried, and packets lost.
    pub fn packets(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.counters.carried), read(&self.counters.lost))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

type Packet = (Instant, Vec<u8>);

/// Takes what one host sends.
async fn carry(
    device: Arc<Tun>,
    ends: Arc<HashMap<Ipv4Addr, mpsc::Sender<Packet>>>,
    setting: Setting,
    counters: Arc<Counters>,
) {
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    // An error means that the device is gone.
    while let Ok(length) = device.recv(&mut buffer).await {
        let packet = buffer.get(..length).unwrap_or_default();
        let Some(end) = destination(packet).and_then(|address| ends.get(&address)) else {
            continue;
        };
        let quality = setting.get();
        let is_lost = rand::thread_rng().gen_range(0.0..100.0) < quality.loss_percent;
        let due = Instant::now() + quality.delay;
        let counter = if is_lost || end.try_send((due, packet.to_vec())).is_err() {
            &counters.lost
        } else {
            &counters.carried
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Gives one host what is sent to it. All packets have the same delay, so they come in order of time; those behind one of an
/// earlier, longer delay wait for it.
async fn deliver(device: Arc<Tun>, mut packets: mpsc::Receiver<Packet>) {
    while let Some((due, packet)) = packets.recv().await {
        sleep_until(due).await;
        // A device that is down loses packets, as a cable that is not plugged in.
        let _ = device.send(&packet).await;
    }
}

/// Of an IPv4 packet (RFC 791, section 3.1).
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let version = packet.first()? >> 4;
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    (version == 4).then(|| address.into())
}

/// Stands before a port on loopback and delays what goes through, both ways. It loses nothing: TCP's own repetitions are
/// below what it sees.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    task: JoinHandle<()>,
}

impl Relay {
    /// Stands before that port.
    ///
    /// # Errors
    /// When there is no port for it.
    pub fn to(port: u16, setting: Setting) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let own = listener.local_addr()?.port();
        let listener = TcpListener::from_std(listener)?;
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let task = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                tokio::spawn(relay(caller, target, setting.clone()));
            }
        });
        Ok(Self { port: own, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(caller: TcpStream, target: SocketAddr, setting: Setting) {
    let Ok(called) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (caller.set_nodelay(true), called.set_nodelay(true));
    let (from_caller, to_caller) = caller.into_split();
    let (from_called, to_called) = called.into_split();
    tokio::join!(
        pipe(from_caller, to_called, setting.clone()),
        pipe(from_called, to_caller, setting),
    );
}

/// Until one end closes; what is under way still arrives.
async fn pipe(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, setting: Setting) {
    let (sender, mut receiver) = mpsc::channel::<Packet>(MAX_PACKETS);
    let read = async move {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + setting.get().delay;
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send((due, bytes)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_read_from_ipv4_packets_only() {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[16..].copy_from_slice(&[10, 77, 0, 3]);
        assert_eq!(destination(&packet), Some(Ipv4Addr::new(10, 77, 0, 3)));
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&packet[..19]), None);
        assert_eq!(destination(&[]), None);
    }

    #[tokio::test]
    async fn a_relay_delays_both_ways_and_keeps_the_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = [0; 6];
            stream.read_exact(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
        });
        let delay = Duration::from_millis(30);
        let quality = Quality {
            delay,
            loss_percent: 0.0,
        };
        let relay = Relay::to(port, Setting::new(quality)).unwrap();
        let began = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port()))
            .await
            .unwrap();
        for part in [b"abc", b"def"] {
            stream.write_all(part).await.unwrap();
        }
        let mut echo = [0; 6];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"abcdef");
        assert!(began.elapsed() >= 2 * delay, "no delay can be shorter");
    }
}
