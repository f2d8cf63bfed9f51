//! Hosts that each have a machine like this one to themselves, and a network between them that only delays. What a
//! host does takes it as long as it took here, on its own clock; hosts do not wait for one another's work.
//!
//! ```text
//! a message arrives --> its host begins when it is free --> ends after what the work took here --> what it sends arrives
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{MEMORY, machine::Took};

/// What a host sends: to whom, and the encoded message.
pub type Sent = (usize, Arc<[u8]>);

/// What hosts do.
pub trait Hosts {
    /// A message arrives, and its host has time for it.
    fn take(&mut self, now: Duration, to: usize, from: usize, message: &[u8]) -> Vec<Sent>;

    /// How long after what it has just done the host wants to be woken, by an empty message from itself.
    fn alarm(&mut self) -> Option<Duration>;

    /// Whether the session is over.
    fn is_over(&self) -> bool;
}

/// What went through a host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub messages: usize,
    pub bytes: usize,
}

/// The network.
pub struct Network {
    /// One way.
    delay: Duration,
    under_way: BTreeMap<(Duration, u64), Parcel>,
    parcels: u64,
    free: Vec<Took>,
    traffic: Vec<Traffic>,
    held: Vec<isize>,
    peak: Vec<isize>,
}

struct Parcel {
    to: usize,
    from: usize,
    message: Arc<[u8]>,
    /// When it was sent, on the clock that counts CPU time only.
    cpu: Duration,
}

impl Network {
    pub fn new(hosts: usize, delay: Duration) -> Self {
        Self {
            delay,
            under_way: BTreeMap::new(),
            parcels: 0,
            free: vec![Took::default(); hosts],
            traffic: vec![Traffic::default(); hosts],
            held: vec![0; hosts],
            peak: vec![0; hosts],
        }
    }

    /// Sends these messages now.
    pub fn send(&mut self, from: usize, messages: Vec<Sent>) {
        let now = self.free[from];
        for (to, message) in messages {
            for end in [from, to] {
                self.traffic[end].messages += 1;
                self.traffic[end].bytes += message.len();
            }
            self.parcels += 1;
            let parcel = Parcel {
                to,
                from,
                message,
                cpu: now.cpu,
            };
            let arrival = (now.elapsed + self.delay, self.parcels);
            self.under_way.insert(arrival, parcel);
        }
    }

    fn wake(&mut self, host: usize, pause: Duration) {
        let now = self.free[host];
        self.parcels += 1;
        let parcel = Parcel {
            to: host,
            from: host,
            message: Arc::new([]),
            cpu: now.cpu,
        };
        self.under_way
            .insert((now.elapsed + pause, self.parcels), parcel);
    }

    /// Runs until the session is over. Gives when that was: elapsed, and counting CPU time only, without delays.
    pub fn run(&mut self, hosts: &mut impl Hosts) -> Took {
        while let Some(((arrival, _), parcel)) = self.under_way.pop_first() {
            let Parcel {
                to, from, message, ..
            } = parcel;
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            let begun = self.free[to].elapsed.max(arrival);
            let (sent, took) = Took::by(|| hosts.take(begun, to, from, &message));
            let [before, after, peak] =
                [before, MEMORY.current_usage(), MEMORY.peak_usage()].map(size);
            self.peak[to] = self.peak[to].max(self.held[to] + peak - before);
            // What is sent is the network's from here on.
            let mut outgoing: Vec<&Arc<[u8]>> = sent.iter().map(|(_, message)| message).collect();
            outgoing.dedup_by(|a, b| Arc::ptr_eq(a, b));
            let outgoing: usize = outgoing.iter().map(|message| message.len()).sum();
            self.held[to] += after - before - size(outgoing);
            let free = &mut self.free[to];
            free.elapsed = begun + took.elapsed;
            free.cpu = free.cpu.max(parcel.cpu) + took.cpu;
            if hosts.is_over() {
                return self.free[to];
            }
            if let Some(pause) = hosts.alarm() {
                self.wake(to, pause);
            }
            self.send(to, sent);
        }
        panic!("nothing is under way, and the session is not over");
    }

    pub fn traffic(&self, host: usize) -> Traffic {
        self.traffic[host]
    }

    /// The most memory that a host had at once for the session, in bytes.
    pub fn peak(&self, host: usize) -> isize {
        self.peak[host]
    }
}

/// A size of which differences are taken.
fn size(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap()
}
