//! The books of invites: what was promised, by the SHA-256 (FIPS 180-4) of each invite's secret, never the secret itself.
//!
//! An invite is bound to the first key that redeems it, and the same key may repeat: a lost reply does not burn it. The
//! binding is on the disk before the machine is enrolled.
//!
//! Invites that an administrator ended are kept apart, so that no search for an invite can find them. An invite that is
//! to end with the removal of a machine is marked first. At the next look the signed config says whether that removal
//! took place, and so whether the invite has ended: no crash in between leaves one without the other.

use std::collections::BTreeMap;
use std::path::Path;

use malai_protocol::config::Name;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::local::{CameBy, InviteEntry, InviteState, Redemption};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store;

/// Bounds the invites that are kept at once.
pub const MAX_INVITES: usize = 1000;
/// Bounds the uses of one invite.
pub const MAX_USES: u32 = 1000;
/// Bounds the uses of all invites together.
const MAX_ALL_USES: u64 = 10_000;
/// Bounds how long an invite may be open, in seconds.
pub const MAX_OPEN_S: u64 = 366 * 24 * 3600;
/// Sets how long an expired invite is remembered, in milliseconds: a machine that comes late hears why it is refused, and
/// one that lost the reply gets it again.
const REMEMBERED_MS: u64 = 24 * 3600 * 1000;
/// Sets how many digits of its hash are an invite's id: no two that are kept have the same.
const INVITE_ID_DIGITS: usize = 8;
/// Bounds the ids that a hint lists.
const MAX_SHOWN_IDS: usize = 12;
/// Bounds the file of the books: [`MAX_ALL_USES`] redemptions of [`MAX_INVITES`] invites with their names and groups.
const MAX_BOOKS_BYTES: usize = 16 * 1024 * 1024;

/// Holds the invites of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invites {
    /// Holds those that may let machines in, by the SHA-256 of the secret, 64 hexadecimal digits.
    #[serde(default)]
    by_hash: BTreeMap<String, Promise>,
    /// Holds those that were ended, in the same way. They let no machine in.
    #[serde(default)]
    revoked: BTreeMap<String, Revoked>,
}

/// Remembers an invite that was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Revoked {
    /// Is when that was, milliseconds since the epoch by this manager's clock.
    at_ms: u64,
    /// Is what it promised.
    promise: Promise,
}

/// Holds what one invite promises, and which machines came by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promise {
    /// Is when it expires, milliseconds since the epoch by this manager's clock.
    pub(crate) expires_ms: u64,
    /// Counts the further keys that may redeem it.
    pub(crate) uses_left: u32,
    /// Is the newcomer's name; absent = from its host name.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Lists the groups that the newcomer joins.
    #[serde(default)]
    pub(crate) groups: Vec<String>,
    /// Is the user that commands run as there.
    #[serde(default)]
    pub(crate) username: Option<String>,
    /// Holds the keys that redeemed it.
    #[serde(default)]
    pub(crate) redeemed: BTreeMap<MachineId, Binding>,
    /// Names a machine with whose removal the invite ends; that may not be signed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ends_with: Option<MachineId>,
}

/// Remembers one redemption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    /// Is the name that the machine got.
    pub(crate) name: String,
    /// Says whether it was enrolled: then it was removed if it is not in the config any more, and stays out.
    pub(crate) enrolled: bool,
    /// Is when it was redeemed, milliseconds since the epoch; absent in the books of an earlier version.
    #[serde(default)]
    pub(crate) at_ms: Option<u64>,
}

impl Invites {
    /// Reads the file, and forgets what expired long ago.
    pub(crate) fn load(path: &Path, now_ms: u64) -> Result<Self, Failure> {
        let Some(bytes) = store::read(path, MAX_BOOKS_BYTES)? else { return Ok(Self::default()) };
        let mut invites: Self = serde_json::from_slice(&bytes).map_err(|e| {
            let shown = path.display();
            Failure::new(Kind::BadConfig, format!("{shown} is broken: {e}"))
                .hint(format!("to go on without the open invites: mv {shown} {shown}.broken"))
        })?;
        invites.by_hash.retain(|_, promise| promise.forgotten_ms() > now_ms);
        invites.revoked.retain(|_, revoked| revoked.at_ms.saturating_add(REMEMBERED_MS) > now_ms);
        Ok(invites)
    }

    /// Writes the file.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Failure::new(Kind::Internal, format!("cannot encode the invites: {e}")))?;
        store::write(path, &text)
    }

    /// Adds an invite. What was revoked makes room for it.
    pub(crate) fn add(&mut self, secret: &[u8; 32], promise: Promise) -> Result<(), Failure> {
        while !self.has_room(promise.uses_left) {
            let oldest = self.revoked.iter().min_by_key(|(_, revoked)| revoked.at_ms).map(|(hash, _)| hash.clone());
            let Some(oldest) = oldest else {
                let message = format!("the list of invites is full: it has {}", self.by_hash.len());
                return Err(Failure::new(Kind::Busy, message)
                    .hint("use those, or end some: malai cluster invites and malai cluster revoke"));
            };
            self.revoked.remove(&oldest);
        }
        self.by_hash.insert(hash(secret), promise);
        Ok(())
    }

    /// Says whether a key is bound that is not known to be enrolled.
    pub(crate) fn is_any_open(&self) -> bool {
        self.by_hash.values().flat_map(|promise| promise.redeemed.values()).any(|binding| !binding.enrolled)
    }

    /// Notes that these keys are enrolled. Says whether that was news.
    pub(crate) fn note_redeemed(&mut self, enrolled: impl Fn(&MachineId) -> bool) -> bool {
        let mut news = false;
        for (key, binding) in self.by_hash.values_mut().flat_map(|promise| promise.redeemed.iter_mut()) {
            if !binding.enrolled && enrolled(key) {
                (binding.enrolled, news) = (true, true);
            }
        }
        news
    }

    fn has_room(&self, uses: u32) -> bool {
        let open: u64 = self.by_hash.values().map(|p| u64::from(p.uses_left) + p.redeemed.len() as u64).sum();
        let ended: u64 = self.revoked.values().map(|revoked| revoked.promise.redeemed.len() as u64).sum();
        self.by_hash.len() + self.revoked.len() < MAX_INVITES && open + ended + u64::from(uses) <= MAX_ALL_USES
    }

    /// Returns what the invite with this secret would be called; None when another one is called so.
    pub(crate) fn free_id(&self, secret: &[u8; 32]) -> Option<String> {
        let id = id_of(&hash(secret)).to_owned();
        let is_taken = self.by_hash.keys().chain(self.revoked.keys()).any(|hash| hash.starts_with(&id));
        (!is_taken).then_some(id)
    }

    /// Ends the invite with this id, or the only one whose id begins with it.
    ///
    /// # Errors
    /// [`Kind::UnknownTarget`] when there is none or more than one, [`Kind::Conflict`] when it was ended before.
    pub(crate) fn revoke(&mut self, alias: &str, id: &str, now_ms: u64) -> Result<String, Failure> {
        let asked = id.to_ascii_lowercase();
        let all = || self.by_hash.keys().chain(self.revoked.keys());
        let found: Vec<&String> = all().filter(|hash| !asked.is_empty() && hash.starts_with(&asked)).collect();
        let [hash] = found.as_slice() else {
            let (what, listed): (_, Vec<&String>) = match found.len() {
                0 => ("has no invite", self.by_hash.keys().collect()),
                _ => ("has more than one invite whose id begins with", found),
            };
            // What is no id is not repeated: it may be a token.
            let is_id = (1..=64).contains(&asked.len()) && asked.bytes().all(|byte| byte.is_ascii_hexdigit());
            let shown = if is_id {
                format!("{asked:?}")
            } else {
                "of that id: an id has only digits and the letters a to f".to_owned()
            };
            let failure = Failure::new(Kind::UnknownTarget, format!("the cluster {alias} {what} {shown}"));
            return Err(failure.hint(ids_hint(alias, &listed)));
        };
        let hash = (*hash).clone();
        let Some(promise) = self.by_hash.remove(&hash) else {
            let message = format!("the invite {} was revoked before", id_of(&hash));
            return Err(Failure::new(Kind::Conflict, message)
                .hint(format!("see which are open: malai cluster invites {alias}")));
        };
        self.revoked.insert(hash.clone(), Revoked { at_ms: now_ms, promise });
        Ok(hash)
    }

    /// Returns the open invites by which this machine came.
    pub(crate) fn came_by(&self, machine: &MachineId, now_ms: u64) -> Vec<CameBy> {
        let open = |promise: &Promise| promise.is_open(now_ms) && promise.redeemed.contains_key(machine);
        self.by_hash
            .iter()
            .filter(|(_, promise)| open(promise))
            .map(|(hash, promise)| CameBy {
                id: id_of(hash).to_owned(),
                uses_left: promise.uses_left,
                expires_ms: promise.expires_ms,
                revoked: false,
            })
            .collect()
    }

    /// Marks the open invites by which this machine came: they end with its removal.
    pub(crate) fn end_with(&mut self, machine: &MachineId, now_ms: u64) {
        for promise in self.by_hash.values_mut() {
            if promise.is_open(now_ms) && promise.redeemed.contains_key(machine) {
                promise.ends_with = Some(*machine);
            }
        }
    }

    /// Whether the end of an invite hangs on a removal.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.by_hash.values().any(|promise| promise.ends_with.is_some())
    }

    /// Ends what was to end with a removal, if that was signed; else it goes on.
    pub(crate) fn settle(&mut self, is_member: impl Fn(&MachineId) -> bool, now_ms: u64) {
        let (mut kept, mut ended) = (BTreeMap::new(), Vec::new());
        for (hash, mut promise) in std::mem::take(&mut self.by_hash) {
            match promise.ends_with.take() {
                Some(machine) if !is_member(&machine) => ended.push((hash, Revoked { at_ms: now_ms, promise })),
                _ => drop(kept.insert(hash, promise)),
            }
        }
        self.by_hash = kept;
        self.revoked.extend(ended);
    }

    /// Returns all that are kept, by when they expire; `current` returns the name of a machine that is in the config.
    pub(crate) fn list(&self, current: impl Fn(&MachineId) -> Option<String>, now_ms: u64) -> Vec<InviteEntry> {
        let open = self.by_hash.iter().map(|(hash, promise)| promise.entry(hash, None, &current, now_ms));
        let ended = self.revoked.iter().map(|(hash, r)| r.promise.entry(hash, Some(r.at_ms), &current, now_ms));
        let mut list: Vec<InviteEntry> = open.chain(ended).collect();
        list.sort_by(|a, b| (a.expires_ms, &a.id).cmp(&(b.expires_ms, &b.id)));
        list
    }

    /// Finds the invite with this secret.
    pub(crate) fn get(&self, secret: &[u8; 32]) -> Option<&Promise> {
        self.by_hash.get(&hash(secret))
    }

    /// Binds one use of an invite to a key; a key that is bound already takes no further use.
    pub(crate) fn bind(&mut self, secret: &[u8; 32], key: MachineId, binding: Binding) {
        if let Some(promise) = self.by_hash.get_mut(&hash(secret))
            && promise.redeemed.insert(key, binding).is_none()
        {
            promise.uses_left = promise.uses_left.saturating_sub(1);
        }
    }

    /// Says whether an open invite promises a name.
    pub(crate) fn promises(&self, name: &Name, now_ms: u64) -> bool {
        self.by_hash
            .values()
            .filter(|promise| promise.is_open(now_ms))
            .any(|promise| promise.name.as_deref() == Some(name.as_str()))
    }
}

impl Promise {
    /// Makes a promise that was not redeemed yet.
    pub(crate) fn new(uses: u32, expires_ms: u64) -> Self {
        Self {
            expires_ms,
            uses_left: uses,
            name: None,
            groups: Vec::new(),
            username: None,
            redeemed: BTreeMap::new(),
            ends_with: None,
        }
    }

    fn is_open(&self, now_ms: u64) -> bool {
        self.uses_left > 0 && self.expires_ms > now_ms
    }

    /// Says whether it expired long enough ago to be forgotten.
    pub(crate) fn is_forgotten(&self, now_ms: u64) -> bool {
        self.forgotten_ms() <= now_ms
    }

    fn forgotten_ms(&self) -> u64 {
        self.expires_ms.saturating_add(REMEMBERED_MS)
    }

    fn entry(
        &self,
        hash: &str,
        revoked_ms: Option<u64>,
        current: &impl Fn(&MachineId) -> Option<String>,
        now_ms: u64,
    ) -> InviteEntry {
        let redeemed = self.redeemed.iter().map(|(id, binding)| {
            let name = current(id);
            let removed = name.is_none();
            Redemption { machine: name.unwrap_or_else(|| binding.name.clone()), id: *id, at_ms: binding.at_ms, removed }
        });
        let mut redeemed: Vec<Redemption> = redeemed.collect();
        redeemed.sort_by(|a, b| (a.at_ms, &a.machine).cmp(&(b.at_ms, &b.machine)));
        let state = match () {
            () if revoked_ms.is_some() => InviteState::Revoked,
            () if self.uses_left == 0 => InviteState::UsedUp,
            () if self.expires_ms <= now_ms => InviteState::Expired,
            () => InviteState::Open,
        };
        InviteEntry {
            id: id_of(hash).to_owned(),
            state,
            uses: self.uses_left.saturating_add(u32::try_from(redeemed.len()).unwrap_or(u32::MAX)),
            uses_left: self.uses_left,
            expires_ms: self.expires_ms,
            revoked_ms,
            forgotten_ms: revoked_ms.map_or(self.forgotten_ms(), |at| at.saturating_add(REMEMBERED_MS)),
            name: self.name.clone(),
            groups: self.groups.clone(),
            username: self.username.clone(),
            redeemed,
        }
    }

    /// Refuses a key that did not redeem this invite before, when it is used up or expired.
    pub(crate) fn refuse_newcomer(&self, now_ms: u64) -> Result<(), Failure> {
        let refused = |message: &str| {
            Err(Failure::new(Kind::Denied, message)
                .hint("ask for a new one: malai cluster invite, on the cluster manager"))
        };
        if self.uses_left == 0 {
            return refused("this invite was used already, by another machine");
        }
        if now_ms >= self.expires_ms {
            return refused("this invite has expired");
        }
        Ok(())
    }
}

/// Returns an invite's id. The secret has 256 random bits, so that neither these digits nor the whole hash help to find it.
fn id_of(hash: &str) -> &str {
    hash.get(..INVITE_ID_DIGITS).unwrap_or(hash)
}

fn ids_hint(alias: &str, hashes: &[&String]) -> String {
    let ids: Vec<&str> = hashes.iter().take(MAX_SHOWN_IDS).map(|hash| id_of(hash)).collect();
    match (ids.is_empty(), hashes.len() > ids.len()) {
        (true, _) => format!("it has none to revoke; malai cluster invites {alias} lists those that ended"),
        (false, false) => format!("there is {}", ids.join(", ")),
        (false, true) => format!("malai cluster invites {alias} lists all, {} and others", ids.join(", ")),
    }
}

fn hash(secret: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(secret))
}
