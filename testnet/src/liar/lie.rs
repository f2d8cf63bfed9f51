//! One lie: an honest proposal with one thing changed, what is expected of it, and what was found.

use bitcoin::Amount;
use protocol::message::{Refusal, Rule};
use serde::Serialize;

use super::{
    draft::{Draft, Proofs, Proposal},
    neighbours,
};

/// Changes a proposal after everything in it was made to fit.
pub type Twist = Box<dyn FnOnce(&mut Proposal) + Send>;

/// Where in a proposal, or in the talk about it, the lie is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is a file beside this one")]
pub enum Layer {
    Inputs,
    Outputs,
    Fee,
    Ledger,
    Sequence,
    Session,
    Encoding,
}

/// What is sent and what it should meet.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// Which part is false.
    pub layer: Layer,
    /// Names the lie.
    pub name: &'static str,
    /// What was changed in an honest proposal.
    pub changed: &'static str,
    /// The rule that must refuse it; one of them where time decides which is first.
    pub rules: &'static [Rule],
    /// A part of the reason, so that it is this check of the rule and no other that was met.
    pub says: &'static str,
    /// What a reader of the table must know beside.
    pub note: &'static str,
}

impl Kind {
    /// A kind without a note.
    pub const fn new(
        layer: Layer,
        name: &'static str,
        changed: &'static str,
        rules: &'static [Rule],
        says: &'static str,
    ) -> Self {
        Self {
            layer,
            name,
            changed,
            rules,
            says,
            note: "",
        }
    }

    /// With a note.
    #[must_use]
    pub const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    /// Whether a refusal is the expected one.
    pub fn is_met_by(&self, refusal: &Refusal) -> bool {
        self.rules.contains(&refusal.rule) && refusal.reason.contains(self.says)
    }
}

/// A kind with the proposal that tells it.
pub struct Lie {
    /// What is expected.
    pub kind: Kind,
    /// The changed draft.
    pub draft: Draft,
    /// Where its proofs come from.
    pub proofs: Proofs,
    /// What is changed when all is made to fit.
    pub twist: Option<Twist>,
}

impl Lie {
    /// An honest draft, to be changed.
    pub fn new(kind: Kind, honest: &Draft) -> Self {
        Self {
            kind,
            draft: honest.clone(),
            proofs: Proofs::Kept,
            twist: None,
        }
    }

    /// Changes the draft: all the rest will be made to fit.
    #[must_use]
    pub fn draft(mut self, change: impl FnOnce(&mut Draft)) -> Self {
        change(&mut self.draft);
        self
    }

    /// Changes the proposal, with nothing made to fit.
    #[must_use]
    pub fn twist(mut self, twist: impl FnOnce(&mut Proposal) + Send + 'static) -> Self {
        self.twist = Some(Box::new(twist));
        self
    }

    /// With proofs of its own.
    #[must_use]
    pub fn remade(mut self) -> Self {
        self.proofs = Proofs::Remade;
        self
    }

    /// Twice: with the honest proposal's proofs, and with proofs of its own.
    pub fn both(self) -> [Self; 2] {
        let kept = Self {
            kind: self.kind.clone(),
            draft: self.draft.clone(),
            proofs: Proofs::Kept,
            twist: None,
        };
        [kept, self.remade()]
    }
}

/// What became of a lie.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was sent and expected.
    #[serde(flatten)]
    pub kind: Kind,
    /// Where its proofs came from; `None` when it has nothing to do with proofs.
    pub proofs: Option<Proofs>,
    /// The rule that the operators named, or what else stopped it.
    pub found: String,
    /// Their reason.
    pub reason: String,
    /// Operators that refused as expected, of so many that were told.
    pub refused_by: (usize, usize),
    /// Whether all of them were afterwards as before: same promises, same treasury, no session, nothing kept.
    pub is_unchanged: bool,
    /// Whether every operator refused as expected and nothing changed.
    pub is_good: bool,
}

impl Finding {
    /// From what each operator said.
    pub fn new(kind: Kind, proofs: Option<Proofs>, answers: Vec<Answered>) -> Self {
        let kind = neighbours::noted(kind);
        let asked = answers.len();
        let met = answers.iter().filter(|answer| answer.is_expected).count();
        let is_unchanged = answers.iter().all(|answer| answer.change.is_none());
        // The one worth showing is one that was not as it should be.
        let shown = answers
            .iter()
            .find(|answer| !answer.is_expected || answer.change.is_some())
            .or(answers.first());
        let (found, mut reason) = shown.map_or_else(Default::default, |answer| {
            (answer.found.clone(), answer.reason.clone())
        });
        if let Some(change) = shown.and_then(|answer| answer.change.as_ref()) {
            reason = format!("{reason} [STATE: {change}]");
        }
        Self {
            is_good: is_unchanged && met == asked && asked > 0,
            kind,
            proofs,
            found,
            reason,
            refused_by: (met, asked),
            is_unchanged,
        }
    }

    /// A lie that could not be told.
    pub fn failed(kind: Kind, proofs: Option<Proofs>, error: &anyhow::Error) -> Self {
        Self {
            kind,
            proofs,
            found: "FAILED".to_owned(),
            reason: format!("{error:#}"),
            refused_by: (0, 0),
            is_unchanged: false,
            is_good: false,
        }
    }
}

/// What one operator said to a lie.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The rule, or what else was met.
    pub found: String,
    /// Why.
    pub reason: String,
    /// Whether that was what the kind expects.
    pub is_expected: bool,
    /// What is not as it was before.
    pub change: Option<String>,
}

impl Answered {
    /// A refusal.
    pub fn refused(kind: &Kind, refusal: &Refusal) -> Self {
        Self {
            found: format!("{:?}", refusal.rule),
            reason: refusal.reason.clone(),
            is_expected: kind.is_met_by(refusal),
            change: None,
        }
    }

    /// Anything that is no refusal and was not expected.
    pub fn wrong(found: &str) -> Self {
        Self {
            found: found.to_owned(),
            reason: String::new(),
            is_expected: false,
            change: None,
        }
    }

    /// What stopped a lie that no rule is named for on the wire.
    pub fn other(found: &str, reason: String, is_expected: bool) -> Self {
        Self {
            found: found.to_owned(),
            reason,
            is_expected,
            change: None,
        }
    }
}

/// One sat more.
pub fn one_more(amount: Amount) -> Amount {
    Amount::from_sat(amount.to_sat().saturating_add(1))
}

/// One sat less.
pub fn one_less(amount: Amount) -> Amount {
    Amount::from_sat(amount.to_sat().saturating_sub(1))
}
