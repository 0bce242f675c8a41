use super::told;

/// Each text has the one fault that begins as the line below it says.
const FAULTS: &str = r#"server = 1
=> t.toml:1: server must be one table: [server]

[[server]]
=> t.toml:1: server must be one table: [server]

[upstream]
=> t.toml:1: upstream must be a list of tables: [[upstream]]

upstream = []
=> t.toml:1: upstream must name at least one registry

upstream = [1]
=> t.toml:1: upstream[0] must be a table: [[upstream]]

offline = "yes"
=> t.toml:1: offline = "yes" must be true or false

cache.dir = "~/x"
=> t.toml:1: cache.dir = "~/x" must be a path with the home

cache.dir = ""
=> t.toml:1: cache.dir = "" must be a path in quotes

cache.max_size = "0%"
=> t.toml:1: cache.max_size = "0%" must be a share above 0%

cache.max_size = 0
=> t.toml:1: cache.max_size = 0 must be above 0

schedule.max_wait = "11m"
=> t.toml:1: schedule.max_wait = "11m" must be a duration from 0s to 10m

log.format = "xml"
=> t.toml:1: log.format = "xml" must be "text" or "json"

server.listen = []
=> t.toml:1: server.listen = [] must name at least one address

server.listen = ["localhost:1"]
=> t.toml:1: server.listen[0] = "localhost:1" must be an IP address

server.listen = ["[::]:1", "127.0.0.1:1"]
=> t.toml:1: server.listen[1] = "127.0.0.1:1" must differ from server.listen[0]

server.admin_listen = "127.0.0.1:5000"
=> t.toml:1: server.admin_listen = "127.0.0.1:5000" must differ from server.listen[0] (127.0.0.1:5000)

server.tls = { cert = "c" }
=> t.toml:1: server.tls.key is missing: its private key

[[upstream]]
registry = "docker.io"
default = false
=> t.toml:1: upstream must have `default = true`

[[upstream]]
registry = "docker.io"
default = true
[[upstream]]
registry = "quay.io"
default = true
=> t.toml:6: upstream[1].default = true must be the only default

[[upstream]]
registry = "docker.io"
[[upstream]]
registry = "Docker.io"
=> t.toml:4: upstream[1].registry = "Docker.io" must stand only once, but upstream[0]

[[upstream]]
registry = "docker.io"
hosts = ["quay.io"]
[[upstream]]
registry = "quay.io"
=> t.toml:3: upstream[0].hosts[0] = "quay.io" must not be the registry of upstream[1]

[[upstream]]
registry = "docker.io"
hosts = ["m"]
[[upstream]]
registry = "quay.io"
hosts = ["m"]
=> t.toml:6: upstream[1].hosts[0] = "m" must stand only once, but upstream[0].hosts[0]

[[upstream]]
registry = "index.docker.io"
endpoints = ["https://x"]
=> t.toml:2: upstream[0].registry = "index.docker.io" must be "docker.io"

[[upstream]]
registry = "x.example"
=> t.toml:1: upstream[0].endpoints is missing

[[upstream]]
registry = "docker.io"
endpoints = []
=> t.toml:3: upstream[0].endpoints = [] must name at least one endpoint

[[upstream]]
registry = "docker.io"
endpoints = ["https://x/path"]
=> t.toml:3: upstream[0].endpoints[0] = "https://x/path" must be http

[[upstream]]
registry = "docker.io"
endpoints = ["https://u:hunter2@x"]
=> t.toml:3: upstream[0].endpoints[0] = *** must be http

[[upstream]]
registry = "docker.io"
endpoints = ["https://x", "https://x/"]
=> t.toml:3: upstream[0].endpoints[1] = "https://x/" must stand only once

[[upstream]]
registry = "docker.io"
endpoints = ["http://localhost:5000"]
=> t.toml:3: upstream[0].endpoints[0] = "http://localhost:5000" must not be this mirror itself

[[upstream]]
registry = "docker.io"
requests_per_second = 0
=> t.toml:3: upstream[0].requests_per_second = 0 must be a whole number from 1

[[upstream]]
registry = "docker.io"
response_timeout = "0s"
=> t.toml:3: upstream[0].response_timeout = "0s" must be a duration from 1ms

[[upstream]]
registry = "docker.io"
allow = []
=> t.toml:3: upstream[0].allow = [] must not be empty

[[upstream]]
registry = "docker.io"
allow = ["a b"]
=> t.toml:3: upstream[0].allow[0] = "a b" must be a pattern

[[upstream]]
registry = "docker.io"
proxy = "u:hunter2@x:1"
=> t.toml:3: upstream[0].proxy = *** must be "none", or http://

[[upstream]]
registry = "docker.io"
insecure = true
ca = "x"
=> t.toml:4: upstream[0].ca = "x" has no use

[[upstream]]
registry = "docker.io"
username = "x"
=> t.toml:3: upstream[0].username is not a key: accounts stand in [[upstream.account]]

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
=> t.toml:3: upstream[0].account[0] must have exactly one of password_file, password_env, docker_config, credential_helper: there is none

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
docker_config = "x"
credential_helper = "docker-credential-x"
=> t.toml:3: upstream[0].account[0] must have exactly one of

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
password_file = "x"
=> t.toml:3: upstream[0].account[0].username is missing: whose password is in password_file

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
username = "u"
docker_config = "x"
=> t.toml:5: upstream[0].account[0].username = "u" has no use with docker_config

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
docker_config = "x"
credential_ttl = "1m"
=> t.toml:6: upstream[0].account[0].credential_ttl = "1m" has no use

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
credential_helper = "ecr-login"
=> t.toml:5: upstream[0].account[0].credential_helper = "ecr-login" must be the whole name

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
username = "u"
password_env = "hunter2!"
=> t.toml:6: upstream[0].account[0].password_env = *** must be the name

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
username = "u"
password = "hunter2"
password_env = "X"
=> t.toml:6: upstream[0].account[0].password is not a key: no password belongs

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
docker_config = "x"
[[upstream.account]]
name = "a"
docker_config = "y"
=> t.toml:7: upstream[0].account[1].name = "a" must stand only once

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
docker_config = "x"
[[upstream.account]]
name = "b"
docker_config = "y"
repositories = []
=> t.toml:9: upstream[0].account[1].repositories = [] must not be empty

[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "a"
docker_config = "x"
repositories = ["a/**", "a b"]
=> t.toml:6: upstream[0].account[0].repositories[1] = "a b" must be a pattern

[[upstream]]
registry = "docker.io"
anonymous = false
=> t.toml:3: upstream[0].anonymous = false must be "last" or "never"

[[upstream]]
registry = "docker.io"
anonymous = "never"
=> t.toml:3: upstream[0].anonymous = "never" has no use without an [[upstream.account]]: everything is anonymous then

[[upstream]]
registry = "docker.io"
anonymous = "never"
[[upstream.account]]
name = "a"
=> t.toml:4: upstream[0].account[0] must have exactly one of

[[upstream]]
registry = "docker.io"
probe = "library/alpine"
=> t.toml:3: upstream[0].probe = "library/alpine" must be a repository in full and a tag

[[upstream]]
registry = "docker.io"
probe = "docker.io:5000/alpine:3"
=> t.toml:3: upstream[0].probe = "docker.io:5000/alpine:3" must be a repository in full and a tag

offline = true
b = [
=> t.toml:2: not TOML: 

offline = true
offline = false
=> t.toml:2: not TOML: duplicate key

[[upstream]]
registry = "docker.io"
proxy = http://u:hunter2@x:1
=> t.toml:3: not TOML: 
"#;

#[test]
fn each_fault_is_told() {
    for case in FAULTS.split("\n\n") {
        let (text, start) = case.split_once("\n=> ").expect("a text and what is told");
        let told = told(text);
        assert!(told.len() == 1 && told[0].starts_with(start.trim_end_matches('\n')), "{case}\n{told:#?}");
        assert!(!told[0].contains("hunter2"), "{told:?}");
    }
}
