//! The relays of a cluster at one endpoint: which there are, which of them can be used, and which is left alone for a while.
//!
//! iroh has one *home* relay, the fastest that answers, and keeps a connection to it: there a machine is found. When that
//! connection is lost it waits for the same relay to come back, looking for another only every 20 s or more. So a home
//! relay that fails *rests*: it is taken out of iroh's set, which makes iroh look at once at those that are left, and comes
//! back when it answers again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use iroh::endpoint::RelayStatus;
use iroh::{Endpoint, RelayConfig, RelayMap, RelayMode, RelayUrl, Watcher};
use malai_protocol::config::{Network, Relay};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{RelayState, RelayStatus as Told};
use malai_protocol::ticket::Ticket;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::trust::Trust;

/// How long a relay rests that was in use until it failed; it doubles while the relay does not answer or refuses.
const FIRST_REST: Duration = Duration::from_secs(10);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(120);
/// When the only relay that does not rest fails, the others are asked after so long.
const SOON: Duration = Duration::from_secs(1);
/// How long a relay that rests may take to answer when it is asked.
const ANSWER: Duration = Duration::from_secs(3);
/// The longest reason that is kept of a relay's failure, in characters: a relay may say anything.
const MAX_REASON: usize = 300;

/// What lets a newcomer through relays that otherwise admit members only: the ticket of its invite, and the relays that
/// the invite names.
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
    /// A pass for these relays, those of them that have a pin.
    pub(crate) fn new(ticket: &Ticket, relays: &[Relay]) -> Self {
        let relays = relays.iter().filter(|relay| relay.sha256.is_some()).cloned().collect();
        Self { ticket: Zeroizing::new(ticket.to_text()), relays }
    }

    /// What is shown to this relay.
    fn shown_to(&self, relay: &Relay) -> Option<String> {
        let named = |one: &Relay| one.url == relay.url && one.sha256 == relay.sha256;
        self.relays.iter().any(named).then(|| self.ticket.to_string())
    }
}

/// The relays of one endpoint.
#[derive(Debug)]
pub(crate) struct Relays {
    trust: Arc<Trust>,
    pass: Option<Pass>,
    /// Those of the config; none where iroh's public ones are used.
    set: Mutex<BTreeMap<RelayUrl, Entry>>,
    replaced: Notify,
}

/// One relay.
#[derive(Clone)]
struct Entry {
    relay: Relay,
    config: Arc<RelayConfig>,
    /// Why it could not be used the last time.
    failure: Option<String>,
    /// Until when it is left alone.
    rests: Option<Instant>,
    /// How long it rests the next time.
    rest: Duration,
}

impl Entry {
    /// Begins to rest, longer than the last time; `false` when it rests already.
    fn rest_from(&mut self, now: Instant) -> bool {
        if self.rests.is_some() {
            return false;
        }
        self.rests = Some(now + self.rest);
        self.rest = (self.rest * 2).min(LONGEST_REST);
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
    /// The relays that a config names, for an endpoint that is bound with [`Relays::mode`] and trusts by `trust`.
    ///
    /// # Errors
    /// [`Failure`] of kind `bad-config` for a URL that cannot be used.
    pub(crate) fn new(network: &Network, trust: Arc<Trust>, pass: Option<Pass>) -> Result<Self, Failure> {
        let set = Mutex::new(entries(network, pass.as_ref())?);
        Ok(Self { trust, pass, set, replaced: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelayUrl, Entry>> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an endpoint is bound with; `network` is the config that these relays were made of.
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
                    // With another pin it is tried anew.
                    Some(_) => {}
                    None => removed.push(url.clone()),
                }
            }
            for (url, entry) in &wanted {
                if set.get(url).is_none_or(|before| before.relay != entry.relay) {
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
        self.replaced.notify_one();
        Ok(())
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
                () = self.replaced.notified() => {}
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
                (entry.failure, entry.rest) = (None, FIRST_REST);
            } else if let Some(why) = why(status) {
                if entry.failure.as_ref() != Some(&why) {
                    tracing::warn!(relay = entry.relay.url, "cannot be used: {}", why.escape_debug());
                }
                entry.failure = Some(why);
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
                    .for_each(|until| *until = (*until).min(now + SOON));
            }
            set.get_mut(url).is_some_and(|entry| !is_last && entry.rest_from(now))
        };
        if rests {
            endpoint.remove_relay(url).await;
        }
    }

    /// Takes those back that have rested and answer; the others rest on.
    async fn take_back(&self, endpoint: &Endpoint) {
        let rested = |entry: &Entry| entry.rests.is_some_and(|until| until <= Instant::now());
        let asked: Vec<_> = self.lock().iter().filter(|(_, e)| rested(e)).map(|(url, _)| url.clone()).collect();
        let answers = join_all(asked.into_iter().map(|url| async move {
            let answer = answers(&url).await;
            (url, answer)
        }));
        let mut back = Vec::new();
        for (url, answer) in answers.await {
            // It may have been replaced meanwhile.
            if let Some(entry) = self.lock().get_mut(&url).filter(|entry| rested(entry)) {
                match answer {
                    Ok(()) => {
                        entry.rests = None;
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

    /// How each relay does, in the order of their URLs.
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

    /// The relays that cannot be used and why, for people; empty when there are none.
    pub(crate) fn failures(&self, endpoint: &Endpoint) -> String {
        let failed = |told: Told| told.error.map(|why| format!("; relay {} cannot be used: {why}", told.url));
        self.states(endpoint).into_iter().filter_map(failed).collect()
    }

    /// Where any machine of the cluster may be found: a relay that was in use when it was last heard of may not be any more.
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

/// Why a home relay cannot be used.
fn why(status: &RelayStatus) -> Option<String> {
    let text = match status.auth_denied_reason() {
        Some(reason) => format!("it refuses this machine: {reason}"),
        None => format!("{:#}", status.last_error()?),
    };
    Some(text.chars().take(MAX_REASON).collect())
}

/// Whether somebody listens where a relay should be.
async fn answers(url: &RelayUrl) -> Result<(), String> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err("its URL has no host".to_owned());
    };
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    match timeout(ANSWER, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("no answer: {error}")),
        Err(_) => Err("no answer in time".to_owned()),
    }
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
        let entry =
            Entry { relay: relay.clone(), config: Arc::new(config), failure: None, rests: None, rest: FIRST_REST };
        Ok((url, entry))
    };
    network.relays.iter().flatten().map(entry).collect()
}
