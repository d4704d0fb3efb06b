//! Fetches, verifies and holds snapshots, and lets running sessions feel them.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::peer::Close;
use malai_protocol::snapshot::{Header, Order, Snapshot, order};
use parking_lot::MutexGuard;

use crate::admin::manager::Manager;
use crate::clusters::membership::Membership;
use crate::net::pool::PeerConn;
use crate::net::pull::pull;
use crate::net::{FrameError, close, is_protocol_error};
use crate::runtime::alarms::AlarmCause;
use crate::runtime::backoff::Backoff;
use crate::runtime::blocking::blocking;
use crate::runtime::duty;
use crate::store::clusters;
use crate::store::held::Held;
use crate::store::keeper::Keeper;
use crate::store::lock::Changes;

/// Bounds how long a fetch waits for an earlier one. A snapshot that several peers announce is fetched from one after the
/// other, and a slow peer does not hold up the next.
const FETCH_TURN_TIMEOUT: Duration = Duration::from_millis(250);
/// Sets the first pause before the manager tries again to store a snapshot that it did not make.
const FOREIGN_SNAPSHOT_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds that pause.
const FOREIGN_SNAPSHOT_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(60);

/// A peer offers a snapshot with this verified header: it is fetched in a task of its own when it is newer.
pub(crate) fn offered(membership: &Arc<Membership>, conn: &Arc<PeerConn>, header: Header) {
    match membership.config.order(&header) {
        Order::Same | Order::Older => {}
        Order::Fork if !membership.is_manager => fork(membership, &header, &conn.peer.short()),
        Order::Newer | Order::Fork if conn.callable() => {
            if conn.offer(header) {
                let (membership, conn) = (Arc::clone(membership), Arc::clone(conn));
                let (tasks, cancel) = (membership.tasks.clone(), membership.cancel.clone());
                let fetching = duty::keep("fetch", cancel.clone(), move || {
                    let (membership, conn) = (Arc::clone(&membership), Arc::clone(&conn));
                    async move { fetch_offered(&membership, &conn).await }
                });
                tasks.spawn(cancel.run_until_cancelled_owned(fetching));
            }
        }
        Order::Newer | Order::Fork => {}
    }
}

/// Fetches what this peer offers until it offers nothing more.
async fn fetch_offered(membership: &Arc<Membership>, conn: &Arc<PeerConn>) {
    while let Some(header) = conn.next_offer() {
        let Err(error) = fetch(membership, conn, &header).await else { continue };
        tracing::warn!(peer = %conn.peer.short(), cluster = %membership.alias, "no snapshot from there: {error:#}");
        // One that is only slow may have sessions on this connection.
        let late = matches!(error.downcast_ref(), Some(FrameError::Late(_)));
        if is_protocol_error(&error) && !late {
            close(&conn.conn, Close::Protocol, &error.to_string());
        }
    }
}

fn fork(membership: &Membership, header: &Header, from: &str) {
    let text = format!(
        "two snapshots have generation {}: {from} holds a different one than this machine, and it was refused. On the \
         cluster manager run `malai rescan`: a new generation replaces both",
        header.generation
    );
    membership.raise(AlarmCause::Fork, text);
}

/// Fetches the snapshot that a peer announced, unless another fetch brought it meanwhile.
///
/// # Errors
/// Whatever the stream, the snapshot or the disk say.
pub(crate) async fn fetch(membership: &Arc<Membership>, conn: &Arc<PeerConn>, header: &Header) -> anyhow::Result<()> {
    let _turn = tokio::time::timeout(FETCH_TURN_TIMEOUT, membership.config.fetching.lock()).await;
    if matches!(membership.config.order(header), Order::Same | Order::Older) {
        return Ok(());
    }
    let snapshot = pull(&conn.conn, &membership.cluster, header).await?;
    let from = conn.peer.short();
    let _one_at_a_time = membership.config.installing.lock().await;
    if membership.is_manager {
        foreign(membership, snapshot).await;
    } else {
        install(membership, snapshot, &from)?;
    }
    Ok(())
}

/// Holds a verified snapshot that came over the network, and so enforces it. Storing it is `keep`'s business, for which
/// nothing waits: what a snapshot takes away is taken away, whether or not the disk has room.
fn install(membership: &Membership, snapshot: Snapshot, from: &str) -> Result<(), Failure> {
    match membership.config.order(snapshot.header()) {
        Order::Newer => {}
        Order::Fork => {
            fork(membership, snapshot.header(), from);
            return Ok(());
        }
        Order::Same | Order::Older => return Ok(()),
    }
    let generation = snapshot.header().generation;
    let held = Held::new(snapshot).inspect_err(|failure| {
        // What it takes away stays granted here: an administrator must see that.
        let text =
            format!("cannot use the config of generation {generation}; an earlier one stays in force: {failure}");
        membership.raise(AlarmCause::Unusable, text);
    })?;
    let ungranted = membership.ungranted();
    if membership.config.hold(held) {
        tracing::info!(cluster = %membership.alias, generation, from, "snapshot accepted");
        replaced(membership);
        if let Some(why) = membership.ungranted().filter(|why| ungranted.as_ref() != Some(why)) {
            tracing::warn!(cluster = %membership.alias, "{why}");
        }
    }
    Ok(())
}

/// Clears what a newer snapshot settles.
fn replaced(membership: &Membership) {
    membership.clear(AlarmCause::Fork);
    membership.clear(AlarmCause::Unusable);
    if membership.is_member(&membership.me) {
        // Whatever the manager said before was about an earlier one.
        membership.clear(AlarmCause::Removed);
    }
}

/// Keeps a snapshot that this cluster manager did not make, but does not accept it: the manager was restored from a backup,
/// or runs twice, or the key is stolen. An administrator has to decide. Where it cannot be stored now, that is tried again,
/// since no machine may ever show it a second time.
async fn foreign(membership: &Arc<Membership>, snapshot: Snapshot) {
    let Err(failure) = note_foreign(membership, snapshot.clone()).await else { return };
    let text = format!(
        "a snapshot of generation {} is signed with this cluster's key but was not made here, and it cannot be kept: {}",
        snapshot.header().generation,
        failure.message
    );
    membership.raise(AlarmCause::Foreign, text);
    {
        let mut unnoted = unnoted(membership);
        let is_tried = unnoted.is_some();
        if order(snapshot.header(), unnoted.as_ref().map(Snapshot::header)) == Order::Newer {
            *unnoted = Some(snapshot);
        }
        if is_tried {
            return;
        }
    }
    let (tasks, cancel) = (membership.tasks.clone(), membership.cancel.clone());
    let membership = Arc::clone(membership);
    let noting = duty::keep("foreign snapshot", cancel.clone(), move || note_unnoted(Arc::clone(&membership)));
    tasks.spawn(cancel.run_until_cancelled_owned(noting));
}

/// Tries to store what [`foreign`] could not, until it is stored.
async fn note_unnoted(membership: Arc<Membership>) {
    let mut backoff = Backoff::new(FOREIGN_SNAPSHOT_RETRY_MIN_INTERVAL, FOREIGN_SNAPSHOT_RETRY_MAX_INTERVAL);
    loop {
        tokio::time::sleep(backoff.pause()).await;
        let Some(snapshot) = unnoted(&membership).clone() else { return };
        let header = *snapshot.header();
        let noted = note_foreign(&membership, snapshot).await.is_ok();
        // A later one may have come meanwhile.
        if noted && unnoted(&membership).take_if(|latest| *latest.header() == header).is_some() {
            return;
        }
    }
}

fn unnoted(membership: &Membership) -> MutexGuard<'_, Option<Snapshot>> {
    membership.config.unnoted.lock()
}

async fn note_foreign(membership: &Membership, snapshot: Snapshot) -> Result<(), Failure> {
    let (home, alias) = (membership.host.home.clone(), membership.alias.clone());
    let alarm = blocking(move || {
        let changes = Changes::begin(&home)?;
        let mut manager = Manager::load(&changes, &alias)?;
        manager.note_foreign(snapshot)?;
        Ok(manager.alarm())
    });
    match alarm.await? {
        Some(text) => membership.raise(AlarmCause::Foreign, text),
        None => membership.clear(AlarmCause::Foreign),
    }
    Ok(())
}

/// Holds a snapshot that this manager signed and stored, unless a newer one is held already.
///
/// # Errors
/// [`Failure`] when its own text cannot be read, which the check before the signature excludes.
pub(crate) fn publish(membership: &Membership, snapshot: Snapshot) -> Result<(), Failure> {
    if membership.config.order(snapshot.header()) != Order::Newer {
        return Ok(());
    }
    // Reading a large config takes a while, in which others publish too.
    let held = Held::new(snapshot)?;
    let generation = held.generation();
    if membership.config.hold(held) {
        tracing::info!(cluster = %membership.alias, generation, "snapshot published");
        replaced(membership);
        // What was shown from elsewhere is decided before anything is signed.
        membership.clear(AlarmCause::Foreign);
    }
    Ok(())
}

/// Stores what is held, for as long as the cluster is served.
pub(crate) async fn store(membership: Arc<Membership>) {
    let (home, config) = (Some(membership.host.home.clone()), &membership.config);
    let keeper = Keeper::new(clusters::place(&membership.dir), home, config.filed);
    keeper.run(config.watch(), || Some(config.held()), &config.alarms, membership.cancel.clone()).await;
}

/// Decides the running sessions again, those from before the cluster was loaded too; and again whenever another snapshot
/// is held or sessions of an earlier daemon come in.
pub(crate) async fn review(membership: Arc<Membership>) {
    let mut snapshots = membership.watch();
    loop {
        let held = Arc::clone(&snapshots.borrow_and_update());
        membership.live.review(&held, &membership.me, &membership.host).await;
        tokio::select! {
            () = membership.cancel.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
            () = membership.live.adopted() => {}
        }
    }
}
