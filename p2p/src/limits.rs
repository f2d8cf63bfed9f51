//! How much one peer may say, and whether it has been said before.

use std::{
    collections::{HashSet, VecDeque},
    time::Instant,
};

use crate::RATE_UNIT_BYTES;

/// Sequence numbers of gossip remembered for one author, so that a neighbour cannot play old messages
/// again and use up the author's rate with them.
const REMEMBERED_MESSAGES: usize = 4_096;

/// A token bucket: `rate` units a second, at most `burst` at once.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    rate: u32,
    burst: u32,
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self {
            rate,
            burst,
            tokens: f64::from(burst),
            filled: now,
        }
    }

    /// Takes what a message of `bytes` costs, or nothing if there is not enough.
    pub fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + elapsed * f64::from(self.rate)).min(f64::from(self.burst));
        let cost = cost(bytes);
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

fn cost(bytes: usize) -> f64 {
    let units = bytes
        .checked_div(RATE_UNIT_BYTES)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    f64::from(u32::try_from(units).unwrap_or(u32::MAX))
}

/// The latest sequence numbers of an author's gossip.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    order: VecDeque<u64>,
    numbers: HashSet<u64>,
}

impl Seen {
    /// Whether the number is new; remembers it if so.
    pub fn is_new(&mut self, number: u64) -> bool {
        if !self.numbers.insert(number) {
            return false;
        }
        self.order.push_back(number);
        if self.order.len() > REMEMBERED_MESSAGES
            && let Some(oldest) = self.order.pop_front()
        {
            self.numbers.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, 5, start);
        assert_eq!((0..20).filter(|_| bucket.take(0, start)).count(), 5);
        let later = start + Duration::from_millis(300);
        assert_eq!((0..20).filter(|_| bucket.take(0, later)).count(), 3);
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| bucket.take(0, much_later)).count(), 5);
    }

    #[test]
    fn large_messages_cost_more() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1, 10, start);
        assert!(bucket.take(7 * RATE_UNIT_BYTES, start));
        assert!(!bucket.take(2 * RATE_UNIT_BYTES, start));
        assert!(bucket.take(RATE_UNIT_BYTES, start));
    }

    #[test]
    fn a_sequence_number_is_new_once_and_the_memory_is_bounded() {
        let mut seen = Seen::default();
        for number in 0..2 * REMEMBERED_MESSAGES as u64 {
            assert!(seen.is_new(number));
            assert!(!seen.is_new(number));
        }
        assert_eq!(seen.numbers.len(), REMEMBERED_MESSAGES);
        assert_eq!(seen.order.len(), REMEMBERED_MESSAGES);
    }
}
