//! Puts machines into the config and takes them out: edits the last signed text, and `cluster.toml` in the same way.

use malai_protocol::config::edit::{NewMachine, add_machine, remove_machine};
use malai_protocol::config::{Config, MAX_NAME_CHARS, Name, Relay};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::invite::{Invite, MAX_TOKEN};
use malai_protocol::local::{self, Changed, InviteEntry, Invited};
use malai_protocol::snapshot::MAX_TEXT;
use zeroize::Zeroizing;

use super::invites::{Binding, Invites, MAX_OPEN_S, MAX_USES, Promise};
use super::manager::{Manager, NAMELESS};
use super::name;
use crate::runtime::random::fill_randomly;
use crate::store;
use crate::store::keys::MachineKey;

impl Manager<'_> {
    /// Makes an invite, and notes what it promises. `addresses` are those of the join endpoint, for the token.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a name, group, user or number that cannot be, [`Kind::Conflict`] for a name that is taken,
    /// [`Kind::Busy`] when too many are open, [`Kind::BadConfig`] when the token would be too long, else what the disk says.
    pub fn invite(&self, ask: &local::ClusterInvite, addresses: Vec<String>, now_ms: u64) -> Result<Invited, Failure> {
        self.refuse_while_alarmed()?;
        let config = self.config()?;
        let mut invites = self.books(now_ms)?;
        check_numbers(ask)?;
        let name = ask.name.as_deref().map(name).transpose()?;
        if let Some(name) = &name
            && (config.machines.contains_key(name)
                || config.groups.contains_key(name)
                || invites.promises(name, now_ms))
        {
            return Err(Failure::new(
                Kind::Conflict,
                format!("the name {name} is taken, or reserved by an open invite"),
            )
            .hint("choose another name with --name"));
        }
        // A trial: what cannot be enrolled now must not be promised.
        let trial = NewMachine {
            name: name.clone().map_or_else(|| free_name("", |n| in_use(&config, n)), Ok)?,
            // A key that no machine has.
            id: MachineKey::generate()?.id(),
            groups: names(&ask.groups)?,
            username: ask.username.clone(),
        };
        add_machine(self.signed()?.text(), &trial)?;
        let expires_ms = now_ms.saturating_add(ask.expires_s.saturating_mul(1000));
        let promise = Promise {
            name: name.map(|name| name.to_string()),
            groups: ask.groups.clone(),
            username: ask.username.clone(),
            ..Promise::new(ask.uses, expires_ms)
        };
        let (id, secret) = loop {
            let mut secret = Zeroizing::new([0; 32]);
            fill_randomly(secret.as_mut_slice())?;
            if let Some(id) = invites.free_id(&secret) {
                break (id, secret);
            }
        };
        invites.add(&secret, promise)?;
        let (relays, pinned) = Relay::split(config.network.relays.as_deref());
        // Other relays ask for none, and are shown none.
        let is_asked_for = pinned.iter().any(Relay::takes_tickets);
        let ticket = if is_asked_for { Some(self.key.ticket(expires_ms)?.to_text()) } else { None };
        let invite = Invite {
            cluster: self.id(),
            name: config.cluster.name.to_string(),
            secret: serde_bytes::ByteArray::new(*secret),
            expires_ms,
            addresses,
            relays,
            pinned,
            discovery: config.network.discovery,
            ca: config.network.ca,
            ticket,
        };
        let invited = invited(id, invite)?;
        invites.save(&self.dir.invites())?;
        Ok(invited)
    }

    /// Redeems an invite for the key whose connection showed its secret. A key that repeats gets the same answer.
    ///
    /// # Errors
    /// [`Kind::Denied`] when the invite is unknown, used up or expired, or the machine was removed since; else as
    /// [`Manager::enrol`]. After an error that is not a denial the same key may try again.
    pub fn redeem(
        &mut self,
        secret: &[u8; 32],
        key: MachineId,
        hostname: &str,
        now_ms: u64,
    ) -> Result<Changed, Failure> {
        self.try_redeem(secret, key, hostname, now_ms).map_err(for_newcomer)
    }

    fn try_redeem(
        &mut self,
        secret: &[u8; 32],
        key: MachineId,
        hostname: &str,
        now_ms: u64,
    ) -> Result<Changed, Failure> {
        self.refuse_while_alarmed()?;
        let config = self.config()?;
        let path = self.dir.invites();
        let mut invites = self.books(now_ms)?;
        let promise = invites.get(secret).ok_or_else(unknown_invite)?;
        if let Some((known, _)) = config.machine_by_id(&key) {
            return self.changed((known, key), None, Vec::new());
        }
        let name = match (promise.redeemed.get(&key), &promise.name) {
            (Some(bound), _) if bound.enrolled => return Err(removed_since(&bound.name)),
            (Some(bound), _) => name(&bound.name)?,
            (None, fixed) => {
                promise.refuse_newcomer(now_ms)?;
                match fixed {
                    Some(fixed) => name(fixed)?,
                    None => free_name(hostname, |n| in_use(&config, n) || invites.promises(n, now_ms))?,
                }
            }
        };
        let machine = NewMachine { name, id: key, groups: names(&promise.groups)?, username: promise.username.clone() };
        // A trial: what cannot be enrolled must not use the invite up.
        add_machine(self.signed()?.text(), &machine)?;
        let binding = |enrolled| Binding { name: machine.name.to_string(), enrolled, at_ms: Some(now_ms) };
        invites.bind(secret, key, binding(false));
        invites.save(&path)?;
        let enrolled = self.enrol(&machine, now_ms)?;
        invites.bind(secret, key, binding(true));
        if let Err(error) = invites.save(&path) {
            // The machine is in the config all the same, and a repeated attempt finds it there. It is noted before that can
            // change.
            tracing::warn!(%error, "cannot note now that an invite was redeemed");
        }
        Ok(enrolled)
    }

    /// Notes of every machine in the signed config that its invite is redeemed, where the disk had no room for that: else
    /// a machine that the next config drops could come back by it.
    pub(crate) fn note_redeemed(&self, now_ms: u64) -> Result<(), Failure> {
        let path = self.dir.invites();
        // By a file that cannot be read, no machine comes back.
        let Ok(mut invites) = Invites::load(&path, now_ms) else { return Ok(()) };
        if !invites.is_any_open() {
            return Ok(());
        }
        let config = self.config()?;
        match invites.note_redeemed(|key| config.machine_by_id(key).is_some()) {
            true => invites.save(&path),
            false => Ok(()),
        }
    }

    /// Enrols a machine that an administrator approved; without a name it gets that of its host.
    ///
    /// # Errors
    /// As [`Manager::enrol`]; [`Kind::Conflict`] when the key is enrolled under another name.
    pub fn approve(
        &mut self,
        id: MachineId,
        hostname: Option<&str>,
        ask: &local::ClusterApprove,
        now_ms: u64,
    ) -> Result<Changed, Failure> {
        let config = self.config()?;
        let asked = ask.name.as_deref().map(name).transpose()?;
        if let Some((known, _)) = config.machine_by_id(&id) {
            if asked.as_ref().is_some_and(|asked| asked != known) {
                let message = format!("the config already has this machine, as {known}");
                return Err(Failure::new(Kind::Conflict, message).hint("rename it in cluster.toml, then: malai rescan"));
            }
            return self.changed((known, id), None, Vec::new());
        }
        let name = match (asked, hostname) {
            (Some(name), _) => name,
            (None, Some(hostname)) => free_name(hostname, |n| in_use(&config, n))?,
            (None, None) => {
                return Err(Failure::new(
                    Kind::Usage,
                    "cannot name this machine: it does not knock, so its host name is unknown",
                )
                .hint("name it with --name"));
            }
        };
        let machine = NewMachine { name, id, groups: names(&ask.groups)?, username: ask.username.clone() };
        self.enrol(&machine, now_ms)
    }

    /// Puts a machine into the last signed text and signs it, and into `cluster.toml`.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when its name or key is taken or a snapshot made elsewhere is undecided, [`Kind::Usage`] when a
    /// name, user or group cannot be, else what the disk says.
    pub fn enrol(&mut self, machine: &NewMachine, now_ms: u64) -> Result<Changed, Failure> {
        let there = |config: &Config| config.machine_by_id(&machine.id).is_some();
        let warning = self.edit(|text| add_machine(text, machine), there, now_ms)?;
        self.changed((&machine.name, machine.id), warning, Vec::new())
    }

    /// Takes a machine out of the last signed text and signs it, and out of `cluster.toml`. Where `revoke` says so, the
    /// open invites by which it came end with it: both, or neither.
    ///
    /// # Errors
    /// [`Kind::UnknownTarget`] when there is none of this name, [`Kind::Conflict`] when it is the manager or a snapshot
    /// made elsewhere is undecided, else what the disk says.
    pub fn remove(&mut self, machine: &str, revoke: bool, now_ms: u64) -> Result<Changed, Failure> {
        let config = self.config()?;
        let unknown = || {
            Failure::new(Kind::UnknownTarget, format!("the cluster {} has no machine {machine:?}", self.alias))
                .hint("`malai status` lists the machines")
        };
        let name: Name = machine.parse().map_err(|_| unknown())?;
        let id = config.machines.get(&name).ok_or_else(unknown)?.id;
        let gone = |config: &Config| !config.machines.contains_key(&name);
        let books = self.books(now_ms);
        let (mut invites, unread) = match books {
            Ok(books) => (books.came_by(&id, now_ms), None),
            Err(failure) if revoke => return Err(failure),
            // Books that cannot be read keep no machine in the cluster.
            Err(failure) => (Vec::new(), Some(format!("cannot tell by which invite it joined: {}", failure.message))),
        };
        let ends = revoke && !invites.is_empty();
        if ends {
            // On the disk before it is signed. From here on the signature decides, whatever happens in between.
            let mut books = self.books(now_ms)?;
            books.end_with(&id, now_ms);
            books.save(&self.dir.invites())?;
        }
        let warning = self.edit(|text| remove_machine(text, &name), gone, now_ms)?;
        if ends {
            invites.iter_mut().for_each(|invite| invite.revoked = true);
            if let Err(error) = self.books(now_ms) {
                tracing::warn!(%error, "the books do not say yet that an invite ended; the next look at them will");
            }
        }
        // The base forgets it too, or it would not count as new when it is enrolled again.
        if let Ok(Some(base)) = store::read_text(&self.dir.base(), MAX_TEXT)
            && let Ok(without) = remove_machine(&base, &name)
        {
            self.save_base(&without);
        }
        let warning = [warning, unread].into_iter().flatten().reduce(|all, more| format!("{all}; {more}"));
        self.changed((&name, id), warning, invites)
    }

    /// Lists the invites that are kept.
    ///
    /// # Errors
    /// What the disk says.
    pub fn invites(&self, now_ms: u64) -> Result<Vec<InviteEntry>, Failure> {
        Ok(self.listed(&self.books(now_ms)?, now_ms))
    }

    /// Ends an invite: from then on it is refused as a wrong one is, also for a machine that redeemed it before.
    ///
    /// # Errors
    /// [`Kind::UnknownTarget`] when none or more than one is called so, [`Kind::Conflict`] when it ended before, else what
    /// the disk says.
    pub fn revoke_invite(&self, id: &str, now_ms: u64) -> Result<InviteEntry, Failure> {
        let mut books = self.books(now_ms)?;
        let id = books.revoke(&self.alias, id, now_ms)?;
        books.save(&self.dir.invites())?;
        let found = self.listed(&books, now_ms).into_iter().find(|entry| id.starts_with(&entry.id));
        found.ok_or_else(|| Failure::new(Kind::Internal, "an invite that was revoked is not in the books"))
    }

    fn listed(&self, books: &Invites, now_ms: u64) -> Vec<InviteEntry> {
        let config = self.config().ok();
        let current = |id: &MachineId| Some(config.as_ref()?.machine_by_id(id)?.0.to_string());
        books.list(current, now_ms)
    }

    /// Reads what was promised, and settles what hung on a removal: every change is made under one lock, so that none is
    /// under way.
    fn books(&self, now_ms: u64) -> Result<Invites, Failure> {
        let path = self.dir.invites();
        let mut books = Invites::load(&path, now_ms)?;
        if books.is_unsettled() {
            let config = self.config()?;
            books.settle(|id| config.machine_by_id(id).is_some(), now_ms);
            books.save(&path)?;
        }
        Ok(books)
    }

    /// Applies an edit to the last signed text, signs that, and applies it to `cluster.toml` unless it is `done` there.
    fn edit(
        &mut self,
        apply: impl Fn(&str) -> Result<String, Failure>,
        done: impl Fn(&Config) -> bool,
        now_ms: u64,
    ) -> Result<Option<String>, Failure> {
        self.refuse_while_alarmed()?;
        let text = apply(self.signed()?.text())?;
        self.sign(text, now_ms)?;
        // From here on it is signed: what goes wrong with the file is a warning.
        let edited = self.edited().and_then(|text| match Config::check(&text) {
            Ok(config) if done(&config) => Ok(()),
            _ => store::write_edited(&self.dir.config(), apply(&text)?.as_bytes()),
        });
        Ok(edited.err().map(|why| {
            let hint = why.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
            format!(
                "the change is signed, but {} could not be edited: {}{hint}. Make the same change there, or the next \
                 rescan undoes it",
                self.dir.config().display(),
                why.message
            )
        }))
    }
}

fn check_numbers(ask: &local::ClusterInvite) -> Result<(), Failure> {
    let refused = |message: String| Err(Failure::new(Kind::Usage, message));
    if !(1..=MAX_USES).contains(&ask.uses) {
        return refused(format!("--uses must be 1 to {MAX_USES}"));
    }
    if ask.name.is_some() && ask.uses != 1 {
        return refused("an invite with --name has one use".into()).map_err(|failure| {
            failure.hint(format!(
                "machines named by their host names: malai cluster invite {} --uses {}; else an invite for each name",
                ask.cluster, ask.uses
            ))
        });
    }
    if !(1..=MAX_OPEN_S).contains(&ask.expires_s) {
        return refused(format!("--expires must be 1 s to {} days", MAX_OPEN_S / 86_400));
    }
    Ok(())
}

fn invited(id: String, invite: Invite) -> Result<Invited, Failure> {
    let token = invite.to_token();
    if token.len() > MAX_TOKEN {
        let message = format!("the token would have {} characters; at most {MAX_TOKEN} are possible", token.len());
        return Err(Failure::new(Kind::BadConfig, message)
            .hint("shorten `ca` in [network], or name fewer relays, then: malai rescan"));
    }
    Ok(Invited { id, token, expires_ms: invite.expires_ms, join_addresses: invite.addresses.clone() })
}

/// Takes this machine's paths and files out of a failure, which a newcomer need not know.
pub(crate) fn for_newcomer(failure: Failure) -> Failure {
    match failure.kind {
        Kind::Internal | Kind::BadConfig | Kind::Conflict => {
            tracing::error!(error = %failure, "an invite could not be redeemed");
            Failure::new(failure.kind, "the cluster manager cannot enrol machines at the moment; its log says why")
                .hint("when that is mended, repeat the command: the invite is still good")
        }
        _ => failure,
    }
}

pub(crate) fn unknown_invite() -> Failure {
    Failure::new(Kind::Denied, "unknown invite: it expired long ago, or another cluster manager made it")
        .hint("ask for a new one: malai cluster invite, on the cluster manager")
}

fn removed_since(name: &str) -> Failure {
    Failure::new(Kind::Denied, format!("this machine was enrolled as {name}, and later removed"))
        .hint("ask for a new invite: malai cluster invite, on the cluster manager")
}

/// Returns the name that a newcomer gets from its host name; when that is taken, with `-2`, `-3`, …
fn free_name(hostname: &str, taken: impl Fn(&Name) -> bool) -> Result<Name, Failure> {
    let base = Name::from_hostname(hostname).map_or_else(|| NAMELESS.to_owned(), |name| name.to_string());
    let numbered = (2..10_000u32).map(|number| {
        let suffix = format!("-{number}");
        let stem: String = base.chars().take(MAX_NAME_CHARS.saturating_sub(suffix.len())).collect();
        format!("{}{suffix}", stem.trim_end_matches('-'))
    });
    std::iter::once(base.clone())
        .chain(numbered)
        .filter_map(|text| text.parse().ok())
        .find(|name| !taken(name))
        .ok_or_else(|| {
            Failure::new(Kind::Conflict, format!("every name like {base} is taken")).hint("give a name with --name")
        })
}

fn in_use(config: &Config, name: &Name) -> bool {
    config.machines.contains_key(name) || config.groups.contains_key(name)
}

fn names(texts: &[String]) -> Result<Vec<Name>, Failure> {
    texts.iter().map(|text| name(text)).collect()
}

#[cfg(test)]
mod tests;
