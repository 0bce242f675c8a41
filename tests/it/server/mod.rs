//! The server over real sockets: protocols, limits, draining, TLS.

mod drain;
mod exhausted;
mod files;
mod kit;
mod limits;
mod protocol;
mod tls;
