//! The effective configuration as TOML.

use std::fmt::{Display, Write};
use std::path::Path;

use super::{
    Account, Anonymous, Bandwidth, Config, Credentials, Freshness, Hold, LogFormat, Proxy, Server, Tls,
    Upstream, Warm, print_duration,
};

/// Lines of `key = value`.
#[derive(Default)]
struct Page(String);

impl Config {
    /// Everything that holds, as a file that loads to the same configuration. Passwords are masked: where
    /// one was, the file does not.
    pub fn to_toml(&self) -> String {
        let mut page = Page::default();
        page.key("offline", self.offline);
        server(&mut page, &self.server);
        if let Some(file) = &self.admin.token_file {
            page.head("[admin]");
            page.key("token_file", path(file));
        }
        page.head("[cache]");
        page.key("dir", path(&self.cache.dir));
        page.key("max_size", quoted(self.cache.max_size));
        page.key("min_free", quoted(self.cache.min_free));
        page.key("scrub_every", quoted(print_duration(self.cache.scrub_every)));
        page.key("scrub_rate", quoted(self.cache.scrub_rate));
        page.head("[freshness]");
        freshness(&mut page, &self.freshness, None);
        page.head("[schedule]");
        page.key("max_wait", quoted(print_duration(self.schedule.max_wait)));
        page.key("reserve", quoted(self.schedule.reserve));
        bandwidth(&mut page, &self.schedule.bandwidth);
        page.head("[log]");
        page.key("format", quoted(format_name(self.log.format)));
        page.key("level", quoted(&self.log.level));
        if let Some(file) = &self.log.audit {
            page.key("audit", path(file));
        }
        page.head("[trace]");
        if let Some(endpoint) = &self.trace.endpoint {
            page.key("endpoint", quoted(endpoint.as_str().trim_end_matches('/')));
        }
        page.key("share", quoted(self.trace.share));
        for each in &self.upstreams {
            upstream(&mut page, each, &self.freshness);
        }
        for each in &self.warm {
            warm(&mut page, each);
        }
        page.0
    }
}

impl Page {
    fn head(&mut self, header: &str) {
        self.line(format_args!("\n{header}"));
    }

    fn key(&mut self, key: &str, value: impl Display) {
        self.line(format_args!("{key} = {value}"));
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("a String takes every text");
    }
}

fn server(page: &mut Page, server: &Server) {
    page.head("[server]");
    page.key("listen", list(&server.listen));
    page.key("admin_listen", quoted(server.admin_listen));
    page.key("drain_timeout", quoted(print_duration(server.drain_timeout)));
    page.key("max_connections", server.max_connections);
    if let Some(Tls { cert, key, client_ca }) = &server.tls {
        page.head("[server.tls]");
        page.key("cert", path(cert));
        page.key("key", path(key));
        if let Some(client_ca) = client_ca {
            page.key("client_ca", path(client_ca));
        }
    }
}

/// The keys that differ from `beneath`; all when there is nothing beneath.
fn freshness(page: &mut Page, freshness: &Freshness, beneath: Option<&Freshness>) {
    type Pick = fn(&Freshness) -> String;
    let keys: [(&str, Pick); 5] = [
        ("tag_ttl", |freshness| quoted(print_duration(freshness.tag_ttl))),
        ("stale_while_revalidate", |freshness| quoted(print_duration(freshness.stale_while_revalidate))),
        ("stale_if_error", |freshness| quoted(print_duration(freshness.stale_if_error))),
        ("negative_ttl", |freshness| quoted(print_duration(freshness.negative_ttl))),
        ("immutable_tags", |freshness| list(&freshness.immutable_tags)),
    ];
    for (key, pick) in keys {
        let value = pick(freshness);
        if beneath.map(pick).as_ref() != Some(&value) {
            page.key(key, value);
        }
    }
}

fn upstream(page: &mut Page, upstream: &Upstream, global: &Freshness) {
    page.head("[[upstream]]");
    page.key("registry", quoted(&upstream.registry));
    page.key("default", upstream.default);
    let endpoints = upstream.endpoints.iter().map(|endpoint| endpoint.as_str().trim_end_matches('/'));
    page.key("endpoints", list(endpoints));
    page.key("hosts", list(&upstream.hosts));
    page.key("allow", list(&upstream.allow));
    page.key("deny", list(&upstream.deny));
    page.key("max_connections", upstream.max_connections);
    page.key("requests_per_second", upstream.requests_per_second);
    bandwidth(page, &upstream.bandwidth);
    page.key("connect_timeout", quoted(print_duration(upstream.connect_timeout)));
    page.key("response_timeout", quoted(print_duration(upstream.response_timeout)));
    page.key("idle_timeout", quoted(print_duration(upstream.idle_timeout)));
    page.key("read_ahead", upstream.read_ahead);
    page.key("parallel_ranges", upstream.parallel_ranges);
    if let Some(ca) = &upstream.ca {
        page.key("ca", path(ca));
    }
    page.key("insecure", upstream.insecure);
    match &upstream.proxy {
        Proxy::Environment => {}
        Proxy::None => page.key("proxy", quoted("none")),
        Proxy::Through(url) => page.key("proxy", quoted(without_userinfo(url.reveal()))),
    }
    page.key("token_hosts", list(&upstream.token_hosts));
    page.key("anonymous", quoted(anonymous_name(upstream.anonymous)));
    if let Some(probe) = &upstream.probe {
        page.key("probe", quoted(probe));
    }
    freshness(page, &upstream.freshness, Some(global));
    for each in &upstream.accounts {
        account(page, each);
    }
    for Hold { tags, at } in &upstream.holds {
        page.head("[[upstream.hold]]");
        page.key("tags", list(tags));
        page.key("at", jiff::Timestamp::try_from(*at).unwrap_or_default());
    }
}

fn warm(page: &mut Page, warm: &Warm) {
    page.head("[[warm]]");
    page.key("name", quoted(&warm.name));
    page.key("images", list(&warm.images));
    if let Some(newest) = warm.newest {
        page.key("newest", newest);
    }
    page.key("platforms", list(&warm.platforms));
    page.key("referrers", warm.referrers);
    page.key("pin", warm.pin);
    page.key("every", quoted(print_duration(warm.every)));
    if let Some(hours) = warm.hours {
        page.key("hours", quoted(hours));
    }
    bandwidth(page, &warm.bandwidth);
}

/// Nothing where there is no limit.
fn bandwidth(page: &mut Page, bandwidth: &Bandwidth) {
    if !bandwidth.is_unlimited() {
        page.key("bandwidth", list(&bandwidth.0));
    }
}

fn account(page: &mut Page, account: &Account) {
    page.head("[[upstream.account]]");
    page.key("name", quoted(&account.name));
    page.key("repositories", list(&account.repositories));
    match &account.credentials {
        Credentials::PasswordFile { username, file } => {
            page.key("username", quoted(username));
            page.key("password_file", path(file));
        }
        Credentials::PasswordEnv { username, variable } => {
            page.key("username", quoted(username));
            page.key("password_env", quoted(variable));
        }
        Credentials::DockerConfig { file } => page.key("docker_config", path(file)),
        Credentials::Helper { program, ttl } => {
            page.key("credential_helper", path(program));
            page.key("credential_ttl", quoted(print_duration(*ttl)));
        }
    }
}

fn anonymous_name(anonymous: Anonymous) -> &'static str {
    match anonymous {
        Anonymous::Last => "last",
        Anonymous::Never => "never",
    }
}

fn format_name(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

/// The proxy's URL with `***` for who logs in there.
fn without_userinfo(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

fn quoted(text: impl Display) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn path(path: &Path) -> String {
    quoted(path.display())
}

fn list<T: Display>(members: impl IntoIterator<Item = T>) -> String {
    let members: Vec<String> = members.into_iter().map(quoted).collect();
    format!("[{}]", members.join(", "))
}
