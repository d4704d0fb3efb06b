//! Remembers the last known addresses of the other machines: a cache, which may be lost at any time.

use std::collections::BTreeMap;
use std::path::Path;

use malai_protocol::failure::Failure;
use malai_protocol::id::MachineId;
use malai_protocol::peer::MAX_ADDRESSES;
use serde::{Deserialize, Serialize};

/// Bounds the cache, in bytes: room for thousands of machines with all their addresses.
const MAX_PEERS_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Names the cache in messages.
const PEERS_FILE_NAME: &str = "last known addresses";

/// Holds what is remembered, by machine.
pub type Peers = BTreeMap<MachineId, Peer>;

/// Holds what is remembered of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Lists where it was last reached or announced: `IP:PORT` and relay URLs, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<String>,
    /// Is when it last answered, milliseconds since the epoch.
    #[serde(default)]
    pub seen_ms: u64,
}

/// Reads the cache. A broken one is logged and empty: it is only a cache.
pub fn load(path: &Path) -> Peers {
    let mut peers: Peers = super::read_cache(path, MAX_PEERS_FILE_BYTES, PEERS_FILE_NAME);
    peers.values_mut().for_each(|peer| peer.addresses.truncate(MAX_ADDRESSES));
    peers
}

/// Stores the cache.
///
/// # Errors
/// What the disk says.
pub fn save(path: &Path, peers: &Peers) -> Result<(), Failure> {
    super::write_cache(path, peers, PEERS_FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::MachineKey;

    #[test]
    fn addresses_survive_and_a_broken_cache_is_an_empty_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("peers");
        let id = MachineKey::generate().expect("randomness").id();
        let peers = Peers::from([(id, Peer { addresses: vec!["192.0.2.1:4001".into()], seen_ms: 7 })]);
        save(&path, &peers).expect("stored");
        assert_eq!(load(&path), peers);
        std::fs::write(&path, "{").expect("damaged");
        assert_eq!(load(&path), Peers::new());
    }
}
