//! Brings the honest files of the corpus up to date after a change of a format: those that are missing or refused by
//! now. Targets that are named get all of theirs anew. Inputs that once broke something stay.

use fuzz::{corpus, targets};

fn main() -> std::io::Result<()> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    for target in targets::all() {
        let anew = named.iter().any(|name| name == target.name);
        if anew || named.is_empty() {
            corpus::write(&target, anew)?;
        }
    }
    Ok(())
}
