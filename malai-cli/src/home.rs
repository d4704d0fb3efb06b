//! Where this malai lives.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;

/// The variable that names another home.
pub(crate) const VARIABLE: &str = "MALAI_HOME";
/// The longest path of a Unix socket, in bytes: `sun_path` without its final zero.
const MAX_SOCKET: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The home that the environment names, or the platform's data directory for `malai`; always an absolute path.
///
/// # Errors
/// When there is none, or when its sockets' paths would be too long.
pub(crate) fn find() -> Result<Home, Failure> {
    at(root()?)
}

fn root() -> Result<PathBuf, Failure> {
    if let Some(root) = std::env::var_os(VARIABLE).filter(|root| !root.is_empty()) {
        return std::path::absolute(&root).map_err(|e| {
            Failure::new(Kind::BadConfig, format!("{VARIABLE} is `{}`, which is no path: {e}", root.display()))
        });
    }
    let dirs = directories::ProjectDirs::from("", "", "malai").ok_or_else(|| {
        Failure::new(Kind::BadConfig, "this user has no home directory, so malai has no place for its files")
            .hint(format!("name one: {VARIABLE}=/some/directory malai …"))
    })?;
    Ok(dirs.data_dir().to_owned())
}

fn at(root: PathBuf) -> Result<Home, Failure> {
    let home = Home::new(root);
    let longest = home.executor_socket();
    let length = longest.as_os_str().as_bytes().len();
    if length > MAX_SOCKET {
        return Err(Failure::new(
            Kind::BadConfig,
            format!("`{}` has {length} bytes, and a socket's path may have {MAX_SOCKET}", longest.display()),
        )
        .hint(format!("choose a shorter directory: {VARIABLE}=/short/path malai …")));
    }
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_too_deep_for_its_sockets_is_refused_with_path_and_variable() {
        let failure = at(PathBuf::from(format!("/{}", "x".repeat(MAX_SOCKET)))).expect_err("too long");
        assert!(failure.message.contains("executor.sock"), "{failure}");
        assert!(failure.hint.expect("hint").contains(VARIABLE));
        let fits = "/".to_owned() + &"x".repeat(MAX_SOCKET - "/executor.sock".len() - 1);
        at(PathBuf::from(fits)).expect("fits");
    }
}
