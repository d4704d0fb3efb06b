//! Greetings: which version of the protocol a peer speaks, and what it needs.

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::peer::{Hello, VERSION, unknown_need, version_of};
use malai_protocol::snapshot::SignedHeader;
use serde::de::DeserializeOwned;

/// Makes the greeting of one that does not act as a member's daemon: it says which snapshot it holds, if any, and nothing
/// else.
pub(crate) fn bare_hello(header: Option<SignedHeader>, caller_only: bool) -> Hello {
    Hello {
        version: VERSION,
        needs: Vec::new(),
        header,
        addresses: Vec::new(),
        caller_only,
        boot: None,
        executor: None,
        malai: crate::VERSION.to_owned(),
        clock_ms: None,
        enforced: None,
        epoch: None,
    }
}

/// Says that the peer speaks another version of the protocol, or needs something that this one does not have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsupported {
    /// Is another version: nothing else of its message was read.
    #[error(
        "the peer speaks version {0} of malai's protocol, and malai {malai} here speaks version {VERSION}: install the \
         same malai on both",
        malai = crate::VERSION
    )]
    Version(u64),
    /// Names the feature that it needs.
    #[error("the peer needs `{0}`, which malai {malai} does not have", malai = crate::VERSION)]
    Need(String),
}

/// Reads the first frame of a peer or newcomer, which has to be of this kind and of this version.
///
/// # Errors
/// [`Unsupported::Version`], else as [`Frame::expect`].
pub(crate) fn spoken<T: DeserializeOwned>(frame: &Frame, kind: Kind, wanted: &'static str) -> anyhow::Result<T> {
    if frame.kind == kind {
        let version = version_of(frame)?;
        if version != u64::from(VERSION) {
            return Err(Unsupported::Version(version).into());
        }
    }
    Ok(frame.expect(kind, wanted)?)
}

/// Reads a greeting.
///
/// # Errors
/// [`Unsupported`], else as [`Frame::expect`].
pub(crate) fn greeting(frame: &Frame) -> anyhow::Result<Hello> {
    let hello: Hello = spoken(frame, Kind::PeerHello, "PeerHello")?;
    match unknown_need(&hello.needs) {
        Some(need) => Err(Unsupported::Need(need.to_owned()).into()),
        None => Ok(hello),
    }
}
