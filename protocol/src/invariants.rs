//! What must hold at every moment, as functions: the simulator and the tests call them after each step.

mod answers_are_taken;
mod attempts_are_bounded;
mod no_honest_signer_is_blamed;
mod nonces_serve_one_package;
mod signers_are_asked_in_turn;
mod signers_are_in_one_place;
mod waiting_names_everyone;

pub use answers_are_taken::answers_are_taken;
pub use attempts_are_bounded::attempts_are_bounded;
pub use no_honest_signer_is_blamed::no_honest_signer_is_blamed;
pub use nonces_serve_one_package::Nonces;
pub use signers_are_asked_in_turn::Requests;
pub use signers_are_in_one_place::signers_are_in_one_place;
pub use waiting_names_everyone::waiting_names_everyone;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// The function that says so.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}
