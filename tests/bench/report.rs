//! The table, and what it must show.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What is measured: the rows of the table, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    Start,
    StartAfterKill,
    MemoryAtStart,
    Memory,
    Resident,
    MemoryPeak,
    IndexFile,
    Rebuild,
    RebuildEach,
    RebuildPeak,
    HitMeanwhile,
    SlowestHitMeanwhile,
    InsertMeanwhile,
    LinkEach,
    Size,
    FirstHit,
    Hit,
    HitByHttp,
    Flush,
    Insert,
    InsertDocument,
    InsertMany,
    InsertEvicting,
    EvictEach,
    EvictAllEach,
    SlowestHitEvicting,
    EvictAllPeak,
}

/// What a figure must not exceed.
#[derive(Debug, Clone, Copy)]
enum Bound {
    /// Microseconds or bytes, with any number of entries.
    AtMost(f64),
    /// So many times the figure of the fewest entries.
    Flat(f64),
    None,
}

/// Other processes share the cores and the disk of most machines: a figure is flat when it is not more than this many
/// times what it is with a thousand entries. What is not flat grows a thousandfold.
const FLAT: Bound = Bound::Flat(4.0);

/// What is changed together lies on few pages of the index with a thousand entries, and each on a page of its own with
/// a million; and a lookup then leaves the processor's caches. Both are bounded by themselves.
const QUICK: Bound = Bound::AtMost(100.0);

/// Nobody waits longer for a start.
const LONGEST_START: Bound = Bound::AtMost(2e6);

const MOST_MEMORY: Bound = Bound::AtMost((100u64 << 20) as f64);

/// All figures, by size of the cache.
#[derive(Debug, Default)]
pub(crate) struct Report {
    sizes: Vec<u64>,
    figures: BTreeMap<Figure, Vec<f64>>,
}

impl Figure {
    /// Its words, whether it counts bytes, and its bound.
    fn of(self) -> (&'static str, bool, Bound) {
        match self {
            Figure::Start => ("start, after an orderly end", false, LONGEST_START),
            Figure::StartAfterKill => ("start, after a kill amid inserts", false, LONGEST_START),
            Figure::MemoryAtStart => ("memory of its own, ready", true, MOST_MEMORY),
            Figure::Memory => ("memory of its own, after 10,000 hits", true, MOST_MEMORY),
            Figure::Resident => ("resident, after 10,000 hits", true, Bound::None),
            Figure::MemoryPeak => ("resident at most", true, Bound::None),
            Figure::IndexFile => ("index.redb", true, Bound::None),
            Figure::Rebuild => ("rebuild of the index from the tree", false, Bound::None),
            Figure::RebuildEach => ("the same, for each blob", false, Bound::None),
            Figure::RebuildPeak => ("resident at most meanwhile", true, Bound::AtMost((160u64 << 20) as f64)),
            Figure::HitMeanwhile => ("hit meanwhile", false, Bound::AtMost(1e5)),
            Figure::SlowestHitMeanwhile => ("slowest hit meanwhile", false, Bound::None),
            Figure::InsertMeanwhile => ("insert meanwhile", false, Bound::None),
            Figure::LinkEach => ("proof noted, many at once, each", false, Bound::AtMost(1e3)),
            Figure::Size => ("size looked up", false, QUICK),
            Figure::FirstHit => ("first hit, hashed", false, FLAT),
            Figure::Hit => ("hit", false, FLAT),
            Figure::HitByHttp => ("hit over HTTP", false, FLAT),
            Figure::Flush => ("1,000 use times written", false, FLAT),
            Figure::Insert => ("insert of a blob", false, FLAT),
            Figure::InsertDocument => ("insert of a document", false, FLAT),
            Figure::InsertMany => ("insert, 64 at once, each", false, FLAT),
            Figure::InsertEvicting => ("insert that evicts one", false, FLAT),
            Figure::EvictEach => ("evict 1,000 at once, each", false, FLAT),
            Figure::EvictAllEach => ("evict 99 of 100, or 100,000, each", false, FLAT),
            Figure::SlowestHitEvicting => ("slowest hit meanwhile", false, Bound::None),
            Figure::EvictAllPeak => ("resident at most meanwhile", true, Bound::None),
        }
    }

    /// What is wrong with these, the fewest entries first.
    fn broken(self, values: &[f64]) -> Option<String> {
        let (words, is_bytes, bound) = self.of();
        let (worst, first) = (values.iter().copied().fold(0.0, f64::max), values.first()?);
        match bound {
            Bound::AtMost(most) if worst > most => {
                Some(format!("{words}: {} is more than {}", show(is_bytes, worst), show(is_bytes, most)))
            }
            Bound::Flat(most) if worst > most * first => {
                Some(format!("{words}: {:.1} times what it is with the fewest entries", worst / first))
            }
            _ => None,
        }
    }
}

impl Report {
    /// What follows is about so many entries.
    pub(crate) fn size(&mut self, count: u64) {
        self.sizes.push(count);
    }

    pub(crate) fn note(&mut self, figure: Figure, time: Duration) {
        self.push(figure, time.as_secs_f64() * 1e6);
    }

    /// A time that was spent on `count` of them.
    pub(crate) fn each(&mut self, figure: Figure, time: Duration, count: u64) {
        self.push(figure, time.as_secs_f64() * 1e6 / count.max(1) as f64);
    }

    pub(crate) fn bytes(&mut self, figure: Figure, bytes: u64) {
        self.push(figure, bytes as f64);
    }

    fn push(&mut self, figure: Figure, value: f64) {
        eprintln!("  {} {}: {}", self.sizes.last().unwrap_or(&0), figure.of().0, show(figure.of().1, value));
        self.figures.entry(figure).or_default().push(value);
    }

    /// One sentence for each.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        self.figures.iter().filter_map(|(figure, values)| figure.broken(values)).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| entries |")?;
        self.sizes.iter().try_for_each(|size| write!(f, " {size} |"))?;
        writeln!(f, " last to first | at most |")?;
        writeln!(f, "|---{}|---|---|", "|---:".repeat(self.sizes.len()))?;
        for (figure, values) in &self.figures {
            let (words, is_bytes, bound) = figure.of();
            write!(f, "| {words} |")?;
            values.iter().try_for_each(|value| write!(f, " {} |", show(is_bytes, *value)))?;
            let ratio = values.last().zip(values.first()).map_or(0.0, |(last, first)| last / first);
            let bound = match bound {
                Bound::AtMost(most) => show(is_bytes, most),
                Bound::Flat(most) => format!("{most} times"),
                Bound::None => String::new(),
            };
            writeln!(f, " {ratio:.1} | {bound} |")?;
        }
        Ok(())
    }
}

fn show(is_bytes: bool, value: f64) -> String {
    match value {
        _ if is_bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        micros if micros >= 1e6 => format!("{:.2} s", micros / 1e6),
        micros if micros >= 1e3 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{micros:.1} µs"),
    }
}
