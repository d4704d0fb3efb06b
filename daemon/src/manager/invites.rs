//! What was promised to whom: the SHA-256 (FIPS 180-4) of each invite's secret, never the secret itself.
//!
//! An invite is bound to the first key that redeems it, and the same key may repeat: a lost reply does not burn it. The
//! binding is on the disk before the machine is enrolled.

use std::collections::BTreeMap;
use std::path::Path;

use malai_protocol::config::Name;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store;

/// The most invites that are open at once.
pub const MAX_INVITES: usize = 1000;
/// The most uses of one invite, and of all open ones together.
pub const MAX_USES: u32 = 1000;
const MAX_ALL_USES: u64 = 10_000;
/// The longest that an invite may be open.
pub const MAX_OPEN_S: u64 = 366 * 24 * 3600;
/// An expired invite is remembered for a day, so that who comes late is told so, and who lost the reply gets it again.
const REMEMBERED_MS: u64 = 24 * 3600 * 1000;
/// [`MAX_ALL_USES`] redemptions of [`MAX_INVITES`] invites with their names and groups.
const MAX_FILE: usize = 16 * 1024 * 1024;

/// The invites of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Invites {
    /// By the SHA-256 of the secret, 64 hexadecimal digits.
    #[serde(default)]
    by_hash: BTreeMap<String, Promise>,
}

/// One invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promise {
    /// When it expires, milliseconds since the epoch by this manager's clock.
    pub(super) expires_ms: u64,
    /// How many further keys may redeem it.
    pub(super) uses_left: u32,
    /// The newcomer's name; absent = from its host name.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// Groups that the newcomer joins.
    #[serde(default)]
    pub(super) groups: Vec<String>,
    /// The user that commands run as there.
    #[serde(default)]
    pub(super) username: Option<String>,
    /// Who redeemed it.
    #[serde(default)]
    pub(super) redeemed: BTreeMap<MachineId, Binding>,
}

/// One redemption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binding {
    /// The name that was given.
    pub(super) name: String,
    /// It was enrolled: a machine that is not in the config any more was removed, and stays so.
    pub(super) enrolled: bool,
}

impl Invites {
    /// Reads the file, and forgets what expired long ago.
    pub(super) fn load(path: &Path, now_ms: u64) -> Result<Self, Failure> {
        let Some(bytes) = store::read(path, MAX_FILE)? else { return Ok(Self::default()) };
        let mut invites: Self = serde_json::from_slice(&bytes).map_err(|e| {
            let shown = path.display();
            Failure::new(Kind::BadConfig, format!("{shown} is broken: {e}"))
                .hint(format!("open invites are lost with it; to go on: mv {shown} {shown}.broken"))
        })?;
        invites.by_hash.retain(|_, promise| promise.expires_ms.saturating_add(REMEMBERED_MS) > now_ms);
        Ok(invites)
    }

    /// Writes the file.
    pub(super) fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Failure::new(Kind::Internal, format!("invites do not encode: {e}")))?;
        store::write(path, &text)
    }

    /// Adds an invite.
    pub(super) fn add(&mut self, secret: &[u8; 32], promise: Promise) -> Result<(), Failure> {
        let all: u64 = self.by_hash.values().map(|p| u64::from(p.uses_left) + p.redeemed.len() as u64).sum();
        if self.by_hash.len() >= MAX_INVITES || all + u64::from(promise.uses_left) > MAX_ALL_USES {
            let message = format!("{} invites are open already, and there is no room for more", self.by_hash.len());
            return Err(Failure::new(Kind::Busy, message).hint("use those, or wait a day after they expired"));
        }
        self.by_hash.insert(hash(secret), promise);
        Ok(())
    }

    /// Whether a key is bound that is not known to be enrolled.
    pub(super) fn is_any_open(&self) -> bool {
        self.by_hash.values().flat_map(|promise| promise.redeemed.values()).any(|binding| !binding.enrolled)
    }

    /// Notes that these keys are enrolled. Says whether that was news.
    pub(super) fn note_redeemed(&mut self, enrolled: impl Fn(&MachineId) -> bool) -> bool {
        let mut news = false;
        for (key, binding) in self.by_hash.values_mut().flat_map(|promise| promise.redeemed.iter_mut()) {
            if !binding.enrolled && enrolled(key) {
                (binding.enrolled, news) = (true, true);
            }
        }
        news
    }

    /// The invite with this secret.
    pub(super) fn get(&self, secret: &[u8; 32]) -> Option<&Promise> {
        self.by_hash.get(&hash(secret))
    }

    /// Binds one use of an invite to a key; a key that is bound already takes no further use.
    pub(super) fn bind(&mut self, secret: &[u8; 32], key: MachineId, binding: Binding) {
        if let Some(promise) = self.by_hash.get_mut(&hash(secret))
            && promise.redeemed.insert(key, binding).is_none()
        {
            promise.uses_left = promise.uses_left.saturating_sub(1);
        }
    }

    /// Whether a name is promised by an open invite.
    pub(super) fn promises(&self, name: &Name, now_ms: u64) -> bool {
        let open = |promise: &&Promise| promise.uses_left > 0 && promise.expires_ms > now_ms;
        self.by_hash.values().filter(open).any(|promise| promise.name.as_deref() == Some(name.as_str()))
    }
}

impl Promise {
    /// Refuses a key that did not redeem this invite before, when it is used up or expired.
    pub(super) fn refuse_newcomer(&self, now_ms: u64) -> Result<(), Failure> {
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

fn hash(secret: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(secret))
}
