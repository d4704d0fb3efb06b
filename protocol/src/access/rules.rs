//! The rules for commands: which list, which user, which environment; and for sessions: whose, or which list.

use serde_bytes::ByteBuf;

use super::{Account, Act, Case, Exec, Grant};
use crate::config::environment::{self, Standing};
use crate::config::{Allow, Command, Name, Via, is_user, quoted_user, shown};
use crate::failure::{Failure, Kind};
use crate::id::MachineId;

/// Bounds the lists that a hint repeats.
const MAX_HINT_ITEMS: usize = 12;

impl Case<'_> {
    /// Decides whether the caller may run this, and as which user.
    pub(super) fn exec(&self, exec: &Exec<'_>, steps: &mut Vec<String>) -> Result<Grant, Failure> {
        let command = self.named(exec);
        if let Some((name, _)) = command {
            steps.push(format!("`{name}` is a named command of `{}`", self.name));
        }
        self.listed(command, steps)?;
        self.well_formed(exec, command)?;
        let run_as = self.run_as(exec.user, command, steps)?;
        self.environment(exec.env_names, command, steps)?;
        let argv = match command {
            Some((_, command)) => command.command.iter().map(|word| ByteBuf::from(word.as_bytes())).collect(),
            None => exec.words.to_vec(),
        };
        let named = command.map(|(name, _)| name.to_string());
        Ok(Grant { argv, shell: exec.shell, run_as, named, who: self.who.to_string() })
    }

    /// Decides whether the caller may do this with the sessions of this owner.
    pub(super) fn attend(
        &self,
        caller: &MachineId,
        owner: &MachineId,
        act: Act,
        steps: &mut Vec<String>,
    ) -> Result<Grant, Failure> {
        if caller == owner {
            steps.push("the session is its own".to_owned());
        } else {
            steps.push(self.others(act)?);
        }
        Ok(Grant { argv: Vec::new(), shell: false, run_as: None, named: None, who: self.who.to_string() })
    }

    /// Says by which list the caller may do this with sessions of other machines.
    fn others(&self, act: Act) -> Result<String, Failure> {
        let (sessions, control) =
            (("allow_sessions", &self.machine.allow_sessions), ("allow_control", &self.machine.allow_control));
        // To control a session is to see it, and to be able to end it.
        let lists = match act {
            Act::Watch | Act::Kill => vec![sessions, control],
            Act::Control => vec![control],
        };
        for (key, list) in &lists {
            if let Some(via) = list.as_ref().and_then(|list| self.config.via(list, self.who)) {
                return Ok(format!("`{key}` of [{}] allows {}", self.rule(), described(&via, self.who)));
            }
        }
        let keys: Vec<String> = lists.iter().map(|(key, _)| format!("`{key}`")).collect();
        let (who, rule) = (self.who, self.rule());
        let why =
            format!("the session belongs to another machine, and `{who}` is not in {} of [{rule}]", keys.join(" or "));
        let (key, list) = if act == Act::Control { control } else { sessions };
        Err(self.denied(why, &rule, &self.allow_line(key, list.as_ref())))
    }

    /// Returns the named command that the first word names.
    fn named(&self, exec: &Exec<'_>) -> Option<(&Name, &Command)> {
        if exec.literal || exec.shell {
            return None;
        }
        let word = std::str::from_utf8(exec.words.first()?).ok()?;
        self.machine.commands.get_key_value(word)
    }

    /// Checks that the list that counts has the caller: the first of command, machine and defaults that has one.
    fn listed(&self, command: Option<(&Name, &Command)>, steps: &mut Vec<String>) -> Result<(), Failure> {
        let (machine, defaults) = (&self.machine.allow_from, &self.config.defaults.allow_from);
        let own = command.and_then(|(name, command)| Some((self.command_rule(name), command.allow_from.as_ref()?)));
        let found = own
            .or_else(|| Some((self.rule(), machine.as_ref()?)))
            .or_else(|| Some(("defaults".to_owned(), defaults.as_ref()?)));
        let Some((rule, list)) = found else {
            let why = format!(
                "no machine may run commands on `{0}`: neither [machine.{0}] nor [defaults] has `allow_from`",
                self.name
            );
            return Err(self.denied(why, &self.rule(), &self.allow_line("allow_from", None)));
        };
        match self.config.via(list, self.who) {
            Some(via) => {
                steps.push(format!("`allow_from` of [{rule}] allows {}", described(&via, self.who)));
                Ok(())
            }
            None => {
                let why = format!("`{}` is not in `allow_from` of [{rule}]", self.who);
                // The line allows this on this machine only, even where the defaults decided.
                let place = if rule == "defaults" { self.rule() } else { rule };
                Err(self.denied(why, &place, &self.allow_line("allow_from", Some(list))))
            }
        }
    }

    /// Returns the line of the config that adds the caller to a list.
    fn allow_line(&self, key: &str, list: Option<&Allow>) -> String {
        let names: Vec<&Name> = list.into_iter().flat_map(|list| &list.names).collect();
        if names.len() > MAX_HINT_ITEMS {
            return format!("add \"{}\" to {key}", self.who);
        }
        let quoted: Vec<String> = names.into_iter().chain([self.who]).map(|name| format!("\"{name}\"")).collect();
        format!("{key} = [{}]", quoted.join(", "))
    }

    fn well_formed(&self, exec: &Exec<'_>, command: Option<(&Name, &Command)>) -> Result<(), Failure> {
        if let Some((name, _)) = command
            && exec.words.len() > 1
        {
            let message = format!("`{name}` is a named command of `{}` and takes no arguments", self.name);
            let hint = format!("give `{name}` alone; after `--` the words are a program and its arguments");
            return Err(Failure::new(Kind::Denied, message).hint(hint));
        }
        if exec.shell && exec.words.len() > 1 {
            return Err(Failure::new(Kind::Usage, "-c takes one string, but more words follow"));
        }
        if exec.words.iter().any(|word| word.contains(&0)) {
            return Err(Failure::new(Kind::Usage, "a word of a command cannot contain a NUL byte"));
        }
        Ok(())
    }

    /// Returns the user to run as; None = the daemon's own.
    pub(super) fn run_as(
        &self,
        asked: Option<&str>,
        command: Option<(&Name, &Command)>,
        steps: &mut Vec<String>,
    ) -> Result<Option<String>, Failure> {
        let configured = self.configured_user(command);
        let user = match asked {
            Some(user) => Some(self.may_ask_for(user, configured, command)?),
            None => configured,
        };
        let run_as = match (user, self.account) {
            (None, Some(account)) if account.root => {
                let why = format!("the config sets no `username` for `{}`, and its daemon runs as root", self.name);
                return Err(self.denied(why, &self.rule(), "username = \"root\""));
            }
            (None, _) => None,
            (Some(user), Some(account)) if account.user == user => None,
            (Some(user), Some(account)) if !account.root => {
                return Err(self.cannot_become(user, account, asked.is_some() && configured != Some(user), command));
            }
            (Some(user), _) => Some(user.to_owned()),
        };
        steps.push(match (user, self.account) {
            (Some(user), Some(_)) => format!("it runs as `{user}`"),
            (Some(user), None) => format!("it runs as `{user}`, if the daemon on `{}` is root or `{user}`", self.name),
            (None, Some(account)) => format!("it runs as `{}`, the daemon's own user", account.user),
            (None, None) => format!(
                "it runs as the account of the daemon on `{}`; if that is root, the command is refused, since no `username` is set",
                self.name
            ),
        });
        Ok(run_as)
    }

    /// Returns the refusal of a daemon that is not root, with what mends it: such a daemon runs nothing as another
    /// user.
    fn cannot_become(
        &self,
        user: &str,
        account: Account<'_>,
        is_chosen: bool,
        command: Option<(&Name, &Command)>,
    ) -> Failure {
        let (name, own) = (self.name, account.user);
        let why = format!("the daemon on `{name}` runs as `{own}`, not as root, so it cannot run commands as `{user}`");
        let by_root = format!("start malai's daemon on `{name}` as root");
        if is_chosen {
            return Failure::new(Kind::Denied, why).hint(format!("leave the user out; or {by_root}"));
        }
        if !is_user(own) {
            return Failure::new(Kind::Denied, why).hint(by_root);
        }
        let rule = match command {
            Some((name, command)) if command.username.is_some() => self.command_rule(name),
            _ => self.rule(),
        };
        let denied = self.denied(why, &rule, &format!("username = {}", quoted_user(own)));
        Failure { hint: denied.hint.map(|line| format!("{by_root}; or {line}")), ..denied }
    }

    fn configured_user<'a>(&'a self, command: Option<(&Name, &'a Command)>) -> Option<&'a str> {
        command.and_then(|(_, command)| command.username.as_deref()).or(self.machine.username.as_deref()).or(self
            .config
            .defaults
            .username
            .as_deref())
    }

    /// Checks that the caller may ask for this user. A named command runs as its own user only: its list may be wider
    /// than the machine's.
    fn may_ask_for<'u>(
        &self,
        user: &'u str,
        configured: Option<&str>,
        command: Option<(&Name, &Command)>,
    ) -> Result<&'u str, Failure> {
        let own = |user: &str| self.account.is_some_and(|account| !account.root && account.user == user);
        let listed = command.is_none() && self.machine.users.iter().any(|known| known == user);
        if configured == Some(user) || listed || (configured.is_none() && own(user)) {
            return Ok(user);
        }
        if let Some((name, _)) = command {
            let message = format!("`{name}` runs as its own user only, not as `{}`", shown(user));
            return Err(Failure::new(Kind::Denied, message).hint("leave the user out"));
        }
        let message = format!("the config does not allow `{}` as a user on `{}`", shown(user), self.name);
        if !is_user(user) {
            return Err(Failure::new(Kind::Denied, message).hint("leave the user out"));
        }
        let users = self.machine.users.iter().map(String::as_str).chain([user]);
        let quoted: Vec<String> = users.map(quoted_user).collect();
        let line = match quoted.len() {
            0..=MAX_HINT_ITEMS => format!("users = [{}]", quoted.join(", ")),
            _ => format!("add {} to users", quoted_user(user)),
        };
        Err(self.denied(message, &self.rule(), &line))
    }

    /// Checks that the caller may set these variables.
    fn environment(
        &self,
        names: &[String],
        command: Option<(&Name, &Command)>,
        steps: &mut Vec<String>,
    ) -> Result<(), Failure> {
        if names.len() > environment::MAX_REQUEST_VARIABLES {
            let most = environment::MAX_REQUEST_VARIABLES;
            let why = format!("the request sets {} variables; at most {most} are allowed", names.len());
            return Err(Failure::new(Kind::Usage, why).hint("put them into a file, or into standard input"));
        }
        let (machine, defaults) = (self.machine.accept_env.as_ref(), self.config.defaults.accept_env.as_ref());
        let accepted = environment::accepted(command.map(|(_, command)| command), machine, defaults);
        let whose = command.map_or(self.name, |(name, _)| name);
        for name in names {
            let listed = || accepted.iter().any(|pattern| environment::matches(pattern, name));
            match environment::standing(name) {
                Standing::Always => {}
                Standing::Ask if listed() => {}
                Standing::Ask => {
                    let why = format!("`{whose}` does not accept the variable `{}`", shown(name));
                    let rule = command.map_or_else(|| self.rule(), |(name, _)| self.command_rule(name));
                    return Err(self.denied(why, &rule, &accept_line(accepted, name)));
                }
                Standing::Never(reason) => {
                    let name = shown(name);
                    let why = format!("no machine accepts `{name}`: {reason}");
                    return Err(Failure::new(Kind::Denied, why)
                        .hint("leave this variable out; if it must be set, let a script on that machine set it"));
                }
                Standing::NotAName => {
                    let why = format!("`{}` is not the name of a variable", shown(name));
                    return Err(Failure::new(Kind::Denied, why).hint("names have letters, digits and `_`"));
                }
            }
        }
        if !names.is_empty() {
            steps.push(format!("`{whose}` accepts the variables"));
        }
        Ok(())
    }

    fn rule(&self) -> String {
        format!("machine.{}", self.name)
    }

    fn command_rule(&self, command: &Name) -> String {
        format!("machine.{}.command.{command}", self.name)
    }

    /// Returns a refusal with the line of the config that would lift it, and the rule where that line belongs.
    fn denied(&self, why: String, rule: &str, line: &str) -> Failure {
        let manager = &self.config.cluster.manager;
        Failure::new(Kind::Denied, why)
            .hint(format!("in cluster.toml on `{manager}`, under [{rule}]: {line} - then run `malai rescan` there"))
    }
}

/// Returns the line that adds a variable to a list. It leaves out what no machine accepts: a check would refuse the
/// line.
fn accept_line(accepted: &[String], name: &str) -> String {
    let useful = accepted.iter().map(String::as_str).filter(|pattern| environment::in_vain(pattern).is_none());
    let quoted: Vec<String> = useful.chain([name]).map(|item| format!("\"{item}\"")).collect();
    match quoted.len() {
        0..=MAX_HINT_ITEMS => format!("accept_env = [{}]", quoted.join(", ")),
        _ => format!("add \"{}\" to accept_env", shown(name)),
    }
}

fn described(via: &Via, who: &Name) -> String {
    match via {
        Via::Everyone => "\"*\", every machine of the cluster".to_owned(),
        Via::Itself => format!("`{who}`"),
        Via::Groups(way) => {
            let shown: Vec<String> = way.iter().take(MAX_HINT_ITEMS).map(|group| format!("`{group}`")).collect();
            format!("the group {}, which has `{who}`", shown.join(", which has the group "))
        }
    }
}
