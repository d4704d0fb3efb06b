//! The cluster's own directory: every member tells every other where machines are that it has, or had, a connection to.
//!
//! An answer is a hint and no more: the machine that dials learns by the key which machine is there, so that a lie costs
//! one failed attempt.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use iroh::TransportAddr;
use malai_protocol::codec::{CodecError, Frame, Kind, MAX_HELLO};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{MAX_ADDRESSES, MAX_HOPS, Resolve, Resolved};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::clusters::membership::Membership;
use crate::net::endpoint::{address_text, parse_address};
use crate::net::finding::ways::Way;
use crate::net::limits::pace::RateLimit;
use crate::net::pool::PeerConn;
use crate::net::{Frames, endpoint_id, send};
use crate::runtime::clock::now_ms;

/// Bounds the members that are asked at once, besides the cluster manager.
const MAX_ASKED_AT_ONCE: usize = 3;
/// Bounds how long an answer may take. The member that is asked may have to ask others.
const DIRECTORY_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds how long the answer to a question may take that is passed on.
const DIRECTORY_HOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds a search. Who still dials then begins another.
const DIRECTORY_SEARCH_TIME: Duration = Duration::from_secs(5);
/// Sets the least time before a member that did not know is asked again.
const DIRECTORY_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Sets how long a search waits before it asks further members.
const DIRECTORY_STEP_INTERVAL: Duration = Duration::from_millis(500);
/// Bounds how old an address may be that is told.
const MAX_TOLD_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Set how many questions one asker may ask at once, and the pace after that.
const MAX_QUESTION_BURST: u32 = 32;
const QUESTION_INTERVAL: Duration = Duration::from_millis(125);
/// Sets how many questions one counts as that is passed on: others answer it, and charge this machine for it.
const HOP_PRICE_QUESTIONS: u32 = 3;
/// Bounds the questions that are passed on at once.
const MAX_HOPS_AT_ONCE: usize = 32;
/// Bounds what members may ask of this machine.
#[derive(Debug)]
pub(crate) struct DirectoryLimits {
    questions: RateLimit<MachineId>,
    hops: Semaphore,
    /// Counts how often members to ask were chosen.
    turn: AtomicUsize,
}

impl Default for DirectoryLimits {
    fn default() -> Self {
        let questions = RateLimit::members(QUESTION_INTERVAL, MAX_QUESTION_BURST);
        Self { questions, hops: Semaphore::new(MAX_HOPS_AT_ONCE), turn: AtomicUsize::new(0) }
    }
}

/// Opens the directory to the endpoint of this membership.
pub(crate) fn open(membership: &Arc<Membership>) {
    let weak = Arc::downgrade(membership);
    membership.peers.finding.directory.open(Box::new(move |key| {
        MachineId::from_bytes(*key.as_bytes()).map_or_else(|_| stream::empty().boxed(), |id| search(&weak, id))
    }));
}

/// Answers a question of this peer.
///
/// # Errors
/// When it is against the protocol.
pub(crate) async fn answer(membership: &Arc<Membership>, conn: &PeerConn, first: &Frame) -> anyhow::Result<Frame> {
    let asked: Resolve = first.decode()?;
    if asked.hops > MAX_HOPS {
        let why = format!("a question is passed on at most {MAX_HOPS} time");
        return Err(CodecError::Payload { kind: Kind::Resolve, why }.into());
    }
    let answered = resolve(membership, conn, &asked).await;
    Ok(match answered {
        Ok(resolved) => Frame::control(Kind::Resolved, &resolved)?,
        Err(failure) => Frame::control(Kind::Refused, &failure)?,
    })
}

async fn resolve(membership: &Arc<Membership>, conn: &PeerConn, asked: &Resolve) -> Result<Resolved, Failure> {
    if !membership.is_member(&conn.peer) {
        return Err(Failure::new(FailureKind::NotAMember, "not a member of the cluster"));
    }
    if !membership.held().config.network.has_directory() {
        return Err(Failure::new(FailureKind::Denied, "the cluster's config says `directory = false`"));
    }
    let busy = || Failure::new(FailureKind::Busy, "this machine asks for too many machines at once");
    if !membership.peers.directory.questions.allows(conn.peer) {
        return Err(busy());
    }
    if !membership.is_member(&asked.machine) {
        return Ok(Resolved::default());
    }
    let known = known(membership, asked.machine);
    let is_live = known.as_ref().is_some_and(|known| known.heard_ms_ago == 0);
    if is_live || asked.hops == 0 {
        return Ok(known.unwrap_or_default());
    }
    let others = others(membership, &[conn.peer, asked.machine], MAX_ASKED_AT_ONCE);
    if others.is_empty() {
        return Ok(known.unwrap_or_default());
    }
    if !membership.peers.directory.questions.allows_units(conn.peer, HOP_PRICE_QUESTIONS) {
        return known.ok_or_else(busy);
    }
    let Ok(_place) = membership.peers.directory.hops.try_acquire() else { return known.ok_or_else(busy) };
    let mut answers: FuturesUnordered<_> = others.iter().map(|other| passed_on(other, asked.machine)).collect();
    let mut told: Vec<Resolved> = known.into_iter().collect();
    // All are waited for: the first to say that it has a connection may lie.
    while let Some(answer) = answers.next().await {
        told.extend(answer);
    }
    Ok(united(&told))
}

/// Unites several answers: addresses of each in turn, in this order, so that none can keep another from being told.
fn united(told: &[Resolved]) -> Resolved {
    let mut addresses: Vec<String> = Vec::new();
    for turn in 0..MAX_ADDRESSES {
        for address in told.iter().filter_map(|one| one.addresses.get(turn)) {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
    }
    let newest = told.iter().min_by_key(|one| one.heard_ms_ago);
    let others_word = || told.iter().find_map(|one| one.said_by);
    Resolved {
        addresses,
        said_by: newest.and_then(|one| one.said_by).or_else(others_word),
        heard_ms_ago: newest.map_or(0, |one| one.heard_ms_ago),
    }
}

/// Returns what this machine knows of another by itself. Nothing of an agent, which no machine may dial.
fn known(membership: &Membership, id: MachineId) -> Option<Resolved> {
    if id == membership.me {
        let addresses = membership.hello().addresses;
        return (!addresses.is_empty()).then_some(Resolved { addresses, ..Resolved::default() });
    }
    let is_live = membership.peers.pool.live(id).is_some();
    if !is_live && membership.peers.pool.all().iter().any(|conn| conn.peer == id && conn.is_caller_only()) {
        return None;
    }
    let heard = membership.peers.pool.seen(id).last_seen_ms?;
    let heard_ms_ago = if is_live { 0 } else { now_ms().saturating_sub(heard).max(1) };
    let addresses: Vec<String> = membership
        .peers
        .last_known(&membership.held().config.network, id)
        .iter()
        .filter_map(address_text)
        .take(MAX_ADDRESSES)
        .collect();
    let is_told = !addresses.is_empty() && u128::from(heard_ms_ago) <= MAX_TOLD_AGE.as_millis();
    is_told.then_some(Resolved { addresses, said_by: None, heard_ms_ago })
}

async fn passed_on(other: &PeerConn, machine: MachineId) -> Option<Resolved> {
    let told = timeout(DIRECTORY_HOP_TIMEOUT, ask(other, Resolve { machine, hops: 0 })).await.ok()?;
    let mut resolved = told.inspect_err(|error| quiet(other, error)).ok()?;
    resolved.addresses.truncate(MAX_ADDRESSES);
    // The peer that answered is known to have said so, wherever it had that from.
    resolved.said_by = Some(other.peer);
    (!resolved.addresses.is_empty()).then_some(resolved)
}

fn quiet(conn: &PeerConn, error: &anyhow::Error) {
    tracing::debug!(peer = %conn.peer.short(), "the directory has no answer from there: {error:#}");
}

/// Asks one question; the caller bounds the wait.
async fn ask(conn: &PeerConn, question: Resolve) -> anyhow::Result<Resolved> {
    let (mut send_half, recv) = conn.conn.open_bi().await?;
    send(&mut send_half, Frame::control(Kind::Resolve, &question)?).await?;
    send_half.finish()?;
    let answer = Frames::new(recv, MAX_HELLO).next(DIRECTORY_ANSWER_TIMEOUT).await?;
    if answer.kind == Kind::Refused {
        anyhow::bail!(answer.decode::<Failure>()?);
    }
    Ok(answer.expect(Kind::Resolved, "Resolved")?)
}

/// Returns a connection to each of some other members that may be asked: the cluster manager first, the rest in turn, so
/// that no key puts its machine before the others for ever.
fn others(membership: &Membership, but: &[MachineId], most: usize) -> Vec<Arc<PeerConn>> {
    let manager = membership.manager_id();
    let mut ids: Vec<MachineId> = membership.peers.pool.all().iter().map(|conn| conn.peer).collect();
    ids.sort_unstable_by_key(|id| (Some(*id) != manager, *id));
    ids.dedup();
    let fixed = usize::from(ids.first().copied() == manager);
    if let Some(rest @ [_, ..]) = ids.get_mut(fixed..) {
        rest.rotate_left(membership.peers.directory.turn.fetch_add(1, Ordering::Relaxed) % rest.len());
    }
    let asked = ids.into_iter().filter(|id| !but.contains(id) && membership.is_member(id));
    // One that has not greeted yet may be an agent, which is asked nothing.
    asked.filter_map(|id| membership.peers.pool.live(id)).filter(|conn| conn.is_met()).take(most).collect()
}

/// Looks for a machine by asking those that are connected, and those that get connected meanwhile.
fn search(membership: &Weak<Membership>, id: MachineId) -> BoxStream<'static, Vec<TransportAddr>> {
    let Some(strong) = membership.upgrade() else { return stream::empty().boxed() };
    let search = Search {
        membership: Weak::clone(membership),
        id,
        until: Instant::now() + DIRECTORY_SEARCH_TIME,
        asked: HashMap::new(),
        asking: FuturesUnordered::new(),
        changes: strong.peers.pool.watch(),
    };
    stream::unfold(search, Search::next).boxed()
}

/// Says which member answered, and what.
type Told = (MachineId, Option<Resolved>);

struct Search {
    membership: Weak<Membership>,
    id: MachineId,
    until: Instant,
    asked: HashMap<MachineId, Instant>,
    asking: FuturesUnordered<BoxFuture<'static, Told>>,
    changes: watch::Receiver<u64>,
}

impl Search {
    /// Returns the next addresses; `None` when the machine is connected, or it has been looked for long enough.
    async fn next(mut self) -> Option<(Vec<TransportAddr>, Self)> {
        loop {
            let (cancel, again) = {
                let membership = self.membership.upgrade()?;
                if membership.peers.pool.live(self.id).is_some() {
                    return None;
                }
                (membership.cancel.clone(), self.ask_all(&membership))
            };
            let (by, told) = tokio::select! {
                () = cancel.cancelled() => return None,
                () = tokio::time::sleep_until(self.until) => return None,
                () = tokio::time::sleep_until(again) => continue,
                changed = self.changes.changed() => {
                    changed.ok()?;
                    continue;
                }
                Some(told) = self.asking.next(), if !self.asking.is_empty() => told,
            };
            let membership = self.membership.upgrade()?;
            let found = told.map(|told| note(&membership, self.id, by, &told)).unwrap_or_default();
            drop(membership);
            if !found.is_empty() {
                return Some((found, self));
            }
        }
    }

    /// Asks a few of those that are there: who was not asked yet in this search, or not for longest, and not a moment ago.
    /// Returns when to look again.
    fn ask_all(&mut self, membership: &Arc<Membership>) -> Instant {
        let now = Instant::now();
        let within = |at: &Instant, time: Duration| now.duration_since(*at) < time;
        let room = (MAX_ASKED_AT_ONCE + 1)
            .saturating_sub(self.asked.values().filter(|at| within(at, DIRECTORY_STEP_INTERVAL)).count());
        let mut conns = others(membership, &[self.id], usize::MAX);
        conns.retain(|conn| self.asked.get(&conn.peer).is_none_or(|at| !within(at, DIRECTORY_RETRY_INTERVAL)));
        conns.sort_by_key(|conn| self.asked.get(&conn.peer).copied());
        for conn in conns.into_iter().take(room) {
            self.asked.insert(conn.peer, now);
            let question = Resolve { machine: self.id, hops: MAX_HOPS };
            let one = async move {
                let told = timeout(DIRECTORY_ANSWER_TIMEOUT, ask(&conn, question)).await.ok();
                let told = told.and_then(|told| told.inspect_err(|error| quiet(&conn, error)).ok());
                (conn.peer, told)
            };
            self.asking.push(one.boxed());
        }
        now + DIRECTORY_STEP_INTERVAL
    }
}

/// Notes which member said what, and returns the addresses that may be dialled on its word.
fn note(membership: &Membership, id: MachineId, by: MachineId, told: &Resolved) -> Vec<TransportAddr> {
    // Only a machine on this very host knows others there.
    let is_here = membership.peers.pool.remote_sockets(by).iter().any(|socket| socket.ip().is_loopback());
    let (hearsay, texts) =
        (membership.peers.hearsay(&membership.held().config.network), told.addresses.iter().take(MAX_ADDRESSES));
    let addrs: Vec<_> = (texts.filter_map(|text| parse_address(text)))
        .filter(|addr| hearsay.admits(addr, |ip| is_here && ip.ip().is_loopback()))
        .collect();
    if let Some(key) = endpoint_id(id.as_bytes()) {
        membership.peers.finding.ways.told(key, &addrs, &words(membership, by, told.said_by));
    }
    addrs
}

/// Returns who said it, for people. From where the asked member has it is only that member's word.
fn words(membership: &Membership, by: MachineId, said_by: Option<MachineId>) -> Way {
    let held = membership.held();
    let name = |id: &MachineId| held.config.machine_by_id(id).map(|(name, _)| name.to_string());
    let asked = name(&by).unwrap_or_else(|| by.short());
    match said_by.as_ref().and_then(name) {
        Some(from) => format!("directory (by {asked}, from {from})").into(),
        None => format!("directory (by {asked})").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> MachineId {
        MachineId::from_bytes(*iroh::SecretKey::from_bytes(&[number; 32]).public().as_bytes()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_asker_has_32_questions_at_once_and_8_a_second_and_others_have_their_own() {
        let limits = DirectoryLimits::default();
        let taken = |id| (0..1000).take_while(|_| limits.questions.allows(id)).count();
        assert_eq!(taken(id(1)), 32);
        assert_eq!(taken(id(2)), 32);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(taken(id(1)), 8);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(taken(id(1)), 32);
    }
}
