//! Reads a parsed text key by key and notes what is wrong, with positions. Knows what a list or a string is; what the
//! sections of a config are is in `sections`.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::keys::table_of;
use super::names::{nearest, shown};
use super::problem::{MAX_PROBLEMS, Problem};
use super::{Allow, Name};

/// Says how a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// At the manager: everything has to be known and in order.
    Strict,
    /// At the manager, which adds a machine to a signed text or takes one out: what an earlier version signed stays.
    Edit,
    /// At a member, which may be older than the manager: what it does not understand is noted.
    Tolerant,
}

/// Says which machines are touched when something is not understood.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// No machine's right to run commands: the cluster, and whole tables that a newer version has.
    Whole,
    /// No machine's right either: how the machines find each other.
    Network,
    /// Every machine's: the defaults and the groups.
    Shared,
    /// One machine's.
    Machine(String),
}

/// Begins every key that can only add rights, now and in every later version. A machine that does not know such a key
/// grants less without it, and so leaves it out instead of refusing everything.
const RIGHT_PREFIX: &str = "allow_";

/// Holds in each scope the first key of a kind.
pub(super) type First = BTreeMap<Scope, String>;

/// Holds what a reading found where the text has no problem.
pub(super) struct Findings {
    /// Keys that are not understood.
    pub(super) unsupported: First,
    /// Keys that are not known, and left out since they can only add rights.
    pub(super) ignored: First,
    /// What is valid, but probably not intended.
    pub(super) warnings: Vec<Problem>,
}

/// Holds one table of the config.
pub(super) struct Section<'w> {
    /// Its dotted name, as in its header.
    pub(super) path: String,
    /// Whom it touches.
    pub(super) scope: Scope,
    /// Where it begins.
    pub(super) at: usize,
    /// Its keys.
    pub(super) table: &'w DeTable<'w>,
}

/// Reads a config, and notes what is wrong with it.
pub(super) struct Walk<'w> {
    text: &'w str,
    mode: Mode,
    machines: Option<&'w DeTable<'w>>,
    groups: Option<&'w DeTable<'w>>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    unsupported: First,
    ignored: First,
}

impl<'w> Walk<'w> {
    /// Begins to read `root`, the parsed `text`.
    pub(super) fn new(text: &'w str, root: &'w DeTable<'w>, mode: Mode) -> Self {
        let table = |key: &str| root.get(key).and_then(|v| v.get_ref().as_table());
        let (machines, groups) = (table("machine"), table("group"));
        Self {
            text,
            mode,
            machines,
            groups,
            problems: Vec::new(),
            warnings: Vec::new(),
            unsupported: First::new(),
            ignored: First::new(),
        }
    }

    /// Returns what was found: problems, or everything else.
    pub(super) fn finish(self) -> Result<Findings, Vec<Problem>> {
        let (mut problems, mut warnings) = (self.problems, self.warnings);
        if problems.is_empty() {
            warnings.sort();
            return Ok(Findings { unsupported: self.unsupported, ignored: self.ignored, warnings });
        }
        problems.sort();
        Err(problems)
    }

    /// Tells whether the text has to be in order throughout.
    pub(super) fn strict(&self) -> bool {
        self.mode != Mode::Tolerant
    }

    /// Tells whether a person waits for warnings about what they hardly meant.
    pub(super) fn picky(&self) -> bool {
        self.mode == Mode::Strict
    }

    /// Notes something that makes the text no config for any reader.
    pub(super) fn problem(&mut self, at: usize, message: String, hint: Option<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem::at(self.text, at, message, hint));
        }
    }

    /// Notes something that is in order, and yet hardly what is meant.
    pub(super) fn warn(&mut self, at: usize, message: String, hint: Option<String>) {
        if self.warnings.len() < MAX_PROBLEMS {
            self.warnings.push(Problem::at(self.text, at, message, hint));
        }
    }

    /// Notes a value that is not what its key wants, or that this version does not understand.
    pub(super) fn wrong(&mut self, section: &Section<'_>, key: &str, at: usize, message: String, hint: Option<String>) {
        if self.strict() || section.scope == Scope::Whole {
            self.problem(at, message, hint);
        } else {
            self.note(section, key);
        }
    }

    fn note(&mut self, section: &Section<'_>, key: &str) {
        if section.scope != Scope::Whole {
            self.unsupported.entry(section.scope.clone()).or_insert_with(|| path_of(section, key));
        }
    }

    /// Notes a key that this version does not know.
    fn note_unknown(&mut self, section: &Section<'_>, key: &str) {
        let adds_rights = matches!(section.scope, Scope::Shared | Scope::Machine(_)) && key.starts_with(RIGHT_PREFIX);
        if adds_rights {
            self.ignored.entry(section.scope.clone()).or_insert_with(|| path_of(section, key));
        } else {
            self.note(section, key);
        }
    }

    /// Looks for keys that this section may not have.
    pub(super) fn known(&mut self, section: &Section<'_>, keys: &[&str]) {
        for key in section.table.keys().filter(|k| !keys.contains(&k.get_ref().as_ref())) {
            let word = key.get_ref().as_ref();
            if !self.strict() {
                self.note_unknown(section, word);
            } else if self.problems.len() < MAX_PROBLEMS {
                let place =
                    if section.path.is_empty() { "at the top".into() } else { format!("in [{}]", section.path) };
                let hint = table_of(word)
                    .map(|table| format!("`{word}` belongs under [{table}]"))
                    .or_else(|| nearest(word, keys.iter().copied()).map(|near| format!("did you mean `{near}`?")))
                    .unwrap_or_else(|| format!("known here: {}", keys.join(", ")));
                self.problem(key.span().start, format!("unknown key `{}` {place}", shown(word)), Some(hint));
            }
        }
    }

    /// Returns the table under this key.
    pub(super) fn section(&mut self, parent: &Section<'w>, key: &str, scope: Scope) -> Option<Section<'w>> {
        let (name, value) = parent.table.get_key_value(key)?;
        let path = if parent.path.is_empty() { shown(key) } else { format!("{}.{}", parent.path, shown(key)) };
        let at = name.span().start;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section { path, scope, at, table }),
            other => {
                let message = format!("[{path}] must be a table, this is {}", described(other));
                let hint = format!("write its header in single brackets, [{path}], and its keys below");
                let section = Section { path: parent.path.clone(), scope, at, table: parent.table };
                self.wrong(&section, key, at, message, Some(hint));
                None
            }
        }
    }

    /// Returns the string under this key, and where it is.
    pub(super) fn string(&mut self, section: &Section<'w>, key: &str) -> Option<(usize, &'w str)> {
        let value = section.table.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some((value.span().start, text.as_ref())),
            other => {
                let message = format!("`{key}` must be a string in quotes, this is {}", described(other));
                self.wrong(section, key, value.span().start, message, None);
                None
            }
        }
    }

    /// Returns the truth value under this key.
    pub(super) fn boolean(&mut self, section: &Section<'w>, key: &str) -> Option<bool> {
        let value = section.table.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(is_so) => Some(*is_so),
            other => {
                let message = format!("`{key}` must be true or false, this is {}", described(other));
                self.wrong(section, key, value.span().start, message, Some(format!("write {key} = false")));
                None
            }
        }
    }

    /// Returns the array of strings under this key, each with where it is.
    pub(super) fn strings(&mut self, section: &Section<'w>, key: &str) -> Option<Vec<(usize, &'w str)>> {
        let value = section.table.get(key)?;
        let items = match value.get_ref() {
            DeValue::Array(items) => items,
            other => {
                let message = format!("`{key}` must be an array of strings, this is {}", described(other));
                let hint = other.as_str().map(|text| format!("write {key} = {}", as_array(text)));
                self.wrong(section, key, value.span().start, message, hint);
                return None;
            }
        };
        let mut strings = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => strings.push((item.span().start, text.as_ref())),
                other => {
                    let message = format!("`{key}` must have strings only, this is {}", described(other));
                    self.wrong(section, key, item.span().start, message, None);
                }
            }
        }
        Some(strings)
    }

    /// Returns the name under this key, without looking it up.
    pub(super) fn name(&mut self, section: &Section<'w>, key: &str) -> Option<(usize, Name)> {
        let (at, text) = self.string(section, key)?;
        let name = self.parse_name(section, key, at, text)?;
        Some((at, name))
    }

    fn parse_name(&mut self, section: &Section<'_>, key: &str, at: usize, text: &str) -> Option<Name> {
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let message = format!("`{}` in `{key}` is not a name: {error}", shown(text));
                let hint = text.contains([',', ' ']).then(|| format!("write {}", as_array(text)));
                self.wrong(section, key, at, message, hint);
                None
            }
        }
    }

    /// Returns the list under this key of who may do something.
    pub(super) fn allow(&mut self, section: &Section<'w>, key: &str) -> Option<Allow> {
        let mut allow = Allow::default();
        for (at, text) in self.strings(section, key)? {
            if text == "*" {
                allow.everyone = true;
            } else if let Some(name) = self.reference(section, key, at, text) {
                allow.names.insert(name);
            }
        }
        Some(allow)
    }

    /// Returns the name of a machine or a group, which must exist.
    pub(super) fn reference(&mut self, section: &Section<'_>, key: &str, at: usize, text: &str) -> Option<Name> {
        let name = self.parse_name(section, key, at, text)?;
        let exists = |names: Option<&DeTable<'_>>| names.is_some_and(|t| t.contains_key(text));
        // A member does not ask: an unknown name allows nothing.
        if self.strict() && self.problems.len() < MAX_PROBLEMS && !exists(self.machines) && !exists(self.groups) {
            let names = [self.machines, self.groups].into_iter().flatten().flat_map(|t| t.keys());
            let hint = match nearest(text, names.map(|k| k.get_ref().as_ref())) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("add [machine.{text}] or [group.{text}], or take it out of the list"),
            };
            let message = format!("`{text}` in `{key}` of [{}] is neither a machine nor a group", section.path);
            self.problem(at, message, Some(hint));
        }
        Some(name)
    }
}

/// Returns the dotted name of a key.
fn path_of(section: &Section<'_>, key: &str) -> String {
    let key = shown(key);
    if section.path.is_empty() { key } else { format!("{}.{key}", section.path) }
}

/// Returns where a key of a table is; the table's own beginning when it has no such key.
pub(super) fn at_key(section: &Section<'_>, key: &str) -> usize {
    section.table.get_key_value(key).map_or(section.at, |(name, _)| name.span().start)
}

fn described(value: &DeValue<'_>) -> String {
    let article = if matches!(value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
    format!("{article} {}", value.type_str())
}

/// Writes a comma string as the array that was meant.
fn as_array(text: &str) -> String {
    let items: Vec<String> = text
        .split([',', ' '])
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .take(16)
        .map(|item| format!("\"{}\"", shown(item)))
        .collect();
    format!("[{}]", items.join(", "))
}
