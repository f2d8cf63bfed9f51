//! What only an administrator may ask: `/v1/admin`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Longest reason of an administrative act, in bytes.
pub const MAX_REASON_BYTES: usize = 500;

/// Why an administrator does something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActRequest {
    /// For the audit log, and for the user whose request is dropped; 1 to 500 bytes.
    pub reason: String,
}

/// Work that has failed too often, or is not to be had by other means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterDocument {
    /// The queue that it was in.
    pub queue: String,
    /// Names it in its queue.
    pub key: String,
    /// What it is about: a deposit, an operation or a batch.
    pub subject: String,
    /// Failed attempts.
    pub attempts: u32,
    /// What the last attempt said.
    pub cause: String,
    /// When the last attempt failed.
    pub failed_ms: u64,
    /// Where its subject is, and why.
    pub status: String,
    /// Can it be dropped? Otherwise it can only be tried again.
    pub droppable: bool,
}

/// Dead letters of all queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterList {
    /// At most 100 of each queue, oldest push first.
    pub items: Vec<DeadLetterDocument>,
    /// How many there are in all.
    pub total: u64,
}

/// An administrative act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActKind {
    /// A dead letter was queued again.
    Retry,
    /// A dead letter was dropped.
    Drop,
    /// The alarm was taken back.
    ClearAlarm,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActDocument {
    /// Its number.
    pub id: u64,
    /// When.
    pub at_ms: u64,
    /// The label of the token, or `command line`.
    pub who: String,
    /// What was done.
    pub act: ActKind,
    /// To what.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// What has come of it.
    pub outcome: String,
}

/// Part of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActList {
    /// Newest first.
    pub items: Vec<ActDocument>,
    /// Continue with this as `after`; `null` at the end.
    pub next: Option<u64>,
}

/// Which part of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ActPage {
    /// Continue after this entry, with the older ones.
    pub after: Option<u64>,
    /// At most this many entries, up to 100; 20 when absent.
    pub limit: Option<usize>,
}
