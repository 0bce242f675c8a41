//! The `Link` header of a list, the page that a client asks for, and the link that is made of it.
//!
//! ```text
//! Link header
//! last
//! entries of the list, one a line
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidelock::oci::{OciRequest, Page, next_link, next_page};
use tidelock_fuzz::text;

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    let mut lines = text.split('\n');
    let (header, last) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Some(target) = next_link(header) {
        assert!(header.contains(target));
        assert!(!target.contains('>') && !target.starts_with('<'));
    }
    let mut entries: Vec<&str> = lines.collect();
    entries.sort_unstable();
    entries.dedup();
    walk(&entries, data.len() % 4);
    if !last.is_empty() {
        own_link(data.len(), last);
    }
});

/// Page after page, each asked for as the last one said, makes the whole list and ends.
fn walk(entries: &[&str], n: usize) {
    let (mut page, mut seen) = (Page { n: Some(n), last: None }, Vec::new());
    loop {
        let (part, more) = page.cut(entries);
        assert!(part.len() <= n);
        seen.extend_from_slice(part);
        let Some(last) = part.last().filter(|_| more) else { break };
        page.last = Some((*last).to_owned());
    }
    assert!(n == 0 || seen == entries);
}

/// A link that this mirror writes leads back to the page that it means.
fn own_link(n: usize, last: &str) {
    let header = next_page("/v2/a/tags/list", n, last, &[("ns", "ghcr.io")]);
    let (path, query) =
        next_link(&header).and_then(|link| link.split_once('?')).expect("a link with a query");
    let (request, ns) = OciRequest::parse(path, Some(query)).expect("a request");
    assert_eq!(ns.expect("a namespace").as_str(), "ghcr.io");
    let page = Page { n: Some(n), last: Some(last.to_owned()) };
    assert_eq!(request, OciRequest::Tags { name: "a".parse().expect("a name"), page });
}
