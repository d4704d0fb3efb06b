//! Whose files of a home are used: those of this process's user and of root, in directories that nobody else may change.
//! As sshd's `StrictModes`.
//!
//! Another user who may change a directory can put another file, or a link, in the place of any file below it. So each
//! directory from `/` on is looked at, and each link on the way. A directory of root with the sticky bit (`/tmp`) will do
//! above the home: there only the owner of an entry can replace it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use nix::unistd::{Gid, Group, Uid, User, geteuid};

use super::disk_failure;

/// Sets how many links one path may lead over, as Linux does.
const MAX_LINKS: usize = 40;
/// Holds the modes by which others than the owner change a file.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Lists the users whose files are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    uids: Vec<Uid>,
}

impl Trusted {
    /// Trusts these users, and root: against that one nothing helps.
    pub fn new(uids: impl IntoIterator<Item = Uid>) -> Self {
        let root = std::iter::once(Uid::from_raw(0));
        Self { uids: root.chain(uids).collect() }
    }

    /// Trusts the user of this process, and root.
    pub fn own() -> Self {
        Self::new([geteuid()])
    }

    /// Whether files of this user are used, and its processes believed.
    pub fn has(&self, uid: u32) -> bool {
        self.uids.contains(&Uid::from_raw(uid))
    }

    /// Refuses a home that others may change: the directory, those above it, and those of its own that are there. What a
    /// single cluster has is looked at when that one is loaded.
    ///
    /// # Errors
    /// [`Kind::BadConfig`] with the path, whose it is, and the command that mends it; else what the disk says.
    pub fn check(&self, home: &Home) -> Result<(), Failure> {
        for directory in [home.root(), &home.clusters(), &home.sessions(), home.relay().root()] {
            if self.directory(directory)?.is_none() && directory == home.root() {
                break;
            }
        }
        Ok(())
    }

    /// Refuses a directory that others may change. Returns where it is when all links are followed; `None` when it is not
    /// there.
    ///
    /// # Errors
    /// As [`Trusted::check`].
    pub fn directory(&self, path: &Path) -> Result<Option<PathBuf>, Failure> {
        let Some(real) = self.follow(path)? else { return Ok(None) };
        let meta = looked_at(&real)?;
        if !meta.is_dir() {
            return Err(disk_failure("look into", &real, &io::ErrorKind::NotADirectory.into()));
        }
        self.owned(&real, &meta)?;
        closed(&real, &meta)?;
        Ok(Some(real))
    }

    /// Refuses a socket that another user made.
    ///
    /// # Errors
    /// As [`Trusted::check`]; [`Kind::BadConfig`] when it is no socket.
    pub fn socket(&self, path: &Path) -> Result<(), Failure> {
        let meta = looked_at(path)?;
        if !meta.file_type().is_socket() {
            let message = format!("{} is not a socket", path.display());
            return Err(
                Failure::new(Kind::BadConfig, message).hint(format!("see what it is: ls -l {}", path.display()))
            );
        }
        self.owned(path, &meta)
    }

    /// Opens a file of a home; `None` when there is none. It does not follow a link, and waits for no other end of a pipe.
    ///
    /// # Errors
    /// As [`Trusted::check`]; [`Kind::BadConfig`] when it is no regular file.
    pub(crate) fn open(&self, path: &Path) -> Result<Option<File>, Failure> {
        self.open_with(path, OpenOptions::new().read(true))
    }

    /// As [`Trusted::open`], with these options.
    ///
    /// # Errors
    /// As [`Trusted::open`].
    pub(crate) fn open_with(&self, path: &Path, options: &mut OpenOptions) -> Result<Option<File>, Failure> {
        let Some((file, meta)) = regular(path, options)? else { return Ok(None) };
        self.owned(path, &meta)?;
        closed(path, &meta)?;
        Ok(Some(file))
    }

    /// Opens a file that an administrator placed, where the path leads: links are followed whose directories nobody else
    /// may change.
    ///
    /// # Errors
    /// As [`Trusted::open`].
    pub(crate) fn open_given(&self, path: &Path) -> Result<Option<File>, Failure> {
        self.follow(path)?.map_or(Ok(None), |real| self.open(&real))
    }

    /// As [`Trusted::open_given`], for a file that people edit: it may belong to another user, whom it was given to.
    ///
    /// # Errors
    /// As [`Trusted::open`].
    pub(crate) fn open_edited(&self, path: &Path) -> Result<Option<File>, Failure> {
        let Some(real) = self.follow(path)? else { return Ok(None) };
        Ok(regular(&real, OpenOptions::new().read(true))?.map(|(file, _)| file))
    }

    /// Returns where a path leads; `None` when nothing is there.
    ///
    /// # Errors
    /// As [`Trusted::check`], for what is above that.
    pub(crate) fn follow(&self, path: &Path) -> Result<Option<PathBuf>, Failure> {
        let absolute = std::path::absolute(path).map_err(|e| disk_failure("find", path, &e))?;
        let mut todo = steps(&absolute);
        let mut real = PathBuf::from("/");
        let mut links = 0;
        loop {
            let meta = match real.symlink_metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                looked => looked.map_err(|e| disk_failure("look at", &real, &e))?,
            };
            if meta.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    let message = format!("{} leads over more than {MAX_LINKS} symbolic links", path.display());
                    return Err(Failure::new(Kind::BadConfig, message).hint(format!("ls -l {}", real.display())));
                }
                self.owned(&real, &meta)?;
                let target = std::fs::read_link(&real).map_err(|e| disk_failure("read the link", &real, &e))?;
                real.pop();
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                let mut before = steps(&target);
                before.append(&mut todo);
                todo = before;
            } else if todo.is_empty() {
                return Ok(Some(real));
            } else if meta.is_dir() {
                self.owned(&real, &meta)?;
                if meta.uid() != 0 || meta.mode() & STICKY == 0 {
                    closed(&real, &meta)?;
                }
            } else {
                return Err(disk_failure("look into", &real, &io::ErrorKind::NotADirectory.into()));
            }
            match todo.pop_front() {
                Some(step) if step == ".." => drop(real.pop()),
                Some(step) => real.push(step),
                None => {}
            }
        }
    }

    fn owned(&self, path: &Path, meta: &Metadata) -> Result<(), Failure> {
        if self.has(meta.uid()) {
            return Ok(());
        }
        let shown = path.display();
        let (owner, me) = (Uid::from_raw(meta.uid()), geteuid());
        let message = format!("{shown} belongs to {}, who could put other keys and settings there", named(owner));
        let recursive = if meta.is_dir() { "-R " } else { "" };
        let hint = format!(
            "run malai as that user (sudo -u {} malai …), set MALAI_HOME to a directory of your own, or, if all of it \
             should be yours: chown {recursive}{}: {shown}",
            login(owner),
            login(me)
        );
        Err(Failure::new(Kind::BadConfig, message).hint(hint))
    }
}

/// Opens a regular file.
fn regular(path: &Path, options: &mut OpenOptions) -> Result<Option<(File, Metadata)>, Failure> {
    let strange = |what: &str| {
        let shown = path.display();
        Failure::new(Kind::BadConfig, format!("{shown} is {what}, and malai uses a regular file there only"))
            .hint(format!("put the file itself there; ls -l {shown} shows what it is"))
    };
    // A FIFO would keep an open waiting for its other end.
    let file = match options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) if path.is_symlink() => return Err(strange("a symbolic link")),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Err(strange("a socket or a pipe")),
        Err(e) => return Err(disk_failure("open", path, &e)),
    };
    let meta = file.metadata().map_err(|e| disk_failure("look at", path, &e))?;
    match meta.file_type() {
        kind if kind.is_file() => Ok(Some((file, meta))),
        kind if kind.is_dir() => Err(strange("a directory")),
        kind if kind.is_fifo() => Err(strange("a pipe")),
        _ => Err(strange("a device")),
    }
}

/// Refuses what its group or everybody may change.
fn closed(path: &Path, meta: &Metadata) -> Result<(), Failure> {
    let others = meta.mode() & OTHERS_WRITE;
    if others == 0 {
        return Ok(());
    }
    let shown = path.display();
    let (who, change) = match others {
        0o020 => (group(Gid::from_raw(meta.gid())), "g-w"),
        0o002 => ("everybody".to_owned(), "o-w"),
        _ => ("everybody".to_owned(), "go-w"),
    };
    let message = format!(
        "others can write to {shown} ({who}, mode {:04o}), and so could put other keys and settings there",
        meta.mode() & 0o7777
    );
    Err(Failure::new(Kind::BadConfig, message).hint(format!("chmod {change} {shown}")))
}

fn looked_at(path: &Path) -> Result<Metadata, Failure> {
    path.symlink_metadata().map_err(|e| disk_failure("look at", path, &e))
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let step = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(step).collect()
}

/// Returns a user's name and number, as far as the system knows them.
fn named(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}

/// Returns what sudo and chown take for this user.
fn login(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("'#{uid}'"),
    }
}

fn group(gid: Gid) -> String {
    match Group::from_gid(gid) {
        Ok(Some(group)) => format!("group {}", group.name),
        _ => format!("group {gid}"),
    }
}
