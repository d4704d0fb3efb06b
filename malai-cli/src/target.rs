//! What a command is aimed at, as typed: `machine.cluster`, `user@machine.cluster`, or without the cluster.

use malai_protocol::failure::{Failure, Kind};

/// A target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The user that `user@` names.
    pub(crate) user: Option<String>,
    /// The machine's name.
    pub(crate) machine: String,
    /// The cluster's alias; absent = the only cluster that has such a machine.
    pub(crate) cluster: Option<String>,
}

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is none, [`Kind::Unsupported`] for machine sets and groups.
    pub(crate) fn parse(typed: &str) -> Result<Self, Failure> {
        if typed.starts_with('@') || typed.contains(['[', ']', ',']) {
            return Err(Failure::new(
                Kind::Unsupported,
                format!("`{typed}` names several machines, which comes later"),
            )
            .hint("name one machine: malai web01.company -- uptime"));
        }
        let (user, place) = match typed.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, typed),
        };
        let (machine, cluster) = match place.split_once('.') {
            Some((machine, cluster)) => (machine, Some(cluster)),
            None => (place, None),
        };
        for name in std::iter::once(machine).chain(cluster) {
            if !is_name(name) {
                return Err(malformed(typed, name));
            }
        }
        if user.is_some_and(|u| u.is_empty() || u.contains(|c: char| c.is_whitespace() || c.is_control())) {
            return Err(malformed(typed, user.unwrap_or_default()));
        }
        Ok(Self { user: user.map(Into::into), machine: machine.into(), cluster: cluster.map(Into::into) })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.machine)?;
        self.cluster.iter().try_for_each(|cluster| write!(f, ".{cluster}"))
    }
}

/// A name of a machine or a cluster: `[a-z0-9][a-z0-9-]{0,31}`.
fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=32).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(allowed)
}

fn malformed(typed: &str, part: &str) -> Failure {
    Failure::new(Kind::Usage, format!("`{typed}` is not a target: `{part}` is not a name"))
        .hint("a target is machine.cluster or user@machine.cluster; names have a-z, 0-9 and -, at most 32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_machine_with_or_without_user_and_cluster() {
        let target = Target::parse("deploy@web01.company").expect("a target");
        assert_eq!((target.user.as_deref(), target.machine.as_str()), (Some("deploy"), "web01"));
        assert_eq!(target.cluster.as_deref(), Some("company"));
        assert_eq!(target.to_string(), "web01.company");
        assert_eq!(Target::parse("web01").expect("a target").cluster, None);
    }

    #[test]
    fn what_is_no_name_is_a_usage_error() {
        for typed in ["", ".", "web01.", ".company", "Web01", "a.b.c", "-a.b", "@", "u@", "a b@web01", "wéb"] {
            let failure = Target::parse(typed).expect_err(typed);
            assert!(matches!(failure.kind, Kind::Usage | Kind::Unsupported), "{typed}: {failure}");
        }
    }

    #[test]
    fn several_machines_are_said_to_come_later() {
        for typed in ["@db.company", "web[01-20].company", "a,b"] {
            assert_eq!(Target::parse(typed).expect_err(typed).kind, Kind::Unsupported);
        }
    }
}
