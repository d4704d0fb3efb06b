//! One signed, numbered version of a cluster's config: header, signature, text.
//!
//! The cluster key signs the header's exact bytes with ed25519 (RFC 8032); the header binds the text by its BLAKE3
//! hash. Nothing in the acceptance rule reads a clock.

use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use crate::id::ClusterId;

/// Bounds the config text, in bytes.
pub const MAX_TEXT: usize = 4 * 1024 * 1024;
/// Begins what is signed, so that a signature means a malai snapshot and nothing else.
pub const DOMAIN: &[u8; 24] = b"malai cluster snapshot 1";
/// Bytes of an encoded header: domain, cluster id, generation, issued-at, length, hash.
pub const HEADER_LEN: usize = 24 + 32 + 8 + 8 + 8 + 32;

/// Holds what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The cluster whose config this is.
    pub cluster: ClusterId,
    /// Its number; only ever grows.
    pub generation: u64,
    /// When it was signed, milliseconds since the epoch by the signer's clock; for people, not for any rule.
    pub issued_ms: u64,
    /// Bytes of the text.
    pub length: u64,
    /// BLAKE3 of the text.
    pub hash: [u8; 32],
}

/// Says why a snapshot is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The header has another length or domain string.
    #[error("not a malai snapshot")]
    Malformed,
    /// It belongs to another cluster.
    #[error("a snapshot of another cluster, {0}")]
    OtherCluster(ClusterId),
    /// The cluster key did not sign this header.
    #[error("the signature is not from the cluster key")]
    Signature,
    /// The text is not the one that was signed.
    #[error("the text differs from the signed one")]
    Text,
    /// The text is over [`MAX_TEXT`] or not UTF-8.
    #[error("the text is too large or not UTF-8")]
    Unreadable,
}

impl Header {
    /// Returns the exact bytes that are signed: integers little endian, in the order of the fields after [`DOMAIN`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = [self.generation, self.issued_ms, self.length].map(u64::to_le_bytes);
        [DOMAIN.as_slice(), self.cluster.as_bytes(), numbers.as_flattened(), &self.hash].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(DOMAIN.as_slice())?;
        let (cluster, rest) = rest.split_first_chunk::<32>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let (issued, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            cluster: ClusterId::from_bytes(*cluster).ok()?,
            generation: u64::from_le_bytes(*generation),
            issued_ms: u64::from_le_bytes(*issued),
            length: u64::from_le_bytes(*length),
            hash: rest.try_into().ok()?,
        })
    }
}

/// Holds a header with its signature, as it travels: not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHeader {
    header: ByteArray<HEADER_LEN>,
    signature: ByteArray<64>,
}

impl SignedHeader {
    /// Checks that the key of `cluster` signed this header.
    ///
    /// # Errors
    /// [`SnapshotError`]: malformed, another cluster's, or not signed by it.
    pub fn verify(&self, cluster: &ClusterId) -> Result<Header, SnapshotError> {
        let header = Header::from_bytes(self.header.as_slice()).ok_or(SnapshotError::Malformed)?;
        if header.cluster != *cluster {
            return Err(SnapshotError::OtherCluster(header.cluster));
        }
        if cluster.has_signed(self.header.as_slice(), &self.signature) {
            Ok(header)
        } else {
            Err(SnapshotError::Signature)
        }
    }
}

/// Holds a whole snapshot as it travels and as it is stored: not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The signed header.
    pub signed: SignedHeader,
    /// The TOML text.
    pub text: ByteBuf,
}

/// Holds a snapshot whose signature and text were verified. There is no other way to make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    header: Header,
    signed: SignedHeader,
    text: String,
}

impl Signed {
    /// Verifies signature, length and hash.
    ///
    /// # Errors
    /// [`SnapshotError`], whichever check fails first.
    pub fn verify(self, cluster: &ClusterId) -> Result<Snapshot, SnapshotError> {
        let header = self.signed.verify(cluster)?;
        if self.text.len() > MAX_TEXT {
            return Err(SnapshotError::Unreadable);
        }
        if self.text.len() as u64 != header.length || *blake3::hash(&self.text).as_bytes() != header.hash {
            return Err(SnapshotError::Text);
        }
        let text = String::from_utf8(self.text.into_vec()).map_err(|_| SnapshotError::Unreadable)?;
        Ok(Snapshot { header, signed: self.signed, text })
    }
}

impl Snapshot {
    /// Signs `text` as this generation.
    ///
    /// # Errors
    /// [`SnapshotError::Unreadable`] when the text is over [`MAX_TEXT`].
    pub fn sign(key: &SigningKey, generation: u64, issued_ms: u64, text: String) -> Result<Self, SnapshotError> {
        if text.len() > MAX_TEXT {
            return Err(SnapshotError::Unreadable);
        }
        let cluster = ClusterId::from_bytes(key.verifying_key().to_bytes()).map_err(|_| SnapshotError::Malformed)?;
        let hash = *blake3::hash(text.as_bytes()).as_bytes();
        let header = Header { cluster, generation, issued_ms, length: text.len() as u64, hash };
        let bytes: [u8; HEADER_LEN] = header.to_bytes().try_into().map_err(|_| SnapshotError::Malformed)?;
        let signature = key.sign(&bytes).to_bytes();
        let signed = SignedHeader { header: ByteArray::new(bytes), signature: ByteArray::new(signature) };
        Ok(Self { header, signed, text })
    }

    /// Returns the verified header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the header with its signature, for a Hello.
    pub fn signed_header(&self) -> &SignedHeader {
        &self.signed
    }

    /// Returns the TOML text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the snapshot as it travels and is stored.
    pub fn to_signed(&self) -> Signed {
        Signed { signed: self.signed.clone(), text: ByteBuf::from(self.text.clone().into_bytes()) }
    }
}

/// Says how a verified header stands to the one that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The same snapshot.
    Same,
    /// A later one: to be fetched and accepted.
    Newer,
    /// An earlier one: the other side is behind.
    Older,
    /// The same number over another text: two were signed with one number. Refused, and an alarm.
    Fork,
}

/// Compares an offered header with the held one. Both must be of the same cluster and verified.
pub fn order(offered: &Header, held: Option<&Header>) -> Order {
    let Some(held) = held else { return Order::Newer };
    match offered.generation.cmp(&held.generation) {
        std::cmp::Ordering::Greater => Order::Newer,
        std::cmp::Ordering::Less => Order::Older,
        std::cmp::Ordering::Equal if offered.hash == held.hash => Order::Same,
        std::cmp::Ordering::Equal => Order::Fork,
    }
}

/// Returns the number of the next snapshot: above every validly signed one seen, and not below the clock.
pub fn next_generation(highest_seen: u64, now_ms: u64) -> u64 {
    highest_seen.saturating_add(1).max(now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn cluster() -> ClusterId {
        ClusterId::from_bytes(key().verifying_key().to_bytes()).expect("a key")
    }

    fn snapshot(generation: u64, text: &str) -> Snapshot {
        Snapshot::sign(&key(), generation, 1, text.into()).expect("signs")
    }

    #[test]
    fn a_signed_snapshot_verifies_as_what_it_was() {
        let made = snapshot(5, "[cluster]");
        assert_eq!(made.to_signed().verify(&cluster()), Ok(made));
    }

    #[test]
    fn a_changed_text_is_refused() {
        let mut signed = snapshot(5, "[cluster]").to_signed();
        signed.text = ByteBuf::from(b"[clustex]".to_vec());
        assert_eq!(signed.verify(&cluster()), Err(SnapshotError::Text));
    }

    #[test]
    fn a_changed_header_is_refused() {
        let mut signed = snapshot(5, "[cluster]").to_signed();
        let mut bytes = *signed.signed.header;
        bytes[24 + 32] ^= 1;
        signed.signed.header = ByteArray::new(bytes);
        assert_eq!(signed.verify(&cluster()), Err(SnapshotError::Signature));
    }

    #[test]
    fn another_clusters_snapshot_is_refused_by_name() {
        let other = SigningKey::from_bytes(&[8; 32]);
        let other = ClusterId::from_bytes(other.verifying_key().to_bytes()).expect("a key");
        let signed = snapshot(5, "[cluster]").to_signed();
        assert_eq!(signed.verify(&other), Err(SnapshotError::OtherCluster(cluster())));
    }

    #[test]
    fn order_tells_newer_older_same_and_fork() {
        let held = snapshot(5, "a");
        let table = [(5, "a", Order::Same), (6, "a", Order::Newer), (4, "b", Order::Older), (5, "b", Order::Fork)];
        for (generation, text, wanted) in table {
            assert_eq!(order(snapshot(generation, text).header(), Some(held.header())), wanted);
        }
        assert_eq!(order(held.header(), None), Order::Newer);
    }

    #[test]
    fn generations_grow_even_when_the_clock_goes_back() {
        assert_eq!(next_generation(1000, 5), 1001);
        assert_eq!(next_generation(1000, 5000), 5000);
    }
}
