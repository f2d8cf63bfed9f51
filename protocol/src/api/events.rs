//! What happens, as it happens: `/v1/events`.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{BatchStatus, RequestStatus};

/// What `/v1/events` is asked with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Continue after the event with this id; the header `Last-Event-ID` says the same and goes before. Without either,
    /// from now on.
    pub after: Option<u64>,
    /// Only these topics, with commas between them: `batch`, `deposit`, `operation`, `alarm`, `tip`, `head`.
    pub topic: Option<String>,
}

/// What an event is about.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// A batch has moved.
    Batch,
    /// A deposit has moved.
    Deposit,
    /// A signed operation has moved.
    Operation,
    /// The alarm was raised, or taken back.
    Alarm,
    /// The chain has another tip.
    Tip,
    /// The vault has another treasury.
    Head,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 6] = [
        Self::Batch,
        Self::Deposit,
        Self::Operation,
        Self::Alarm,
        Self::Tip,
        Self::Head,
    ];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Deposit => "deposit",
            Self::Operation => "operation",
            Self::Alarm => "alarm",
            Self::Tip => "tip",
            Self::Head => "head",
        }
    }
}

/// The data of an event. It says where something is now; the resource itself says the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "topic", rename_all = "snake_case")]
pub enum EventDocument {
    /// A batch is in another place, or waits for another reason.
    Batch {
        /// When it was written.
        at_ms: u64,
        /// Sequence number.
        sequence: u64,
        /// Where it is.
        status: BatchStatus,
        /// Why it waits, or was given up.
        reason: Option<String>,
        /// Transaction id; `null` until it is proven.
        txid: Option<String>,
        /// Height of its block.
        height: Option<u32>,
    },
    /// A deposit is in another place, or waits for another reason.
    Deposit {
        /// When it was written.
        at_ms: u64,
        /// `txid:vout`.
        outpoint: String,
        /// Where it is.
        status: RequestStatus,
        /// Why, when it waits or was refused.
        reason: Option<String>,
        /// Batch that holds it.
        sequence: Option<u64>,
    },
    /// A signed operation is in another place, or waits for another reason.
    Operation {
        /// When it was written.
        at_ms: u64,
        /// Its id.
        operation_id: String,
        /// Where it is.
        status: RequestStatus,
        /// Why, when it waits or was refused.
        reason: Option<String>,
        /// Batch that holds it.
        sequence: Option<u64>,
    },
    /// The alarm.
    Alarm {
        /// When it was written.
        at_ms: u64,
        /// Why signing has stopped; `null` when it was taken back.
        reason: Option<String>,
    },
    /// The chain's tip, as this coordinator has taken it in.
    Tip {
        /// When it was written.
        at_ms: u64,
        /// Its height.
        height: u32,
        /// Its hash.
        block_hash: String,
    },
    /// The latest confirmed batch.
    Head {
        /// When it was written.
        at_ms: u64,
        /// Its sequence number; 0 is genesis.
        sequence: u64,
        /// The treasury that it made, `txid:vout`.
        treasury: String,
    },
}

impl EventDocument {
    /// What it is about.
    pub const fn topic(&self) -> Topic {
        match self {
            Self::Batch { .. } => Topic::Batch,
            Self::Deposit { .. } => Topic::Deposit,
            Self::Operation { .. } => Topic::Operation,
            Self::Alarm { .. } => Topic::Alarm,
            Self::Tip { .. } => Topic::Tip,
            Self::Head { .. } => Topic::Head,
        }
    }
}
