//! Guesses which key was meant.

/// Keys that people look for under another name: where the second is known, the hint is given.
const HINTS: [(&str, &str, &str); 9] = [
    ("password", "password_file", "no password belongs into this file; name a password_file or password_env"),
    ("token", "password_file", "no token belongs into this file; name a password_file or password_env"),
    ("username", "account", "accounts stand in [[upstream.account]]"),
    ("url", "endpoints", "did you mean endpoints?"),
    ("remote", "endpoints", "did you mean endpoints?"),
    ("mirror", "endpoints", "did you mean endpoints?"),
    ("name", "registry", "did you mean registry?"),
    ("address", "listen", "did you mean listen?"),
    ("port", "listen", "did you mean listen?"),
];

/// What to say about the unknown key at `path`, where `known` are the keys that may stand there.
pub(super) fn suggest(path: &str, known: &[&'static str]) -> Option<String> {
    let (section, key) = path.rsplit_once('.').map_or(("", path), |(section, key)| (section, key));
    let hint = HINTS.iter().find(|(name, needs, _)| *name == key && known.contains(needs));
    if let Some((_, _, hint)) = hint {
        return Some((*hint).to_owned());
    }
    let near = known
        .iter()
        .map(|known| (distance(key, known), known))
        .filter(|(distance, known)| is_near(key, known, *distance))
        .min_by_key(|(distance, _)| *distance);
    let dot = if section.is_empty() { "" } else { "." };
    near.map(|(_, near)| format!("did you mean {section}{dot}{near}?"))
}

/// A slip of the fingers (one in five letters, and one more), or a part of the name.
fn is_near(key: &str, known: &str, distance: usize) -> bool {
    distance <= 1 + key.len() / 5 || (key.len() >= 3 && known.split('_').any(|part| part == key))
}

/// How many letters must be put in, taken out or replaced to get from one to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["listen", "admin_listen", "drain_timeout", "max_connections", "tls"];
        for (path, meant) in [
            ("server.listne", Some("server.listen")),
            ("server.adminlisten", Some("server.admin_listen")),
            ("server.drain", Some("server.drain_timeout")),
            ("server.max_conections", Some("server.max_connections")),
            ("server.port", Some("listen")),
            ("server.workers", None),
        ] {
            assert_eq!(suggest(path, &known), meant.map(|meant| format!("did you mean {meant}?")), "{path}");
        }
        assert!(
            suggest("a.password", &["name", "password_file"])
                .is_some_and(|hint| hint.contains("password_file"))
        );
    }

    #[test]
    fn distances() {
        for (from, to, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("listne", "listen", 2), ("ab", "b", 1)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }
}
