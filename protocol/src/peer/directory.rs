//! The cluster's own directory: any member may be asked where another one is.

use serde::{Deserialize, Serialize};

use crate::id::MachineId;

/// Bounds [`Resolve::hops`]: a machine that is asked may ask others, which ask no further.
pub const MAX_HOPS: u8 = 1;

/// Asks where a machine is, first on a stream; answered by `Resolved` or `Refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// The machine that is looked for.
    pub machine: MachineId,
    /// How far the question may be passed on by one that does not know; at most [`MAX_HOPS`].
    #[serde(default)]
    pub hops: u8,
}

/// Says where a machine is. It is only a hint: the one that dials learns by the key whether it is true.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Where it can be reached, as in [`super::Hello::addresses`]: at most [`super::MAX_ADDRESSES`] `IP:PORT` and relay
    /// URLs. Empty = it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The machine that told the one that answers. Absent = the one that is looked for told it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_by: Option<MachineId>,
    /// How long ago the machine was heard, in milliseconds; 0 = it is connected.
    #[serde(default)]
    pub heard_ms_ago: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Frame, Kind};
    use crate::peer::MAX_ADDRESSES;

    #[test]
    fn an_answer_with_all_its_fields_fits_its_frame() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
        let answer = Resolved {
            addresses: vec!["[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".into(); MAX_ADDRESSES],
            said_by: Some(MachineId::from_bytes(key.verifying_key().to_bytes()).expect("a key")),
            heard_ms_ago: u64::MAX,
        };
        Frame::control(Kind::Resolved, &answer).expect("fits");
    }
}
