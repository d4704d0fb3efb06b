//! Checks whether the config and this machine agree on the users that commands run as.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::access::users_named;
use malai_protocol::failure::Failure;
use malai_protocol::local::Finding;
use tokio::time::timeout;

use crate::clusters::membership::Membership;
use crate::executor::process::user;
use crate::runtime::blocking::blocking;

/// Bounds how long the system's user database may take: a directory service may be behind it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds the names that are looked up.
const MAX_USERS: usize = 64;

/// Checks whether commands can run here as the config says.
pub(super) async fn look(membership: &Arc<Membership>) -> Vec<Finding> {
    if membership.host.agent {
        return Vec::new();
    }
    if let Err(failure) = membership.check_account() {
        // Root need not be named where nothing is to run.
        if membership.host.root {
            let mend = failure.hint.unwrap_or_default();
            return vec![Finding::note("users", format!("no command runs here: {}", failure.message)).mend(mend)];
        }
        return vec![broken(failure.message, failure.hint)];
    }
    let named = users_named(&membership.held().config, &membership.me);
    if !membership.host.root || named.is_empty() {
        return Vec::new();
    }
    let looking = blocking(move || {
        let known = named.into_iter().take(MAX_USERS);
        Ok(known.map(|(name, section)| (user::find(Some(&name)).map(drop), name, section)).collect::<Vec<_>>())
    });
    let looked = match timeout(LOOKUP_TIMEOUT, looking).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(failure)) => return vec![broken(failure.message, failure.hint)],
        Err(_) => {
            let text = format!("the user database did not answer within {} s", LOOKUP_TIMEOUT.as_secs());
            return vec![Finding::broken("users", text, "getent passwd; look at nsswitch.conf and what it names")];
        }
    };
    let names: Vec<_> = looked.iter().map(|(_, name, _)| name.as_str()).collect();
    let text = format!("commands run as {}", names.join(", "));
    let wrong: Vec<_> = looked.iter().filter_map(wrong).collect();
    if wrong.is_empty() { vec![Finding::ok("users", text)] } else { wrong }
}

fn wrong((found, name, section): &(Result<(), Failure>, String, String)) -> Option<Finding> {
    let Failure { message, hint, .. } = found.as_ref().err()?;
    Some(broken(format!("[{section}] in cluster.toml names the user {name}: {message}"), hint.clone()))
}

fn broken(text: String, mend: Option<String>) -> Finding {
    Finding::broken("users", text, mend.unwrap_or_else(|| "name another user in cluster.toml".to_owned()))
}
