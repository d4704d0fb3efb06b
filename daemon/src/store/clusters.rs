//! Keeps a directory for each cluster: lists them, loads what is stored of one, makes one and forgets one.
//!
//! A new directory is filled under a temporary name and renamed, and one that is forgotten is renamed first, so that
//! there is never half of one. If a person makes half of one, it is reported by name, and the others work.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use malai_protocol::config::{Name, Relay};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::{ClusterDir, Home};
use malai_protocol::id::ClusterId;
use malai_protocol::local::Role;
use malai_protocol::snapshot::{Header, Snapshot};
use malai_protocol::ticket::Ticket;
use serde::{Deserialize, Serialize};

use super::disk_failure;
use super::keys::{ClusterKey, MachineKey};
use super::lock::Changes;
use super::owners::Trusted;
use super::snapshot::{Found as Stored, Place};

/// Bounds `joining.toml`, in bytes.
const MAX_JOINING_BYTES: usize = 256 * 1024;

/// Holds `joining.toml`: the cluster that this machine joins. Snapshots must always be signed by its key; the rest serves
/// until the first snapshot is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joining {
    /// Is the cluster's key.
    pub cluster: ClusterId,
    /// Lists addresses of the manager's join endpoint, `IP:PORT`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Lists those of `[network] relays` that have only a URL; absent = iroh's public relays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relays: Option<Vec<String>>,
    /// Is `[network] discovery`; absent = the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Vec<String>>,
    /// Holds roots for the relays and servers above, PEM; absent = the web's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Lists the others of `[network] relays`: with a pinned certificate, or a key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<Relay>,
    /// Lets this machine through relays that take tickets until it is a member there, or the invite expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Ticket>,
}

impl Joining {
    /// Says whether there is a ticket that has not expired.
    pub(crate) fn ticket_is_good(&self, now_ms: u64) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| now_ms < ticket.expires_ms())
    }
}

/// Describes a directory under `clusters/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Is its name, the cluster's alias.
    pub alias: String,
    /// Says what this machine is in it, by the key files that are there; or why it is not a cluster.
    pub role: Result<Role, Failure>,
}

/// Holds what is stored of one cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Is its name on this machine.
    pub alias: String,
    /// Names its files.
    pub dir: ClusterDir,
    /// Is its public key.
    pub id: ClusterId,
    /// Is its secret key, at the cluster manager.
    pub cluster_key: Option<ClusterKey>,
    /// Is this machine's key in it.
    pub machine_key: MachineKey,
    /// Says where to knock, on a machine that joins.
    pub joining: Option<Joining>,
    /// Is the last accepted snapshot, verified; absent until the machine is enrolled.
    pub snapshot: Option<Snapshot>,
    /// Is the header of the snapshot in the cluster's own file; an older one than the last accepted when the disk was full.
    pub filed: Option<Header>,
}

/// Lists the clusters of a home, by alias.
///
/// # Errors
/// What the disk says about `clusters/` itself; what is wrong with one cluster is in its [`Found`].
pub fn list(home: &Home) -> Result<Vec<Found>, Failure> {
    let path = home.clusters();
    let fail = |e: std::io::Error| disk_failure("list", &path, &e);
    let entries = match fs::read_dir(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let alias = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        if !alias.starts_with('.') {
            let role = check_alias(&alias).and_then(|()| role(home, &alias));
            found.push(Found { alias, role });
        }
    }
    found.sort_by(|a, b| a.alias.cmp(&b.alias));
    Ok(found)
}

/// Loads what is stored of the cluster with this alias.
///
/// # Errors
/// [`Kind::NotConfigured`] when there is none, [`Kind::BadConfig`] when a file of it is missing or broken.
pub fn load(home: &Home, alias: &str) -> Result<Cluster, Failure> {
    check_alias(alias)?;
    let dir = home.cluster(alias);
    role(home, alias)?;
    let machine_key = MachineKey::load(&dir.machine_key())?.ok_or_else(|| missing(&dir.machine_key()))?;
    let cluster_key = ClusterKey::load(&dir.cluster_key())?;
    let joining = load_joining(&dir)?;
    let id = match (&cluster_key, &joining) {
        (Some(key), _) => key.id(),
        (None, Some(joining)) => joining.cluster,
        (None, None) => return Err(missing(&dir.joining())),
    };
    let Stored { newest: snapshot, filed } = place(&dir).load(&id)?;
    Ok(Cluster { alias: alias.to_owned(), dir, id, cluster_key, machine_key, joining, snapshot, filed })
}

/// Returns where a cluster's snapshot is stored.
pub fn place(dir: &ClusterDir) -> Place {
    Place { file: dir.snapshot(), reserve: dir.snapshot_reserve() }
}

impl Cluster {
    /// Returns this machine's part in it.
    pub fn role(&self) -> Role {
        if self.cluster_key.is_some() { Role::Manager } else { Role::Machine }
    }
}

/// Says whether a cluster directory of this alias is there, whole or not.
pub fn exists(home: &Home, alias: &str) -> bool {
    home.cluster(alias).root().symlink_metadata().is_ok()
}

/// Says whether there is certainly no cluster directory of this alias.
pub(crate) fn is_gone(home: &Home, alias: &str) -> bool {
    let looked = home.cluster(alias).root().symlink_metadata();
    looked.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Makes the directory of a new cluster: `fill` writes its files, and they appear together.
///
/// # Errors
/// [`Kind::Conflict`] when the alias is taken, else what `fill` or the disk says; nothing is there then.
pub fn create(
    changes: &Changes,
    alias: &str,
    fill: impl FnOnce(&ClusterDir) -> Result<(), Failure>,
) -> Result<(), Failure> {
    check_alias(alias)?;
    let home = changes.home();
    if exists(home, alias) {
        return Err(taken(alias));
    }
    super::make_dir(&home.clusters())?;
    let target = home.cluster(alias);
    let fail = |e: std::io::Error| disk_failure("make the directory", target.root(), &e);
    let temp = super::temp_name(target.root()).map_err(fail)?;
    DirBuilder::new().mode(super::DIR_MODE).create(&temp).map_err(fail)?;
    let temp_dir = home.cluster(&temp.file_name().unwrap_or_default().to_string_lossy());
    let made = fill(&temp_dir).and_then(|()| {
        fs::rename(&temp, target.root()).map_err(fail)?;
        super::sync_parent(target.root()).map_err(fail)
    });
    if made.is_err()
        && let Err(error) = fs::remove_dir_all(&temp)
    {
        tracing::warn!(path = %temp.display(), %error, "cannot remove a temporary directory");
    }
    made
}

/// Forgets a cluster: its directory, keys included.
///
/// # Errors
/// [`Kind::NotConfigured`] when there is none, else what the disk says.
pub fn forget(changes: &Changes, alias: &str) -> Result<(), Failure> {
    check_alias(alias)?;
    let home = changes.home();
    let dir = home.cluster(alias);
    let fail = |e: std::io::Error| disk_failure("remove", dir.root(), &e);
    let meta = match dir.root().symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(unknown(home, alias)),
        other => other.map_err(fail)?,
    };
    if meta.is_symlink() {
        let message =
            format!("{} is a symbolic link, and malai does not remove what it points to", dir.root().display());
        return Err(Failure::new(Kind::Conflict, message).hint("remove it and its keys by hand"));
    }
    let gone = super::temp_name(dir.root()).map_err(fail)?;
    fs::rename(dir.root(), &gone).map_err(fail)?;
    super::sync_parent(dir.root()).map_err(fail)?;
    fs::remove_dir_all(&gone).map_err(|e| disk_failure("remove", &gone, &e))
}

/// Stores where to knock.
///
/// # Errors
/// What the disk says.
pub fn save_joining(dir: &ClusterDir, joining: &Joining) -> Result<(), Failure> {
    let text = toml::to_string(joining)
        .map_err(|e| Failure::new(Kind::Internal, format!("{} does not encode: {e}", dir.joining().display())))?;
    super::write(&dir.joining(), text.as_bytes())
}

/// Refuses an alias that cannot be a name in a target or a directory.
///
/// # Errors
/// [`Kind::Usage`].
pub fn check_alias(alias: &str) -> Result<(), Failure> {
    let refused = |e| Failure::new(Kind::Usage, format!("{alias:?} cannot be a cluster's name: {e}"));
    alias.parse::<Name>().map(drop).map_err(refused)
}

pub(crate) fn taken(alias: &str) -> Failure {
    Failure::new(Kind::Conflict, format!("there is a cluster {alias} here already"))
        .hint(format!("choose another name, or leave that cluster: malai machine leave {alias}"))
}

pub(crate) fn unknown(home: &Home, alias: &str) -> Failure {
    let others: Vec<String> = list(home).unwrap_or_default().into_iter().map(|found| found.alias).collect();
    let known = if others.is_empty() {
        "none was made or joined here".to_owned()
    } else {
        format!("here are: {}", others.join(", "))
    };
    Failure::new(Kind::NotConfigured, format!("no cluster {alias} here; {known}"))
        .hint("malai cluster init makes one, malai machine join joins one")
}

fn role(home: &Home, alias: &str) -> Result<Role, Failure> {
    let dir = home.cluster(alias);
    if !exists(home, alias) {
        return Err(unknown(home, alias));
    }
    Trusted::own().directory(dir.root())?;
    let there = |path: &Path| match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(disk_failure("look at", path, &e)),
    };
    match (there(&dir.cluster_key())?, there(&dir.machine_key())?) {
        (true, true) => Ok(Role::Manager),
        (false, true) => Ok(Role::Machine),
        (true, false) => Err(missing(&dir.machine_key())),
        (false, false) => {
            let shown = dir.root().display();
            let message = format!("{shown} is not a cluster: it holds neither cluster.key nor machine.key");
            Err(Failure::new(Kind::BadConfig, message).hint(format!("restore its files, or move it away: {shown}")))
        }
    }
}

fn load_joining(dir: &ClusterDir) -> Result<Option<Joining>, Failure> {
    let path = dir.joining();
    super::read_text(&path, MAX_JOINING_BYTES)?.map(|text| super::settings::parse(&path, &text)).transpose()
}

fn missing(path: &Path) -> Failure {
    Failure::new(Kind::BadConfig, format!("{} is missing", path.display())).hint("restore it from a backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joining(home: &Home, alias: &str) -> ClusterId {
        let cluster = ClusterKey::generate().expect("randomness").id();
        let changes = Changes::begin(home).expect("free");
        let known = Joining {
            cluster,
            addresses: vec!["192.0.2.1:4002".into()],
            relays: Some(Vec::new()),
            discovery: None,
            ca: None,
            pinned: vec![Relay { url: "https://192.0.2.2:7443".into(), sha256: Some([0xab; 32]), id: None }],
            ticket: None,
        };
        create(&changes, alias, |dir| {
            MachineKey::generate()?.create(&dir.machine_key())?;
            save_joining(dir, &known)
        })
        .expect("made");
        cluster
    }

    #[test]
    fn a_cluster_to_be_joined_survives_the_disk() {
        let temp = tempfile::tempdir().expect("a directory");
        let home = Home::new(temp.path());
        let id = joining(&home, "company");
        let cluster = load(&home, "company").expect("loads");
        assert_eq!((cluster.id, cluster.role(), cluster.snapshot), (id, Role::Machine, None));
        let joining = cluster.joining.expect("is there");
        assert_eq!((joining.relays, joining.pinned[0].sha256), (Some(Vec::new()), Some([0xab; 32])));
    }

    #[test]
    fn half_a_cluster_is_reported_and_the_others_are_there() {
        let temp = tempfile::tempdir().expect("a directory");
        let home = Home::new(temp.path());
        joining(&home, "company");
        for odd in ["half", "Upper Case", ".company.1.tmp"] {
            fs::create_dir(home.clusters().join(odd)).expect("made");
        }
        fs::write(home.clusters().join("file"), "").expect("written");
        let found = list(&home).expect("lists");
        let aliases: Vec<&str> = found.iter().map(|f| f.alias.as_str()).collect();
        assert_eq!(aliases, ["Upper Case", "company", "file", "half"]);
        let roles: Vec<Option<Role>> = found.into_iter().map(|f| f.role.ok()).collect();
        assert_eq!(roles, [None, Some(Role::Machine), None, None]);
    }

    #[test]
    fn a_cluster_that_cannot_be_made_leaves_nothing() {
        let temp = tempfile::tempdir().expect("a directory");
        let home = Home::new(temp.path());
        let changes = Changes::begin(&home).expect("free");
        let refused = create(&changes, "company", |dir| {
            MachineKey::generate()?.create(&dir.machine_key())?;
            Err(Failure::new(Kind::Internal, "the disk is full"))
        });
        assert_eq!(refused.expect_err("fails").message, "the disk is full");
        assert_eq!(fs::read_dir(home.clusters()).expect("lists").count(), 0);
    }

    #[test]
    fn an_alias_is_made_once_and_forgotten_whole() {
        let temp = tempfile::tempdir().expect("a directory");
        let home = Home::new(temp.path());
        joining(&home, "company");
        let changes = Changes::begin(&home).expect("free");
        assert_eq!(create(&changes, "company", |_| Ok(())).expect_err("taken").kind, Kind::Conflict);
        forget(&changes, "company").expect("forgotten");
        assert_eq!(fs::read_dir(home.clusters()).expect("lists").count(), 0);
        assert_eq!(forget(&changes, "company").expect_err("gone").kind, Kind::NotConfigured);
    }

    #[test]
    fn an_alias_is_a_plain_name() {
        for good in ["company", "a", "7-b", &"a".repeat(32)] {
            check_alias(good).expect(good);
        }
        for bad in ["", "-a", "a.b", "../a", "A", "a b", "ä", &"a".repeat(33)] {
            check_alias(bad).expect_err(bad);
        }
    }
}
