//! The path and query of a client's request, and the `Host` with which it is routed.
//!
//! ```text
//! path?query
//! host
//! ```
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidelock::config::Config;
use tidelock::oci::{OciRequest, RegistryHost, RepositoryName};
use tidelock::routing::Router;
use tidelock_fuzz::text;

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let mut config = Config::default();
    config.upstreams[1].hosts = vec!["ghcr.mirror.test".parse().expect("a host")];
    config
});
static ROUTER: LazyLock<Router> = LazyLock::new(|| Router::new(&CONFIG));

fuzz_target!(|data: &[u8]| {
    let Some(text) = text(data) else { return };
    let (target, host) = text.split_once('\n').unwrap_or((text, ""));
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let Ok((request, ns)) = OciRequest::parse(path, query) else { return };
    let (again, ns_again) = OciRequest::parse(&path_of(&request), Some(&query_of(&request, ns.as_ref())))
        .expect("what was read can be written and read again");
    assert_eq!((&again, &ns_again), (&request, &ns));
    if let Some(name) = name_of(&request) {
        check_name(name);
        check_route(ns.as_ref(), Some(host), name);
    }
});

fn name_of(request: &OciRequest) -> Option<&RepositoryName> {
    match request {
        OciRequest::Ping | OciRequest::Catalog { .. } => None,
        OciRequest::Manifest { name, .. }
        | OciRequest::Blob { name, .. }
        | OciRequest::Tags { name, .. }
        | OciRequest::Referrers { name, .. } => Some(name),
    }
}

fn path_of(request: &OciRequest) -> String {
    match request {
        OciRequest::Ping => "/v2/".to_owned(),
        OciRequest::Catalog { .. } => "/v2/_catalog".to_owned(),
        OciRequest::Manifest { name, reference } => format!("/v2/{name}/manifests/{reference}"),
        OciRequest::Blob { name, digest } => format!("/v2/{name}/blobs/{digest}"),
        OciRequest::Tags { name, .. } => format!("/v2/{name}/tags/list"),
        OciRequest::Referrers { name, digest, .. } => format!("/v2/{name}/referrers/{digest}"),
    }
}

fn query_of(request: &OciRequest, ns: Option<&RegistryHost>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(ns.map(|ns| ("ns", ns.as_str())));
    match request {
        OciRequest::Tags { page, .. } | OciRequest::Catalog { page } => {
            query.extend_pairs(page.n.map(|n| ("n", n.to_string())));
            query.extend_pairs(page.last.as_ref().map(|last| ("last", last)));
        }
        OciRequest::Referrers { artifact_type, .. } => {
            query.extend_pairs(artifact_type.as_ref().map(|kind| ("artifactType", kind)));
        }
        OciRequest::Ping | OciRequest::Manifest { .. } | OciRequest::Blob { .. } => {}
    }
    query.finish()
}

/// However it was encoded: no name leads out of the repository's folder, or to another host, of an upstream.
fn check_name(name: &RepositoryName) {
    assert!(name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte)));
    assert!(
        name.components().all(|component| !component.is_empty() && component != "." && component != "..")
    );
    let url = url::Url::parse("https://registry.test/v2/").expect("a URL");
    let url = url.join(&format!("{name}/tags/list")).expect("a name can stand in a URL");
    assert_eq!(url.as_str(), format!("https://registry.test/v2/{name}/tags/list"));
}

/// Only what is configured comes out (I6), under the name that is configured.
fn check_route(ns: Option<&RegistryHost>, host: Option<&str>, name: &RepositoryName) {
    let Ok(target) = ROUTER.route(ns, host, name) else { return };
    let upstream = &CONFIG.upstreams[target.upstream.index()];
    assert_eq!(target.repository.registry, upstream.registry);
    assert!(
        name.as_str().ends_with(target.repository.name.as_str()) || upstream.registry.as_str() == "docker.io"
    );
    assert_eq!(target.repository.to_string().parse(), Ok(target.repository.clone()));
    if let Some(public) = ROUTER.public_name(&target.repository) {
        let again = ROUTER.route(None, None, &public.parse().expect("a name")).expect("a way there");
        assert_eq!(again.repository, target.repository);
    }
}
