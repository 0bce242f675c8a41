use std::cmp::Ordering;

use super::Tag;

/// A piece of a tag that is read as a version. The order of the variants is that of versions: a candidate comes before
/// what it is a candidate for, and what goes on comes after what it goes on from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    Candidate(&'a str),
    End,
    Word(&'a str),
    Number(u128),
}

/// Words that stand in versions before they are out.
const CANDIDATES: [&str; 8] = ["alpha", "beta", "dev", "nightly", "pre", "preview", "rc", "snapshot"];

impl Tag {
    /// Which of two tags is the older version: numbers by their value, `16.9` before `16.10`, `2.0-rc1` before `2.0`, the rest
    /// by its letters.
    pub fn by_version(&self, other: &Tag) -> Ordering {
        pieces(self.as_str()).cmp(&pieces(other.as_str())).then_with(|| self.cmp(other))
    }
}

fn pieces(tag: &str) -> Vec<Piece<'_>> {
    // As in v1.2.3.
    let mut rest =
        tag.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(tag);
    let mut pieces = Vec::new();
    while let Some(first) = rest.chars().next() {
        let is_alike = |c: char| {
            (c.is_ascii_digit() && first.is_ascii_digit())
                || (c.is_ascii_alphabetic() && first.is_ascii_alphabetic())
        };
        let length = rest.find(|c| !is_alike(c)).unwrap_or(rest.len()).max(1);
        let (piece, behind) = rest.split_at(length);
        if first.is_ascii_digit() {
            pieces.push(Piece::Number(piece.parse().unwrap_or(u128::MAX)));
        } else if CANDIDATES.iter().any(|word| word.eq_ignore_ascii_case(piece)) {
            pieces.push(Piece::Candidate(piece));
        } else if first.is_ascii_alphabetic() {
            pieces.push(Piece::Word(piece));
        }
        rest = behind;
    }
    pieces.push(Piece::End);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    #[test]
    fn as_versions_follow_each_other() {
        let order = [
            "alpine",
            "latest",
            "1",
            "1.2",
            "v1.2.3",
            "1.2.10-RC1",
            "1.2.10-SNAPSHOT",
            "1.2.10-rc1",
            "1.2.10",
            "1.2.10-alpine",
            "1.2.10-alpine3.20",
            "1.10",
            "16",
            "16.9",
            "16.10",
            "20260101",
            "99999999999999999999999999999999999999999999",
        ];
        for pair in order.windows(2) {
            assert_eq!(tag(pair[0]).by_version(&tag(pair[1])), Ordering::Less, "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[a-z0-9][a-z0-9._-]{0,9}", b in "[a-z0-9][a-z0-9._-]{0,9}") {
            let (a, b) = (tag(&a), tag(&b));
            prop_assert_eq!(a.by_version(&b), b.by_version(&a).reverse());
            prop_assert_eq!(a.by_version(&b) == Ordering::Equal, a == b);
        }
    }
}
