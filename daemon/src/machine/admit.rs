//! From a request to a plan that the executor has, or to a refusal.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::access::{Decision, Grant, Request, decide};
use malai_protocol::audit::{Entry, Event, printable};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::peer::unknown_need;
use malai_protocol::plan::{Decided, Plan, SessionName};
use malai_protocol::session::ExecSpec;
use tokio::time::Instant;

use super::live::Sent;
use super::refusals::{self, Verdict};
use crate::clock::now_ms;
use crate::membership::{Held, Membership};
use crate::supervisor::Executor;

/// A target that would refuse under an older snapshot than the caller's waits so long for the newer one.
const SYNC_WAIT: Duration = Duration::from_secs(2);

/// Registers, decides, audits, and sends the plan.
///
/// # Errors
/// The refusal, to be sent to the caller.
pub(crate) async fn admit(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: ExecSpec,
) -> Result<Executor, Failure> {
    let asked = asked(&spec);
    let result = register_and_decide(membership, name, generation, spec, &asked).await;
    result.map_err(|refused| write_down(membership, name, &asked, refused))
}

/// Refuses a request without looking at it further; returns what the caller is told.
pub(crate) fn turn_away(membership: &Arc<Membership>, name: SessionName, spec: &ExecSpec, failure: Failure) -> Failure {
    write_down(membership, name, &asked(spec), failure.into())
}

/// Writes a refusal down, and returns what the caller is told.
fn write_down(membership: &Arc<Membership>, name: SessionName, asked: &Decided, refused: Refused) -> Failure {
    let Refused { failure, audited } = refused;
    // What has a line of its start gets one of its end, always: it was granted.
    if !audited && let Verdict::LeaveOut(at) = membership.refusals.ask(name.caller, Instant::now()) {
        if let Some(at) = at {
            refusals::tell(membership, name.caller, at);
        }
        return refusals::too_many(failure);
    }
    tracing::info!(
        session = %name.id.short(), peer = %name.caller.short(), cluster = %membership.alias,
        "refused: {failure}"
    );
    let mut line = entry(membership, name, asked, if audited { Event::End } else { Event::Refused });
    line.code = Some(failure.kind.exit_code());
    line.outcome = Some(format!("{}: {}", failure.kind.name(), failure.message));
    // The refusal stands whether or not it could be written down; a full disk must not turn it into silence.
    match membership.shared.audit.append(&line) {
        Ok(bytes) if !audited => membership.refusals.wrote(name.caller, bytes),
        Ok(_) => {}
        Err(failure) => tracing::error!("the audit cannot be written: {failure}"),
    }
    failure
}

/// A refusal, and whether a `start` line was written before it.
#[derive(Debug)]
struct Refused {
    failure: Failure,
    audited: bool,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, audited: false }
    }
}

async fn register_and_decide(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: ExecSpec,
    asked: &Decided,
) -> Result<Executor, Refused> {
    if let Some(need) = unknown_need(&spec.needs) {
        let text = format!("the request needs `{need}`, which malai {} on the target does not have", crate::VERSION);
        return Err(Failure::new(Kind::Unsupported, text).hint("update malai on the target").into());
    }
    let _registered = match membership.live.register(name, asked.clone()) {
        None => return Err(super::full().into()),
        Some(Err(())) => return Err(Failure::new(Kind::Conflict, "a session with this id exists already").into()),
        Some(Ok(registered)) => registered,
    };
    let executor = membership.shared.executor.get().await?;
    let deadline = Instant::now() + SYNC_WAIT;
    let mut audited = false;
    loop {
        let (held, grant) = decided(membership, name, generation, asked, deadline)
            .await
            .map_err(|failure| Refused { failure, audited })?;
        refuse_directory(&spec, &grant).map_err(|failure| Refused { failure, audited })?;
        let plan = plan(membership, name, &spec, asked, &grant);
        if !audited {
            let mut line = entry(membership, name, &plan.request, Event::Start);
            line.who = Some(grant.who.clone());
            line.user = Some(plan.request.run_as.clone().unwrap_or_else(|| membership.shared.user.clone()));
            membership.shared.audit.append(&line).map_err(unaudited)?;
            audited = true;
        }
        let now = || membership.held().generation();
        match membership.live.send(plan, held.generation(), now, &executor).await {
            Ok(Sent::Yes) => {
                tracing::info!(
                    session = %name.id.short(), peer = %name.caller.short(), cluster = %membership.alias,
                    who = %grant.who, named = grant.named.as_deref(), "granted"
                );
                return Ok(executor);
            }
            Ok(Sent::Outdated) => {}
            Err(failure) => return Err(Refused { failure, audited }),
        }
    }
}

/// A named command is what the config says, and where it runs is a part of that.
fn refuse_directory(spec: &ExecSpec, grant: &Grant) -> Result<(), Failure> {
    match (&spec.cwd, &grant.named) {
        (Some(_), Some(named)) => {
            let text = format!("the named command `{named}` runs in its user's home, and nowhere else");
            Err(Failure::new(Kind::Denied, text).hint("leave --cwd out"))
        }
        _ => Ok(()),
    }
}

fn unaudited(failure: Failure) -> Refused {
    let text = format!("refused, since the target's audit cannot be written: {}", failure.message);
    let mut refusal = Failure::new(Kind::Internal, text);
    refusal.hint = failure.hint;
    refusal.into()
}

/// Decides by the snapshot that is held; a refusal under an older one than the caller's waits for the newer.
async fn decided(
    membership: &Membership,
    name: SessionName,
    generation: u64,
    asked: &Decided,
    deadline: Instant,
) -> Result<(Arc<Held>, Grant), Failure> {
    let mut snapshots = membership.watch();
    loop {
        let held = Arc::clone(&snapshots.borrow_and_update());
        let me = membership.shared.me(&membership.me);
        match decide(&held.config, &me, &name.caller, &Request::from(asked)) {
            Decision::Allowed(grant) => return Ok((held, grant)),
            Decision::Refused(failure) if generation <= held.generation() => return Err(failure),
            Decision::Refused(failure) => {
                let newer = tokio::time::timeout_at(deadline, snapshots.changed()).await;
                if !matches!(newer, Ok(Ok(()))) {
                    return Err(failure);
                }
            }
        }
    }
}

/// The request as it was asked, before anything is granted.
fn asked(spec: &ExecSpec) -> Decided {
    Decided {
        words: spec.words.clone(),
        literal: spec.literal,
        shell: spec.shell,
        user: spec.user.clone(),
        env_names: spec.env.iter().map(|(name, _)| printable(name)).collect(),
        named: None,
        run_as: None,
        reason: spec.reason.clone(),
        since_ms: now_ms(),
    }
}

fn plan(membership: &Membership, name: SessionName, spec: &ExecSpec, asked: &Decided, grant: &Grant) -> Plan {
    Plan {
        session: name,
        cluster: membership.cluster,
        argv: grant.argv.clone(),
        shell: grant.shell,
        user: grant.run_as.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        stdin: spec.stdin,
        timeout_ms: spec.timeout_ms,
        wait_output: spec.wait_output,
        request: Decided { named: grant.named.clone(), run_as: grant.run_as.clone(), ..asked.clone() },
    }
}

/// A line of the audit about this session.
pub(crate) fn entry(membership: &Membership, name: SessionName, request: &Decided, event: Event) -> Entry {
    let held = membership.held();
    Entry {
        at_ms: now_ms(),
        event,
        cluster: membership.alias.clone(),
        session: name.id.to_string(),
        who: held.config.machine_by_id(&name.caller).map(|(who, _)| who.to_string()),
        id52: name.caller.to_string(),
        words: request.words.iter().map(|word| printable(word)).collect(),
        named: request.named.clone(),
        user: request.run_as.clone(),
        env: request.env_names.clone(),
        reason: request.reason.clone(),
        code: None,
        outcome: None,
        count: None,
        stdout_bytes: None,
        stderr_bytes: None,
        duration_ms: None,
    }
}
