//! A day of builds at Docker Hub's limit, through Tidelock and through Debian's docker-registry as a proxy.
//!
//! The table that the README shows:
//! `cargo test --features clients --test clients peer -- --nocapture`
//!
//! Each has a Hub of its own, and gets the same pulls in the same order. A build is a few jobs that begin at
//! the same moment and pull the same image, as pipelines do: pulls that never meet cost both the same. The
//! mirrors are processes, so the day passes in real time, but in seconds, and Tidelock's freshness is
//! shortened as much. The Hub's window is not: what is spent does not come back to either.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidelock::config::Freshness;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::fakes::behaviour::{Auth, RateLimit};
use crate::fakes::client::{Client, PullError, PulledImage};
use crate::fakes::faults::{Fault, Match, Times};
use crate::fakes::images::Image;
use crate::fakes::registry::FakeRegistry;
use crate::support::{DockerProxy, Mirror, Tidelock, client, stdout};

/// Docker Hub's, for those without an account.
const LIMIT: i64 = 100;
/// How long the Hub takes to answer anything: a near one.
const ROUND_TRIP: Duration = Duration::from_millis(50);
const PROJECTS: usize = 30;
/// Tags that move: those of every other project.
const MOVES: usize = 15;
/// Manifests that a pull needs: the index and its platform.
const MANIFESTS: usize = 2;
const RUNNERS: usize = 60;
/// Jobs of a build.
const JOBS: usize = 4;
const ROUNDS: usize = 18;
/// From one round to the next: twenty minutes of the day.
const ROUND: Duration = Duration::from_secs(1);
/// As long as Docker Hub's window.
const DAY: Duration = Duration::from_secs(6 * 3600);
const TAG: &str = "stable";

/// What happens at one time of the day; the tags move first.
struct Round {
    /// The projects whose tags move.
    moves: Vec<usize>,
    /// The project of each build.
    builds: Vec<usize>,
}

/// A Docker Hub, and who pulls from it through a mirror.
struct Day {
    hub: FakeRegistry,
    projects: Vec<Project>,
}

/// A repository with two releases, of which the second comes out when the tag moves.
struct Project {
    name: String,
    releases: [Image; 2],
    moved: bool,
}

/// What came of a day.
#[derive(Default)]
struct Report {
    pulls: usize,
    /// Why pulls failed, and how many.
    failures: BTreeMap<String, usize>,
    /// Pulls that got what the tag had meant before it moved.
    former: usize,
    counted: usize,
    refused: usize,
    heads: usize,
    blobs: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_within_the_limit_beside_docker_registry() {
    let dir = TempDir::with_prefix("tidelock-").unwrap();
    let [ours, theirs] = ["tidelock", "docker-registry"].map(|name| dir.path().join(name));
    fs::create_dir(&ours).unwrap();
    fs::create_dir(&theirs).unwrap();
    let (mut day, mut other_day) = (Day::begin().await, Day::begin().await);
    let tidelock = Tidelock::start(&ours, day.hub.addr().port(), &freshness());
    let peer = DockerProxy::start(&theirs, &other_day.hub.url());
    let rounds = plan();

    // Side by side but in turn, so that neither has to work while the other does.
    let now = Instant::now();
    let (report, peers) = tokio::join!(
        day.pass(tidelock.mirror, &rounds, now),
        other_day.pass(peer.mirror, &rounds, now + ROUND / 2)
    );
    let query = ["--show", "--showformat=${Version}", "docker-registry"];
    let version = stdout(client("/usr/bin/dpkg-query", dir.path()).args(query));
    let needed = needed(&rounds);
    eprintln!("{}", table(&report, &peers, &version, needed));
    tidelock.stop();
    peer.stop();

    assert_eq!(report.failures, BTreeMap::new());
    let counted = report.counted;
    assert!(counted as f64 <= 1.05 * needed as f64, "{counted} counted GETs for {needed} manifests");
    assert!(peers.failed() < peers.pulls, "docker-registry answered nothing: {:?}", peers.failures);
}

/// The mirror's freshness as shipped, in the measure of this day.
fn freshness() -> String {
    let shipped = Freshness::default();
    let shorter = DAY.div_duration_f64(ROUND * ROUNDS as u32);
    let [ttl, revalidate] =
        [shipped.tag_ttl, shipped.stale_while_revalidate].map(|time| time.div_f64(shorter).as_millis());
    format!("tag_ttl = \"{ttl}ms\"\nstale_while_revalidate = \"{revalidate}ms\"\n")
}

/// Which builds there are and which tags move: always the same.
fn plan() -> Vec<Round> {
    let mut dice = StdRng::seed_from_u64(0x71DE);
    let mut builds = || (0..RUNNERS / JOBS).map(|_| dice.random_range(0..PROJECTS)).collect();
    let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| Round { moves: Vec::new(), builds: builds() }).collect();
    for number in 0..MOVES {
        rounds[ROUNDS * (number + 1) / (MOVES + 1)].moves.push(number * PROJECTS / MOVES);
    }
    rounds
}

/// How many different manifests the pulls ask for when each gets what its tag means by then.
fn needed(rounds: &[Round]) -> usize {
    let mut moved = HashSet::<usize>::new();
    let mut releases = HashSet::new();
    for round in rounds {
        moved.extend(&round.moves);
        releases.extend(round.builds.iter().map(|project| (project, moved.contains(project))));
    }
    releases.len() * MANIFESTS
}

impl Day {
    /// The morning: every project's first release is out.
    async fn begin() -> Day {
        let hub = FakeRegistry::start().await;
        hub.set(|behaviour| {
            behaviour.auth = Auth::bearer();
            behaviour.rate_limit = Some(RateLimit::new(LIMIT));
        });
        hub.fault(Match::any(), Times::Always, Fault::Latency(ROUND_TRIP));
        let projects: Vec<Project> = (0..PROJECTS).map(Project::new).collect();
        for project in &projects {
            hub.push(&project.name, TAG, &project.releases[0]);
        }
        Day { hub, projects }
    }

    /// Has all rounds pulled through `mirror`.
    async fn pass(&mut self, mirror: Mirror, rounds: &[Round], begin: Instant) -> Report {
        let client = Client::new(&mirror.url()).one_platform();
        let mut times = interval_at(begin, ROUND);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = Report::default();
        for round in rounds {
            times.tick().await;
            for number in &round.moves {
                let project = &mut self.projects[*number];
                project.moved = true;
                self.hub.push(&project.name, TAG, &project.releases[1]);
            }
            for (project, result) in self.pull(&client, &round.builds).await {
                report.add(&self.projects[project], result);
            }
        }
        report.close(&self.hub);
        report
    }

    /// Every runner at once, four of five as containerd pulls and the fifth as podman does.
    async fn pull(&self, client: &Client, builds: &[usize]) -> Vec<(usize, Result<PulledImage, PullError>)> {
        let mut running = JoinSet::new();
        for runner in 0..RUNNERS {
            let number = builds[runner / JOBS];
            let (client, name) = (client.clone(), self.projects[number].name.clone());
            running.spawn(async move {
                let result = match runner % 5 {
                    0 => client.pull(&name, TAG).await,
                    _ => client.pull_like_docker(&name, TAG).await,
                };
                (number, result)
            });
        }
        running.join_all().await
    }
}

impl Project {
    fn new(number: usize) -> Project {
        let release = |seed: usize| Image::multi_platform(seed as u64, &[4096]);
        let releases = [release(2 * number), release(2 * number + 1)];
        Project { name: format!("org/project-{number}"), releases, moved: false }
    }
}

impl Report {
    fn add(&mut self, project: &Project, result: Result<PulledImage, PullError>) {
        self.pulls += 1;
        let told = match result {
            Err(error) => error.status().map_or(error.to_string(), |status| format!("status {status}")),
            // That every byte fits this digest is what the client checked.
            Ok(image) => match project.releases.iter().position(|release| release.digest() == image.digest) {
                Some(release) => {
                    self.former += usize::from(project.moved && release == 0);
                    return;
                }
                None => format!("{} is not of {}", image.digest, project.name),
            },
        };
        *self.failures.entry(told).or_default() += 1;
    }

    /// Adds what the Hub saw of the day.
    fn close(&mut self, hub: &FakeRegistry) {
        let told = |method: &str, path: &str, status: u16| {
            let asked = hub.log().matching(|r| r.method == method && r.path.contains(path));
            asked.iter().filter(|record| record.status == Some(status)).count()
        };
        self.counted = hub.counted();
        self.refused = told("GET", "/manifests/", 429);
        self.heads = told("HEAD", "/manifests/", 200);
        self.blobs = told("GET", "/blobs/", 200);
    }

    fn failed(&self) -> usize {
        self.failures.values().sum()
    }
}

/// The README's table, and below it why pulls failed.
fn table(ours: &Report, theirs: &Report, version: &str, needed: usize) -> String {
    let row = |what: &str, of: fn(&Report) -> usize| format!("| {what} | {} | {} |\n", of(ours), of(theirs));
    let rows = [
        row("pulls", |report| report.pulls),
        row("pulls that failed", Report::failed),
        row(&format!("manifests fetched, of {needed} needed; each counts at the Hub"), |report| {
            report.counted
        }),
        row("manifests that the Hub refused (429)", |report| report.refused),
        row("questions to the Hub what a tag means (HEAD, free)", |report| report.heads),
        row("layers and configurations fetched", |report| report.blobs),
        row("pulls that got what a tag meant before it moved", |report| report.former),
    ];
    format!(
        "| | Tidelock | docker-registry {version} |\n|---|---:|---:|\n{}\nfailures: {:?} and {:?}",
        rows.concat(),
        ours.failures,
        theirs.failures
    )
}
