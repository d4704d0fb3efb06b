//! Keys and ids. Each is its own type, so that a machine's key cannot be passed where a cluster's is meant.
//!
//! Public keys are written as *id52*: 52 characters of lowercase base32 in the "extended hex" alphabet of RFC 4648
//! (`0-9a-v`), without padding. Decoding is strict: upper case, other lengths and non-zero trailing bits are refused,
//! so that one key has exactly one spelling.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32HEX_NOPAD, HEXLOWER};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Says why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has the wrong number of characters.
    #[error("an id52 has 52 characters, this has {0}")]
    Length(usize),
    /// A character outside `0-9a-v`, or trailing bits that are not zero.
    #[error("not an id52: only 0-9 and a-v, lower case, as malai prints it")]
    Alphabet,
    /// 32 bytes that are no ed25519 public key.
    #[error("well formed, but not a valid public key")]
    NotAKey,
    /// A session id that is not 32 hexadecimal digits.
    #[error("a session id is 32 hexadecimal digits")]
    Session,
}

/// Writes bytes in lowercase base32hex (RFC 4648) without padding.
pub(crate) fn base32(bytes: &[u8]) -> String {
    BASE32HEX_NOPAD.encode(bytes).to_ascii_lowercase()
}

/// Reads what [`base32`] writes, and no other spelling: no upper case, and no bits that are left over.
pub(crate) fn from_base32(text: &str) -> Option<Vec<u8>> {
    let has_capitals = text.bytes().any(|byte| byte.is_ascii_uppercase());
    BASE32HEX_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok().filter(|_| !has_capitals)
}

/// Writes public keys as id52.
mod id52 {
    use super::*;

    /// Says how many characters tell keys apart in logs and tables.
    pub(super) const SHORT_CHARS: usize = 10;

    pub(super) fn encode(bytes: &[u8; 32]) -> String {
        base32(bytes)
    }

    pub(super) fn decode(text: &str) -> Result<[u8; 32], IdError> {
        let length = text.chars().count();
        if length != 52 {
            return Err(IdError::Length(length));
        }
        from_base32(text).and_then(|bytes| bytes.try_into().ok()).ok_or(IdError::Alphabet)
    }

    pub(super) fn check(bytes: &[u8; 32]) -> Result<(), IdError> {
        VerifyingKey::from_bytes(bytes).map(drop).map_err(|_| IdError::NotAKey)
    }
}

/// Writes random ids in hexadecimal.
mod hex {
    use super::*;

    /// Says how many characters tell ids apart in logs and tables.
    pub(super) const SHORT_CHARS: usize = 8;

    pub(super) fn encode(bytes: &[u8; 16]) -> String {
        HEXLOWER.encode(bytes)
    }

    pub(super) fn decode(text: &str) -> Result<[u8; 16], IdError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| IdError::Session)?;
        bytes.try_into().map_err(|_| IdError::Session)
    }

    /// Accepts any bytes.
    pub(super) fn check(_bytes: &[u8; 16]) -> Result<(), IdError> {
        Ok(())
    }
}

/// Makes an id type of this number of bytes, which the named module writes and reads.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $length:literal, $form:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Its bytes.
            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            /// Its first characters, for logs and tables.
            pub fn short(&self) -> String {
                self.to_string().chars().take($form::SHORT_CHARS).collect()
            }

            fn checked(bytes: [u8; $length]) -> Result<Self, IdError> {
                $form::check(&bytes)?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$form::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::checked($form::decode(text)?)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::deserialize(d)?.into_array();
                    Self::checked(bytes).map_err(de::Error::custom)
                }
            }
        }
    };
}

macro_rules! key_type {
    ($(#[$doc:meta])* $name:ident) => {
        id_type! { $(#[$doc])* $name, 32, id52 }

        impl $name {
            /// Makes the id of these 32 bytes, an ed25519 public key.
            ///
            /// # Errors
            /// [`IdError::NotAKey`] when they do not decode to a point of the curve.
            pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, IdError> {
                Self::checked(bytes)
            }
        }
    };
}

key_type! {
    /// The public key of a cluster: what its snapshots are signed with.
    ClusterId
}

impl ClusterId {
    /// Tells whether this cluster's key signed the message: ed25519 (RFC 8032), verified strictly.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

key_type! {
    /// The public key of a machine, or of a caller: what its connections are authenticated by.
    MachineId
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        id_type! { $(#[$doc])* $name, 16, hex }

        impl $name {
            /// Makes the id of these 16 random bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
        }
    };
}

random_id! {
    /// A session's id, chosen at random by its caller; with the caller's key it names the session.
    SessionId
}

random_id! {
    /// The random name of one life of an executor: a restarted one has another.
    Incarnation
}

random_id! {
    /// The random name of one process that follows sessions: a CLI. Its attachments to a session are numbered.
    FollowerId
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> MachineId {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        MachineId::from_bytes(secret.verifying_key().to_bytes()).expect("a key")
    }

    #[test]
    fn id52_round_trips_and_has_52_characters() {
        let text = key().to_string();
        assert_eq!(text.len(), 52);
        assert_eq!(text.parse::<MachineId>(), Ok(key()));
    }

    #[test]
    fn upper_case_is_refused() {
        let text = key().to_string().to_uppercase();
        assert_eq!(text.parse::<MachineId>(), Err(IdError::Alphabet));
    }

    #[test]
    fn non_zero_trailing_bits_are_refused() {
        let text = key().to_string();
        // 52 characters carry 260 bits: the last four must be zero, so the last character is `0` or `g`.
        let last = if text.ends_with('0') { '1' } else { 'h' };
        let other = format!("{}{last}", &text[..51]);
        assert_eq!(other.parse::<MachineId>(), Err(IdError::Alphabet));
    }

    #[test]
    fn another_length_is_refused_with_the_length() {
        assert_eq!("abc".parse::<MachineId>(), Err(IdError::Length(3)));
    }

    #[test]
    fn bytes_that_are_no_point_are_refused() {
        let mut bytes = [0u8; 32];
        bytes[0] = 2;
        assert_eq!(ClusterId::from_bytes(bytes), Err(IdError::NotAKey));
    }
}
