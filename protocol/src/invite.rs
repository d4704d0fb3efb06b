//! The invite token: all that a newcomer needs to reach its cluster, and a secret that lets it in once.
//!
//! `malai1` followed by lowercase base32hex of CBOR and the first four bytes of its BLAKE3 hash, so that a token
//! that was copied in part is known from one that is used up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use zeroize::Zeroize;

use crate::config::Relay;
use crate::id::{ClusterId, base32, from_base32};

const TOKEN_PREFIX: &str = "malai1";
const CHECKSUM_BYTES: usize = 4;
/// Bounds a token, in characters: sixteen pinned relays with a key each, and a few certificates.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Holds what a token carries.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The cluster's key: where to redeem, and what snapshots must be signed by.
    pub cluster: ClusterId,
    /// The cluster's name, proposed as the alias.
    pub name: String,
    /// The secret that is redeemed. Zeroes are none, and are not written: the token names a cluster to the host of a
    /// relay, and lets no machine in.
    #[serde(default = "no_secret", skip_serializing_if = "is_no_secret")]
    pub secret: ByteArray<32>,
    /// When it expires, milliseconds since the epoch by the manager's clock.
    pub expires_ms: u64,
    /// Addresses of the manager's join endpoint, `IP:PORT`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// URLs of those of `[network] relays` of which there is no more to know; absent = iroh's public relays. See
    /// [`Invite::relays()`].
    #[serde(default)]
    pub relays: Option<Vec<String>>,
    /// The others of `[network] relays`: with a pinned certificate, or a key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<Relay>,
    /// `[network] discovery`; absent = the default.
    #[serde(default)]
    pub discovery: Option<Vec<String>>,
    /// `[network] ca`: roots for the relays and servers above, PEM; absent = the web's.
    #[serde(default)]
    pub ca: Option<String>,
    /// A secret that lets the newcomer through the pinned relays until the invite expires, and is shown to no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Says why a text is not an invite token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as a token does.
    #[error("not an invite token: one begins with `malai1`")]
    NotAToken,
    /// Characters are missing or changed.
    #[error("the token is damaged: characters are missing or changed")]
    Damaged,
    /// It is longer than any token.
    #[error("too long for an invite token")]
    TooLong,
}

fn no_secret() -> ByteArray<32> {
    ByteArray::new([0; 32])
}

fn is_no_secret(secret: &ByteArray<32>) -> bool {
    *secret == no_secret()
}

impl Drop for Invite {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.ticket.zeroize();
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invite {{ cluster: {:?}, name: {:?}, secret: …, ticket: … }}", self.cluster, self.name)
    }
}

impl Invite {
    /// Makes the invite for the host of a relay: it names the cluster, holds no secret, and lets no machine in.
    pub fn for_relay(cluster: ClusterId, name: String) -> Self {
        Self {
            cluster,
            name,
            secret: no_secret(),
            expires_ms: 0,
            addresses: Vec::new(),
            relays: None,
            pinned: Vec::new(),
            discovery: None,
            ca: None,
            ticket: None,
        }
    }

    /// Tells whether it lets a machine in: one for the host of a relay does not.
    pub fn lets_in(&self) -> bool {
        !is_no_secret(&self.secret)
    }

    /// Returns `[network] relays`; absent = iroh's public ones.
    pub fn relays(&self) -> Option<Vec<Relay>> {
        Relay::unite(self.relays.as_deref(), &self.pinned)
    }

    /// Writes the token, one word.
    pub fn to_token(&self) -> String {
        let mut bytes = Vec::new();
        // Writing to a vector cannot fail; a token of nothing would be refused as damaged.
        if ciborium::into_writer(self, &mut bytes).is_err() {
            bytes.clear();
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes().iter().take(CHECKSUM_BYTES));
        let text = format!("{TOKEN_PREFIX}{}", base32(&bytes));
        bytes.zeroize();
        text
    }
}

impl FromStr for Invite {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let body = text.strip_prefix(TOKEN_PREFIX).ok_or(TokenError::NotAToken)?;
        let bytes = from_base32(&body.to_ascii_lowercase()).ok_or(TokenError::Damaged)?;
        let (payload, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
        if !blake3::hash(payload).as_bytes().starts_with(checksum) {
            return Err(TokenError::Damaged);
        }
        let mut rest = payload;
        let invite = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16).map_err(|_| TokenError::Damaged)?;
        if rest.is_empty() { Ok(invite) } else { Err(TokenError::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key();
        Invite {
            cluster: ClusterId::from_bytes(key.to_bytes()).expect("a key"),
            name: "company".into(),
            secret: ByteArray::new([0xab; 32]),
            expires_ms: 1,
            addresses: vec!["192.0.2.1:4001".into()],
            relays: Some(Vec::new()),
            discovery: None,
            ca: None,
            pinned: Vec::new(),
            ticket: None,
        }
    }

    #[test]
    fn a_token_round_trips() {
        assert_eq!(invite().to_token().parse(), Ok(invite()));
    }

    #[test]
    fn a_token_carries_the_pins_of_the_relays_and_an_older_reader_sees_the_others() {
        #[derive(Deserialize)]
        struct Older {
            relays: Option<Vec<String>>,
        }
        let pinned = Relay { url: "https://192.0.2.5:7443".into(), sha256: Some([0xcd; 32]), id: None };
        let mut told = invite();
        (told.relays, told.pinned) = Relay::split(Some(&[pinned.clone(), Relay::at("https://a.example.com")]));
        told.ticket = Some("a ticket".into());
        let token = told.to_token();
        let read: Invite = token.parse().expect("a token");
        assert_eq!(read, told);
        assert_eq!(read.relays(), Some(vec![Relay::at("https://a.example.com"), pinned]));
        let bytes = from_base32(&token[TOKEN_PREFIX.len()..]).expect("it");
        let older: Older = ciborium::from_reader(&bytes[..bytes.len() - CHECKSUM_BYTES]).expect("readable");
        assert_eq!(older.relays, Some(vec!["https://a.example.com".to_owned()]));
    }

    #[test]
    fn a_token_for_a_relay_names_the_cluster_and_has_no_secret() {
        let token = Invite::for_relay(invite().cluster, "company".into()).to_token();
        let read: Invite = token.parse().expect("a token");
        assert_eq!((read.cluster, read.name.as_str(), read.lets_in()), (invite().cluster, "company", false));
        assert!(invite().lets_in());
        let bytes = from_base32(&token[TOKEN_PREFIX.len()..]).expect("it");
        assert!(!bytes.windows(6).any(|word| word == b"secret"), "a place for a secret is in the token");
    }

    #[test]
    fn a_token_cut_short_or_changed_is_damaged() {
        let token = invite().to_token();
        assert_eq!(token[..token.len() - 1].parse::<Invite>(), Err(TokenError::Damaged));
        let last = if token.ends_with('0') { "1" } else { "0" };
        let changed = format!("{}{last}", &token[..token.len() - 1]);
        assert_eq!(changed.parse::<Invite>(), Err(TokenError::Damaged));
        assert_eq!("hello".parse::<Invite>(), Err(TokenError::NotAToken));
    }

    #[test]
    fn an_invite_does_not_show_its_secret() {
        let mut invite = invite();
        invite.ticket = Some("malaiticket1".into());
        let shown = format!("{invite:?}");
        assert!(!shown.contains("171") && !shown.contains("malaiticket1"), "{shown}");
    }
}
