//! Before stage 5: takes nonce commitments that operators hand out ahead of time, so that a batch is proposed and signed in
//! one round trip. Off unless this coordinator's settings say so; an operator that hands out none costs nothing.
//!
//! ```text
//! Ask::Pool --> held for a while --offer--> first attempt of a session --> used: never offered again
//! ```
//!
//! What is held here is public. Whatever this node does with it, an operator binds an entry to one request (S9).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use p2p::Network;
use protocol::{
    message::{Answer, Ask, MAX_POOL, POOL_PAIRS, decode, encode},
    pool::YOUNG_MS,
    roster::Roster,
};
use threshold::{SignerId, sign::Commitments};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::live::Live;

/// How often operators are asked.
const REFRESH: Duration = Duration::from_secs(10);
/// How long entries are used after they were asked for: by then they have lived at most half their life, and what is
/// left of it is for the batch to be verified in.
const FRESH: Duration = Duration::from_millis(YOUNG_MS / 2);
/// How long an operator's entries are not used after it has refused a request with one: whoever spoils the first attempt
/// again and again would make every batch slower than it is without a pool.
const SHUN: Duration = Duration::from_secs(3_600);

/// Batches signed with what was handed out ahead of time.
pub const SIGNED_TOTAL: &str = "drawbridge_pooled_batches_total";

/// What operators have handed out and this coordinator has not used.
#[derive(Clone, Default)]
pub struct NoncePool(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// Epoch of the shares that they are of.
    epoch: u32,
    of: BTreeMap<SignerId, Handed>,
    shunned: BTreeMap<SignerId, Instant>,
    /// How often entries were used: an answer to a question from before may list them still.
    uses: u64,
}

struct Handed {
    entries: Vec<Commitments>,
    asked: Instant,
}

impl NoncePool {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One vector of each operator that has any, for a batch of so many inputs, signed by shares of that epoch.
    pub fn offer(&self, epoch: u32, inputs: usize) -> BTreeMap<SignerId, Commitments> {
        let held = self.lock();
        if held.epoch != epoch {
            return BTreeMap::new();
        }
        let usable = held.of.iter().filter(|(signer, handed)| {
            let shunned = held.shunned.get(signer);
            handed.asked.elapsed() < FRESH && shunned.is_none_or(|since| since.elapsed() >= SHUN)
        });
        usable
            .filter_map(|(signer, handed)| Some((*signer, handed.entries.first()?.first(inputs)?)))
            .collect()
    }

    /// These were used in a request, and are not offered again.
    pub fn used(&self, commitments: &BTreeMap<SignerId, Commitments>) {
        let mut held = self.lock();
        held.uses = held.uses.saturating_add(1);
        for (signer, used) in commitments {
            if let Some(handed) = held.of.get_mut(signer) {
                handed.entries.retain(|entry| !entry.begin_with(used));
            }
        }
    }

    /// An operator has refused what it had handed out.
    pub fn shun(&self, signer: SignerId) {
        let mut held = self.lock();
        held.of.remove(&signer);
        held.shunned.insert(signer, Instant::now());
    }

    /// Takes what an operator answers in place of what it has answered before, unless entries were used in between.
    fn take(&self, signer: SignerId, asked: Question, entries: Vec<Commitments>) {
        // Looked at now rather than when a batch waits for it.
        let fits = |entry: &Commitments| entry.len() == POOL_PAIRS && entry.are_points();
        if entries.len() > MAX_POOL || !entries.iter().all(fits) {
            return;
        }
        let mut held = self.lock();
        if held.uses != asked.uses {
            return;
        }
        if held.epoch != asked.epoch {
            held.of.clear();
            held.epoch = asked.epoch;
        }
        let handed = Handed {
            entries,
            asked: asked.at,
        };
        held.of.insert(signer, handed);
    }

    fn question(&self, epoch: u32) -> Question {
        Question {
            epoch,
            uses: self.lock().uses,
            at: Instant::now(),
        }
    }
}

/// When entries were asked for, and of which epoch.
#[derive(Clone, Copy)]
struct Question {
    epoch: u32,
    uses: u64,
    at: Instant,
}

/// Keeps the pool filled until `stop` is set.
pub async fn watch(
    network: Network,
    roster: Arc<Roster>,
    pool: NoncePool,
    live: watch::Receiver<Live>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let vault = live.borrow().vault.clone();
        if let Some(vault) = vault {
            ask(&network, &roster, &pool, vault.group().epoch()).await;
        }
    }
}

async fn ask(network: &Network, roster: &Roster, pool: &NoncePool, epoch: u32) {
    let connected = network.connected();
    let operators = roster.operators.iter();
    let asks = operators
        .filter(|member| connected.contains(&member.key))
        .map(|member| async {
            let asked = pool.question(epoch);
            let answer = network.ask(member.key, encode(&Ask::Pool { epoch })).await;
            match answer.map(|bytes| decode::<Answer>(&bytes)) {
                Ok(Ok(Answer::Pool(entries))) => {
                    pool.take(member.signer(), asked, entries);
                }
                Ok(Ok(Answer::Refused(refusal))) => {
                    tracing::debug!(operator = %member.key, %refusal, "no nonces ahead of time");
                }
                Ok(_) => tracing::debug!(operator = %member.key, "not an answer about nonces"),
                Err(error) => {
                    tracing::debug!(operator = %member.key, %error, "not asked for nonces")
                }
            }
        });
    futures::future::join_all(asks).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator in compressed form: a pair of commitments that anybody may have.
    const GENERATOR: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    /// Twice the generator.
    const DOUBLE: &str = "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5";

    fn entry(pairs: usize, first: &str) -> Commitments {
        let mut points = vec![GENERATOR; 2 * pairs];
        points[0] = first;
        Commitments::try_from(hex::decode(points.concat()).unwrap()).unwrap()
    }

    fn signer() -> SignerId {
        SignerId::derive(&[1; 32])
    }

    fn filled(entries: Vec<Commitments>) -> NoncePool {
        let pool = NoncePool::default();
        pool.take(signer(), pool.question(3), entries);
        pool
    }

    #[test]
    fn an_entry_is_offered_until_it_is_used_and_never_again() {
        let (first, second) = (entry(POOL_PAIRS, GENERATOR), entry(POOL_PAIRS, DOUBLE));
        let pool = filled(vec![first.clone(), second.clone()]);
        let before = pool.question(3);
        let offered = pool.offer(3, 2);
        assert_eq!(offered[&signer()], first.first(2).unwrap());
        pool.used(&offered);
        // What was asked before that may list it still.
        pool.take(signer(), before, vec![first.clone(), second.clone()]);
        assert_eq!(pool.offer(3, 2)[&signer()], second.first(2).unwrap());
        assert!(pool.offer(3, POOL_PAIRS + 1).is_empty());
        assert!(pool.offer(4, 2).is_empty());
    }

    #[test]
    fn too_many_entries_and_entries_of_another_length_are_not_taken() {
        let fitting = entry(POOL_PAIRS, GENERATOR);
        for entries in [
            vec![fitting.clone(); MAX_POOL + 1],
            vec![fitting.clone(), entry(POOL_PAIRS - 1, GENERATOR)],
        ] {
            assert!(filled(entries).offer(3, 1).is_empty());
        }
        assert!(!filled(vec![fitting; MAX_POOL]).offer(3, 1).is_empty());
    }

    #[test]
    fn an_operator_that_refuses_what_it_has_handed_out_is_not_asked_that_way_for_a_while() {
        let pool = filled(vec![entry(POOL_PAIRS, GENERATOR)]);
        pool.shun(signer());
        pool.take(signer(), pool.question(3), vec![entry(POOL_PAIRS, DOUBLE)]);
        assert!(pool.offer(3, 1).is_empty());
    }
}
