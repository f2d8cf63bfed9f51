//! What operators tell one another after the genesis: a refresh of all shares, and the repair of operator 2's.

use std::{collections::BTreeMap, sync::LazyLock};

use protocol::{
    epoch::{EpochCertificate, EpochClaim},
    repair,
};
use threshold::{
    KeyShare, SignerId, dkg, refresh,
    repair::{Delta, Helper, Run, Sigma, Splits},
    sign::{self, Message, Tweak},
};

use super::{CONTEXT, OPERATORS, honest, identity, sign_by, signer, tell_everybody};

/// The epoch that is refreshed to.
pub const EPOCH: u32 = 1;

/// All of it.
pub struct Upkeep {
    /// Messages of the refresh to operator 0, in order.
    pub refresh: Vec<(usize, dkg::Message)>,
    /// The shares after it.
    pub shares: Vec<KeyShare>,
    /// What makes them the vault's.
    pub certificate: EpochCertificate,
    /// The run that repairs operator 2's first share, with the help of the other two.
    pub run: Run,
    /// Both helpers' splits.
    pub splits: Splits,
    /// What operator 0 has for operator 1.
    pub delta: Delta,
    /// Both helpers' sums.
    pub sigmas: BTreeMap<SignerId, Sigma>,
}

/// The same values every time.
pub fn upkeep() -> &'static Upkeep {
    static UPKEEP: LazyLock<Upkeep> = LazyLock::new(make);
    &UPKEEP
}

/// An operator's side of the refresh, at its beginning.
pub fn machine(index: usize) -> dkg::Machine {
    let seed = dkg::Seed::from_bytes(&[u8::try_from(index).unwrap() + 11; 32]);
    refresh::machine(&honest().shares[index], EPOCH, &CONTEXT, &seed).unwrap()
}

/// An operator's side of the repair, at its beginning.
pub fn helper(index: usize) -> Helper {
    Helper::new(&honest().shares[index], run()).unwrap()
}

fn run() -> Run {
    Run {
        member: signer(2),
        helpers: [signer(0), signer(1)].into(),
        group: honest().shares[0].group().digest(),
        context: repair::context(&identity(2).public(), &[5; 32]),
    }
}

fn make() -> Upkeep {
    let mut machines: Vec<_> = (0..OPERATORS).map(machine).collect();
    let refresh = tell_everybody(&mut machines);
    let shares: Vec<KeyShare> = machines
        .iter()
        .map(|machine| machine.finished().unwrap().to_secret_bytes().unwrap())
        .map(|bytes| KeyShare::from_secret_bytes(&bytes).unwrap())
        .collect();
    let group = shares[0].group().clone();
    let vault = honest().vault.id();
    let message = Message {
        digest: EpochClaim::new(vault, &group).digest(),
        tweak: Tweak::Untweaked,
    };
    let (round2, package) = sign_by(&shares, &[message]);
    let signature = sign::aggregate(&group, &package, &round2).unwrap()[0];

    let mut helpers = [helper(0), helper(1)];
    let splits: Splits = [0, 1]
        .map(|index| (signer(index), helpers[index].split().clone()))
        .into();
    let deltas = [0, 1].map(|from| helpers[from].delta_for(signer(1 - from)).unwrap().clone());
    for (to, helper) in helpers.iter_mut().enumerate() {
        helper.agree(&splits).unwrap();
        helper
            .receive(signer(1 - to), deltas[1 - to].clone())
            .unwrap();
    }
    let sigmas = [0, 1]
        .map(|index| (signer(index), helpers[index].sigma().unwrap()))
        .into();
    let [delta, _] = deltas;
    Upkeep {
        refresh,
        certificate: EpochCertificate {
            vault,
            group,
            signature,
        },
        shares,
        run: run(),
        splits,
        delta,
        sigmas,
    }
}
