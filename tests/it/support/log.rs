//! What a fake was asked: every request, in order of arrival.
//!
//! A request is written down when its head has arrived, before anything is answered, so that a
//! request that hangs at a gate already counts. Its status and byte count are filled in later.

use std::sync::{Arc, Mutex, MutexGuard};

use http::HeaderMap;
use tokio::time::Instant;

/// One request as it arrived, and what became of it.
#[derive(Clone, Debug)]
pub struct Record {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, empty when there was none.
    pub query: String,
    /// The host that was meant: from the absolute form, the tunnel or the Host header. The ports
    /// 80 and 443 are left out.
    pub host: String,
    /// Every header.
    pub headers: HeaderMap,
    /// When its head had been read, by the runtime's clock.
    pub at: Instant,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The number of the connection it came on, from 1.
    pub connection: usize,
    /// The answer's status; none as long as nothing has been answered.
    pub status: Option<u16>,
    /// The account whose token or password was good, if any.
    pub account: Option<String>,
    /// Body bytes handed to the connection so far.
    pub sent: u64,
    /// Whether the body was handed over to its end; false when the client went away before.
    pub finished: bool,
}

/// The requests of one fake, shared by everyone who holds it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    records: Vec<Arc<Mutex<Record>>>,
    under_way: usize,
    peak: usize,
}

/// A request under way: who fills in its record. Dropped when the answer is over.
pub(super) struct Entry {
    log: Log,
    record: Arc<Mutex<Record>>,
}

impl Record {
    /// A header's value, empty when absent or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether it asked for a manifest with GET: the kind that Docker Hub bills.
    pub fn is_manifest_get(&self) -> bool {
        self.method == "GET" && self.path.contains("/manifests/")
    }

    /// Whether Docker Hub bills it: such a GET that was not refused.
    pub fn is_counted(&self) -> bool {
        self.is_manifest_get() && !matches!(self.status, Some(401 | 403 | 429))
    }
}

impl Log {
    /// Every request so far.
    pub fn requests(&self) -> Vec<Record> {
        self.pages().records.iter().map(|record| held(record).clone()).collect()
    }

    /// The requests that `wanted` picks.
    pub fn matching(&self, wanted: impl Fn(&Record) -> bool) -> Vec<Record> {
        let records = self.pages().records.clone();
        records
            .iter()
            .filter_map(|record| Some(held(record)).filter(|r| wanted(r)).map(|r| r.clone()))
            .collect()
    }

    /// How many requests had this method and this piece in their path.
    pub fn count(&self, method: &str, path_fragment: &str) -> usize {
        self.matching(|r| r.method == method && r.path.contains(path_fragment)).len()
    }

    /// How many manifest GETs there were, as Docker Hub bills them: refusals (401, 403, 429) are free.
    pub fn counted(&self) -> usize {
        self.matching(Record::is_counted).len()
    }

    /// The same for one account; `None` for anonymous clients.
    pub fn counted_for(&self, account: Option<&str>) -> usize {
        self.matching(|r| r.is_counted() && r.account.as_deref() == account).len()
    }

    /// How many requests there were of any kind.
    pub fn total(&self) -> usize {
        self.pages().records.len()
    }

    /// How many GETs asked for this blob, ranged ones included.
    pub fn blob_gets(&self, digest: &str) -> usize {
        self.count("GET", &format!("/blobs/{digest}"))
    }

    /// The paths in order, each with its method: handy in a failed assertion.
    pub fn summary(&self) -> Vec<String> {
        let line = |r: Record| {
            let status = r.status.map_or_else(|| "…".to_owned(), |status| status.to_string());
            format!("{} {}{} -> {status}", r.method, r.host, r.path)
        };
        self.requests().into_iter().map(line).collect()
    }

    /// The most requests that were under way at the same moment.
    pub fn peak_concurrency(&self) -> usize {
        self.pages().peak
    }

    /// How many requests are under way now.
    pub fn under_way(&self) -> usize {
        self.pages().under_way
    }

    /// Forgets the requests so far; those under way finish unrecorded.
    pub fn clear(&self) {
        let mut pages = self.pages();
        pages.records.clear();
        pages.peak = pages.under_way;
    }

    /// Writes a request down.
    pub(super) fn enter(&self, record: Record) -> Entry {
        let record = Arc::new(Mutex::new(record));
        let mut pages = self.pages();
        pages.records.push(Arc::clone(&record));
        pages.under_way += 1;
        pages.peak = pages.peak.max(pages.under_way);
        drop(pages);
        Entry { log: self.clone(), record }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().expect("no test panics while it holds the log")
    }
}

impl Entry {
    pub(super) fn answered(&self, status: u16, account: Option<String>) {
        let mut record = held(&self.record);
        record.status = Some(status);
        record.account = account;
    }

    pub(super) fn sent(&self, bytes: usize) {
        held(&self.record).sent += bytes as u64;
    }

    pub(super) fn finished(&self) {
        held(&self.record).finished = true;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.log.pages().under_way -= 1;
    }
}

fn held(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().expect("no test panics while it holds a record")
}
