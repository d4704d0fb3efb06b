//! `malai.toml`: what this machine's administrator sets for this machine alone; never distributed.
//!
//! ```toml
//! listen      = "0.0.0.0:4001"   # where this machine's endpoint binds, in every cluster without its own line
//! join_listen = "0.0.0.0:4002"   # where a cluster manager's join endpoint binds
//! agent_idle  = 600              # seconds without a request after which an agent ends
//!
//! [cluster.company]              # by alias
//! listen      = "192.0.2.7:4001"
//! join_listen = "192.0.2.7:4002"
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use malai_protocol::config::Problem;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use serde::Deserialize;

/// Bounds `malai.toml`, in bytes.
const MAX_SETTINGS_BYTES: usize = 64 * 1024;
/// Sets how long an agent stays without work where the settings do not say.
const AGENT_IDLE_DEFAULT: Duration = Duration::from_secs(600);

/// Holds the local settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    listen: Option<SocketAddr>,
    join_listen: Option<SocketAddr>,
    agent_idle: Option<u64>,
    #[serde(default)]
    cluster: BTreeMap<String, Listen>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    listen: Option<SocketAddr>,
    join_listen: Option<SocketAddr>,
}

impl Settings {
    /// Reads the settings; a missing file means the defaults.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] with the position of what is wrong, an unknown key too; else what the disk says.
    pub fn load(home: &Home) -> Result<Self, Failure> {
        let path = home.settings();
        super::read_text(&path, MAX_SETTINGS_BYTES)?.map_or_else(|| Ok(Self::default()), |text| parse(&path, &text))
    }

    /// Returns where the machine key's endpoint binds in this cluster; `None` = at the kept port.
    pub fn listen(&self, alias: &str) -> Option<SocketAddr> {
        self.cluster.get(alias).and_then(|own| own.listen).or(self.listen)
    }

    /// Returns where the cluster key's endpoint binds; `None` = at the kept port.
    pub fn join_listen(&self, alias: &str) -> Option<SocketAddr> {
        self.cluster.get(alias).and_then(|own| own.join_listen).or(self.join_listen)
    }

    /// Returns how long an agent stays without a request or a live session.
    pub fn agent_idle(&self) -> Duration {
        self.agent_idle.map_or(AGENT_IDLE_DEFAULT, Duration::from_secs)
    }
}

/// Reads TOML into a value, with the position of what is wrong.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, Failure> {
    toml::from_str(text).map_err(|e| {
        let what = e.message().trim_end().replace('\n', "; ");
        let what = match e.span() {
            Some(span) => Problem::at(text, span.start, what, None).to_string(),
            None => what,
        };
        Failure::new(Kind::BadConfig, format!("{}: {what}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, Failure> {
        parse(Path::new("/home/malai.toml"), text)
    }

    #[test]
    fn a_cluster_without_its_own_line_has_the_general_one() {
        let settings =
            settings("listen = \"0.0.0.0:1\"\n[cluster.a]\nlisten = \"0.0.0.0:2\"\njoin_listen = \"0.0.0.0:3\"\n");
        let settings = settings.expect("parses");
        assert_eq!(settings.listen("a").map(|a| a.port()), Some(2));
        assert_eq!(settings.listen("b").map(|a| a.port()), Some(1));
        assert_eq!(settings.join_listen("a").map(|a| a.port()), Some(3));
        assert_eq!(settings.join_listen("b"), None);
        assert_eq!(settings.agent_idle(), Duration::from_secs(600));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let refused = settings("agent_idle = 5\n  lisen = 1\n").expect_err("a typo");
        let wanted = "/home/malai.toml: line 2, column 3: unknown field `lisen`, \
                      expected one of `listen`, `join_listen`, `agent_idle`, `cluster`";
        assert_eq!(refused.message, wanted);
    }

    #[test]
    fn a_missing_file_means_the_defaults() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(Settings::load(&Home::new(dir.path())), Ok(Settings::default()));
    }
}
