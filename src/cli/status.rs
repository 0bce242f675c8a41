//! `tidelock status`: the running mirror at a glance.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::ask::{AdminArgs, Door};
use super::explain::of_budget;
use super::report::Report;
use super::words::{size, time};
use crate::admin::{Account, CacheState, Fetch, Status, UpstreamBudget};
use crate::config::Config;

/// What `status` takes.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Show it anew every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

const PATH: &str = "/api/v1/status";

/// How often it is shown anew.
const EVERY: Duration = Duration::from_secs(1);

/// Troubles, tags and fetches that are shown of each.
const MOST_LINES: usize = 8;

/// Cells of a bar.
const BAR: usize = 24;

/// Asks the running mirror; nothing is asked of any upstream.
pub(super) fn status(arguments: &StatusArgs, config: &Config) -> Report {
    let door = match arguments.admin.door(config) {
        Ok(door) => door,
        Err(report) => return report,
    };
    if arguments.watch {
        return Report::failed(&watch(&door, arguments.admin.json));
    }
    arguments.admin.report(door.get::<Status>(PATH), in_words)
}

/// Until Ctrl-C, or an error. JSON is an object a line.
fn watch(door: &Door, as_json: bool) -> anyhow::Error {
    let mut out = std::io::stdout();
    let is_screen = out.is_terminal() && !as_json;
    loop {
        let shown = match door.get::<Status>(PATH) {
            Ok((_, json)) if as_json => json,
            Ok((status, _)) if is_screen => on_screen(&in_words(&status)),
            Ok((status, _)) => format!("{}\n", in_words(&status)),
            Err(error) => return error,
        };
        if let Err(error) = out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
            return error.into();
        }
        #[expect(clippy::disallowed_methods)] // nobody else lives on this thread
        std::thread::sleep(EVERY);
    }
}

/// Over what was there before, without a flicker: from the top, each line to its end, and nothing below.
fn on_screen(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

fn in_words(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:<10} {value}").expect("a String takes every text");
    };
    let offline = if status.offline { ", offline" } else { "" };
    line(
        "tidelock",
        &format!("{}, {}{offline}, up {}", status.version, status.phase, time(status.uptime_seconds)),
    );
    line("hits", &of_traffic(status));
    line(
        "bytes",
        &format!(
            "{} to clients, {} from upstreams, {} saved",
            size(status.traffic.sent_bytes),
            size(status.traffic.fetched_bytes),
            size(status.traffic.saved_bytes)
        ),
    );
    line("cache", &of_cache(&status.cache));
    for reason in &status.cache.failing {
        line("", &format!("nothing can be kept at the moment: {reason}; pulls go on uncached"));
    }
    let (idle, others): (Vec<&UpstreamBudget>, Vec<_>) = status.upstreams.iter().partition(|it| is_idle(it));
    for upstream in others {
        let names = [("upstream", upstream.registry.as_str())].into_iter().chain(std::iter::repeat(("", "")));
        for (word, (label, name)) in of_budget(upstream).iter().zip(names) {
            line(label, &format!("{name:<20} {word}"));
        }
    }
    if !idle.is_empty() {
        let names: Vec<&str> = idle.iter().map(|upstream| upstream.registry.as_str()).collect();
        line("idle", &names.join(", "));
    }
    shortened(&status.fetches, |fetch| line("fetching", &of_fetch(fetch)));
    shortened(&status.popular, |popular| {
        line("popular", &format!("{:>6} × {}", popular.pulls, popular.image))
    });
    shortened(&status.troubles, |trouble| {
        let times = if trouble.times > 1 { format!(" ({} times)", trouble.times) } else { String::new() };
        line("trouble", &format!("{} {}{times}: {}", trouble.status, trouble.what, trouble.message));
    });
    text
}

/// Nobody waits, nothing is in the way, and nothing is known of a limit.
fn is_idle(upstream: &UpstreamBudget) -> bool {
    let waiting = &upstream.waiting;
    let is_quiet = upstream.connections + waiting.foreground + waiting.revalidation + waiting.background == 0;
    let is_unheard = |account: &Account| account.heard_seconds_ago.is_none() && account.standing != "aside";
    is_quiet
        && upstream.paused.is_empty()
        && upstream.down.is_empty()
        && upstream.accounts.iter().all(is_unheard)
}

fn shortened<T>(list: &[T], show: impl FnMut(&T)) {
    list.iter().take(MOST_LINES).for_each(show);
}

fn of_traffic(status: &Status) -> String {
    let of = |outcome: &str| status.traffic.requests.get(outcome).copied().unwrap_or_default();
    let outcomes = ["hit", "stale", "revalidated", "joined", "miss", "negative", "denied", "error"];
    let counts: Vec<String> = outcomes
        .iter()
        .filter(|outcome| of(outcome) > 0)
        .map(|outcome| format!("{} {outcome}", of(outcome)))
        .collect();
    match status.traffic.hit_ratio {
        Some(ratio) => format!("{:.1} % ({})", ratio * 100.0, counts.join(", ")),
        None if counts.is_empty() => "nothing was asked for yet".to_owned(),
        None => counts.join(", "),
    }
}

fn of_cache(cache: &CacheState) -> String {
    let CacheState { bytes, limit, pinned, blobs, .. } = cache;
    let pinned = if *pinned > 0 { format!(", {} pinned", size(*pinned)) } else { String::new() };
    format!(
        "{} {} of {}, {blobs} blobs and manifests{pinned}",
        bar(*bytes, *limit),
        size(*bytes),
        size(*limit)
    )
}

fn of_fetch(fetch: &Fetch) -> String {
    let digest: String = fetch.digest.chars().take(19).collect();
    let far = match fetch.total {
        Some(total) => format!("{} {} of {}", bar(fetch.received, total), size(fetch.received), size(total)),
        None => format!("[{}] {}", " ".repeat(BAR), size(fetch.received)),
    };
    format!("{far}  {}@{digest}, for {}", fetch.repository, time(fetch.seconds))
}

fn bar(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) };
    let full = (share * BAR as f64).round() as usize;
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Popular, Traffic, Trouble};

    fn example() -> Status {
        let cache = CacheState {
            bytes: 1 << 30,
            limit: 4 << 30,
            pinned: 1 << 20,
            partial: 0,
            blobs: 7,
            failing: Vec::new(),
        };
        let requests = [("hit".to_owned(), 3), ("miss".to_owned(), 1), ("error".to_owned(), 1)];
        let (sent_bytes, fetched_bytes, saved_bytes) = (3 << 20, 1 << 20, 2 << 20);
        let traffic = Traffic {
            requests: requests.into(),
            hit_ratio: Some(0.75),
            sent_bytes,
            fetched_bytes,
            saved_bytes,
        };
        let fetch = |total| Fetch {
            repository: "docker.io/library/a".to_owned(),
            digest: format!("sha256:{}", "0".repeat(64)),
            received: 512,
            total,
            seconds: 3,
        };
        let trouble = Trouble {
            at: 0,
            client: None,
            what: "GET /v2/x".to_owned(),
            status: 502,
            reason: "down".to_owned(),
            message: "nobody answers".to_owned(),
            times: 2,
        };
        Status {
            version: "1".to_owned(),
            phase: "ready".to_owned(),
            offline: false,
            uptime_seconds: 61,
            traffic,
            cache,
            fetches: vec![fetch(Some(1024)), fetch(None)],
            upstreams: Vec::new(),
            popular: vec![Popular { image: "docker.io/library/a:1".to_owned(), pulls: 12 }],
            troubles: vec![trouble],
        }
    }

    #[test]
    fn at_a_glance() {
        let text = in_words(&example());
        for part in [
            "tidelock   1, ready, up 1m 1s\n",
            "hits       75.0 % (3 hit, 1 miss, 1 error)\n",
            "bytes      3.0 MiB to clients, 1.0 MiB from upstreams, 2.0 MiB saved\n",
            "cache      [======                  ] 1.0 GiB of 4.0 GiB, 7 blobs and manifests, 1.0 MiB pinned\n",
            "fetching   [============            ] 512 B of 1.0 KiB  docker.io/library/a@sha256:000000000000, for 3s\n",
            "popular        12 × docker.io/library/a:1\n",
            "trouble    502 GET /v2/x (2 times): nobody answers\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let idle = Status { traffic: Traffic::default(), ..example() };
        assert!(in_words(&idle).contains("nothing was asked for yet"));
    }

    #[test]
    fn a_screen_is_written_over() {
        assert_eq!(on_screen("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn bars_never_burst() {
        for (part, whole) in [(0, 0), (5, 0), (5, 3), (u64::MAX, 1)] {
            assert_eq!(bar(part, whole).len(), BAR + 2);
        }
    }
}
