//! Which variables a caller may add to a command's environment: an allow-list of names, and names that no list allows.
//!
//! Where only a named command is allowed, the environment is all that a caller can still shape: it must not become a
//! way to run something else.

/// What every machine accepts.
const ALWAYS: &[&str] = &["LANG", "LC_*", "TERM"];

/// What no machine accepts, whatever its `accept_env` says.
const NEVER: &[&str] = &[
    // The dynamic loaders of Linux and macOS load code, or trace, by these.
    "LD_*",
    "DYLD_*",
    // glibc drops these for set-user-id programs: they load code or data from a path, or change the allocator.
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_*",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TZDIR",
    // Shells run files or functions named by these, or read scripts differently.
    "BASHOPTS",
    "BASH_*",
    "CDPATH",
    "ENV",
    "FPATH",
    "GLOBIGNORE",
    "IFS",
    "KSH_ENV",
    "PROMPT_COMMAND",
    "PS4",
    "SHELLOPTS",
    "ZDOTDIR",
    // Interpreters and run times load code, or take options, by these.
    "CLASSPATH",
    "CORECLR_*",
    "COR_*",
    "DOTNET_*",
    "ERL_*",
    "GEM_*",
    "GUILE_*",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LUA_*",
    "NODE_*",
    "OPENSSL_*",
    "PERL*",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "PYTHON*",
    "RUBY*",
    "TCLLIBPATH",
    "_JAVA_OPTIONS",
    // Terminal descriptions are read from these paths.
    "TERMCAP",
    "TERMINFO*",
    // malai sets these from the user's account. PATH decides which program a named command's first word is, and HOME
    // whose configuration files it reads.
    "HOME",
    "LOGNAME",
    "MALAI_*",
    "PATH",
    "PWD",
    "SHELL",
    "USER",
];

/// How a name stands before any config is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Every machine accepts it.
    Always,
    /// A machine's `accept_env` may name it.
    Ask,
    /// No machine accepts it.
    Never,
    /// It is not the name of a variable.
    NotAName,
}

/// How this name stands.
pub(crate) fn standing(name: &str) -> Standing {
    if !is_variable(name) {
        Standing::NotAName
    } else if NEVER.iter().any(|pattern| matches(pattern, name)) {
        Standing::Never
    } else if ALWAYS.iter().any(|pattern| matches(pattern, name)) {
        Standing::Always
    } else {
        Standing::Ask
    }
}

/// Whether a pattern, a name or the beginning of names followed by `*`, means this name.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// Whether a text may stand in `accept_env`.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    if name.is_empty() {
        Err("must name variables, or the beginning of their names: a bare `*` would accept everything")
    } else if !is_variable(name) {
        Err("must be the name of a variable (letters, digits and `_`), or its beginning followed by `*`")
    } else if NEVER.iter().any(|never| matches(never, name)) {
        Err("names variables that load code or replace what malai sets, and that no machine accepts")
    } else {
        Ok(())
    }
}

fn is_variable(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_names() {
        let table = [
            ("LANG", Standing::Always),
            ("LC_ALL", Standing::Always),
            ("TERM", Standing::Always),
            ("TERMINFO", Standing::Never),
            ("LANGUAGE", Standing::Ask),
            ("GIT_AUTHOR_NAME", Standing::Ask),
            ("http_proxy", Standing::Ask),
            ("LD_PRELOAD", Standing::Never),
            ("DYLD_INSERT_LIBRARIES", Standing::Never),
            ("BASH_FUNC_ls", Standing::Never),
            ("BASH_ENV", Standing::Never),
            ("ENV", Standing::Never),
            ("ENVIRONMENT", Standing::Ask),
            ("PATH", Standing::Never),
            ("IFS", Standing::Never),
            ("PYTHONPATH", Standing::Never),
            ("PERL5OPT", Standing::Never),
            ("RUBYOPT", Standing::Never),
            ("NODE_OPTIONS", Standing::Never),
            ("MALAI_SESSION", Standing::Never),
            ("", Standing::NotAName),
            ("1A", Standing::NotAName),
            ("A=B", Standing::NotAName),
            ("BASH_FUNC_x%%", Standing::NotAName),
            ("LÄNG", Standing::NotAName),
            ("A\0", Standing::NotAName),
        ];
        for (name, wanted) in table {
            assert_eq!(standing(name), wanted, "{name}");
        }
    }

    #[test]
    fn a_pattern_that_could_only_mean_refused_names_is_refused() {
        for good in ["GIT_*", "EDITOR", "L*", "P*"] {
            assert_eq!(check_pattern(good), Ok(()), "{good}");
        }
        for bad in ["*", "", "LD_*", "LD_PRELOAD", "PYTHON*", "A B", "A*B", "*A", "PATH"] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wide_pattern_still_does_not_reach_refused_names() {
        assert!(matches("L*", "LD_PRELOAD"));
        assert_eq!(standing("LD_PRELOAD"), Standing::Never);
    }
}
