//! Whose commands run here, so that no command of a user starts while all processes of that user are killed: it would be
//! killed with them, and its record would say that a signal ended it.

use std::collections::HashMap;

use nix::unistd::{Gid, Uid};
use tokio::sync::watch;

/// The users that commands run as, but for the executor's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users(watch::Sender<HashMap<Uid, Commands>>);

/// The commands of one user.
#[derive(Debug, Default)]
struct Commands {
    count: usize,
    is_swept: bool,
}

/// One command of a user, from before its start until its session is over.
#[derive(Debug)]
pub(crate) struct Place {
    users: Users,
    /// Whose it is.
    pub(crate) uid: Uid,
    /// The user's primary group.
    pub(crate) gid: Gid,
}

/// No command of this user starts while this is there.
#[derive(Debug)]
pub(crate) struct Sweep<'p>(&'p Place);

impl Users {
    /// Waits until this user's processes are not killed all at once. Cancel-safe.
    pub(crate) async fn enter(&self, uid: Uid, gid: Gid) -> Place {
        let mut changes = self.0.subscribe();
        loop {
            changes.mark_unchanged();
            let mut is_in = false;
            self.0.send_if_modified(|all| {
                let commands = all.entry(uid).or_default();
                is_in = !commands.is_swept;
                commands.count += usize::from(is_in);
                false
            });
            if is_in {
                return Place { users: self.clone(), uid, gid };
            }
            // The sender is here, so that there is no error.
            let _changed = changes.changed().await;
        }
    }
}

impl Place {
    /// Keeps others of this user from starting; `None` when there are some.
    pub(crate) fn sweep(&self) -> Option<Sweep<'_>> {
        let mut is_alone = false;
        self.users.0.send_if_modified(|all| {
            let commands = all.entry(self.uid).or_default();
            is_alone = commands.count == 1 && !commands.is_swept;
            commands.is_swept |= is_alone;
            false
        });
        is_alone.then(|| Sweep(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.users.0.send_if_modified(|all| {
            if let Some(commands) = all.get_mut(&self.uid) {
                commands.count -= 1;
                if commands.count == 0 {
                    all.remove(&self.uid);
                }
            }
            false
        });
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        let Place { users, uid, .. } = self.0;
        users.0.send_modify(|all| {
            if let Some(commands) = all.get_mut(uid) {
                commands.is_swept = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const USER: (Uid, Gid) = (Uid::from_raw(1001), Gid::from_raw(1001));

    #[tokio::test]
    async fn a_user_with_two_commands_is_not_swept_and_none_starts_while_one_is() {
        let users = Users::default();
        let first = users.enter(USER.0, USER.1).await;
        let second = users.enter(USER.0, USER.1).await;
        assert!(first.sweep().is_none());
        drop(second);
        let sweep = first.sweep().expect("it is alone");
        assert!(first.sweep().is_none(), "once at a time");
        let third = users.enter(USER.0, USER.1);
        tokio::pin!(third);
        assert!(third.as_mut().now_or_never().is_none(), "it would be killed as well");
        users.enter(Uid::from_raw(1002), Gid::from_raw(1002)).now_or_never().expect("another user's starts");
        drop(sweep);
        let third = third.await;
        assert!(first.sweep().is_none());
        drop((first, third));
        assert!(users.0.borrow().is_empty());
    }
}
