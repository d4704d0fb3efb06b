//! Which program runs, and which would: an upgrade puts another one under the same path.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use malai_protocol::plan::Program;

use super::platform;

/// Returns the program of this process, also when its file was replaced since.
pub(crate) fn own() -> Option<Program> {
    at(&platform::own_program()?)
}

/// Returns the program that is under this path now.
pub(crate) fn at(path: &Path) -> Option<Program> {
    let of = |meta: Metadata| Program {
        device: meta.dev(),
        inode: meta.ino(),
        changed_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
    };
    match std::fs::metadata(path) {
        Ok(meta) => Some(of(meta)),
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "which program this is cannot be told");
            None
        }
    }
}
