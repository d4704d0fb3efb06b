//! `relay.toml`: where the relay is reached, and whose machines it serves. `malai relay init` writes it.
//!
//! ```toml
//! url    = "https://203.0.113.5:7443"   # as the machines have it in their config
//! listen = "[::]:7443"                  # TCP for the relay, and UDP of the same number for the clusters' snapshots
//! certificate     = "/etc/…/cert.pem"   # where one was given; else the relay's own
//! certificate_key = "/etc/…/key.pem"
//!
//! [[cluster]]
//! name = "company"
//! id52 = "…"
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;

use malai_protocol::config::Name;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::RelayDir;
use malai_protocol::id::ClusterId;
use serde::{Deserialize, Serialize};

use crate::net::place::RelayPlace;
use crate::store;

/// Bounds the clusters of one relay: each greeting is compared with all of them.
pub(crate) const MAX_CLUSTERS: usize = 64;
/// Bounds the file of the settings.
const MAX_SETTINGS_BYTES: usize = 64 * 1024;

/// Holds the settings of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Is where the machines reach it.
    pub(crate) url: String,
    /// Is where it listens.
    pub(crate) listen: SocketAddr,
    /// Is the certificate that was given, PEM; absent = its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    /// That certificate's secret key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_key: Option<PathBuf>,
    /// Says whose machines it serves.
    #[serde(default)]
    pub(crate) cluster: Vec<Entry>,
}

/// Is a cluster whose machines a relay serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Is its name, for people.
    pub(crate) name: String,
    /// Is its key.
    pub(crate) id52: ClusterId,
}

impl Settings {
    /// Reads the settings; `None` when this host has none.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] with the position of what is wrong; else what the disk says.
    pub(crate) fn load(dir: &RelayDir) -> Result<Option<Self>, Failure> {
        let path = dir.settings();
        let Some(text) = store::read_text(&path, MAX_SETTINGS_BYTES)? else { return Ok(None) };
        let settings: Self = store::settings::parse(&path, &text)?;
        let bad = |what: String| Failure::new(Kind::BadConfig, format!("{}: {what}", path.display()));
        RelayPlace::parse(&settings.url).map_err(|failure| bad(failure.message))?;
        if settings.cluster.len() > MAX_CLUSTERS {
            return Err(bad(format!("more than {MAX_CLUSTERS} clusters")));
        }
        for entry in &settings.cluster {
            let named: Result<Name, _> = entry.name.parse();
            named.map_err(|e| bad(format!("the cluster name `{}` is not valid: {e}", entry.name)))?;
        }
        if settings.certificate.is_some() != settings.certificate_key.is_some() {
            return Err(bad("`certificate` and `certificate_key` go together".to_owned()));
        }
        Ok(Some(settings))
    }

    /// Writes the settings.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn save(&self, dir: &RelayDir) -> Result<(), Failure> {
        let text = toml::to_string(self)
            .map_err(|e| Failure::new(Kind::Internal, format!("the relay's settings do not encode: {e}")))?;
        store::write(&dir.settings(), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use malai_protocol::home::Home;

    use super::*;

    #[test]
    fn settings_survive_the_disk_and_an_unknown_key_is_refused_with_its_place() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = Home::new(home.path()).relay();
        assert_eq!(Settings::load(&dir), Ok(None));
        store::make_dir(dir.root()).expect("made");
        let id52 = store::keys::ClusterKey::generate().expect("randomness").id();
        let settings = Settings {
            url: "https://a:7443".into(),
            listen: (Ipv6Addr::UNSPECIFIED, 7443).into(),
            certificate: None,
            certificate_key: None,
            cluster: vec![Entry { name: "company".into(), id52 }],
        };
        settings.save(&dir).expect("written");
        assert_eq!(Settings::load(&dir), Ok(Some(settings)));
        std::fs::write(dir.settings(), "url = \"https://a\"\nlisten = \"[::]:1\"\nlisen = 1\n").expect("written");
        let refused = Settings::load(&dir).expect_err("a typo").message;
        assert!(refused.contains("line 3, column 1: unknown field `lisen`"), "{refused}");
    }
}
