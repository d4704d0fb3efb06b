//! `malai daemon status`.

use malai_daemon::store::lock::Holder;
use malai_protocol::failure::Failure;
use malai_protocol::local::{DaemonStatus, LostLines, Request, Response};
use malai_protocol::plan::Tree;

use crate::client;
use crate::commands::Context;

/// Shows the daemon, and returns 0 when it is ready.
pub(super) fn status(cx: &Context) -> Result<u8, Failure> {
    let answer = client::block_on(async {
        match client::dial_patiently(&cx.home, false).await? {
            Ok(stream) => {
                let (frames, _) = client::greet(stream).await?;
                client::answer(frames, Request::DaemonStatus, cx.out).await.map(Ok)
            }
            Err(holder) => Ok(Err(holder)),
        }
    })?;
    let status = match answer {
        Ok(Response::Daemon(status)) => Some(status),
        Ok(Response::Failed(failure)) => return Err(failure),
        Ok(_) => return Err(client::unexpected()),
        Err(Some(holder)) if !holder.agent => return describe_unreachable(cx, &holder),
        Err(_) => None,
    };
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "daemon": status }))?;
    } else {
        cx.out.rows(describe(status.as_ref()))?;
    }
    Ok(u8::from(!status.is_some_and(|status| status.ready && !status.agent)))
}

/// Shows a daemon that holds the lock and is not reached.
fn describe_unreachable(cx: &Context, holder: &Holder) -> Result<u8, Failure> {
    let Failure { message, hint, .. } = holder.unreachable(&cx.home);
    if cx.out.json {
        cx.out.document(&serde_json::json!({ "daemon": null, "unreachable": { "pid": holder.pid } }))?;
    } else {
        cx.out.row(&message)?;
    }
    hint.iter().for_each(|hint| cx.out.hint(hint));
    Ok(1)
}

/// Describes the daemon in a few lines.
pub(in crate::commands) fn describe(status: Option<&DaemonStatus>) -> Vec<String> {
    let Some(DaemonStatus { pid, version, agent, ready, tree, executor_pid, sessions, lost_log }) = status else {
        return vec!["no daemon runs here".into()];
    };
    let what = if *agent { "agent" } else { "daemon" };
    let state = match (agent, ready) {
        (true, _) => "only calls; no daemon runs here",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let mut lines = vec![format!("{what} pid {pid}, malai {version}: {state}")];
    lines.push(match tree {
        Some(Tree::Cgroup) => "cgroups: used; no process of a command stays behind".into(),
        Some(Tree::Marker) => "cgroups: not used; a command's processes are found by group, parent and marker".into(),
        None => "cgroups: not known, no executor runs".into(),
    });
    let executor = executor_pid.map(|pid| format!(", executor pid {pid}")).unwrap_or_default();
    lines.push(format!("sessions: {sessions}{executor}"));
    let lost = |lost: &LostLines| format!("log: {} lines were not written: {}", lost.lines, lost.why);
    lines.extend(lost_log.as_ref().map(lost));
    lines
}
