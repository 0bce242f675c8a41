//! The scheduler as a whole, with the clock paused.

mod configuring;
mod trouble;

use std::net::IpAddr;

use super::*;
use crate::config::Account;

const HUB: UpstreamId = UpstreamId::new(0);
const HOUR: Duration = Duration::from_secs(3600);

/// A scheduler of docker.io alone, and what it counts.
fn scheduler(adjust: impl Fn(&mut Config)) -> Scheduler {
    let mut config = Config::default();
    config.upstreams.truncate(1);
    config.upstreams[0].requests_per_second = 1_000_000;
    adjust(&mut config);
    Scheduler::new(&config, None, &Lifecycle::default(), &Metrics::default())
}

fn repository() -> RepositoryName {
    "library/app".parse().unwrap()
}

fn tag() -> Reference {
    "v1".parse().unwrap()
}

fn client(number: u8) -> Errand {
    Errand::of(ClientAddr::of(IpAddr::from([10, 0, 0, number])))
}

fn accounts(names: &[&str]) -> Vec<Account> {
    let credentials = || crate::config::Credentials::DockerConfig { file: "/nowhere".into() };
    names.iter().map(|name| Account::new(*name, credentials())).collect()
}

fn told(limit: u64, remaining: i64) -> Told {
    Told { limit: Some(limit), window: Some(6 * HOUR), remaining: Some(remaining), reset: None }
}

impl Scheduler {
    async fn question(&self) -> Result<Lease, Refused> {
        self.lease(HUB, Want::question(&repository()), &client(1)).await
    }

    async fn transfer(&self) -> Result<Lease, Refused> {
        self.lease(HUB, Want::transfer(&repository()), &client(1)).await
    }

    async fn pulls(&self, errand: &Errand) -> Result<Pull, Refused> {
        self.pull(HUB, Want::question(&repository()), &tag(), errand).await
    }

    /// A pull that is answered: so many are left then, of a hundred.
    async fn spend(&self, remaining: i64) -> Option<usize> {
        let pull = self.pulls(&client(1)).await.unwrap();
        let sent = pull.send();
        pull.answered(sent, Some(&told(100, remaining)));
        pull.as_ref().account()
    }

    /// A free answer that tells what is left on the account that would pay.
    async fn learn(&self, remaining: i64) {
        let lease = self.question().await.unwrap();
        lease.answered(lease.send(), Some(&told(100, remaining)));
    }
}

#[tokio::test(start_paused = true)]
async fn never_more_than_max_connections_and_the_wait_ends() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 2);
    let (first, second) = (scheduler.question().await.unwrap(), scheduler.question().await.unwrap());
    let begun = Instant::now();
    assert!(matches!(scheduler.question().await, Err(Refused::Busy { connections: 2, .. })));
    assert_eq!(begun.elapsed(), Duration::from_secs(15));
    drop(first);
    assert!(scheduler.question().await.is_ok());
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn blobs_leave_room_for_questions() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 4);
    let mut transfers = Vec::new();
    for _ in 0..3 {
        transfers.push(scheduler.transfer().await.unwrap());
    }
    assert!(scheduler.transfer().await.is_err());
    let question = scheduler.question().await.unwrap();
    assert!(scheduler.question().await.is_err(), "four connections are four");
    drop((transfers, question));
    assert!(scheduler.transfer().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn requests_are_paced() {
    let scheduler = scheduler(|config| config.upstreams[0].requests_per_second = 10);
    let begun = Instant::now();
    for _ in 0..30 {
        drop(scheduler.question().await.unwrap());
    }
    // Ten at once, the other twenty a tenth of a second apart.
    let taken = begun.elapsed();
    assert!(taken >= Duration::from_millis(1990) && taken < Duration::from_millis(2300), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_leaves_the_queue() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
    let held = scheduler.question().await.unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(1), scheduler.question()).await;
    assert!(gone.is_err());
    assert_eq!(scheduler.outlook()[0].waiting, [0, 0, 0]);
    drop(held);
    assert!(scheduler.question().await.is_ok());
    assert_eq!(scheduler.outlook()[0].connections.0, 0);
}

#[tokio::test(start_paused = true)]
async fn an_account_is_learned_by_one_request_then_known() {
    let scheduler = scheduler(|_| {});
    let scout = scheduler.pulls(&client(1)).await.unwrap();
    let errand = client(2);
    let second = scheduler.pulls(&errand);
    tokio::pin!(second);
    assert!(futures_util::poll!(&mut second).is_pending(), "nobody knows how many are left");
    let sent = scout.send();
    scout.answered(sent, Some(&told(100, 1)));
    drop(scout);
    let second = second.await.unwrap();
    let refused = scheduler.pulls(&client(3)).await.unwrap_err();
    assert!(matches!(&refused, Refused::Spent { account, .. } if account == "anonymous"), "{refused}");
    drop(second); // never sent
    assert!(scheduler.pulls(&client(3)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn without_a_word_there_is_no_limit() {
    let scheduler = scheduler(|_| {});
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    let sent = pull.send();
    pull.answered(sent, None);
    drop(pull);
    let mut pulls = Vec::new();
    for _ in 0..20 {
        pulls.push(scheduler.pulls(&client(1)).await.unwrap());
    }
    // Of one repository: its publisher may pay. A second one settles it.
    assert_eq!(scheduler.outlook()[0].accounts[0].standing, Standing::Unknown);
    let other = Want::question(&"library/other".parse().unwrap());
    let lease = scheduler.lease(HUB, other, &client(1)).await.unwrap();
    lease.answered(lease.send(), None);
    for _ in 0..3 {
        let third = Want::question(&"library/third".parse().unwrap());
        pulls.push(scheduler.pull(HUB, third, &tag(), &client(1)).await.unwrap());
    }
    assert_eq!(scheduler.outlook()[0].accounts[0].standing, Standing::Unlimited);
}

#[tokio::test(start_paused = true)]
async fn a_spent_account_holds_pulls_and_nothing_else() {
    let scheduler = scheduler(|_| {});
    scheduler.spend(0).await;
    let begun = Instant::now();
    let refused = scheduler.pulls(&client(1)).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(15), "held for max_wait");
    let Refused::Spent { account, until, .. } = refused else { panic!("{refused}") };
    assert_eq!(account, "anonymous");
    assert!(until > 5 * HOUR && until <= 6 * HOUR, "{until:?}");
    let begun = Instant::now();
    assert!(scheduler.question().await.is_ok() && scheduler.transfer().await.is_ok());
    let at_once = scheduler.pulls(&client(1).or_else()).await.unwrap_err();
    assert!(matches!(at_once, Refused::Spent { .. }));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_goes_to_those_who_wait_in_order() {
    let scheduler = scheduler(|config| config.schedule.max_wait = 7 * HOUR);
    scheduler.learn(1).await;
    scheduler.spend(0).await;
    let begun = Instant::now();
    let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
    let waits = async |who: &'static str, errand: Errand| {
        drop(scheduler.pulls(&errand).await.unwrap());
        sender.send((who, begun.elapsed())).unwrap();
    };
    tokio::join!(
        waits("check", client(1).at(Priority::Revalidation)),
        waits("pull", client(2)),
        waits("check", client(3).at(Priority::Revalidation)),
    );
    let order: Vec<_> = std::iter::from_fn(|| done.try_recv().ok()).collect();
    assert_eq!(order.iter().map(|(who, _)| *who).collect::<Vec<_>>(), ["pull", "check", "check"]);
    assert!(order.iter().all(|(_, at)| *at >= 6 * HOUR - Duration::from_secs(1)), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn background_work_leaves_the_reserve() {
    let scheduler = scheduler(|_| {});
    scheduler.learn(21).await;
    let first = scheduler.pulls(&Errand::background()).await.unwrap();
    let refused = scheduler.pulls(&Errand::background()).await.unwrap_err();
    assert!(matches!(refused, Refused::Spent { .. }), "20% of 100 are left: {refused}");
    let mut pulls = vec![first];
    for _ in 0..20 {
        pulls.push(scheduler.pulls(&client(1)).await.unwrap());
    }
    assert!(scheduler.pulls(&client(1)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_background_work_makes_it_urgent() {
    let scheduler = scheduler(|_| {});
    scheduler.learn(10).await;
    let errand = Errand::background();
    let ahead = scheduler.pulls(&errand);
    tokio::pin!(ahead);
    assert!(futures_util::poll!(&mut ahead).is_pending());
    errand.urgency().raise(Priority::Foreground);
    assert!(ahead.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_account_with_most_left_pays_and_nobodys_comes_last() {
    let scheduler = scheduler(|config| config.upstreams[0].accounts = accounts(&["a", "b"]));
    // Both are full as far as is known: the first one is asked.
    assert_eq!(scheduler.spend(30).await, Some(0));
    assert_eq!(scheduler.spend(60).await, Some(1));
    let mut left = [30, 60];
    for _ in 0..90 {
        let pull = scheduler.pulls(&client(1)).await.unwrap();
        let account = pull.as_ref().account().expect("an account pays as long as one has something");
        left[account] -= 1;
        let sent = pull.send();
        pull.answered(sent, Some(&told(100, left[account])));
        assert!(left[1] >= 25 || left[0].abs_diff(left[1]) <= 10, "by what is left: {left:?}");
    }
    assert_eq!(left, [0, 0]);
    assert_eq!(scheduler.spend(99).await, None);
}

#[tokio::test(start_paused = true)]
async fn accounts_are_for_their_repositories() {
    let scheduler = scheduler(|config| {
        let mut own = accounts(&["org", "all"]);
        own[0].repositories = vec!["org/**".parse().unwrap()];
        config.upstreams[0].accounts = own;
    });
    assert_eq!(scheduler.spend(50).await, Some(1));
    let want = Want::question(&"org/app".parse().unwrap());
    let pull = scheduler.pull(HUB, want, &tag(), &client(1)).await.unwrap();
    assert_eq!(pull.as_ref().account(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn an_account_that_cannot_log_in_is_set_aside_for_a_while() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].accounts = accounts(&["a", "b"]);
        config.upstreams[0].anonymous = crate::config::Anonymous::Never;
    });
    scheduler.question().await.unwrap().login_refused(0, "wrong password");
    assert_eq!(scheduler.question().await.unwrap().account(), Some(1));
    scheduler.question().await.unwrap().login_refused(0, "wrong password");
    let begun = Instant::now();
    let refused = scheduler.question().await.unwrap_err();
    assert!(matches!(refused, Refused::Aside { .. }), "{refused}");
    assert_eq!(begun.elapsed(), Duration::ZERO, "waiting is of no use");
    tokio::time::advance(Duration::from_secs(11)).await;
    let lease = scheduler.question().await.unwrap();
    assert_eq!(lease.account(), Some(0));
    lease.let_in(0);
    assert_eq!(scheduler.outlook()[0].accounts[0].fault, None);
}

#[tokio::test(start_paused = true)]
async fn an_abuse_limit_pauses_everything_for_all() {
    let scheduler = scheduler(|config| config.schedule.max_wait = HOUR);
    let lease = scheduler.question().await.unwrap();
    lease.paused(0, Some(Duration::from_secs(60)));
    drop(lease);
    let hasty = client(1).or_else();
    let refused = scheduler.lease(HUB, Want::question(&repository()), &hasty).await;
    assert!(matches!(refused, Err(Refused::Paused { .. })));
    let begun = Instant::now();
    let (question, transfer) = tokio::join!(scheduler.question(), scheduler.transfer());
    assert!(question.is_ok() && transfer.is_ok());
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(60) && waited <= Duration::from_secs(67), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn another_endpoint_is_asked_where_one_is_spent_or_paused() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].endpoints.push("https://mirror.example".parse().unwrap());
    });
    scheduler.spend(0).await;
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    assert_eq!(pull.as_ref().endpoint(), 1);
    let lease = scheduler.question().await.unwrap();
    assert_eq!(lease.endpoint(), 0);
    lease.paused(0, None);
    assert_eq!(scheduler.question().await.unwrap().endpoint(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_quota_without_numbers_rests_until_a_free_answer() {
    let scheduler = scheduler(|_| {});
    let pull = scheduler.pulls(&client(1)).await.unwrap();
    let _ = pull.send();
    pull.as_ref().on_its_way();
    pull.as_ref().refused(None, None);
    drop(pull);
    assert!(matches!(scheduler.pulls(&client(1)).await, Err(Refused::Spent { .. })));
    let begun = Instant::now();
    let probe = scheduler.probe(HUB).await;
    assert!(begun.elapsed() <= Duration::from_secs(30));
    assert_eq!((probe.repository, probe.reference), (repository(), tag()));
    probe.lease.answered(probe.lease.send(), Some(&told(100, 40)));
    drop(probe.lease);
    assert!(scheduler.pulls(&client(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn probes_come_at_growing_intervals_and_end() {
    let scheduler = scheduler(|_| {});
    scheduler.spend(0).await;
    let mut at = vec![Instant::now()];
    for _ in 0..8 {
        let probe = scheduler.probe(HUB).await;
        probe.lease.answered(probe.lease.send(), Some(&told(100, 0)));
        at.push(Instant::now());
    }
    let gaps: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] >= Duration::from_secs(15) && gaps[1] > gaps[0], "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= HOUR / 4), "{gaps:?}");
    let probe = scheduler.probe(HUB).await;
    probe.lease.answered(probe.lease.send(), Some(&told(100, 7)));
    drop(probe.lease);
    assert!(tokio::time::timeout(24 * HOUR, scheduler.probe(HUB)).await.is_err(), "it has recovered");
}

#[tokio::test(start_paused = true)]
async fn publishers_who_pay_are_not_held_up() {
    let scheduler = scheduler(|_| {});
    scheduler.learn(1).await;
    let paid: RepositoryName = "publisher/app".parse().unwrap();
    let lease = scheduler.lease(HUB, Want::question(&paid), &client(1)).await.unwrap();
    lease.answered(lease.send(), None);
    drop(lease);
    scheduler.spend(0).await;
    let pull = scheduler.pull(HUB, Want::question(&paid), &tag(), &client(1)).await;
    assert!(pull.is_ok());
    assert!(scheduler.pulls(&client(1)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_farm_does_not_starve_others() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
    let held = scheduler.question().await.unwrap();
    let mut order = Vec::new();
    let order = {
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        let waits = |who: &'static str, errand: Errand| {
            let (scheduler, sender) = (scheduler.clone(), sender.clone());
            async move {
                let want = Want::question(&repository());
                let lease = scheduler.lease(HUB, want, &errand).await.unwrap();
                sender.send(who).unwrap();
                drop(lease);
            }
        };
        let farm = futures_util::future::join_all((0..50).map(|_| waits("farm", client(1))));
        let laptop = waits("laptop", client(2));
        let release = async { drop(held) };
        tokio::join!(farm, laptop, release);
        drop(sender);
        while let Some(who) = done.recv().await {
            order.push(who);
        }
        order
    };
    assert!(order.iter().position(|who| *who == "laptop").unwrap() <= 1, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_queue_has_an_end() {
    let scheduler = scheduler(|config| config.upstreams[0].max_connections = 1);
    let held = scheduler.question().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..10_000 {
        let mut waits = Box::pin(scheduler.question());
        assert!(futures_util::poll!(&mut waits).is_pending());
        waiting.push(waits);
    }
    assert!(matches!(scheduler.question().await, Err(Refused::Crowded { .. })));
    waiting.pop();
    let mut next = Box::pin(scheduler.question());
    assert!(futures_util::poll!(&mut next).is_pending(), "a place is free again");
    drop((waiting, held));
    assert!(next.await.is_ok());
}

/// Who tries an account out names it; who pays for a pull is chosen all the same (I2).
#[tokio::test(start_paused = true)]
async fn an_account_that_is_named_is_the_one() {
    let scheduler = scheduler(|config| {
        config.upstreams[0].accounts = accounts(&["ci", "spare"]);
        config.upstreams[0].accounts[1].repositories = vec!["elsewhere/**".parse().unwrap()];
    });
    let only = |account| Want::question(&repository()).only(0, account);
    for account in [Some(0), Some(1), None] {
        let lease = scheduler.lease(HUB, only(account), &client(1)).await.unwrap();
        lease.login_refused(0, "wrong password");
        assert_eq!((lease.endpoint(), lease.account()), (0, account));
        drop(lease);
        assert!(scheduler.lease(HUB, only(account), &client(1)).await.is_ok());
    }
    let absent = scheduler.lease(HUB, only(Some(2)), &client(1)).await;
    assert!(matches!(absent, Err(Refused::Nobody { .. })));
    let pull = scheduler.pull(HUB, only(Some(1)), &tag(), &client(1)).await.unwrap();
    assert_eq!(pull.as_ref().account(), None, "one is set aside, the other is for other repositories");
}

#[tokio::test(start_paused = true)]
async fn what_a_reset_brings_forward_goes_to_those_who_wait() {
    let scheduler = scheduler(|_| {});
    scheduler.spend(0).await;
    let errand = client(1);
    let waits = scheduler.pulls(&errand);
    tokio::pin!(waits);
    assert!(futures_util::poll!(&mut waits).is_pending());
    let begun = Instant::now();
    let lease = scheduler.question().await.unwrap();
    lease.answered(lease.send(), Some(&Told { reset: Some(Duration::from_secs(5)), ..told(100, 0) }));
    drop(lease);
    assert!(waits.await.is_ok());
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}
