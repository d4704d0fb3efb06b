//! A command with children, some of them out of its session, and whether all of it is gone.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::Stage;
use crate::cluster::{SOON, malai, running};
use crate::lab::{Child, Host, wait_until};

/// A tree that nobody follows is gone after so long.
const GONE: Duration = Duration::from_secs(10);
/// Found in the command line of every process but the first.
const MARK: &str = "sleep 6000.0126";
/// Deaf to HUP, as a command is that was meant to stay; with a grandchild in a session and an environment of its own.
const SCRIPT: &str = "trap '' HUP
sleep 6000.0126 &
env -i setsid sh -c 'sleep 6000.0126 & sleep 6000.0126' &
hostname
wait
";

/// A tree of processes on the target, and the program that follows it at the caller.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The program at the caller.
    pub(crate) child: Child,
}

impl Tree {
    /// Has it grow, by malai with these options.
    pub(crate) fn grow(stage: &Stage, options: &[&str]) -> Result<Self> {
        stage.web01.write("/root/tree.sh", SCRIPT)?;
        let words = ["web01.company", "--", "sh", "/root/tree.sh"];
        let child = stage.laptop.spawn(malai(options.iter().copied().chain(words)).stdin_open())?;
        Self::grown(stage, child)
    }

    /// The same, on a terminal of the caller's: it is closed when the program that holds it is killed.
    pub(crate) fn grow_on_terminal(stage: &Stage) -> Result<Self> {
        stage.web01.write("/root/tree.sh", SCRIPT)?;
        let command = crate::lab::Cmd::new(["script", "-qc", "malai web01.company -- sh /root/tree.sh", "/dev/null"]);
        let child = stage.laptop.spawn(command.stdin_open())?;
        Self::grown(stage, child)
    }

    fn grown(stage: &Stage, child: Child) -> Result<Self> {
        child.wait_for_line("web01", SOON)?;
        wait_until(SOON, "the whole tree runs", || running(&stage.web01, MARK).is_ok_and(|found| found >= 4))?;
        Ok(Self { child })
    }
}

/// The tree is all there.
pub(crate) fn stands(host: &Host) -> Result<()> {
    let found = running(host, MARK)?;
    ensure!(found >= 4, "only {found} processes of the tree are left");
    Ok(())
}

/// Waits until nothing of the tree is left, for as long as that may take, and so much more.
pub(crate) fn is_gone(host: &Host, more: Duration) -> Result<()> {
    let what = format!("nothing of the tree is left on {}", host.hostname());
    wait_until(GONE + more, &what, || {
        [MARK, "/root/tree.sh"].iter().all(|words| running(host, words).is_ok_and(|found| found == 0))
    })
}
