//! What is asked about images, and said of them.

use std::fmt::Display;
use std::time::Duration;

use http::{Response, StatusCode};

use super::{Answer, Refusal, asked_for, json, named, parameter, route};
use crate::admin::types::{Image, Images, Pinned, Refreshed, Removed, RolledBack, Shown, TagHistory};
use crate::admin::{Admin, answer};
use crate::mirror::{self, NotDone, NotHeld};
use crate::oci::{ImageReference, Reference, Repository, Tag};
use crate::routing::Target;
use crate::scheduler::{ClientAddr, Errand, Priority};
use crate::server::Body;

/// How long a check that an operator asked for may wait for its turn.
const LONGEST_HOLD: Duration = Duration::from_secs(5);
/// And the operator for its end: `tidelock` itself waits a little longer.
const LONGEST_ASKING: Duration = Duration::from_secs(8);

/// Images of a page, where the query does not say.
const DEFAULT_PAGE: usize = 100;
/// And where it wants more than anybody can look at: for each of them its manifests are read.
const LARGEST_PAGE: usize = 1_000;

/// A page of the tags that are remembered, behind the one that the query names. Those of an upstream that is no longer
/// configured are left out: nobody could pull them.
pub(in crate::admin) async fn images(admin: &Admin, query: Option<&str>) -> Response<Body> {
    let refuse = |code, message: &str| answer::error(StatusCode::BAD_REQUEST, code, message);
    let after = match parameter(query, "after").map(|after| tagged(&after)).transpose() {
        Ok(after) => after,
        Err(message) => return refuse("after_invalid", &message),
    };
    let limit = parameter(query, "limit").map_or(Ok(DEFAULT_PAGE), |limit| limit.parse::<usize>());
    let Some(limit) = limit.ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit)) else {
        return refuse("limit_invalid", &format!("limit is how many images a page has, 1 to {LARGEST_PAGE}"));
    };
    let after = after.as_ref().map(|(repository, tag)| (repository, tag));
    let store = admin.mirror.store();
    let found = store.tags(after, limit);
    let is_last = found.len() < limit;
    let rules = admin.rules.load_full();
    let (mut images, mut next) = (Vec::new(), None);
    for (Repository { registry, name: repository }, tag, stamp) in found {
        let target = rules.router.route(Some(&registry), None, &repository);
        let image = ImageReference { registry, repository, reference: Reference::Tag(tag.clone()) };
        // What is held at a date of which nothing is known nobody could pull either.
        if let Ok(target) = target
            && let Ok(meaning) = admin.mirror.meaning_of(&target, &tag, stamp)
        {
            let content = admin.mirror.content(&target, &meaning.stamp.digest).await;
            let is_pinned = store.is_pinned(&target.repository, &image.reference);
            let kept = store.kept(&meaning.stamp.digest);
            images.push(Image::new(&image, meaning, kept, is_pinned, content));
        }
        next = Some(image.to_string());
        // A long page must not keep probes and scrapers waiting: all of them share this thread.
        tokio::task::yield_now().await;
    }
    json(&Images { images, next: next.filter(|_| !is_last) })
}

/// Asks the upstream what the tag that the query names means now.
pub(in crate::admin) async fn refresh(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target, tag) = tag(admin, query)?;
    let mirror = admin.mirror.clone();
    // The check outlives the longest that an answer may take.
    let asking = admin.work.spawn(async move {
        let errand = Errand::of(ClientAddr::NOBODY).at(Priority::Revalidation).held_for(LONGEST_HOLD);
        mirror.refresh(&target, &tag, &errand).await
    });
    Ok(match tokio::time::timeout(LONGEST_ASKING, asking).await {
        Ok(Ok(Ok(refreshed))) => json(&Refreshed::new(&image, refreshed)),
        Ok(Ok(Err(error))) => not_refreshed(&error),
        Ok(Err(_)) => answer::given_up(),
        Err(_) => {
            let message =
                format!("{image}: no answer within {LONGEST_ASKING:?}; the check goes on by itself.");
            answer::error(StatusCode::GATEWAY_TIMEOUT, "timed_out", &message)
        }
    })
}

/// What the image that the query names consists of.
pub(in crate::admin) async fn show(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target) = named(admin, query)?;
    let store = admin.mirror.store();
    let unknown = |why: &dyn Display| {
        let message = format!("{image}: {why}");
        Refusal { status: StatusCode::NOT_FOUND, code: "image_unknown", message }
    };
    let (digest, meaning) = match &image.reference {
        Reference::Digest(digest) => (*digest, None),
        Reference::Tag(tag) => {
            let meaning = admin.mirror.meaning(&target, tag).map_err(|error| unknown(&error))?;
            let meaning = meaning.ok_or_else(|| unknown(&NotDone::Unknown))?;
            (meaning.stamp.digest, Some(meaning))
        }
    };
    let is_pinned = store.is_pinned(&target.repository, &image.reference);
    let parts = admin.mirror.parts(&target, &digest).await;
    if meaning.is_none() && parts.iter().all(|part| part.kept.is_none()) {
        return Err(unknown(&NotDone::Unknown));
    }
    Ok(json(&Shown::new(&image, &digest, meaning, is_pinned, parts)))
}

/// Keeps it from eviction.
pub(in crate::admin) async fn pin(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target) = named(admin, query)?;
    Ok(match admin.mirror.pin(&target, &image.reference).await {
        Ok(digest) => {
            let content = Some(admin.mirror.content(&target, &digest).await.into());
            json(&Pinned { image: image.to_string(), pinned: true, content })
        }
        Err(error) => not_done(&image, &error),
    })
}

/// Lets it be evicted, also where nobody may pull it any more.
pub(in crate::admin) async fn unpin(admin: &Admin, query: Option<&str>) -> Answer {
    let image = asked_for(query)?;
    let repository = route(admin, &image).map_or_else(
        |_| Repository { registry: image.registry.clone(), name: image.repository.clone() },
        |target| target.repository,
    );
    Ok(match admin.mirror.unpin(&repository, &image.reference).await {
        Ok(()) => json(&Pinned { image: image.to_string(), pinned: false, content: None }),
        Err(error) => not_done(&image, &error),
    })
}

/// What a tag meant before.
pub(in crate::admin) fn history(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target, tag) = tag(admin, query)?;
    let episodes = admin.mirror.history(&target, &tag);
    Ok(if episodes.is_empty() {
        not_held(&image, &NotHeld::Unknown)
    } else {
        json(&TagHistory::new(&image, episodes))
    })
}

/// Serves a tag as it was.
pub(in crate::admin) async fn roll_back(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target, tag) = tag(admin, query)?;
    let Some(to) = parameter(query, "to").filter(|to| !to.is_empty()) else {
        let message = "Say what it is to mean: ?to=DIGEST, as much of one as is needed, or ?to=previous";
        return Ok(answer::error(StatusCode::BAD_REQUEST, "to_missing", message));
    };
    Ok(match admin.mirror.roll_back(&target, &tag, &to).await {
        Ok(digest) => json(&RolledBack { image: image.to_string(), held: Some(digest.to_string()) }),
        Err(error) => not_held(&image, &error),
    })
}

/// And as the upstream has it again.
pub(in crate::admin) async fn release(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target, tag) = tag(admin, query)?;
    Ok(match admin.mirror.release(&target, &tag).await {
        Ok(()) => json(&RolledBack { image: image.to_string(), held: None }),
        Err(error) => not_held(&image, &error),
    })
}

/// The tag that the query names.
fn tag(admin: &Admin, query: Option<&str>) -> Result<(ImageReference, Target, Tag), Refusal> {
    let (image, target) = named(admin, query)?;
    match image.reference.clone() {
        Reference::Tag(tag) => Ok((image, target, tag)),
        Reference::Digest(_) => {
            let message = "A digest means what it means: name an image by its tag.".to_owned();
            Err(Refusal { status: StatusCode::BAD_REQUEST, code: "image_invalid", message })
        }
    }
}

fn not_held(image: &ImageReference, error: &NotHeld) -> Response<Body> {
    let (status, code) = match error {
        NotHeld::Unknown => (StatusCode::NOT_FOUND, "image_unknown"),
        NotHeld::NeverMeant(_) => (StatusCode::NOT_FOUND, "never_meant"),
        NotHeld::Ambiguous(_) => (StatusCode::CONFLICT, "ambiguous"),
        NotHeld::NotHeld => (StatusCode::CONFLICT, "not_held"),
        NotHeld::TooMany => (StatusCode::CONFLICT, "too_many"),
        NotHeld::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "cache"),
    };
    answer::error(status, code, &format!("{image}: {error}"))
}

/// Takes it out.
pub(in crate::admin) async fn remove(admin: &Admin, query: Option<&str>) -> Answer {
    let (image, target) = named(admin, query)?;
    Ok(match admin.mirror.remove(&target, &image.reference).await {
        Ok(mirror::Removed { digest, bytes }) => {
            json(&Removed { image: image.to_string(), digest: digest.to_string(), bytes })
        }
        Err(error) => not_done(&image, &error),
    })
}

fn not_done(image: &ImageReference, error: &NotDone) -> Response<Body> {
    let (status, code) = match error {
        NotDone::Unknown => (StatusCode::NOT_FOUND, "image_unknown"),
        NotDone::TooLarge { .. } => (StatusCode::CONFLICT, "too_large"),
        NotDone::Pinned => (StatusCode::CONFLICT, "pinned"),
        NotDone::NotPinned => (StatusCode::CONFLICT, "not_pinned"),
        NotDone::Named(_) => (StatusCode::CONFLICT, "tagged"),
        NotDone::Held(_) => (StatusCode::CONFLICT, "held"),
        NotDone::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "cache"),
    };
    answer::error(status, code, &format!("{image}: {error}"))
}

fn not_refreshed(error: &mirror::Error) -> Response<Body> {
    let (status, code) = match error {
        mirror::Error::Offline => (StatusCode::CONFLICT, "offline"),
        error if error.is_absence() => (StatusCode::NOT_FOUND, "not_found"),
        _ => (StatusCode::BAD_GATEWAY, "upstream"),
    };
    answer::error(status, code, &error.to_string())
}

/// An image by tag, as `next` of a page has it.
fn tagged(text: &str) -> Result<(Repository, Tag), String> {
    let image: ImageReference = text.parse().map_err(|fault: crate::oci::Malformed| fault.to_string())?;
    let repository = Repository { registry: image.registry, name: image.repository };
    match image.reference {
        Reference::Tag(tag) => Ok((repository, tag)),
        Reference::Digest(_) => {
            Err("after names an image by its tag, as `next` of the page before does".to_owned())
        }
    }
}
