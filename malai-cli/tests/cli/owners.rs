//! Whose files malai uses: what another user could have put there is refused, with its path, by daemon and CLI.

#![allow(clippy::unwrap_used, reason = "a test's scaffolding ends the test when it breaks")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo};

use crate::harness::{Ended, wait};

/// A user who is neither root nor anybody that a test runs as.
const STRANGER: u32 = 65534;

/// A home with a cluster, in a directory of its own.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let made = place.run(&["cluster", "init", "company", "--private", "--username", "root"]);
        assert_eq!(made.code, 0, "{made}");
        fs::create_dir(place.home().join("sessions")).unwrap();
        fs::write(place.home().join("malai.toml"), "agent_idle = 5\n").unwrap();
        place
    }

    fn home(&self) -> PathBuf {
        self.0.path().join("parent/home")
    }

    /// The binary with these words, begun in this home.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_malai"));
        command.args(words).env_remove("MALAI_INVITE").env("MALAI_HOME", self.home());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Ended {
        wait(self.command(words).spawn().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only where a test went wrong is there one.
        let uid = Uid::effective().as_raw();
        for path in [self.0.path().join("parent"), self.home()] {
            drop(chown(&path, Some(uid), None));
            drop(fs::set_permissions(&path, Permissions::from_mode(0o700)));
        }
        self.run(&["daemon", "stop"]);
    }
}

/// What another user may have done to a path, or can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is theirs.
    Owner,
    /// Their group may write.
    Group,
    /// Everybody may write.
    Everybody,
    /// It is a link to something of theirs.
    Link,
    /// It is a link to what was there.
    Moved,
    /// It is a pipe that nobody writes to.
    Pipe,
    /// It is a directory.
    Directory,
}

impl Fault {
    /// Makes it so, and returns the path that a message has to name.
    fn apply(self, path: &Path) -> PathBuf {
        let aside = path.with_extension("aside");
        match self {
            Self::Owner => chown(path, Some(STRANGER), None).unwrap(),
            Self::Group | Self::Everybody => {
                let bit = if self == Self::Group { 0o020 } else { 0o002 };
                let mode = fs::metadata(path).unwrap().permissions().mode();
                fs::set_permissions(path, Permissions::from_mode(mode | bit)).unwrap();
            }
            Self::Link => {
                fs::rename(path, &aside).unwrap();
                chown(&aside, Some(STRANGER), None).unwrap();
                symlink(&aside, path).unwrap();
            }
            Self::Moved => {
                fs::rename(path, &aside).unwrap();
                symlink(&aside, path).unwrap();
            }
            Self::Pipe => {
                fs::rename(path, aside).unwrap();
                mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
            }
            Self::Directory => {
                fs::rename(path, aside).unwrap();
                fs::create_dir(path).unwrap();
                fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
            }
        }
        // A link is named where it is followed: by what it leads to.
        if self == Self::Link && path.is_dir() { path.with_extension("aside") } else { path.to_owned() }
    }

    /// What the message says about it.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Owner | Self::Link => &["uid 65534"],
            Self::Group => &["others can write to", "chmod g-w"],
            Self::Everybody => &["others can write to", "chmod o-w"],
            Self::Moved => &["symbolic link"],
            Self::Pipe => &["is a pipe"],
            Self::Directory => &["is a directory"],
        }
    }
}

/// Whether this test can be another user. Without root it shows nothing, and in CI it fails then.
fn is_root() -> bool {
    let root = Uid::effective().is_root();
    assert!(root || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "only root can play another user");
    root
}

fn refused(ended: &Ended, path: &Path, words: &[&str], what: &str) {
    // `rescan` tells of each cluster, and exits with 1 when one was refused.
    assert!(matches!(ended.code, 1 | 255) && ended.stdout.is_empty(), "{what}: {ended}");
    assert!(ended.stderr.contains(path.to_str().unwrap()), "{what}: no {}: {ended}", path.display());
    for word in words {
        assert!(ended.stderr.contains(word), "{what}: no `{word}`: {ended}");
    }
    assert!(ended.stderr.contains("malai: hint: "), "{what}: {ended}");
}

#[test]
fn a_directory_that_another_user_may_change_is_refused_by_daemon_and_cli() {
    if !is_root() {
        return;
    }
    for directory in ["parent", "parent/home", "parent/home/clusters", "parent/home/sessions"] {
        for fault in [Fault::Owner, Fault::Group, Fault::Everybody, Fault::Link] {
            let place = Place::new();
            let path = fault.apply(&place.0.path().join(directory));
            let what = format!("{directory} {fault:?}");
            for words in [&["daemon"][..], &["daemon", "--foreground"], &["status"], &["company.company", "true"]] {
                refused(&place.run(words), &path, fault.words(), &format!("{what} {words:?}"));
            }
            if path.is_symlink() || fault == Fault::Link {
                fs::remove_file(place.0.path().join(directory)).unwrap();
                fs::rename(&path, place.0.path().join(directory)).unwrap();
            }
        }
    }
}

#[test]
fn a_cluster_whose_files_another_user_may_change_is_not_served_and_says_which_path() {
    if !is_root() {
        return;
    }
    let any = [Fault::Owner, Fault::Group, Fault::Everybody, Fault::Link, Fault::Moved, Fault::Pipe, Fault::Directory];
    let table = [
        ("", &any[..4]),
        ("machine.key", &any),
        ("cluster.key", &any),
        ("snapshot", &any),
        // People edit it: it may be a link, and may be given to one of them.
        ("cluster.toml", &any[5..]),
    ];
    for (file, faults) in table {
        for fault in faults {
            let place = Place::new();
            let path = place.home().join("clusters/company");
            let path = if file.is_empty() { path } else { path.join(file) };
            let path = fault.apply(&path);
            // A key says its own words when it can be read by others.
            let words = if file.ends_with(".key") && matches!(fault, Fault::Group | Fault::Everybody) {
                &["can be read by other users", "chmod 600"][..]
            } else if *fault == Fault::Link && !file.is_empty() {
                &["symbolic link"]
            } else {
                fault.words()
            };
            refused(&place.run(&["config", "show", "company"]), &path, words, &format!("{file} {fault:?}"));
            refused(&place.run(&["rescan", "company"]), &path, words, &format!("{file} {fault:?}"));
        }
    }
}

#[test]
fn a_daemon_serves_no_cluster_whose_key_is_not_its_own_and_tells_the_path() {
    if !is_root() {
        return;
    }
    for fault in [Fault::Owner, Fault::Moved, Fault::Pipe] {
        let place = Place::new();
        let path = fault.apply(&place.home().join("clusters/company/machine.key"));
        let started = place.run(&["daemon"]);
        assert_eq!(started.code, 0, "{started}");
        let warned = |word: &&str| started.stderr.contains("warning: ") && started.stderr.contains(*word);
        assert!([path.to_str().unwrap()].iter().chain(fault.words()).all(warned), "{fault:?}: {started}");
    }
}

#[test]
fn settings_that_another_user_may_change_keep_the_daemon_from_starting() {
    if !is_root() {
        return;
    }
    let faults = [Fault::Owner, Fault::Group, Fault::Everybody, Fault::Moved, Fault::Pipe, Fault::Directory];
    for fault in faults {
        let place = Place::new();
        let path = fault.apply(&place.home().join("malai.toml"));
        refused(&place.run(&["daemon"]), &path, fault.words(), &format!("{fault:?}"));
    }
}

#[test]
fn a_socket_of_another_user_or_a_link_to_one_is_not_spoken_to() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let socket = place.home().join("malai.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    chown(&socket, Some(STRANGER), None).unwrap();
    refused(&place.run(&["status"]), &socket, &["uid 65534"], "a stranger's");
    let elsewhere = place.0.path().join("elsewhere.sock");
    fs::rename(&socket, &elsewhere).unwrap();
    symlink(&elsewhere, &socket).unwrap();
    refused(&place.run(&["status"]), &socket, &["is not a socket"], "a link");
    listener.set_nonblocking(true).unwrap();
    for (stream, _) in std::iter::from_fn(|| listener.accept().ok()) {
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut &stream, &mut said).unwrap();
        assert_eq!(said, b"", "something was said to it");
    }
}

#[test]
fn root_in_a_users_home_is_refused_with_whose_it_is_and_what_to_type() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    chown(place.home(), Some(STRANGER), None).unwrap();
    let ended = place.run(&["daemon"]);
    let hint = "sudo -u nobody malai";
    refused(&ended, &place.home(), &["nobody (uid 65534)", hint, "chown -R root:"], "a home of nobody");
}

#[test]
fn a_home_in_tmp_and_by_a_link_is_used_and_everything_in_it_is_private_whatever_the_umask() {
    let place = Place::new();
    let link = place.0.path().join("link");
    symlink(place.home(), &link).unwrap();
    for umask in ["000", "077", "0177"] {
        let script = format!("umask {umask}; exec \"$0\" daemon");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_malai")]).env("MALAI_HOME", &link);
        let started = wait(shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert_eq!(started.code, 0, "{umask}: {started}");
        let ran = place.run(&["daemon", "stop"]);
        assert_eq!(ran.code, 0, "{umask}: {ran}");
    }
    let mut todo = vec![place.home()];
    while let Some(path) = todo.pop() {
        let mode = path.symlink_metadata().unwrap().permissions().mode();
        let made_here = !path.ends_with("malai.toml") && path != place.home().join("sessions");
        assert!(!made_here || mode & 0o077 == 0, "{} is open to others: {mode:o}", path.display());
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn a_config_that_was_given_to_another_user_stays_theirs_when_malai_writes_it() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let config = place.home().join("clusters/company/cluster.toml");
    for (uid, gid, mode) in [(STRANGER, STRANGER, 0o640), (0, STRANGER, 0o660), (STRANGER, 0, 0o600)] {
        chown(&config, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&config, Permissions::from_mode(mode)).unwrap();
        let before = fs::read(&config).unwrap();
        let (key, name) = (new_machine(&place), format!("m{mode}"));
        let approved = place.run(&["cluster", "approve", "company", &key, "--name", &name]);
        assert_eq!(approved.code, 0, "{approved}");
        assert_ne!(fs::read(&config).unwrap(), before, "it was not written");
        let meta = fs::metadata(&config).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (uid, gid, mode));
    }
}

/// The id of a machine that is new here.
fn new_machine(place: &Place) -> String {
    let other = tempfile::tempdir_in(place.0.path()).unwrap();
    let mut command = place.command(&["cluster", "init", "other", "--private", "--username", "root", "--json"]);
    let made = wait(command.env("MALAI_HOME", other.path()).spawn().unwrap());
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    made["machine_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_home_that_is_not_an_absolute_path_is_refused_and_nothing_is_made() {
    let here = tempfile::tempdir().unwrap();
    let try_with = |variable: &str, path: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_malai"));
        command.args(["cluster", "init", "company", "--private"]).current_dir(here.path());
        command.env_remove("MALAI_HOME").env_remove("XDG_DATA_HOME").env(variable, path);
        wait(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    for variable in ["MALAI_HOME", "HOME"] {
        for path in ["~/malai", "~", "malai", "./malai", "../malai"] {
            let ended = try_with(variable, path);
            assert_eq!((ended.code, ended.stdout.as_str()), (255, ""), "{variable}={path}: {ended}");
            let is = if path.starts_with('~') { "" } else { "the relative path " };
            assert!(ended.stderr.contains(&format!("{variable} is {is}`{path}`")), "{variable}={path}: {ended}");
            assert!(ended.stderr.contains(&format!("{variable}=")), "no hint: {variable}={path}: {ended}");
        }
    }
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
}
