//! Daemon to daemon: ALPNs, greetings, the header of a session, joining, close codes.
//!
//! On a `malai/1` connection the dialling side opens the control stream first and sends `PeerHello`; the accepting side
//! answers with its own. Both send `Announce` there whenever their snapshot changes. Every other bidirectional stream
//! begins with `Open` (a session), `Gone` (a caller went away), `Pull` (asks for the snapshot), `Resolve` (asks where a
//! machine is) or `Ping`, and either side may open them. No message names its sender: the connection does.

mod directory;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

pub use directory::{MAX_HOPS, Resolve, Resolved};

use crate::codec::{CodecError, Frame};
use crate::id::{ClusterId, FollowerId, Incarnation, MachineId, SessionId};
use crate::seal::Epoch;
use crate::snapshot::SignedHeader;

/// Names the protocol between the machines of a cluster, by their machine keys.
pub const ALPN: &[u8] = b"malai/1";
/// Names the protocol for newcomers, at the cluster key.
pub const JOIN_ALPN: &[u8] = b"malai-join/1";
/// Numbers the version that [`Hello`], [`Redeem`] and [`Knock`] tell; [`version_of`] reads it first.
pub const VERSION: u32 = 1;
/// Lists the features of [`Hello::needs`] and [`crate::session::ExecSpec::needs`] that this version knows.
pub const FEATURES: &[&str] = &[DETACH];
/// Names the feature of commands that go on without a caller.
pub const DETACH: &str = "detach";
/// Bounds the addresses that a [`Hello`] or [`Announce`] carries: more would not fit its frame.
pub const MAX_ADDRESSES: usize = 8;

/// Bounds [`Announce::twin`], in bytes.
pub const MAX_TWIN_BYTES: usize = 128;

/// Reads which version a `PeerHello`, `Redeem` or `Knock` is of. Every version has that key; all others may mean something
/// else there, so that they are read only when it is [`VERSION`].
///
/// # Errors
/// As [`Frame::decode`].
pub fn version_of(frame: &Frame) -> Result<u64, CodecError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    Ok(frame.decode::<Versioned>()?.version)
}

/// Returns the first of `needs` that this version does not know.
pub fn unknown_need(needs: &[String]) -> Option<&str> {
    needs.iter().map(String::as_str).find(|need| !FEATURES.contains(need))
}

/// Greets: the first frame on the control stream, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// Features without which the sender cannot go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The header of the snapshot that the sender holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<SignedHeader>,
    /// Where the sender can be reached: `IP:PORT` and relay URLs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The sender only calls (an agent): no streams may be opened towards it, and it is not to be shown as online.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub caller_only: bool,
    /// The random name of this life of the sender's daemon: a connection of an earlier life is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Incarnation>,
    /// The life of the sender's executor: what a request over this connection meets. Absent = none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<Incarnation>,
    /// The sender's malai version, for people.
    #[serde(default)]
    pub malai: String,
    /// The sender's wall clock, milliseconds since the epoch. Nothing is decided by it: `malai doctor` compares clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ms: Option<u64>,
    /// The generation whose rules the sender's executor enforces; absent = not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<u64>,
    /// What the receiver is to make seals for the sender with. No version sends or reads it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
}

/// Says that the sender holds another snapshot, or has other addresses. From the cluster manager also: another machine
/// holds the receiver's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// The header of the snapshot that the sender now holds.
    pub header: SignedHeader,
    /// Where the sender can be reached now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The path at which the sender met another machine with the receiver's key: `direct IP:PORT` or `relay URL`. Only
    /// the cluster manager is believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<String>,
    /// As in [`Hello::enforced`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<u64>,
    /// As in [`Hello::epoch`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
}

impl Announce {
    /// Returns the announcement that says which snapshot is held, and nothing else.
    pub fn of(header: SignedHeader) -> Self {
        Self { header, addresses: Vec::new(), twin: None, enforced: None, epoch: None }
    }
}

/// Asks for the snapshot, first on a stream; answered by `Snapshot` or `Refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// The generation that was announced; a later one may come.
    pub generation: u64,
}

/// Begins a session's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The cluster in which the target was named.
    pub cluster: ClusterId,
    /// The generation that the caller holds: a target that holds an older one waits for it before it refuses.
    pub generation: u64,
}

/// Says, first on a stream, that the caller of an attachment went away for good, which the attachment's own stream
/// could not tell. Counts only where that attachment is, or was last, the current one and binding. Answered by `Pong`
/// once it was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// The machine that started the session; absent = the key that the connection proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<MachineId>,
    /// Its id.
    pub id: SessionId,
    /// The process that followed.
    pub follower: FollowerId,
    /// The attachment's number.
    pub number: u32,
}

/// Shows a newcomer's invite, on `malai-join/1`. Answered by `Refused`, or by `Announce` with the addresses of the
/// manager's machine key and then `Snapshot`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeem {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The invite's secret.
    pub secret: ByteArray<32>,
    /// The newcomer's host name: its name in the cluster where the invite fixes none.
    #[serde(default)]
    pub hostname: String,
}

impl std::fmt::Debug for Redeem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redeem {{ version: {}, secret: …, hostname: {:?} }}", self.version, self.hostname)
    }
}

/// Asks for a newcomer without an invite to be let in, on `malai-join/1`. Answered by `Waiting`, then as [`Redeem`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knock {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The newcomer's host name, shown to the administrator.
    #[serde(default)]
    pub hostname: String,
}

/// Says why a connection was closed, as QUIC's application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Close {
    /// In good order: not used any more.
    Done = 0,
    /// The key is not a member of the cluster; nothing that it sent on this connection was carried out.
    NotAMember = 1,
    /// The peer broke the protocol.
    Protocol = 2,
    /// The daemon shuts down.
    Shutdown = 3,
    /// Too much at once from this peer.
    Busy = 4,
    /// The peer needs a feature, or speaks a version, that this one does not have.
    Unsupported = 5,
    /// Another connection to the same peer took this one's place.
    Replaced = 6,
    /// The key was a member when the connection began, and is not any more.
    Removed = 7,
}

impl Close {
    /// Returns the close code with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        use Close::{Busy, Done, NotAMember, Protocol, Removed, Replaced, Shutdown, Unsupported};
        [Done, NotAMember, Protocol, Shutdown, Busy, Unsupported, Replaced, Removed]
            .into_iter()
            .find(|code| u64::from(*code as u32) == number)
    }
}

/// Resets a stream, from a caller's daemon: the caller of a binding attachment went away for good.
pub const RESET_CALLER_GONE: u32 = 0x10;
/// Resets or stops a stream: the attachment is lost, and nothing more is meant by it.
pub const RESET_LOST: u32 = 0x11;
/// Resets or stops a stream: the peer broke the protocol on it.
pub const RESET_PROTOCOL: u32 = 0x12;

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the longest addresses that a greeting tells: of IPv6, and a relay's longest URL.
    fn longest_addresses() -> Vec<String> {
        let relay = format!("https://{:x<1016}", "");
        let ips = std::iter::repeat_n("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".to_owned(), MAX_ADDRESSES - 1);
        ips.chain([relay]).collect()
    }

    fn header() -> SignedHeader {
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
        crate::snapshot::Snapshot::sign(&key, u64::MAX, u64::MAX, "x".into()).expect("signs").signed_header().clone()
    }

    #[test]
    fn a_hello_with_all_its_fields_fits_its_frame() {
        let hello = Hello {
            version: VERSION,
            needs: Vec::new(),
            header: Some(header()),
            addresses: longest_addresses(),
            caller_only: true,
            boot: Some(Incarnation::from_bytes([255; 16])),
            executor: Some(Incarnation::from_bytes([255; 16])),
            malai: "100.100.100".into(),
            clock_ms: Some(u64::MAX),
            enforced: Some(u64::MAX),
            epoch: Some(Epoch { number: u64::MAX, key: ByteArray::new([255; 32]) }),
        };
        crate::codec::Frame::control(crate::codec::Kind::PeerHello, &hello).expect("fits");
    }

    #[test]
    fn an_announcement_with_all_its_fields_fits_its_frame() {
        let announce = Announce {
            addresses: longest_addresses(),
            twin: Some("x".repeat(MAX_TWIN_BYTES)),
            enforced: Some(u64::MAX),
            epoch: Some(Epoch { number: u64::MAX, key: ByteArray::new([255; 32]) }),
            ..Announce::of(header())
        };
        crate::codec::Frame::control(crate::codec::Kind::Announce, &announce).expect("fits");
    }

    #[test]
    fn a_redeem_does_not_show_its_secret() {
        let redeem = Redeem { version: 1, secret: ByteArray::new([0x5a; 32]), hostname: "web01".into() };
        assert_eq!(format!("{redeem:?}"), "Redeem { version: 1, secret: …, hostname: \"web01\" }");
    }
}
