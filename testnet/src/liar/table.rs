//! What was found, for people: one entry a lie.

use std::fmt;

use serde::Serialize;

use super::{draft::Proofs, lie::Finding};

/// Longest reason that is shown; operators bound theirs, the liar's own errors are bounded here.
const MAX_SHOWN: usize = 400;

/// All findings of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Table {
    /// In the order in which they are shown.
    pub findings: Vec<Finding>,
}

impl Table {
    /// Sorted by layer, otherwise as told.
    pub fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.kind.layer);
        Self { findings }
    }

    /// Different kinds of lies; one told with two proofs counts once.
    pub fn kinds(&self) -> usize {
        let names: std::collections::BTreeSet<_> = self
            .findings
            .iter()
            .map(|finding| (finding.kind.layer, finding.kind.name))
            .collect();
        names.len()
    }

    /// Those that were not refused as expected, or that changed something.
    pub fn bad(&self) -> Vec<&Finding> {
        self.findings
            .iter()
            .filter(|finding| !finding.is_good)
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut layer = None;
        for (number, finding) in (1..).zip(&self.findings) {
            let kind = &finding.kind;
            if layer != Some(kind.layer) {
                layer = Some(kind.layer);
                writeln!(f, "\n  {:?}", kind.layer)?;
            }
            let proofs = match finding.proofs {
                Some(Proofs::Remade) => "valid proof",
                _ => "",
            };
            let rules: Vec<String> = kind.rules.iter().map(|rule| format!("{rule:?}")).collect();
            let (met, asked) = finding.refused_by;
            let verdict = match (finding.is_good, finding.is_unchanged) {
                (true, _) => "refused",
                (false, true) => "NOT AS EXPECTED",
                (false, false) => "STATE CHANGED",
            };
            let state = if finding.is_unchanged {
                "state unchanged"
            } else {
                "state changed"
            };
            writeln!(
                f,
                "  {number:>3}  {:<34} {proofs:<12} expected {:<6} found {:<4} {met}/{asked} {verdict}, {state}",
                kind.name,
                rules.join("|"),
                finding.found,
            )?;
            writeln!(f, "       {}", kind.changed)?;
            let reason: String = finding.reason.chars().take(MAX_SHOWN).collect();
            if !reason.is_empty() {
                writeln!(f, "       \u{2192} {reason}")?;
            }
            if !kind.note.is_empty() {
                writeln!(f, "       note: {}", kind.note)?;
            }
        }
        writeln!(
            f,
            "\n  {} kinds of lies, told in {} ways: {} refused as expected, {} not",
            self.kinds(),
            self.findings.len(),
            self.findings.len().saturating_sub(self.bad().len()),
            self.bad().len(),
        )
    }
}
