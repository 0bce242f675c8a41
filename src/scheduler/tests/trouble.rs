//! Upstreams that refuse in odd ways, or say odd things of their limits.

use super::*;

/// One burst of abuse 429s without Retry-After.
#[tokio::test(start_paused = true)]
async fn one_burst_is_one_pause() {
    let scheduler = scheduler(|_| {});
    let mut leases = Vec::new();
    for _ in 0..12 {
        leases.push(scheduler.question().await.unwrap());
    }
    for lease in &leases {
        lease.paused(0, None);
    }
    let left = leases[0].pause_left(0).unwrap();
    assert!(left <= Duration::from_secs(2), "{left:?}");
}

/// A publisher's repository, the account spent, and the upstream refuses it after all.
#[tokio::test(start_paused = true)]
async fn who_is_refused_is_metered_after_all() {
    let scheduler = scheduler(|config| config.upstreams[0].accounts = accounts(&["a"]));
    scheduler.learn(5).await;
    scheduler.learn_nothing().await;
    let begun = Instant::now();
    let mut sent = 0;
    for _ in 0..100 {
        let Ok(pull) = scheduler.pulls(&client(1)).await else { break };
        let _ = pull.send();
        sent += 1;
        pull.as_ref().refused(Some(&told(100, 0)), Some(Duration::from_secs(3600)));
        pull.in_vain();
    }
    assert!(sent <= 2, "{sent} counted GETs in {:?} on accounts that rest", begun.elapsed());
}

/// Retry-After: 0 with a spent quota.
#[tokio::test(start_paused = true)]
async fn come_back_at_once_is_not_taken_literally() {
    let scheduler = scheduler(|_| {});
    let begun = Instant::now();
    let mut sent = 0;
    for _ in 0..17 {
        let Ok(pull) = scheduler.pulls(&client(1)).await else { break };
        let _ = pull.send();
        sent += 1;
        pull.as_ref().refused(None, Some(Duration::ZERO));
    }
    assert!(begun.elapsed() > Duration::ZERO, "{sent} in {:?}", begun.elapsed());
}

/// The answer to an older question comes after that to a newer one.
#[tokio::test(start_paused = true)]
async fn an_older_answer_knows_less() {
    let scheduler = scheduler(|_| {});
    scheduler.learn(90).await;
    let slow = scheduler.question().await.unwrap();
    let slow_sent = slow.send();
    tokio::time::advance(Duration::from_secs(1)).await;
    scheduler.learn(0).await; // others have spent all of it meanwhile
    slow.answered(slow_sent, Some(&told(100, 90)));
    drop(slow);
    let left = scheduler.outlook()[0].accounts[0].remaining;
    assert_eq!(left, Some(0), "");
}

/// What was last pulled is not there, so the probe's HEAD is a 404 each time.
#[tokio::test(start_paused = true)]
async fn a_rest_ends_though_there_is_nothing_to_ask_about() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].accounts = accounts(&["a", "b"]);
        config.upstreams[0].anonymous = crate::config::Anonymous::Never;
    });
    scheduler.learn(5).await; // a: 5 of 100
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    assert_eq!(pull.as_ref().account(), Some(1));
    let _ = pull.send();
    pull.as_ref().refused(None, None);
    drop(pull);
    for _ in 0..100 {
        let probe = scheduler.probe(HUB).await;
        let _ = probe.lease.send(); // 404: `found` returns before `answered`
        probe.lease.let_in(0);
    }
    let b = &scheduler.outlook()[0].accounts[1];
    assert_ne!(b.standing, Standing::Spent, "after 100 probes");
}

/// A stop soon after the last waiter has gone.
#[tokio::test(start_paused = true)]
async fn a_stop_is_not_held_up_by_who_has_gone() {
    let life = Lifecycle::default();
    let mut config = Config::default();
    config.upstreams.truncate(1);
    let scheduler = Scheduler::new(&config, None, &life, &Metrics::default());
    scheduler.spend(0).await;
    assert!(scheduler.pulls(&client(1)).await.is_err());
    let begun = Instant::now();
    life.stop();
    life.wait().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Refusals of requests that were under way together.
#[tokio::test(start_paused = true)]
async fn what_is_refused_together_counts_once() {
    let scheduler = scheduler(|_| {});
    let lease = scheduler.question().await.unwrap();
    lease.answered(lease.send(), None);
    drop(lease);
    let mut pulls = Vec::new();
    for _ in 0..10 {
        let pull = scheduler.pulls(&client(1)).await.unwrap();
        let _ = pull.send();
        pulls.push(pull);
    }
    pulls.iter().for_each(|pull| pull.as_ref().refused(None, None));
    drop(pulls);
    // Afterwards it answers again, without a word: how long until pulls go on?
    let begun = Instant::now();
    while scheduler.outlook()[0].accounts[0].standing == Standing::Spent {
        let probe = scheduler.probe(HUB).await;
        probe.lease.answered(probe.lease.send(), None);
    }
    assert!(begun.elapsed() < Duration::from_secs(180), "{:?}", begun.elapsed());
}

/// A publisher's image is the first that is asked about; then a crowd of others.
#[tokio::test(start_paused = true)]
async fn one_publisher_does_not_speak_for_all() {
    let scheduler = scheduler(|_| {});
    let paid: RepositoryName = "publisher/app".parse().unwrap();
    let lease = scheduler.lease(HUB, Want::question(&paid), &client(1)).await.unwrap();
    lease.answered(lease.send(), None);
    drop(lease);
    let mut pulls = Vec::new();
    for _ in 0..32 {
        pulls.extend(scheduler.pull(HUB, Want::question(&repository()), &tag(), &client(1).or_else()).await);
    }
    assert!(pulls.len() <= 1, "{} at once", pulls.len());
}

/// Only what remains is told, and that is nothing.
#[tokio::test(start_paused = true)]
async fn nothing_left_of_nobody_knows_what_is_no_limit() {
    let scheduler = scheduler(|_| {});
    let odd = Told { remaining: Some(0), ..Told::default() };
    for _ in 0..3 {
        let pull = scheduler.pulls(&client(1)).await.unwrap();
        let sent = pull.send();
        pull.answered(sent, Some(&odd));
    }
    let first = scheduler.pulls(&client(1)).await;
    let second = scheduler.pulls(&client(1)).await;
    assert!(first.is_ok() && second.is_ok(), "{second:?}");
}

/// Answers came while leases were out that nobody had counted yet.
#[tokio::test(start_paused = true)]
async fn what_is_not_sent_yet_is_not_counted_yet() {
    let scheduler = scheduler(|_| {});
    scheduler.learn(100).await;
    let mut pulls = Vec::new();
    for _ in 0..20 {
        pulls.push(scheduler.pulls(&client(1)).await.unwrap());
    }
    scheduler.learn(30).await; // 70 were spent by others; ours are not sent yet
    let mut more = 20;
    while let Ok(pull) =
        scheduler.pull(HUB, Want::question(&repository()), &tag(), &client(1).or_else()).await
    {
        more += 1;
        pulls.push(pull);
        if pulls.len() >= 32 {
            break;
        }
    }
    assert!(more <= 30, "{more} of 30");
}

/// One account is spent for hours, the other is set aside for seconds; and nobody else comes.
#[tokio::test(start_paused = true)]
async fn who_waits_goes_when_an_account_may_log_in_again() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].accounts = accounts(&["a", "b"]);
        config.upstreams[0].anonymous = crate::config::Anonymous::Never;
        config.schedule.max_wait = HOUR;
    });
    assert_eq!(scheduler.spend(0).await, Some(0));
    scheduler.question().await.unwrap().login_refused(0, "wrong password");
    let begun = Instant::now();
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    assert_eq!(pull.as_ref().account(), Some(1));
    assert!(begun.elapsed() <= Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// A publisher pays, and the first account was refused a moment ago.
#[tokio::test(start_paused = true)]
async fn what_is_free_goes_on_an_account_that_does_not_rest() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].accounts = accounts(&["a", "b"]);
        config.upstreams[0].anonymous = crate::config::Anonymous::Never;
    });
    assert_eq!(scheduler.spend(10).await, Some(0));
    assert_eq!(scheduler.spend(0).await, Some(1));
    let paid = Want::question(&"publisher/app".parse().unwrap());
    let pull = scheduler.pull(HUB, paid.clone(), &tag(), &client(1)).await.unwrap();
    let sent = pull.send();
    pull.answered(sent, None);
    drop(pull);
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    assert_eq!(pull.as_ref().account(), Some(0));
    let _ = pull.send();
    pull.as_ref().refused(None, Some(HOUR));
    drop(pull);
    let pull = scheduler.pull(HUB, paid, &tag(), &client(1)).await.unwrap();
    assert_eq!(pull.as_ref().account(), Some(1), "though it has nothing left");
}

/// A refusal without a word may be over by the next probe, so nobody is sent away for an hour.
#[tokio::test(start_paused = true)]
async fn after_a_wordless_refusal_a_minute_is_advised() {
    let scheduler = scheduler(|_| {});
    scheduler.learn(50).await;
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    let _ = pull.send();
    pull.as_ref().refused(None, None);
    drop(pull);
    for _ in 0..3 {
        let refused = scheduler.pulls(&client(1)).await.unwrap_err();
        let Refused::Spent { until, .. } = refused else { panic!("{refused}") };
        assert!((30..=60).contains(&until.as_secs()), "{until:?}");
    }
}

/// Who gives up on a pull that is under way is not told that the account is spent.
#[tokio::test(start_paused = true)]
async fn only_who_waits_for_budget_is_held_up() {
    let scheduler = scheduler(|_| {});
    scheduler.spend(0).await;
    assert_eq!(scheduler.held_up(HUB, &repository()), None);
    let errand = client(1);
    let waiting = scheduler.pulls(&errand);
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert!(matches!(scheduler.held_up(HUB, &repository()), Some(Refused::Spent { .. })));
    assert_eq!(scheduler.held_up(HUB, &"library/other".parse().unwrap()), None);
}

/// Nobody is held for an endpoint that is down, not even who waits for a connection that others keep.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_connection_is_told_that_nobody_answers() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
    let held = scheduler.question().await.unwrap();
    let begun = Instant::now();
    let waiting = scheduler.question();
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    go_down(&held, 0);
    let refused = waiting.await.unwrap_err();
    let Refused::Down(down) = &refused else { panic!("{refused}") };
    assert_eq!((down.endpoint.as_str(), down.is_slow), ("registry-1.docker.io", true));
    assert!(refused.retry_after() <= Some(Duration::from_secs(4)), "{refused}");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    drop(held);
    assert!(matches!(scheduler.question().await, Err(Refused::Down(_))), "whoever comes later neither");
}

/// A mirror that is down is no reason to go away where the origin may have something again, and the other way round.
#[tokio::test(start_paused = true)]
async fn who_waits_for_budget_goes_to_the_mirror_that_is_back() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].endpoints = ["https://mirror.example", "https://registry-1.docker.io"]
            .map(|url| url.parse().unwrap())
            .to_vec();
    });
    let origin = Want::question(&repository()).from(1);
    let pull = scheduler.pull(HUB, origin, &tag(), &client(1)).await.unwrap();
    let sent = pull.send();
    pull.answered(sent, Some(&told(100, 0)));
    go_down(pull.as_ref(), 0);
    drop(pull);
    let at_once = scheduler.pulls(&client(1).or_else()).await.unwrap_err();
    assert!(matches!(at_once, Refused::Spent { .. }), "{at_once}");
    let begun = Instant::now();
    let trial = scheduler.pulls(&client(1)).await.unwrap();
    assert_eq!(trial.as_ref().endpoint(), 0);
    assert!(begun.elapsed() <= Duration::from_secs(4), "{:?}", begun.elapsed());
    // The trial is one request; whoever else comes is held for the origin, and goes when the mirror is back.
    let errand = client(2);
    let second = scheduler.pulls(&errand);
    tokio::pin!(second);
    assert!(futures_util::poll!(&mut second).is_pending());
    trial.as_ref().attempt(0).answered();
    assert_eq!(second.await.unwrap().as_ref().endpoint(), 0);
}

/// A trial that is given up is the next one's to make.
#[tokio::test(start_paused = true)]
async fn a_trial_that_was_not_made_is_made_by_the_next() {
    let scheduler = scheduler(|_| {});
    let lease = scheduler.question().await.unwrap();
    go_down(&lease, 0);
    tokio::time::advance(Duration::from_secs(4)).await;
    let trial = scheduler.question().await.unwrap();
    assert!(matches!(scheduler.question().await, Err(Refused::Down(_))));
    drop(trial);
    let trial = scheduler.question().await.unwrap();
    drop(trial.attempt(0));
    let trial = scheduler.question().await.unwrap();
    trial.attempt(0).failed(&silence());
    assert!(matches!(scheduler.question().await, Err(Refused::Down(_))), "it is down for longer");
}

fn silence() -> Trouble {
    Trouble { reason: "no answer".to_owned(), is_slow: true, is_about_host: true }
}

/// So many fail in a row that the endpoint is left alone.
fn go_down(lease: &Lease, endpoint: usize) {
    (0..breaker::MOST_FAILURES).for_each(|_| lease.attempt(endpoint).failed(&silence()));
}

impl Scheduler {
    async fn learn_nothing(&self) {
        let lease = self.question().await.unwrap();
        lease.answered(lease.send(), None);
    }
}
