//! Decides whose files of a home are used: those of this process's user and of root, in directories that no other user
//! may change, as with sshd's `StrictModes` (docs/decisions/0019).
//!
//! A user who may change a directory can put another file, or a link, in the place of any file below it. So each
//! directory from `/` on is checked, and each link on the way. A directory of root with the sticky bit (`/tmp`) will do
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

/// Bounds the links that one path may lead over, as Linux does.
const MAX_PATH_LINKS: usize = 40;
/// Has the mode bits that let others than the owner write.
const OTHERS_WRITE_MODE: u32 = 0o022;
const STICKY_MODE: u32 = 0o1000;

/// Lists the users whose files are used, and whose processes are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    uids: Vec<Uid>,
}

impl Trusted {
    /// Trusts these users and root, against whom nothing would help.
    pub fn new(uids: impl IntoIterator<Item = Uid>) -> Self {
        let root = std::iter::once(Uid::from_raw(0));
        Self { uids: root.chain(uids).collect() }
    }

    /// Trusts the user of this process, and root.
    pub fn own() -> Self {
        Self::new([geteuid()])
    }

    /// Says whether files and processes of this user are trusted.
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
        let Some((file, meta)) = self.open_owned(path, options)? else { return Ok(None) };
        closed(path, &meta)?;
        Ok(Some(file))
    }

    /// Opens a file of a trusted user, which others may be able to write to: the caller looks at its mode.
    ///
    /// # Errors
    /// As [`Trusted::open`].
    pub(crate) fn open_owned(
        &self,
        path: &Path,
        options: &mut OpenOptions,
    ) -> Result<Option<(File, Metadata)>, Failure> {
        let Some((file, meta)) = regular(path, options)? else { return Ok(None) };
        self.owned(path, &meta)?;
        Ok(Some((file, meta)))
    }

    /// Opens a file that an administrator placed, where the path leads: links are followed whose directories no other
    /// user may change.
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
                if links > MAX_PATH_LINKS {
                    let message =
                        format!("{} has more than {MAX_PATH_LINKS} symbolic links in its path", path.display());
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
                if meta.uid() != 0 || meta.mode() & STICKY_MODE == 0 {
                    closed(&real, &meta)?;
                }
            } else {
                return Err(disk_failure("look into", path, &io::ErrorKind::NotADirectory.into()));
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
        let message = format!("{shown} belongs to {}; malai uses only files of its own user or of root", named(owner));
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
        Failure::new(Kind::BadConfig, format!("{shown} is {what}; it must be a regular file"))
            .hint(format!("replace it by the file itself; to see what it is: ls -l {shown}"))
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
        // As the disk says of one that is to be written: it is no file that was damaged.
        kind if kind.is_dir() => Err(disk_failure("open", path, &io::ErrorKind::IsADirectory.into())),
        kind if kind.is_fifo() => Err(strange("a pipe")),
        _ => Err(strange("a device")),
    }
}

/// Refuses what its group or all users may change.
fn closed(path: &Path, meta: &Metadata) -> Result<(), Failure> {
    let others = meta.mode() & OTHERS_WRITE_MODE;
    if others == 0 {
        return Ok(());
    }
    let shown = path.display();
    let (who, change) = match others {
        0o020 => (group(Gid::from_raw(meta.gid())), "g-w"),
        0o002 => ("everybody".to_owned(), "o-w"),
        _ => ("everybody".to_owned(), "go-w"),
    };
    let message =
        format!("others can write to {shown} ({who}, mode {:04o}), so malai does not use it", meta.mode() & 0o7777);
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn is_root() -> bool {
        let root = geteuid().is_root();
        assert!(root || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "only root can play another user");
        root
    }

    #[test]
    fn a_path_leads_where_the_kernel_says_and_one_that_leads_round_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b/c")).expect("made");
        for (link, target) in [("up", "a/b/.."), ("over", "up/b"), ("a/b/out", "../../over/c"), ("round", "round")] {
            symlink(target, at(link)).expect("linked");
        }
        symlink(at("over"), at("a/absolute")).expect("linked");
        for path in ["a", "a/../a/b", "up", "over/c", "a/b/out", "a/absolute/out/../c", "up/b/./c"] {
            let real = Trusted::own().follow(&at(path)).expect("nobody else may change it");
            assert_eq!(real, Some(fs::canonicalize(at(path)).expect("is there")), "{path}");
        }
        assert_eq!(Trusted::own().follow(&at("a/none/b")), Ok(None));
        let refused = Trusted::own().follow(&at("round")).expect_err("it leads round");
        assert!(refused.message.contains("more than 40 symbolic links"), "{refused}");
    }

    #[test]
    fn a_sticky_directory_of_root_will_do_above_a_home_and_not_as_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (sticky, home) = (dir.path().join("sticky"), dir.path().join("sticky/home"));
        fs::create_dir_all(&home).expect("made");
        fs::set_permissions(&home, Permissions::from_mode(0o700)).expect("chmod");
        for (mode, will_do) in [(0o1777, is_root()), (0o777, false), (0o1755, true)] {
            fs::set_permissions(&sticky, Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(Trusted::own().directory(&home).is_ok(), will_do, "{mode:o}");
            assert_eq!(Trusted::own().directory(&sticky).is_ok(), mode & 0o022 == 0, "{mode:o}");
        }
    }

    #[test]
    fn an_account_that_is_named_is_trusted_beside_root_and_no_other() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (named, other) = (Trusted::new([Uid::from_raw(65534)]), Trusted::new([Uid::from_raw(65533)]));
        let file = dir.path().join("snapshot");
        fs::write(&file, "of nobody").expect("written");
        for path in [file.as_path(), dir.path()] {
            chown(path, Some(65534), None).expect("given away");
        }
        assert!(named.open(&file).expect("it is theirs").is_some());
        assert!(named.directory(dir.path()).expect("it is theirs").is_some());
        for trusted in [other, Trusted::own()] {
            assert!(trusted.open(&file).expect_err("a stranger's").message.contains("uid 65534"));
            assert!(trusted.directory(dir.path()).expect_err("a stranger's").message.contains("uid 65534"));
        }
        chown(dir.path(), Some(0), None).expect("taken back");
    }
}
