//! Nodes that are broken on purpose, one way at a time. As with the signing machines' faults, what a node hears, writes or
//! does is changed on the way: there is no switch for it in the code under test.

use std::fmt;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Operators do not write their promises.
    SkipsPromises,
    /// Operators that were restored from a backup go on as if nothing were lost.
    SkipsQuarantine,
    /// Operators sign whatever competes with what they have signed.
    DropsS7,
    /// Operators build no transaction of their own.
    DropsS1,
    /// Operators take any input.
    DropsS2,
    /// Operators take any operation.
    DropsS3,
    /// Operators take any digest, supply and proof.
    DropsS4,
    /// Operators do not look at the reserves.
    DropsS5,
    /// Operators do not write the data of the batch that they sign.
    SkipsBatches,
    /// Operators have after a restart the nonces of their last answers.
    KeepsNonces,
    /// Nodes go on when the treasury was spent by an unknown transaction.
    IgnoresAlarms,
    /// Operators do not notice that blocks leave the chain.
    OperatorsMissReorgs,
    /// Coordinators do not write the requests that they accept.
    SkipsRequests,
    /// Nodes say that they keep requests for others, and do not.
    SkipsCopies,
    /// Coordinators do not notice that their batch is confirmed.
    ForgetsConfirmations,
    /// Coordinators do not queue the requests of a batch that was given up.
    NeverRequeues,
    /// Coordinators submit a batch once.
    NeverResubmits,
    /// Coordinators never pay more for a batch that waits.
    NeverBumps,
    /// Coordinators wait for ever for a batch whose deposit was double-spent.
    NeverDissolves,
}

/// All of them.
pub const FAULTS: [Fault; 19] = [
    Fault::SkipsPromises,
    Fault::SkipsQuarantine,
    Fault::DropsS7,
    Fault::DropsS1,
    Fault::DropsS2,
    Fault::DropsS3,
    Fault::DropsS4,
    Fault::DropsS5,
    Fault::SkipsBatches,
    Fault::KeepsNonces,
    Fault::IgnoresAlarms,
    Fault::OperatorsMissReorgs,
    Fault::SkipsRequests,
    Fault::SkipsCopies,
    Fault::ForgetsConfirmations,
    Fault::NeverRequeues,
    Fault::NeverResubmits,
    Fault::NeverBumps,
    Fault::NeverDissolves,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SkipsPromises => "operators do not write their promises",
            Self::SkipsQuarantine => "restored operators sign at once",
            Self::DropsS7 => "operators sign competing batches",
            Self::DropsS1 => "operators build no transaction of their own",
            Self::DropsS2 => "operators take any input",
            Self::DropsS3 => "operators take any operation",
            Self::DropsS4 => "operators accept any digest and proof",
            Self::DropsS5 => "operators do not look at the reserves",
            Self::SkipsBatches => "operators do not write the batches they sign",
            Self::KeepsNonces => "operators wake with old nonces after a restart",
            Self::IgnoresAlarms => "nodes go on after an unknown spend",
            Self::OperatorsMissReorgs => "operators miss reorganisations",
            Self::SkipsRequests => "coordinators do not write accepted requests",
            Self::SkipsCopies => "nodes keep no copies of requests",
            Self::ForgetsConfirmations => "coordinators forget a confirmation",
            Self::NeverRequeues => "coordinators forget a dissolved batch's requests",
            Self::NeverResubmits => "coordinators submit a batch once, and never give it up",
            Self::NeverBumps => "coordinators never bump a fee, nor give a batch up for it",
            Self::NeverDissolves => "coordinators wait for a lost deposit for ever",
        })
    }
}
