//! The directory of this malai's files.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use malai_daemon::store::socket::SOCKET_PATH_MAX_BYTES;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

/// Names the variable that sets another home.
pub(crate) const HOME_VARIABLE: &str = "MALAI_HOME";

/// Returns the home that the environment names, or the platform's data directory for `malai`; always an absolute path.
///
/// # Errors
/// When there is none, or when its sockets' paths would be too long.
pub(crate) fn find() -> Result<Home, Failure> {
    at(root()?)
}

fn root() -> Result<PathBuf, Failure> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(root) = named(HOME_VARIABLE) {
        return absolute(HOME_VARIABLE, root);
    }
    if let Some(home) = named("HOME") {
        absolute("HOME", home)?;
    }
    let dirs = directories::ProjectDirs::from("", "", "malai").ok_or_else(|| {
        Failure::new(Kind::BadConfig, "this user has no home directory, so malai has no place for its files")
            .hint(format!("name one: {HOME_VARIABLE}=/some/directory malai …"))
    })?;
    Ok(dirs.data_dir().to_owned())
}

/// Refuses a relative path, which means another directory in each place, or one that is called `~`.
fn absolute(variable: &str, path: PathBuf) -> Result<PathBuf, Failure> {
    if path.is_absolute() {
        return Ok(path);
    }
    let shown = path.display();
    if path.as_os_str().as_bytes().starts_with(b"~") {
        let message = format!("{variable} is `{shown}`: only a shell replaces the ~, and only where it is not quoted");
        let hint = match path.strip_prefix("~") {
            Ok(rest) if variable == HOME_VARIABLE => format!("{variable}=\"$HOME/{}\" malai …", rest.display()),
            _ => format!("write the whole path: {variable}=/home/… malai …"),
        };
        return Err(Failure::new(Kind::BadConfig, message).hint(hint));
    }
    let message = format!("{variable} is the relative path `{shown}`; it must be absolute");
    let there = std::path::absolute(&path).unwrap_or_else(|_| Path::new("/some/directory").join(&path));
    Err(Failure::new(Kind::BadConfig, message).hint(format!("say where it is: {variable}={} malai …", there.display())))
}

fn at(root: PathBuf) -> Result<Home, Failure> {
    let home = Home::new(root);
    let longest = home.executor_socket();
    let length = longest.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_MAX_BYTES {
        return Err(Failure::new(
            Kind::BadConfig,
            format!(
                "the path `{}` has {length} bytes; a socket's path has at most {SOCKET_PATH_MAX_BYTES}",
                longest.display()
            ),
        )
        .hint(format!("choose a shorter directory: {HOME_VARIABLE}=/short/path malai …")));
    }
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_too_deep_for_its_sockets_is_refused_with_path_and_variable() {
        let failure = at(PathBuf::from(format!("/{}", "x".repeat(SOCKET_PATH_MAX_BYTES)))).expect_err("too long");
        assert!(failure.message.contains("executor.sock"), "{failure}");
        assert!(failure.hint.expect("hint").contains(HOME_VARIABLE));
        let fits = "/".to_owned() + &"x".repeat(SOCKET_PATH_MAX_BYTES - "/executor.sock".len() - 1);
        at(PathBuf::from(fits)).expect("fits");
    }

    #[test]
    fn a_home_that_is_not_an_absolute_path_is_refused_with_what_was_meant() {
        let refused = |variable: &str, path: &str| absolute(variable, path.into()).expect_err("not absolute");
        let table = [
            ("~/malai", "MALAI_HOME=\"$HOME/malai\" malai …"),
            ("~alice/malai", "write the whole path: MALAI_HOME=/home/… malai …"),
        ];
        for (path, hint) in table {
            let failure = refused(HOME_VARIABLE, path);
            assert!(failure.message.contains(&format!("MALAI_HOME is `{path}`: only a shell")), "{failure}");
            assert_eq!(failure.hint.as_deref(), Some(hint));
        }
        let here = std::env::current_dir().expect("a directory");
        for path in ["malai", "./malai", "../malai"] {
            let failure = refused("HOME", path);
            assert!(failure.message.contains(&format!("HOME is the relative path `{path}`")), "{failure}");
            let hint = failure.hint.expect("a hint");
            assert!(hint.contains(&format!("HOME={}", here.join(path.trim_start_matches("./")).display())), "{hint}");
        }
        assert_eq!(absolute(HOME_VARIABLE, "/srv/malai".into()), Ok(PathBuf::from("/srv/malai")));
    }
}
