//! A cluster that this machine was told to join and that has sent no config yet: the daemon knocks until it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use malai_protocol::config::{Network, Relay};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ask::{Answer, Ask, ask};
use crate::clusters::host::Host;
use crate::net::endpoint::{self, Bound};
use crate::runtime::backoff::Backoff;
use crate::runtime::duty;
use crate::store;

/// Sets the first pause between knocks.
const KNOCK_MIN_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds the pause between knocks that the manager noted: an approval in the pause waits for its end.
const NOTED_KNOCK_MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Bounds the pause between knocks that are refused, or not heard.
const VAIN_KNOCK_MAX_INTERVAL: Duration = Duration::from_secs(240);

/// Is a cluster without config.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Is its name on this machine.
    pub(crate) alias: String,
    /// Is its key.
    pub(crate) cluster: malai_protocol::id::ClusterId,
    /// Is this machine's key in it.
    pub(crate) me: MachineId,
    host: Arc<Host>,
    joining: store::clusters::Joining,
    what: Mutex<String>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// Returns `[network]` as a newcomer knows it before its first snapshot.
pub(crate) fn network(joining: &store::clusters::Joining) -> Network {
    let relays = Relay::unite(joining.relays.as_deref(), &joining.pinned);
    Network { relays, discovery: joining.discovery.clone(), ca: joining.ca.clone(), directory: None }
}

impl Waiting {
    /// Begins to knock. An agent does not: it keeps nothing going.
    pub(crate) async fn begin(host: &Arc<Host>, stored: store::clusters::Cluster) -> Result<Arc<Self>, Failure> {
        let me = stored.machine_key.id();
        let gone = || Failure::new(Kind::BadConfig, format!("{} is gone", stored.dir.snapshot().display()));
        let joining = stored.joining.ok_or_else(|| gone().hint("restore it from a backup"))?;
        let waiting = Arc::new(Self {
            alias: stored.alias,
            cluster: stored.id,
            me,
            host: Arc::clone(host),
            joining,
            what: Mutex::new(format!("this machine, {me}, has to be approved on the cluster manager")),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        if !host.agent {
            let network = network(&waiting.joining);
            let mut options = endpoint::Options::caller(stored.machine_key.secret().clone(), &network);
            options.pass = waiting.joining.pass();
            let bound = endpoint::bind(&options).await?;
            waiting.tasks.spawn(Arc::clone(&waiting).run(bound));
        }
        Ok(waiting)
    }

    /// Returns what the cluster waits for, for people.
    pub(crate) fn what(&self) -> String {
        self.what.lock().clone()
    }

    /// Says what is waited for now, and logs it when it is not what was said before.
    fn say(&self, text: String) {
        let mut what = self.what.lock();
        if *what != text {
            tracing::info!(cluster = %self.alias, "{text}");
        }
        *what = text;
    }

    /// Stops knocking.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn run(self: Arc<Self>, bound: Bound) {
        let enrolled = AtomicBool::new(false);
        let knocking = duty::keep("knock", self.cancel.clone(), || async {
            enrolled.store(self.knock(&bound).await, Ordering::Relaxed);
        });
        self.cancel.run_until_cancelled(knocking).await;
        endpoint::close(&bound.endpoint, Duration::ZERO).await;
        if enrolled.load(Ordering::Relaxed) {
            self.host.reload(&self.alias);
        }
    }

    /// Knocks until the snapshot is stored; `false` when that cannot happen any more.
    async fn knock(&self, bound: &Bound) -> bool {
        let mut noted_backoff = Backoff::new(KNOCK_MIN_INTERVAL, NOTED_KNOCK_MAX_INTERVAL);
        let mut vain_backoff = Backoff::new(KNOCK_MIN_INTERVAL, VAIN_KNOCK_MAX_INTERVAL);
        loop {
            let is_noted = AtomicBool::new(false);
            let noted = |text| {
                is_noted.store(true, Ordering::Relaxed);
                self.say(format!("{text} (this machine is {})", self.me));
            };
            match ask(bound, &self.cluster, &self.joining.addresses, &Ask::Knock, noted).await {
                Answer::Enrolled(enrolled) => match enrolled.store(&self.host.home, &self.alias).await {
                    Ok(()) => return true,
                    Err(failure) => self.say(format!("the config arrived but cannot be stored: {failure}")),
                },
                // It has too much to do now, a fault of its own, or another malai, which may be upgraded.
                Answer::Refused(failure) if matches!(failure.kind, Kind::Busy | Kind::Internal | Kind::Unsupported) => {
                    self.say(format!("knocking again and again: the cluster manager refused: {failure}"));
                }
                Answer::Refused(failure) => {
                    self.say(format!("the cluster manager refused this machine, which knocks no more: {failure}"));
                    return false;
                }
                // What it waits for, an approval, is said already.
                Answer::Again(why) if is_noted.load(Ordering::Relaxed) => {
                    tracing::debug!(cluster = %self.alias, "knocking again: {why}");
                }
                Answer::Again(why) => self.say(format!("knocking again and again: {why}")),
            }
            let pause = if is_noted.into_inner() {
                vain_backoff.reset();
                noted_backoff.pause()
            } else {
                noted_backoff.reset();
                vain_backoff.pause()
            };
            tokio::time::sleep(pause).await;
        }
    }
}
