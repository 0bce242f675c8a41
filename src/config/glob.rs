use std::fmt;
use std::str::FromStr;

/// A pattern over repository names or tags: `*` matches within a path component, `**` across components,
/// `?` one character that is not `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Whether all of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        matches(self.0.as_bytes(), text.as_bytes())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Glob {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-/*?@:+".contains(c);
        if text.is_empty() || text.len() > 255 || !text.chars().all(known) {
            return Err(
                "a pattern of 1 to 255 letters, digits and ._-/@:+ with * (within a component), ** and ?",
            );
        }
        Ok(Glob(text.to_owned()))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Matches without recursion: on a mismatch goes back to the nearest star and lets it take one byte more,
/// to the `**` before it when a `*` would have to cross a slash. Time is at most pattern times text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut single: Option<(usize, usize)> = None;
    let mut double: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            double = Some((p, t));
            single = None;
        } else if pattern.get(p) == Some(&b'*') {
            p += 1;
            single = Some((p, t));
        } else if t < text.len()
            && (pattern.get(p) == Some(&text[t]) || (pattern.get(p) == Some(&b'?') && text[t] != b'/'))
        {
            p += 1;
            t += 1;
        } else if t == text.len() && p == pattern.len() {
            return true;
        } else if let Some((after, taken)) =
            single.filter(|&(_, taken)| taken < text.len() && text[taken] != b'/')
        {
            single = Some((after, taken + 1));
            (p, t) = (after, taken + 1);
        } else if let Some((after, taken)) = double.filter(|&(_, taken)| taken < text.len()) {
            double = Some((after, taken + 1));
            single = None;
            (p, t) = (after, taken + 1);
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    fn glob(pattern: &str) -> Glob {
        pattern.parse().expect("a pattern")
    }

    #[test]
    fn by_the_table() {
        let table = [
            ("**", "a/b/c", true),
            ("**", "", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("library/*", "library/nginx", true),
            ("library/*", "library/a/b", false),
            ("org/**", "org/a/b", true),
            ("org/**/x", "org/a/b/x", true),
            ("**/x", "a/x", true),
            ("v*.*.*", "v1.2.3", true),
            ("v*.*.*", "v1.2", false),
            ("v?", "v1", true),
            ("v?", "v", false),
            ("a**b*c", "a/x/bzbyc", true),
            ("a", "b", false),
            ("*a*b", "xaxxab", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(glob(pattern).matches(text), expected, "{pattern} on {text}");
        }
        assert!("".parse::<Glob>().is_err() && "a b".parse::<Glob>().is_err());
    }

    /// The plain recursive definition, for comparison.
    fn defined(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|taken| defined(rest, &text[taken..])),
            [b'*', rest @ ..] => (0..=text.len())
                .take_while(|&taken| !text[..taken].contains(&b'/'))
                .any(|taken| defined(rest, &text[taken..])),
            [b'?', rest @ ..] => text.first().is_some_and(|&c| c != b'/') && defined(rest, &text[1..]),
            [c, rest @ ..] => text.first() == Some(c) && defined(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab/*?]{1,8}", text in "[ab/]{0,10}") {
            prop_assert_eq!(glob(&pattern).matches(&text), defined(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
