//! Which addresses are somebody's own network (I6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Whether `address` is anything but a public unicast address: a public registry has no business there.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

/// Whether the host of `url` is visibly private: a literal address, or a name for this very machine. Other
/// names are judged when they are resolved.
pub(super) fn is_private_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_private_v4(address),
        Some(Host::Ipv6(address)) => is_private_v6(address),
        Some(Host::Domain(name)) => is_localhost(name),
        None => true,
    }
}

/// Whether `url` is on this very machine, where no proxy of the environment is of use.
pub(super) fn is_loopback_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => is_localhost(name),
        None => false,
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    match address.octets() {
        // "This network", private, loopback.
        [0 | 10 | 127, ..] => true,
        // Carrier-grade NAT, RFC 6598.
        [100, 64..=127, ..] => true,
        // Link-local; cloud metadata services live there.
        [169, 254, ..] => true,
        [172, 16..=31, ..] | [192, 168, ..] => true,
        // Protocol assignments, and benchmarks of networks.
        [192, 0, 0, _] | [198, 18..=19, ..] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    }
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [high, low] = [segments[6], segments[7]].map(u16::to_be_bytes);
    let embedded = |bytes: [u8; 4]| is_private_v4(Ipv4Addr::from(bytes));
    match segments {
        // Unspecified and loopback; v4-mapped and v4-compatible, which nothing public is announced as.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] => true,
        // NAT64 and 6to4 stand for a v4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => embedded([high[0], high[1], low[0], low[1]]),
        [0x2002, first, second, ..] => {
            let [first, second] = [first, second].map(u16::to_be_bytes);
            embedded([first[0], first[1], second[0], second[1]])
        }
        // NAT64 of a network's own.
        [0x64, 0xff9b, 1, ..] => true,
        // Unique local, link-local, site-local (deprecated), multicast.
        [0xfc00..=0xfdff | 0xfe80..=0xfeff | 0xff00..=0xffff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
        ] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "192.0.2.1",
            "223.255.255.255",
            "2606:4700::1",
            "2a00::1",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn hosts_of_urls_in_whatever_disguise() {
        for text in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]:5000/",
            "http://localhost/",
            "https://LOCALHOST./",
            "https://x.localhost/",
            "http://169.254.169.254/",
        ] {
            assert!(is_private_host(&text.parse().unwrap()), "{text}");
        }
        for text in ["https://registry-1.docker.io/", "https://8.8.8.8/", "https://mylocalhost/"] {
            assert!(!is_private_host(&text.parse().unwrap()), "{text}");
        }
    }
}
