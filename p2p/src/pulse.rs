//! The heartbeat of one peer: a question without content, asked over the same streams as all others and
//! answered when the peer's node takes its events. So an answer says that whoever would sign there is alive, and how
//! long a question and its answer take.

use std::time::{Duration, Instant};

use crate::{MISSED_HEARTBEATS, peer::after};

/// What to do about a peer's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing yet.
    Wait,
    /// Ask.
    Ask {
        /// To be given back with the answer.
        number: u64,
        /// The last one had no answer.
        missed: bool,
    },
    /// Too many in a row had no answer.
    Dead,
}

#[derive(Debug)]
pub(crate) struct Pulse {
    interval: Duration,
    next: Instant,
    number: u64,
    is_open: bool,
    missed_in_a_row: u32,
    /// Smoothed as in RFC 6298, section 2.
    pub rtt: Option<Duration>,
    pub answered: u64,
    pub missed: u64,
}

impl Pulse {
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            next: now,
            number: 0,
            is_open: false,
            missed_in_a_row: 0,
            rtt: None,
            answered: 0,
            missed: 0,
        }
    }

    /// A new connection: the first question goes out at once.
    pub fn restart(&mut self, now: Instant) {
        self.next = now;
        self.is_open = false;
        self.missed_in_a_row = 0;
        self.rtt = None;
    }

    pub fn beat(&mut self, now: Instant) -> Beat {
        if now < self.next {
            return Beat::Wait;
        }
        let missed = self.is_open;
        if missed {
            self.missed = self.missed.saturating_add(1);
            self.missed_in_a_row = self.missed_in_a_row.saturating_add(1);
            if self.missed_in_a_row >= MISSED_HEARTBEATS {
                self.is_open = false;
                return Beat::Dead;
            }
        }
        self.next = after(now, self.interval);
        self.number = self.number.wrapping_add(1);
        self.is_open = true;
        Beat::Ask {
            number: self.number,
            missed,
        }
    }

    /// An answer, perhaps to a question that counts as missed already.
    pub fn answered(&mut self, number: u64, took: Duration) {
        if number == self.number {
            self.is_open = false;
        }
        self.missed_in_a_row = 0;
        self.answered = self.answered.saturating_add(1);
        self.rtt = Some(match self.rtt {
            None => took,
            Some(rtt) => rtt
                .saturating_mul(7)
                .saturating_add(took)
                .checked_div(8)
                .unwrap_or(took),
        });
    }

    /// Is the peer behind with an answer?
    pub fn is_late(&self) -> bool {
        self.missed_in_a_row > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn ask(pulse: &mut Pulse, now: Instant) -> (u64, bool) {
        match pulse.beat(now) {
            Beat::Ask { number, missed } => (number, missed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_that_misses_enough_in_a_row_is_dead_and_one_answer_clears_it() {
        let start = Instant::now();
        let mut pulse = Pulse::new(INTERVAL, start);
        for i in 0..MISSED_HEARTBEATS {
            let (_, missed) = ask(&mut pulse, start + INTERVAL * i);
            assert_eq!(missed, i > 0);
        }
        assert_eq!(pulse.beat(start + INTERVAL * MISSED_HEARTBEATS), Beat::Dead);
        assert_eq!(pulse.missed, u64::from(MISSED_HEARTBEATS));

        let mut pulse = Pulse::new(INTERVAL, start);
        for i in 0..10 * MISSED_HEARTBEATS {
            let (number, _) = ask(&mut pulse, start + INTERVAL * i);
            // Every second one is answered.
            if i % 2 == 0 {
                pulse.answered(number, Duration::from_millis(80));
            }
        }
        assert_eq!(pulse.rtt, Some(Duration::from_millis(80)));
    }

    #[test]
    fn a_late_answer_counts_and_does_not_close_the_question_after_it() {
        let start = Instant::now();
        let mut pulse = Pulse::new(INTERVAL, start);
        assert_eq!(
            pulse.beat(start),
            Beat::Ask {
                number: 1,
                missed: false
            }
        );
        assert_eq!(pulse.beat(start + INTERVAL / 2), Beat::Wait);
        let (_, missed) = ask(&mut pulse, start + INTERVAL);
        assert!(missed && pulse.is_late());
        pulse.answered(1, INTERVAL + INTERVAL / 2);
        assert!(!pulse.is_late());
        // The second is still open.
        let (_, missed) = ask(&mut pulse, start + 2 * INTERVAL);
        assert!(missed);
    }

    #[test]
    fn the_round_trip_time_is_smoothed() {
        let start = Instant::now();
        let mut pulse = Pulse::new(INTERVAL, start);
        pulse.answered(0, Duration::from_millis(80));
        pulse.answered(0, Duration::from_millis(160));
        assert_eq!(pulse.rtt, Some(Duration::from_millis(90)));
        pulse.restart(start);
        assert_eq!(pulse.rtt, None);
    }
}
