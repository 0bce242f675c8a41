//! Lists that come in pages: tags, referrers.

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, LINK};

use super::answer::text;
use super::asking::{Answer, Ask};
use super::client::check_document;
use super::endpoint::Endpoint;
use super::metrics::Purpose;
use super::{Client, Error};
use crate::oci::{Digest, Kind, OCI_INDEX, Referrers, RepositoryName, TagList, next_link};
use crate::scheduler::{Errand, Lease, Want};

/// A page of 1000 tags is 128 KB at the very most; an index with annotations may be larger.
const LARGEST_PAGE: usize = 8 << 20;
/// 200,000 tags: more than any repository that is pulled from.
const MOST_PAGES: usize = 200;
/// All pages together, as they are held in memory (I7).
const LARGEST_LIST: usize = 32 << 20;
/// The largest page that Amazon's registries allow.
const TAGS_A_PAGE: usize = 1000;

impl Client {
    /// All tags of a repository, over all pages.
    ///
    /// # Errors
    /// Of the last endpoint that was asked; [`Error::BadAnswer`] for a list beyond all bounds.
    pub async fn tags(&self, errand: &Errand, repository: &RepositoryName) -> Result<TagList, Error> {
        let path = format!("tags/list?n={TAGS_A_PAGE}");
        let ask = Ask::about(Kind::Tags, Method::GET, repository, &path).accepting("application/json");
        let mut tries = self.tries(errand, Want::question(repository));
        loop {
            let lease = tries.lease().await?;
            let outcome = self.tags_at(&lease, &ask).await;
            if let Some(tags) = tries.judge(&lease, outcome)? {
                return Ok(tags);
            }
        }
    }

    /// Everything that refers to `digest`, over all pages.
    ///
    /// # Errors
    /// Of the last endpoint that was asked; [`Error::NotFound`] also where there is no referrers API: then
    /// the fallback tag is the place to look.
    pub async fn referrers(
        &self,
        errand: &Errand,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Referrers, Error> {
        let ask = Ask::about(Kind::Referrers, Method::GET, repository, &format!("referrers/{digest}"));
        let ask = ask.accepting(OCI_INDEX);
        let mut tries = self.tries(errand, Want::question(repository));
        loop {
            let lease = tries.lease().await?;
            let outcome = self.referrers_at(&lease, &ask).await;
            if let Some(referrers) = tries.judge(&lease, outcome)? {
                return Ok(referrers);
            }
        }
    }

    async fn tags_at(&self, lease: &Lease, ask: &Ask) -> Result<TagList, Error> {
        let endpoint = self.endpoint(lease);
        let mut all: Option<TagList> = None;
        for page in self.pages(lease, ask).await? {
            let page = TagList::parse(&page).map_err(|_| not_a_list(endpoint))?;
            match &mut all {
                Some(all) => all.tags.extend(page.tags),
                None => all = Some(page),
            }
        }
        all.ok_or_else(|| not_a_list(endpoint))
    }

    async fn referrers_at(&self, lease: &Lease, ask: &Ask) -> Result<Referrers, Error> {
        let mut all = Referrers::default();
        for page in self.pages(lease, ask).await? {
            all.extend(Referrers::parse(&page).map_err(|_| not_a_list(self.endpoint(lease)))?);
        }
        Ok(all)
    }

    async fn pages(&self, lease: &Lease, first: &Ask) -> Result<Vec<Bytes>, Error> {
        let endpoint = self.endpoint(lease);
        let bad =
            |reason: &str| Error::BadAnswer { endpoint: endpoint.host.clone(), reason: reason.to_owned() };
        let (mut pages, mut bytes, mut ask) = (Vec::new(), 0, first.clone());
        loop {
            let answer = usable(self.ask(lease, &ask).await?, ask.purpose).await?;
            let next = next_path(endpoint, &ask.path, &answer).map_err(bad)?;
            let page = self.read(answer, lease, LARGEST_PAGE).await?;
            bytes += page.len();
            pages.push(page);
            let Some(next) = next else { return Ok(pages) };
            if pages.len() == MOST_PAGES || bytes > LARGEST_LIST {
                return Err(bad("a list without an end"));
            }
            ask.path = next;
        }
    }
}

/// An answer that holds a list, or the error that it stands for.
async fn usable(answer: Answer, purpose: Purpose) -> Result<Answer, Error> {
    let missing = |answer: Answer| Error::NotFound { endpoint: answer.host };
    if purpose == Purpose::Content(Kind::Referrers) {
        let status = answer.response.status().as_u16();
        if matches!(status, 400 | 404 | 405 | 406) || (status == 200 && !is_index(&answer)) {
            return Err(missing(answer));
        }
    }
    let answer = answer.success().await?;
    check_document(&answer)?;
    Ok(answer)
}

/// Whoever does not know the API may still answer 200, with whatever it has for any path.
fn is_index(answer: &Answer) -> bool {
    let kind = text(answer.response.headers(), CONTENT_TYPE).and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(OCI_INDEX))
}

/// Path and query of the next page. Registries behind a TLS proxy write their own scheme and port wrong, so
/// only the host is compared; whatever the link says, it is this endpoint that is asked.
fn next_path(endpoint: &Endpoint, current: &str, answer: &Answer) -> Result<Option<String>, &'static str> {
    let mut lines = answer.response.headers().get_all(LINK).iter().filter_map(|line| line.to_str().ok());
    let Some(link) = lines.find_map(next_link) else { return Ok(None) };
    let next = endpoint.url(current).join(link).map_err(|_| "a next page at a malformed URL")?;
    if next.host() != endpoint.base().host() {
        return Err("a next page on another host");
    }
    let next = next[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
    if next == current { Err("a next page that is the same again") } else { Ok(Some(next)) }
}

fn not_a_list(endpoint: &Endpoint) -> Error {
    let reason = "a list that is not the JSON of the distribution specification".to_owned();
    Error::BadAnswer { endpoint: endpoint.host.clone(), reason }
}
