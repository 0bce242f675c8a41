//! A day of builds: runners that pull by tag, all day long, from projects at Docker Hub whose tags move.
//!
//! ```text
//!  plan    when who pulls what, and which tags move: the same for the same numbers
//!  Day     the fake Hub, the house over it and the clock; pulls, and moves the clock while some wait
//! ```
//!
//! Every image is an index of two platforms, of which the runners pull one: two manifests. Four of five
//! runners pull as containerd does (HEAD by tag, GET by digest), the fifth as podman does (GET by tag).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tidelock::config::{Config, Freshness};
use tokio::task::JoinSet;

use super::behaviour::{Auth, Behaviour};
use super::client::{Client, PullError, PulledImage};
use super::house::House;
use super::images::Image;
use super::registry::FakeRegistry;
use super::time::{Frozen, rest};

/// A minute.
pub const MINUTE: Duration = Duration::from_secs(60);
/// An hour.
pub const HOUR: Duration = Duration::from_secs(3600);
/// As long as Docker Hub's window.
pub const DAY: Duration = Duration::from_secs(6 * 3600);
/// Who pulls.
pub const RUNNERS: usize = 500;
/// What is pulled.
pub const PROJECTS: usize = 30;
/// How many tags move in a day: those of every other project.
pub const MOVES: usize = 15;
/// Manifests of an image that a runner needs: the index and its platform.
pub const MANIFESTS: usize = 2;

/// How far the clock goes at once while pulls wait.
const STEP: Duration = Duration::from_secs(1);
/// Each step of a client's request may wait longer than the mirror may hold it, so that it is the mirror
/// that decides.
const CLIENT_PATIENCE: Duration = MINUTE;
const TAG: &str = "stable";

/// One runner's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Which runner; every fifth pulls by GET.
    pub runner: usize,
    /// Which project's image.
    pub project: usize,
}

/// What happens at one time of the day; the tags move first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// After the beginning of the day.
    pub at: Duration,
    /// The projects whose tags move.
    pub moves: Vec<usize>,
    /// Who pulls, all at once.
    pub pulls: Vec<Pull>,
}

/// What came of a pull.
#[derive(Debug)]
pub struct Pulled {
    /// Whose.
    pub pull: Pull,
    /// When it was begun.
    pub at: Duration,
    /// Whether the mirror had all manifests of what the tag meant to it.
    pub was_cached: bool,
    /// By the virtual clock.
    pub took: Duration,
    /// The image, checked.
    pub result: Result<PulledImage, PullError>,
}

/// A house over a Docker Hub, and virtual time. Made in a test with a paused clock.
pub struct Day {
    /// Docker Hub.
    pub hub: FakeRegistry,
    /// The mirror.
    pub house: House,
    client: Client,
    projects: Vec<Project>,
    _memory: TempDir,
    /// Last, since the others run by it.
    pub clock: Frozen,
}

/// A repository with two releases, of which the second comes out when the tag moves.
struct Project {
    name: String,
    releases: [Release; 2],
    moved: Option<Duration>,
}

struct Release {
    index: Image,
    /// What the runners pull of it.
    platform: Image,
}

/// The rounds of a day in order, `between` apart. Each runner pulls about every `pause`, one project or another.
pub fn plan(pause: Duration, between: Duration) -> Vec<Round> {
    let mut dice = StdRng::seed_from_u64(0x71DE);
    let mut rounds = BTreeMap::<u32, Round>::new();
    let last = DAY.div_duration_f64(between) as u32;
    let mut at_round = |at: Duration, change: &mut dyn FnMut(&mut Round)| {
        let number = (at.div_duration_f64(between) as u32).min(last - 1);
        let round = rounds.entry(number).or_default();
        round.at = between * number;
        change(round);
    };
    for runner in 0..RUNNERS {
        let mut at = pause.mul_f64(dice.random_range(0.0..1.0));
        while at < DAY {
            let pull = Pull { runner, project: dice.random_range(0..PROJECTS) };
            at_round(at, &mut |round| round.pulls.push(pull));
            at += pause.mul_f64(dice.random_range(0.7..1.3));
        }
    }
    for number in 0..MOVES {
        let at = DAY * (number as u32 + 1) / (MOVES as u32 + 1);
        at_round(at, &mut |round| round.moves.push(number * PROJECTS / MOVES));
    }
    rounds.into_values().collect()
}

impl Day {
    /// The morning of a day: every project's first release is out, nothing is cached. Freshness is what it is by
    /// default, and no time limit but those of the schedule ends anything.
    pub async fn begin(limits: impl FnOnce(&mut Behaviour), adjust: impl FnOnce(&mut Config)) -> Day {
        let clock = Frozen::new();
        let hub = FakeRegistry::start().await;
        hub.set(|behaviour| {
            behaviour.auth = Auth::bearer();
            limits(behaviour);
        });
        let projects: Vec<Project> = (0..PROJECTS).map(Project::new).collect();
        for project in &projects {
            hub.push(&project.name, TAG, &project.releases[0].index);
        }
        // How long a disk takes to sync is no part of the day.
        let memory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let house = House::with(&hub, |config| {
            config.cache.dir = memory.path().to_owned();
            let upstream = &mut config.upstreams[0];
            upstream.freshness = Freshness::default();
            upstream.read_ahead = true;
            upstream.connect_timeout = HOUR;
            upstream.response_timeout = HOUR;
            upstream.idle_timeout = HOUR;
            adjust(config);
        })
        .await;
        let client = house.client().one_platform().patient(CLIENT_PATIENCE);
        Day { hub, house, client, projects, _memory: memory, clock }
    }

    /// Brings a project's second release out.
    pub fn move_tag(&mut self, project: usize) {
        let project = &mut self.projects[project];
        self.hub.push(&project.name, TAG, &project.releases[1].index);
        project.moved = Some(self.clock.elapsed());
    }

    /// How many manifests the runners could want that are out by now.
    pub fn manifests_out(&self) -> usize {
        let releases: usize = self.projects.iter().map(|project| project.out().len()).sum();
        releases * MANIFESTS
    }

    /// The repository of a project.
    pub fn name(&self, project: usize) -> &str {
        &self.projects[project].name
    }

    /// Goes on to the round's time, moves its tags and has its pulls done.
    pub async fn go_on(&mut self, round: &Round) -> Vec<Pulled> {
        self.clock.advance_to(round.at).await;
        for project in &round.moves {
            self.move_tag(*project);
        }
        self.pull(&round.pulls).await
    }

    /// Pulls all at once. While some wait for the clock it goes on, so this may take virtual time.
    pub async fn pull(&self, pulls: &[Pull]) -> Vec<Pulled> {
        let cached = self.cached();
        let mut running = JoinSet::new();
        for pull in pulls.iter().copied() {
            let (client, name) = (self.client.clone(), self.name(pull.project).to_owned());
            let (at, was_cached) = (self.clock.elapsed(), cached.contains(&pull.project));
            let begun = tokio::time::Instant::now();
            running.spawn(async move {
                let result = match pull.runner % 5 {
                    0 => client.pull(&name, TAG).await,
                    _ => client.pull_like_docker(&name, TAG).await,
                };
                Pulled { pull, at, was_cached, took: begun.elapsed(), result }
            });
        }
        let mut ended = Vec::new();
        while ended.len() < pulls.len() {
            rest(|| {
                ended.extend(std::iter::from_fn(|| running.try_join_next()).map(Result::unwrap));
                (ended.len(), self.client.answers(), self.hub.total(), self.hub.log().under_way())
            })
            .await;
            if ended.len() < pulls.len() {
                self.clock.advance(STEP).await;
            }
        }
        ended
    }

    /// The projects that can be pulled without another counted GET: the mirror has the platform of the newest
    /// release whose index it has. A tag whose newer release is not to be had still means the older one to it.
    pub fn cached(&self) -> HashSet<usize> {
        let fetched = self.fetched();
        let has = |image: &Image| fetched.contains(image.digest());
        let is_cached = |project: &Project| {
            let newest = project.releases.iter().rev().find(|release| has(&release.index));
            newest.is_some_and(|release| has(&release.platform))
        };
        (0..PROJECTS).filter(|number| is_cached(&self.projects[*number])).collect()
    }

    /// Whether what was pulled is, byte for byte, a release of its project that is out; with `within`, one that
    /// was the newest so long ago.
    pub fn is_right(&self, pulled: &Pulled, image: &PulledImage, within: Option<Duration>) -> bool {
        let project = &self.projects[pulled.pull.project];
        let number = project.out().iter().position(|release| release.is(image));
        match (number, project.moved, within) {
            (None, _, _) => false,
            (Some(0), Some(moved), Some(within)) => pulled.at <= moved + within,
            (Some(_), _, _) => true,
        }
    }

    /// The digests of the manifests that the Hub handed out.
    fn fetched(&self) -> HashSet<String> {
        let counted = self.hub.log().matching(|record| record.is_counted() && record.status == Some(200));
        let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        counted.iter().map(|record| last(&record.path)).collect()
    }
}

impl Project {
    fn new(number: usize) -> Project {
        let release = |seed: usize| Release::new(seed as u64);
        let releases = [release(2 * number), release(2 * number + 1)];
        Project { name: format!("org/project-{number}"), releases, moved: None }
    }

    fn out(&self) -> &[Release] {
        if self.moved.is_some() { &self.releases } else { &self.releases[..1] }
    }
}

impl Release {
    fn new(seed: u64) -> Release {
        let platform = Image::layers(2 * seed, &[64]);
        let index = Image::index(vec![platform.clone(), Image::layers(2 * seed + 1, &[64])]);
        Release { index, platform }
    }

    fn is(&self, pulled: &PulledImage) -> bool {
        let [index, platform] = pulled.manifests.as_slice() else { return false };
        let below = PulledImage {
            digest: platform.digest.clone(),
            manifests: vec![platform.clone()],
            blobs: pulled.blobs.clone(),
        };
        pulled.digest == self.index.digest()
            && index.digest == self.index.digest()
            && below.is(&self.platform)
    }
}
