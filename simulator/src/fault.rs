//! Machines that are broken on purpose, one way at a time, so that it can be seen whether the invariants notice. A
//! fault sits between a machine and the world, in what the machine hears and does: there is no switch for it in the
//! machines themselves.

use std::fmt;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The coordinator blames whoever does not answer.
    BlamesTheSilent,
    /// The coordinator blames everybody in an attempt except those whose shares are bad.
    BlamesOthers,
    /// The coordinator takes any share for a good one.
    TakesBadShares,
    /// The coordinator sees that an attempt has failed, and blames nobody.
    ExcusesBadShares,
    /// The coordinator never starts a second attempt.
    StopsAfterOne,
    /// The coordinator takes new commitments out of answers, throws the shares away, and starts again.
    NeverHasEnough,
    /// The coordinator puts signers that have not answered into its next attempt.
    AsksTwice,
    /// The coordinator ignores shares for attempts that are not its latest.
    DropsLateShares,
    /// The coordinator ignores accepts of signers that have a request to answer.
    DropsRenewals,
    /// The coordinator asks nobody again whom its request has not reached.
    AsksOnce,
    /// The coordinator holds an attempt back and never goes on.
    HoldsForEver,
    /// The coordinator forgets with each round of proposals whom it waits for.
    ForgetsThePending,
    /// Operators hand out the commitments that they have just used.
    ReusesNonces,
    /// Operators have after a restart the nonces of their last answers.
    WakesWithOldNonces,
    /// Operators give the answer that they once gave, whatever they are asked.
    RepeatsItsAnswer,
    /// Operators bind no entry of the pool: it stays there for whoever names it next.
    ForgetsTheBinding,
}

/// All of them.
pub const FAULTS: [Fault; 16] = [
    Fault::BlamesTheSilent,
    Fault::BlamesOthers,
    Fault::TakesBadShares,
    Fault::ExcusesBadShares,
    Fault::StopsAfterOne,
    Fault::NeverHasEnough,
    Fault::AsksTwice,
    Fault::DropsLateShares,
    Fault::DropsRenewals,
    Fault::AsksOnce,
    Fault::HoldsForEver,
    Fault::ForgetsThePending,
    Fault::ReusesNonces,
    Fault::WakesWithOldNonces,
    Fault::RepeatsItsAnswer,
    Fault::ForgetsTheBinding,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlamesTheSilent => "the coordinator blames whoever is silent",
            Self::BlamesOthers => "the coordinator blames the honest for bad shares",
            Self::TakesBadShares => "the coordinator takes bad shares",
            Self::ExcusesBadShares => "the coordinator blames nobody for bad shares",
            Self::StopsAfterOne => "the coordinator never starts a second attempt",
            Self::NeverHasEnough => "the coordinator starts attempts without end",
            Self::AsksTwice => "the coordinator puts a signer in two attempts at once",
            Self::DropsLateShares => "the coordinator ignores late shares",
            Self::DropsRenewals => "the coordinator ignores signers that come back",
            Self::AsksOnce => "the coordinator never asks again",
            Self::HoldsForEver => "the coordinator waits for better signers for ever",
            Self::ForgetsThePending => "the coordinator forgets who is pending",
            Self::ReusesNonces => "operators use nonces again",
            Self::WakesWithOldNonces => "operators wake with old nonces after a restart",
            Self::RepeatsItsAnswer => "operators give an old answer to a new request",
            Self::ForgetsTheBinding => "operators leave a named entry in the pool",
        })
    }
}
