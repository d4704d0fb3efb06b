//! Stores the snapshot that is held in memory. It is in force already, so that storing may take time: it only has to be done
//! before this process ends.
//!
//! A snapshot that does not fit on the disk goes into the reserve at once, with an alarm. It is tried again until it is in
//! its own file; then the reserve is emptied for the next time.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::snapshot::Header;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::runtime::alarms::{AlarmCause, Alarms};
use crate::runtime::backoff::Backoff;
use crate::runtime::blocking::blocking;
use crate::store::held::Held;
use crate::store::lock::Changes;
use crate::store::snapshot::Place;

/// Sets the first pause before a failed store is tried again; it doubles.
const STORE_RETRY_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Bounds that pause.
const STORE_RETRY_MAX_INTERVAL: Duration = Duration::from_secs(10);
/// Bounds the last attempt of a process that is about to end.
const LAST_STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Stores snapshots in one place, and knows what is stored there.
#[derive(Debug)]
pub(crate) struct Keeper {
    place: Place,
    /// The home whose lock other processes take to change its files; absent = no other process changes them.
    home: Option<Home>,
    /// The header of the snapshot in its own file.
    filed: Option<Header>,
    /// Whether the reserve exists and is empty.
    prepared: bool,
}

/// Says how far the held snapshot is stored.
enum Kept {
    /// It is stored, and the reserve is ready.
    Whole,
    /// It is stored, but there is no reserve for the next one.
    Unreserved(String),
    /// It is not in its own file.
    Unstored(String),
}

impl Kept {
    fn tell(self, alarms: &Alarms) {
        let (unstored, unreserved) = match self {
            Self::Whole => (None, None),
            Self::Unreserved(text) => (None, Some(text)),
            Self::Unstored(text) => (Some(text), None),
        };
        alarms.set(AlarmCause::Unstored, unstored);
        alarms.set(AlarmCause::Unreserved, unreserved);
    }
}

impl Keeper {
    /// Stores in this place, which has `filed` already. With `home`, its changes take turns with those of other processes.
    pub(crate) fn new(place: Place, home: Option<Home>, filed: Option<Header>) -> Self {
        Self { place, home, filed, prepared: false }
    }

    /// Stores what `newest` returns whenever `changes` reports another one, until `cancel`. Keeps the alarms
    /// [`AlarmCause::Unstored`] and [`AlarmCause::Unreserved`] as they are true.
    pub(crate) async fn run<T>(
        mut self,
        mut changes: watch::Receiver<T>,
        newest: impl Fn() -> Option<Arc<Held>>,
        alarms: &Alarms,
        cancel: CancellationToken,
    ) {
        let mut backoff = Backoff::new(STORE_RETRY_MIN_INTERVAL, STORE_RETRY_MAX_INTERVAL);
        loop {
            changes.mark_unchanged();
            if let Some(held) = newest() {
                let Some(kept) = self.keep_in_time(held, &cancel).await else { return };
                kept.tell(alarms);
            }
            let settled = newest().is_none_or(|held| self.prepared && self.has(&held));
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = changes.changed() => match changed {
                    Ok(()) => backoff.reset(),
                    Err(_) => break,
                },
                () = async { sleep(backoff.pause()).await }, if !settled => {}
            }
        }
        if let Some(held) = newest().filter(|held| !self.has(held))
            && let Some(kept) = self.keep_in_time(held, &cancel).await
        {
            kept.tell(alarms);
        }
    }

    /// Tries to store once; returns `None` when the disk hangs while this process is about to end.
    async fn keep_in_time(&mut self, held: Arc<Held>, cancel: &CancellationToken) -> Option<Kept> {
        let path = self.place.file.display().to_string();
        let too_late = async {
            cancel.cancelled().await;
            sleep(LAST_STORE_TIMEOUT).await;
        };
        tokio::select! {
            kept = self.keep(held) => Some(kept),
            () = too_late => {
                tracing::error!("{path} was not stored in time");
                None
            }
        }
    }

    fn has(&self, held: &Held) -> bool {
        self.filed.as_ref() == Some(held.snapshot.header())
    }

    /// Tries to store once, and prepares the reserve for the next snapshot.
    async fn keep(&mut self, held: Arc<Held>) -> Kept {
        let generation = held.generation();
        if !self.has(&held) {
            self.prepared = false;
            let (place, home, stored) = (self.place.clone(), self.home.clone(), Arc::clone(&held));
            let saved = blocking(move || {
                // A manager has stored what it signed: for that no lock is waited for, which others may take in turns.
                if place.has(&stored.snapshot) {
                    return Ok(());
                }
                let _changes = home.as_ref().map(Changes::begin).transpose()?;
                place.save(&stored.snapshot)
            });
            if let Err(failure) = saved.await {
                let (place, stored) = (self.place.clone(), Arc::clone(&held));
                let reserved = blocking(move || place.save_in_reserve(&stored.snapshot)).await;
                return Kept::Unstored(self.unstored(generation, &failure, reserved.err().as_ref()));
            }
            self.filed = Some(*held.snapshot.header());
        }
        if !self.prepared {
            let place = self.place.clone();
            if let Err(failure) = blocking(move || place.prepare_reserve(&held.snapshot)).await {
                return Kept::Unreserved(self.unreserved(&failure));
            }
            self.prepared = true;
        }
        Kept::Whole
    }

    fn unstored(&self, generation: u64, failure: &Failure, unreserved: Option<&Failure>) -> String {
        let what =
            format!("the config of generation {generation} is in force but cannot be stored: {}", failure.message);
        let reserve = self.place.reserve.display();
        match unreserved {
            None => {
                format!(
                    "{what}; it is kept in {reserve}, so it stays in force after a restart. Make room: {}",
                    self.look()
                )
            }
            Some(why) => {
                let before = match &self.filed {
                    Some(filed) => format!("generation {} would be in force again", filed.generation),
                    None => "there would be no config".to_owned(),
                };
                let why = &why.message;
                format!(
                    "{what}, and not in the reserve either: {why}. After a restart {before}. Make room first: {}",
                    self.look()
                )
            }
        }
    }

    fn unreserved(&self, failure: &Failure) -> String {
        format!(
            "there is no reserve for the config: {}. Access that is withdrawn while the disk is full would come back after a \
             restart. Make room: {}",
            failure.message,
            self.look()
        )
    }

    /// Returns the command that shows how full the disk is.
    fn look(&self) -> String {
        format!("`df -h {}`", self.place.file.parent().unwrap_or(&self.place.file).display())
    }
}
