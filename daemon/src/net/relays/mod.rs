//! The relays of a cluster at one endpoint: which there are, which of them can be used, and which is left alone for a while.
//!
//! iroh has one *home* relay, the fastest that answers, and keeps a connection to it: there a machine is found. When that
//! connection is lost it waits for the same relay to come back, looking for another only every 20 s or more. So a home
//! relay that fails *rests*: it is taken out of iroh's set, which makes iroh look at once at those that are left, and comes
//! back when it answers again.

mod answer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use futures_util::future::join_all;
use iroh::endpoint::RelayStatus;
use iroh::{Endpoint, RelayConfig, RelayMap, RelayMode, RelayUrl, Watcher};
use malai_protocol::config::{Network, Relay};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{RelayState, RelayStatus as Told};
use malai_protocol::ticket::Ticket;
use tokio::sync::Notify;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::proxy::{self, Proxy};
use super::trust::Trust;
use crate::runtime::backoff::Backoff;
use crate::store::clusters::Joining;

/// Sets how long a relay rests that was in use until it failed. It doubles while the relay does not answer or refuses.
const RELAY_REST_MIN_TIME: Duration = Duration::from_secs(10);
/// Bounds how long a relay rests.
const RELAY_REST_MAX_TIME: Duration = Duration::from_secs(120);
/// Sets how soon the resting relays are asked when the only relay that does not rest fails.
const RESTED_RELAY_ASK_DELAY: Duration = Duration::from_secs(1);
/// Sets the least time between two questions to a relay that is suspected.
const SUSPECT_ASK_INTERVAL: Duration = Duration::from_secs(2);
/// Begins the reason of a relay that does not let this machine in, before its own words.
const RELAY_REFUSES: &str = "the relay refuses this machine";
/// Bounds the reason that is kept of a relay's failure: a relay may say anything.
const MAX_RELAY_REASON_CHARS: usize = 300;

/// Says what lets a newcomer through relays that otherwise admit members only: the ticket of its invite, and the relays
/// that the invite names.
#[derive(Clone)]
pub(crate) struct Pass {
    ticket: Zeroizing<String>,
    relays: Vec<Relay>,
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass(…)")
    }
}

impl Pass {
    /// Makes a pass for those of these relays that take tickets.
    pub(crate) fn new(ticket: &Ticket, relays: &[Relay]) -> Self {
        let relays = relays.iter().filter(|relay| relay.takes_tickets()).cloned().collect();
        Self { ticket: Zeroizing::new(ticket.to_text()), relays }
    }

    /// Returns what is shown to this relay.
    fn shown_to(&self, relay: &Relay) -> Option<String> {
        let named = |one: &Relay| one == relay;
        self.relays.iter().any(named).then(|| self.ticket.to_string())
    }
}

impl Joining {
    /// Returns what is shown to the relays that the invite names; `None` without a ticket.
    pub(crate) fn pass(&self) -> Option<Pass> {
        self.ticket.as_ref().map(|ticket| Pass::new(ticket, &self.pinned))
    }
}

/// Holds the relays of one endpoint.
#[derive(Debug)]
pub(crate) struct Relays {
    trust: Arc<Trust>,
    pass: Option<Pass>,
    /// Is what the endpoint reaches them through.
    proxy: Option<&'static Proxy>,
    /// Holds those of the config; none where iroh's public ones are used.
    set: Mutex<BTreeMap<RelayUrl, Entry>>,
    /// Holds those over which a peer was heard no more.
    suspects: Mutex<BTreeSet<RelayUrl>>,
    changed: Notify,
}

/// Holds what is known of one relay.
#[derive(Clone)]
struct Entry {
    relay: Relay,
    config: Arc<RelayConfig>,
    /// Says why it could not be used the last time.
    failure: Option<String>,
    /// Whether the log has it that it cannot be used.
    is_logged: bool,
    /// Is when it was suspected and asked.
    asked: Option<Instant>,
    /// Is until when it is left alone.
    rests: Option<Instant>,
    /// Says how long it rests the next time.
    rest: Backoff,
}

impl Entry {
    /// Notes why it cannot be used.
    fn fails(&mut self, why: String) {
        // One that is away fails in other words each time.
        if !std::mem::replace(&mut self.is_logged, true) {
            tracing::warn!(relay = self.relay.url, "cannot be used: {}", why.escape_debug());
        } else {
            tracing::debug!(relay = self.relay.url, "still cannot be used: {}", why.escape_debug());
        }
        self.failure = Some(why);
    }

    /// Notes that it is in use.
    fn works(&mut self) {
        self.failure = None;
        if std::mem::replace(&mut self.is_logged, false) {
            tracing::info!(relay = self.relay.url, "can be used again");
        }
        self.rest.reset();
    }

    /// Begins to rest, longer than the last time; `false` when it rests already.
    fn rest_from(&mut self, now: Instant) -> bool {
        if self.rests.is_some() {
            return false;
        }
        self.rests = Some(now + self.rest.pause());
        true
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its `config` may have a ticket in it.
        write!(f, "Entry {{ relay: {:?}, failure: {:?}, rests: {:?} }}", self.relay, self.failure, self.rests)
    }
}

impl Relays {
    /// Takes the relays that a config names, for an endpoint that is bound with [`Relays::mode`] and trusts by `trust`.
    ///
    /// # Errors
    /// [`Failure`] of kind `bad-config` for a URL that cannot be used.
    pub(crate) fn new(network: &Network, trust: Arc<Trust>, pass: Option<Pass>) -> Result<Self, Failure> {
        let set = Mutex::new(entries(network, pass.as_ref())?);
        Ok(Self { trust, pass, proxy: proxy::of(network), set, suspects: Mutex::default(), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelayUrl, Entry>> {
        self.set.lock()
    }

    /// Returns the proxy that an endpoint is bound with.
    pub(crate) fn proxy(&self) -> Option<&'static Proxy> {
        self.proxy
    }

    /// Returns what an endpoint is bound with; `network` is the config that these relays were made of.
    pub(crate) fn mode(&self, network: &Network) -> RelayMode {
        if network.relays.is_none() {
            return RelayMode::Default;
        }
        let map: RelayMap = self.lock().values().map(|entry| Arc::clone(&entry.config)).collect();
        if map.is_empty() { RelayMode::Disabled } else { RelayMode::Custom(map) }
    }

    /// Takes the relays of another config, and its pins, in place of those there are. What is in use goes on: a connection
    /// over a relay that is not named any more lasts as long as the relay serves it.
    ///
    /// # Errors
    /// As [`Relays::new`]; then nothing changed.
    pub(crate) async fn replace(&self, endpoint: &Endpoint, network: &Network) -> Result<(), Failure> {
        let mut wanted = entries(network, self.pass.as_ref())?;
        self.trust.replace(network);
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        {
            let mut set = self.lock();
            for (url, entry) in set.iter() {
                match wanted.get_mut(url) {
                    Some(same) if same.relay == entry.relay => *same = entry.clone(),
                    // With another pin it is tried again.
                    Some(_) => {}
                    None => removed.push(url.clone()),
                }
            }
            for (url, entry) in &wanted {
                if set.get(url).is_none_or(|before| before.relay != entry.relay) {
                    added.push((url.clone(), Arc::clone(&entry.config)));
                }
            }
            // The last ones never rest.
            if wanted.values().all(|entry| entry.rests.is_some()) {
                for (url, entry) in &mut wanted {
                    entry.rests = None;
                    added.push((url.clone(), Arc::clone(&entry.config)));
                }
            }
            *set = wanted;
        }
        // The new ones first: there is no moment without any.
        for (url, config) in added {
            endpoint.insert_relay(url, config).await;
        }
        for url in removed {
            endpoint.remove_relay(&url).await;
        }
        self.changed.notify_one();
        Ok(())
    }

    fn suspects(&self) -> MutexGuard<'_, BTreeSet<RelayUrl>> {
        self.suspects.lock()
    }

    /// Has a relay asked over which nothing comes any more. iroh itself would notice after 20 s.
    pub(crate) fn suspect(&self, url: &RelayUrl) {
        if self.lock().contains_key(url) && self.suspects().insert(url.clone()) {
            self.changed.notify_one();
        }
    }

    /// Lets relays that fail rest, and takes them back, until the endpoint is closed.
    pub(crate) async fn keep(&self, endpoint: &Endpoint) {
        let mut home = endpoint.home_relay_status();
        loop {
            let failed = self.look(&home.get());
            for url in failed {
                self.rest(endpoint, &url).await;
            }
            let wake = self.lock().values().filter_map(|entry| entry.rests).min();
            tokio::select! {
                changed = home.updated() => if changed.is_err() { return },
                () = self.changed.notified() => self.ask_suspects(endpoint).await,
                () = async { tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)).await }, if wake.is_some() => {
                    self.take_back(endpoint).await;
                }
            }
        }
    }

    /// Notes how iroh's home relays do, and says which of them failed.
    fn look(&self, home: &[RelayStatus]) -> Vec<RelayUrl> {
        let mut set = self.lock();
        let mut failed = Vec::new();
        for status in home {
            let Some(entry) = set.get_mut(status.url()) else { continue };
            if status.is_connected() {
                entry.works();
            } else if let Some(why) = why(status) {
                entry.fails(why);
                failed.push(status.url().clone());
            }
        }
        failed
    }

    /// Leaves a relay alone for a while, if there is another. Where it is the last, those that rest are asked soon.
    async fn rest(&self, endpoint: &Endpoint, url: &RelayUrl) {
        let rests = {
            let mut set = self.lock();
            let now = Instant::now();
            let is_last = !set.iter().any(|(other, entry)| other != url && entry.rests.is_none());
            if is_last {
                set.values_mut()
                    .filter_map(|entry| entry.rests.as_mut())
                    .for_each(|until| *until = (*until).min(now + RESTED_RELAY_ASK_DELAY));
            }
            set.get_mut(url).is_some_and(|entry| !is_last && entry.rest_from(now))
        };
        if rests {
            endpoint.remove_relay(url).await;
        }
    }

    /// Asks those that are suspected, unless they rest or were asked a moment ago.
    async fn ask_suspects(&self, endpoint: &Endpoint) {
        let suspects = std::mem::take(&mut *self.suspects());
        let asked: Vec<_> = {
            let (mut set, now) = (self.lock(), Instant::now());
            let wanted = |url: &RelayUrl| {
                let entry = set.get_mut(url).filter(|entry| {
                    entry.rests.is_none() && entry.asked.is_none_or(|at| at + SUSPECT_ASK_INTERVAL < now)
                })?;
                entry.asked = Some(now);
                Some(url.clone())
            };
            suspects.iter().filter_map(wanted).collect()
        };
        for (url, answer) in self.ask_all(endpoint, asked).await {
            if let Err(why) = answer {
                let found = self.lock().get_mut(&url).map(|entry| entry.fails(why)).is_some();
                if found {
                    self.rest(endpoint, &url).await;
                }
            }
        }
    }

    /// Returns whether a home relay that iroh has no link to answers, or any relay where iroh found no home. One that
    /// refuses this machine is not asked. `None` when there was none to ask.
    pub(crate) async fn answers(&self, endpoint: &Endpoint) -> Option<bool> {
        let home = endpoint.home_relay_status().get();
        let away = |status: &&RelayStatus| !status.is_connected() && status.auth_denied_reason().is_none();
        let asked = if home.is_empty() {
            self.urls()
        } else {
            home.iter().filter(away).map(|status| status.url().clone()).collect()
        };
        let answers = self.ask_all(endpoint, asked).await;
        if home.is_empty() {
            // iroh tells nothing of relays of which none could be its home.
            self.note(&answers);
        }
        (!answers.is_empty()).then(|| answers.iter().any(|(_, answer)| answer.is_ok()))
    }

    /// Notes which relays can be used, as they answered themselves.
    fn note(&self, answers: &[(RelayUrl, Result<(), String>)]) {
        let mut set = self.lock();
        for (url, answer) in answers {
            match (set.get_mut(url), answer) {
                (Some(entry), Ok(())) => {
                    entry.failure = entry.failure.take().filter(|why| why.starts_with(RELAY_REFUSES))
                }
                (Some(entry), Err(why)) => entry.fails(why.clone()),
                (None, _) => {}
            }
        }
    }

    /// Asks each of these, and returns what it says.
    async fn ask_all(&self, endpoint: &Endpoint, urls: Vec<RelayUrl>) -> Vec<(RelayUrl, Result<(), String>)> {
        let ask = |url: RelayUrl| async {
            let answer = answer::answers(&url, self.proxy, endpoint.tls_config()).await;
            (url, answer)
        };
        join_all(urls.into_iter().map(ask)).await
    }

    /// Takes those back that have rested and answer; the others rest on.
    async fn take_back(&self, endpoint: &Endpoint) {
        let rested = |entry: &Entry| entry.rests.is_some_and(|until| until <= Instant::now());
        let asked: Vec<_> = self.lock().iter().filter(|(_, e)| rested(e)).map(|(url, _)| url.clone()).collect();
        let mut back = Vec::new();
        for (url, answer) in self.ask_all(endpoint, asked).await {
            // It may have been replaced meanwhile.
            if let Some(entry) = self.lock().get_mut(&url).filter(|entry| rested(entry)) {
                match answer {
                    Ok(()) => {
                        entry.rests = None;
                        // Whether it still refuses shows when it is the home again.
                        entry.failure = entry.failure.take().filter(|why| why.starts_with(RELAY_REFUSES));
                        back.push((url, Arc::clone(&entry.config)));
                    }
                    Err(why) => {
                        (entry.failure, entry.rests) = (Some(why), None);
                        entry.rest_from(Instant::now());
                    }
                }
            }
        }
        for (url, config) in back {
            endpoint.insert_relay(url, config).await;
        }
    }

    /// Returns the state of each relay, in the order of their URLs.
    pub(crate) fn states(&self, endpoint: &Endpoint) -> Vec<Told> {
        let home = endpoint.home_relay_status().get();
        let set = self.lock();
        if set.is_empty() {
            // iroh's public ones: only the one in use is known by name.
            return home.iter().map(|status| told(status.url().to_string(), state(status), why(status))).collect();
        }
        let one = |(url, entry): (&RelayUrl, &Entry)| {
            let name = entry.relay.url.clone();
            let status = home.iter().find(|status| status.url() == url);
            if status.is_some_and(RelayStatus::is_connected) {
                return told(name, RelayState::Connected, None);
            }
            let failure = self.trust.doubt(&entry.relay.url).or_else(|| entry.failure.clone());
            let state = match status {
                _ if failure.is_some() => RelayState::Failed,
                Some(_) => RelayState::Connecting,
                None if home.is_empty() => RelayState::Connecting,
                None => RelayState::Spare,
            };
            told(name, state, failure)
        };
        set.iter().map(one).collect()
    }

    /// Returns which relays cannot be used and why, for people; empty when there are none.
    pub(crate) fn failures(&self, endpoint: &Endpoint) -> String {
        let failed = |told: Told| told.error.map(|why| format!("; relay {} cannot be used: {why}", told.url));
        self.states(endpoint).into_iter().filter_map(failed).collect()
    }

    /// Returns whether there is a relay beside this one that is not known to fail.
    pub(crate) fn has_other_than(&self, url: &RelayUrl) -> bool {
        self.lock().iter().any(|(other, entry)| other != url && entry.failure.is_none())
    }

    /// Returns where any machine of the cluster may be found: a relay that was in use when it was last heard of may not be any more.
    pub(crate) fn urls(&self) -> Vec<RelayUrl> {
        self.lock().keys().cloned().collect()
    }
}

fn told(url: String, state: RelayState, error: Option<String>) -> Told {
    Told { url, state, error }
}

fn state(status: &RelayStatus) -> RelayState {
    match status.last_error() {
        _ if status.is_connected() => RelayState::Connected,
        Some(_) => RelayState::Failed,
        None => RelayState::Connecting,
    }
}

/// Returns why a home relay cannot be used.
fn why(status: &RelayStatus) -> Option<String> {
    let text = match status.auth_denied_reason() {
        Some(reason) => format!("{RELAY_REFUSES}: {reason}"),
        None => format!("{:#}", status.last_error()?),
    };
    Some(text.chars().take(MAX_RELAY_REASON_CHARS).collect())
}

fn entries(network: &Network, pass: Option<&Pass>) -> Result<BTreeMap<RelayUrl, Entry>, Failure> {
    let entry = |relay: &Relay| {
        let url: RelayUrl = relay.url.parse().map_err(|e| {
            Failure::new(Kind::BadConfig, format!("[network] relays: `{}` is not a URL: {e}", relay.url.escape_debug()))
        })?;
        let mut config = RelayConfig::from(url.clone());
        if let Some(ticket) = pass.and_then(|pass| pass.shown_to(relay)) {
            config = config.with_auth_token(ticket);
        }
        let (relay, config) = (relay.clone(), Arc::new(config));
        Ok((
            url,
            Entry {
                relay,
                config,
                failure: None,
                is_logged: false,
                asked: None,
                rests: None,
                rest: Backoff::new(RELAY_REST_MIN_TIME, RELAY_REST_MAX_TIME),
            },
        ))
    };
    network.relays.iter().flatten().map(entry).collect()
}
