//! What a command is aimed at: `[user@]machine[.cluster]`.

use std::fmt;
use std::str::FromStr;

use crate::config::{Name, NameError, is_user, shown};
use crate::failure::{Failure, Kind};

/// Bounds a target, in bytes: a user, a machine and a cluster have at most 321.
const MAX_TARGET_BYTES: usize = 384;

/// Holds a parsed target. The names are well formed; whether they exist is another question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The user to run as; absent = what the config says.
    pub user: Option<String>,
    /// The machine's name.
    pub machine: String,
    /// The cluster's alias; absent = the only cluster that has such a machine.
    pub cluster: Option<String>,
}

impl FromStr for Target {
    type Err = Failure;

    /// # Errors
    /// [`Kind::Usage`] when it is not a target, [`Kind::Unsupported`] when it is one of a later version.
    fn from_str(text: &str) -> Result<Self, Failure> {
        if text.len() > MAX_TARGET_BYTES {
            return Err(usage(format!("`{}` is too long for a target", shown(text))));
        }
        // The user may be of a domain; the machine never has an `@`.
        let (user, place) = match text.rsplit_once('@') {
            Some(("", group)) => return Err(later(&format!("`@{}` is a group: groups as targets", shown(group)))),
            Some((user, place)) => (Some(user), place),
            None => (None, text),
        };
        if user.is_some_and(|user| user.ends_with('@')) || place.contains(['[', ']', '{', '}', '*', '?', ',', '!', '&'])
        {
            return Err(later(&format!("`{}` means several machines: sets of machines as targets", shown(place))));
        }
        if let Some(user) = user.filter(|user| !is_user(user)) {
            return Err(usage(format!("`{}` in `{}` is not the name of a user", shown(user), shown(text))));
        }
        let (machine, cluster) = match place.split_once('.') {
            Some((machine, cluster)) => (machine, Some(cluster)),
            None => (place, None),
        };
        if cluster.is_some_and(|cluster| cluster.contains('.')) {
            return Err(Failure::new(Kind::Usage, format!("`{}` has more than one dot", shown(text))).hint(
                "a target is machine.cluster, not a host name or an address: `malai status` lists the machines",
            ));
        }
        let machine = name(text, "machine", machine)?;
        let cluster = cluster.map(|cluster| name(text, "cluster", cluster)).transpose()?;
        Ok(Self { user: user.map(str::to_owned), machine, cluster })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.machine)?;
        match &self.cluster {
            Some(cluster) => write!(f, ".{cluster}"),
            None => Ok(()),
        }
    }
}

const TARGET_FORM: &str = "a target is machine.cluster or user@machine.cluster, such as web01.company";

fn name(target: &str, what: &str, text: &str) -> Result<String, Failure> {
    match text.parse::<Name>() {
        Ok(name) => Ok(name.to_string()),
        Err(NameError::Empty) => Err(usage(format!("`{}` has no {what}", shown(target)))),
        Err(error) => {
            let failure =
                usage(format!("`{}` in `{}` is not the name of a {what}: {error}", shown(text), shown(target)));
            let lower = text.to_ascii_lowercase();
            Err(match lower.parse::<Name>() {
                Ok(_) => failure.hint(format!("names are in lower case: `{lower}`")),
                Err(_) => failure,
            })
        }
    }
}

fn usage(message: String) -> Failure {
    Failure::new(Kind::Usage, message).hint(TARGET_FORM)
}

fn later(what: &str) -> Failure {
    Failure::new(Kind::Unsupported, format!("{what} are not supported yet"))
        .hint("name one machine, and repeat the command for the others")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Option<String>, String, Option<String>), Failure> {
        let target: Target = text.parse()?;
        Ok((target.user, target.machine, target.cluster))
    }

    #[test]
    fn the_forms_of_a_target() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parsed("web01"), Ok((None, "web01".into(), None)));
        assert_eq!(parsed("web01.company"), Ok((None, "web01".into(), some("company"))));
        assert_eq!(parsed("www-data@web01.company"), Ok((some("www-data"), "web01".into(), some("company"))));
        assert_eq!(parsed("j.doe@web01"), Ok((some("j.doe"), "web01".into(), None)));
        assert_eq!(parsed("a@corp.example@web01.c"), Ok((some("a@corp.example"), "web01".into(), some("c"))));
        assert_eq!(parsed("CORP\\a@web01"), Ok((some("CORP\\a"), "web01".into(), None)));
    }

    #[test]
    fn groups_and_sets_of_machines_are_refused_as_not_supported_yet() {
        for text in ["@db.company", "root@@db.company", "web[01-20].company", "web*.company", "web01,web02.company"] {
            let failure = parsed(text).expect_err(text);
            assert_eq!(failure.kind, Kind::Unsupported, "{text}");
            assert!(failure.message.ends_with("not supported yet"), "{}", failure.message);
        }
    }

    #[test]
    fn what_is_no_target_is_a_usage_error_with_a_hint() {
        for text in [
            "",
            ".",
            "web01.",
            ".company",
            "a b",
            "web_01",
            "-x",
            "a@b@",
            "a@",
            "1000@web01",
            "+0@web01",
            "web01.a.b",
            "192.0.2.1",
        ] {
            let failure = parsed(text).expect_err(text);
            assert_eq!(failure.kind, Kind::Usage, "{text}");
            assert!(failure.hint.is_some(), "{text}");
        }
    }

    #[test]
    fn an_upper_case_name_is_refused_with_the_lower_case_one() {
        let failure = parsed("Web01.company").expect_err("upper case");
        assert_eq!(failure.hint.as_deref(), Some("names are in lower case: `web01`"));
    }

    #[test]
    fn a_long_target_is_refused_and_not_shown_in_full() {
        let failure = parsed(&"x".repeat(1 << 20)).expect_err("long");
        assert!(failure.message.len() < 300, "{}", failure.message.len());
    }

    #[test]
    fn control_characters_of_a_target_are_escaped_in_its_refusal() {
        let failure = parsed("web\u{1b}[2J").expect_err("escape");
        assert!(!failure.message.contains('\u{1b}'), "{failure}");
    }
}
