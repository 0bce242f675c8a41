//! The server over real sockets: protocols, limits, draining, TLS.

mod drain;
mod exhausted;
mod kit;
mod limits;
mod protocol;
mod tls;
