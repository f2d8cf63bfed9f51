//! The way out for answers to sign requests. A node sends them at once; a test may put another way in its place, to
//! see what becomes of a batch whose signers misbehave. No setting leads here.

use protocol::message::Answer;

use crate::peers::Reply;

/// How an answer to a sign request leaves: the promise is on disk, the shares are made.
pub trait Outlet: Send + Sync {
    /// Sends it.
    fn send(&self, answer: Answer, reply: Reply);
}

/// At once, as it is.
pub(super) struct Prompt;

impl Outlet for Prompt {
    fn send(&self, answer: Answer, reply: Reply) {
        reply.send(answer);
    }
}
