//! User accounts of a host, from its own `/etc/passwd`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// What a command needs to know of its user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
}

impl Account {
    /// Looks a user up, on a thread that is inside the host.
    pub(crate) fn find(user: &str) -> Result<Self> {
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let found = accounts.lines().find_map(|line| Self::parse(line, user));
        found.with_context(|| format!("the host has no user {user}"))
    }

    fn parse(line: &str, user: &str) -> Option<Self> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, _] = fields.as_slice() else {
            return None;
        };
        let home = PathBuf::from(home);
        (*name == user).then_some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_passwd_is_read_for_the_user_it_names() {
        let line = "deploy:x:1001:1002::/home/deploy:/bin/sh";
        let account = Account { uid: 1001, gid: 1002, home: "/home/deploy".into() };
        assert_eq!(Account::parse(line, "deploy"), Some(account));
        assert_eq!(Account::parse(line, "deplo"), None);
    }
}
