//! What Linux does in its own way. Every other system takes the portable way, which the tests on Linux run too.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(test, not(target_os = "linux")))]
mod portable;

#[cfg(target_os = "linux")]
pub(crate) use linux::{DirectoryChanges, Process, allocate_beyond_end, allocate_blocks, hide_memory, own_program};
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::{DirectoryChanges, Process, allocate_beyond_end, allocate_blocks, hide_memory, own_program};

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use tokio::process::{Child, Command};
    use tokio::time::timeout;

    use super::portable;

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("600").kill_on_drop(true).spawn().expect("sleep");
        let id = child.id().and_then(|id| i32::try_from(id).ok()).expect("an id");
        (child, id)
    }

    async fn is_watched_until_it_ends(mut child: Child, ended: impl Future<Output = std::io::Result<()>>) {
        tokio::pin!(ended);
        assert!(timeout(Duration::from_millis(100), &mut ended).await.is_err(), "it runs");
        child.kill().await.expect("killed");
        timeout(Duration::from_secs(20), ended).await.expect("in time").expect("it ended");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn linux_watches_a_process_until_it_ends() {
        let (child, id) = sleeper();
        is_watched_until_it_ends(child, super::Process::with(id).ended()).await;
    }

    #[tokio::test]
    async fn the_portable_way_watches_a_process_until_it_ends() {
        let (child, id) = sleeper();
        is_watched_until_it_ends(child, portable::Process::with(id).ended()).await;
    }

    #[test]
    fn the_portable_way_names_this_program_and_allocates_nothing() {
        let own = portable::own_program().expect("a path");
        let inode = |path| std::fs::metadata(path).expect("a file").ino();
        assert_eq!(inode(own), inode("/proc/self/exe".into()));
        portable::hide_memory();
        let file = File::open("/dev/null").expect("a file");
        for refused in [portable::allocate_blocks(&file, 1), portable::allocate_beyond_end(&file, 0, 1)] {
            assert_eq!(refused.expect_err("no such call").kind(), ErrorKind::Unsupported);
        }
        assert_eq!(portable::DirectoryChanges::open("/".as_ref()).expect_err("none").kind(), ErrorKind::Unsupported);
    }
}
