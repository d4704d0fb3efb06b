//! Makes a cluster: both keys, the config to edit, and the first signed snapshot.

use malai_protocol::config::Name;
use malai_protocol::config::edit::{Template, template};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{ClusterInit, ClusterMade};
use malai_protocol::snapshot::next_generation;

use super::{hostname, join_addresses, name};
use crate::store::clusters;
use crate::store::keys::{ClusterKey, MachineKey};
use crate::store::lock::Changes;
use crate::store::{self, snapshot};

/// Makes a cluster, whose first machine and manager this one is.
///
/// # Errors
/// [`Kind::Conflict`] when the alias is taken, [`Kind::Usage`] for a name or user that cannot be, else what the disk says.
pub fn cluster_init(changes: &Changes, ask: &ClusterInit, now_ms: u64) -> Result<ClusterMade, Failure> {
    let alias = &ask.cluster;
    clusters::check_alias(alias)?;
    if clusters::exists(changes.home(), alias) {
        return Err(clusters::taken(alias));
    }
    let cluster_key = ClusterKey::generate()?;
    let machine_key = MachineKey::generate()?;
    let machine = own_name(ask.name.as_deref())?;
    let text = template(&Template {
        cluster: name(alias)?,
        id: cluster_key.id(),
        machine: machine.clone(),
        machine_id: machine_key.id(),
        private: ask.private,
        username: ask.username.clone(),
    })?;
    let first = cluster_key.sign(next_generation(0, now_ms), now_ms, text.clone())?;
    clusters::create(changes, alias, |dir| {
        cluster_key.create(&dir.cluster_key())?;
        machine_key.create(&dir.machine_key())?;
        store::write(&dir.config(), text.as_bytes())?;
        store::write(&dir.base(), text.as_bytes())?;
        snapshot::save(&dir.snapshot(), &first)
    })?;
    Ok(ClusterMade {
        alias: alias.clone(),
        cluster: cluster_key.id(),
        machine: machine.to_string(),
        machine_id: machine_key.id(),
        config: changes.home().cluster(alias).config().display().to_string(),
        join_addresses: join_addresses(changes.home(), alias)?,
    })
}

fn own_name(asked: Option<&str>) -> Result<Name, Failure> {
    match asked {
        Some(asked) => name(asked),
        None => {
            let host = hostname();
            Name::from_hostname(&host).ok_or_else(|| {
                Failure::new(Kind::Usage, format!("cannot make a machine's name from the host name {host:?}"))
                    .hint("name it with --name")
            })
        }
    }
}
