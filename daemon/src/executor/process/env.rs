//! What a command finds around it: its environment, and where its program is looked for.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use malai_protocol::failure::{Failure, Kind};
use serde_bytes::ByteBuf;

use super::user::User;

/// The variable that marks every process of a session, until it clears its environment.
pub(crate) const MARKER: &str = "MALAI_SESSION";

/// Root's search path, as login(1) sets it. No file of the user is read.
#[cfg(not(target_os = "macos"))]
const ROOT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Everybody else's.
#[cfg(not(target_os = "macos"))]
const USER_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
#[cfg(target_os = "macos")]
const ROOT_PATH: &[u8] = USER_PATH;
#[cfg(target_os = "macos")]
const USER_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The whole environment, by name.
#[derive(Debug)]
pub(crate) struct Env(BTreeMap<Vec<u8>, Vec<u8>>);

impl Env {
    /// The user's own variables, then the plan's additions, and last the marker, which nothing may replace.
    pub(crate) fn new(user: &User, additions: &[(ByteBuf, ByteBuf)], marker: &str) -> Self {
        let path = if user.root { ROOT_PATH } else { USER_PATH };
        let mut env = Self(BTreeMap::new());
        env.set(b"HOME", user.home.as_os_str().as_bytes());
        env.set(b"USER", user.name.as_bytes());
        env.set(b"LOGNAME", user.name.as_bytes());
        env.set(b"SHELL", user.shell.as_os_str().as_bytes());
        env.set(b"PATH", path);
        for (name, value) in additions {
            env.set(name, value);
        }
        env.set(MARKER.as_bytes(), marker.as_bytes());
        env
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        self.0.insert(name.to_vec(), value.to_vec());
    }

    fn get(&self, name: &[u8]) -> &[u8] {
        self.0.get(name).map_or(b"", Vec::as_slice)
    }

    /// `NAME=value` strings.
    pub(crate) fn strings(&self) -> Result<Vec<CString>, Failure> {
        self.0
            .iter()
            .map(|(name, value)| {
                if name.is_empty() || name.contains(&b'=') {
                    return Err(Failure::new(Kind::Usage, "a variable's name is empty or contains `=`"));
                }
                string([name, &b"="[..], value].concat(), "an environment variable")
            })
            .collect()
    }

    /// The paths at which `program` may be, in order: as execvp(3) looks, but in the user's own `PATH`.
    pub(crate) fn candidates(&self, program: &[u8]) -> Result<Vec<CString>, Failure> {
        if program.contains(&b'/') {
            return Ok(vec![string(program.to_vec(), "the program's name")?]);
        }
        if program.is_empty() {
            return Ok(Vec::new());
        }
        self.get(b"PATH")
            .split(|byte| *byte == b':')
            .map(|dir| {
                let dir = if dir.is_empty() { b"." } else { dir };
                string([dir, b"/", program].concat(), "the program's name")
            })
            .collect()
    }
}

/// `bytes` for a system call.
pub(crate) fn string(bytes: Vec<u8>, what: &str) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure::new(Kind::Usage, format!("{what} contains a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User { name: "web".into(), home: "/srv/web".into(), shell: "/bin/sh".into(), root: false, identity: None }
    }

    fn env(additions: &[(&str, &str)]) -> Env {
        let mut env = Env::new(&user(), &[], "mark");
        for (name, value) in additions {
            env.set(name.as_bytes(), value.as_bytes());
        }
        env
    }

    #[test]
    fn an_addition_replaces_and_is_not_there_twice() {
        let strings = env(&[("PATH", "/opt/bin")]).strings().expect("no NUL");
        let paths: Vec<_> = strings.iter().filter(|s| s.as_bytes().starts_with(b"PATH=")).collect();
        assert_eq!(paths, [c"PATH=/opt/bin"]);
    }

    #[test]
    fn a_name_without_a_slash_is_looked_for_in_the_users_path_and_an_empty_entry_is_the_working_directory() {
        let candidates = env(&[("PATH", "/opt/bin::/bin")]).candidates(b"ls").expect("no NUL");
        assert_eq!(candidates, [c"/opt/bin/ls", c"./ls", c"/bin/ls"].map(CString::from));
        assert_eq!(env(&[]).candidates(b"./ls").expect("no NUL"), [CString::from(c"./ls")]);
        assert!(env(&[]).candidates(b"").expect("no NUL").is_empty());
    }

    #[test]
    fn a_nul_byte_is_refused_as_the_callers_mistake() {
        assert_eq!(env(&[]).candidates(b"a\0b").expect_err("NUL").kind, Kind::Usage);
        assert_eq!(env(&[("A", "b\0c")]).strings().expect_err("NUL").kind, Kind::Usage);
        assert_eq!(env(&[("A=B", "c")]).strings().expect_err("a name").kind, Kind::Usage);
    }
}
