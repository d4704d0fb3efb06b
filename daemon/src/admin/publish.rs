//! Signs what the administrator edited, and stops at snapshots that were made elsewhere.

use std::fs;
use std::io;

use malai_protocol::config::edit::enrolled_since;
use malai_protocol::config::{Config, Name, Problem};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{self, RescanOutcome, Rescanned, Response, Role};
use malai_protocol::snapshot::{MAX_TEXT, Order, Snapshot, order};

use super::Done;
use super::manager::{Manager, diff, unpublished};
use crate::store::clusters::{self, Found};
use crate::store::lock::Changes;
use crate::store::{self, disk_failure, snapshot};

/// Checks and signs `cluster.toml` of one cluster, or of all that are managed here, by alias. What fails in one does not
/// stop the others.
///
/// # Errors
/// [`Kind::NotConfigured`] when no cluster is managed here, [`Kind::Usage`] for a generation without its cluster.
pub(super) fn rescan(changes: &Changes, ask: &local::Rescan, now_ms: u64) -> Result<Done, Failure> {
    if ask.over.is_some() && ask.cluster.is_none() {
        return Err(Failure::new(Kind::Usage, "--over needs the name of one cluster")
            .hint("name it: malai rescan CLUSTER --over GENERATION"));
    }
    let aliases: Vec<String> = match &ask.cluster {
        Some(alias) => vec![alias.clone()],
        // One that is broken is the manager's business if it has a cluster key, and is reported as such below.
        None => clusters::list(changes.home())?
            .into_iter()
            .filter(|found| is_managed(changes, found))
            .map(|found| found.alias)
            .collect(),
    };
    if aliases.is_empty() {
        return Err(Failure::new(Kind::NotConfigured, "no cluster is managed on this machine")
            .hint("malai cluster init makes one; else run malai rescan on the cluster manager"));
    }
    let (mut all, mut signed) = (Vec::with_capacity(aliases.len()), Vec::new());
    for alias in aliases {
        let mut warnings = Vec::new();
        let outcome = Manager::load(changes, &alias).and_then(|mut manager| {
            let outcome = manager.rescan(ask, now_ms);
            warnings = manager.warnings().to_vec();
            if let Ok(RescanOutcome::Unchanged(_) | RescanOutcome::Published(_)) = outcome {
                signed.push((alias.clone(), manager.signed()?.clone()));
            }
            outcome
        });
        all.push(Rescanned { alias, outcome: outcome.unwrap_or_else(RescanOutcome::Failed), warnings });
    }
    Ok(Done { answer: Response::Rescanned(all), signed })
}

fn is_managed(changes: &Changes, found: &Found) -> bool {
    match found.role {
        Ok(role) => role == Role::Manager,
        Err(_) => changes.home().cluster(&found.alias).cluster_key().exists(),
    }
}

impl Manager<'_> {
    /// Checks `cluster.toml`, and unless only a check was asked for, signs and stores it.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] with positions when the text is not in order; [`Kind::Conflict`] with the difference when it
    /// would drop machines enrolled meanwhile or publish over a snapshot made elsewhere, and that was not asked for.
    pub fn rescan(&mut self, ask: &local::Rescan, now_ms: u64) -> Result<RescanOutcome, Failure> {
        let text = self.edited()?;
        let config = self.check(&text)?;
        if ask.check {
            return Ok(RescanOutcome::Checked { diff: self.diff_to(&text) });
        }
        self.check_foreign(ask.over, &text)?;
        if let Some(signed) = &self.signed
            && signed.text() == text
            && self.foreign.is_none()
        {
            self.save_base(&text);
            return Ok(RescanOutcome::Unchanged(unpublished(signed, &config)));
        }
        if !ask.yes {
            self.refuse_dropping(&config, &text)?;
        }
        let signed = self.sign(text, now_ms)?;
        self.settle_foreign();
        self.save_base(signed.text());
        Ok(RescanOutcome::Published(unpublished(&signed, &config)))
    }

    /// Returns a unified difference from the signed text to this one.
    fn diff_to(&self, text: &str) -> String {
        let signed = self.signed.as_ref().map_or("", Snapshot::text);
        diff(("signed", signed), ("cluster.toml", text))
    }

    /// Notes a validly signed snapshot that a peer has shown. One that is newer than the last one made here, or another
    /// one of the same generation, was made elsewhere with this cluster's key: it is stored, and until an administrator
    /// decides, nothing is published. Says whether it is such a one.
    ///
    /// # Errors
    /// What the disk says.
    pub fn note_foreign(&mut self, shown: Snapshot) -> Result<bool, Failure> {
        if shown.header().cluster != self.id() {
            return Err(Failure::new(Kind::Internal, "received a snapshot of another cluster"));
        }
        let alarming =
            matches!(order(shown.header(), self.signed.as_ref().map(Snapshot::header)), Order::Newer | Order::Fork);
        if !alarming {
            return Ok(false);
        }
        let known = self.foreign.as_ref().map(Snapshot::header);
        if order(shown.header(), known) == Order::Newer {
            snapshot::save(&self.dir.foreign_snapshot(), &shown)?;
            self.foreign = Some(shown);
        }
        Ok(true)
    }

    /// Returns what an administrator must look at: a snapshot that was made elsewhere.
    pub fn alarm(&self) -> Option<String> {
        let foreign = self.foreign.as_ref()?.header().generation;
        Some(format!(
            "a snapshot of generation {foreign} is signed with this cluster's key, but not by this manager: it was \
             restored from a backup, runs twice, or the key is stolen. Nothing is published until: malai rescan {} \
             --over {foreign}",
            self.alias
        ))
    }

    /// Refuses what would publish while a snapshot made elsewhere is undecided.
    pub(crate) fn refuse_while_alarmed(&self) -> Result<(), Failure> {
        let Some(foreign) = &self.foreign else { return Ok(()) };
        let generation = foreign.header().generation;
        let message =
            format!("a snapshot of generation {generation} was signed elsewhere with the key of {}", self.alias);
        let look = format!("malai rescan {} shows the difference; --over {generation} publishes over it", self.alias);
        Err(Failure::new(Kind::Conflict, message).hint(look))
    }

    fn check(&mut self, text: &str) -> Result<Config, Failure> {
        let shown = self.dir.config().display().to_string();
        let (config, warnings) = Config::review(text).map_err(|problems| Problem::failure(&problems, &shown))?;
        self.warnings = warnings.iter().map(|warning| format!("{shown}: {}", warning.with_hint())).collect();
        if config.cluster.id != self.id() {
            let message =
                format!("{shown}: [cluster] id52 is {}, but the cluster key here is {}", config.cluster.id, self.id());
            return Err(Failure::new(Kind::BadConfig, message).hint("put the id52 back that `cluster init` wrote"));
        }
        let manager = &config.cluster.manager;
        if config.machine(manager.as_str()).map(|machine| machine.id) != Some(self.machine) {
            let message =
                format!("{shown}: [cluster] manager is {manager}, which is not this machine, {}", self.machine);
            let hint = "name the machine that holds the cluster key";
            return Err(Failure::new(Kind::BadConfig, message).hint(hint));
        }
        Ok(config)
    }

    fn check_foreign(&self, over: Option<u64>, text: &str) -> Result<(), Failure> {
        match (&self.foreign, over) {
            (None, None) => Ok(()),
            (Some(foreign), Some(over)) if foreign.header().generation == over => Ok(()),
            (None, Some(over)) => {
                let message = format!("this manager knows no foreign snapshot of generation {over}");
                Err(Failure::new(Kind::Conflict, message).hint(format!("malai rescan {}, without --over", self.alias)))
            }
            (Some(foreign), _) => {
                let generation = foreign.header().generation;
                let difference = diff((&format!("generation {generation}"), foreign.text()), ("cluster.toml", text));
                let mut refused = match self.refuse_while_alarmed() {
                    Err(refused) => refused,
                    Ok(()) => return Ok(()),
                };
                refused.message = format!("{}; replacing it would change:\n{difference}", refused.message);
                refused.hint = Some(format!(
                    "copy what is missing into cluster.toml, then: malai rescan {} --over {generation}",
                    self.alias
                ));
                Err(refused)
            }
        }
    }

    fn refuse_dropping(&self, edited: &Config, text: &str) -> Result<(), Failure> {
        let Some(signed) = &self.signed else { return Ok(()) };
        let read = |text: &str| Config::read(text).ok();
        let base = store::read_text(&self.dir.base(), MAX_TEXT)?.as_deref().and_then(read);
        let dropped = enrolled_since(base.as_ref(), edited, &self.config()?);
        if dropped.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = dropped.iter().take(20).map(Name::as_str).collect();
        let difference = diff(("signed", signed.text()), ("cluster.toml", text));
        let message = format!(
            "this would drop machines that were enrolled after you began to edit cluster.toml: {}\n{difference}",
            names.join(", ")
        );
        Err(Failure::new(Kind::Conflict, message)
            .hint(format!("put them back, or drop them on purpose: malai rescan {} --yes", self.alias)))
    }

    /// Remembers what edits begin from. Without it the next rescan asks more often whether machines may be dropped.
    pub(crate) fn save_base(&self, text: &str) {
        if let Err(error) = store::write(&self.dir.base(), text.as_bytes()) {
            tracing::warn!(%error, "cannot store what the next edit begins from");
        }
    }

    /// Removes the foreign snapshot: the decision is signed. A file that stays has a lower generation, and so counts for
    /// nothing.
    fn settle_foreign(&mut self) {
        if self.foreign.take().is_none() {
            return;
        }
        let path = self.dir.foreign_snapshot();
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(error = %disk_failure("remove", &path, &e), "a settled snapshot stays behind");
            }
            _ => {}
        }
    }
}
