use super::{Client, Error, Next};
use crate::oci::Reference;
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
    again: u32,
    /// An account could not log in, or may not see it: the answer when no other account may be asked.
    last: Option<Error>,
}

/// On other accounts, or after a pause. More would only be an upstream that contradicts itself.
const MOST_AGAIN: u32 = 8;

impl<'a> Tries<'a> {
    pub(super) fn new(client: &'a Client, errand: &'a Errand, want: Want) -> Tries<'a> {
        Tries { client, errand, want, again: 0, last: None }
    }

    /// Leave for the next free try.
    pub(super) async fn lease(&mut self) -> Result<Lease, Error> {
        let Client { scheduler, .. } = self.client;
        let lease = scheduler.lease(self.client.id(), self.want.clone(), self.errand).await;
        lease.map_err(|refused| self.refused(refused))
    }

    /// Leave for the next counted one.
    pub(super) async fn pull(&mut self, reference: &Reference) -> Result<Pull, Error> {
        let Client { scheduler, .. } = self.client;
        let pull = scheduler.pull(self.client.id(), self.want.clone(), reference, self.errand).await;
        pull.map_err(|refused| self.refused(refused))
    }

    /// The outcome of a try: what was wanted, or nothing yet when there is to be another try.
    pub(super) fn judge<T>(&mut self, lease: &Lease, outcome: Result<T, Error>) -> Result<Option<T>, Error> {
        let error = match outcome {
            Ok(wanted) => return Ok(Some(wanted)),
            Err(error) => error,
        };
        match self.next(lease, &error) {
            Next::OtherAccount if self.again < MOST_AGAIN => self.again += 1,
            Next::OtherEndpoint => {
                tracing::debug!(registry = %self.client.registry(), %error, "trying the next endpoint");
                self.want = self.want.from(lease.endpoint() + 1);
            }
            Next::OtherAccount | Next::GiveUp => return Err(error),
        }
        Ok(None)
    }

    /// Where to go on after `error`, and what is not to be tried again.
    fn next(&mut self, lease: &Lease, error: &Error) -> Next {
        let is_origin = self.client.endpoint(lease).is_origin;
        let is_hidden = matches!(error, Error::Hidden { .. } | Error::NotFound { .. } | Error::Login { .. });
        if is_origin && is_hidden && lease.is_makeshift() {
            // An account might have seen it.
            self.want = self.want.only_accounts();
            return Next::OtherAccount;
        }
        let next = error.next(is_origin, lease.account().is_some());
        match (lease.account(), error) {
            // One account may see what another may not.
            (Some(account), Error::Hidden { .. }) if next == Next::GiveUp => {
                self.want = self.want.clone().without(account);
                self.last = Some(error.clone());
                Next::OtherAccount
            }
            (Some(_), Error::Login { .. }) => {
                self.last = Some(error.clone());
                next
            }
            _ => next,
        }
    }

    /// What came before says more than that there is nobody left to ask.
    fn refused(&mut self, refused: Refused) -> Error {
        let is_over = matches!(refused, Refused::Aside { .. } | Refused::Nobody { .. });
        self.last.take().filter(|_| is_over).unwrap_or(Error::Refused(refused))
    }
}
