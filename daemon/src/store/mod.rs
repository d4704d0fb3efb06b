//! Reads and writes the files under `MALAI_HOME`: writes them whole or not at all, reads them with a cap, and reports every
//! error with path, cause and what to do about it.
//!
//! A write goes to a new file in the same directory, which is synced, renamed over the old one, and the directory is
//! synced: after a crash or on a full disk the old content is still there. What a crash leaves behind is a file named
//! `.NAME.….tmp`, which is never read and which the next daemon removes.
//!
//! # Layout
//! [`keys`] has the secret keys, and [`secret`] their place in memory; [`owners`] decides whose files are used; `lead` keeps
//! room beyond the end of a file; [`lines`] reads files of lines; [`lock`] says which process may change what. [`clusters`]
//! has one directory for each cluster; [`snapshot`] stores the signed config, and [`reserve`] has its place on a full disk;
//! `held` is that config as it is read, and `keeper` stores it. [`settings`] reads `malai.toml`; [`peers`] and [`ports`]
//! remember between starts. `socket` binds sockets, again when they are removed, and `greeting` says hello at one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use serde::de::DeserializeOwned;

use owners::Trusted;

use crate::runtime::random::random;

pub mod audit;
pub mod clusters;
pub(crate) mod greeting;
pub(crate) mod held;
pub(crate) mod keeper;
pub mod keys;
pub(crate) mod lead;
pub mod lines;
pub mod lock;
pub mod owners;
pub mod peers;
pub mod ports;
pub mod reserve;
pub mod secret;
pub mod settings;
pub mod snapshot;
pub mod socket;

/// Sets the mode of every file of a home: most are secret, and no other user needs one.
const FILE_MODE: u32 = 0o600;
/// Sets the mode of every directory of a home.
const DIR_MODE: u32 = 0o700;

/// Replaces the content of a file, or makes it, with mode 0600.
///
/// # Errors
/// What the disk says; the old content is then untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    replace(path, bytes, FILE_MODE).map_err(|e| disk_failure("write", path, &e))
}

/// As [`write()`], for a file that people edit: keeps its owner and mode, and writes through a symbolic link.
///
/// # Errors
/// As [`write()`].
pub fn write_edited(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fail = |e: io::Error| disk_failure("write", path, &e);
    let real = Trusted::own().follow(path)?.unwrap_or_else(|| path.to_owned());
    let temp = match fs::metadata(&real) {
        Ok(before) => Temp::like(&real, bytes, &before),
        Err(_) => Temp::with(&real, bytes, FILE_MODE),
    };
    temp.and_then(|temp| temp.take_the_place_of(&real)).map_err(fail)
}

/// Makes a file that must not be there yet, with mode 0600.
///
/// # Errors
/// [`Kind::Conflict`] when it is there, else as [`write()`].
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let made = Temp::with(path, bytes, FILE_MODE).and_then(|temp| {
        // A link fails where a rename would replace, and the name never stands for half a file.
        fs::hard_link(&temp.path, path)?;
        drop(temp);
        sync_parent(path)
    });
    made.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(Kind::Conflict, format!("{} exists, and malai never overwrites it", path.display()))
        }
        _ => disk_failure("create", path, &e),
    })
}

/// Reads the content of a file; `None` when it does not exist.
///
/// # Errors
/// What the disk says, or [`Kind::BadConfig`] when it is over `cap` bytes, or others may change it ([`owners`]).
pub fn read(path: &Path, cap: usize) -> Result<Option<Vec<u8>>, Failure> {
    Trusted::own().open(path)?.map(|file| read_capped(file, path, cap)).transpose()
}

/// As [`read`], for a file that an administrator placed, perhaps by a link.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_given(path: &Path, cap: usize) -> Result<Option<Vec<u8>>, Failure> {
    Trusted::own().open_given(path)?.map(|file| read_capped(file, path, cap)).transpose()
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`], and [`Kind::BadConfig`] when it is not UTF-8.
pub fn read_text(path: &Path, cap: usize) -> Result<Option<String>, Failure> {
    read(path, cap)?.map(|bytes| text(path, bytes)).transpose()
}

/// As [`read_text`], for a file that people edit: it may be a link, and belong to another user.
///
/// # Errors
/// As [`read_text`].
pub(crate) fn read_edited(path: &Path, cap: usize) -> Result<Option<String>, Failure> {
    let Some(file) = Trusted::own().open_edited(path)? else { return Ok(None) };
    text(path, read_capped(file, path, cap)?).map(Some)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes().iter().take(e.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count() + 1;
        Failure::new(Kind::BadConfig, format!("{} is not UTF-8 text: line {line}", path.display()))
    })
}

/// Reads a JSON file that may be lost at any time. A missing one is empty, and so is a broken one, which is logged.
fn read_cache<T: DeserializeOwned + Default>(path: &Path, cap: usize, what: &str) -> T {
    let read = read(path, cap).and_then(|bytes| match bytes {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Failure::new(Kind::BadConfig, format!("{} does not parse: {e}", path.display()))),
        None => Ok(T::default()),
    });
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "the {what} are lost");
        T::default()
    })
}

/// Writes a JSON file for [`read_cache`].
fn write_cache<T: Serialize>(path: &Path, value: &T, what: &str) -> Result<(), Failure> {
    let text = serde_json::to_vec(value)
        .map_err(|e| Failure::new(Kind::Internal, format!("cannot encode the {what}: {e}")))?;
    write(path, &text)
}

fn read_capped(file: File, path: &Path, cap: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(cap as u64 + 1).read_to_end(&mut bytes).map_err(|e| disk_failure("read", path, &e))?;
    if bytes.len() > cap {
        return Err(Failure::new(Kind::BadConfig, format!("{} is larger than {cap} bytes", path.display())));
    }
    Ok(bytes)
}

/// Says how much a file system still takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Counts the bytes that this user may write.
    pub(crate) bytes: u64,
    /// Counts the files that this user may make; absent where there is no such limit.
    pub(crate) files: Option<u64>,
}

/// Returns how much the file system of this path still takes.
pub(crate) fn room(path: &Path) -> Option<Room> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    // Their types differ between systems.
    #[allow(clippy::useless_conversion, reason = "they are smaller on some systems")]
    let [blocks, size, files, all] = [
        u64::from(found.blocks_available()),
        u64::from(found.fragment_size()),
        u64::from(found.files_available()),
        u64::from(found.files()),
    ];
    Some(Room { bytes: blocks.saturating_mul(size), files: (all > 0).then_some(files) })
}

/// Makes the home if it is not there, with mode 0700, and refuses one that other users may change.
///
/// # Errors
/// What the disk says, or [`Kind::BadConfig`] with the command that mends it.
pub fn prepare(home: &Home) -> Result<(), Failure> {
    // Nothing is made in a place that is refused.
    Trusted::own().check(home)?;
    make_dir(home.root())?;
    // Checked here: what is made in it first would fail with a less clear message.
    access(home.root(), AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|e| disk_failure("write into", home.root(), &e.into()))?;
    make_dir(&home.clusters())?;
    // Where every user may make a directory, another one may have been faster.
    Trusted::own().check(home)
}

/// Makes a directory and those above it, with mode 0700. One that is there is left as it is.
///
/// # Errors
/// What the disk says.
pub fn make_dir(path: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(path);
    made.map_err(|e| disk_failure("make the directory", path, &e))
}

/// Removes what a crash left behind in a home, in `clusters/` and in each cluster. Only for the process that holds its lock.
fn sweep_home(home: &Home) {
    sweep(home.root());
    sweep(&home.clusters());
    for cluster in fs::read_dir(home.clusters()).into_iter().flatten().flatten() {
        sweep(&cluster.path());
    }
}

/// Removes what a crash left behind in this directory. Only for the one process that writes there.
pub(crate) fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMP_SUFFIX) {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let gone = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            if let Err(error) = gone {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove a leftover of a crash");
            }
        }
    }
}

/// Ends the name of what a crash leaves behind.
const TEMP_SUFFIX: &str = ".tmp";

/// Returns a name beside `path` that no other process uses and [`sweep`] knows.
pub(crate) fn temp_name(path: &Path) -> io::Result<PathBuf> {
    let random = random::<8>().map_err(io::Error::other)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{:016x}{TEMP_SUFFIX}", u64::from_le_bytes(random))))
}

/// Is a synced file under a name of its own, removed on drop unless it was renamed.
#[derive(Debug)]
struct Temp {
    path: PathBuf,
    renamed: bool,
}

impl Temp {
    fn with(target: &Path, bytes: &[u8], mode: u32) -> io::Result<Self> {
        let (temp, file) = Self::empty(target)?;
        temp.fill(file, bytes, mode)
    }

    /// Gives the file the owner and the mode of the one that it is to replace.
    fn like(target: &Path, bytes: &[u8], before: &fs::Metadata) -> io::Result<Self> {
        let (temp, file) = Self::empty(target)?;
        let mut mode = before.mode() & 0o777;
        let made = file.metadata()?;
        let same = |left: u32, right: u32| (left != right).then_some(right);
        let (owner, group) = (same(made.uid(), before.uid()), same(made.gid(), before.gid()));
        // Only root gives files away; others can hand them to their own groups.
        if (owner, group) != (None, None) && fchown(&file, owner, group).is_err() && fchown(&file, None, group).is_err()
        {
            tracing::warn!(path = %target.display(), "the file gets another owner, and its group no right to it");
            mode &= !0o070;
        }
        temp.fill(file, bytes, mode)
    }

    fn empty(target: &Path) -> io::Result<(Self, File)> {
        let path = temp_name(target)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        Ok((Self { path, renamed: false }, file))
    }

    fn fill(self, mut file: File, bytes: &[u8], mode: u32) -> io::Result<Self> {
        // The umask may have taken bits that an edited file had.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(self)
    }

    fn take_the_place_of(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.renamed = true;
        sync_parent(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary file");
        }
    }
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Temp::with(path, bytes, mode)?.take_the_place_of(path)
}

/// Makes a rename, a link or a removal in the directory of `path` survive a power cut.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Returns the failure for what the disk said: path, cause, and what to do.
pub fn disk_failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind::{
        IsADirectory, NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let shown = path.display();
    let failure = Failure::new(Kind::Internal, format!("cannot {doing} {shown}: {error}"));
    match error.kind() {
        StorageFull | QuotaExceeded => failure.hint(format!(
            "make room (`df -h {}` shows how much there is) and repeat; what was stored before is untouched",
            path.parent().unwrap_or(path).display()
        )),
        ReadOnlyFilesystem => failure.hint(format!(
            "the file system is mounted read-only (`findmnt -T {}` shows it): remount it, or set MALAI_HOME to another \
             directory",
            path.ancestors().find(|there| there.exists()).unwrap_or(path).display()
        )),
        PermissionDenied => failure.hint(denied(path)),
        IsADirectory => {
            failure.hint(format!("a file was expected there: look at it (`ls -la {shown}`), and move it away"))
        }
        NotADirectory => failure.hint(format!("something in {shown} is a file where a directory was expected")),
        _ => failure,
    }
}

/// Says what to do about a path that this user may not use: of the user's own files only the mode is wrong.
fn denied(path: &Path) -> String {
    let me = nix::unistd::geteuid().as_raw();
    let found = path.ancestors().find_map(|there| Some((there, fs::metadata(there).ok()?)));
    let lacks = |meta: &fs::Metadata| {
        let needed = if meta.is_dir() { 0o700 } else { 0o600 };
        meta.mode() & needed != needed
    };
    match found {
        Some((there, meta)) if meta.uid() == me && lacks(&meta) => format!("chmod u+rwX {}", there.display()),
        _ => format!("see whose it is (`ls -ld {}`), and run malai as that user", path.display()),
    }
}

#[cfg(test)]
mod tests;
