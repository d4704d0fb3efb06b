//! Guesses what was meant by a command line that failed, and adds a hint after the error. [`crate::args`] alone decides
//! what a command line means, and no guess ever changes that.

use std::ffi::{OsStr, OsString};

use clap::{Command, CommandFactory};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::target::Target;

use super::Cli;
use crate::{args, duration, escape};

/// Lists words that other programs have before the machine, and malai does not.
const RUNNER_WORDS: &[&str] =
    &["run", "ssh", "shell", "sh", "command", "cmd", "do", "call", "remote", "on", "execute", "start"];

/// Lists words that a shell obeys by itself, without a program of that name.
const SHELL_WORDS: &[&str] = &[
    ".", ":", "[[", "alias", "bg", "break", "case", "cd", "continue", "declare", "eval", "exec", "exit", "export",
    "fg", "for", "function", "history", "if", "jobs", "let", "local", "popd", "pushd", "read", "readonly", "return",
    "set", "shift", "shopt", "source", "times", "trap", "type", "typeset", "ulimit", "umask", "unalias", "unset",
    "until", "wait", "while", "{", "(", "!",
];

/// Lists characters that a shell would not leave as they are.
const SHELL_CHARACTERS: &[char] =
    &['$', '~', '*', '?', '|', '&', ';', '<', '>', '(', ')', '`', '"', '\'', '[', '{', '!'];

/// Bounds the hint, in characters: a longer one helps nobody.
const MAX_PROPOSAL_CHARS: usize = 400;
/// Bounds a word that is quoted in a sentence, in characters.
const MAX_QUOTED_WORD_CHARS: usize = 40;
/// Bounds the machines that a hint names in full. Of more, it names the first, the second and the last.
const MAX_NAMED_MACHINES: usize = 4;

/// Holds a command line of `malai exec`, or of its short form.
#[derive(Debug, Clone)]
pub(super) struct TypedCommand<'a> {
    /// The options before the target.
    pub(super) options: Vec<&'a str>,
    /// The target.
    pub(super) target: &'a str,
    /// `--` stood right after the target.
    pub(super) literal: bool,
    /// The words after the target.
    pub(super) words: Vec<&'a str>,
    /// What `-c` has.
    pub(super) shell: Option<&'a str>,
}

impl<'a> TypedCommand<'a> {
    /// Returns what was typed; `None` when a part of it is not UTF-8, since nothing is guessed from that.
    pub(super) fn new(
        head: &'a [OsString],
        target: &'a str,
        literal: bool,
        words: &'a [OsString],
        shell: Option<&'a OsStr>,
    ) -> Option<Self> {
        let text = |words: &'a [OsString]| words.iter().map(|word| word.to_str()).collect::<Option<Vec<&str>>>();
        let mut options = text(head)?;
        // The target is the last word before the cut. A `--` before it must not show twice.
        options.pop();
        options.retain(|word| *word != "--");
        let shell = match shell {
            Some(shell) => Some(shell.to_str()?),
            None => None,
        };
        Some(Self { options, target, literal, words: text(words)?, shell })
    }

    /// Returns what was probably meant, as a sentence with the command to type. `is_cluster` tells a cluster's alias
    /// from other words.
    pub(super) fn meant(&self, failure: &Failure, is_cluster: impl Fn(&str) -> bool) -> Option<String> {
        let hint = match failure.kind {
            Kind::NotFound => self.not_found(&is_cluster),
            Kind::Usage | Kind::UnknownTarget | Kind::NotConfigured | Kind::Unsupported => {
                self.not_a_target(&is_cluster)
            }
            _ => None,
        };
        hint.filter(|hint| hint.chars().count() <= MAX_PROPOSAL_CHARS)
    }

    /// Guesses why the target has no program of this name.
    fn not_found(&self, is_cluster: &impl Fn(&str) -> bool) -> Option<String> {
        let (first, rest) = self.words.split_first().filter(|_| self.shell.is_none())?;
        if matches!(*first, "--help" | "-h") {
            return Some("help about malai itself: malai exec --help".to_owned());
        }
        let own = own_options(&self.words);
        if own > 0 {
            let (own, words) = self.words.split_at(own);
            let words = if words.is_empty() && !have_string(own) { &["COMMAND"][..] } else { words };
            let line = self.line(own, self.target, self.literal && !words.is_empty(), words);
            return Some(format!("malai's own options go before the target: {line}"));
        }
        if let Some(hint) = self.several_machines(is_cluster) {
            return Some(hint);
        }
        let is_one_word = first.contains(char::is_whitespace);
        if is_assignment(first) && !(is_one_word && rest.is_empty()) {
            return Some(format!("no shell reads these words; set a variable with --env: {}", self.with_env()));
        }
        if is_one_word {
            return Some(self.one_word(first, rest));
        }
        if *first == "cd" && rest.len() == 1 {
            let line = self.line(&["--cwd", rest[0]], self.target, true, &["COMMAND"]);
            return Some(format!("`cd` is a word of a shell, not a program; set the directory with --cwd: {line}"));
        }
        if SHELL_WORDS.contains(first) {
            return Some(format!(
                "`{first}` is a word of a shell, not a program: {}",
                self.by_shell(self.target, &self.words)
            ));
        }
        let is_for_a_shell = first.contains(SHELL_CHARACTERS);
        is_for_a_shell.then(|| format!("no shell reads these words: {}", self.by_shell(self.target, &self.words)))
    }

    /// Recognizes machines that were typed one after the other, as a shell makes them of `web{01..20}.lab`.
    fn several_machines(&self, is_cluster: &impl Fn(&str) -> bool) -> Option<String> {
        let target: Target = self.target.parse().ok()?;
        let more = self.words.iter().take_while(|word| is_machine_beside(&target, word, is_cluster)).count();
        let (more, words) = self.words.split_at(more);
        let first = *more.first()?;
        let machines: Vec<&str> = std::iter::once(self.target).chain(more.iter().copied()).collect();
        let named = match machines.as_slice() {
            [one, two, .., last] if machines.len() > MAX_NAMED_MACHINES => [*one, *two, "…", *last].join(" "),
            all => all.join(" "),
        };
        let words = words.strip_prefix(&["--"]).unwrap_or(words);
        let words = if words.is_empty() { &["COMMAND"][..] } else { words };
        let options = if self.options.contains(&"-n") { &[][..] } else { &["-n"][..] };
        let line = self.line(options, "$m", true, words).replacen("'$m'", "\"$m\"", 1);
        Some(format!(
            "a command runs on one machine, and `{first}` was taken as the command; for several machines: for m in {named}; do {line}; done"
        ))
    }

    /// Recognizes a command line in one word.
    fn one_word(&self, first: &str, rest: &[&str]) -> String {
        let pieces: Vec<&str> = first.split_whitespace().collect();
        let begins = pieces.first().copied().unwrap_or_default();
        let is_for_a_shell = first.contains(SHELL_CHARACTERS) || is_assignment(begins) || SHELL_WORDS.contains(&begins);
        let shown = shown(first);
        if is_for_a_shell || begins.is_empty() {
            let words: Vec<&str> = std::iter::once(first.trim()).chain(rest.iter().copied()).collect();
            let line = self.by_shell(self.target, &words);
            return format!("`{shown}` is one word, and no shell splits it: {line}");
        }
        let line = self.line(&[], self.target, self.literal, &[&pieces, rest].concat());
        format!("`{shown}` is one word, so malai looks for a program of that name: {line}")
    }

    /// Returns the line in which the leading variables are options.
    fn with_env(&self) -> String {
        let variables = self.words.iter().take_while(|word| is_assignment(word)).count();
        let (variables, words) = self.words.split_at(variables);
        let options: Vec<&str> = variables.iter().flat_map(|variable| ["--env", variable]).collect();
        let words = if words.is_empty() { &["COMMAND"][..] } else { words };
        self.line(&options, self.target, true, words)
    }

    /// Guesses what was meant where the word taken as the target is none.
    fn not_a_target(&self, is_cluster: &impl Fn(&str) -> bool) -> Option<String> {
        if self.options.contains(&"--wait") && duration::parse(self.target).is_ok() {
            return Some(format!("write the time into the same word as --wait: {}", self.with_wait()));
        }
        if let Some(machine) = self.shell {
            return self.swapped(machine, is_cluster);
        }
        if self.literal || self.target.contains(['.', '@']) {
            return None;
        }
        if RUNNER_WORDS.contains(&self.target) {
            return self.after_a_runner(is_cluster);
        }
        self.misspelt().or_else(|| self.after_a_runner(is_cluster))
    }

    /// Recognizes a misspelt command of malai.
    fn misspelt(&self) -> Option<String> {
        let is_plain = self.options.iter().all(|option| *option == "--json");
        let command = nearest_command(self.target).filter(|_| is_plain)?;
        Some(format!(
            "did you mean: {}",
            line(&[&["malai", command.as_str()], &self.words[..], &self.options].concat())
        ))
    }

    fn with_wait(&self) -> String {
        let wait = format!("--wait={}", self.target);
        let options = self.options.iter().map(|option| if *option == "--wait" { wait.as_str() } else { option });
        let words = if self.words.is_empty() { &["TARGET", "--", "COMMAND"][..] } else { &self.words };
        line(&std::iter::once("malai").chain(options).chain(words.iter().copied()).collect::<Vec<_>>())
    }

    /// Recognizes `-c web01.lab 'echo hi'`: a shell takes the string last.
    fn swapped(&self, machine: &str, is_cluster: &impl Fn(&str) -> bool) -> Option<String> {
        let cluster = machine.parse::<Target>().ok()?.cluster?;
        if self.target.parse::<Target>().is_ok() && !is_cluster(&cluster) {
            return None;
        }
        let words: Vec<&str> = std::iter::once(self.target).chain(self.words.iter().copied()).collect();
        let line = Self { options: without_shell(&self.options, machine), ..self.clone() }.by_shell(machine, &words);
        Some(format!("write the string directly after -c, and the target last: {line}"))
    }

    /// Recognizes `run web01.lab`.
    fn after_a_runner(&self, is_cluster: &impl Fn(&str) -> bool) -> Option<String> {
        let is_runner = RUNNER_WORDS.contains(&self.target);
        let (options, words) = self.words.split_at(own_options(&self.words));
        let Some((machine, words)) = words.split_first() else {
            let line = self.line(options, "TARGET", true, &["COMMAND"]);
            return is_runner.then(|| format!("`{}` is not a command, and malai needs none: {line}", self.target));
        };
        let cluster = machine.parse::<Target>().ok()?.cluster;
        if !is_runner && !cluster.is_some_and(|cluster| is_cluster(&cluster)) {
            return None;
        }
        let words = words.strip_prefix(&["--"]).unwrap_or(words);
        let words = if words.is_empty() && !have_string(options) { &["COMMAND"][..] } else { words };
        let line = self.line(options, machine, !words.is_empty(), words);
        Some(format!("`{}` is not a command, and malai needs none: {line}", self.target))
    }

    /// Returns the line with these options too, and with this target.
    fn line(&self, options: &[&str], target: &str, literal: bool, words: &[&str]) -> String {
        let dashes = if literal { &["--"][..] } else { &[] };
        line(&[&["malai"], &self.options[..], options, &[target], dashes, words].concat())
    }

    /// Returns the line that has the target's shell read these words.
    fn by_shell(&self, target: &str, words: &[&str]) -> String {
        let string = match words {
            [one] => (*one).to_owned(),
            words => words.iter().map(|word| for_a_shell(word)).collect::<Vec<_>>().join(" "),
        };
        self.line(&["-c", &string], target, false, &[])
    }
}

fn line(words: &[&str]) -> String {
    escape::words(words)
}

/// Quotes a word of a line that a shell reads. What looks as if it were meant for the shell stays as it is.
fn for_a_shell(word: &str) -> String {
    let is_plain = !word.is_empty() && !word.contains(char::is_whitespace);
    if is_plain { word.to_owned() } else { escape::words(&[word]) }
}

fn shown(word: &str) -> String {
    let mut shown: String = word.chars().take(MAX_QUOTED_WORD_CHARS).collect();
    if word.chars().nth(MAX_QUOTED_WORD_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// Tells whether a word is `NAME=VALUE`.
fn is_assignment(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else { return false };
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Counts how many of these words, from the first on, are options of malai with their values.
fn own_options(words: &[&str]) -> usize {
    let root = Cli::command();
    let exec = root.find_subcommand("exec");
    let mut at = 0;
    while let Some(word) = words.get(at) {
        match option_width(word, &root, exec) {
            0 => break,
            width => at += width,
        }
    }
    at.min(words.len())
}

fn option_width(word: &str, root: &Command, exec: Option<&Command>) -> usize {
    // The root of all commands defines it.
    if word == "--json" {
        return 1;
    }
    [exec, Some(root)].into_iter().map(|command| args::width(OsStr::new(word), command)).max().unwrap_or(0)
}

/// Tells whether `-c` is among these options, perhaps in one word with others or with its string.
fn have_string(options: &[&str]) -> bool {
    let letters = options.iter().filter_map(|option| option.strip_prefix('-'));
    letters.filter(|letters| !letters.starts_with('-')).any(|letters| letters.contains('c'))
}

/// Returns the options without `-c` and its value.
fn without_shell<'a>(options: &[&'a str], string: &str) -> Vec<&'a str> {
    let at =
        options.windows(2).position(|pair| pair[1] == string && pair[0].starts_with('-') && pair[0].ends_with('c'));
    let Some(at) = at else {
        return options.iter().copied().filter(|option| option.strip_prefix("-c") != Some(string)).collect();
    };
    let rest = options[at].strip_suffix('c').filter(|rest| *rest != "-");
    options[..at].iter().copied().chain(rest).chain(options[at + 2..].iter().copied()).collect()
}

/// Tells whether this word is a machine like the target: of the same cluster, or of the same name with another number.
fn is_machine_beside(target: &Target, word: &str, is_cluster: &impl Fn(&str) -> bool) -> bool {
    let Ok(other) = word.parse::<Target>() else { return false };
    let stem = |machine: &str| machine.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    match (&target.cluster, &other.cluster) {
        (Some(cluster), Some(other)) => cluster == other,
        (None, Some(other)) => is_cluster(other),
        (None, None) => {
            let (one, two) = (stem(&target.machine), stem(&other.machine));
            one == two && one != target.machine && two != other.machine
        }
        (Some(_), None) => false,
    }
}

/// Returns malai's command whose name was probably meant by this word.
fn nearest_command(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase();
    let most = if word.len() < 5 { 1 } else { 2 };
    let root = Cli::command();
    let names = root.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name);
    let near = names
        .filter(|name| name.len().abs_diff(word.len()) <= most)
        .map(|name| (strsim::osa_distance(&word, name), name));
    near.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name.to_owned())
}
