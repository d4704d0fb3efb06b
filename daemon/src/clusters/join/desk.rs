//! The cluster manager's desk for newcomers, at the cluster key: it takes invites and knocks, and answers with the
//! snapshot. Nothing is ever executed here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::Endpoint;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use malai_protocol::codec::{CodecError, Frame, Kind, MAX_HELLO};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Announce, Close, Knock, Redeem, VERSION};
use parking_lot::{Mutex as SyncMutex, MutexGuard};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::manager::Manager;
use crate::admin::pending::Pending;
use crate::admin::shown::{Look, Shown};
use crate::clusters::config::network;
use crate::clusters::config::sync;
use crate::clusters::membership::Membership;
use crate::net::endpoint::{self, Bound, address_text};
use crate::net::limits::handshakes::{Handshake, Handshakes};
use crate::net::limits::pace::RateLimit;
use crate::net::limits::places::{Place, Places};
use crate::net::limits::tally::Tally;
use crate::net::relays::Relays;
use crate::net::{
    FIRST_FRAME_TIMEOUT, FrameError, Frames, Unsupported, close, is_protocol_error, machine_id, send, spoken,
};
use crate::runtime::alarms::AlarmCause;
use crate::runtime::clock::now_ms;
use crate::runtime::duty;
use crate::store::lock::Changes;

/// Bounds the newcomers that are served at once, those that wait for an approval included. They have said what they want.
const MAX_NEWCOMERS: usize = 128;
/// Bounds those that have not, and those that were refused. The next one takes the place of the oldest.
const MAX_SILENT_NEWCOMERS: usize = 128;
/// Bound how many invites one key shows at once, and how long it then waits for the next: wrong ones above all.
const MAX_INVITE_BURST: u32 = 4;
const INVITE_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds how long a newcomer may take to fetch its answer.
const ANSWER_FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the newcomers of one cluster.
#[derive(Debug)]
pub(crate) struct Desk {
    membership: Arc<Membership>,
    /// Is the endpoint of the cluster key.
    pub(crate) endpoint: Endpoint,
    relays: Relays,
    pending: SyncMutex<Pending>,
    silent: Arc<Places>,
    served: Semaphore,
    invites: RateLimit<MachineId>,
    /// Compares what is shown first: only a newcomer that may redeem an invite gets to the lock.
    shown: Arc<Shown>,
    /// Is held while an invite is redeemed: the next one waits here for as long as it takes. For the lock of the home it
    /// could not wait long.
    turn: Arc<Mutex<()>>,
    refused: Tally<MachineId>,
    knocks: Tally<MachineId>,
    /// Counts the connections that ended before anything was answered.
    ended: Tally<()>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Desk {
    /// Makes a desk that is not open yet.
    pub(crate) fn new(membership: Arc<Membership>, bound: Bound) -> Arc<Self> {
        let shown = Arc::new(Shown::new(membership.host.home.cluster(&membership.alias).invites()));
        Arc::new(Self {
            pending: SyncMutex::new(Pending::new(&membership.alias)),
            membership,
            endpoint: bound.endpoint,
            relays: bound.relays,
            silent: Places::new(MAX_SILENT_NEWCOMERS),
            served: Semaphore::new(MAX_NEWCOMERS),
            invites: RateLimit::new(INVITE_INTERVAL, MAX_INVITE_BURST),
            shown,
            turn: Arc::default(),
            refused: Tally::default(),
            knocks: Tally::default(),
            ended: Tally::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        })
    }

    /// Opens the desk.
    pub(crate) fn start(self: &Arc<Self>) {
        let desk = Arc::clone(self);
        self.tasks.spawn(duty::keep("join desk", self.cancel.clone(), move || Arc::clone(&desk).run()));
        let desk = Arc::clone(self);
        self.tasks.spawn(async move {
            let followed = network::follow(&desk.membership, &desk.endpoint, &desk.relays, &desk.cancel);
            // Where the config needs another endpoint, the membership sees to it.
            if duty::caught(followed).await.is_none() {
                network::rebind_after_fault(&desk.membership).await;
            }
        });
    }

    /// Returns the newcomers that knock.
    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    /// Closes the desk.
    pub(crate) async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        endpoint::close(&self.endpoint, Duration::ZERO).await;
    }

    async fn run(self: Arc<Self>) {
        let serve = |handshake| {
            let desk = Arc::clone(&self);
            async move {
                let Err(error) = desk.newcomer(handshake).await else { return };
                let cluster = &desk.membership.alias;
                match desk.ended.refused(()) {
                    Some(left_out) => tracing::info!(%cluster, left_out, "a newcomer's connection ended: {error:#}"),
                    None => tracing::debug!(%cluster, "a newcomer's connection ended: {error:#}"),
                }
            }
        };
        Handshakes::of_members().accept(&self.endpoint, &self.tasks, &self.cancel, serve).await;
    }

    async fn newcomer(self: &Arc<Self>, handshake: Handshake) -> anyhow::Result<()> {
        let conn = handshake.finish().await?;
        let place = self.silent.enter();
        let Some(key) = machine_id(&conn.remote_id()) else { return Ok(()) };
        let result = self.hear(&conn, key, place).await;
        if let Err(error) = &result {
            let why = match error {
                error if error.is::<Crowded>() => Close::Busy,
                error if is_protocol_error(error) => Close::Protocol,
                _ => Close::Done,
            };
            close(&conn, why, &error.to_string());
        }
        result
    }

    async fn hear(self: &Arc<Self>, conn: &Connection, key: MachineId, place: Place) -> anyhow::Result<()> {
        let (mut send_half, mut frames, first) = tokio::select! {
            biased;
            spoken = first_frame(conn) => spoken?,
            () = place.lost() => return Err(Crowded.into()),
        };
        let served = self.served.try_acquire().map_err(|_| Crowded)?;
        drop(place);
        let answer = match first.kind {
            Kind::Redeem => match understood(&first)? {
                Ok(redeem) => self.redeem(conn, key, redeem).await,
                Err(failure) => Err(failure),
            },
            Kind::Knock => match understood(&first)? {
                Ok(knock) => self.knock(conn, key, &knock, &mut send_half, &mut frames).await,
                Err(failure) => Err(failure),
            },
            got => return Err(CodecError::OutOfOrder { got, wanted: "an invite or a knock" }.into()),
        };
        let frame = match answer {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(failure) => {
                drop(served);
                return self.refuse(conn, key, &failure, &mut send_half).await;
            }
        };
        // Where the manager's machine key is reached: without it a newcomer would need discovery for its link.
        let header = self.membership.held().snapshot.signed_header().clone();
        let announce = Announce { addresses: self.membership.peers.addresses(), ..Announce::of(header) };
        send(&mut send_half, Frame::control(Kind::Announce, &announce)?).await?;
        send(&mut send_half, frame).await?;
        send_half.finish()?;
        // The newcomer closes when it has the answer.
        let _closed = tokio::time::timeout(ANSWER_FETCH_TIMEOUT, conn.closed()).await;
        Ok(())
    }

    async fn refuse(
        &self,
        conn: &Connection,
        key: MachineId,
        failure: &Failure,
        send_half: &mut SendStream,
    ) -> anyhow::Result<()> {
        if let Some(left_out) = self.refused.refused(key) {
            tracing::info!(peer = %key.short(), cluster = %self.membership.alias, left_out, "newcomer refused: {failure}");
        }
        let place = self.silent.enter();
        let told = async {
            send(send_half, Frame::control(Kind::Refused, failure)?).await?;
            send_half.finish()?;
            conn.closed().await;
            Ok(())
        };
        tokio::select! {
            biased;
            told = tokio::time::timeout(ANSWER_FETCH_TIMEOUT, told) => told.unwrap_or(Ok(())),
            () = place.lost() => Err(Crowded.into()),
        }
    }

    fn snapshot(&self) -> Result<Option<Frame>, Failure> {
        let signed = self.membership.held().snapshot.to_signed();
        let frame = Frame::control(Kind::Snapshot, &signed);
        frame.map(Some).map_err(|e| Failure::new(FailureKind::Internal, format!("the snapshot cannot be sent: {e}")))
    }

    async fn redeem(
        self: &Arc<Self>,
        conn: &Connection,
        key: MachineId,
        redeem: Redeem,
    ) -> Result<Option<Frame>, Failure> {
        if !self.invites.allows(key) {
            return Err(Failure::new(FailureKind::Busy, "this machine shows invites too often")
                .hint("wait a few seconds, then the same command again"));
        }
        let (shown, secret, is_member) = (Arc::clone(&self.shown), *redeem.secret, self.membership.is_member(&key));
        match crate::runtime::blocking::blocking(move || shown.look(&secret, &key, is_member, now_ms())).await? {
            Look::IsMember => return self.snapshot(),
            Look::May => {}
        }
        let turn = tokio::select! {
            turn = Arc::clone(&self.turn).lock_owned() => turn,
            _ = conn.closed() => return Ok(None),
        };
        let desk = Arc::clone(self);
        // Once it was begun it is done to its end, whether or not the newcomer waits and the desk stays open: what was
        // stored is held.
        let enrolling = self.tasks.spawn(async move {
            let _turn = turn;
            desk.enrol(key, &redeem).await
        });
        enrolling.await.map_err(|e| Failure::new(FailureKind::Internal, format!("the work was cut short: {e}")))??;
        if !self.membership.is_member(&key) {
            let message = "this machine was removed from the cluster while it joined";
            return Err(Failure::new(FailureKind::Denied, message).hint("ask for a new invite"));
        }
        self.snapshot()
    }

    /// Redeems an invite, and holds the config that has the newcomer.
    async fn enrol(&self, key: MachineId, redeem: &Redeem) -> Result<(), Failure> {
        let home = self.membership.host.home.clone();
        let (alias, secret, hostname) = (self.membership.alias.clone(), *redeem.secret, redeem.hostname.clone());
        let work = move || {
            let changes = Changes::begin(&home)?;
            let mut manager = Manager::load(&changes, &alias)?;
            let enrolled = manager.redeem(&secret, key, &hostname, now_ms())?;
            Ok((manager.signed()?.clone(), enrolled))
        };
        let (snapshot, enrolled) = crate::runtime::blocking::blocking(work).await?;
        sync::publish(&self.membership, snapshot)?;
        if let Some(warning) = enrolled.warning {
            // No administrator waits for this answer: `status` shows it.
            self.membership.raise(AlarmCause::Joined, format!("{} joined by invite: {warning}", enrolled.machine));
        }
        tracing::info!(peer = %key.short(), cluster = %self.membership.alias, "joined by invite");
        Ok(())
    }

    async fn knock(
        &self,
        conn: &Connection,
        key: MachineId,
        knock: &Knock,
        send_half: &mut SendStream,
        frames: &mut Frames<RecvStream>,
    ) -> Result<Option<Frame>, Failure> {
        let mut snapshots = self.membership.watch();
        if !self.membership.is_member(&key) {
            let from = path(conn);
            self.pending().knock(key, &knock.hostname, &from, Instant::now(), now_ms())?;
            if let Some(left_out) = self.knocks.refused(key) {
                let hostname = knock.hostname.escape_debug();
                tracing::info!(peer = %key.short(), cluster = %self.membership.alias, %hostname, left_out, "knocks");
            }
            if send(send_half, Frame::empty(Kind::Waiting)).await.is_err() {
                return Ok(None);
            }
        }
        while !self.membership.is_member(&key) {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return Ok(None) },
                _ = conn.closed() => return Ok(None),
                more = frames.next_unbounded() => {
                    if more.is_some() {
                        close(conn, Close::Protocol, "a newcomer that waits has nothing more to say");
                    }
                    return Ok(None);
                }
            }
        }
        self.pending().settle(&key);
        self.snapshot()
    }
}

/// Says that more newcomers came than there are places.
#[derive(Debug, thiserror::Error)]
#[error("too many newcomers at once")]
struct Crowded;

/// Reads what the newcomer wants, on its one stream.
async fn first_frame(conn: &Connection) -> anyhow::Result<(SendStream, Frames<RecvStream>, Frame)> {
    let opened = tokio::time::timeout(FIRST_FRAME_TIMEOUT, conn.accept_bi()).await;
    let (send_half, recv) = opened.map_err(|_| FrameError::Late(FIRST_FRAME_TIMEOUT))??;
    let mut frames = Frames::new(recv, MAX_HELLO);
    let first = frames.next(FIRST_FRAME_TIMEOUT).await?;
    Ok((send_half, frames, first))
}

/// Reads what the newcomer said; one of another version is refused with that reason.
fn understood<T: DeserializeOwned>(first: &Frame) -> anyhow::Result<Result<T, Failure>> {
    match spoken(first, first.kind, "an invite or a knock") {
        Ok(said) => Ok(Ok(said)),
        Err(error) => match error.downcast_ref::<Unsupported>() {
            Some(Unsupported::Version(theirs)) => {
                let ours = format!("malai {} on the cluster manager", crate::VERSION);
                let message = format!(
                    "this machine speaks version {theirs} of malai's protocol, and {ours} speaks version {VERSION}"
                );
                Ok(Err(Failure::new(FailureKind::Unsupported, message)
                    .hint("compare `malai --version` on both, and install the same malai")))
            }
            _ => Err(error),
        },
    }
}

/// Returns where a newcomer comes from.
fn path(conn: &Connection) -> String {
    let paths = conn.paths();
    let found = paths.iter().find(|path| path.is_selected());
    found.and_then(|path| address_text(path.remote_addr())).unwrap_or_else(|| "unknown".to_owned())
}
