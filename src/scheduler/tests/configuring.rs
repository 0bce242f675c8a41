//! What the operator allows becomes something else meanwhile.

use super::*;

fn config(adjust: impl Fn(&mut Config)) -> Config {
    let mut config = Config::default();
    config.upstreams.truncate(1);
    config.upstreams[0].requests_per_second = 1_000_000;
    adjust(&mut config);
    config
}

#[tokio::test(start_paused = true)]
async fn more_connections_let_who_waits_go() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
    let held = scheduler.question().await.unwrap();
    let own = scheduler.clone();
    let waiting = Lifecycle::default().spawn("waiting", async move { own.question().await });
    tokio::task::yield_now().await;
    assert_eq!(scheduler.outlook()[0].waiting, [1, 0, 0]);
    let begun = Instant::now();
    scheduler.configure(&config(|config| config.upstreams[0].max_connections = 2));
    let second = waiting.await.unwrap().unwrap();
    assert_eq!((begun.elapsed(), scheduler.outlook()[0].connections), (Duration::ZERO, (2, 2)));

    // Fewer: what is under way goes on, and counts.
    scheduler.configure(&config(|config| config.upstreams[0].max_connections = 1));
    assert_eq!(scheduler.outlook()[0].connections, (2, 1));
    drop(held);
    assert!(matches!(scheduler.question().await, Err(Refused::Busy { connections: 1, .. })));
    drop(second);
    assert!(scheduler.question().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_quarter_is_kept_of_what_there_is_now() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 4);
    scheduler.configure(&config(|config| config.upstreams[0].max_connections = 8));
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(scheduler.transfer().await.unwrap());
    }
    assert!(scheduler.transfer().await.is_err());
    assert!(scheduler.question().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_pace() {
    let slow = |config: &mut Config| config.upstreams[0].requests_per_second = 1;
    let scheduler = scheduler(slow);
    drop(scheduler.question().await.unwrap());
    let own = scheduler.clone();
    let waiting = Lifecycle::default().spawn("waiting", async move { own.question().await.is_ok() });
    tokio::task::yield_now().await;
    let begun = Instant::now();
    // The same once more does not begin a new second.
    scheduler.configure(&config(slow));
    tokio::time::advance(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    scheduler.configure(&config(|_| {}));
    assert!(waiting.await.unwrap() && begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn another_patience_for_who_comes_now() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
    let _held = scheduler.question().await.unwrap();
    scheduler.configure(&config(|config| {
        config.upstreams[0].max_connections = 1;
        config.schedule.max_wait = Duration::from_secs(3);
    }));
    let begun = Instant::now();
    assert!(scheduler.question().await.is_err());
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn another_reserve() {
    let scheduler = scheduler(|config| config.schedule.reserve = crate::config::Share(50));
    scheduler.spend(40).await;
    assert!(scheduler.pulls(&Errand::background().or_else()).await.is_err());
    scheduler.configure(&config(|config| config.schedule.reserve = crate::config::Share(10)));
    assert!(scheduler.pulls(&Errand::background().or_else()).await.is_ok());
    assert_eq!(scheduler.outlook()[0].accounts[0].remaining, Some(40), "what is left is what was left");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_was_set_aside_tries_again_and_may_be_for_something_else() {
    let with = |globs: &'static [&'static str]| {
        move |config: &mut Config| {
            config.upstreams[0].anonymous = crate::config::Anonymous::Never;
            config.upstreams[0].accounts = accounts(&["ci"]);
            config.upstreams[0].accounts[0].repositories =
                globs.iter().map(|glob| glob.parse().unwrap()).collect();
        }
    };
    let scheduler = scheduler(with(&["**"]));
    let lease = scheduler.question().await.unwrap();
    lease.login_refused(0, "a wrong password");
    drop(lease);
    assert!(scheduler.question().await.is_err());
    scheduler.configure(&config(with(&["**"])));
    assert_eq!(scheduler.outlook()[0].accounts[0].fault, None);
    assert!(scheduler.question().await.is_ok());
    scheduler.configure(&config(with(&["other/**"])));
    assert!(matches!(scheduler.question().await, Err(Refused::Nobody { .. })));
}
