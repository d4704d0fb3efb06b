//! Callers that go away: what they started goes too, also when nobody can be told for a while.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::stage::Stage;
use super::tree::{self, Tree};
use super::{Evidence, Row, Scale};

/// From the beginning of a partition to when the caller goes.
const BEFORE: Duration = Duration::from_secs(3);
/// From then to the repair.
const AFTER: Duration = Duration::from_secs(12);

pub(super) fn rows(_scale: Scale) -> Vec<Row> {
    vec![
        Row::new("a_caller_that_is_killed_during_a_partition_leaves_no_tree", || leave(false, true)),
        Row::new("a_terminal_that_is_closed_during_a_partition_leaves_no_tree", || leave(true, true)),
        Row::new("a_caller_that_is_killed_while_it_is_disconnected_leaves_no_tree", leave_unheard),
        Row::new("a_caller_that_is_killed_leaves_no_tree", || leave(false, false)),
        Row::new("a_terminal_that_is_closed_leaves_no_tree", || leave(true, false)),
    ]
}

fn leave(terminal: bool, partition: bool) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let tree = if terminal { Tree::grow_on_terminal(&stage)? } else { Tree::grow(&stage, &[])? };
    if partition {
        stage.wire.cut();
        // These are the lengths of the fault, not waits for anything.
        thread::sleep(BEFORE);
    }
    tree.child.signal(Signal::SIGKILL)?;
    if partition {
        thread::sleep(AFTER);
        tree::stands(&stage.web01)?;
        stage.wire.mend();
    }
    tree::is_gone(&stage.web01, Duration::ZERO)?;
    Ok(Evidence::default())
}

/// The caller goes while it has no connection to its daemon that could break: it stands still, so that it does not come
/// back after the daemon has closed the one it had.
fn leave_unheard() -> Result<Evidence> {
    let stage = Stage::segment()?;
    let tree = Tree::grow(&stage, &[])?;
    tree.child.signal(Signal::SIGSTOP)?;
    stage.wire.cut();
    thread::sleep(AFTER);
    tree.child.signal(Signal::SIGKILL)?;
    tree::stands(&stage.web01)?;
    stage.wire.mend();
    tree::is_gone(&stage.web01, Duration::ZERO)?;
    Ok(Evidence::default())
}
