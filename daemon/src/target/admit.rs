//! From a request to a plan that the executor has, or to a refusal.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::access::{Decision, Grant, Request, decide};
use malai_protocol::audit::{Entry, Event, printable};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::unknown_need;
use malai_protocol::plan::{AuditNames, Decided, Ended, Outcome, Plan, SessionName};
use malai_protocol::session::{DEFAULT_GRACE_MS, ExecSpec, MAX_REASON_BYTES};
use tokio::time::{Instant, sleep_until};

use super::live::{NotSent, Sent};
use super::refusals::{self, Verdict};
use crate::clusters::membership::Membership;
use crate::runtime::clock::now_ms;
use crate::store::audit::Audit;
use crate::store::audit::allowance::{self, Turn};
use crate::store::held::Held;
use crate::supervisor::Executor;
use crate::target::ended::{Owed, end_line};

/// A target that would refuse under an older snapshot than the caller's waits so long for the newer one.
pub(super) const SYNC_WAIT: Duration = Duration::from_secs(2);

/// How much of the name of an unknown feature is repeated in the refusal.
const MAX_SHOWN_NEED_CHARS: usize = 64;

/// Registers, decides, audits, and sends the plan.
///
/// # Errors
/// The refusal. It is in the audit, unless another request with this id is being worked on.
pub(crate) async fn admit(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: ExecSpec,
) -> Result<Executor, Refused> {
    let asked = asked(&spec);
    let again = spec.resend.is_some();
    let result = register_and_decide(membership, name, generation, spec, &asked).await;
    result.map_err(|refused| {
        if refused.taken && again {
            return refused;
        }
        let failure = match refused.line {
            Line::Refused => {
                let line = entry(membership, name, &asked, Event::Refused);
                write_refusal(membership, name, line, refused.failure, "")
            }
            Line::End(request) => {
                let outcome = Outcome::Refused(refused.failure.clone());
                let ended = Ended { session: name, cluster: membership.cluster, request: *request, outcome };
                tracing::info!(session = %name.id.short(), "not started: {}", refused.failure);
                let line = end_line(&ended);
                if let Err(failure) = membership.host.audit.append(&line) {
                    tracing::error!(session = %name.id.short(), "the end is not in the audit yet: {failure}");
                    membership.host.sessions.owe(Owed::Line { line: Box::new(line), session: None });
                }
                refused.failure
            }
            Line::Written => refused.failure,
        };
        Refused { failure, taken: refused.taken, line: Line::Written }
    })
}

/// Refuses a request without looking at it further; returns what the caller is told.
pub(crate) fn turn_away(membership: &Arc<Membership>, name: SessionName, spec: &ExecSpec, failure: Failure) -> Failure {
    write_refusal(membership, name, entry(membership, name, &asked(spec), Event::Refused), failure, "")
}

/// Writes a refusal of `name`'s caller down, and returns what that is told. It stands whether or not it could be written;
/// a full disk must not turn it into silence.
pub(super) fn write_refusal(
    membership: &Arc<Membership>,
    name: SessionName,
    mut line: Entry,
    failure: Failure,
    doing: &str,
) -> Failure {
    membership.counters.sessions_refused.one();
    if let Verdict::LeaveOut(at) = membership.refusals.ask(name.caller, Instant::now()) {
        if let Some(at) = at {
            refusals::tell(membership, name.caller, at);
        }
        // What this machine lacks is not the caller's doing: it hears the reason as it is.
        let is_ours = failure.kind == Kind::Internal;
        return if is_ours { failure } else { refusals::too_many(failure) };
    }
    let (session, peer) = (name.id.short(), name.caller.short());
    tracing::info!(%session, %peer, cluster = %membership.alias, "refused: {doing}{failure}");
    line.code = Some(failure.kind.exit_code());
    line.outcome = Some(format!("{}: {doing}{}", failure.kind.name(), failure.message));
    match membership.host.audit.record(&line) {
        Ok(bytes) => {
            membership.refusals.wrote(name.caller, bytes);
            membership.host.audit.allowances.count(name.caller, bytes, Instant::now());
        }
        // The disk is full, and the memory for owed lines too. The line is counted.
        Err(failure) => {
            tracing::error!(%session, "the audit lacks a line: {failure}");
            if let Some(at) = membership.refusals.missed(name.caller, Instant::now()) {
                refusals::tell(membership, name.caller, at);
            }
        }
    }
    failure
}

/// A refusal.
#[derive(Debug)]
pub(crate) struct Refused {
    /// What the caller is told.
    pub(crate) failure: Failure,
    /// The name is taken: another request with this id is being worked on, or was.
    pub(crate) taken: bool,
    /// What the audit is to say of it.
    line: Line,
}

/// The line of the audit that a refusal needs.
#[derive(Debug)]
enum Line {
    /// That it was refused.
    Refused,
    /// The end that belongs to its start line.
    End(Box<Decided>),
    /// None: it is there, or another's to write.
    Written,
}

/// A start line that has no end line and no plan yet: when the request is given up over that, its end is owed.
struct Started<'a> {
    membership: &'a Arc<Membership>,
    name: SessionName,
    /// Taken out when something else sees to the end.
    request: Option<Decided>,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        if self.membership.live.give_up(&self.name) {
            let failure =
                Failure::new(Kind::Internal, "not started: its caller left, or the daemon stopped, before the start");
            let (cluster, outcome) = (self.membership.cluster, Outcome::Refused(failure));
            let ended = Ended { session: self.name, cluster, request, outcome };
            self.membership.host.sessions.owe(Owed::end(&ended));
        }
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, taken: false, line: Line::Refused }
    }
}

async fn register_and_decide(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: ExecSpec,
    asked: &Decided,
) -> Result<Executor, Refused> {
    let registered = membership.live.register(name, asked.clone());
    if let Some(Err(())) = &registered {
        let failure = Failure::new(Kind::Conflict, "a session with this id exists already");
        return Err(Refused { failure, taken: true, line: Line::Refused });
    }
    let result = match &registered {
        Some(_) => decide_and_send(membership, name, generation, &spec, asked).await,
        None => Err(super::full().into()),
    };
    // While it is still registered: what was sent first must not come in between.
    if result.is_err() && spec.resend.is_some() {
        membership.live.spend(name);
    }
    result
}

async fn decide_and_send(
    membership: &Arc<Membership>,
    name: SessionName,
    generation: u64,
    spec: &ExecSpec,
    asked: &Decided,
) -> Result<Executor, Refused> {
    check(spec)?;
    let executor = membership.host.executor.get().await?;
    if spec.detach {
        executor.check_questions()?;
    }
    let deadline = Instant::now() + SYNC_WAIT;
    let mut started: Option<Started<'_>> = None;
    // From the start line on every refusal is the end that belongs to it.
    let refused = |failure, started: &mut Option<Started<'_>>| {
        let request = started.as_mut().and_then(|started| started.request.take());
        let line = request.map_or(Line::Refused, |request| Line::End(Box::new(request)));
        Refused { failure, taken: false, line }
    };
    loop {
        let request = Request::from(asked);
        let (held, grant) = decided(membership, &name.caller, generation, &request, deadline)
            .await
            .map_err(|failure| refused(failure, &mut started))?;
        refuse_directory(spec, &grant).map_err(|failure| refused(failure, &mut started))?;
        let plan = plan(membership, name, spec, asked, &grant);
        if started.is_none() {
            write_start(membership, name, &plan.request).await?;
        }
        let request = Some(plan.request.clone());
        started.get_or_insert(Started { membership, name, request: None }).request = request;
        let now = || membership.held().generation();
        match membership.live.send(plan, held.generation(), now, &executor).await {
            Ok(Sent::Yes) => {
                // From here on the session's own end has the line.
                drop(started.as_mut().and_then(|started| started.request.take()));
                membership.counters.served.one();
                membership.counters.called.add(u64::from(name.caller == membership.me));
                tracing::debug!(
                    session = %name.id.short(), peer = %name.caller.short(), cluster = %membership.alias,
                    who = %grant.who, named = grant.named.as_deref(), "granted"
                );
                return Ok(executor);
            }
            Ok(Sent::Outdated) => {}
            Err(NotSent { failure, is_over }) => {
                let refused = refused(failure, &mut started);
                return Err(if is_over { Refused { line: Line::Written, ..refused } } else { refused });
            }
        }
    }
}

/// Refuses what no grant could allow.
fn check(spec: &ExecSpec) -> Result<(), Failure> {
    if let Some(need) = unknown_need(&spec.needs) {
        // It is as long as the caller likes.
        let need: String = need.chars().take(MAX_SHOWN_NEED_CHARS).collect();
        let text = format!("the request needs `{need}`, which malai {} on the target does not have", crate::VERSION);
        return Err(Failure::new(Kind::Unsupported, text).hint("update malai on the target"));
    }
    if let Some(reason) = spec.reason.as_ref().filter(|reason| reason.len() > MAX_REASON_BYTES) {
        let text = format!("a reason may have {MAX_REASON_BYTES} bytes, and this one has {}", reason.len());
        return Err(Failure::new(Kind::Usage, text).hint("give a shorter --reason"));
    }
    if spec.detach && (spec.stdin || spec.kill_on_lost) {
        let text = "a detached command has no standard input, and does not end with its caller";
        return Err(Failure::new(Kind::Usage, text));
    }
    Ok(())
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

/// The refusal of what cannot be written down.
pub(super) fn unaudited(failure: Failure) -> Failure {
    let text = format!("refused, since the target's audit cannot be written: {}", failure.message);
    Failure { kind: Kind::Internal, message: text, ..failure }
}

/// Decides by the snapshot that is held; a refusal under an older one than the caller's waits for the newer. Whatever a
/// peer asks for is decided here.
pub(super) async fn decided(
    membership: &Membership,
    caller: &MachineId,
    generation: u64,
    request: &Request<'_>,
    deadline: Instant,
) -> Result<(Arc<Held>, Grant), Failure> {
    let mut snapshots = membership.watch();
    loop {
        let held = Arc::clone(&snapshots.borrow_and_update());
        let me = membership.host.me(&membership.me);
        match decide(&held.config, &me, caller, request) {
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
        named_words: None,
        run_as: None,
        reason: spec.reason.clone(),
        since_ms: now_ms(),
        detached: spec.detach,
        audit: None,
    }
}

/// How long this machine's sessions wait for their callers.
fn grace_ms(membership: &Membership) -> u64 {
    let held = membership.held();
    let grace = held.config.machine_by_id(&membership.me).map(|(_, machine)| held.config.grace(machine));
    grace.map_or(DEFAULT_GRACE_MS, |grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX))
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
        resend: spec.resend,
        grace_ms: grace_ms(membership),
        // Whoever never attaches again is not waited for.
        kill_on_lost: !spec.detach && (spec.kill_on_lost || spec.follower.is_none()),
        request: Decided {
            named: grant.named.clone(),
            run_as: grant.run_as.clone(),
            audit: Some(AuditNames {
                cluster: membership.alias.clone(),
                who: Some(grant.who.clone()),
                user: grant.run_as.clone().unwrap_or_else(|| membership.host.user.clone()),
            }),
            named_words: grant.named_words(),
            ..asked.clone()
        },
    }
}

/// Writes the line of a session that is about to start, when it is its caller's turn.
async fn write_start(membership: &Membership, name: SessionName, request: &Decided) -> Result<(), Failure> {
    let audit = &membership.host.audit;
    let line = start_line(membership, name, request);
    match audit.allowances.take(name.caller, Audit::line_bytes(&line)?, Instant::now()) {
        Turn::Now => {}
        Turn::At(at) => sleep_until(at).await,
        Turn::Never => return Err(allowance::too_much()),
    }
    audit.append_start(&Entry { at_ms: now_ms(), ..line }).map_err(unaudited)
}

/// The line of a session that is about to start.
fn start_line(membership: &Membership, name: SessionName, request: &Decided) -> Entry {
    let mut line = entry(membership, name, request, Event::Start);
    if let Some(AuditNames { who, user, .. }) = request.audit.clone() {
        (line.who, line.user) = (who, Some(user));
    }
    line
}

/// A line of the audit about this session.
pub(crate) fn entry(membership: &Membership, name: SessionName, request: &Decided, event: Event) -> Entry {
    let held = membership.held();
    let names = AuditNames {
        cluster: membership.alias.clone(),
        who: held.config.machine_by_id(&name.caller).map(|(who, _)| who.to_string()),
        user: membership.host.user.clone(),
    };
    line(&names, name, request, event)
}

/// The same, where nothing is known of the session's cluster but these names.
pub(crate) fn line(names: &AuditNames, name: SessionName, request: &Decided, event: Event) -> Entry {
    let mut line = Entry {
        at_ms: now_ms(),
        event,
        cluster: names.cluster.clone(),
        session: name.id.to_string(),
        who: names.who.clone(),
        id52: name.caller.to_string(),
        owner: None,
        owner_name: None,
        words: Vec::new(),
        words_bytes: None,
        words_blake3: None,
        named: request.named.clone(),
        user: request.run_as.clone(),
        env: request.env_names.clone(),
        env_count: None,
        reason: request.reason.clone(),
        signal: None,
        code: None,
        outcome: None,
        count: None,
        stdout_bytes: None,
        stderr_bytes: None,
        duration_ms: None,
    };
    line.set_words(&request.words);
    line
}
