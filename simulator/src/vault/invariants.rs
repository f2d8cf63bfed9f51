//! What must hold in the whole bridge, one file each. The first five look at the best chain alone, with every batch's data
//! at hand; the last two at what honest operators do.

mod credits;
mod digests;
mod one_batch;
mod payouts;
mod reserves;
mod shares;

pub use credits::credits;
pub use digests::digests;
pub use one_batch::one_batch;
pub use payouts::{due, payouts};
pub use reserves::reserves;
pub use shares::{Given, Verdict};
