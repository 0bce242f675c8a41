use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};

use crate::flight::HOLD_BACK;
use crate::oci::{Digest, Hasher};
use crate::upstream::Transfer;

/// A blob that passes through unkept: larger than the whole cache, or the disk is full or failing.
///
/// One client, one transfer: there is no file that others could follow. It is verified like any other, and
/// its last [`HOLD_BACK`] bytes wait for the proof (I1).
pub struct Passage {
    transfer: Transfer,
    digest: Digest,
    hasher: Hasher,
    held: BytesMut,
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Passage {
    pub(super) fn new(transfer: Transfer, digest: Digest) -> Passage {
        Passage { transfer, digest, hasher: digest.algorithm().hasher(), held: BytesMut::new() }
    }

    /// All bytes, in order. An error ends the stream short of its length.
    pub fn read(self: Box<Self>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(Some(self), |passage| async move {
            let Some(mut passage) = passage else { return Ok(None) };
            let bytes = passage.next().await?;
            let is_last = passage.held.is_empty();
            Ok(Some((bytes, (!is_last).then_some(passage))))
        })
    }

    /// The next bytes that need not be held back; at the end, the proven rest.
    async fn next(&mut self) -> io::Result<Bytes> {
        let most = usize::try_from(HOLD_BACK).unwrap_or(usize::MAX);
        while let Some(bytes) = self.transfer.next().await.map_err(io::Error::other)? {
            self.hasher.update(&bytes);
            self.held.extend_from_slice(&bytes);
            if self.held.len() > most {
                return Ok(self.held.split_to(self.held.len() - most).freeze());
            }
        }
        let actual = std::mem::replace(&mut self.hasher, self.digest.algorithm().hasher()).finish();
        if actual != self.digest {
            self.transfer.distrust();
            return Err(io::Error::other("the upstream sent bytes that do not match the digest"));
        }
        Ok(self.held.split().freeze())
    }
}
