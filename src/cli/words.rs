//! Sizes, times, what is here and how far something is, as one says them.

use indicatif::ProgressStyle;

use crate::admin::Content;

/// With one decimal: nobody reads more of it.
pub(super) fn size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_, factor)| bytes >= *factor);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, factor)| format!("{:.1} {name}", bytes as f64 / *factor as f64),
    )
}

/// A bar with words behind it.
pub(super) fn bar() -> ProgressStyle {
    style("[{bar:24}] {msg}")
}

/// A bar of bytes that go by.
pub(super) fn bar_of_bytes() -> ProgressStyle {
    style("[{bar:24}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a template that is right").progress_chars("== ")
}

/// Seconds as one says them: the two largest units.
pub(super) fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How much of an image is here.
pub(super) fn here(content: &Content) -> String {
    if !content.manifest_cached {
        return "the name alone".to_owned();
    }
    let part =
        |cached: usize, all: usize, what: &str| (cached < all).then(|| format!("{cached} of {all} {what}"));
    let parts = [
        part(content.manifests_cached, content.manifests, "platforms"),
        part(content.blobs_cached, content.blobs, "blobs"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_one_says_them() {
        let said = [0, 59, 61, 3600, 21_599, 90_000].map(time);
        assert_eq!(said, ["0s", "59s", "1m 1s", "1h 0m", "5h 59m", "1d 1h"]);
    }

    #[test]
    fn sizes_as_one_says_them() {
        assert_eq!([12, 2048, 5 << 30].map(size), ["12 B", "2.0 KiB", "5.0 GiB"]);
    }
}
