//! Whom a command runs as: looked up in the system's user database.

mod account;

use std::path::PathBuf;

use nix::unistd::{Gid, Uid, geteuid};

use malai_protocol::failure::{Failure, Kind};

use super::spawn::Identity;
use crate::executor::shown;

/// A user of this machine.
#[derive(Debug)]
pub(crate) struct User {
    /// Login name; the number where the database knows none.
    pub(crate) name: String,
    /// Home directory.
    pub(crate) home: PathBuf,
    /// Login shell.
    pub(crate) shell: PathBuf,
    /// Whether it is root.
    pub(crate) root: bool,
    /// What to become; absent when it is the executor's own user.
    pub(crate) identity: Option<Identity>,
}

/// Finds the user. `None` is the executor's own.
///
/// May ask a directory service, and so block: call it where that is allowed.
pub(crate) fn find(wanted: Option<&str>) -> Result<User, Failure> {
    let own = geteuid();
    let entry = match wanted {
        None => nix::unistd::User::from_uid(own),
        Some(name) => nix::unistd::User::from_name(name),
    };
    let entry = entry.map_err(|error| {
        let name = wanted.map_or_else(|| own.to_string(), |name| shown(name.as_bytes()));
        Failure::new(Kind::NoUser, format!("cannot look up the user {name}: {}", error.desc()))
    })?;
    let Some(entry) = entry else {
        return match wanted {
            None => Ok(nameless(own)),
            Some(name) => {
                let failure =
                    Failure::new(Kind::NoUser, format!("there is no user {} on this machine", shown(name.as_bytes())));
                Err(failure.hint(hint_for_missing(name)))
            }
        };
    };
    let identity = if entry.uid == own { None } else { Some(identity(&entry, own)?) };
    if identity.is_some() {
        account::check(&entry.name)?;
    }
    let shell = if entry.shell.as_os_str().is_empty() { PathBuf::from("/bin/sh") } else { entry.shell };
    Ok(User { name: entry.name, home: entry.dir, shell, root: entry.uid.is_root(), identity })
}

/// What to do about a user that the database does not know.
fn hint_for_missing(name: &str) -> String {
    // One of a domain is not made here.
    if name.contains(['@', '\\', '$']) {
        return format!("ask that machine's user database: `getent passwd '{name}'`; or name another user");
    }
    format!("create it there (`useradd --create-home {name}`), or name another user")
}

/// A user id without an entry, as in small containers.
fn nameless(uid: Uid) -> User {
    User {
        name: uid.to_string(),
        home: PathBuf::from("/"),
        shell: PathBuf::from("/bin/sh"),
        root: uid.is_root(),
        identity: None,
    }
}

fn identity(entry: &nix::unistd::User, own: Uid) -> Result<Identity, Failure> {
    if !own.is_root() {
        let name = &entry.name;
        return Err(Failure::new(
            Kind::NoUser,
            format!("cannot run as {name}: the daemon there is not root, and only root can become another user"),
        )
        .hint("leave the user out, or run that machine's daemon as root"));
    }
    let groups = groups(entry).map_err(|error| {
        Failure::new(Kind::NoUser, format!("cannot find the groups of {}: {}", entry.name, error.desc()))
    })?;
    Ok(Identity { uid: entry.uid, gid: entry.gid, groups })
}

#[cfg(target_os = "linux")]
fn groups(entry: &nix::unistd::User) -> nix::Result<Vec<Gid>> {
    let name = std::ffi::CString::new(entry.name.as_bytes()).map_err(|_| nix::errno::Errno::EINVAL)?;
    nix::unistd::getgrouplist(&name, entry.gid)
}

/// Without getgrouplist in reach: the primary group, so never more than the user has.
#[cfg(not(target_os = "linux"))]
fn groups(entry: &nix::unistd::User) -> nix::Result<Vec<Gid>> {
    Ok(vec![entry.gid])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_does_not_exist_is_named_with_what_to_do() {
        let failure = find(Some("no-such-user")).expect_err("no such user");
        assert_eq!(failure.kind, Kind::NoUser);
        assert_eq!(failure.message, "there is no user no-such-user on this machine");
        assert!(failure.hint.is_some());
    }

    #[test]
    fn the_own_user_needs_no_switch() {
        let own = find(None).expect("own user");
        assert!(own.identity.is_none());
        assert!(find(Some(&own.name)).expect("by name").identity.is_none());
    }
}
