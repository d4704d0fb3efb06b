//! `malai relay init`: makes what a relay needs on this host, or adds a cluster to it. Work on the disk only.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use malai_protocol::config::Name;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::{Home, RelayDir};
use malai_protocol::id::MachineId;
use malai_protocol::invite::Invite;
use serde::Serialize;

use super::settings::{Entry, MAX_CLUSTERS, Settings};
use super::tls;
use crate::net::place::RelayPlace;
use crate::store;
use crate::store::keys::RelayKey;
use crate::store::lock::Changes;

/// Says what a relay is made of.
#[derive(Debug)]
pub struct Init {
    /// Names the cluster; nothing else of it is used.
    pub invite: Invite,
    /// Is where the machines reach the relay; may be absent where this host has one.
    pub url: Option<String>,
    /// Is where it listens; absent = every address, at the URL's port.
    pub listen: Option<SocketAddr>,
    /// Is certificate and key, PEM; absent = it makes one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Is a relay as `malai relay init` leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Is where the machines reach it.
    pub url: String,
    /// Is the SHA-256 of its certificate, 64 hexadecimal digits.
    pub sha256: String,
    /// Is its key.
    pub id52: MachineId,
    /// Is where it listens.
    pub listen: SocketAddr,
    /// Whether the certificate was given, and not made by it.
    pub given: bool,
    /// Names of the clusters whose machines it serves.
    pub clusters: Vec<String>,
}

impl Made {
    /// Returns the entry of `[network] relays` that names this relay.
    pub fn entry(&self) -> String {
        format!("{{ url = \"{}\", sha256 = \"{}\", id52 = \"{}\" }}", self.url, self.sha256, self.id52)
    }
}

/// Makes the relay's key, certificate and settings, as far as they are not there, and adds the cluster.
///
/// # Errors
/// [`Kind::Usage`] for what cannot be meant, [`Kind::Conflict`] for what would change a relay that machines know
/// already, [`Kind::BadConfig`] for files that cannot be used, else what the disk says.
pub fn init(home: &Home, ask: &Init) -> Result<Made, Failure> {
    let _changes = Changes::begin(home)?;
    let dir = home.relay();
    store::make_dir(dir.root())?;
    let mut settings = match Settings::load(&dir)? {
        Some(settings) => keep(settings, ask)?,
        None => begin(&dir, ask)?,
    };
    add(&mut settings, &ask.invite)?;
    let key = match RelayKey::load(&dir.key())? {
        Some(key) => key,
        None => {
            let key = RelayKey::generate()?;
            key.create(&dir.key())?;
            key
        }
    };
    let sha256 = tls::load(&dir, &settings)?.sha256;
    settings.save(&dir)?;
    Ok(Made {
        sha256: data_encoding::HEXLOWER.encode(&sha256),
        id52: key.id(),
        listen: settings.listen,
        given: settings.certificate.is_some(),
        clusters: settings.cluster.iter().map(|entry| entry.name.clone()).collect(),
        url: settings.url,
    })
}

/// Returns the settings of a new relay.
fn begin(dir: &RelayDir, ask: &Init) -> Result<Settings, Failure> {
    let Some(url) = &ask.url else {
        return Err(Failure::new(Kind::Usage, "--url is missing: it says where machines reach this relay")
            .hint("malai relay init TOKEN --url https://HOST:7443"));
    };
    let place = RelayPlace::parse(url)?;
    let (certificate, certificate_key) = match &ask.certificate {
        Some((certificate, key)) => (Some(absolute(certificate)?), Some(absolute(key)?)),
        None => {
            tls::make(dir, &place.host)?;
            (None, None)
        }
    };
    let listen = ask.listen.unwrap_or_else(|| place.listen());
    if listen.port() == 0 {
        return Err(Failure::new(Kind::Usage, "--listen needs a port other than 0, because machines must know it"));
    }
    Ok(Settings { url: place.url, listen, certificate, certificate_key, cluster: Vec::new() })
}

/// Returns the settings of a relay that is there already: what machines have of it must not change unnoticed.
fn keep(settings: Settings, ask: &Init) -> Result<Settings, Failure> {
    let url = ask.url.as_deref().map(RelayPlace::parse).transpose()?;
    let certificate = match &ask.certificate {
        Some((certificate, key)) => Some((absolute(certificate)?, absolute(key)?)),
        None => None,
    };
    let differs = if url.is_some_and(|place| place.url != settings.url) {
        format!("URL, which is {}", settings.url)
    } else if ask.listen.is_some_and(|listen| listen != settings.listen) {
        format!("address, which is {}", settings.listen)
    } else if certificate.is_some() && certificate != settings.certificate.clone().zip(settings.certificate_key.clone())
    {
        "certificate".to_owned()
    } else {
        return Ok(settings);
    };
    Err(Failure::new(Kind::Conflict, format!("this host already has a relay with another {differs}"))
        .hint("leave --url, --listen, --cert and --key out to add a cluster; to change the relay, edit relay.toml"))
}

/// Adds the cluster, unless it is there.
fn add(settings: &mut Settings, invite: &Invite) -> Result<(), Failure> {
    if settings.cluster.iter().any(|entry| entry.id52 == invite.cluster) {
        return Ok(());
    }
    if settings.cluster.len() >= MAX_CLUSTERS {
        return Err(Failure::new(Kind::Conflict, format!("a relay serves at most {MAX_CLUSTERS} clusters")));
    }
    let name: Name = invite.name.parse().map_err(|e| {
        Failure::new(Kind::Usage, format!("the cluster name `{}` of the token is not valid: {e}", invite.name))
    })?;
    settings.cluster.push(Entry { name: name.to_string(), id52: invite.cluster });
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|e| Failure::new(Kind::Usage, format!("{} is not a path that can be used: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use malai_protocol::id::ClusterId;

    use super::*;
    use crate::store::keys::ClusterKey;

    fn cluster() -> ClusterId {
        ClusterKey::generate().expect("randomness").id()
    }

    fn ask(cluster: ClusterId, name: &str, url: Option<&str>) -> Init {
        let invite = Invite::for_relay(cluster, name.into());
        Init { invite, url: url.map(str::to_owned), listen: None, certificate: None }
    }

    #[test]
    fn a_second_cluster_leaves_key_and_certificate_as_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let (one, other) = (cluster(), cluster());
        let first = init(&home, &ask(one, "company", Some("https://203.0.113.5:7443/"))).expect("made");
        assert_eq!((first.url.as_str(), first.listen.to_string().as_str()), ("https://203.0.113.5:7443", "[::]:7443"));
        let second = init(&home, &ask(other, "lab", None)).expect("added");
        let again = init(&home, &ask(other, "lab", Some("https://203.0.113.5:7443"))).expect("there already");
        let both = ["company".to_owned(), "lab".to_owned()];
        assert_eq!(second, Made { clusters: both.to_vec(), ..first.clone() });
        assert_eq!(again, second);
        let entry = format!("relays = [{}]", first.entry());
        let read: toml::Table = entry.parse().expect("TOML");
        assert_eq!(read["relays"][0]["id52"].as_str(), Some(first.id52.to_string().as_str()));
    }

    #[test]
    fn what_the_machines_know_of_a_relay_is_not_changed_by_adding_a_cluster() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        init(&home, &ask(cluster(), "company", Some("https://a.example:7443"))).expect("made");
        let refused = |ask: &Init| init(&home, ask).expect_err("another relay").kind;
        assert_eq!(refused(&ask(cluster(), "lab", Some("https://b.example:7443"))), Kind::Conflict);
        let listen = Some(([192, 0, 2, 1], 7443).into());
        assert_eq!(refused(&Init { listen, ..ask(cluster(), "lab", None) }), Kind::Conflict);
        let certificate = Some(("cert.pem".into(), "key.pem".into()));
        assert_eq!(refused(&Init { certificate, ..ask(cluster(), "lab", None) }), Kind::Conflict);
        let settings = Settings::load(&home.relay()).expect("reads").expect("is there");
        assert_eq!(settings.cluster.len(), 1);
    }

    #[test]
    fn a_relay_without_a_url_or_with_files_that_are_not_there_is_not_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        let missing = init(&home, &ask(cluster(), "company", None)).expect_err("no URL");
        assert_eq!((missing.kind, missing.message.contains("--url is missing")), (Kind::Usage, true));
        let certificate = Some(("/nowhere/cert.pem".into(), "/nowhere/key.pem".into()));
        let given = Init { certificate, ..ask(cluster(), "company", Some("https://a.example:7443")) };
        assert_eq!(init(&home, &given).expect_err("no file").kind, Kind::BadConfig);
        assert_eq!(
            init(&home, &ask(cluster(), "Not A Name", Some("https://a"))).expect_err("a name").kind,
            Kind::Usage
        );
        assert_eq!(Settings::load(&home.relay()), Ok(None));
    }
}
