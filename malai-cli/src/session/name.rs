//! Names of sessions: `web01.company/00112233445566778899aabbccddeeff`, or less of it where that is enough.

use std::fmt;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::{MachineId, SessionId};
use malai_protocol::sessions::Summary;
use malai_protocol::target::Target;

/// Is the fewest digits of an id by which a session is looked for: fewer fit too many.
const MIN_ID_DIGITS: usize = 4;
/// Is the number of digits of a whole id.
const ALL_ID_DIGITS: usize = 32;
/// Bounds how many sessions an error names.
const MAX_NAMED_SESSIONS: usize = 10;

/// Names a session at a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionName {
    /// The machine, as it was typed; without a user.
    pub(crate) target: Target,
    /// The session.
    pub(crate) id: SessionId,
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.target, self.id)
    }
}

/// Holds what was typed as the name of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypedSessionName {
    /// The machine.
    pub(crate) target: Target,
    /// The first digits of the id, or all.
    digits: String,
}

impl TypedSessionName {
    /// Reads `TARGET/ID`, or `ID` where the target was typed before it.
    ///
    /// # Errors
    /// When it is no such name, or no machine is named.
    pub(crate) fn parse(target: Option<&str>, session: &str) -> Result<Self, Failure> {
        let (place, id) = match (session.rsplit_once('/'), target) {
            (Some((place, _)), Some(target)) if place != target => {
                let message = format!("two machines are named: `{target}`, and `{place}` in `{session}`");
                return Err(Failure::new(Kind::Usage, message).hint(NAME_HINT));
            }
            (Some(parts), _) => parts,
            (None, Some(target)) => (target, session),
            (None, None) => {
                return Err(Failure::new(Kind::Usage, format!("`{session}` does not name a machine")).hint(NAME_HINT));
            }
        };
        let digits = id.to_ascii_lowercase();
        let is_id =
            (MIN_ID_DIGITS..=ALL_ID_DIGITS).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_id {
            let message = format!(
                "`{id}` is not the id of a session: that is {ALL_ID_DIGITS} hexadecimal digits, or the first {MIN_ID_DIGITS} or \
                 more of them"
            );
            return Err(Failure::new(Kind::Usage, message).hint(NAME_HINT));
        }
        let target = Target { user: None, ..place.parse()? };
        Ok(Self { target, digits })
    }

    /// Finds the session among those that the machine lists, and its owner. A whole id that is not listed may be there all
    /// the same, as one of this machine's own: the target has the true answer.
    ///
    /// # Errors
    /// When it fits none, or several.
    pub(crate) fn find(&self, listed: &[Summary]) -> Result<(SessionName, Option<MachineId>), Failure> {
        let named = |id| SessionName { target: self.target.clone(), id };
        let fits: Vec<&Summary> = listed.iter().filter(|one| one.id.to_string().starts_with(&self.digits)).collect();
        match (fits.as_slice(), self.digits.parse()) {
            ([one], _) => Ok((named(one.id), Some(one.owner))),
            (_, Ok(id)) => Ok((named(id), None)),
            ([], _) => {
                let message = format!("no session at {} begins with {}", self.target, self.digits);
                Err(self.candidates(Kind::UnknownTarget, message, "there are", listed.iter()))
            }
            (several, _) => {
                let message = format!("{} sessions at {} begin with {}", several.len(), self.target, self.digits);
                Err(self.candidates(Kind::AmbiguousTarget, message, "they are", several.iter().copied()))
            }
        }
    }

    fn candidates<'a>(
        &self,
        kind: Kind,
        mut message: String,
        verb: &str,
        all: impl ExactSizeIterator<Item = &'a Summary>,
    ) -> Failure {
        let count = all.len();
        let names: Vec<String> =
            all.take(MAX_NAMED_SESSIONS).map(|one| format!("{}/{}", self.target, one.id)).collect();
        if count == 0 {
            message.push_str("; no sessions run there");
        } else {
            let more = if count > MAX_NAMED_SESSIONS {
                format!(", and {} more", count - MAX_NAMED_SESSIONS)
            } else {
                String::new()
            };
            message.push_str(&format!("; {verb} {}{more}", names.join(", ")));
        }
        Failure::new(kind, message).hint(format!("see: malai sessions {}", self.target))
    }
}

/// Says what the name of a session is.
const NAME_HINT: &str =
    "a session is TARGET/ID, such as web01.company/00112233445566778899aabbccddeeff; `malai sessions` lists them";

#[cfg(test)]
mod tests {
    use super::*;
    use malai_protocol::sessions::State;

    const ID: &str = "00112233445566778899aabbccddeeff";

    fn summary(id: &str) -> Summary {
        Summary {
            owner: owner(),
            id: id.parse().expect("an id"),
            command: "make".into(),
            detached: true,
            user: None,
            since_ms: 0,
            state: State::Running,
        }
    }

    /// The public key of RFC 8032's first test vector.
    fn owner() -> MachineId {
        "qtd9g0c2m45bflabvr9sip07787e2snjraj269df08d6hto7a4d0".parse().expect("a key")
    }

    #[test]
    fn a_name_is_typed_as_one_word_or_as_two_and_in_either_case() {
        let one = TypedSessionName::parse(None, &format!("web01.company/{ID}")).expect("a name");
        assert_eq!(TypedSessionName::parse(Some("web01.company"), ID), Ok(one.clone()));
        assert_eq!(TypedSessionName::parse(Some("web01.company"), &format!("web01.company/{ID}")), Ok(one.clone()));
        assert_eq!(
            TypedSessionName::parse(None, &format!("deploy@web01.company/{}", ID.to_uppercase())),
            Ok(one.clone())
        );
        let (name, owner) = one.find(&[]).expect("a whole id");
        assert_eq!((name.to_string(), owner), (format!("web01.company/{ID}"), None));
    }

    #[test]
    fn what_is_no_name_is_a_usage_error_that_says_what_one_is() {
        let long = format!("{ID}0");
        let wrong = [
            (None, ID),
            (Some("web01"), "001"),
            (Some("web01"), "00g1"),
            (Some("web01"), &long),
            (Some("web01"), ""),
            (Some("web02"), "web01/0011"),
            (None, "/0011"),
            (None, "web01/"),
            (None, "a.b.c/0011"),
            (None, "web01/0011\u{1b}"),
        ];
        for (target, session) in wrong {
            let failure = TypedSessionName::parse(target, session).expect_err(session);
            assert_eq!(failure.kind, Kind::Usage, "{session}");
            assert!(failure.hint.is_some(), "{session}");
        }
    }

    #[test]
    fn a_prefix_finds_the_one_session_that_begins_so_with_its_owner() {
        let all = [summary(ID), summary("0011aaaaaaaaaaaaaaaaaaaaaaaaaaaa")];
        let find = |digits: &str| TypedSessionName::parse(Some("web01"), digits).and_then(|typed| typed.find(&all));
        let (name, found) = find("00112").expect("one");
        assert_eq!((name.to_string(), found), (format!("web01/{ID}"), Some(owner())));
        assert_eq!(find(ID).expect("one").1, Some(owner()));
        let several = find("0011").expect_err("two");
        assert_eq!(several.kind, Kind::AmbiguousTarget);
        let names = format!("they are web01/{ID}, web01/0011aaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        assert!(several.message.ends_with(&names), "{several}");
        let none = find("ffff").expect_err("none");
        assert_eq!(none.kind, Kind::UnknownTarget);
        assert!(none.message.contains(&format!("there are web01/{ID}, ")), "{none}");
    }

    #[test]
    fn an_id_that_two_machines_chose_is_asked_for_as_the_own_one() {
        let all = [summary(ID), summary(ID)];
        let typed = TypedSessionName::parse(Some("web01"), ID).expect("a name");
        assert_eq!(typed.find(&all).expect("the own one").1, None);
    }

    #[test]
    fn an_error_names_a_few_candidates_and_counts_the_rest() {
        let all: Vec<Summary> = (0..25).map(|n| summary(&format!("abcd{n:028x}"))).collect();
        let typed = TypedSessionName::parse(Some("web01"), "abcd").expect("a name");
        let failure = typed.find(&all).expect_err("many");
        assert!(failure.message.starts_with("25 sessions") && failure.message.ends_with(", and 15 more"), "{failure}");
    }
}
