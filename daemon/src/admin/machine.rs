//! `malai machine …`: makes this machine one of a cluster's, and ends that.

use malai_protocol::config::Name;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::id::ClusterId;
use malai_protocol::invite::Invite;
use malai_protocol::local::{MachineInit, MachineMade, Role};
use malai_protocol::snapshot::{Order, Snapshot};
use malai_protocol::ticket::Ticket;

use super::hostname;
use super::manager::NAMELESS;
use crate::store::clusters::{self, Cluster, Joining};
use crate::store::keys::MachineKey;
use crate::store::lock::Changes;
use crate::store::snapshot;

/// Makes a machine key for a cluster, and the lines that its config needs. Repeated, it returns the same key again.
///
/// # Errors
/// [`Kind::Conflict`] when the alias is taken by another cluster, [`Kind::Usage`] for an alias or address that cannot be,
/// else what the disk says.
pub(super) fn machine_init(changes: &Changes, ask: &MachineInit) -> Result<MachineMade, Failure> {
    for address in &ask.at {
        if address.parse::<std::net::SocketAddr>().is_err() {
            return Err(Failure::new(Kind::Usage, format!("{address:?} is not an address"))
                .hint("write it as IP:PORT, as `malai status` on the cluster manager prints it"));
        }
    }
    let relays = if ask.private || !ask.relays.is_empty() { Some(ask.relays.clone()) } else { None };
    let discovery = ask.private.then(|| vec!["mdns".to_owned()]);
    let joining = Joining {
        cluster: ask.cluster,
        addresses: ask.at.clone(),
        relays,
        discovery,
        ca: None,
        pinned: Vec::new(),
        ticket: None,
    };
    let elsewhere = format!("choose another name: malai machine init {} NAME …", ask.cluster);
    let key = prepare(changes, &ask.alias, &joining, &elsewhere)?;
    let name = Name::from_hostname(&hostname()).map_or_else(|| NAMELESS.to_owned(), |name| name.to_string());
    let toml = format!("[machine.{name}]\nid52 = \"{}\"\n", key.id());
    Ok(MachineMade { alias: ask.alias.clone(), machine_id: key.id(), name, toml })
}

/// Prepares to redeem an invite: the alias, and the key that redeems it. A repeated attempt has the same key, to which
/// the invite may be bound already.
///
/// # Errors
/// When a machine cannot be added here, or its key cannot be kept.
pub fn join_begin(changes: &Changes, invite: &Invite, alias: Option<&str>) -> Result<Cluster, Failure> {
    let alias = alias.unwrap_or(&invite.name);
    let joining = Joining {
        cluster: invite.cluster,
        addresses: invite.addresses.clone(),
        relays: invite.relays.clone(),
        discovery: invite.discovery.clone(),
        ca: invite.ca.clone(),
        pinned: invite.pinned.clone(),
        // One that this version cannot read is none that its relays would know.
        ticket: invite.ticket.as_deref().and_then(|text| Ticket::from_text(text).ok()),
    };
    prepare(changes, alias, &joining, "join under another name: malai machine join --alias NAME TOKEN")?;
    clusters::load(changes.home(), alias)
}

/// Stores the first snapshot of a cluster, whose signature was verified against the cluster that was joined.
///
/// # Errors
/// [`Kind::Conflict`] when another one is there already, else what the disk says.
pub fn join_finish(changes: &Changes, alias: &str, first: &Snapshot) -> Result<(), Failure> {
    let cluster = clusters::load(changes.home(), alias)?;
    if first.header().cluster != cluster.id {
        return Err(Failure::new(
            Kind::Conflict,
            format!("the received snapshot belongs to another cluster than {alias}"),
        ));
    }
    match snapshot::save_newer(&cluster.dir.snapshot(), first)? {
        Order::Newer | Order::Same | Order::Older => Ok(()),
        Order::Fork => Err(Failure::new(Kind::Conflict, format!("two snapshots of {alias} have the same generation"))
            .hint("another program signs with this cluster's key: see `malai status` on the cluster manager")),
    }
}

/// Checks whether a cluster may be left.
///
/// # Errors
/// [`Kind::Conflict`] when this machine is its manager and `force` was not given, [`Kind::NotConfigured`] when there is
/// none.
pub(crate) fn check_leave(home: &Home, alias: &str, force: bool) -> Result<(), Failure> {
    clusters::check_alias(alias)?;
    let dir = home.cluster(alias);
    if dir.root().symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Err(clusters::unknown(home, alias));
    }
    // By the file alone: a key that cannot be read is still the only one.
    if dir.cluster_key().symlink_metadata().is_ok() && !force {
        let message = format!(
            "this machine is the cluster manager of {alias}: without its cluster key the config of {alias} can never be changed again"
        );
        return Err(Failure::new(Kind::Conflict, message).hint(format!(
            "keep a copy of {}, then: malai machine leave {alias} --force",
            dir.cluster_key().display()
        )));
    }
    Ok(())
}

/// Forgets a cluster: its keys and its config on this machine.
///
/// # Errors
/// [`Kind::Conflict`] when this machine is its manager and `force` was not given, [`Kind::NotConfigured`] when there is
/// none, else what the disk says.
pub fn machine_leave(changes: &Changes, alias: &str, force: bool) -> Result<(), Failure> {
    check_leave(changes.home(), alias, force)?;
    clusters::forget(changes, alias)
}

/// Returns the machine key for a cluster that is to be joined: made once, and kept until the cluster is left.
///
/// `elsewhere` says how to join under another alias.
fn prepare(changes: &Changes, alias: &str, joining: &Joining, elsewhere: &str) -> Result<MachineKey, Failure> {
    clusters::check_alias(alias)?;
    if clusters::exists(changes.home(), alias) {
        let there = clusters::load(changes.home(), alias)?;
        refuse_other(&there, &joining.cluster, elsewhere)?;
        clusters::save_joining(&there.dir, joining)?;
        return Ok(there.machine_key);
    }
    let key = MachineKey::generate()?;
    clusters::create(changes, alias, |dir| {
        key.create(&dir.machine_key())?;
        clusters::save_joining(dir, joining)
    })?;
    Ok(key)
}

fn refuse_other(there: &Cluster, wanted: &ClusterId, elsewhere: &str) -> Result<(), Failure> {
    let alias = &there.alias;
    if there.id != *wanted {
        let hint = format!("{elsewhere}; or leave the existing one: malai machine leave {alias}");
        return Err(clusters::taken(alias).hint(hint));
    }
    if there.role() == Role::Manager {
        return Err(Failure::new(
            Kind::Conflict,
            format!("this machine manages {alias}, so it already is one of its machines"),
        ));
    }
    if there.snapshot.is_some() {
        return Err(Failure::new(Kind::Conflict, format!("this machine has joined {alias} already"))
            .hint(format!("to join again with another key, first: malai machine leave {alias}")));
    }
    Ok(())
}
