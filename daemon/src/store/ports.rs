//! Keeps the ports that a cluster's endpoints were bound to at first, so that addresses that others know stay true.

use std::path::Path;

use malai_protocol::failure::Failure;
use serde::{Deserialize, Serialize};

/// Bounds the file, in bytes.
const MAX_PORTS_FILE_BYTES: usize = 4096;
/// Names the file in messages.
const PORTS_FILE_NAME: &str = "kept ports";

/// Holds the kept ports of one cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Is the port of the machine key's endpoint.
    #[serde(default)]
    pub machine: Option<u16>,
    /// Is the port of the cluster key's endpoint, at the manager.
    #[serde(default)]
    pub join: Option<u16>,
}

/// Reads the kept ports. A broken file is logged and means none: others are chosen, and announced.
pub fn load(path: &Path) -> Ports {
    super::read_cache(path, MAX_PORTS_FILE_BYTES, PORTS_FILE_NAME)
}

/// Stores the ports.
///
/// # Errors
/// What the disk says.
pub fn save(path: &Path, ports: &Ports) -> Result<(), Failure> {
    super::write_cache(path, ports, PORTS_FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ports");
        assert_eq!(load(&path), Ports::default());
        let ports = Ports { machine: Some(4001), join: None };
        save(&path, &ports).expect("stored");
        assert_eq!(load(&path), ports);
        std::fs::write(&path, "\0").expect("damaged");
        assert_eq!(load(&path), Ports::default());
    }
}
