//! S14: if an unknown transaction spends the treasury, stop signing and raise the alarm.
//!
//! The spend is found by `node::history` in the own blocks; the alarm is written by [`crate::promises`] and outlives
//! restarts. It is asked for here at every proposal, and again by the signing machine at every sign request.

use protocol::message::{Refusal, Rule};

pub(super) fn check(alarm: Option<&str>) -> Result<(), Refusal> {
    match alarm {
        None => Ok(()),
        Some(alarm) => Err(Refusal::new(
            Rule::S14,
            format!("signing has stopped: {alarm}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_signed_after_an_alarm() {
        check(None).unwrap();
        let refusal = check(Some("somebody took the money")).unwrap_err();
        assert_eq!(refusal.rule, Rule::S14);
        assert!(refusal.reason.contains("somebody took the money"));
    }
}
