//! Removes what a killed earlier run left: directories and control groups. Namespaces and interfaces are never left,
//! because nothing but processes holds them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use super::group;

/// Every directory and control group of a lab begins with this, then the id of the process that made it.
pub(crate) const PREFIX: &str = "malai-lab-";

/// Cleans up after runs that are dead, once in this process.
pub(crate) fn clean_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(groups) = group::mount_point() {
            for path in left_in(&groups) {
                group::remove_tree(&path);
            }
        }
        for path in left_in(&std::env::temp_dir()) {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove what an earlier lab left");
            }
        }
    });
}

fn left_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| owner(&entry.file_name().to_string_lossy()).is_some_and(is_gone))
        .map(|entry| entry.path())
        .collect()
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_gone(process: u32) -> bool {
    !Path::new(&format!("/proc/{process}")).exists()
}
