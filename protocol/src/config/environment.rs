//! Which variables a caller may add to a command's environment: an allow-list of names, and names that no list allows.
//!
//! Where only a named command is allowed, the environment is all that a caller can still shape: it must not become a
//! way to run something else.

mod families;

pub use families::{Family, REFUSED_VARIABLES, Refused};

use super::Command;

/// Lists what every machine accepts.
const ALWAYS_ACCEPTED: &[&str] = &["LANG", "LC_*", "TERM"];
/// Lists names that a family's pattern covers although no program runs code, or trusts a server, by their values.
const HARMLESS_VARIABLES: &[&str] = &["NODE_ENV", "PYTHONUNBUFFERED"];
/// Bounds the variables of one request: nobody writes more by hand, and each is compared with every pattern.
pub(crate) const MAX_REQUEST_VARIABLES: usize = 1024;
/// Bounds how short a pattern may be before its `*` without a warning: a shorter one reaches variables that its author
/// does not have in mind.
const MIN_PATTERN_PREFIX_CHARS: usize = 3;

/// Says how a name stands before any config is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Every machine accepts it.
    Always,
    /// An `accept_env` may name it.
    Ask,
    /// No machine accepts it, for this reason.
    Never(&'static str),
    /// It is not the name of a variable.
    NotAName,
}

/// Returns how this name stands.
pub(crate) fn standing(name: &str) -> Standing {
    if !is_variable(name) {
        Standing::NotAName
    } else if let Some((refused, _)) = rows().find(|(_, never)| covers(never, name)) {
        Standing::Never(refused.why)
    } else if ALWAYS_ACCEPTED.iter().any(|pattern| matches(pattern, name)) {
        Standing::Always
    } else {
        Standing::Ask
    }
}

/// Tells whether a pattern of `accept_env`, a name or the beginning of names followed by `*`, means this name.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// Returns the list that counts: a named command takes nothing but what its own list has, since a caller that may run it
/// alone must not shape it by a list that was written for others.
pub(crate) fn accepted<'c>(
    command: Option<&'c Command>,
    machine: Option<&'c Vec<String>>,
    defaults: Option<&'c Vec<String>>,
) -> &'c [String] {
    let list = match command {
        Some(command) => command.accept_env.as_ref(),
        None => machine.or(defaults),
    };
    list.map_or(&[], Vec::as_slice)
}

/// Checks whether a text may stand in `accept_env` at all, whatever it reaches.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn check_form(pattern: &str) -> Result<(), &'static str> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    if name.is_empty() {
        Err("must name variables, or the beginning of their names: a bare `*` would accept everything")
    } else if !is_variable(name) {
        Err("must be the name of a variable (letters, digits and `_`), or its beginning followed by `*`")
    } else {
        Ok(())
    }
}

/// Returns why a pattern can only mean variables that no machine accepts.
pub(crate) fn in_vain(pattern: &str) -> Option<&'static str> {
    let covered = |never: &&'static str| match pattern.strip_suffix('*') {
        // Longer names that begin so are meant, and only a beginning covers them all.
        Some(beginning) => never.strip_suffix('*').is_some_and(|of| !never.starts_with('*') && begins(beginning, of)),
        None => covers(never, pattern),
    };
    rows().find(|(_, never)| covered(never)).map(|(refused, _)| refused.why)
}

/// Returns what a pattern reaches that its author may not have in mind, in words.
pub(super) fn too_wide(pattern: &str) -> Option<String> {
    let beginning = pattern.strip_suffix('*')?;
    let mut reached =
        rows().map(|(_, never)| never).filter(|never| !never.starts_with('*') && begins(never, beginning));
    if let Some(first) = reached.next() {
        let others = match reached.count() {
            0 => ", which is".to_owned(),
            1 => " and 1 other, which are".to_owned(),
            more => format!(" and {more} others, which are"),
        };
        return Some(format!("matches `{first}`{others} always refused"));
    }
    let is_short = beginning.chars().count() < MIN_PATTERN_PREFIX_CHARS;
    is_short.then(|| format!("accepts every variable that begins with `{beginning}`"))
}

/// Returns every pattern of what no machine accepts, with its row.
fn rows() -> impl Iterator<Item = (&'static Refused, &'static str)> {
    REFUSED_VARIABLES
        .iter()
        .flat_map(|family| family.refused)
        .flat_map(|row| row.names.iter().map(move |name| (row, *name)))
}

/// Tells whether a pattern of the tables means this name. Capitals do not count: some programs read `http_proxy` and
/// `npm_config_shell` in any spelling.
fn covers(never: &str, name: &str) -> bool {
    if HARMLESS_VARIABLES.contains(&name) {
        return false;
    }
    match (never.strip_prefix('*'), never.strip_suffix('*')) {
        (Some(ending), _) => ends(name, ending),
        (None, Some(beginning)) => begins(name, beginning),
        (None, None) => name.eq_ignore_ascii_case(never),
    }
}

fn begins(text: &str, beginning: &str) -> bool {
    text.as_bytes().get(..beginning.len()).is_some_and(|found| found.eq_ignore_ascii_case(beginning.as_bytes()))
}

fn ends(text: &str, ending: &str) -> bool {
    let found = text.len().checked_sub(ending.len()).and_then(|at| text.as_bytes().get(at..));
    found.is_some_and(|found| found.eq_ignore_ascii_case(ending.as_bytes()))
}

fn is_variable(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Names that each pattern of the tables means, in capitals and in other spellings.
    pub(crate) fn refused_names() -> Vec<String> {
        let mut names = Vec::new();
        for (_, never) in rows() {
            let name = match (never.strip_prefix('*'), never.strip_suffix('*')) {
                (Some(ending), _) => format!("DEPLOY{ending}"),
                (None, Some(beginning)) => format!("{beginning}ANYTHING"),
                (None, None) => never.to_owned(),
            };
            let mixed = name.char_indices().map(|(i, c)| if i % 2 == 0 { c.to_ascii_lowercase() } else { c }).collect();
            names.extend([name.to_lowercase(), mixed, name]);
        }
        names
    }

    /// Names that an `accept_env` may have.
    const ASKED: &str = "
        DEPLOY_REF CI_JOB_ID GIT_AUTHOR_NAME GIT_COMMITTER_DATE GIT_TERMINAL_PROMPT ENVIRONMENT TZ AWS_REGION
        TF_VAR_region RUST_LOG RAILS_ENV NODE_ENV PYTHONUNBUFFERED COLUMNS CUDA_VISIBLE_DEVICES";

    /// Names that no machine accepts.
    const REFUSED: &str = "
        TERMINFO LD_PRELOAD DYLD_INSERT_LIBRARIES BASH_FUNC_ls BASH_ENV ENV PATH IFS PYTHONPATH PERL5OPT RUBYOPT
        NODE_OPTIONS MALAI_SESSION GIT_SSH_COMMAND GIT_SSH GIT_EXTERNAL_DIFF GIT_PAGER GIT_EDITOR GIT_ASKPASS
        GIT_PROXY_COMMAND GIT_CONFIG_COUNT GIT_CONFIG_KEY_0 GIT_EXEC_PATH GIT_TEMPLATE_DIR GIT_DIR PAGER EDITOR
        VISUAL LESSOPEN LESS MANPAGER SSH_ASKPASS SSH_AUTH_SOCK RSYNC_RSH RSYNC_CONNECT_PROG MAKEFLAGS CC
        CARGO_HOME RUSTC_WRAPPER RUSTUP_TOOLCHAIN GOFLAGS TAR_OPTIONS JAVA_TOOL_OPTIONS _JAVA_OPTIONS CLASSPATH
        MAVEN_OPTS GRADLE_OPTS GNUPGHOME SYSTEMD_EDITOR SYSTEMD_PAGER SYSTEMD_UNIT_PATH HTTP_PROXY http_proxy
        Http_Proxy ALL_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR CURL_HOME CURL_CA_BUNDLE REQUESTS_CA_BUNDLE
        NODE_EXTRA_CA_CERTS OPENSSL_CONF OPENSSL_MODULES OPENSSL_ENGINES XDG_CONFIG_HOME TMPDIR TMP TEMP HOME
        USER LOGNAME SHELL GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH LANGUAGE PS4 SHELLOPTS PROMPT_COMMAND
        ZDOTDIR FPATH TERMCAP BROWSER DISPLAY SUDO_ASKPASS DOCKER_HOST KUBECONFIG npm_config_script_shell
        DEBIAN_FRONTEND DBUS_SESSION_BUS_ADDRESS KUBECTL_EXTERNAL_DIFF RIPGREP_CONFIG_PATH DEPLOY_COMMAND
        PSQL_EDITOR AWS_PAGER GIT_TEXTDOMAINDIR JAVACMD GEMRC HARNESS_PERL TF_ENCRYPTION TF_LOG_PATH GCE_METADATA_HOST";

    #[test]
    fn the_table_of_names() {
        let never = |name: &str| matches!(standing(name), Standing::Never(_));
        for name in ["LANG", "LC_ALL", "LC_TIME", "TERM"] {
            assert_eq!(standing(name), Standing::Always, "{name}");
        }
        for name in ASKED.split_whitespace() {
            assert_eq!(standing(name), Standing::Ask, "{name}");
        }
        for name in ["", "1A", "A=B", "BASH_FUNC_x%%", "LÄNG", "A\0"] {
            assert_eq!(standing(name), Standing::NotAName, "{name}");
        }
        for name in REFUSED.split_whitespace() {
            assert!(never(name), "{name}");
        }
    }

    #[test]
    fn every_row_of_the_tables_has_names_a_reason_and_a_source() {
        let always = |name: &&str| ALWAYS_ACCEPTED.iter().any(|pattern| matches(pattern, name));
        for row in REFUSED_VARIABLES.iter().flat_map(|family| family.refused) {
            assert!(!row.names.is_empty() && !row.why.ends_with('.') && !row.source.is_empty(), "{row:?}");
            assert!(row.names.iter().all(|name| *name == name.to_uppercase()), "{row:?}");
            assert_eq!(row.names.iter().find(|name| always(name)), None);
        }
        for name in refused_names() {
            assert!(matches!(standing(&name), Standing::Never(_)), "{name}");
        }
    }

    #[test]
    fn a_pattern_that_can_only_mean_refused_names_is_in_vain() {
        for good in ["GIT_*", "DEPLOY_REF", "CI_*", "L*", "P*", "GIT_AUTHOR_*"] {
            assert_eq!((check_form(good), in_vain(good)), (Ok(()), None), "{good}");
        }
        for bad in ["*", "", "A B", "A*B", "*A"] {
            assert!(check_form(bad).is_err(), "{bad}");
        }
        for vain in ["LD_*", "LD_PRELOAD", "ld_preload", "PYTHON*", "PATH", "EDITOR", "GIT_CONFIG_*", "GIT_TRACE2*"] {
            assert!(in_vain(vain).is_some(), "{vain}");
        }
        assert_eq!(in_vain("GIT_SSH*"), None, "it reaches names that no git knows");
    }

    #[test]
    fn a_wide_pattern_is_told_by_what_it_reaches() {
        let others = rows().filter(|(_, never)| never.starts_with("GIT_")).count() - 1;
        assert!(others > 30);
        let wanted = format!("matches `GIT_SSH_COMMAND` and {others} others, which are always refused");
        assert_eq!(too_wide("GIT_*"), Some(wanted));
        assert_eq!(too_wide("GIT_EXT*").as_deref(), Some("matches `GIT_EXTERNAL_DIFF`, which is always refused"));
        assert_eq!(too_wide("A_*").as_deref(), Some("accepts every variable that begins with `A_`"));
        for plain in ["DEPLOY_*", "CI_*", "DEPLOY_REF", "GIT_AUTHOR_*"] {
            assert_eq!(too_wide(plain), None, "{plain}");
        }
    }
}
