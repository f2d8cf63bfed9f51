//! Who may import whom (docs/architecture.md): a crate uses only crates above it, and none beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{collections::BTreeMap, path::Path};

/// The lines of the drawing, from above.
const LINES: [&[&str]; 7] = [
    &["failpoint", "ledger", "threshold", "attestation"],
    &["protocol"],
    &["proof", "chain"],
    &["p2p", "storage"],
    &["node"],
    &["coordinator", "operator", "wallet"],
    &["testnet", "fuzz", "simulator"],
];

fn manifest(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn imports_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let lines: BTreeMap<&str, usize> = LINES
        .iter()
        .enumerate()
        .flat_map(|(line, crates)| crates.iter().map(move |name| (*name, line)))
        .collect();
    let workspace = manifest(&root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    assert_eq!(
        members.len(),
        lines.len(),
        "every member has its line in this test and in the drawing"
    );
    for member in members {
        let name = member.as_str().unwrap();
        let own = lines[name];
        let manifest = manifest(&root.join(name).join("Cargo.toml"));
        for dependency in manifest["dependencies"].as_table().unwrap().keys() {
            if let Some(line) = lines.get(dependency.as_str()) {
                assert!(*line < own, "{name} may not import {dependency}");
            }
        }
    }
}
