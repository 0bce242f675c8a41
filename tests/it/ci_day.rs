//! Docker Hub's limit stops no build: days of 500 runners in virtual time.

use std::path::Path;
use std::time::Duration;

use tidelock::config::{Account, Credentials, Freshness, Schedule};

use crate::support::behaviour::{AbuseLimit, Behaviour, RateLimit};
use crate::support::client::PullError;
use crate::support::day::{DAY, Day, MANIFESTS, MINUTE, PROJECTS, Pull, Pulled, RUNNERS, plan};
use crate::support::log::Record;

const SECOND: Duration = Duration::from_secs(1);
/// A check of a tag that has something to fall back on is waited for so long, beside `max_wait`.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);
/// While pulls wait the clock goes on in steps.
const LEEWAY: Duration = Duration::from_secs(3);
/// A mirror that keeps count is hardly ever refused.
const FEW: usize = 3;
/// Projects that are pulled first, one after the other: cached when a budget of ten is almost spent.
const EARLY: usize = 4;
const PASSWORD: &str = "secret";

/// Docker Hub as it meets those without an account.
fn anonymous(limit: i64) -> impl FnOnce(&mut Behaviour) {
    move |behaviour| {
        behaviour.rate_limit = Some(RateLimit::new(limit));
        behaviour.abuse = Some(AbuseLimit::new(1000, 60));
    }
}

/// Pulls that failed, in words.
fn failures<'a>(pulled: impl IntoIterator<Item = &'a Pulled>) -> Vec<String> {
    let told = |pulled: &Pulled| {
        let error = pulled.result.as_ref().err()?;
        Some(format!("{:?} at {:?} after {:?}: {error}", pulled.pull, pulled.at, pulled.took))
    };
    pulled.into_iter().filter_map(told).collect()
}

/// How often the Hub refused a manifest.
fn quota_refusals(day: &Day) -> usize {
    day.hub.log().matching(|record| record.is_manifest_get() && record.status == Some(429)).len()
}

/// How often the Hub said what a tag means.
fn tag_checks(day: &Day) -> usize {
    let is_check = |path: &str| path.rsplit('/').next().is_some_and(|reference| !reference.contains(':'));
    let heads = |method: &str, status| method == "HEAD" && status == Some(200);
    day.hub.log().matching(|record| heads(&record.method, record.status) && is_check(&record.path)).len()
}

#[tokio::test(start_paused = true)]
async fn no_pull_fails_within_the_limit() {
    let mut day = Day::begin(anonymous(100), |_| {}).await;
    let freshness = Freshness::default();
    // Unconfirmed for longer than this, a tag is asked for before it is served.
    let longest = freshness.tag_ttl + freshness.stale_while_revalidate;
    let mut pulls = 0;
    for round in plan(90 * MINUTE, 2 * MINUTE) {
        let pulled = day.go_on(&round).await;
        assert_eq!(failures(&pulled), Vec::<String>::new(), "{:?}", day.hub.behaviour().rate_limit);
        for (pulled, image) in pulled.iter().filter_map(|pulled| Some((pulled, pulled.result.as_ref().ok()?)))
        {
            assert!(day.is_right(pulled, image, Some(longest)), "{:?} at {:?}", pulled.pull, pulled.at);
        }
        pulls += pulled.len();
    }
    assert!(pulls >= RUNNERS * 3, "{pulls} pulls");
    let needed = day.manifests_out();
    assert_eq!(needed, 90);
    let counted = day.hub.counted();
    assert!(counted as f64 <= 1.05 * needed as f64, "{counted} counted GETs for {needed} manifests");
    assert_eq!(quota_refusals(&day), 0);
    // Once in every `tag_ttl`; once at the start; and once more for two that cross.
    let most = PROJECTS * (DAY.div_duration_f64(freshness.tag_ttl) as usize + 2);
    assert!(tag_checks(&day) <= most, "{} HEADs, at most {most}", tag_checks(&day));
}

#[tokio::test(start_paused = true)]
async fn with_the_limit_spent_what_is_cached_is_served() {
    let mut day = Day::begin(anonymous(10), |_| {}).await;
    for project in 0..EARLY {
        assert_eq!(failures(&day.pull(&[docker(project)]).await), Vec::<String>::new());
    }
    let (mut served, mut refused) = (0, 0);
    // Every runner once.
    for round in plan(DAY, 10 * MINUTE) {
        for pulled in day.go_on(&round).await {
            check_with_the_limit_spent(&day, &pulled);
            *(if pulled.result.is_ok() { &mut served } else { &mut refused }) += 1;
        }
    }
    assert!(served > 40 && refused > 200, "{served} were served, {refused} refused");
    assert!(day.hub.counted() <= 10, "{:?}", day.hub.log().summary());
    assert!(quota_refusals(&day) <= FEW, "{} refusals", quota_refusals(&day));
}

/// What is cached is served; for the rest a client is held for a while and told when to come again.
fn check_with_the_limit_spent(day: &Day, pulled: &Pulled) {
    let about = format!("{:?} at {:?} after {:?}", pulled.pull, pulled.at, pulled.took);
    let longest = Schedule::default().max_wait + CHECK_PATIENCE + LEEWAY;
    match &pulled.result {
        Ok(image) => {
            assert!(day.is_right(pulled, image, None), "{about}");
            assert!(!pulled.was_cached || pulled.took <= CHECK_PATIENCE + LEEWAY, "{about}");
        }
        Err(PullError::Status { reply, .. }) => {
            assert!(!pulled.was_cached, "{about}: {}", reply.text());
            assert_eq!((reply.status, reply.error_code().as_str()), (429, "TOOMANYREQUESTS"), "{about}");
            assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|wait| wait > 0), "{about}");
            assert!(pulled.took <= longest, "{about}");
        }
        Err(error) => panic!("{about}: {error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn when_budget_returns_the_waiting_pulls_come_first() {
    let mut day = Day::begin(anonymous(10), |_| {}).await;
    let pull_well = async |day: &Day, projects: &[usize]| {
        let pulls: Vec<Pull> = projects.iter().copied().map(docker).collect();
        let pulled = day.pull(&pulls).await;
        assert_eq!(failures(&pulled), Vec::<String>::new());
        pulled
    };
    pull_well(&day, &[0, 1, 2, 3]).await;
    day.clock.advance_to(MINUTE).await;
    pull_well(&day, &[4]).await;
    check_with_the_limit_spent(&day, &day.pull(&[docker(5)]).await[0]);

    // A tag that was confirmed and then moved is looked after behind the client's back, which waits too.
    day.clock.advance_to(DAY - 10 * MINUTE).await;
    pull_well(&day, &[0]).await;
    day.move_tag(0);
    day.clock.advance_to(DAY - 10 * SECOND).await;
    pull_well(&day, &[0]).await;
    assert_eq!((day.hub.counted(), quota_refusals(&day)), (10, 0));

    // Eight are back after ten seconds.
    let waiting = [6, 7, 8];
    for pulled in pull_well(&day, &waiting).await {
        assert!(pulled.at < DAY && pulled.at + pulled.took >= DAY, "{pulled:?}");
        assert!(pulled.took <= Schedule::default().max_wait, "{pulled:?}");
    }
    let counted = day.hub.log().matching(Record::is_counted);
    let first: Vec<&str> = counted[10..][..waiting.len()].iter().map(|record| record.path.as_str()).collect();
    for name in waiting.map(|project| day.name(project)) {
        assert!(first.iter().any(|path| path.contains(&format!("/{name}/"))), "{name} is not in {first:?}");
    }
    for window in counted.windows(11) {
        assert!(window[10].at - window[0].at >= DAY, "eleven pulls within the window");
    }
    assert_eq!(quota_refusals(&day), 0);
}

#[tokio::test(start_paused = true)]
async fn the_work_is_spread_over_accounts_by_what_they_have_left() {
    let folder = tempfile::tempdir().unwrap();
    // The first is not the one with the most.
    let left = [30, 60, 90];
    let names: Vec<String> = (0..left.len()).map(|number| format!("ci-{number}")).collect();
    let limits = |behaviour: &mut Behaviour| {
        behaviour.rate_limit = Some(RateLimit::new(100));
        for (name, left) in names.iter().zip(left) {
            behaviour.account_limits.insert(name.clone(), RateLimit::new(100).remaining(left));
        }
    };
    let day = Day::begin(limits, |config| {
        config.upstreams[0].accounts = names.iter().map(|name| account(name, folder.path())).collect();
    })
    .await;
    for name in &names {
        day.hub.tokens().add_account(name, PASSWORD);
    }
    let pulls: Vec<Pull> = (0..PROJECTS).map(docker).collect();
    // One after the other until each account has been heard of: as long as the first answer is awaited on the others,
    // whoever is known pays for all, and how many that is depends on the machine.
    let (first, others) = pulls.split_at(names.len());
    for some in first.chunks(1).chain(others.chunks(5)) {
        assert_eq!(failures(&day.pull(some).await), Vec::<String>::new());
    }
    let behaviour = day.hub.behaviour();
    let now_left: Vec<i64> = names.iter().map(|name| behaviour.account_limits[name].left()).collect();
    let ideal = each_from_the_fullest(left, PROJECTS * MANIFESTS);
    let is_near = |(left, ideal): (&i64, &i64)| (left - ideal).abs() <= 4;
    assert!(now_left.iter().zip(&ideal).all(is_near), "{now_left:?} are left where {ideal:?} could be");
    assert_eq!(day.hub.counted_for(None), 0);
    assert_eq!(behaviour.rate_limit.map(|limit| limit.left()), Some(100));
}

/// What would be left if each pull were paid by whoever has the most.
fn each_from_the_fullest<const N: usize>(mut left: [i64; N], pulls: usize) -> [i64; N] {
    for _ in 0..pulls {
        *left.iter_mut().max().expect("there are accounts") -= 1;
    }
    left
}

/// An account whose password is in a file of its name.
fn account(name: &str, folder: &Path) -> Account {
    let file = folder.join(name);
    std::fs::write(&file, PASSWORD).unwrap();
    let credentials = Credentials::PasswordFile { username: name.to_owned(), file };
    Account::new(name, credentials)
}

/// A pull as containerd does it.
fn docker(project: usize) -> Pull {
    Pull { runner: 1, project }
}
