//! The peers in other languages (`e2e/peers`), and where a host has them.

use std::path::{Path, PathBuf};

use super::Cmd;

/// Names the command that installs their packages.
const PEERS_INSTALLER: &str = "scripts/peers";

/// A language in which there is a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Python.
    Python,
    /// JavaScript, run by Node.
    JavaScript,
}

/// Returns where the packages and sources of the peers are; `None` where they are not installed.
pub(crate) fn installed() -> Option<(PathBuf, PathBuf)> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = match std::env::var_os("MALAI_PEERS") {
        Some(path) if path.is_empty() => return None,
        Some(path) => PathBuf::from(path),
        None => package.join("../target/peers"),
    };
    let parts = ["python/requirements.txt", "node_modules/package-lock.json", "src"];
    parts.iter().all(|part| packages.join(part).exists()).then(|| (packages, package.join("peers")))
}

/// Returns why the peers cannot run here, with the command that mends it; `None` when they can.
#[must_use]
pub fn missing() -> Option<String> {
    installed().is_none().then(|| format!("the peers' packages are not installed: run {PEERS_INSTALLER}"))
}

/// Returns the command that runs a peer on a host; it keeps its key and its config there in `/root/peer`.
#[must_use]
pub fn command(language: Language) -> Cmd {
    let home = "/root/peer";
    match language {
        Language::Python => {
            let python = "/usr/local/bin/peers/python/bin/python";
            // Without `-B` it would write below the sources.
            Cmd::new([python, "-B", "/usr/local/bin/peers/src/python/peer.py", home])
        }
        Language::JavaScript => Cmd::new(["/usr/bin/node", "/usr/local/bin/peers/src/node/peer.js", home]),
    }
}
