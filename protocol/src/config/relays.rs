//! `[network] relays`: URLs, or tables that say by what certificate a relay is known.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use super::names::shown;
use super::walk::{Scope, Section, Walk, at_key};
use super::{keys, values};
use crate::id::MachineId;

/// Bounds the relays of one cluster: an endpoint measures the way to each of them again and again.
pub const MAX_RELAYS: usize = 16;
const RELAY_FORM: &str = "{ url = \"https://203.0.113.5:7443\", sha256 = \"…\" }";

/// Describes one relay of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Where it is, `https://` and a host; `http://` for one without TLS.
    pub url: String,
    /// SHA-256 (FIPS 180-4) of the DER of its certificate, which is then the only one that its host is known by; absent =
    /// any that `ca` or the web's roots vouch for.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pin")]
    pub sha256: Option<[u8; 32]>,
    /// The relay's own key, where the relay is malai's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<MachineId>,
}

impl Relay {
    /// Makes a relay of which only the URL is known.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), sha256: None, id: None }
    }

    /// Tells whether newcomers show it the ticket of their invite: it is known by its certificate, or is malai's and
    /// known by one that `ca` or the web's roots vouch for.
    pub fn takes_tickets(&self) -> bool {
        self.sha256.is_some() || (self.id.is_some() && self.url.to_ascii_lowercase().starts_with("https://"))
    }

    /// Tells whether there is nothing but the URL.
    fn is_plain(&self) -> bool {
        self.sha256.is_none() && self.id.is_none()
    }

    /// Parts relays into plain URLs and the others, for versions that know URLs only.
    pub fn split(relays: Option<&[Self]>) -> (Option<Vec<String>>, Vec<Self>) {
        let Some(relays) = relays else { return (None, Vec::new()) };
        let (plain, pinned): (Vec<_>, Vec<_>) = relays.iter().cloned().partition(Self::is_plain);
        (Some(plain.into_iter().map(|relay| relay.url).collect()), pinned)
    }

    /// Reverses [`Relay::split`]; those with more than a URL come last.
    pub fn unite(plain: Option<&[String]>, pinned: &[Self]) -> Option<Vec<Self>> {
        let relays = plain?.iter().map(Self::at).chain(pinned.iter().cloned());
        Some(relays.take(MAX_RELAYS).collect())
    }

    /// Returns host and port in one form: what two spellings of the same URL have in common.
    fn place(&self) -> String {
        let url = self.url.to_ascii_lowercase();
        let url = url.trim_end_matches('/');
        url.strip_prefix("https://").map_or(url, |rest| rest.strip_suffix(":443").unwrap_or(rest)).to_owned()
    }

    /// Returns the host alone, in one form. A certificate is known by it.
    fn host(&self) -> String {
        let place = self.place();
        let place = place.strip_prefix("http://").unwrap_or(&place);
        let place = place.split('/').next().unwrap_or_default();
        let host = place.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        host.map_or(place, |(host, _)| host).to_owned()
    }
}

/// Writes a pin: in hexadecimal where people may look, else as bytes.
mod pin {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use serde_bytes::ByteArray;

    pub(super) fn serialize<S: Serializer>(pin: &Option<[u8; 32]>, to: S) -> Result<S::Ok, S::Error> {
        match pin {
            Some(pin) if to.is_human_readable() => data_encoding::HEXLOWER.encode(pin).serialize(to),
            pin => pin.map(ByteArray::new).serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[u8; 32]>, D::Error> {
        if !from.is_human_readable() {
            return Ok(Option::<ByteArray<32>>::deserialize(from)?.map(ByteArray::into_array));
        }
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::values::sha256(&text).map_err(D::Error::custom)).transpose()
    }
}

/// Reads the relays under `relays`; those that are not understood are left out.
pub(super) fn read<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Vec<Relay>> {
    let key = "relays";
    let value = section.table.get(key)?;
    let DeValue::Array(items) = value.get_ref() else {
        // It says what is wrong with it.
        walk.strings(section, key);
        return None;
    };
    let (mut relays, mut places) = (Vec::new(), BTreeSet::new());
    for item in items.iter() {
        let at = item.span().start;
        let relay = match item.get_ref() {
            DeValue::String(text) => url(walk, section, key, at, text).map(Relay::at),
            DeValue::Table(table) => {
                let path = "network.relays".to_owned();
                table_of(walk, &Section { path, scope: Scope::Network, at, table })
            }
            _ => {
                let hint = format!("write a URL in quotes, or {RELAY_FORM}");
                walk.wrong(section, key, at, "`relays` must have URLs or tables only".into(), Some(hint));
                None
            }
        };
        let Some(relay) = relay else { continue };
        if !places.insert(relay.place()) {
            let message = format!("the relay `{}` appears twice", shown(&relay.url));
            walk.wrong(section, key, at, message, None);
        } else if relays.len() >= MAX_RELAYS {
            walk.wrong(section, key, at, format!("`relays` has more than {MAX_RELAYS} relays"), None);
            break;
        } else {
            relays.push((at, relay));
        }
    }
    neighbours(walk, section, &relays);
    Some(relays.into_iter().map(|(_, relay)| relay).collect())
}

fn url<'w>(walk: &mut Walk<'w>, section: &Section<'w>, key: &str, at: usize, text: &str) -> Option<String> {
    let wrong = |why| walk.wrong(section, key, at, format!("`{}` in `{key}` {why}", shown(text)), None);
    values::url(text).map(|()| text.to_owned()).map_err(wrong).ok()
}

/// Reads a relay that is a table. With anything in it that is not understood it is left out: that may say what not to
/// trust.
fn table_of<'w>(walk: &mut Walk<'w>, section: &Section<'w>) -> Option<Relay> {
    walk.known(section, keys::RELAY);
    if !section.table.contains_key("url") {
        let hint = format!("write it as {RELAY_FORM}");
        walk.wrong(section, "url", section.at, "a relay in `relays` has no `url`".into(), Some(hint));
    }
    let url = walk.string(section, "url").and_then(|(at, text)| url(walk, section, "url", at, text));
    let sha256 = walk.string(section, "sha256").map(|(at, text)| {
        let hint = "`malai relay status` on the relay's host shows it".to_owned();
        let wrong = |why| walk.wrong(section, "sha256", at, format!("`sha256` {why}"), Some(hint));
        values::sha256(text).map_err(wrong).ok()
    });
    let id = walk.string(section, "id52").map(|(at, text)| {
        text.parse().map_err(|e| walk.wrong(section, "id52", at, format!("`id52` of a relay: {e}"), None)).ok()
    });
    let understood = section.table.keys().all(|key| keys::RELAY.contains(&key.get_ref().as_ref()));
    let present = |key| section.table.contains_key(key);
    let relay = Relay { url: url?, sha256: sha256.flatten(), id: id.flatten() };
    if !understood || present("sha256") != relay.sha256.is_some() || present("id52") != relay.id.is_some() {
        return None;
    }
    if relay.sha256.is_some() && relay.url.starts_with("http://") {
        let message = format!("`{}` has a `sha256`, but without TLS it shows no certificate", shown(&relay.url));
        let hint = "write https://, or leave `sha256` out".to_owned();
        walk.wrong(section, "url", at_key(section, "url"), message, Some(hint));
        return None;
    }
    Some(relay)
}

/// Checks that every relay of a host has a pin if one has: a pin holds for the host, whatever the port.
fn neighbours<'w>(walk: &mut Walk<'w>, section: &Section<'w>, relays: &[(usize, Relay)]) {
    let pinned: BTreeSet<String> = relays.iter().filter(|(_, r)| r.sha256.is_some()).map(|(_, r)| r.host()).collect();
    for (at, relay) in relays.iter().filter(|(_, r)| r.sha256.is_none() && r.url.starts_with("https://")) {
        if pinned.contains(&relay.host()) {
            let message = format!("`{}` needs a `sha256`, as another relay on its host has one", shown(&relay.url));
            walk.wrong(section, "relays", *at, message, Some("a pin is valid for the whole host".into()));
        }
    }
}
