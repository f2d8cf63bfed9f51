//! A simulated coordinator: the real [`Session`], begun anew by each restart.

use protocol::{
    identity::PeerKey,
    reputation::Standing,
    signing::{Effect, Input, Reject, Session},
};

use crate::signatures::Signatures;

/// One coordinator.
pub struct Coordinator<C: Signatures> {
    /// Its identity.
    pub key: PeerKey,
    /// How often it has started a session.
    pub incarnation: u32,
    /// Its session.
    pub session: Session<C::Scheme>,
    /// Whether it has the signatures.
    pub is_finished: bool,
    /// How it judges the operators; lost by a restart.
    pub standing: Standing,
}

impl<C: Signatures> Coordinator<C> {
    /// A coordinator with a fresh session.
    pub fn new(key: PeerKey, scheme: C::Scheme, needed: usize) -> Self {
        let standing = Standing::default();
        Self {
            key,
            incarnation: 0,
            session: Session::new(scheme, needed, standing.clone()),
            is_finished: false,
            standing,
        }
    }

    /// A fresh session. After a restart nothing is known of the one before.
    pub fn begin(&mut self, scheme: C::Scheme, has_restarted: bool) {
        if has_restarted {
            self.standing = Standing::default();
        } else {
            let (blamed, silent) = (self.session.blamed(), self.session.silent());
            self.standing.learn(blamed, &silent);
        }
        self.incarnation = self.incarnation.saturating_add(1);
        self.session = Session::new(scheme, self.session.needed(), self.standing.clone());
    }

    /// Steps the machine.
    pub fn step(&mut self, input: Input<C::Scheme>) -> Result<Vec<Effect<C::Scheme>>, Reject> {
        self.session.step(input)
    }
}
