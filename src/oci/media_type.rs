/// Docker's manifest list.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image manifest, schema 2.
/// A manifest of Docker's own type, image manifest version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The OCI index, which is also what the referrers API answers with.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The OCI image manifest.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What this mirror sends upstream as `Accept` for manifests: every type that a client may want, so that one
/// answer serves them all. Registries pick a representation by it for tags only; by digest bytes are fixed.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, \
     application/vnd.cncf.oras.artifact.manifest.v1+json, \
     */*;q=0.1";

/// The media types that a client takes, from all its `Accept` lines.
///
/// Docker sends a line per type in random order, others one line with commas, so this is a set: order and
/// weights mean nothing, as in every other registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accept<'a> {
    // Empty: everything is accepted (no header at all, or `*/*`).
    ranges: Vec<&'a str>,
}

impl<'a> Accept<'a> {
    /// Reads the values of all `Accept` headers of a request. No header, or `*/*` among them, takes anything.
    pub fn parse(lines: impl IntoIterator<Item = &'a str>) -> Accept<'a> {
        let parts = lines.into_iter().flat_map(|line| line.split(','));
        let ranges: Vec<&str> = parts.map(essence).filter(|part| !part.is_empty()).collect();
        if ranges.contains(&"*/*") { Accept::default() } else { Accept { ranges } }
    }

    /// Whether a document of `media_type` may be sent.
    pub fn allows(&self, media_type: &str) -> bool {
        let wanted = essence(media_type);
        let matches = |range: &&str| match range.strip_suffix("/*") {
            Some(kind) => wanted.split('/').next().is_some_and(|own| own.eq_ignore_ascii_case(kind)),
            None => range.eq_ignore_ascii_case(wanted),
        };
        self.ranges.is_empty() || self.ranges.iter().any(matches)
    }
}

/// Whether a document of this type lists other manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(essence(media_type), OCI_INDEX | DOCKER_LIST)
}

/// Whether a descriptor of this type points to a manifest or index rather than to a blob.
pub fn is_manifest(media_type: &str) -> bool {
    let kind = essence(media_type);
    is_index(kind)
        || matches!(kind, OCI_MANIFEST | DOCKER_MANIFEST)
        || kind.starts_with("application/vnd.docker.distribution.manifest.v1+")
        || kind == "application/vnd.oci.artifact.manifest.v1+json"
        || kind == "application/vnd.cncf.oras.artifact.manifest.v1+json"
}

/// The type without its parameters.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_a_set_over_all_lines() {
        let docker = Accept::parse([DOCKER_MANIFEST, DOCKER_LIST]);
        assert!(
            docker.allows(DOCKER_LIST)
                && docker.allows("application/VND.docker.distribution.manifest.v2+json")
        );
        assert!(!docker.allows(OCI_INDEX));
        let listed = Accept::parse(["text/html, application/vnd.oci.image.index.v1+json;q=0.5"]);
        assert!(listed.allows(OCI_INDEX) && !listed.allows(OCI_MANIFEST));
    }

    #[test]
    fn nothing_or_anything_takes_all() {
        for accept in [Accept::parse([]), Accept::parse([""]), Accept::parse([DOCKER_LIST, "*/*"])] {
            assert!(accept.allows(OCI_INDEX), "{accept:?}");
        }
        assert!(Accept::parse(["application/*"]).allows(OCI_INDEX));
        assert!(!Accept::parse(["text/*"]).allows(OCI_INDEX));
    }

    #[test]
    fn our_own_accept_covers_what_clients_ask_for() {
        let ours = Accept::parse([MANIFEST_ACCEPT]);
        assert_eq!(ours, Accept::default());
        assert!(is_manifest(DOCKER_LIST) && is_index(OCI_INDEX) && !is_manifest("application/octet-stream"));
    }
}
