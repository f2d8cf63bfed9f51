//! What the administrator asks, each request with its answer. A request that changes something is done and
//! on disk when it is answered; long work is only begun, and its progress is in the status.

use serde::Serialize;

use super::Node;
use crate::admin::{Asked, Outcome, Request};

impl Node {
    /// Answers one request.
    pub(super) fn on_admin(&mut self, asked: Asked) {
        let outcome = self.administer(asked.request);
        // Who has not waited for the answer does not need it.
        let _ = asked.reply.send(outcome);
    }

    fn administer(&mut self, request: Request) -> Outcome {
        match request {
            Request::Status {} => {
                self.show();
                value(&*self.status.borrow())
            }
            Request::Ledger { from } => value(&self.ledger_page(from)?),
            Request::Pause { reason } => value(&self.pause(reason)),
            Request::Resume {} => value(&self.resume()),
            Request::ClearAlarm { reason } => value(&self.clear_alarm(&reason)?),
            Request::Policy {} => value(&self.policy.shown()),
            Request::Pending {} => value(&self.decisions.listing(self.parameters.network)),
            Request::Approve { operation } => value(&self.approve(&operation)?),
            Request::Reject { operation } => value(&self.reject(&operation)?),
            Request::Refresh { anew } => value(&self.begin_refresh(anew)?),
            Request::Repair {} => value(&self.begin_repair()?),
            Request::RepairCandidate { operator } => value(&self.repair_candidate(&operator)?),
            Request::RepairApprove { key, epoch } => value(&self.approve_repair(&key, epoch)?),
        }
    }
}

/// What is answered, as JSON.
fn value<T: Serialize>(shown: &T) -> Outcome {
    serde_json::to_value(shown).map_err(|error| format!("the answer can't be written: {error}"))
}
