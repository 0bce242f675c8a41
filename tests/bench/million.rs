//! The store with a thousand entries, and with up to a million: what a start, a hit, an insert and an eviction cost.
//!
//! Prints a table, and fails where a figure breaks what is promised: `cargo bench --bench million`. See "Benchmarks" in
//! `tests/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)] // it spawns tasks of its own beside the store's

mod cache;
mod place;
mod program;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cache::{Cache, median};
use place::Place;
use report::{Figure, Report};

/// Entries in the first row of the table, to which the others are compared.
const FEWEST: u64 = 1_000;

/// Hits over HTTP before the program's memory is looked at.
const HITS: u64 = 10_000;

/// How often each single operation is measured; its median counts.
const SAMPLES: u64 = 300;

/// How often the program is started each way; the slowest counts.
const STARTS: usize = 3;

/// Blobs that go when a limit is lowered by much; all of a million took seven minutes on a busy machine.
const MOST_EVICTED: u64 = 100_000;

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(cache::CHILD) {
        return runtime().block_on(cache::insert_until_killed(folder.into()));
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("this is a benchmark, for minutes: cargo bench --bench million");
        return ExitCode::SUCCESS;
    }
    let place = match Place::new() {
        Ok(place) => place,
        Err(lack) => {
            eprintln!("{lack}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    for count in sizes(place.most) {
        let begun = Instant::now();
        runtime().block_on(measure(&place, count, &mut report));
        eprintln!("{count} blobs: done after {:.0?}", begun.elapsed());
    }
    println!("{report}");
    let broken = report.broken_promises();
    broken.iter().for_each(|promise| println!("BROKEN: {promise}"));
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// A thousand, ten times as many, and so on, up to `most`.
fn sizes(most: u64) -> Vec<u64> {
    let mut sizes: Vec<u64> =
        std::iter::successors(Some(FEWEST), |size| Some(size * 10)).take_while(|size| *size < most).collect();
    sizes.push(most);
    sizes
}

/// One row after the other, on one cache of so many blobs.
async fn measure(place: &Place, count: u64, report: &mut Report) {
    report.size(count);
    let folder = place.populate(count);
    rebuild(folder.path(), count, report).await;
    starts(folder.path(), count, report).await;
    let cache = Cache::open(folder.path());
    hits(&cache, count, report).await;
    inserts(&cache, report).await;
    evictions(&cache, report).await;
    mass_eviction(&Arc::new(cache), report).await;
}

/// The index is made from the tree, while blobs are asked for and others come in.
async fn rebuild(folder: &std::path::Path, count: u64, report: &mut Report) {
    let begun = Instant::now();
    let cache = Cache::open(folder);
    cache.forget_peak();
    let mut random = cache::numbers(count);
    let (mut hits, mut inserts) = (Vec::new(), Vec::new());
    // Nobody has opened the blob before, and most of the time the index does not know it.
    while cache.blobs() < count + inserts.len() as u64 {
        hits.push(cache.hit(random.next().unwrap()).await);
        if hits.len() % 10 == 0 {
            inserts.push(cache.put_new().await);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    report.note(Figure::Rebuild, begun.elapsed());
    report.each(Figure::RebuildEach, begun.elapsed(), count);
    report.note(Figure::HitMeanwhile, median(&mut hits));
    report.note(Figure::SlowestHitMeanwhile, *hits.last().unwrap());
    if !inserts.is_empty() {
        report.note(Figure::InsertMeanwhile, median(&mut inserts));
    }
    report.bytes(Figure::RebuildPeak, cache.peak());
    // As after years of pulls: each blob has been proven to be in a repository.
    let begun = Instant::now();
    cache.link_all(count).await;
    report.each(Figure::LinkEach, begun.elapsed(), count);
    cache.close().await;
}

/// The real program, after an orderly end and after a kill.
async fn starts(folder: &std::path::Path, count: u64, report: &mut Report) {
    let mut orderly = Vec::new();
    for turn in 0..STARTS {
        let mut program = program::start(folder).await;
        orderly.push(program.ready_after);
        if turn == 0 {
            report.bytes(Figure::MemoryAtStart, program.memory("RssAnon:"));
            let mut hits = program.hits(cache::numbers(count).take(HITS as usize)).await;
            report.note(Figure::HitByHttp, median(&mut hits));
            report.bytes(Figure::Memory, program.memory("RssAnon:"));
            report.bytes(Figure::Resident, program.memory("VmRSS:"));
            report.bytes(Figure::MemoryPeak, program.memory("VmHWM:"));
        }
        program.stop().await;
    }
    let mut killed = Vec::new();
    for _ in 0..STARTS {
        cache::insert_and_kill(folder).await;
        let program = program::start(folder).await;
        killed.push(program.ready_after);
        program.stop().await;
    }
    report.note(Figure::Start, orderly.into_iter().max().unwrap());
    report.note(Figure::StartAfterKill, killed.into_iter().max().unwrap());
    report.bytes(Figure::IndexFile, std::fs::metadata(folder.join("index.redb")).unwrap().len());
}

async fn hits(cache: &Cache, count: u64, report: &mut Report) {
    let numbers: Vec<u64> = cache::numbers(count).take(SAMPLES as usize).collect();
    let [mut sizes, mut first, mut again] = [const { Vec::new() }; 3];
    for number in &numbers {
        sizes.push(cache.size(*number).await);
        first.push(cache.hit(*number).await);
        again.push(cache.hit(*number).await);
    }
    report.note(Figure::Size, median(&mut sizes));
    report.note(Figure::FirstHit, median(&mut first));
    report.note(Figure::Hit, median(&mut again));
    cache.tidy().await;
    let mut flushes = Vec::new();
    for _ in 0..5 {
        for number in cache::numbers(count).take(1_000) {
            cache.hit(number).await;
        }
        flushes.push(cache.tidy().await);
    }
    report.note(Figure::Flush, median(&mut flushes));
}

async fn inserts(cache: &Cache, report: &mut Report) {
    let [mut partials, mut documents] = [const { Vec::new() }; 2];
    for _ in 0..SAMPLES {
        partials.push(cache.pull_new().await);
        documents.push(cache.put_new().await);
    }
    report.note(Figure::Insert, median(&mut partials));
    report.note(Figure::InsertDocument, median(&mut documents));
    report.each(Figure::InsertMany, cache.pull_many(1_000).await, 1_000);
}

async fn evictions(cache: &Cache, report: &mut Report) {
    cache.allow(cache.bytes());
    let mut each = Vec::new();
    for _ in 0..SAMPLES {
        each.push(cache.put_new().await);
    }
    report.note(Figure::InsertEvicting, median(&mut each));
    let mut thousands = Vec::new();
    for _ in 0..3 {
        // Half of a thousand entries stay.
        let many = (cache.blobs() / 4).min(1_000);
        cache.allow(cache.bytes() - many * cache::LENGTH);
        let before = cache.blobs();
        let took = cache.tidy().await;
        thousands.push(took / u32::try_from(before - cache.blobs()).unwrap().max(1));
    }
    report.note(Figure::EvictEach, median(&mut thousands));
    cache.allow(u64::MAX);
}

/// The operator allows a hundredth of what there is, or less by so many blobs. A hot one is asked for meanwhile.
async fn mass_eviction(cache: &Arc<Cache>, report: &mut Report) {
    let before = cache.blobs();
    let hot = cache.put_hot().await;
    cache.forget_peak();
    let many = (before - before / 100).min(MOST_EVICTED);
    let evicting = cache.shrink_to(cache.bytes() - many * cache::LENGTH);
    let mut hits = Vec::new();
    while hits.is_empty() || !evicting.is_finished() {
        hits.push(cache.hit(hot).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    report.each(Figure::EvictAllEach, evicting.await.unwrap(), before - cache.blobs());
    report.note(Figure::SlowestHitEvicting, hits.into_iter().max().unwrap());
    report.bytes(Figure::EvictAllPeak, cache.peak());
    cache.close().await;
}
