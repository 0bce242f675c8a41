use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

use crate::config::Config;

/// What a person who starts the mirror wants to know: where it listens, what it mirrors, and the line that
/// makes Docker use it. Goes to standard output, apart from the log.
pub fn banner(config: &Config, listen: &[SocketAddr], admin: SocketAddr) {
    let text = text(config, listen, admin);
    // A closed standard output is no reason not to serve.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn text(config: &Config, listen: &[SocketAddr], admin: SocketAddr) -> String {
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let list = |items: Vec<String>| items.join(", ");
    let addresses = list(listen.iter().map(|address| format!("{scheme}://{address}")).collect());
    let upstreams = list(config.upstreams.iter().map(|upstream| upstream.registry.to_string()).collect());
    let mut text = format!("tidelock {}\n", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(text, "  clients    {addresses}");
    let _ = writeln!(text, "  admin      http://{admin}  (status page; /metrics, /healthz, /readyz)");
    let _ = writeln!(text, "  cache      {}, at most {}", config.cache.dir.display(), config.cache.max_size);
    let _ = writeln!(text, "  upstreams  {upstreams}{}", if config.offline { "  (offline)" } else { "" });
    if let Some(first) = listen.first() {
        let _ = writeln!(text, "\nDocker: put this into /etc/docker/daemon.json and restart dockerd");
        let _ = writeln!(text, "  {{ \"registry-mirrors\": [\"{scheme}://{first}\"] }}");
        let _ =
            writeln!(text, "other clients: tidelock client containerd|podman|crio|buildkit|k3s|nerdctl\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_docker_is_valid_json() {
        let config = Config::default();
        let text = text(&config, &config.server.listen, config.server.admin_listen);
        let line = text.lines().find(|line| line.contains("registry-mirrors")).expect("the line is there");
        let json: serde_json::Value = serde_json::from_str(line.trim()).expect("it is JSON");
        assert_eq!(json["registry-mirrors"][0], "http://127.0.0.1:5000");
    }
}
