//! The invites of a cluster, as the books of its manager have them.

use serde::{Deserialize, Serialize};

use crate::id::MachineId;

/// Describes one invite in the answer to [`Request::ClusterInvites`](super::Request::ClusterInvites).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteEntry {
    /// Its id: the first digits of the SHA-256 of its secret. The id lets no machine in.
    pub id: String,
    /// Whether it still lets machines in.
    pub state: InviteState,
    /// How many machines it was made for.
    pub uses: u32,
    /// How many further machines may redeem it.
    pub uses_left: u32,
    /// When it expires, milliseconds since the epoch.
    pub expires_ms: u64,
    /// When it was revoked, milliseconds since the epoch.
    pub revoked_ms: Option<u64>,
    /// When it leaves the list, milliseconds since the epoch.
    pub forgotten_ms: u64,
    /// The newcomer's name; absent = its host name.
    pub name: Option<String>,
    /// Groups that the newcomer joins.
    pub groups: Vec<String>,
    /// The user that commands run as there.
    pub username: Option<String>,
    /// The machines that redeemed it.
    pub redeemed: Vec<Redemption>,
}

/// Says whether an invite still lets machines in, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InviteState {
    /// It lets machines in.
    Open,
    /// It was redeemed by the number of machines that it was made for.
    UsedUp,
    /// Its time is over.
    Expired,
    /// An administrator ended it.
    Revoked,
}

/// Names a machine that redeemed an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redemption {
    /// Its name in the config; of one that is not there, the name that it was given.
    pub machine: String,
    /// Its key.
    pub id: MachineId,
    /// When it joined, milliseconds since the epoch; absent where the books of an earlier version do not say.
    pub at_ms: Option<u64>,
    /// The machine is not in the config any more.
    pub removed: bool,
}

/// Describes an open invite by which a removed machine had come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CameBy {
    /// Its id.
    pub id: String,
    /// How many further machines may redeem it.
    pub uses_left: u32,
    /// When it expires, milliseconds since the epoch.
    pub expires_ms: u64,
    /// Whether it was revoked with the removal.
    pub revoked: bool,
}
