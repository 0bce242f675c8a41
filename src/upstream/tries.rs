use tokio::time::Instant;

use super::{Client, Error, Next};
use crate::scheduler::{Errand, Lease, Pull, Refused, Want};

/// The way of one question from endpoint to endpoint and from account to account, until somebody answers it or
/// there is nobody left.
///
/// Which account and which endpoint is next the scheduler knows, since each failure was told to it. What is
/// decided here is whether there shall be a next one.
pub(super) struct Tries<'a> {
    client: &'a Client,
    errand: &'a Errand,
    want: Want,
    /// All waits together end here (I8).
    deadline: Instant,
    again: u32,
    /// No account could log in, which explains more than what came of going without one.
    login: Option<Error>,
}

/// On other accounts, or after a pause. More would only be an upstream that contradicts itself.
const MOST_AGAIN: u32 = 16;

impl<'a> Tries<'a> {
    pub(super) fn new(client: &'a Client, errand: &'a Errand, want: Want) -> Tries<'a> {
        let deadline = client.scheduler.deadline();
        Tries { client, errand, want, deadline, again: 0, login: None }
    }

    /// Leave for the next free try.
    pub(super) async fn lease(&mut self) -> Result<Lease, Error> {
        let Client { scheduler, .. } = self.client;
        let lease = scheduler.lease(self.client.id(), self.want.clone(), self.errand, self.deadline).await;
        lease.map_err(|refused| self.refused(refused))
    }

    /// Leave for the next counted one.
    pub(super) async fn pull(&mut self) -> Result<Pull, Error> {
        let Client { scheduler, .. } = self.client;
        let pull = scheduler.pull(self.client.id(), self.want.clone(), self.errand, self.deadline).await;
        pull.map_err(|refused| self.refused(refused))
    }

    /// The outcome of a try: what was wanted, or nothing yet when there is to be another try.
    pub(super) fn judge<T>(&mut self, lease: &Lease, outcome: Result<T, Error>) -> Result<Option<T>, Error> {
        let error = match outcome {
            Ok(wanted) => return Ok(Some(wanted)),
            Err(error) => error,
        };
        let is_origin = self.client.endpoint(lease).is_origin;
        let is_hidden = matches!(error, Error::Hidden { .. } | Error::NotFound { .. } | Error::Login { .. });
        let next = if lease.is_makeshift() && is_hidden {
            // An account might have seen it.
            self.want = self.want.only_accounts();
            Next::OtherAccount
        } else {
            error.next(is_origin, lease.account().is_some())
        };
        match next {
            Next::OtherAccount if self.again < MOST_AGAIN => {
                self.again += 1;
                if matches!(error, Error::Login { .. }) && !lease.is_makeshift() {
                    self.login = Some(error);
                }
            }
            Next::OtherEndpoint => {
                tracing::debug!(registry = %self.client.registry(), %error, "trying the next endpoint");
                self.want = self.want.from(lease.endpoint() + 1);
            }
            Next::OtherAccount | Next::GiveUp => return Err(error),
        }
        Ok(None)
    }

    fn refused(&mut self, refused: Refused) -> Error {
        self.login.take().unwrap_or(Error::Refused(refused))
    }
}
