//! What is asked of a home by its administrator, as far as it needs only the disk: one plain function for each request.
//!
//! A running daemon calls them and then publishes; without a daemon [`mod@crate::requests::offline`] calls them, and nothing is
//! published. They block on the disk, for milliseconds. Whoever changes something holds [`Changes`].
//!
//! [`Changes`]: crate::store::lock::Changes

use malai_protocol::config::{Config, Problem};
use malai_protocol::failure::Failure;
use malai_protocol::local::Publication;
use malai_protocol::snapshot::Snapshot;

mod addresses;
mod cluster;
mod config;
mod list;
mod machine;

pub use addresses::join_addresses;
pub use cluster::{Change, Scanned, approve, cluster_init, invite, invites, remove, rescan, revoke};
pub use config::{can, config_show};
pub use list::cluster_list;
pub(crate) use machine::check_leave;
pub use machine::{join_begin, join_finish, machine_init, machine_leave};

/// What is said of a snapshot that is signed and stored, and that no daemon publishes: this machine has it, and nobody
/// else is known to.
///
/// # Errors
/// [`malai_protocol::failure::Kind::BadConfig`] when this version cannot read it.
pub fn unpublished(snapshot: &Snapshot) -> Result<Publication, Failure> {
    let config = Config::read(snapshot.text()).map_err(|problems| Problem::failure(&problems, "the signed config"))?;
    let manager = config.cluster.manager;
    let missing = config.machines.into_keys().filter(|name| *name != manager).map(|name| name.to_string()).collect();
    let generation = snapshot.header().generation;
    Ok(Publication { generation, published: false, holding: vec![manager.to_string()], missing })
}

/// This host's name, as the system has it.
pub(crate) fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(crate) mod enrol;
pub mod invites;
pub mod manager;
pub mod pending;
pub(crate) mod publish;
pub(crate) mod shown;
#[cfg(test)]
mod tests;
