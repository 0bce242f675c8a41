use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueHint};

use crate::app::Reread;
use crate::config::{Config, Faults, Objections, Overrides, Setting};
use crate::telemetry::check_filter;

const CONFIG_VARIABLE: &str = "TIDELOCK_CONFIG";

/// The configuration, as every command takes it. The environment is read by `config`, not by clap, so that
/// a fault can name the variable that it came from.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// The configuration file [env: TIDELOCK_CONFIG]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,

    /// Where clients connect; may be repeated [env: TIDELOCK_LISTEN, parted by commas]
    #[arg(long, global = true, value_name = "ADDR")]
    listen: Vec<OsString>,

    /// Where metrics and health are [env: TIDELOCK_ADMIN_LISTEN]
    #[arg(long, global = true, value_name = "ADDR")]
    admin_listen: Option<OsString>,

    /// The cache's directory [env: TIDELOCK_CACHE_DIR]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    cache_dir: Option<OsString>,

    /// The most that is cached, 50GiB or 80% [env: TIDELOCK_MAX_SIZE]
    #[arg(long, global = true, value_name = "SIZE")]
    max_size: Option<OsString>,

    /// Contact no upstream, serve what is cached [env: TIDELOCK_OFFLINE]
    #[arg(
        long,
        global = true,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    offline: Option<OsString>,
}

impl Options {
    /// Loads the configuration that these flags, this process's environment and the file make.
    pub(super) fn load(&self) -> Result<Config, Faults> {
        self.load_and(object)
    }

    /// The same for a command that contacts the upstreams.
    pub(super) fn load_online(&self) -> Result<Config, Faults> {
        let offline = |config: &Config| {
            let message = "does not go with --online, which contacts each upstream: leave one of the two out";
            config.offline.then(|| ("offline".to_owned(), message.to_owned()))
        };
        self.load_and(|config| object(config).into_iter().chain(offline(config)).collect())
    }

    /// Loads it once more whenever it is called, by the same flags and environment; `None` where there is no file.
    pub(super) fn reread(&self) -> Option<Reread> {
        let options = self.clone();
        self.path().map(|_| -> Reread { Arc::new(move || options.load()) })
    }

    fn path(&self) -> Option<PathBuf> {
        let variable = std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        self.config.clone().or(variable)
    }

    fn load_and(&self, object: impl FnOnce(&Config) -> Objections) -> Result<Config, Faults> {
        let mut overrides = self.flags();
        overrides.environment(|name| std::env::var_os(name));
        Config::load_and(self.path().as_deref(), &overrides, object)
    }

    fn flags(&self) -> Overrides {
        let mut overrides = Overrides::default();
        overrides.flag(Setting::Listen, self.listen.iter().cloned());
        overrides.flag(Setting::AdminListen, self.admin_listen.clone());
        overrides.flag(Setting::CacheDir, self.cache_dir.clone());
        overrides.flag(Setting::MaxSize, self.max_size.clone());
        overrides.flag(Setting::Offline, self.offline.clone());
        overrides
    }
}

/// What `config` cannot judge because it stands below those who can.
fn object(config: &Config) -> Objections {
    let level = check_filter(&config.log.level).err();
    level.map(|allowed| ("log.level".to_owned(), format!("must be {allowed}"))).into_iter().collect()
}
