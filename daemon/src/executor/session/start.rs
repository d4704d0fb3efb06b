//! From a plan to a running command, or to the words why not.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;

use malai_protocol::failure::{self, Failure};
use malai_protocol::plan::{Outcome, Plan};
use malai_protocol::session::Attached;

use super::super::table::{Admitted, Cause, Command as Order, Record, Registration, grace, live_of};
use super::super::{Shared, refuse};
use super::following::Following;
use super::input::Input;
use super::output::Output;
use super::spooling::blocking;
use super::{Later, Session, caller_gone};
use crate::executor::output::log::Log;
use crate::executor::output::spool::Spool;
use crate::executor::process::command::{self, Command};
use crate::executor::process::reap::Child;
use crate::executor::process::spawn::{Forked, Identity};
use crate::executor::process::tree::cgroup::Group;
use crate::executor::process::tree::{self, Tree};
use crate::executor::session::link::Link;
use crate::executor::socket::serve;

/// Longer limits than this are none: it is what timers can hold.
const MAX_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Runs one session from its plan until nothing of it is wanted any more.
pub(crate) async fn run(shared: Arc<Shared>, plan: Plan, admitted: Admitted) {
    let Admitted { mut registration, mut commands, slot } = admitted;
    let following =
        Following::new(Link::new(slot), Log::new(shared.budget.clone()), grace(&plan), plan.request.detached);
    match start(&shared, plan, &mut commands, following, &mut registration).await {
        Ok(mut session) => {
            let outcome = session.follow(&mut commands).await;
            session.finish(registration, outcome, &mut commands).await;
        }
        Err((failure, following)) => {
            let keep = registration.finish(Outcome::Refused(failure.clone()), Record::Refused(failure.clone()));
            refuse(following.link, &failure).await;
            drop(keep);
        }
    }
    // Whoever came too late for it finds the record.
    commands.close();
    while let Ok(command) = commands.try_recv() {
        if let Order::Attach(arrival) = command {
            shared.spawn(serve::resume(shared.clone(), arrival, None));
        }
    }
}

async fn start(
    shared: &Arc<Shared>,
    plan: Plan,
    commands: &mut mpsc::UnboundedReceiver<Order>,
    mut following: Following,
    registration: &mut Registration,
) -> Result<Session, (Failure, Following)> {
    let mut cause = None;
    let begun = {
        let begin = begin(shared, &plan, registration);
        tokio::pin!(begin);
        loop {
            tokio::select! {
                begun = &mut begin => break begun,
                Some(order) = commands.recv() => early(shared, &plan, order, &mut following, &mut cause),
                () = following.link.write() => {}
            }
        }
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err(failure) => return Err((failure, following)),
    };
    if let Some(spool) = begun.spool {
        following.keep(spool, &shared.disk);
    }
    tracing::debug!(pid = begun.child.pid().as_raw(), user = begun.user, "session started");
    let since = Instant::now();
    let timeout = plan.timeout_ms.map(Duration::from_millis).filter(|limit| *limit < MAX_TIMEOUT);
    let mut session = Session {
        shared: shared.clone(),
        plan,
        user: begun.user,
        following,
        exec: Some(begun.exec),
        started: None,
        child: begun.child,
        exit: begun.exit,
        status: None,
        tree: begun.tree,
        input: begun.input,
        output: begun.output,
        refused: None,
        cause: None,
        ending: None,
        left: 0,
        since,
        timeout: timeout.map(|limit| since + limit),
        quiet: None,
        silent: false,
    };
    if let Some(cause) = cause {
        session.end(cause);
    }
    Ok(session)
}

/// An order that comes while there is no process yet.
fn early(shared: &Arc<Shared>, plan: &Plan, order: Order, following: &mut Following, cause: &mut Option<Cause>) {
    match order {
        Order::Attach(arrival) => {
            let incarnation = shared.incarnation;
            following.attach(shared, *arrival, |out_offset| Attached {
                incarnation,
                started: None,
                out_offset,
                stdin_offset: 0,
                credit: malai_protocol::session::STDIN_CREDIT,
                stdin_closed: !plan.stdin,
                watches: false,
            });
        }
        Order::CallerGone { follower, number } => {
            if following.is_ended_by(follower, number) {
                following.link.drop_attachment();
                cause.get_or_insert_with(caller_gone);
            }
        }
        // There is nobody to signal; whoever wants to end it says so.
        Order::Signal(_) => {}
        Order::End(end) => {
            cause.get_or_insert(end);
        }
    }
}

struct Begun {
    user: String,
    child: Child,
    exit: tokio::sync::oneshot::Receiver<malai_protocol::session::Status>,
    exec: Later<std::io::Result<Vec<u8>>>,
    tree: Arc<Tree>,
    input: Input,
    output: Output,
    spool: Option<Spool>,
}

/// Makes the place for a detached command's output, and starts the command; leaves nothing behind when that fails.
async fn begin(shared: &Arc<Shared>, plan: &Plan, registration: &mut Registration) -> Result<Begun, Failure> {
    if !plan.request.detached {
        return launch(shared, plan, registration).await;
    }
    let (spools, live) = (shared.spools.clone(), live_of(plan));
    let spool = blocking(shared.disk.clone(), move || spools.create(&live)).await?;
    match launch(shared, plan, registration).await {
        Ok(begun) => Ok(Begun { spool: Some(spool), ..begun }),
        Err(failure) => {
            blocking(shared.disk.clone(), move || spool.discard()).await;
            Err(failure)
        }
    }
}

/// Prepares and forks; leaves nothing behind when that fails.
async fn launch(shared: &Arc<Shared>, plan: &Plan, registration: &mut Registration) -> Result<Begun, Failure> {
    let mark = tree::mark(&plan.session);
    let planted = shared.trees.plant(&mark).map_err(|error| internal("make the session's cgroup", &error))?;
    let (group, directory) = planted.unzip();
    let prepared = {
        let (asked, mark, open_files) = (plan.clone(), mark.clone(), shared.open_files);
        let prepare = move || command::prepare(&asked, &mark, directory, open_files);
        shared.lookups.ask(plan.user.as_deref(), prepare).await
    };
    let mut place = None;
    let result = match prepared {
        Ok(command) => {
            if let Some(Identity { uid, gid, .. }) = command.prepared.identity {
                place = Some(shared.users.enter(uid, gid).await);
            }
            fork(shared, command)
        }
        Err(failure) => Err(failure),
    };
    let (user, child, exit, forked, input, output) = match result {
        Ok(forked) => forked,
        Err(failure) => {
            remove(group);
            return Err(failure);
        }
    };
    let tree = Arc::new(Tree::new(child.clone(), place, group, &mark));
    registration.guard(tree.clone());
    let exec = pipe::Receiver::from_owned_fd(forked.exec);
    let exec: Later<_> = Box::pin(async move {
        let mut said = Vec::new();
        exec?.take(16).read_to_end(&mut said).await?;
        Ok(said)
    });
    Ok(Begun { user, child, exit, exec, tree, input, output, spool: None })
}

type Parts = (String, Child, tokio::sync::oneshot::Receiver<malai_protocol::session::Status>, Forked, Input, Output);

fn fork(shared: &Shared, command: Command) -> Result<Parts, Failure> {
    let Command { prepared, user, stdin, stdout, stderr } = command;
    let pipes = || -> std::io::Result<_> {
        let stdin = stdin.map(pipe::Sender::from_owned_fd).transpose()?;
        Ok((stdin, pipe::Receiver::from_owned_fd(stdout)?, pipe::Receiver::from_owned_fd(stderr)?))
    };
    let (stdin, stdout, stderr) = pipes().map_err(|error| internal("use the command's pipes", &error))?;
    let (child, forked, exit) = shared.reaper.start(&prepared).map_err(|error| {
        Failure::new(failure::Kind::Busy, format!("cannot start a process: {error}"))
            .hint("that machine is short of processes or memory; try again when less runs there")
    })?;
    Ok((user, child, exit, forked, Input::new(stdin), Output::new(stdout, stderr)))
}

fn remove(group: Option<Group>) {
    if let Some(group) = group
        && !group.remove()
    {
        tracing::warn!("the cgroup of a session that did not start could not be removed");
    }
}

fn internal(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(failure::Kind::Internal, format!("cannot {what}: {error}"))
}
