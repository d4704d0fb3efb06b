//! Places on the wire for what makes a request its author's alone, so that no machine on the way, and not the target's
//! daemon, can make the target act for another caller.
//!
//! A caller signs each first frame with a [`Seal`] in front of it, and what it sends later is shown to be its own by
//! [`Proof`]s under a key that both ends derive from the target's [`Epoch`] and the seal's ephemeral key. Nothing makes or
//! reads them yet: a receiver refuses both frames, and ignores an epoch.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::id::{ClusterId, MachineId};
use crate::snapshot::SignedHeader;

/// Holds what a target's executor tells a caller, so that the caller can seal requests for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counts the epochs of this target for this caller.
    pub number: u64,
    /// The executor's public X25519 key (RFC 7748) of this epoch.
    pub key: ByteArray<32>,
}

/// Signs the frame that follows it, as the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The cluster in which the target was named.
    pub cluster: ClusterId,
    /// The machine that is to act, and no other.
    pub target: MachineId,
    /// The target's epoch, by [`Epoch::number`].
    pub epoch: u64,
    /// Random, so that the target takes a seal once: it remembers those of its current and its previous epoch.
    pub nonce: ByteArray<16>,
    /// The header of the snapshot that the caller holds: the target decides by none that is older.
    pub header: SignedHeader,
    /// The caller's public X25519 key for this request alone.
    pub ephemeral: ByteArray<32>,
    /// BLAKE3 of the frame that follows, its kind and length included.
    pub first: ByteArray<32>,
    /// ed25519 (RFC 8032) by the caller's key over all of the above.
    pub signature: ByteArray<64>,
}

/// Shows that bytes which followed a seal are the sealing caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// How many bytes the caller sent after the seal and before this frame.
    pub bytes: u64,
    /// Keyed BLAKE3 of these bytes.
    pub hash: ByteArray<32>,
}
