//! The floors of all four crates: a module imports from floors below it only, and folders form no circle.
//!
//! The imports are read from the sources: `use`, and paths in code, without what is `#[cfg(test)]`. A module that has its
//! own directory is a folder. Within one folder its files may know each other, and a folder and what it contains may too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the top: what a module imports of another is on a line below its own.
const PROTOCOL: &[&str] = &[
    "access",
    "plan gate",
    "local",
    "peer sessions invite target scan audit",
    "config seal codec",
    "session snapshot ticket home",
    "failure id escape",
];
const CLI: &[&str] = &[
    "commands",
    "service session args",
    "client",
    "background",
    "output logging timestamp",
    "home stdio escape duration platform",
];
const E2E: &[&str] = &["harness reach survival", "cluster", "lab facts program toml"];

/// How many entries `daemon/src` may have: this many still show at a look what the daemon consists of.
const MAX_DAEMON_ENTRIES: usize = 16;

/// A module's path below the root of its crate.
type Module = Vec<String>;

/// One import: who, where, and of what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: Module,
    to: Module,
    /// As it is written, from the crate's root on.
    path: Module,
    /// File and line.
    place: (String, usize),
}

/// Shows where an import is, and its path.
fn written((file, line): &(String, usize), path: &[String]) -> String {
    format!("{file}:{line} ({})", path.join("::"))
}

/// A crate's modules and what they import of each other.
struct Imports {
    modules: BTreeSet<Module>,
    all: Vec<Import>,
}

/// Returns the path of what is in a module.
fn below(module: &[String], name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

mod source {
    //! Rust as far as imports need it: words, `::` and single characters, without comments and literals.

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(super) struct Token {
        pub(super) text: String,
        pub(super) line: usize,
    }

    /// Returns the tokens of a source.
    pub(super) fn tokens(source: &str) -> Vec<Token> {
        let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
        while at < source.len() {
            let end = at + length(&source[at..]);
            let text = &source[at..end];
            let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && !text.contains('"');
            if is_word || text == "::" || (text.len() == 1 && text.chars().all(|c| c.is_ascii_punctuation())) {
                found.push(Token { text: text.to_owned(), line });
            }
            line += text.bytes().filter(|byte| *byte == b'\n').count();
            at = end;
        }
        found
    }

    /// Returns the length of what the text begins with.
    fn length(text: &str) -> usize {
        let until = |end: &str| text[2..].find(end).map_or(text.len(), |at| 2 + at + end.len());
        let first = text.chars().next().expect("not empty");
        let word = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        match first {
            _ if text.starts_with("//") => text.find('\n').unwrap_or(text.len()),
            _ if text.starts_with("/*") => until("*/"),
            _ if text.starts_with("::") => 2,
            '"' => quoted(text),
            '\'' => character(text),
            'r' | 'b' | 'c' if matches!(text.as_bytes().get(word), Some(b'"' | b'#')) && word < 3 => {
                prefixed(text, word)
            }
            'b' if text.starts_with("b'") => 1 + character(&text[1..]),
            _ if word > 0 => word,
            _ => first.len_utf8(),
        }
    }

    /// Returns the length of a literal that begins with `r`, `b`, `br`, or of a raw identifier's `r#`.
    fn prefixed(text: &str, prefix: usize) -> usize {
        let hashes = text[prefix..].bytes().take_while(|byte| *byte == b'#').count();
        let rest = &text[prefix + hashes..];
        match (rest.starts_with('"'), text[..prefix].contains('r')) {
            (true, true) => {
                let end = format!("\"{}", "#".repeat(hashes));
                prefix + hashes + 1 + rest[1..].find(&end).map_or(rest.len() - 1, |at| at + end.len())
            }
            (true, false) => prefix + quoted(rest),
            (false, _) => prefix + hashes,
        }
    }

    fn quoted(text: &str) -> usize {
        let mut escaped = false;
        for (at, c) in text.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return at + 1,
                _ => {}
            }
        }
        text.len()
    }

    /// Returns the length of a character's literal, or 1 for the mark of a lifetime.
    fn character(text: &str) -> usize {
        let inner: Vec<(usize, char)> = text.char_indices().skip(1).take(3).collect();
        match inner[..] {
            [(_, '\\'), (after, _), ..] => text[after + 1..].find('\'').map_or(text.len(), |at| after + 1 + at + 1),
            [_, (end, '\''), ..] => end + 1,
            _ => 1,
        }
    }
}

/// One file: its module, and its tokens without what only tests have.
struct File {
    module: Module,
    path: String,
    tokens: Vec<source::Token>,
}

/// Where the matching end of an opening bracket is.
fn closing(tokens: &[source::Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}

/// Takes out of a file what is `#[cfg(test)]`, and returns the names of its modules that are.
fn without_tests(tokens: Vec<source::Token>) -> (Vec<source::Token>, Vec<String>) {
    let (mut kept, mut tests, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let is_attribute = tokens[at].text == "#" && tokens.get(at + 1).is_some_and(|token| token.text == "[");
        if !is_attribute {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let end = closing(&tokens, at + 1);
        let has = |word: &str| tokens[at..end.min(tokens.len())].iter().any(|token| token.text == word);
        let is_test = has("cfg") && has("test") && !has("not");
        at = end + 1;
        if is_test {
            let item = at;
            at = after_item(&tokens, at);
            if let Some(name) = tokens[item..at].windows(3).find(|found| found[0].text == "mod" && found[2].text == ";")
            {
                tests.push(name[1].text.clone());
            }
        }
    }
    (kept, tests)
}

/// Returns where what follows an attribute ends: an item, a statement, or a field.
fn after_item(tokens: &[source::Token], mut at: usize) -> usize {
    const ITEMS: &[&str] =
        &["fn", "mod", "use", "impl", "struct", "enum", "const", "static", "type", "unsafe", "async", "trait"];
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    while text(at) == "#" {
        at = closing(tokens, at + 1) + 1;
    }
    let visible = if text(at) == "pub" { at + 1 } else { at };
    let visible = if visible > at && text(visible) == "(" { closing(tokens, visible) + 1 } else { visible };
    let is_item = ITEMS.contains(&text(visible));
    while at < tokens.len() {
        match text(at) {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            "}" => return at,
            "{" => return closing(tokens, at) + 1,
            "(" | "[" => at = closing(tokens, at),
            _ => {}
        }
        at += 1;
    }
    at
}

/// Returns module, path and text of all files below a directory. Programs in `bin` are not modules: nobody can import them.
fn files(dir: &Path, module: &[String]) -> Vec<(Module, String, String)> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8").to_owned();
        let own = below(module, &stem);
        if path.is_dir() && stem != "bin" {
            found.extend(files(&path, &own));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = if ["lib", "main", "mod"].contains(&stem.as_str()) { module.to_vec() } else { own };
            let text = fs::read_to_string(&path).expect("readable");
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((module, name, text));
        }
    }
    found
}

/// Reads one file's paths.
struct Reader<'f> {
    file: &'f File,
    modules: &'f BTreeSet<Module>,
    /// The inline modules around the place, and where each ends.
    inline: Vec<(String, usize)>,
    /// What names mean here, by the module that they are used in.
    names: BTreeMap<Module, BTreeMap<String, Module>>,
    paths: Vec<(usize, Module)>,
}

impl Reader<'_> {
    fn text(&self, at: usize) -> &str {
        self.file.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    fn here(&self) -> Module {
        self.file.module.iter().cloned().chain(self.inline.iter().map(|(name, _)| name.clone())).collect()
    }

    fn read(&mut self) {
        let mut at = 0;
        while at < self.file.tokens.len() {
            self.inline.retain(|(_, end)| *end > at);
            let is_whole = at == 0 || !["::", "."].contains(&self.text(at - 1));
            if self.text(at) == "use" && is_whole && self.text(at + 1) != "<" {
                at = self.tree(at + 1, Vec::new(), true);
                continue;
            }
            if self.text(at) == "mod" && self.text(at + 2) == "{" {
                self.inline.push((self.text(at + 1).to_owned(), closing(&self.file.tokens, at + 2)));
            }
            let is_visibility = at > 1 && self.text(at - 1) == "in" && self.text(at - 2) == "(";
            if is_whole && !is_visibility && self.text(at + 1) == "::" && self.begins(self.text(at)) {
                at = self.tree(at, Vec::new(), false);
                continue;
            }
            at += 1;
        }
    }

    fn begins(&self, word: &str) -> bool {
        let here = self.here();
        ["crate", "self", "super"].contains(&word)
            || self.names.get(&here).is_some_and(|names| names.contains_key(word))
            || self.modules.contains(&below(&here, word))
    }

    /// Reads a path, or a tree of them, and returns where it ends.
    fn tree(&mut self, mut at: usize, mut path: Module, is_use: bool) -> usize {
        loop {
            let word = self.text(at).to_owned();
            if word == "{" && is_use {
                let end = closing(&self.file.tokens, at);
                at += 1;
                while at < end {
                    at = self.tree(at, path.clone(), true);
                    at += usize::from(self.text(at) == ",");
                }
                return end + 1;
            }
            if !word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                // `*`, or what follows `::<`.
                self.found(at, &path, None, is_use);
                return at + 1;
            }
            path = self.step(path, &word);
            at += 1;
            if self.text(at) == "::" {
                at += 1;
                continue;
            }
            let mut name = Some(word).filter(|word| word != "self").or_else(|| path.last().cloned());
            if is_use && self.text(at) == "as" {
                name = Some(self.text(at + 1).to_owned());
                at += 2;
            }
            self.found(at - 1, &path, name, is_use);
            return at;
        }
    }

    /// Goes on by one word: a path begins at the root of the crate, or names another crate.
    fn step(&self, path: Module, word: &str) -> Module {
        let here = self.here();
        match (word, path.is_empty()) {
            ("crate", _) => vec!["crate".into()],
            ("self", true) => [&["crate".to_owned()], &here[..]].concat(),
            ("self", false) => path,
            ("super", true) => [&["crate".to_owned()], &here[..here.len().saturating_sub(1)]].concat(),
            ("super", false) => path[..path.len() - 1].to_vec(),
            (word, true) if self.modules.contains(&below(&here, word)) => {
                [&["crate".to_owned()], &here[..], &[word.to_owned()]].concat()
            }
            (word, true) => match self.names.get(&here).and_then(|names| names.get(word)) {
                Some(path) => path.clone(),
                None => vec![word.to_owned()],
            },
            (word, false) => below(&path, word),
        }
    }

    fn found(&mut self, at: usize, path: &Module, name: Option<String>, is_use: bool) {
        let Some(("crate", rest)) = path.split_first().map(|(first, rest)| (first.as_str(), rest)) else { return };
        let line = self.file.tokens.get(at).map_or(0, |token| token.line);
        self.paths.push((line, rest.to_vec()));
        if let (true, Some(name)) = (is_use, name) {
            let here = self.here();
            self.names.entry(here).or_default().insert(name, path.clone());
        }
    }
}

/// Returns the module that a path ends in, through what modules export of others.
fn resolve(
    path: &[String],
    modules: &BTreeSet<Module>,
    names: &BTreeMap<Module, BTreeMap<String, Module>>,
    steps: u8,
) -> Module {
    let mut module = Vec::new();
    for (at, word) in path.iter().enumerate() {
        let next = below(&module, word);
        if modules.contains(&next) {
            module = next;
            continue;
        }
        let exported = names.get(&module).and_then(|names| names.get(word)).filter(|_| steps > 0);
        return match exported {
            Some(target) => resolve(&[&target[1..], &path[at + 1..]].concat(), modules, names, steps - 1),
            None => module,
        };
    }
    module
}

impl Imports {
    /// Reads the sources of a crate.
    fn of(sources: Vec<(Module, String, String)>) -> Self {
        let (mut all, mut tests) = (Vec::new(), BTreeSet::new());
        for (module, path, text) in sources {
            let (tokens, names) = without_tests(source::tokens(&text));
            tests.extend(names.into_iter().map(|name| below(&module, &name)));
            all.push(File { module, path, tokens });
        }
        all.retain(|file| (1..=file.module.len()).all(|len| !tests.contains(&file.module[..len])));
        let modules: BTreeSet<Module> = all.iter().map(|file| file.module.clone()).collect();
        let (mut names, mut found) = (BTreeMap::new(), Vec::new());
        for file in &all {
            let mut reader =
                Reader { file, modules: &modules, inline: Vec::new(), names: BTreeMap::new(), paths: Vec::new() };
            // Once for what names mean, which may stand below where they are used.
            reader.read();
            reader.paths.clear();
            reader.read();
            names.extend(std::mem::take(&mut reader.names));
            found.extend(reader.paths.into_iter().map(|(line, path)| (file, line, path)));
        }
        let import = |(file, line, path): (&File, usize, Module)| Import {
            from: file.module.clone(),
            to: resolve(&path, &modules, &names, 8),
            place: (file.path.clone(), line),
            path,
        };
        let mut all: Vec<Import> = found.into_iter().map(import).filter(|import| import.from != import.to).collect();
        all.sort_by(|one, other| one.place.cmp(&other.place));
        // One place in a file says enough; of the root everything counts.
        let mut seen = BTreeSet::new();
        all.retain(|import| import.to.is_empty() || seen.insert((import.place.0.clone(), import.to.clone())));
        Self { modules, all }
    }

    /// Returns the imports that go up or stay on their floor, or that take more of the crate's root than a constant, and the
    /// modules that have no floor.
    fn upwards(&self, floors: &[&str]) -> Vec<String> {
        let floor = |name: &String| floors.iter().position(|line| line.split(' ').any(|other| other == name));
        let tops: BTreeSet<&String> = self.modules.iter().filter_map(|module| module.first()).collect();
        let homeless = tops.into_iter().filter(|name| floor(name).is_none());
        let mut found: Vec<String> = homeless.map(|name| format!("{name} has no floor")).collect();
        for Import { from, to, path, place } in &self.all {
            let is_constant = path.last().is_some_and(|name| name.chars().all(|c| !c.is_lowercase()));
            let place = written(place, path);
            match (from.first(), to.first()) {
                (Some(from), Some(to)) if from != to && floor(from) >= floor(to) => {
                    found.push(format!("{place}: {from} → {to} is no way down"));
                }
                (Some(from), None) if !is_constant => {
                    found.push(format!("{place}: {from} → the root, for more than a constant"));
                }
                _ => {}
            }
        }
        found
    }

    /// Returns the imports that are part of a circle between modules of one folder; those without a directory of their own
    /// count where `each_file` says so, and at the top.
    fn circles(&self, each_file: bool) -> Vec<String> {
        let is_folder = |module: &[String]| {
            self.modules.iter().any(|other| other.len() > module.len() && other.starts_with(module))
        };
        let counts = |module: &[String]| each_file || module.len() == 1 || is_folder(module);
        let mut ways: BTreeMap<(Module, Module), Vec<String>> = BTreeMap::new();
        for Import { from, to, path, place } in &self.all {
            let common = from.iter().zip(to).take_while(|(one, other)| one == other).count();
            if let (Some(from), Some(to)) = (from.get(..=common), to.get(..=common))
                && counts(from)
                && counts(to)
            {
                ways.entry((from.to_vec(), to.to_vec())).or_default().push(written(place, path));
            }
        }
        let reaches = |from: &Module, wanted: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(module) = next.pop() {
                if module == wanted {
                    return true;
                }
                if seen.insert(module) {
                    next.extend(ways.keys().filter(|(one, _)| one == module).map(|(_, other)| other));
                }
            }
            false
        };
        let in_circle = ways.iter().filter(|((from, to), _)| reaches(to, from));
        in_circle
            .map(|((from, to), places)| {
                format!("{} → {} is part of a circle: {}", from.join("/"), to.join("/"), places.join(", "))
            })
            .collect()
    }
}

fn holds(name: &str, floors: &[&str], each_file: bool) {
    let imports = Imports::of(files(&root().join(name).join("src"), &[]));
    let found = [imports.circles(each_file), imports.upwards(floors)].concat();
    assert!(found.is_empty(), "{name}: {} imports that must not be:\n{}", found.len(), found.join("\n"));
}

#[test]
fn protocol_has_floors() {
    holds("protocol", PROTOCOL, true);
}

#[test]
fn malai_cli_has_floors() {
    holds("malai-cli", CLI, false);
}

#[test]
fn e2e_has_floors() {
    holds("e2e", E2E, false);
}

#[test]
fn the_files_of_the_daemon_are_few_enough_to_be_seen_at_once() {
    let entries = fs::read_dir(root().join("daemon/src")).expect("a directory");
    let names: BTreeSet<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(names.len() <= MAX_DAEMON_ENTRIES, "{} entries: {names:?}", names.len());
}

/// Returns the imports of a crate of these files, as `from → to`.
fn imports(sources: &[(&str, &str)]) -> Imports {
    let module = |path: &str| path.split('/').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    Imports::of(sources.iter().map(|(path, text)| (module(path), (*path).to_owned(), (*text).to_owned())).collect())
}

#[test]
fn an_import_is_read_however_it_is_written() {
    let table = [
        ("use crate::x;", "x"),
        ("use crate::{y::{Thing, self}, z as other};", "y z"),
        ("use super::x::deep::Thing;", "x/deep"),
        ("fn f() { crate::x::g() }", "x"),
        ("fn f() -> Vec<super::x::Thing> {}", "x"),
        ("use crate::x; fn f() { x::deep::g() }", "x x/deep"),
        ("fn f() { deep::g() } use crate::x::deep;", "x/deep"),
        ("mod inner { use super::super::x::Thing; }", "x"),
        ("use crate::Shown;", "y"),
        ("macro_rules! m { () => { $crate::x::g() } }", "x"),
        (
            "// crate::x\n/* use crate::y; */ fn f<'a>() { \"crate::z\"; r#\"\"crate::z\"#; b\"\\\"crate::z\"; '\"'; crate::x::g('x') }",
            "x",
        ),
        ("use toml::x; use std::x; fn f() { self.x::<u8>(); T::x::y() }", ""),
        ("#[cfg(test)] mod tests { use crate::x; } #[cfg(test)] use crate::y; #[cfg(not(test))] use crate::z;", "z"),
        ("#[cfg(test)] fn f(a: u8, b: u8) -> u8 { crate::x::g() } fn h() { crate::y::g() }", "y"),
        ("struct S { #[cfg(test)] a: crate::x::T, b: crate::y::T }", "y"),
        ("#[cfg(test)] mod only;", ""),
        ("pub(in crate::x) fn f() {} pub(crate) fn g() {}", ""),
    ];
    let others =
        [("", "pub use y::Shown;"), ("x", ""), ("x/deep", ""), ("y", ""), ("z", ""), ("a/only", "use crate::x;")];
    for (text, wanted) in table {
        let read = imports(&[&others[..], &[("a", text)]].concat());
        let from: BTreeSet<String> =
            read.all.iter().filter(|import| import.from == ["a"]).map(|import| import.to.join("/")).collect();
        assert_eq!(from.into_iter().collect::<Vec<_>>().join(" "), wanted, "{text}");
    }
}

#[test]
fn an_arrow_upwards_and_a_circle_are_found() {
    let read = imports(&[
        ("", "use top::Top; const C: u8 = 1; fn f() {}"),
        ("top", "use crate::low::one::One; use crate::C;"),
        ("low", "use one::One;"),
        ("low/one", "use super::two::Two; use crate::low;"),
        ("low/one/part", "use super::One;"),
        ("low/two", "use super::three::part::Part;"),
        ("low/two/part", "use crate::f;"),
        ("low/three", ""),
        ("low/three/part", "use crate::top::Top; use crate::low::one::One;"),
    ]);
    assert_eq!(
        read.upwards(&["top", "low"]),
        [
            "low/three/part:1 (top::Top): low → top is no way down",
            "low/two/part:1 (f): low → the root, for more than a constant"
        ]
    );
    assert_eq!(read.upwards(&["top"])[0], "low has no floor");
    let circles = read.circles(false);
    for part in ["low → top", "top → low", "low/one → low/two", "low/two → low/three", "low/three → low/one"]
    {
        assert!(circles.iter().any(|found| found.starts_with(part)), "{part} of {circles:?}");
    }
    assert_eq!(circles.len(), 5, "{circles:?}");
    let files = [("", ""), ("low", ""), ("low/one", "use super::two::T;"), ("low/two", "use super::one::T;")];
    assert_eq!((imports(&files).circles(false).len(), imports(&files).circles(true).len()), (0, 2));
}
