//! The coordinator: watches Bitcoin, takes requests over HTTP, and carries batches through the pipeline.
//!
//! ```text
//! detect --> queue --> batch --> prove --> gossip --> aggregate --> broadcast --> confirm
//!            (durable queues between the stages: records::{REQUESTS, PROVE, SIGN, BROADCAST, CONFIRM})
//! ```
//!
//! It can delay; it can't steal, mint or pay twice: operators check all that it says.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod admin;
pub mod advance;
pub mod aggregate;
pub mod answer;
pub mod api;
pub mod batch;
pub mod blame;
pub mod broadcast;
pub mod bump;
pub mod candidates;
pub mod confirm;
pub mod copies;
pub mod detect;
pub mod dissolve;
pub mod epoch;
pub mod events;
pub mod genesis;
pub mod gossip;
pub mod live;
pub mod pipeline;
pub mod pool;
pub mod prove;
pub mod queue;
pub mod rebuild;
pub mod records;
pub mod refusals;
pub mod room;
pub mod run;
pub mod settings;
pub mod terms;
pub mod token;
pub mod top_up;
