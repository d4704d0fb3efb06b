//! The account that this process runs as.

use malai_protocol::failure::{Failure, Kind};
use nix::unistd::{Uid, User};

/// Returns the name of the user that this process runs as; its number where the system knows no name.
///
/// # Errors
/// When the user database cannot be asked.
pub(crate) fn own_user_name() -> Result<String, Failure> {
    let uid = Uid::effective();
    let user = User::from_uid(uid).map_err(|error| {
        Failure::new(Kind::Internal, format!("cannot look up the name of user {uid}, as which malai runs: {error}"))
            .hint(format!("see whether the system knows it: getent passwd {uid}"))
    })?;
    Ok(user.map_or_else(|| uid.to_string(), |user| user.name))
}
