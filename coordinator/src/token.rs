//! Administrators' tokens. Only hashes are in the settings: whoever reads the file can't act. A token has 256 random
//! bits, so its hash needs neither salt nor stretching.

use std::collections::BTreeSet;

use protocol::hash::tagged;
use rand::RngCore as _;
use serde::{Deserialize, Serialize};

/// What a token begins with, so that it is known where it must not be.
const PREFIX: &str = "drawbridge-admin-";
/// Most administrators.
const MAX_TOKENS: usize = 16;
/// Longest label in bytes.
const MAX_LABEL_BYTES: usize = 32;

/// An administrator, as the settings have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminToken {
    /// Who it is, for the audit log: letters, digits, `-`, `_` and `.`.
    pub label: String,
    /// Hash of the token, as `drawbridge-coordinator admin-token` prints it.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
}

/// Why the settings' tokens, or a label, are not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a label.
    #[error("\"{0}\" is no label: 1 to {MAX_LABEL_BYTES} letters, digits, \"-\", \"_\" and \".\"")]
    Label(String),
    /// Two administrators of one name could not be told apart afterwards.
    #[error("two admin_tokens have the label \"{0}\"")]
    Twice(String),
    /// Too many.
    #[error("there are more than {MAX_TOKENS} admin_tokens")]
    TooMany,
}

/// A token that was just made. It is shown once and kept nowhere.
pub struct NewToken {
    /// The token itself.
    pub secret: String,
    /// What the settings need.
    pub entry: AdminToken,
}

/// Makes a token.
///
/// # Errors
/// [`TokenError::Label`].
pub fn make(label: &str) -> Result<NewToken, TokenError> {
    check_label(label)?;
    let mut bytes = [0; 32];
    rand::rngs::OsRng.fill_bytes(&mut bytes);
    let secret = format!("{PREFIX}{}", hex::encode(bytes));
    let entry = AdminToken {
        label: label.to_owned(),
        hash: hash(&secret),
    };
    Ok(NewToken { secret, entry })
}

fn hash(token: &str) -> [u8; 32] {
    tagged("drawbridge/admin-token", &[token.as_bytes()])
}

fn check_label(label: &str) -> Result<(), TokenError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.bytes().all(is_plain) {
        Ok(())
    } else {
        Err(TokenError::Label(label.to_owned()))
    }
}

/// Checks what the settings have.
///
/// # Errors
/// [`TokenError`].
pub fn check(tokens: &[AdminToken]) -> Result<(), TokenError> {
    if tokens.len() > MAX_TOKENS {
        return Err(TokenError::TooMany);
    }
    let mut labels = BTreeSet::new();
    for token in tokens {
        check_label(&token.label)?;
        if !labels.insert(&token.label) {
            return Err(TokenError::Twice(token.label.clone()));
        }
    }
    Ok(())
}

/// Whose token it is. Takes as long whichever it is, and however much of it is right.
pub fn who<'a>(tokens: &'a [AdminToken], presented: &str) -> Option<&'a str> {
    let presented = hash(presented);
    let mut found = None;
    for token in tokens {
        let difference = token
            .hash
            .iter()
            .zip(&presented)
            .fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(difference) == 0 {
            found = Some(token.label.as_str());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_label_and_no_other_text_does() {
        let (alice, bob) = (make("alice").unwrap(), make("bob").unwrap());
        let entries = [alice.entry.clone(), bob.entry.clone()];
        assert_eq!(who(&entries, &alice.secret), Some("alice"));
        assert_eq!(who(&entries, &bob.secret), Some("bob"));
        for wrong in [
            "",
            PREFIX,
            &alice.secret[1..],
            &hex::encode(alice.entry.hash),
        ] {
            assert_eq!(who(&entries, wrong), None, "{wrong}");
        }
        assert_eq!(who(&[], &alice.secret), None);
    }

    #[test]
    fn labels_are_plain_and_of_one_administrator_each() {
        for bad in [
            "",
            "with space",
            "quote\"",
            &"x".repeat(MAX_LABEL_BYTES + 1),
        ] {
            assert_eq!(make(bad).err(), Some(TokenError::Label(bad.into())));
        }
        let twin = make("alice").unwrap().entry;
        let tokens = [make("alice").unwrap().entry, twin];
        assert_eq!(check(&tokens), Err(TokenError::Twice("alice".into())));
        assert_eq!(check(&tokens[..1]), Ok(()));
    }
}
