//! Reads `WWW-Authenticate` as it comes in the wild: several headers, several schemes in one, parameters as
//! tokens or quoted, commas left out (RFC 9110 §11.6.1 and its breaches).

use std::iter::Peekable;
use std::str::Chars;

/// What a registry asks for with a 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token of a token service.
    Bearer {
        /// The token service's URL, as written.
        realm: String,
        /// What the registry calls itself there.
        service: Option<String>,
        /// What the token must be good for.
        scope: Option<String>,
    },
    /// User name and password with every request.
    Basic,
}

/// One scheme with its parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Offer {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The best of what the headers offer that this mirror can do: a token before a password.
    pub(super) fn choose<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
        let offers: Vec<Offer> = headers.into_iter().flat_map(offers).collect();
        let bearer = offers.iter().filter(|offer| offer.is("bearer")).find_map(Offer::bearer);
        bearer.or_else(|| offers.iter().any(|offer| offer.is("basic")).then_some(Challenge::Basic))
    }
}

impl Offer {
    fn is(&self, scheme: &str) -> bool {
        self.scheme.eq_ignore_ascii_case(scheme)
    }

    /// The first parameter of that name; an empty one says nothing.
    fn parameter(&self, name: &str) -> Option<String> {
        let named = self.parameters.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    fn bearer(&self) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: self.parameter("realm")?,
            service: self.parameter("service"),
            scope: self.parameter("scope"),
        })
    }
}

/// Every scheme in one header. A word followed by `=` is a parameter, any other a scheme; that also makes
/// harmless nonsense of the credentials of schemes such as Negotiate.
fn offers(header: &str) -> Vec<Offer> {
    let mut rest = header.chars().peekable();
    let mut offers: Vec<Offer> = Vec::new();
    loop {
        skip(&mut rest, |c| c.is_whitespace() || c == ',');
        let Some(_) = rest.peek() else { return offers };
        let word = take_while(&mut rest, |c| !c.is_whitespace() && !matches!(c, ',' | '=' | '"'));
        skip(&mut rest, char::is_whitespace);
        if rest.next_if_eq(&'=').is_some() {
            let value = value(&mut rest);
            if let Some(offer) = offers.last_mut() {
                offer.parameters.push((word, value));
            }
        } else if word.is_empty() {
            // A stray quote: passed over, so that every round takes something.
            rest.next();
        } else {
            offers.push(Offer { scheme: word, parameters: Vec::new() });
        }
    }
}

/// What follows `=`.
fn value(rest: &mut Peekable<Chars<'_>>) -> String {
    skip(rest, char::is_whitespace);
    if rest.next_if_eq(&'"').is_none() {
        return take_while(rest, |c| !c.is_whitespace() && c != ',');
    }
    let mut text = String::new();
    while let Some(c) = rest.next() {
        match c {
            '"' => break,
            '\\' => text.extend(rest.next()),
            c => text.push(c),
        }
    }
    text
}

fn skip(rest: &mut Peekable<Chars<'_>>, unwanted: impl Fn(char) -> bool) {
    while rest.next_if(|c| unwanted(*c)).is_some() {}
}

fn take_while(rest: &mut Peekable<Chars<'_>>, wanted: impl Fn(char) -> bool) -> String {
    std::iter::from_fn(|| rest.next_if(|c| wanted(*c))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn as_the_public_registries_write_it() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                   scope=\"repository:library/nginx:pull\",error=\"insufficient_scope\"";
        assert_eq!(
            Challenge::choose([hub]),
            bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/nginx:pull")
            )
        );
        let ecr = "Basic realm=\"https://1.dkr.ecr.eu-west-1.amazonaws.com/\",service=\"ecr.amazonaws.com\"";
        assert_eq!(Challenge::choose([ecr]), Some(Challenge::Basic));
    }

    #[test]
    fn as_the_rest_of_the_world_writes_it() {
        let cases = [
            ("bearer REALM=https://a/token", bearer("https://a/token", None, None)),
            ("Bearer realm=\"https://a/t\" service=\"s\"", bearer("https://a/t", Some("s"), None)),
            ("Bearer realm = \"https://a/t\" , scope=\"\"", bearer("https://a/t", None, None)),
            ("Bearer realm=\"a\\\"b\\\\c\"", bearer("a\"b\\c", None, None)),
            ("Bearer realm=https://a/t?x=1&y=2,service=s", bearer("https://a/t?x=1&y=2", Some("s"), None)),
            ("Basic realm=\"x, Bearer realm=y\"", Some(Challenge::Basic)),
            ("Basic realm=\"x\", Bearer realm=\"https://a/t\"", bearer("https://a/t", None, None)),
            ("Negotiate dG9rZW4==, Basic realm=x", Some(Challenge::Basic)),
            ("Bearer realm=\"https://a/unclosed", bearer("https://a/unclosed", None, None)),
            ("Bearer", None),
            ("Bearer realm=\"\"", None),
            ("realm=\"https://a/t\"", None),
            ("", None),
        ];
        for (header, expected) in cases {
            assert_eq!(Challenge::choose([header]), expected, "{header}");
        }
    }

    #[test]
    fn over_several_headers() {
        let headers = ["Basic realm=\"r\"", "Negotiate", "Bearer realm=\"https://a/t\""];
        assert_eq!(Challenge::choose(headers), bearer("https://a/t", None, None));
    }

    proptest! {
        #[test]
        fn never_panics(header in "\\PC*") {
            Challenge::choose([header.as_str()]);
        }

        #[test]
        fn never_panics_near_the_grammar(header in "([Bb]earer|Basic|realm|scope|[=,\"\\\\ \t]|[a-z:/]{0,4}){0,24}") {
            Challenge::choose([header.as_str()]);
        }

        #[test]
        fn what_is_quoted_comes_back(realm in "\\PC{1,40}", service in "\\PC{1,20}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\",service=\"{}\"", quote(&realm), quote(&service));
            prop_assert_eq!(Challenge::choose([header.as_str()]), bearer(&realm, Some(&service), None));
        }
    }
}
