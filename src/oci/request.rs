use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use super::{Digest, Malformed, Page, Reference, RegistryHost, RepositoryName};

/// A request to the pull side of the distribution API, one variant per endpoint (distribution-spec,
/// "Endpoints"). The method is not part of it: each of them takes GET and HEAD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OciRequest {
    /// `/v2/`: is this a registry?
    Ping,
    /// `/v2/<name>/manifests/<reference>`.
    Manifest {
        /// The repository as asked for.
        name: RepositoryName,
        /// Tag or digest.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`.
    Blob {
        /// The repository as asked for.
        name: RepositoryName,
        /// Which blob.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list`.
    Tags {
        /// The repository as asked for.
        name: RepositoryName,
        /// Which page of the list.
        page: Page,
    },
    /// `/v2/<name>/referrers/<digest>`.
    Referrers {
        /// The repository as asked for.
        name: RepositoryName,
        /// What is referred to.
        digest: Digest,
        /// Only referrers of this type.
        artifact_type: Option<String>,
    },
    /// `/v2/_catalog`: the repositories of which something is cached (Docker's registry; not in the spec).
    Catalog {
        /// Which page of the list.
        page: Page,
    },
}

/// What kind of thing a request is about; the `kind` label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A manifest or index.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
    /// A list of referrers.
    Referrers,
}

/// Why a request's path or query means nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The path is no endpoint of the API.
    #[error("there is no such endpoint in the distribution API")]
    NoEndpoint,
    /// The repository name breaks the grammar.
    #[error(transparent)]
    Name(Malformed),
    /// The digest breaks the grammar.
    #[error(transparent)]
    Digest(Malformed),
    /// The tag breaks the grammar, so nothing can have it.
    #[error(transparent)]
    Tag(Malformed),
    /// `?ns=` is not a registry host.
    #[error(transparent)]
    Namespace(Malformed),
    /// `?n=` is not a number.
    #[error("`n` must be a number of entries, 0 or more")]
    PageSize,
}

impl Kind {
    /// Every kind, for metrics that start at 0.
    pub const ALL: [Kind; 4] = [Kind::Manifest, Kind::Blob, Kind::Tags, Kind::Referrers];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Blob => "blob",
            Kind::Tags => "tags",
            Kind::Referrers => "referrers",
        }
    }
}

impl OciRequest {
    /// Reads a request's path (starting with `/v2`) and query. The second value is the registry named by
    /// `?ns=`, which containerd and BuildKit send to mirrors (distribution-spec, "Registry Proxying").
    ///
    /// # Errors
    /// [`BadRequest`] says which part is wrong.
    pub fn parse(path: &str, query: Option<&str>) -> Result<(OciRequest, Option<RegistryHost>), BadRequest> {
        let query = Query::parse(query.unwrap_or_default())?;
        let decoded = match path.contains('%') {
            true => percent_decode_str(path).decode_utf8().map_err(|_| BadRequest::NoEndpoint)?,
            false => Cow::Borrowed(path),
        };
        let request = match decoded.strip_prefix("/v2") {
            Some("" | "/") => OciRequest::Ping,
            Some("/_catalog") => OciRequest::Catalog { page: query.page },
            Some(path) => {
                let path = path.strip_prefix('/').ok_or(BadRequest::NoEndpoint)?;
                return Ok((OciRequest::in_repository(path, query.page, query.artifact_type)?, query.ns));
            }
            None => return Err(BadRequest::NoEndpoint),
        };
        Ok((request, query.ns))
    }

    /// `path` is `<name>/<endpoint>/<object>`; it is read from the end, since names hold slashes.
    fn in_repository(
        path: &str,
        page: Page,
        artifact_type: Option<String>,
    ) -> Result<OciRequest, BadRequest> {
        let (rest, object) = path.rsplit_once('/').ok_or(BadRequest::NoEndpoint)?;
        let (name, endpoint) = rest.rsplit_once('/').ok_or(BadRequest::NoEndpoint)?;
        let name = || name.parse().map_err(BadRequest::Name);
        let digest = || object.parse().map_err(BadRequest::Digest);
        match (endpoint, object) {
            ("manifests", _) => {
                let wrong = if object.contains(':') { BadRequest::Digest } else { BadRequest::Tag };
                Ok(OciRequest::Manifest { name: name()?, reference: object.parse().map_err(wrong)? })
            }
            ("blobs", _) => Ok(OciRequest::Blob { name: name()?, digest: digest()? }),
            ("referrers", _) => Ok(OciRequest::Referrers { name: name()?, digest: digest()?, artifact_type }),
            ("tags", "list") => Ok(OciRequest::Tags { name: name()?, page }),
            _ => Err(BadRequest::NoEndpoint),
        }
    }
}

/// What the query of a request may say. Parameters of no meaning here are passed over.
#[derive(Default)]
struct Query {
    ns: Option<RegistryHost>,
    page: Page,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(query: &str) -> Result<Query, BadRequest> {
        let mut read = Query::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "ns" => read.ns = Some(value.parse().map_err(BadRequest::Namespace)?),
                "n" => read.page.n = Some(value.parse().map_err(|_| BadRequest::PageSize)?),
                "last" => read.page.last = Some(value.into_owned()).filter(|last| !last.is_empty()),
                "artifactType" => {
                    read.artifact_type = Some(value.into_owned()).filter(|kind| !kind.is_empty())
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    const HEX: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn parse(path: &str) -> Result<OciRequest, BadRequest> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        OciRequest::parse(path, query).map(|(request, _)| request)
    }

    #[test]
    fn every_endpoint() {
        let name: RepositoryName = "org/app".parse().expect("a name");
        let digest: Digest = format!("sha256:{HEX}").parse().expect("a digest");
        assert_eq!(parse("/v2"), Ok(OciRequest::Ping));
        assert_eq!(parse("/v2/"), Ok(OciRequest::Ping));
        let tag = Reference::Tag("v1".parse().expect("a tag"));
        assert_eq!(
            parse("/v2/org/app/manifests/v1"),
            Ok(OciRequest::Manifest { name: name.clone(), reference: tag })
        );
        assert_eq!(
            parse(&format!("/v2/org/app/blobs/sha256%3A{HEX}")),
            Ok(OciRequest::Blob { name: name.clone(), digest })
        );
        let page = Page { n: Some(2), last: Some("a".to_owned()) };
        assert_eq!(
            parse("/v2/org/app/tags/list?n=2&last=a"),
            Ok(OciRequest::Tags { name: name.clone(), page: page.clone() })
        );
        assert_eq!(
            parse(&format!("/v2/org/app/referrers/sha256:{HEX}?artifactType=a%2Fb")),
            Ok(OciRequest::Referrers { name, digest, artifact_type: Some("a/b".to_owned()) })
        );
        assert_eq!(parse("/v2/_catalog?n=2&last=a"), Ok(OciRequest::Catalog { page }));
    }

    #[test]
    fn names_that_look_like_endpoints() {
        let request = parse("/v2/manifests/blobs/tags/list").expect("a request");
        assert!(matches!(request, OciRequest::Tags { name, .. } if name.as_str() == "manifests/blobs"));
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        assert_eq!(parse("/v1/a"), Err(BadRequest::NoEndpoint));
        assert_eq!(parse("/v2/a/b"), Err(BadRequest::NoEndpoint));
        assert_eq!(parse("/v2x"), Err(BadRequest::NoEndpoint));
        assert_eq!(parse("/v2/a/uploads/x"), Err(BadRequest::NoEndpoint));
        assert_eq!(parse("/v2/a/tags/list?n=x"), Err(BadRequest::PageSize));
        assert!(matches!(parse("/v2/A/manifests/x"), Err(BadRequest::Name(_))));
        assert!(matches!(parse("/v2/../../etc/manifests/x"), Err(BadRequest::Name(_))));
        assert!(matches!(parse("/v2/%2e%2e/manifests/x"), Err(BadRequest::Name(_))));
        assert!(matches!(parse("/v2/a/manifests/.x"), Err(BadRequest::Tag(_))));
        assert!(matches!(parse("/v2/a/manifests/sha256:x"), Err(BadRequest::Digest(_))));
        assert!(matches!(parse("/v2/a/blobs/x"), Err(BadRequest::Digest(_))));
        assert!(matches!(parse("/v2/a/manifests/x?ns=a/b"), Err(BadRequest::Namespace(_))));
    }

    #[test]
    fn the_namespace_is_read() {
        let (_, ns) = OciRequest::parse("/v2/a/tags/list", Some("ns=GHCR.io&x=y")).expect("a request");
        assert_eq!(ns.expect("a namespace").as_str(), "ghcr.io");
    }

    proptest! {
        #[test]
        fn never_panics(path in "/v2/\\PC{0,60}", query in "\\PC{0,40}") {
            let _ = OciRequest::parse(&path, Some(&query));
        }

        #[test]
        fn names_come_back_whole(name in "[a-z0-9]{1,9}(/[a-z0-9]{1,9}){0,4}") {
            let request = parse(&format!("/v2/{name}/manifests/latest")).expect("a request");
            let OciRequest::Manifest { name: read, .. } = request else { panic!("a manifest") };
            prop_assert_eq!(read.as_str(), name);
        }
    }
}
