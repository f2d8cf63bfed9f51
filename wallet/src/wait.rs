//! Waits until a deposit or an operation is confirmed, or deep enough to count on.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bitcoin::OutPoint;
use ledger::OperationId;
use protocol::api::{RequestStatus, Step};
use serde::Serialize;
use tokio::time::Instant;

use crate::client::printable;
use crate::{Client, ClientError};

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Failed looks in a row after which waiting ends: a coordinator that restarts is back by then.
const PATIENCE: usize = 60;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A transfer or withdrawal.
    Operation(OperationId),
    /// A payment to a deposit address.
    Deposit(OutPoint),
}

/// Text that names neither an operation nor an outpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither an operation id (64 hex digits) nor a deposit (txid:vout)")]
pub struct RequestError(String);

impl FromStr for Request {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let operation = text.parse().map(Self::Operation).ok();
        let deposit = || text.parse().map(Self::Deposit).ok();
        operation
            .or_else(deposit)
            .ok_or_else(|| RequestError(printable(text)))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(id) => id.fmt(f),
            Self::Deposit(outpoint) => outpoint.fmt(f),
        }
    }
}

/// How far to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In a block.
    Confirmed,
    /// Deep enough to credit.
    Final,
}

impl Target {
    fn is_reached(self, status: RequestStatus) -> bool {
        match self {
            Self::Confirmed => {
                matches!(status, RequestStatus::Confirmed | RequestStatus::Final)
            }
            Self::Final => status == RequestStatus::Final,
        }
    }
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Operation id or outpoint.
    pub request: String,
    /// The latest step; `None` while the coordinator has not seen the payment.
    pub status: Option<RequestStatus>,
    /// Why it waits or was refused.
    pub reason: Option<String>,
    /// Batch that holds it.
    pub sequence: Option<u64>,
    /// Transaction of that batch.
    pub txid: Option<String>,
    /// Every step with its time.
    pub steps: Vec<Step>,
}

/// Why waiting ended without success.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It will not be done.
    #[error("{request} was refused: {reason}")]
    Refused {
        /// Operation id or outpoint.
        request: String,
        /// The coordinator's words.
        reason: String,
    },
    /// Time is over; the request goes on.
    #[error(
        "{request} is not there after {seconds} s ({status}); it goes on, wait again to see it"
    )]
    TimedOut {
        /// Operation id or outpoint.
        request: String,
        /// How long.
        seconds: u64,
        /// The latest step.
        status: String,
    },
    /// The coordinator does not answer, or does not know the operation.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Where a request is now.
///
/// # Errors
/// [`ClientError`]. A payment that is not seen yet is no error.
pub async fn progress(client: &Client, request: Request) -> Result<Progress, ClientError> {
    let name = request.to_string();
    match request {
        Request::Operation(_) => {
            let found = client.operation(&name).await?;
            Ok(Progress {
                request: name,
                status: Some(found.status),
                reason: found.reason.as_deref().map(printable),
                sequence: found.sequence,
                txid: found.txid,
                steps: found.steps,
            })
        }
        Request::Deposit(_) => match client.deposit(&name).await {
            Ok(found) => Ok(Progress {
                request: name,
                status: Some(found.status),
                reason: found.reason.as_deref().map(printable),
                sequence: found.sequence,
                txid: None,
                steps: found.steps,
            }),
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(Progress {
                request: name,
                status: None,
                reason: None,
                sequence: None,
                txid: None,
                steps: Vec::new(),
            }),
            Err(error) => Err(error),
        },
    }
}

/// Looks again and again, and tells `seen` each time.
///
/// # Errors
/// [`WaitError`]; an unreachable coordinator is one only after half a minute.
pub async fn wait(
    client: &Client,
    request: Request,
    target: Target,
    timeout: Duration,
    mut seen: impl FnMut(&Progress),
) -> Result<Progress, WaitError> {
    // Without a deadline when it would be beyond what a clock can tell.
    let deadline = Instant::now().checked_add(timeout);
    let mut failures = 0;
    let mut last = None;
    loop {
        match progress(client, request).await {
            Ok(found) => {
                failures = 0;
                seen(&found);
                let status = found.status;
                if status == Some(RequestStatus::Refused) {
                    let reason = found.reason.unwrap_or_else(|| "no reason given".to_owned());
                    return Err(WaitError::Refused {
                        request: found.request,
                        reason,
                    });
                }
                if status.is_some_and(|status| target.is_reached(status)) {
                    return Ok(found);
                }
                last = status;
            }
            Err(ClientError::Unreachable { .. }) if failures < PATIENCE => failures += 1,
            Err(error) => return Err(error.into()),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(WaitError::TimedOut {
                request: request.to_string(),
                seconds: timeout.as_secs(),
                status: status_name(last).to_owned(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A status for people.
pub fn status_name(status: Option<RequestStatus>) -> &'static str {
    match status {
        None => "not seen yet",
        Some(RequestStatus::Received) => "received",
        Some(RequestStatus::Queued) => "queued",
        Some(RequestStatus::Batched) => "batched",
        Some(RequestStatus::Signed) => "signed",
        Some(RequestStatus::Broadcast) => "broadcast",
        Some(RequestStatus::Confirmed) => "confirmed",
        Some(RequestStatus::Final) => "final",
        Some(RequestStatus::Refused) => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_an_operation_or_an_outpoint() {
        let id = "ab".repeat(32);
        assert!(matches!(id.parse(), Ok(Request::Operation(_))));
        assert!(matches!(format!("{id}:1").parse(), Ok(Request::Deposit(_))));
        assert!("ab".parse::<Request>().is_err());
    }
}
