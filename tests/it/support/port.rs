//! Ports for programs that are told theirs before they start.
#![allow(unreachable_pub)] // those who share this file are a crate each

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that nobody listens on, another one at each call: below those from which the system takes the ports of outgoing
/// connections, one of which could be in its place before the program listens, and those of listeners that name none.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin far apart.
    let begin = (std::process::id() % 400) as u16 * 50;
    (0..COUNT)
        .map(|_| FIRST + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
