//! Tells whether an account is open by the system's shadow database, as pam_unix does before sshd lets somebody in.
//!
//! A password that is locked (`!` before its hash) or has to be changed keeps nobody out: malai asks for no password, and
//! accounts of services have none. docs/config.md says so.

use std::time::{SystemTime, UNIX_EPOCH};

use libc::c_long as Day;
use malai_protocol::failure::{Failure, Kind};

/// Holds the days of an account in the shadow database, counted from 1970; absent = there is no such limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Days {
    /// The first day on which the account is closed.
    expires: Option<Day>,
    /// The day on which the password was changed.
    changed: Option<Day>,
    /// The number of days after which it has to be changed.
    lasts: Option<Day>,
    /// The number of days after that when the account is closed.
    inactive: Option<Day>,
}

/// Says why an account is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// It has a last day, which is over.
    Expired,
    /// Its password was not changed in time.
    Inactive,
}

impl Days {
    fn closed(&self, today: Day) -> Option<Closed> {
        if self.expires.is_some_and(|day| today >= day) {
            return Some(Closed::Expired);
        }
        // Day 0 means that the password is to be changed at the next login, which is none of malai's.
        let (changed, lasts, inactive) = (self.changed.filter(|day| *day > 0)?, self.lasts?, self.inactive?);
        let last = changed.saturating_add(lasts).saturating_add(inactive);
        (today > last).then_some(Closed::Inactive)
    }
}

/// Refuses an account that is closed. May ask a directory service, and so block. Where the database has no entry, or does
/// not answer, the account counts as open, as for sshd.
///
/// # Errors
/// [`Kind::NoUser`], with the command that opens it.
pub(super) fn check(name: &str) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let today = Day::try_from(now.as_secs() / (24 * 3600)).unwrap_or(Day::MAX);
    match days(name).and_then(|days| days.closed(today)) {
        None => Ok(()),
        Some(Closed::Expired) => {
            Err(Failure::new(Kind::NoUser, format!("the account {name} on this machine has expired"))
                .hint(format!("to open it again, there: `chage --expiredate -1 '{name}'`")))
        }
        Some(Closed::Inactive) => Err(Failure::new(
            Kind::NoUser,
            format!("the account {name} on this machine is closed: its password was not changed in time"),
        )
        .hint(format!("to open it again, there: `passwd '{name}'`, or `chage --inactive -1 '{name}'`"))),
    }
}

/// Bounds an entry that is read, in bytes.
#[cfg(target_os = "linux")]
const MAX_SHADOW_ENTRY_BYTES: usize = 1 << 20;

/// Returns the entry of this account, if there is one. Only root may read it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "nix has no getspnam_r")]
fn days(name: &str) -> Option<Days> {
    let name = std::ffi::CString::new(name).ok()?;
    let mut buffer = vec![0; 4096];
    loop {
        // SAFETY: a struct of integers and pointers, for which zero is a value.
        let mut entry: libc::spwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are to what lives through the call, and the length is the buffer's.
        let error = unsafe {
            libc::getspnam_r(name.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        if error == libc::ERANGE && buffer.len() < MAX_SHADOW_ENTRY_BYTES {
            buffer.resize(buffer.len() * 4, 0);
            continue;
        }
        if error != 0 || found.is_null() {
            return None;
        }
        let limit = |days: libc::c_long| (days >= 0).then_some(days);
        return Some(Days {
            expires: limit(entry.sp_expire),
            changed: limit(entry.sp_lstchg),
            lasts: limit(entry.sp_max),
            inactive: limit(entry.sp_inact),
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn days(_name: &str) -> Option<Days> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Day = 20_000;

    fn with(expires: Option<Day>, changed: Option<Day>, lasts: Option<Day>, inactive: Option<Day>) -> Option<Closed> {
        Days { expires, changed, lasts, inactive }.closed(TODAY)
    }

    #[test]
    fn an_account_is_closed_from_the_day_on_at_which_it_expires() {
        assert_eq!(with(None, None, None, None), None);
        assert_eq!(with(Some(TODAY + 1), None, None, None), None);
        for day in [TODAY, TODAY - 1, 1, 0] {
            assert_eq!(with(Some(day), None, None, None), Some(Closed::Expired), "{day}");
        }
    }

    #[test]
    fn an_account_is_closed_when_its_password_was_not_changed_in_time_and_not_before() {
        let changed = Some(TODAY - 100);
        assert_eq!(with(None, changed, Some(90), Some(9)), Some(Closed::Inactive));
        assert_eq!(with(None, changed, Some(90), Some(10)), None, "the last day");
        assert_eq!(with(None, changed, Some(90), None), None, "it has to be changed, and nothing more");
        assert_eq!(with(None, changed, Some(99_999), Some(0)), None);
        assert_eq!(with(None, Some(0), Some(90), Some(9)), None, "it is to be changed at the next login");
        assert_eq!(with(None, changed, Some(Day::MAX), Some(Day::MAX)), None);
    }

    #[test]
    fn root_is_open_and_who_does_not_exist_is_no_business_of_this() {
        assert_eq!(check("root"), Ok(()));
        assert_eq!(check("no-such-user"), Ok(()));
    }
}
