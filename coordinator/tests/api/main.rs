//! The REST API over a real database, a vault whose key and certificate were made the way operators
//! make them, and a history with one confirmed batch. Requests go through the whole router.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod admin;
mod blame;
mod deposits;
mod edge;
mod events;
mod operations;
mod pages;
mod setting;
