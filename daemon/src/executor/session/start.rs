//! From a plan to a running command, or to the words why not.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;

use malai_protocol::failure::{self, Failure};
use malai_protocol::plan::{Outcome, Plan};

use super::super::command::{self, Command};
use super::super::link::Link;
use super::super::reap::Child;
use super::super::spawn::Forked;
use super::super::table::{self, Admitted, Registration};
use super::super::tree::cgroup::Group;
use super::super::tree::{self, Tree};
use super::super::{Shared, refuse};
use super::input::Input;
use super::output::Output;
use super::{Later, Session};

/// Longer limits than this are none: it is what timers can hold.
const MAX_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Runs one session from its plan to the last frame.
pub(crate) async fn run(shared: Arc<Shared>, plan: Plan, admitted: Admitted) {
    let Admitted { mut registration, commands, slot } = admitted;
    let link = Link::new(slot);
    match start(&shared, plan, commands, link, &mut registration).await {
        Ok(mut session) => {
            let outcome = session.follow().await;
            session.finish(registration, outcome).await;
        }
        Err((failure, link)) => {
            registration.finish(Outcome::Refused(failure.clone()));
            refuse(link, &failure).await;
        }
    }
}

async fn start(
    shared: &Arc<Shared>,
    plan: Plan,
    commands: mpsc::Receiver<table::Command>,
    link: Link,
    registration: &mut Registration,
) -> Result<Session, (Failure, Link)> {
    let begun = match begin(shared, &plan, registration).await {
        Ok(begun) => begun,
        Err(failure) => return Err((failure, link)),
    };
    tracing::info!(pid = begun.child.pid().as_raw(), user = begun.user, "session started");
    let since = Instant::now();
    let timeout = plan.timeout_ms.map(Duration::from_millis).filter(|limit| *limit < MAX_TIMEOUT);
    Ok(Session {
        shared: shared.clone(),
        plan,
        user: begun.user,
        commands,
        link,
        exec: Some(begun.exec),
        child: begun.child,
        exit: begun.exit,
        status: None,
        tree: begun.tree,
        input: begun.input,
        output: begun.output,
        refused: None,
        cause: None,
        ending: None,
        since,
        timeout: timeout.map(|limit| since + limit),
        quiet: None,
        silent: false,
    })
}

struct Begun {
    user: String,
    child: Child,
    exit: tokio::sync::oneshot::Receiver<malai_protocol::session::Status>,
    exec: Later<std::io::Result<Vec<u8>>>,
    tree: Arc<Tree>,
    input: Input,
    output: Output,
}

/// Prepares and forks; leaves nothing behind when that fails.
async fn begin(shared: &Arc<Shared>, plan: &Plan, registration: &mut Registration) -> Result<Begun, Failure> {
    let mark = tree::mark(&plan.session);
    let planted = shared.trees.plant(&mark).map_err(|error| internal("make the session's cgroup", &error))?;
    let (group, directory) = planted.unzip();
    let prepared = {
        let (plan, mark, open_files) = (plan.clone(), mark.clone(), shared.open_files);
        let prepare = move || command::prepare(&plan, &mark, directory, open_files);
        tokio::task::spawn_blocking(prepare).await
    };
    let result = match prepared {
        Ok(Ok(command)) => fork(shared, command),
        Ok(Err(failure)) => Err(failure),
        Err(error) => Err(Failure::new(failure::Kind::Internal, format!("the command was not prepared: {error}"))),
    };
    let (user, child, exit, forked, input, output) = match result {
        Ok(forked) => forked,
        Err(failure) => {
            remove(group);
            return Err(failure);
        }
    };
    let tree = Arc::new(Tree::new(child.clone(), group, &mark));
    registration.guard(tree.clone());
    let exec = pipe::Receiver::from_owned_fd(forked.exec);
    let exec: Later<_> = Box::pin(async move {
        let mut said = Vec::new();
        exec?.take(16).read_to_end(&mut said).await?;
        Ok(said)
    });
    Ok(Begun { user, child, exit, exec, tree, input, output })
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
    Ok((user, child, exit, forked, Input::new(stdin), Output::new(stdout, stderr, shared.budget.clone())))
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
