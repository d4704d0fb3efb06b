//! The relay ticket: what lets a newcomer through a relay that otherwise admits machines of its clusters only.
//!
//! It travels in an invite, is signed by the cluster key with ed25519 (RFC 8032), and expires with the invite. A newcomer
//! that has it may use the cluster's relays until then, and nothing else: it enrols no machine.
//!
//! `malaiticket1` followed by lowercase base32hex of cluster, expiry, id and signature, always of the same length.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroize;

use crate::id::{ClusterId, base32, from_base32};

const TICKET_PREFIX: &str = "malaiticket1";
/// Begins what is signed, so that a signature means a relay ticket and nothing else.
pub const DOMAIN: &[u8; 20] = b"malai relay ticket 1";
/// Bytes of a ticket: cluster id, expiry, random id, signature.
const TICKET_BYTES: usize = 32 + 8 + 16 + 64;
/// Characters of a ticket: its prefix, and eight for five bytes.
pub const TEXT_LEN: usize = TICKET_PREFIX.len() + TICKET_BYTES / 5 * 8;

/// Holds a ticket: what it says, and the signature, which only [`Ticket::verify`] checks.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    cluster: ClusterId,
    expires_ms: u64,
    id: [u8; 16],
    signature: [u8; 64],
}

/// Says why a text is no ticket, or a ticket is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It has another beginning, length or alphabet.
    #[error("not a relay ticket")]
    Malformed,
    /// It is for the relays of another cluster.
    #[error("a ticket of another cluster")]
    OtherCluster,
    /// The cluster key did not sign it.
    #[error("the signature is not from the cluster key")]
    Signature,
    /// Its time is over.
    #[error("the ticket is expired")]
    Expired,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.id.zeroize();
        self.signature.zeroize();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

impl Ticket {
    /// Signs a ticket of the cluster with this key: until `expires_ms`, milliseconds since the epoch; with a random `id`.
    ///
    /// # Errors
    /// [`TicketError::Malformed`] when the key's public half is no key, which does not happen.
    pub fn sign(key: &SigningKey, expires_ms: u64, id: [u8; 16]) -> Result<Self, TicketError> {
        let cluster = ClusterId::from_bytes(key.verifying_key().to_bytes()).map_err(|_| TicketError::Malformed)?;
        let signature = key.sign(&signed(&cluster, expires_ms, &id)).to_bytes();
        Ok(Self { cluster, expires_ms, id, signature })
    }

    /// Returns the cluster that it names.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Returns from when on it is not valid, milliseconds since the epoch by the signer's clock.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms
    }

    /// Checks that the key of `cluster` signed it and that it is not expired at `now_ms`.
    ///
    /// # Errors
    /// [`TicketError`], whichever check fails first.
    pub fn verify(&self, cluster: &ClusterId, now_ms: u64) -> Result<(), TicketError> {
        if self.cluster != *cluster {
            return Err(TicketError::OtherCluster);
        }
        if !cluster.has_signed(&signed(&self.cluster, self.expires_ms, &self.id), &self.signature) {
            return Err(TicketError::Signature);
        }
        if now_ms >= self.expires_ms { Err(TicketError::Expired) } else { Ok(()) }
    }

    /// Writes the ticket, one word of [`TEXT_LEN`] characters.
    pub fn to_text(&self) -> String {
        let mut bytes = fields(&self.cluster, self.expires_ms, &self.id);
        bytes.extend_from_slice(&self.signature);
        let text = format!("{TICKET_PREFIX}{}", base32(&bytes));
        bytes.zeroize();
        text
    }

    /// Reads a ticket as [`Ticket::to_text`] writes it; any other spelling is refused. Nothing is verified.
    ///
    /// # Errors
    /// [`TicketError::Malformed`].
    pub fn from_text(text: &str) -> Result<Self, TicketError> {
        let body = text.strip_prefix(TICKET_PREFIX).filter(|_| text.len() == TEXT_LEN);
        body.and_then(from_base32).and_then(|bytes| Self::from_bytes(&bytes)).ok_or(TicketError::Malformed)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (cluster, rest) = bytes.split_first_chunk::<32>()?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        Some(Self {
            cluster: ClusterId::from_bytes(*cluster).ok()?,
            expires_ms: u64::from_le_bytes(*expires),
            id: *id,
            signature: rest.try_into().ok()?,
        })
    }
}

impl Serialize for Ticket {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.to_text().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Ticket {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::from_text(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

/// Returns the exact bytes that are signed: the fields after [`DOMAIN`].
fn signed(cluster: &ClusterId, expires_ms: u64, id: &[u8; 16]) -> Vec<u8> {
    [DOMAIN.as_slice(), &fields(cluster, expires_ms, id)].concat()
}

/// Returns cluster, expiry as a little-endian integer, and id.
fn fields(cluster: &ClusterId, expires_ms: u64, id: &[u8; 16]) -> Vec<u8> {
    [cluster.as_bytes().as_slice(), &expires_ms.to_le_bytes(), id].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn cluster(seed: u8) -> ClusterId {
        ClusterId::from_bytes(key(seed).verifying_key().to_bytes()).expect("a key")
    }

    fn ticket() -> Ticket {
        Ticket::sign(&key(9), 5000, [7; 16]).expect("signs")
    }

    #[test]
    fn a_ticket_round_trips_and_is_valid_until_it_expires() {
        let text = ticket().to_text();
        assert_eq!(text.len(), TEXT_LEN);
        let read = Ticket::from_text(&text).expect("a ticket");
        assert_eq!(read, ticket());
        assert_eq!((read.cluster(), read.expires_ms()), (&cluster(9), 5000));
        assert_eq!(read.verify(&cluster(9), 4999), Ok(()));
        assert_eq!(read.verify(&cluster(9), 5000), Err(TicketError::Expired));
    }

    #[test]
    fn another_clusters_ticket_is_refused_by_name() {
        assert_eq!(ticket().verify(&cluster(8), 0), Err(TicketError::OtherCluster));
    }

    #[test]
    fn a_ticket_that_another_key_signed_in_the_clusters_name_is_refused() {
        let mut forged = Ticket::sign(&key(8), 5000, [7; 16]).expect("signs");
        forged.cluster = cluster(9);
        assert_eq!(forged.verify(&cluster(9), 0), Err(TicketError::Signature));
    }

    #[test]
    fn a_signature_over_the_same_fields_without_the_domain_is_refused() {
        let mut other = ticket();
        other.signature = key(9).sign(&fields(&cluster(9), 5000, &[7; 16])).to_bytes();
        assert_eq!(other.verify(&cluster(9), 0), Err(TicketError::Signature));
    }

    #[test]
    fn another_spelling_or_length_is_not_a_ticket() {
        let text = ticket().to_text();
        let upper = text.to_uppercase();
        let body_upper = format!("{TICKET_PREFIX}{}", &upper[TICKET_PREFIX.len()..]);
        let longer = format!("{text}0");
        let wide = format!("{TICKET_PREFIX}{}", "é".repeat((TEXT_LEN - TICKET_PREFIX.len()) / 2));
        for bad in ["", TICKET_PREFIX, &text[1..], &text[..TEXT_LEN - 1], &longer, &upper, &body_upper, &wide, " "] {
            assert_eq!(Ticket::from_text(bad), Err(TicketError::Malformed), "{bad}");
        }
    }

    #[test]
    fn a_ticket_does_not_show_itself() {
        assert_eq!(format!("{:?}", ticket()), "Ticket(…)");
    }

    proptest! {
        #[test]
        fn a_ticket_with_any_byte_changed_is_refused(at in 0..TICKET_BYTES, by in 1..=255u8) {
            let mut bytes = fields(&cluster(9), 5000, &[7; 16]);
            bytes.extend_from_slice(&ticket().signature);
            bytes[at] ^= by;
            let valid = Ticket::from_bytes(&bytes).is_some_and(|ticket| ticket.verify(&cluster(9), 0).is_ok());
            prop_assert!(!valid);
        }

        #[test]
        fn a_ticket_with_any_character_changed_is_refused(at in 0..TEXT_LEN, to in "[ -~]") {
            let text = ticket().to_text();
            prop_assume!(text[at..=at] != to);
            let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
            let valid = Ticket::from_text(&changed).is_ok_and(|ticket| ticket.verify(&cluster(9), 0).is_ok());
            prop_assert!(!valid);
        }
    }
}
