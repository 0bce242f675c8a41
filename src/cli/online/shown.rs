//! How findings are told: in columns, and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Budget, Finding, Stand};
use crate::config::print_duration;
use crate::scheduler::{ANONYMOUS, Told};
use crate::upstream::Welcome;

/// The findings in columns, one a line.
pub(in crate::cli) fn lines(findings: &[Finding]) -> Vec<String> {
    aligned(&findings.iter().map(Finding::cells).collect::<Vec<_>>())
}

pub(in crate::cli) fn json(findings: &[Finding]) -> Vec<Value> {
    findings.iter().map(Finding::json).collect()
}

impl Finding {
    /// Upstream, endpoint, account, and how it went.
    fn cells(&self) -> [String; 4] {
        let account = self.account.as_ref().map_or(ANONYMOUS.to_owned(), |account| format!("as {account}"));
        let outcome = match &self.outcome {
            Ok(stand) => stand.words(self.account.is_some()),
            Err(error) => format!("FAILED: {error}"),
        };
        [self.upstream.clone(), self.endpoint.clone(), account, outcome]
    }

    fn json(&self) -> Value {
        let stand = self.outcome.as_ref().ok();
        let told = stand.and_then(|stand| match &stand.budget {
            Budget::Limited(told) => Some(told),
            _ => None,
        });
        let unknown = stand.and_then(|stand| match &stand.budget {
            Budget::Unknown(reason) => Some(reason),
            _ => None,
        });
        json!({
            "upstream": self.upstream,
            "endpoint": self.endpoint,
            "account": self.account.as_deref().unwrap_or(ANONYMOUS),
            "ok": stand.is_some(),
            "logged_in": stand.is_some_and(|stand| stand.signed_in.welcome == Welcome::LoggedIn),
            "budget": stand.map(|stand| stand.budget.as_str()),
            "budget_error": unknown,
            "limit": told.and_then(|told| told.limit),
            "remaining": told.and_then(|told| told.remaining),
            "window_seconds": told.and_then(|told| told.window).map(|window| window.as_secs()),
            "latency_ms": stand.map(|stand| millis(stand.signed_in.latency)),
            "error": self.outcome.as_ref().err(),
        })
    }
}

impl Stand {
    fn words(&self, is_account: bool) -> String {
        let login = match self.signed_in.welcome {
            Welcome::LoggedIn => Some("logged in"),
            Welcome::Open => is_account.then_some("no login asked for"),
            Welcome::Closed => Some("has nothing without an account"),
        };
        let latency = format!("{} ms", millis(self.signed_in.latency));
        let words = [Some("ok".to_owned()), login.map(str::to_owned), self.budget.words(), Some(latency)];
        words.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Budget {
    fn as_str(&self) -> &'static str {
        match self {
            Budget::Unasked => "unasked",
            Budget::Unlimited => "unlimited",
            Budget::Limited(_) => "limited",
            Budget::Unknown(_) => "unknown",
        }
    }

    fn words(&self) -> Option<String> {
        match self {
            Budget::Unasked => None,
            Budget::Unlimited => Some("no limit told".to_owned()),
            Budget::Limited(told) => Some(in_words(told)),
            Budget::Unknown(reason) => Some(format!("budget unknown ({reason})")),
        }
    }
}

fn in_words(told: &Told) -> String {
    let within = told.window.map(|window| format!(" in {}", print_duration(window))).unwrap_or_default();
    match (told.remaining.map(|left| left.max(0)), told.limit) {
        (Some(left), Some(limit)) => format!("{left} of {limit} pulls left{within}"),
        (Some(left), None) => format!("{left} pulls left{within}"),
        (None, Some(limit)) => format!("a limit of {limit} pulls{within}"),
        (None, None) => "no limit told".to_owned(),
    }
}

/// Rows with each column but the last as wide as its widest cell.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(|column| if column + 1 < N { width(column) } else { 0 }).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_in_words() {
        let window = Some(Duration::from_secs(21_600));
        for (limit, window, remaining, words) in [
            (Some(200), window, Some(180), "180 of 200 pulls left in 6h"),
            (Some(200), None, Some(-7), "0 of 200 pulls left"),
            (None, window, Some(5), "5 pulls left in 6h"),
            (Some(100), window, None, "a limit of 100 pulls in 6h"),
            (None, None, None, "no limit told"),
        ] {
            assert_eq!(in_words(&Told { limit, window, remaining, reset: None }), words);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "äöü", "x"], ["bcd", "e", "long"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["a    äöü  x", "bcd  e    long"]);
        assert!(aligned::<3>(&[]).is_empty());
    }
}
