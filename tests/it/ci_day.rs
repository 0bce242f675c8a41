//! Docker Hub's limit stops no build: days of 500 runners in virtual time.

use tidelock::config::Freshness;

use crate::support::behaviour::{AbuseLimit, Behaviour, RateLimit};
use crate::support::day::{DAY, Day, MINUTE, PROJECTS, Pulled, RUNNERS, plan};

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
