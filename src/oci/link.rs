use url::form_urlencoded;

/// What a client asks of a list: at most `n` entries, those after `last` (distribution-spec, "Listing Tags").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The most entries; `None` for all.
    pub n: Option<usize>,
    /// Only entries that sort behind this one, which need not exist.
    pub last: Option<String>,
}

impl Page {
    /// Cuts this page out of `sorted`; the second value tells whether a next page must be announced.
    /// With `n = 0` the spec wants an empty list and no next page.
    pub fn cut<'a, T: AsRef<str>>(&self, sorted: &'a [T]) -> (&'a [T], bool) {
        let from = match &self.last {
            Some(last) => sorted.partition_point(|entry| entry.as_ref() <= last.as_str()),
            None => 0,
        };
        let rest = &sorted[from..];
        let count = self.n.unwrap_or(usize::MAX).min(rest.len());
        (&rest[..count], count > 0 && count < rest.len())
    }
}

/// The target of the `rel="next"` entry in a `Link` header, as written: absolute or relative.
pub fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|entry| {
        let (target, parameters) = entry.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let parameter = parameter.trim().to_ascii_lowercase();
            parameter == "rel=\"next\"" || parameter == "rel=next"
        });
        // Some registries leave `rel` out altogether; clients take any entry then.
        (is_next || parameters.trim().is_empty()).then(|| target.trim().trim_start_matches('<'))
    })
}

/// The `Link` header for the page behind `last`; `path` is where this list was asked for, `query` what else
/// the request had to say (the `ns`, say), each a name and value.
pub fn next_page(path: &str, n: usize, last: &str, query: &[(&str, &str)]) -> String {
    let mut next = form_urlencoded::Serializer::new(String::new());
    next.append_pair("n", &n.to_string()).append_pair("last", last).extend_pairs(query);
    format!("<{path}?{}>; rel=\"next\"", next.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_list() {
        let tags = ["a", "b", "d"];
        let cut = |n: Option<usize>, last: Option<&str>| {
            Page { n, last: last.map(str::to_owned) }.cut(&tags).to_owned()
        };
        assert_eq!(cut(None, None), (&tags[..], false));
        assert_eq!(cut(Some(2), None), (&tags[..2], true));
        assert_eq!(cut(Some(2), Some("b")), (&tags[2..], false));
        assert_eq!(cut(Some(1), Some("c")), (&tags[2..], false));
        assert_eq!(cut(Some(0), None), (&tags[..0], false));
        assert_eq!(cut(None, Some("z")), (&tags[..0], false));
    }

    #[test]
    fn links_in_the_wild() {
        assert_eq!(
            next_link("</v2/a/tags/list?n=1&last=b>; rel=\"next\""),
            Some("/v2/a/tags/list?n=1&last=b")
        );
        assert_eq!(
            next_link("<https://q/v2/x?next_page=tok>; rel=next"),
            Some("https://q/v2/x?next_page=tok")
        );
        assert_eq!(next_link("<a>; rel=\"prev\", <b>; rel=\"next\""), Some("b"));
        assert_eq!(next_link("<a>; rel=\"prev\""), None);
        assert_eq!(next_link("nonsense"), None);
    }

    #[test]
    fn own_links_are_encoded() {
        let link = next_page("/v2/a/tags/list", 2, "v1+x", &[("ns", "ghcr.io")]);
        assert_eq!(link, "</v2/a/tags/list?n=2&last=v1%2Bx&ns=ghcr.io>; rel=\"next\"");
    }
}
