use std::time::Duration;

use super::line::Line;
use super::{ClientAddr, Priority, Refused, Urgency};
use crate::config::{Bandwidth, Hours};
use crate::lifecycle::time_of_day;

/// On which terms work goes that nobody waits for: at which hours, and how fast. Where somebody joins it they hold no more.
#[derive(Debug)]
pub struct Terms {
    hours: Option<Hours>,
    line: Line,
}

impl Terms {
    /// Within these hours of the day, with no more than this.
    pub fn new(hours: Option<Hours>, bandwidth: &Bandwidth) -> Terms {
        Terms { hours, line: Line::new(bandwidth) }
    }

    /// Whether its hours last.
    pub(super) fn check(&self, urgency: &Urgency) -> Result<(), Refused> {
        let Some(hours) = self.hours.filter(|_| urgency.get() == Priority::Background) else { return Ok(()) };
        match hours.begin_in(time_of_day()) {
            Duration::ZERO => Ok(()),
            until => Err(Refused::Closed { hours: hours.to_string(), until }),
        }
    }

    /// Waits until so many bytes are paid for. Cancel-safe.
    pub(super) async fn pay(&self, bytes: u64, urgency: &Urgency) -> Result<(), Refused> {
        self.check(urgency)?;
        if urgency.get() == Priority::Background {
            tokio::select! {
                () = self.line.pay(bytes, ClientAddr::NOBODY, urgency) => {}
                _ = urgency.rises_above(Priority::Background) => {}
            }
        }
        Ok(())
    }

    pub(super) fn is_limited(&self) -> bool {
        self.line.is_limited()
    }
}
