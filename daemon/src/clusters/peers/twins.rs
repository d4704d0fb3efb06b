//! Two machines with one key: a copied image, or a stolen key. What is said of it, to whom, and what is refused.

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Announce, MAX_TWIN_BYTES};

use super::dial::ago;
use crate::clusters::membership::Membership;
use crate::net::pool::{PeerConn, PeerLife};
use crate::runtime::alarms::AlarmCause;

/// Logs that two machines with one key were seen.
pub(crate) fn seen(membership: &Membership, id: MachineId) {
    if let Some(both) = membership.peers.pool.twins(id) {
        tracing::error!(cluster = %membership.alias, "{}", alarm(membership, &id, &both));
    }
}

/// Returns an alarm for every key that two machines hold, with what to do about it. A key that is not in the config any
/// more opens nothing.
pub(crate) fn alarms(membership: &Membership) -> Vec<(String, String)> {
    let all = membership.peers.pool.all_twins().into_iter().filter(|(id, _)| membership.is_member(id));
    all.map(|(id, both)| (alarm(membership, &id, &both), mend(&membership.alias, &name(membership, &id)))).collect()
}

/// Refuses a request for a key that two machines hold, since it cannot be known which of them would act.
pub(crate) fn refusal(membership: &Membership, id: MachineId) -> Option<Failure> {
    let both = membership.peers.pool.ambiguous(id)?;
    let (name, alias) = (name(membership, &id), &membership.alias);
    let message = format!(
        "two machines hold the key of {name}.{alias}, {}: nothing was sent, because malai cannot know which of them would act",
        places(&both)
    );
    Some(Failure::new(Kind::Conflict, message).hint(mend(alias, &name)))
}

/// Returns the announcement that another machine holds the peer's key, or that none does any more; `None` = no change.
pub(crate) fn news(membership: &Membership, conn: &PeerConn, told: &mut Option<String>) -> Option<Announce> {
    if !membership.is_manager || !membership.is_member(&conn.peer) {
        return None;
    }
    let twin = membership.peers.pool.twin_of(conn).map(|path| shortened(&path));
    if twin == *told {
        return None;
    }
    told.clone_from(&twin);
    let header = membership.held().snapshot.signed_header().clone();
    Some(Announce { addresses: membership.hello().addresses, twin, ..Announce::of(header) })
}

/// Raises or clears the alarm about this machine's own key, if the cluster manager says so; ignores all others.
pub(crate) fn told(membership: &Membership, conn: &PeerConn, twin: Option<&str>) {
    if membership.manager_id() != Some(conn.peer) {
        return;
    }
    let Some(twin) = twin else { return membership.clear(AlarmCause::TwoMachines) };
    let (held, twin) = (membership.held(), shortened(twin));
    let name = name(membership, &membership.me);
    let text = format!(
        "another machine holds the key of this machine, {name}: the cluster manager {} met it at {}; {}",
        held.config.cluster.manager,
        twin.escape_debug(),
        advice(&membership.alias, &name)
    );
    membership.raise(AlarmCause::TwoMachines, text);
}

fn alarm(membership: &Membership, id: &MachineId, both: &[PeerLife; 2]) -> String {
    let name = name(membership, id);
    format!(
        "two machines hold the key of {name}, {}: commands to it are refused while both are connected; {}",
        places(both),
        advice(&membership.alias, &name)
    )
}

fn places(both: &[PeerLife; 2]) -> String {
    let [one, other] = both.each_ref().map(|life| {
        let passed = u64::try_from(life.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        format!("{} (greeted {} ago)", life.path, ago(passed))
    });
    format!("one met at {one}, one at {other}")
}

fn advice(alias: &str, name: &str) -> String {
    format!("an image was copied with its key, or the key is stolen: {}", mend(alias, name))
}

fn mend(alias: &str, name: &str) -> String {
    format!(
        "on the copy `malai machine leave {alias}`, then join it by a new invite; if the key is stolen, on the cluster \
         manager `malai cluster remove {alias} {name}`"
    )
}

fn name(membership: &Membership, id: &MachineId) -> String {
    membership.config.name_of(id).unwrap_or_else(|| id.short())
}

fn shortened(path: &str) -> String {
    path.get(..path.floor_char_boundary(MAX_TWIN_BYTES)).unwrap_or_default().to_owned()
}
