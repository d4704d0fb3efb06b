//! Lets go of memory that only the start needed.
//!
//! A process that has started keeps the code of its start resident: of the program's text several MiB, which it does not
//! run again. The kernel maps what is run later again from its cache.

/// Unmaps the pages of the program's code: those that are run come back, the others do not. Code only, which nothing ever
/// writes to.
#[cfg(target_os = "linux")]
pub(crate) fn code() {
    let maps = match std::fs::read_to_string("/proc/self/maps") {
        Ok(maps) => maps,
        Err(error) => return tracing::debug!(%error, "memory is not trimmed"),
    };
    for (start, length) in maps.lines().filter_map(file_of_code) {
        let_go(start, length);
    }
}

/// Elsewhere nothing is done.
#[cfg(not(target_os = "linux"))]
pub(crate) fn code() {}

/// Start and length of a mapping, when it is code of a file that cannot be written to (proc_pid_maps(5)).
#[cfg(target_os = "linux")]
fn file_of_code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, mode, inode) = (fields.next()?, fields.next()?, fields.nth(2)?);
    if mode != "r-xp" || inode == "0" {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "no safe interface gives advice about code")]
fn let_go(start: usize, length: usize) {
    // SAFETY: the range is a mapping of this process, private, of a file, and never written to, so that whatever is dropped
    // comes back as it was when it is read again.
    let result = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "code is not let go");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go() {
        let maps = "5581-6581 r-xp 00001000 fe:00 42 /usr/bin/malai";
        assert_eq!(file_of_code(maps), Some((0x5581, 0x1000)));
        for other in [
            "5581-6581 r--p 00001000 fe:00 42 /usr/bin/malai",
            "5581-6581 rw-p 00001000 fe:00 42 /usr/bin/malai",
            "5581-6581 rwxp 00001000 fe:00 42 /usr/bin/malai",
            "5581-6581 r-xp 00000000 00:00 0 [vdso]",
            "nonsense",
        ] {
            assert_eq!(file_of_code(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_that_let_its_code_go_runs_on() {
        code();
        assert_eq!((1..=10).sum::<u32>(), 55);
    }
}
