//! Looks at the files of the home: modes, settings, keys, snapshots, and the room on the disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::local::{Finding, Level, Role};

use crate::store;
use crate::store::audit;
use crate::store::owners::Trusted;
use crate::store::settings::Settings;
use crate::store::socket::SOCKET_PATH_MAX_BYTES;

/// Names the area of findings about files.
const FILES_AREA: &str = "files";
/// Bounds the free room of a disk that counts as full: with less, malai may not be able to write what it has to.
const FULL_DISK_MAX_FREE_BYTES: u64 = 1024 * 1024;
/// Bounds the list of mounts that is read.
const MAX_MOUNTS_BYTES: usize = 1024 * 1024;

/// Looks at modes, settings, keys and snapshots.
pub(super) fn look(home: &Home) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Err(error) = std::fs::metadata(home.root()) {
        let text = format!("{} cannot be used: {error}", home.root().display());
        return vec![Finding::broken(FILES_AREA, text, "malai cluster init NAME, or malai machine join TOKEN")];
    }
    found.extend(room(home));
    found.extend(socket_path(home));
    match Trusted::own().check(home) {
        Ok(()) => found.extend(closed(home.root(), 0, 0o055, "700")),
        Err(failure) => found.push(broken(failure, "see `ls -ld`, and correct owner and mode of the directory")),
    }
    found.extend(closed(&home.audit(), 0o077, 0, "600"));
    found.extend(closed(&home.socket(), 0o177, 0, "600"));
    found.extend(closed(&home.executor_socket(), 0o177, 0, "600"));
    found.extend(Settings::load(home).err().map(|failure| broken(failure, "edit malai.toml as it says")));
    match store::clusters::list(home) {
        Ok(clusters) if clusters.is_empty() => {
            let text = "no cluster was made or joined here";
            found.push(Finding::note(FILES_AREA, text).mend("malai cluster init NAME, or malai machine join TOKEN"));
        }
        Ok(clusters) => found.extend(clusters.iter().map(|one| cluster(home, &one.alias).of(&one.alias))),
        Err(failure) => found.push(broken(failure, "ls -la the directory, and mend its modes")),
    }
    if !found.iter().any(|finding| finding.cluster.is_none() && finding.level != Level::Ok) {
        let text = format!("{} and its sockets are closed to others", home.root().display());
        found.insert(0, Finding::ok(FILES_AREA, text));
    }
    found
}

/// Says whether a file system is full, and what that means for commands.
fn room(home: &Home) -> Option<Finding> {
    let path = home.root();
    let left = store::room(path)?;
    let shown = path.display();
    if left.bytes < FULL_DISK_MAX_FREE_BYTES {
        let disk = disk(path).map_or_else(String::new, |disk| format!(" ({disk})"));
        let reserve = match audit::reserved_commands(home) {
            Some(number) => {
                format!("the reserve of the audit is enough for about {number} commands; then they are refused")
            }
            None => "commands are refused as soon as the audit has no room".to_owned(),
        };
        let text = format!(
            "the file system of {shown}{disk} is full ({} KiB left): {reserve}; a new config may not fit",
            left.bytes / 1024
        );
        return Some(Finding::broken(FILES_AREA, text, format!("df -h {shown}, and make room")));
    }
    left.files.is_some_and(|files| files == 0).then(|| {
        let text = format!("the file system of {shown} is full: it can hold no more files");
        Finding::broken(FILES_AREA, text, format!("df -i {shown}, and remove some"))
    })
}

/// Names the device or file system that has this path, and where it is mounted.
fn disk(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = store::read_text(Path::new("/proc/self/mountinfo"), MAX_MOUNTS_BYTES).ok()??;
    // A line has the mount's number, its parent's, the device's, the root and the place; after a dash the type and the
    // source.
    let mounts = mounts.lines().filter_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        Some((place.split(' ').nth(4)?, source.split(' ').nth(1)?))
    });
    // Of two mounts on one place the later one hides the earlier.
    let found = mounts.filter(|(place, _)| path.starts_with(place)).max_by_key(|(place, _)| place.len());
    found.map(|(place, source)| format!("{source} on {place}"))
}

fn socket_path(home: &Home) -> Option<Finding> {
    let (longest, length) = [home.socket(), home.executor_socket()]
        .into_iter()
        .map(|path| (path.display().to_string(), path.as_os_str().len()))
        .max_by_key(|(_, length)| *length)?;
    (length > SOCKET_PATH_MAX_BYTES).then(|| {
        let text =
            format!("{longest} has {length} bytes, and a Unix socket's path has at most {SOCKET_PATH_MAX_BYTES}");
        Finding::broken(FILES_AREA, text, "set MALAI_HOME to a shorter path")
    })
}

/// Says whether others may use a file in one of these ways. A file that is missing is closed to all.
fn closed(path: &Path, broken: u32, noted: u32, chmod: &str) -> Option<Finding> {
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    let text = format!("{} is open to other users (mode {mode:04o})", path.display());
    let mend = format!("chmod {chmod} {}", path.display());
    if mode & broken != 0 {
        return Some(Finding::broken(FILES_AREA, text, mend));
    }
    (mode & noted != 0).then(|| Finding::note(FILES_AREA, text).mend(mend))
}

fn cluster(home: &Home, alias: &str) -> Finding {
    match store::clusters::load(home, alias) {
        Ok(stored) if stored.snapshot.is_some() && stored.filed != stored.snapshot.as_ref().map(|s| *s.header()) => {
            let place = store::clusters::place(&stored.dir);
            let text = format!(
                "the newest config is only in {}: it did not fit into {}",
                place.reserve.display(),
                place.file.display()
            );
            Finding::broken(
                FILES_AREA,
                text,
                format!("make room (df -h {}); a running daemon then stores it", stored.dir.root().display()),
            )
        }
        Ok(stored) => {
            let keys = if stored.role() == Role::Manager { "cluster key and machine key" } else { "machine key" };
            let config = match &stored.snapshot {
                Some(snapshot) => {
                    format!("the config of generation {} is signed correctly", snapshot.header().generation)
                }
                None => "there is no config yet".to_owned(),
            };
            Finding::ok(FILES_AREA, format!("{keys} closed to others; {config}"))
        }
        Err(failure) => broken(failure, "restore the file from a backup, or leave the cluster and join again"),
    }
}

fn broken(failure: Failure, mend: &str) -> Finding {
    let mend = failure.hint.unwrap_or_else(|| mend.to_owned());
    Finding::broken(FILES_AREA, failure.message, mend)
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::new(dir.path());
        store::prepare(&home).expect("a home");
        set_permissions(home.root(), Permissions::from_mode(0o700)).expect("chmod");
        (dir, home)
    }

    #[test]
    fn a_home_that_others_may_write_to_is_broken_and_one_that_they_may_read_is_told() {
        let (_dir, home) = home();
        let shown = home.root().display();
        for (mode, told) in [
            (0o700, None),
            (0o750, Some((Level::Note, "700"))),
            (0o702, Some((Level::Broken, "o-w"))),
            (0o720, Some((Level::Broken, "g-w"))),
        ] {
            set_permissions(home.root(), Permissions::from_mode(mode)).expect("chmod");
            let found = look(&home);
            let about = found.iter().find(|finding| finding.what.contains("other") && finding.level != Level::Ok);
            let wanted = told.map(|(level, change)| (level, Some(format!("chmod {change} {shown}"))));
            assert_eq!(about.map(|finding| (finding.level, finding.mend.clone())), wanted, "{mode:o}: {found:?}");
        }
    }

    #[test]
    fn settings_that_cannot_be_read_are_broken() {
        let (_dir, home) = home();
        std::fs::write(home.settings(), "lisen = 1\n").expect("written");
        let found = look(&home);
        assert!(
            found.iter().any(|f| f.level == Level::Broken && f.what.contains("unknown field `lisen`")),
            "{found:?}"
        );
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_broken() {
        let (_dir, home) = home();
        let long = Home::new(home.root().join("x".repeat(100)));
        store::prepare(&long).expect("a home");
        let found = look(&long);
        assert!(found.iter().any(|f| f.mend.as_deref() == Some("set MALAI_HOME to a shorter path")), "{found:?}");
    }
}
