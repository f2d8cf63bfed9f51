//! Shows on stderr how a request moves through the pipeline.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::RequestStatus;
use wallet::Progress;
use wallet::wait::status_name;

/// Steps from received to final.
const STEPS: u64 = 7;
const TICK: Duration = Duration::from_millis(120);

/// A bar on a terminal, a line for each new step elsewhere, nothing for programs.
pub struct Display {
    bar: Option<ProgressBar>,
    lines: bool,
    shown: String,
}

impl Display {
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (!quiet && terminal).then(|| {
            let bar = ProgressBar::new(STEPS);
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} [{bar:28}] {elapsed:>4} {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            lines: !quiet && !terminal,
            shown: String::new(),
        }
    }

    pub fn show(&mut self, progress: &Progress) {
        let mut words = status_name(progress.status).to_owned();
        if let Some(sequence) = progress.sequence {
            words.push_str(&format!(", batch {sequence}"));
        }
        if let Some(reason) = &progress.reason {
            words.push_str(&format!(" ({reason})"));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(position(progress.status));
            bar.set_message(words);
        } else if self.lines && words != self.shown {
            // A closed stderr must not stop the waiting.
            let _ = writeln!(std::io::stderr().lock(), "{words}");
            self.shown = words;
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn position(status: Option<RequestStatus>) -> u64 {
    match status {
        None | Some(RequestStatus::Refused) => 0,
        Some(RequestStatus::Received) => 1,
        Some(RequestStatus::Queued) => 2,
        Some(RequestStatus::Batched) => 3,
        Some(RequestStatus::Signed) => 4,
        Some(RequestStatus::Broadcast) => 5,
        Some(RequestStatus::Confirmed) => 6,
        Some(RequestStatus::Final) => STEPS,
    }
}
