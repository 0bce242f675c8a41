use std::time::Duration;

use super::Config;

/// containerd and Docker with its store give up when no headers came within 30 s; some of that is ours.
const PATIENCE: Duration = Duration::from_secs(25);

impl Config {
    /// What is allowed but may not be meant, as key path and reason.
    pub fn advice(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut advise = |key: String, reason: &str| found.push((key, reason.to_owned()));
        if self.schedule.max_wait > PATIENCE {
            advise("schedule.max_wait".into(), "is longer than containerd and Docker wait for headers (30s)");
        }
        if !self.server.admin_listen.ip().is_loopback() {
            advise("server.admin_listen".into(), "can be reached from other machines, and asks for no login");
        }
        for (i, upstream) in self.upstreams.iter().enumerate() {
            let key = |name: &str| format!("upstream[{i}].{name}");
            if upstream.insecure {
                advise(key("insecure"), "lets anyone on the way read its credentials and answer for it");
            }
            if upstream.response_timeout > PATIENCE {
                advise(
                    key("response_timeout"),
                    "is longer than containerd and Docker wait for headers (30s)",
                );
            }
            let plain = upstream.endpoints.iter().any(|endpoint| endpoint.scheme() == "http");
            if plain && !upstream.accounts.is_empty() {
                advise(key("endpoints"), "send the account's credentials over http://, readable on the way");
            }
        }
        found
    }
}
