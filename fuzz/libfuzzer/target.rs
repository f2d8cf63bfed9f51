//! One of the fuzz targets under libFuzzer: which one, the binary's name says.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fuzz::Target> =
    LazyLock::new(|| fuzz::targets::named(env!("CARGO_BIN_NAME")));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (TARGET.run)(bytes);
});
