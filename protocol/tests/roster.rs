//! What a roster's hash stands for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use attestation::{
    Requirement, RequirementError,
    nitro::{Expected, Image, Pcr},
};
use protocol::{
    identity::Identity,
    roster::{Member, Roster, RosterError},
};

fn roster(attestation: Requirement) -> Roster {
    let member = |index: u8| Member {
        name: format!("node {index}"),
        key: Identity::from_secret(&[index; 32]).public(),
        founding_key: None,
        addresses: Vec::new(),
    };
    Roster {
        threshold: 2,
        operators: vec![member(1), member(2), member(3)],
        coordinators: vec![member(9)],
        attestation,
    }
}

fn image(byte: u8) -> Image {
    let pcr = Pcr([byte; 48]);
    Image {
        pcr0: pcr,
        pcr1: pcr,
        pcr2: pcr,
        pcr8: None,
    }
}

fn nitro(images: Vec<Image>) -> Requirement {
    Requirement::Nitro(Expected {
        max_age_s: 600,
        root: None,
        images,
    })
}

#[test]
fn an_upgraded_enclave_image_leaves_the_vault_what_it_is() {
    let hash = roster(Requirement::default()).hash();
    for requirement in [
        nitro(vec![image(1)]),
        nitro(vec![image(1), image(2)]),
        nitro(vec![image(2)]),
    ] {
        assert_eq!(roster(requirement).hash(), hash);
    }
}

#[test]
fn a_roster_with_a_requirement_that_nobody_can_meet_is_refused() {
    roster(nitro(vec![image(1)])).validate().unwrap();
    assert_eq!(
        roster(nitro(vec![])).validate(),
        Err(RosterError::Attestation(RequirementError::Images))
    );
    assert_eq!(
        roster(nitro(vec![image(0)])).validate(),
        Err(RosterError::Attestation(RequirementError::DebugImage))
    );
}
