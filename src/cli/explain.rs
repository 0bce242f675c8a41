//! `tidelock explain`: why a pull would hit, wait, be stale or miss.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use http::Method;

use super::ask::ImageArgs;
use super::report::Report;
use super::words::time;
use crate::admin::{Account, Down, Explained, Tag, UpstreamBudget};
use crate::config::Config;

/// Asks the running mirror; nothing is asked of any upstream.
pub(super) fn explain(arguments: &ImageArgs, config: &Config) -> Report {
    arguments.ask(Method::GET, "explain", config, in_words)
}

fn in_words(explained: &Explained) -> String {
    let mut text = format!("{}\n", explained.image);
    let mut line = |name: &str, value: &str| {
        writeln!(text, "  {name:<9} {value}").expect("a String takes every text");
    };
    line("upstream", &format!("{}, repository {}", explained.upstream, explained.repository));
    if let Some(tag) = &explained.tag {
        line("tag", &of_tag(tag));
    } else if !explained.reference.contains(':') {
        line("tag", "not known here");
    }
    if let Some(trouble) = &explained.trouble {
        line("trouble", &format!("the last check failed: {trouble}"));
    }
    if let Some(content) = &explained.content {
        let is_here = if content.manifest_cached { "cached" } else { "not cached" };
        line("manifest", is_here);
        if content.manifests > 0 {
            line("platforms", &format!("{} of {} cached", content.manifests_cached, content.manifests));
        }
        if content.blobs > 0 {
            line("blobs", &format!("{} of {} cached", content.blobs_cached, content.blobs));
        }
    }
    line("account", &of_payer(explained));
    for word in explained.budget.iter().flat_map(of_budget) {
        line("", &word);
    }
    line("so", outcome(&explained.prospect));
    text
}

fn of_tag(tag: &Tag) -> String {
    let judged = match tag.verdict.as_str() {
        "serve" => "fresh, served unasked",
        "serve_and_check" => "served at once and checked behind the client's back",
        "check" => "due for a check",
        "held" => "held at this until `tidelock release`",
        _ => "nobody may be asked",
    };
    let since = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(tag.since));
    format!("{} since {since}; confirmed {} ago: {judged}", tag.digest, time(tag.age_seconds))
}

fn of_payer(explained: &Explained) -> String {
    match (&explained.payer, &explained.refused) {
        (Some(payer), _) if payer.metered => {
            format!(
                "{} would pay one pull for each manifest that is not cached, at {}",
                payer.account, payer.endpoint
            )
        }
        (Some(payer), _) => {
            format!("{} would ask {}, which counts no pulls of this", payer.account, payer.endpoint)
        }
        (None, Some(refused)) => refused.clone(),
        (None, None) => "nobody".to_owned(),
    }
}

/// How an upstream stands: a line for each account, then for what is in the way, then for who waits.
pub(super) fn of_budget(budget: &UpstreamBudget) -> Vec<String> {
    let mut words: Vec<String> = budget.accounts.iter().map(of_account).collect();
    words.extend(budget.paused.iter().map(|pause| {
        format!(
            "{} is left alone for another {}: it has had too many requests",
            pause.endpoint,
            time(pause.seconds)
        )
    }));
    words.extend(budget.down.iter().map(|down| {
        let about = down.repository.as_ref().map(|name| format!(" about {name}")).unwrap_or_default();
        let Down { endpoint, since_seconds, retry_seconds, reason, .. } = down;
        format!(
            "{endpoint} does not answer{about}, since {} ago; it is tried again in {}; at last: {reason}",
            time(*since_seconds),
            time(*retry_seconds)
        )
    }));
    let waiting = budget.waiting.foreground + budget.waiting.revalidation + budget.waiting.background;
    words.push(match waiting {
        0 => format!("nobody waits; {} of {} connections in use", budget.connections, budget.max_connections),
        _ => format!(
            "{waiting} wait ({} pulls, {} checks, {} in the background); {} of {} connections in use",
            budget.waiting.foreground,
            budget.waiting.revalidation,
            budget.waiting.background,
            budget.connections,
            budget.max_connections
        ),
    });
    words
}

fn of_account(account: &Account) -> String {
    let Account { account: name, endpoint, .. } = account;
    let heard =
        account.heard_seconds_ago.map(|ago| format!(", as told {} ago", time(ago))).unwrap_or_default();
    match (account.standing.as_str(), account.limit, account.remaining) {
        ("aside", ..) => {
            let fault = account.fault.as_deref().unwrap_or("its login was refused");
            format!("{name} at {endpoint} is set aside: {fault}")
        }
        ("unlimited", ..) => format!("{name} at {endpoint}: no limit{heard}"),
        (_, Some(limit), Some(remaining)) => {
            let window =
                account.window_seconds.map(|window| format!(" in {}", time(window))).unwrap_or_default();
            let back = account.recovery_seconds.filter(|_| remaining == 0);
            let back = back.map(|left| format!(", the next in {}", time(left))).unwrap_or_default();
            let ends = account.exhaustion_seconds.filter(|left| *left > 0);
            let ends = ends.map(|left| format!(", spent in {} at this pace", time(left))).unwrap_or_default();
            format!("{name} at {endpoint}: {remaining} of {limit} pulls left{window}{back}{ends}{heard}")
        }
        ("spent", ..) => format!("{name} at {endpoint}: spent{heard}"),
        _ if account.heard_seconds_ago.is_some() => {
            format!("{name} at {endpoint}: no limit told so far{heard}")
        }
        _ => format!("{name} at {endpoint}: nothing known yet"),
    }
}

fn outcome(prospect: &str) -> &str {
    match prospect {
        "hit" => "a pull is served from the cache without asking anybody",
        "hit_then_check" => {
            "a pull is served from the cache at once; the tag is checked afterwards by a free HEAD"
        }
        "check" => "a pull checks the tag by a free HEAD, then is served from the cache unless it has moved",
        "stale" => "a pull is served from the cache although the tag cannot be checked now",
        "miss" => "a pull fetches it from the upstream",
        "held" => "a pull waits for `schedule.max_wait`, then is told to come again",
        "down" => "a pull is told at once that nobody answers there",
        "negative" => "a pull is told that there is no such image: the upstream said so a moment ago",
        "offline" => "a pull is told that it is not here: this mirror is offline",
        other => other,
    }
}
