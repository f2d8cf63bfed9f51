//! What signing and key generation cost, with the nodes' state machines, real FROST and the wire's encoding, and hosts
//! whose clocks run on measured time:
//!
//! - `signing`: sessions beside raw FROST, for several groups and numbers of inputs; `short` leaves out what is long.
//! - `roast`: signers that drop out after the nonce round, as in ROAST's own experiment.
//! - `dkg`: key generation.
//!
//! `./bench.sh signing`, `./bench.sh roast`, `./bench.sh dkg` run it. docs/performance.md says how to read the tables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod dkg;
mod hosts;
mod machine;
mod raw;
mod roast;
mod session;
mod signing;
#[path = "../../../benches/steal.rs"]
mod steal;

use peak_alloc::PeakAlloc;
use steal::Steal;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn main() {
    let steal = Steal::now();
    // Cargo adds flags of its own.
    let words = std::env::args().skip(1);
    let what: Vec<String> = words.filter(|word| !word.starts_with('-')).collect();
    match what.first().map(String::as_str) {
        None | Some("short") => signing::print(true),
        Some("signing") => signing::print(false),
        Some("roast") => roast::print(),
        Some("dkg") => dkg::print(),
        Some(other) => {
            println!("{other} is none of short, signing, roast, dkg");
            std::process::exit(2);
        }
    }
    println!("\n{steal}");
}
