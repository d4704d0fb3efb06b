//! Who may do what: one pure interpretation of the config, in one place.
//!
//! [`decide`] is what the target asks before anything starts, and again when the config changes; [`explain`] tells the
//! same decision in words. Both come from one judgement, which denies what no rule grants.

mod rules;

use serde_bytes::ByteBuf;

use crate::config::{Config, Machine, Name};
use crate::failure::{Failure, Kind};
use crate::id::MachineId;
use crate::local::Verdict;
use crate::plan::Decided;

/// Describes the machine that decides, as its daemon knows itself.
#[derive(Debug, Clone, Copy)]
pub struct Me<'a> {
    /// Its key.
    pub id: &'a MachineId,
    /// The user that the daemon runs as.
    pub daemon_user: &'a str,
    /// Whether that user is root, and so can run commands as others.
    pub root: bool,
}

impl<'a> Me<'a> {
    fn account(&self) -> Account<'a> {
        Account { user: self.daemon_user, root: self.root }
    }
}

/// Says what is asked for. Every kind of request is a variant, so that none goes undecided.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Run a command.
    Exec(Exec<'a>),
    /// Do something with a session of this owner. The grant's `argv` is empty.
    Attend {
        /// The machine that started the session.
        owner: &'a MachineId,
        /// What the caller wants to do with it.
        act: Act,
    },
}

/// Says what is done with a session that runs, or ran. Its owner may do all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// List it, read its output, and wait for its end.
    Watch,
    /// End it, or send it TERM or KILL.
    Kill,
    /// Type input, close its input or output, send any other signal, and take it over.
    Control,
}

impl Act {
    /// Returns what `malai kill` does with this signal, by its number on Linux; without one, it ends the session.
    pub fn of_kill(signal: Option<u8>) -> Self {
        const SIGKILL: u8 = 9;
        const SIGTERM: u8 = 15;
        match signal {
            None | Some(SIGKILL | SIGTERM) => Self::Kill,
            Some(_) => Self::Control,
        }
    }
}

/// Holds a command to run, as the caller sent it.
#[derive(Debug, Clone, Copy)]
pub struct Exec<'a> {
    /// The words after the target.
    pub words: &'a [ByteBuf],
    /// The words are an argv in any case: the first never names a command of the config.
    pub literal: bool,
    /// The one word is for the user's shell. Implies `literal`.
    pub shell: bool,
    /// The user asked for.
    pub user: Option<&'a str>,
    /// Names of the environment additions; bytes that are not UTF-8 as [`crate::audit::printable`] writes them, which
    /// is the name of no variable.
    pub env_names: &'a [String],
}

impl<'a> From<&'a Decided> for Request<'a> {
    fn from(decided: &'a Decided) -> Self {
        Request::Exec(Exec {
            words: &decided.words,
            literal: decided.literal,
            shell: decided.shell,
            user: decided.user.as_deref(),
            env_names: &decided.env_names,
        })
    }
}

/// Says what a decision allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Program and arguments: the caller's words, or the named command's.
    pub argv: Vec<ByteBuf>,
    /// The one word of `argv` is for the user's shell.
    pub shell: bool,
    /// The user to run as; None = the daemon's own.
    pub run_as: Option<String>,
    /// The named command that the words named.
    pub named: Option<String>,
    /// The caller's name in the config.
    pub who: String,
}

impl Grant {
    /// Returns the hash of the named command's words, by which a later decision tells whether the name still means the
    /// same; none where the caller's own words were granted, which the request has.
    pub fn named_words(&self) -> Option<ByteBuf> {
        self.named.as_ref()?;
        let mut hasher = blake3::Hasher::new_derive_key("malai 2026 words of a named command");
        for word in &self.argv {
            hasher.update(&(word.len() as u64).to_le_bytes()).update(word);
        }
        Some(ByteBuf::from(hasher.finalize().as_bytes().to_vec()))
    }
}

/// Says what came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This, and nothing else, is allowed.
    Allowed(Grant),
    /// Nothing is allowed, and this says why.
    Refused(Failure),
}

/// Decides a request at its target, by the config that the target holds.
pub fn decide(config: &Config, me: &Me<'_>, caller: &MachineId, request: &Request<'_>) -> Decision {
    match judge(config, me.id, Some(me.account()), caller, request).outcome {
        Ok(grant) if grant.argv.is_empty() && matches!(request, Request::Exec(_)) => Decision::Refused(
            Failure::new(Kind::Usage, "there is no command to run").hint("name a program after the target"),
        ),
        Ok(grant) => Decision::Allowed(grant),
        Err(failure) => Decision::Refused(failure),
    }
}

/// Decides a running session again, by a config that came after its start. Returns why it may not go on, if so.
pub fn decide_anew(config: &Config, me: &Me<'_>, caller: &MachineId, decided: &Decided) -> Option<Failure> {
    match decide(config, me, caller, &Request::from(decided)) {
        Decision::Refused(failure) => Some(failure),
        Decision::Allowed(grant) if grant.named != decided.named || grant.run_as != decided.run_as => {
            Some(Failure::new(Kind::Denied, "the config changed: this request now means another command or user"))
        }
        // What an older daemon decided has no hash: there the name has to do.
        Decision::Allowed(grant) if decided.named_words.is_some() && grant.named_words() != decided.named_words => {
            let name = grant.named.unwrap_or_default();
            Some(Failure::new(
                Kind::Denied,
                format!("the config changed: the named command `{name}` now has other words"),
            ))
        }
        Decision::Allowed(_) => None,
    }
}

/// Tells what [`decide`] would say on this machine, and why. Without words: for any command.
pub fn explain(config: &Config, me: &Me<'_>, caller: &MachineId, request: &Request<'_>) -> Verdict {
    judge(config, me.id, Some(me.account()), caller, request).into_verdict()
}

/// Tells what [`decide`] would say on another machine, of whose daemon only the config is known here.
pub fn explain_elsewhere(config: &Config, target: &MachineId, caller: &MachineId, request: &Request<'_>) -> Verdict {
    judge(config, target, None, caller, request).into_verdict()
}

/// Tells whether commands can run on this machine at all under its `username`, no matter which machine asks for them.
///
/// # Errors
/// The refusal that each of them gets.
pub fn check_account(config: &Config, me: &Me<'_>) -> Result<(), Failure> {
    let Some((name, machine)) = config.machine_by_id(me.id) else { return Ok(()) };
    let account = Some(me.account());
    let case = Case { config, name, machine, who: name, account };
    case.run_as(None, None, &mut Vec::new()).map(drop)
}

/// Returns the users that the config names for commands on this machine, each with the rule that names it.
pub fn users_named(config: &Config, id: &MachineId) -> Vec<(String, String)> {
    let Some((name, machine)) = config.machine_by_id(id) else { return Vec::new() };
    let own = match (&machine.username, &config.defaults.username) {
        (Some(user), _) => Some((user.clone(), format!("machine.{name}"))),
        (None, Some(user)) => Some((user.clone(), "defaults".to_owned())),
        (None, None) => None,
    };
    let users = machine.users.iter().map(|user| (user.clone(), format!("machine.{name}")));
    let commands = machine
        .commands
        .iter()
        .filter_map(|(command, entry)| Some((entry.username.clone()?, format!("machine.{name}.command.{command}"))));
    own.into_iter().chain(users).chain(commands).collect()
}

/// Holds the daemon's own account.
#[derive(Debug, Clone, Copy)]
struct Account<'a> {
    user: &'a str,
    root: bool,
}

/// Holds a decision with the steps that led to it.
struct Judgement {
    steps: Vec<String>,
    outcome: Result<Grant, Failure>,
}

impl Judgement {
    fn into_verdict(mut self) -> Verdict {
        match self.outcome {
            Ok(_) => Verdict { allowed: true, steps: self.steps, hint: None },
            Err(failure) => {
                self.steps.push(failure.message);
                Verdict { allowed: false, steps: self.steps, hint: failure.hint }
            }
        }
    }
}

/// Holds what decides a member's request at a machine.
struct Case<'a> {
    config: &'a Config,
    name: &'a Name,
    machine: &'a Machine,
    who: &'a Name,
    /// None where the decision is only explained, for another machine.
    account: Option<Account<'a>>,
}

/// Interprets the config. Nothing else does.
fn judge(
    config: &Config,
    target: &MachineId,
    account: Option<Account<'_>>,
    caller: &MachineId,
    request: &Request<'_>,
) -> Judgement {
    let mut steps = Vec::new();
    let outcome = interpret(config, target, account, caller, request, &mut steps);
    Judgement { steps, outcome }
}

fn interpret(
    config: &Config,
    target: &MachineId,
    account: Option<Account<'_>>,
    caller: &MachineId,
    request: &Request<'_>,
    steps: &mut Vec<String>,
) -> Result<Grant, Failure> {
    // A stranger is told nothing but this, whatever it asks for.
    let (who, _) = config.machine_by_id(caller).ok_or_else(|| {
        Failure::new(Kind::NotAMember, "the caller is not a machine of this cluster")
            .hint("`malai status` says whether this machine was removed, and what to type then")
    })?;
    let (name, machine) = config.machine_by_id(target).ok_or_else(|| {
        Failure::new(Kind::Denied, "the target is not a machine of this cluster any more")
            .hint("`malai status` lists the machines")
    })?;
    steps.push(format!("`{who}` is a machine of the cluster"));
    if let Some(why) = config.blocked(name) {
        return Err(Failure::new(Kind::Unsupported, why).hint(format!("install a newer malai on `{name}`")));
    }
    let case = Case { config, name, machine, who, account };
    match request {
        Request::Exec(exec) => case.exec(exec, steps),
        Request::Attend { owner, act } => case.attend(caller, owner, *act, steps),
    }
}

#[cfg(test)]
mod tests;
