//! Why a request is not done yet, where its record gives no reason of its own.

use protocol::api::RequestStatus;

use crate::{live::Reader, records::Progress};

/// Why a request waits or was refused; `None` when nothing is to come. `seen` is the height of a deposit's block.
pub(super) fn why(reader: &Reader, progress: &Progress, seen: Option<u32>) -> Option<String> {
    if progress.reason.is_some() {
        return progress.reason.clone();
    }
    let (height, phase, alarm) = {
        let live = reader.live.borrow();
        (live.height, live.phase.clone(), live.alarm.is_some())
    };
    let parameters = &reader.parameters;
    let batch = progress
        .sequence
        .map_or_else(String::new, |sequence| format!(" {}", sequence.0));
    Some(match progress.status {
        RequestStatus::Final | RequestStatus::Refused => return None,
        _ if alarm => "the alarm has stopped the vault (S14)".to_owned(),
        RequestStatus::Received => {
            let depth = seen.map_or(0, |seen| height.saturating_add(1).saturating_sub(seen));
            let wanted = parameters.deposit_confirmations;
            format!("waits for confirmations: {depth} of {wanted}")
        }
        RequestStatus::Queued => {
            format!("waits for the next batch; the coordinator is at: {phase}")
        }
        RequestStatus::Batched => {
            format!("batch{batch} waits for its signatures; the coordinator is at: {phase}")
        }
        RequestStatus::Signed => format!("batch{batch} waits to be broadcast"),
        RequestStatus::Broadcast => format!("batch{batch} waits for a block"),
        RequestStatus::Confirmed => format!(
            "batch{batch} waits for {} confirmations",
            parameters.final_confirmations
        ),
    })
}
