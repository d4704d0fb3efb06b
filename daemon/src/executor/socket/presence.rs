//! Whether a daemon is there: the newest control connection counts.

use tokio::sync::watch;
use tokio::time::Instant;

/// Who holds the control connection, and since when that is so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    /// Counts control connections; the last one that came.
    last: u64,
    /// Whether that one is still there.
    pub(crate) here: bool,
    /// Since when.
    pub(crate) since: Instant,
}

impl State {
    /// Whether a daemon was here, and went.
    pub(crate) fn went(&self) -> bool {
        !self.here && self.last > 0
    }
}

/// The daemon's place.
#[derive(Debug)]
pub(crate) struct Presence(watch::Sender<State>);

/// A control connection's hold on it, given up when dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    presence: &'a Presence,
    number: u64,
}

impl Presence {
    /// Nobody came yet.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State { last: 0, here: false, since: Instant::now() }))
    }

    /// To follow it.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// A control connection came, and takes the place of an older one.
    pub(crate) fn enter(&self) -> Place<'_> {
        let mut number = 0;
        self.0.send_modify(|state| {
            number = state.last + 1;
            *state = State { last: number, here: true, since: Instant::now() };
        });
        Place { presence: self, number }
    }
}

impl Place<'_> {
    /// Waits until a newer connection has it.
    pub(crate) async fn taken(&self) {
        let mut watch = self.presence.watch();
        // The sender lives as long as `self`, so this ends only as it should.
        drop(watch.wait_for(|state| state.last != self.number).await);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.presence.0.send_if_modified(|state| {
            let own = state.last == self.number;
            if own {
                *state = State { here: false, since: Instant::now(), ..*state };
            }
            own
        });
    }
}
