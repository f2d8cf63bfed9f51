//! Which attestation a vault's operators want of each other, as the roster says it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Verify, nitro};

/// The kind of attestation that is required, with what a document has to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Requirement {
    /// None: hosts are trusted as they are. For test networks, and where the operators have agreed so. With braces,
    /// because serde lets unknown fields pass beside a unit variant.
    None {},
    /// A document of an AWS Nitro Enclave.
    Nitro(nitro::Expected),
}

/// Why a requirement can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequirementError {
    /// No image would pass, or too many are listed.
    #[error("attestation.images must list 1 to {} images", nitro::MAX_IMAGES)]
    Images,
    /// All zero is what an enclave in debug mode shows.
    #[error("an expected PCR is all zero: that is an enclave in debug mode, which proves nothing")]
    DebugImage,
    /// The age is out of range.
    #[error("attestation.max_age_s must be {min} to {max} seconds, not {0}", min = nitro::MIN_AGE_S, max = nitro::MAX_AGE_S)]
    Age(u64),
}

impl Default for Requirement {
    fn default() -> Self {
        Self::None {}
    }
}

impl Requirement {
    /// Is nothing required?
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None {})
    }

    /// Checks that a document could meet it.
    ///
    /// # Errors
    /// [`RequirementError`].
    pub fn validate(&self) -> Result<(), RequirementError> {
        match self {
            Self::None {} => Ok(()),
            Self::Nitro(expected) => expected.validate(),
        }
    }

    /// What checks the documents; `None` when nothing is required.
    pub fn verifier(&self) -> Option<Arc<dyn Verify>> {
        match self {
            Self::None {} => None,
            Self::Nitro(expected) => Some(Arc::new(expected.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nitro(images: &str, age: &str) -> Result<Requirement, toml::de::Error> {
        toml::from_str(&format!("kind = \"nitro\"\nmax_age_s = {age}\n{images}"))
    }

    fn image(digit: &str) -> String {
        let pcr = digit.repeat(96);
        format!("[[images]]\npcr0 = \"{pcr}\"\npcr1 = \"{pcr}\"\npcr2 = \"{pcr}\"\n")
    }

    #[test]
    fn a_requirement_survives_its_file() {
        let requirement = nitro(&image("a"), "600").unwrap();
        requirement.validate().unwrap();
        let text = toml::to_string(&requirement).unwrap();
        assert_eq!(toml::from_str::<Requirement>(&text).unwrap(), requirement);
        let none: Requirement = toml::from_str("kind = \"none\"").unwrap();
        assert!(none.is_none() && none.verifier().is_none());
    }

    #[test]
    fn a_requirement_with_an_unknown_kind_or_field_is_no_requirement() {
        assert!(toml::from_str::<Requirement>("kind = \"nitor\"").is_err());
        assert!(toml::from_str::<Requirement>("kind = \"none\"\nmax_age_s = 600").is_err());
        assert!(nitro(&format!("max_age = 1\n{}", image("a")), "600").is_err());
        assert!(nitro(&format!("{}pcr3 = \"\"", image("a")), "600").is_err());
        assert!(nitro(&image("a").replace("pcr2", "pcr8"), "600").is_err());
    }

    #[test]
    fn a_requirement_that_nobody_or_a_debug_enclave_meets_is_refused() {
        let images = |count: usize| image("a").repeat(count);
        let check = |images: &str, age: &str| nitro(images, age).unwrap().validate().unwrap_err();
        assert_eq!(check("images = []", "600"), RequirementError::Images);
        assert_eq!(
            check(&images(nitro::MAX_IMAGES + 1), "600"),
            RequirementError::Images
        );
        assert_eq!(check(&image("0"), "600"), RequirementError::DebugImage);
        assert_eq!(check(&image("a"), "1"), RequirementError::Age(1));
        assert_eq!(check(&image("a"), "86401"), RequirementError::Age(86_401));
    }
}
