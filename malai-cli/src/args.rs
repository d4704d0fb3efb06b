//! Cuts the command line at the target: what is before it is malai's, what is after it belongs to the command there.
//!
//! clap never sees the words after the target, so that none of them can be taken for an option of malai.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, Command};

/// Is the one option of malai that may follow the target.
const DETACH_OPTION: &str = "--detach";

/// Holds a command line, cut at the target.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// For clap: program, subcommand, options, and the target where there is one.
    pub(crate) head: Vec<OsString>,
    /// `--` stood right after the target.
    pub(crate) literal: bool,
    /// The words after the target, untouched.
    pub(crate) words: Vec<OsString>,
}

/// Cuts `args` (the program's name first) by the options and subcommands that `root` defines.
pub(crate) fn cut(args: Vec<OsString>, root: &Command) -> Cut {
    let Some((program, typed)) = args.split_first() else {
        return Cut { head: args, literal: false, words: Vec::new() };
    };
    let Some((first, escaped)) = next_word(typed, 0, root.find_subcommand("exec")) else {
        return Cut { head: args, literal: false, words: Vec::new() };
    };
    let name = typed[first].to_str().filter(|_| !escaped);
    let subcommand = name.and_then(|name| root.find_subcommand(name));
    // The number of words that a command takes for itself before the remote ones begin.
    let own = match subcommand.map(Command::get_name) {
        None | Some("exec") => 1,
        Some("can") => 2,
        Some(_) => 0,
    };
    // clap adds `help` later, so it is not among the subcommands yet.
    if own == 0 || name == Some("help") {
        return Cut { head: args, literal: false, words: Vec::new() };
    }
    let mut head = vec![program.clone(), OsString::from(subcommand.map_or("exec", Command::get_name))];
    head.extend_from_slice(&typed[..first]);
    let rest = if subcommand.is_some() { &typed[first + 1..] } else { &typed[first..] };
    // A `--` before the target is in `head` already, and clap has to see it once.
    let end = if escaped { 1 } else { end_of_words(rest, own, subcommand.or(root.find_subcommand("exec"))) };
    head.extend_from_slice(&rest[..end]);
    let mut words = &rest[end..];
    // A command of this name is meant only after `--`.
    if head.get(1).is_some_and(|name| name == "exec") && words.first().is_some_and(|word| word == DETACH_OPTION) {
        head.insert(2, DETACH_OPTION.into());
        words = &words[1..];
    }
    let literal = words.first().is_some_and(|word| word == "--");
    if literal {
        words = &words[1..];
    }
    Cut { head, literal, words: words.to_vec() }
}

/// Returns the index after the first `count` words that are no options; the end of `typed` when there are fewer.
fn end_of_words(typed: &[OsString], count: usize, command: Option<&Command>) -> usize {
    let mut end = 0;
    for _ in 0..count {
        match next_word(typed, end, command) {
            Some((at, _)) => end = at + 1,
            None => return typed.len(),
        }
    }
    end
}

/// Returns the first word from `from` on that is neither an option nor the value of one, and whether `--` stands before it.
fn next_word(typed: &[OsString], from: usize, command: Option<&Command>) -> Option<(usize, bool)> {
    let mut at = from;
    while let Some(word) = typed.get(at) {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            return (at + 1 < typed.len()).then_some((at + 1, true));
        }
        if bytes == b"-" || !bytes.starts_with(b"-") {
            return Some((at, false));
        }
        at += if wants_next(bytes, command) { 2 } else { 1 };
    }
    None
}

/// Tells whether the value of this option is the next word.
fn wants_next(option: &[u8], command: Option<&Command>) -> bool {
    let takes_value = |found: &dyn Fn(&Arg) -> bool| {
        command.is_some_and(|c| {
            c.get_arguments().any(|a| a.get_action().takes_values() && !a.is_require_equals_set() && found(a))
        })
    };
    if let Some(long) = option.strip_prefix(b"--") {
        return takes_value(&|a| a.get_long().is_some_and(|l| OsStr::new(l).as_bytes() == long));
    }
    // Short options may stand together; the first that takes a value takes the rest of the word, if there is any.
    let letters = &option[1..];
    let first = letters.iter().position(|&l| takes_value(&|a| a.get_short() == Some(char::from(l))));
    first.is_some_and(|at| at + 1 == letters.len())
}

/// Returns how many words this option of a command takes, itself included; 0 when it is no option.
pub(crate) fn width(option: &OsStr, command: Option<&Command>) -> usize {
    let (bytes, Some(command)) = (option.as_bytes(), command) else { return 0 };
    let is_known = match bytes.strip_prefix(b"--") {
        Some(long) => {
            let name = long.split(|byte| *byte == b'=').next().unwrap_or_default();
            command.get_arguments().any(|a| a.get_long().is_some_and(|l| l.as_bytes() == name))
        }
        None => bytes.strip_prefix(b"-").is_some_and(|letters| are_options(letters, command)),
    };
    if is_known { 1 + usize::from(wants_next(bytes, Some(command))) } else { 0 }
}

/// Tells whether these letters are short options that stand together, the last one perhaps with its value.
fn are_options(letters: &[u8], command: &Command) -> bool {
    let find = |letter: u8| command.get_arguments().find(|a| a.get_short() == Some(char::from(letter)));
    for letter in letters {
        match find(*letter) {
            None => return false,
            Some(found) if found.get_action().takes_values() => return true,
            Some(_) => {}
        }
    }
    !letters.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::os::unix::ffi::OsStringExt;

    fn cut_line(line: &[&str]) -> (Vec<String>, bool, Vec<String>) {
        let args = std::iter::once("malai").chain(line.iter().copied()).map(OsString::from).collect();
        let cut = cut(args, &crate::commands::Cli::command());
        let text = |words: Vec<OsString>| words.into_iter().map(|w| w.into_string().expect("text")).collect();
        (text(cut.head), cut.literal, text(cut.words))
    }

    fn check(line: &[&str], head: &[&str], literal: bool, words: &[&str]) {
        let own = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(cut_line(line), (own(head), literal, own(words)), "{line:?}");
    }

    #[test]
    fn what_follows_the_target_is_the_remote_argv_untouched() {
        check(&["web01.c", "ls", "-l"], &["malai", "exec", "web01.c"], false, &["ls", "-l"]);
        check(&["web01.c", "-n", "--json"], &["malai", "exec", "web01.c"], false, &["-n", "--json"]);
        check(&["web01.c", "ls", "--", "-x"], &["malai", "exec", "web01.c"], false, &["ls", "--", "-x"]);
        check(&["web01.c", "--help"], &["malai", "exec", "web01.c"], false, &["--help"]);
    }

    #[test]
    fn two_dashes_right_after_the_target_make_the_words_literal_and_go_away_once() {
        check(&["web01.c", "--", "ls"], &["malai", "exec", "web01.c"], true, &["ls"]);
        check(&["web01.c", "--", "--", "ls"], &["malai", "exec", "web01.c"], true, &["--", "ls"]);
        check(&["web01.c", "--"], &["malai", "exec", "web01.c"], true, &[]);
    }

    #[test]
    fn options_before_the_target_are_malais_with_their_values() {
        let head = ["malai", "exec", "--timeout", "5", "-n", "web01.c"];
        check(&["--timeout", "5", "-n", "web01.c", "true"], &head, false, &["true"]);
        check(&["--timeout=5", "web01.c", "x"], &["malai", "exec", "--timeout=5", "web01.c"], false, &["x"]);
        check(&["-nc", "echo hi", "web01.c"], &["malai", "exec", "-nc", "echo hi", "web01.c"], false, &[]);
        check(&["-cecho", "web01.c"], &["malai", "exec", "-cecho", "web01.c"], false, &[]);
        check(&["-c", "-x", "web01.c"], &["malai", "exec", "-c", "-x", "web01.c"], false, &[]);
        check(&["--json", "web01.c", "x"], &["malai", "exec", "--json", "web01.c"], false, &["x"]);
        // The time is a part of its own word, so that the target does not look like one.
        check(&["--wait", "web01.c", "x"], &["malai", "exec", "--wait", "web01.c"], false, &["x"]);
        check(&["--wait=5m", "web01.c", "x"], &["malai", "exec", "--wait=5m", "web01.c"], false, &["x"]);
    }

    #[test]
    fn a_subcommand_is_a_subcommand_and_a_machine_of_its_name_is_reached_by_exec() {
        check(&["status", "--json"], &["malai", "status", "--json"], false, &[]);
        check(&["exec", "status", "uptime"], &["malai", "exec", "status"], false, &["uptime"]);
        check(&["exec", "-n", "status", "uptime"], &["malai", "exec", "-n", "status"], false, &["uptime"]);
        check(&["-n", "exec", "exec", "exec"], &["malai", "exec", "-n", "exec"], false, &["exec"]);
        check(&["status.c", "uptime"], &["malai", "exec", "status.c"], false, &["uptime"]);
        check(&["--", "status", "x"], &["malai", "exec", "--", "status"], false, &["x"]);
    }

    #[test]
    fn detach_right_after_the_target_is_malais_and_nowhere_else_behind_it() {
        let head = ["malai", "exec", "--detach", "-n", "web01.c"];
        check(&["-n", "web01.c", "--detach", "--", "ls"], &head, true, &["ls"]);
        check(&["-n", "web01.c", "--detach", "ls", "--detach"], &head, false, &["ls", "--detach"]);
        check(&["exec", "-n", "web01.c", "--detach", "ls"], &head, false, &["ls"]);
        check(&["--detach", "web01.c", "ls"], &["malai", "exec", "--detach", "web01.c"], false, &["ls"]);
        check(&["web01.c", "--", "--detach"], &["malai", "exec", "web01.c"], true, &["--detach"]);
        check(&["web01.c", "ls", "--detach"], &["malai", "exec", "web01.c"], false, &["ls", "--detach"]);
        check(&["web01.c", "--detached"], &["malai", "exec", "web01.c"], false, &["--detached"]);
        check(&["--", "kill", "--detach", "x"], &["malai", "exec", "--detach", "--", "kill"], false, &["x"]);
        check(&["can", "a", "web01.c", "--detach"], &["malai", "can", "a", "web01.c"], false, &["--detach"]);
    }

    #[test]
    fn commands_about_sessions_take_no_words_of_a_command() {
        for line in [["attach", "web01.c", "0011", "--from-end"], ["wait", "web01.c", "0011", "--json"]] {
            check(&line, &[&["malai"], &line[..]].concat(), false, &[]);
        }
        check(
            &["kill", "--signal", "9", "--", "web01/0011"],
            &["malai", "kill", "--signal", "9", "--", "web01/0011"],
            false,
            &[],
        );
        check(&["sessions", "web01.c"], &["malai", "sessions", "web01.c"], false, &[]);
    }

    #[test]
    fn can_takes_two_words_before_the_command() {
        check(&["can", "a", "web01.c", "--", "-x"], &["malai", "can", "a", "web01.c"], true, &["-x"]);
        check(&["can", "--json", "a", "b", "ls", "-l"], &["malai", "can", "--json", "a", "b"], false, &["ls", "-l"]);
        check(&["can", "a"], &["malai", "can", "a"], false, &[]);
    }

    #[test]
    fn without_a_target_clap_sees_everything() {
        check(&[], &["malai"], false, &[]);
        check(&["--help"], &["malai", "--help"], false, &[]);
        check(&["exec"], &["malai", "exec"], false, &[]);
        check(&["--timeout", "5"], &["malai", "--timeout", "5"], false, &[]);
        check(&["help", "exec"], &["malai", "help", "exec"], false, &[]);
    }

    #[test]
    fn words_that_are_not_utf8_stay_as_they_are() {
        let odd = OsString::from_vec(vec![0xff, b'-']);
        let args = vec!["malai".into(), "web01.c".into(), odd.clone()];
        assert_eq!(cut(args, &crate::commands::Cli::command()).words, vec![odd]);
    }
}
