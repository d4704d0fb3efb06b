use super::*;
use crate::config::Config;
use crate::config::tests::machine_id;

const CALLER: u8 = 2;
const TARGET: u8 = 3;
const STRANGER: u8 = 9;

/// A config in which every request below is allowed, each by lines of its own.
fn text() -> String {
    format!(
        "[cluster]\nname = \"company\"\nid52 = \"{}\"\nmanager = \"laptop\"\n\
         [machine.laptop]\nid52 = \"{}\"\n\
         [machine.caller]\nid52 = \"{}\"\n\
         [machine.web01]\nid52 = \"{}\"\n\
         allow_from = [\"outer\"]\nusername = \"deploy\"\nusers = [\"postgres\"]\naccept_env = [\"DEPLOY_*\"]\n\
         allow_sessions = [\"outer\"]\nallow_control = [\"outer\"]\n\
         [machine.web01.command.restart]\n\
         command = [\"systemctl\", \"restart\", \"nginx\"]\nallow_from = [\"on-call\"]\nusername = \"root\"\naccept_env = [\"DEPLOY_REF\"]\n\
         [group.outer]\nmembers = [\"inner\"]\n\
         [group.inner]\nmembers = [\"caller\"]\n\
         [group.on-call]\nmembers = [\"caller\"]\n",
        machine_id(200),
        machine_id(1),
        machine_id(CALLER),
        machine_id(TARGET)
    )
}

fn read(text: &str) -> Config {
    Config::read(text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

/// What the caller sends, owned.
#[derive(Debug, Clone, Default)]
struct Sent {
    words: Vec<ByteBuf>,
    literal: bool,
    shell: bool,
    user: Option<&'static str>,
    env: Vec<String>,
    /// Not a command: to do this with a session of this owner.
    attend: Option<(MachineId, Act)>,
}

impl Sent {
    fn words(words: &[&str]) -> Self {
        Self { words: words.iter().map(|w| ByteBuf::from(w.as_bytes())).collect(), ..Self::default() }
    }

    fn env(names: &[&str]) -> Self {
        Self { env: names.iter().map(|n| (*n).to_owned()).collect(), ..Self::words(&["id"]) }
    }

    fn attend(owner: u8, act: Act) -> Self {
        Self { attend: Some((machine_id(owner), act)), ..Self::default() }
    }

    fn user(user: &'static str) -> Self {
        Self { user: Some(user), ..Self::words(&["id"]) }
    }

    fn request(&self) -> Request<'_> {
        let Self { words, literal, shell, user, env, attend } = self;
        if let Some((owner, act)) = attend {
            return Request::Attend { owner, act: *act };
        }
        Request::Exec(Exec { words, literal: *literal, shell: *shell, user: *user, env_names: env })
    }
}

fn root(id: &MachineId) -> Me<'_> {
    Me { id, daemon_user: "root", root: true }
}

fn decided(text: &str, sent: &Sent) -> Decision {
    decide(&read(text), &root(&machine_id(TARGET)), &machine_id(CALLER), &sent.request())
}

fn granted(text: &str, sent: &Sent) -> Grant {
    match decided(text, sent) {
        Decision::Allowed(grant) => grant,
        Decision::Refused(failure) => panic!("{sent:?}: {failure}"),
    }
}

fn refused(text: &str, sent: &Sent) -> Failure {
    match decided(text, sent) {
        Decision::Refused(failure) => failure,
        Decision::Allowed(grant) => panic!("{sent:?}: {grant:?}"),
    }
}

/// One thing that a request needs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Need {
    CallerInConfig,
    TargetInConfig,
    NothingUnknown,
    List,
    Group,
    NestedGroup,
    Username,
    User,
    Variable,
    /// A list for the sessions of others that has what is asked for.
    Sessions,
    Control,
}

/// All that a request needs. A new kind of request does not compile without an answer here.
fn needs(request: &Request<'_>) -> Vec<Need> {
    let mut needs = vec![Need::CallerInConfig, Need::TargetInConfig, Need::NothingUnknown];
    match request {
        Request::Exec(exec) => {
            needs.extend([Need::List, Need::Group]);
            let named = exec.words.first().is_some_and(|word| word.as_slice() == b"restart") && !exec.literal;
            if !named {
                needs.push(Need::NestedGroup);
            }
            needs.push(if exec.user.is_some() { Need::User } else { Need::Username });
            if !exec.env_names.is_empty() {
                needs.push(Need::Variable);
            }
        }
        Request::Attend { owner, .. } if **owner == machine_id(CALLER) => {}
        Request::Attend { act, .. } => {
            needs.extend([Need::Group, Need::NestedGroup]);
            needs.push(match act {
                Act::Watch | Act::Kill => Need::Sessions,
                Act::Control => Need::Control,
            });
        }
    }
    needs
}

/// One of each kind of request, and of each way that it may take.
fn requests() -> Vec<Sent> {
    vec![
        Sent::words(&["id"]),
        Sent::words(&["restart"]),
        Sent { literal: true, ..Sent::words(&["restart"]) },
        Sent { shell: true, literal: true, ..Sent::words(&["id; id"]) },
        Sent::user("postgres"),
        Sent::env(&["DEPLOY_REF", "LANG"]),
        Sent { words: Sent::words(&["restart"]).words, ..Sent::env(&["DEPLOY_REF", "LC_TIME"]) },
        Sent::attend(CALLER, Act::Watch),
        Sent::attend(CALLER, Act::Kill),
        Sent::attend(CALLER, Act::Control),
        Sent::attend(1, Act::Watch),
        Sent::attend(1, Act::Kill),
        Sent::attend(1, Act::Control),
    ]
}

fn without_lines(text: &str, beginning: &str) -> String {
    text.lines().filter(|line| !line.starts_with(beginning)).map(|line| format!("{line}\n")).collect()
}

/// The config without what is needed.
fn without(need: Need) -> String {
    let text = text();
    let line = |beginning: &str| without_lines(&text, beginning);
    match need {
        Need::CallerInConfig => text.replace(&machine_id(CALLER).to_string(), &machine_id(7).to_string()),
        Need::TargetInConfig => text.replace(&machine_id(TARGET).to_string(), &machine_id(7).to_string()),
        Need::NothingUnknown => text.replacen("accept_env", "from_the_future = 1\naccept_env", 1),
        Need::List => {
            text.replace("allow_from = [\"outer\"]", "").replace("allow_from = [\"on-call\"]", "allow_from = []")
        }
        Need::Group => text.replace("members = [\"caller\"]", "members = []"),
        Need::NestedGroup => text.replace("members = [\"inner\"]", "members = []"),
        Need::Username => line("username"),
        Need::User => line("users"),
        Need::Variable => line("accept_env"),
        Need::Sessions => without_lines(&line("allow_sessions"), "allow_control"),
        Need::Control => line("allow_control"),
    }
}

#[test]
fn every_request_is_refused_when_any_of_what_it_needs_is_missing() {
    let me = machine_id(TARGET);
    for sent in requests() {
        let request = sent.request();
        granted(&text(), &sent);
        for need in needs(&request) {
            let config = read(&without(need));
            let decision = decide(&config, &root(&me), &machine_id(CALLER), &request);
            let Decision::Refused(failure) = decision else { panic!("{sent:?} without {need:?}: {decision:?}") };
            let kind = match need {
                Need::CallerInConfig => Kind::NotAMember,
                Need::NothingUnknown => Kind::Unsupported,
                _ => Kind::Denied,
            };
            assert_eq!(failure.kind, kind, "{sent:?} without {need:?}: {failure}");
            let verdict = explain(&config, &root(&me), &machine_id(CALLER), &request);
            assert!(!verdict.allowed && verdict.steps.last() == Some(&failure.message), "{verdict:?}");
        }
    }
}

#[test]
fn a_stranger_learns_the_same_nothing_whatever_it_asks_for() {
    let me = machine_id(TARGET);
    let mut answers = Vec::new();
    for text in [text(), without(Need::NothingUnknown), without(Need::TargetInConfig)] {
        for sent in requests() {
            answers.push(decide(&read(&text), &root(&me), &machine_id(STRANGER), &sent.request()));
        }
    }
    answers.dedup();
    let wanted = Failure::new(Kind::NotAMember, "the caller is not a machine of this cluster")
        .hint("`malai status` says whether this machine was removed, and what to type then");
    assert_eq!(answers, [Decision::Refused(wanted)]);
}

#[test]
fn a_grant_says_exactly_what_runs_and_as_whom() {
    let words = |words: &[&str]| Sent::words(words).words;
    let grant = granted(&text(), &Sent::words(&["id", "-u"]));
    assert_eq!((grant.argv, grant.run_as.as_deref(), grant.named), (words(&["id", "-u"]), Some("deploy"), None));
    assert_eq!(grant.who, "caller");
    let grant = granted(&text(), &Sent::words(&["restart"]));
    assert_eq!(grant.argv, words(&["systemctl", "restart", "nginx"]));
    assert_eq!((grant.run_as, grant.named.as_deref()), (None, Some("restart")), "root is the daemon's own user");
    let grant = granted(&text(), &Sent { literal: true, ..Sent::words(&["restart"]) });
    assert_eq!((grant.argv, grant.named), (words(&["restart"]), None));
    assert_eq!(granted(&text(), &Sent::user("postgres")).run_as.as_deref(), Some("postgres"));
    let shell = Sent { shell: true, ..Sent::words(&["restart"]) };
    assert!(granted(&text(), &shell).shell && granted(&text(), &shell).named.is_none());
}

#[test]
fn a_named_command_is_granted_as_it_stands_or_not_at_all() {
    let failure = refused(&text(), &Sent::words(&["restart", "now"]));
    assert_eq!(failure.message, "`restart` is a named command of `web01` and takes no arguments");
    let as_postgres = Sent { user: Some("postgres"), ..Sent::words(&["restart"]) };
    assert_eq!(refused(&text(), &as_postgres).message, "`restart` runs as its own user only, not as `postgres`");
    granted(&text(), &Sent { user: Some("root"), ..Sent::words(&["restart"]) });
    // Wider than the machine's list, and narrower.
    let only_named = text().replace("allow_from = [\"outer\"]\n", "");
    granted(&only_named, &Sent::words(&["restart"]));
    refused(&only_named, &Sent { literal: true, ..Sent::words(&["restart"]) });
    let narrower = text().replace("allow_from = [\"on-call\"]", "allow_from = [\"laptop\"]");
    assert!(refused(&narrower, &Sent::words(&["restart"])).message.contains("[machine.web01.command.restart]"));
    // Without a list of its own the machine's holds.
    granted(&text().replace("allow_from = [\"on-call\"]\n", ""), &Sent::words(&["restart"]));
}

#[test]
fn requests_that_no_program_could_get_are_refused() {
    for sent in [Sent::words(&[]), Sent::words(&["a\0"]), Sent { shell: true, ..Sent::words(&["a", "b"]) }] {
        assert_eq!(refused(&text(), &sent).kind, Kind::Usage, "{sent:?}");
    }
    let no_words = Sent::words(&[]);
    assert!(explain(&read(&text()), &root(&machine_id(TARGET)), &machine_id(CALLER), &no_words.request()).allowed);
}

#[test]
fn the_user_that_a_command_runs_as() {
    let plain = Me { id: &machine_id(TARGET), daemon_user: "deploy", root: false };
    let run_as = |text: &str, me: &Me<'_>, user: Option<&'static str>| {
        let sent = Sent { user, ..Sent::words(&["id"]) };
        match decide(&read(text), me, &machine_id(CALLER), &sent.request()) {
            Decision::Allowed(grant) => Ok(grant.run_as),
            Decision::Refused(failure) => Err(failure.message),
        }
    };
    let target = machine_id(TARGET);
    let (full, none) = (text(), text().replace("username = \"deploy\"\n", "").replace("users = [\"postgres\"]\n", ""));
    assert_eq!(run_as(&full, &root(&target), None), Ok(Some("deploy".into())));
    assert_eq!(run_as(&full, &root(&target), Some("deploy")), Ok(Some("deploy".into())));
    assert!(run_as(&full, &root(&target), Some("root")).is_err(), "root has to be named by the config");
    assert!(run_as(&none, &root(&target), None).is_err_and(|why| why.contains("its daemon runs as root")));
    assert!(run_as(&none, &root(&target), Some("root")).is_err());
    assert_eq!(run_as(&full, &plain, None), Ok(None), "its own user");
    assert_eq!(run_as(&none, &plain, None), Ok(None));
    assert_eq!(run_as(&none, &plain, Some("deploy")), Ok(None));
    assert!(
        run_as(&full, &plain, Some("postgres")).is_err_and(|why| why.contains("not as root")),
        "listed, but not possible"
    );
    assert!(run_as(&none, &plain, Some("postgres")).is_err());
    assert!(run_as(&full.replace("\"deploy\"", "\"other\""), &plain, None).is_err());
    for odd in ["", "-u", "a b", "postgres\u{0}", "0"] {
        assert!(run_as(&full, &root(&target), Some(odd)).is_err(), "{odd:?}");
    }
}

#[test]
fn loader_variables_are_refused_even_where_a_list_reaches_them() {
    let wide = text().replace("[\"DEPLOY_*\"]", "[\"L*\", \"P*\", \"B*\", \"GIT_*\"]");
    granted(&wide, &Sent::env(&["LC_TIME", "TERM", "LOCATION", "PLACE", "GIT_AUTHOR_NAME"]));
    for name in ["LD_PRELOAD", "PATH", "PYTHONSTARTUP", "BASH_ENV"] {
        let failure = refused(&wide, &Sent::env(&["LANG", name]));
        assert!(failure.message.starts_with(&format!("no machine accepts `{name}`: ")), "{failure}");
    }
    assert!(refused(&wide, &Sent::env(&["A=B"])).message.contains("not the name of a variable"));
    let failure = refused(&text(), &Sent::env(&["CI_JOB_ID"]));
    assert_eq!(failure.message, "`web01` does not accept the variable `CI_JOB_ID`");
}

#[test]
fn every_variable_of_the_tables_is_refused_in_every_spelling_whatever_a_config_says() {
    let named = |name: &str| Sent { words: Sent::words(&["restart"]).words, ..Sent::env(&["LANG", name]) };
    let names = crate::config::environment::tests::refused_names();
    for name in &names {
        let (first, some) = (&name[..1], &name[..name.len().min(4)]);
        let list = format!("[\"{name}\", \"{name}*\", \"{some}*\", \"{first}*\"]");
        let text = text().replace("[\"DEPLOY_*\"]", &list).replace("[\"DEPLOY_REF\"]", &list);
        let config = read(&text);
        for sent in [Sent::env(&[name]), named(name)] {
            let decision = decide(&config, &root(&machine_id(TARGET)), &machine_id(CALLER), &sent.request());
            let Decision::Refused(failure) = decision else { panic!("{name}: {decision:?}") };
            assert!(failure.message.starts_with("no machine accepts `"), "{name}: {failure}");
        }
        // A bare `*` is none: a member that is shown one runs nothing.
        let all = read(&text.replace(&list, "[\"*\"]"));
        let decision = decide(&all, &root(&machine_id(TARGET)), &machine_id(CALLER), &named(name).request());
        assert!(matches!(decision, Decision::Refused(_)), "{name}: {decision:?}");
    }
    assert!(names.len() > 1000, "{}", names.len());
}

#[test]
fn a_named_command_takes_the_variables_of_its_own_list_alone() {
    let named = |name: &str| Sent { words: Sent::words(&["restart"]).words, ..Sent::env(&[name]) };
    let defaults = "[defaults]\naccept_env = [\"DEPLOY_*\", \"CI_*\"]\n";
    let text = text() + defaults;
    granted(&text, &named("DEPLOY_REF"));
    granted(&text, &Sent::env(&["DEPLOY_USER"]));
    for name in ["DEPLOY_USER", "CI_JOB_ID"] {
        assert_eq!(refused(&text, &named(name)).message, format!("`restart` does not accept the variable `{name}`"));
    }
    let none = text.replace("accept_env = [\"DEPLOY_REF\"]\n", "");
    assert_eq!(refused(&none, &named("DEPLOY_REF")).message, "`restart` does not accept the variable `DEPLOY_REF`");
    for name in ["LANG", "LC_TIME", "TERM"] {
        granted(&none, &named(name));
    }
    // With `--` it is no named command, and the machine's list counts.
    granted(&none, &Sent { literal: true, ..named("DEPLOY_REF") });
}

#[test]
fn a_request_with_more_variables_than_are_compared_is_refused() {
    let env = |count: usize| Sent { env: (0..count).map(|n| format!("LC_{n}")).collect(), ..Sent::words(&["id"]) };
    granted(&text(), &env(1024));
    let failure = refused(&text(), &env(1025));
    assert_eq!(failure.kind, Kind::Usage);
    assert_eq!(failure.message, "the request sets 1025 variables; at most 1024 are allowed");
}

/// The config with the line that a hint shows, in the section that it names.
fn as_hinted(text: &str, hint: &str) -> String {
    let (_, rest) = hint.split_once("under [").expect("a section");
    let (section, rest) = rest.split_once("]: ").expect("a line");
    let line = rest.strip_suffix(" - then run `malai rescan` there").expect("the next command");
    let key = line.split(' ').next().expect("a key");
    let mut out = String::new();
    let mut inside = false;
    for old in text.lines() {
        inside = if old.starts_with('[') { old == format!("[{section}]") } else { inside };
        if !(inside && old.starts_with(key)) {
            out += &format!("{old}\n");
        }
        if inside && old.starts_with('[') {
            out += &format!("{line}\n");
        }
    }
    out
}

#[test]
fn the_line_that_a_refusal_shows_allows_the_request() {
    let defaults = "[defaults]\nallow_from = [\"laptop\"]\n";
    let no_list = text().replace("allow_from = [\"outer\"]\n", "");
    let table = [
        (no_list.clone(), Sent::words(&["id"])),
        (no_list + defaults, Sent::words(&["id"])),
        (text().replace("[\"outer\"]", "[\"laptop\"]"), Sent::words(&["id"])),
        (text().replace("[\"on-call\"]", "[\"laptop\"]"), Sent::words(&["restart"])),
        (without(Need::Username), Sent::words(&["id"])),
        (text(), Sent::user("backup")),
        (text(), Sent::env(&["CI_JOB_ID"])),
        (text(), Sent { words: Sent::words(&["restart"]).words, ..Sent::env(&["CI_JOB_ID"]) }),
        (text().replace("[\"DEPLOY_*\"]", "[\"EDITOR\", \"DEPLOY_*\"]"), Sent::env(&["CI_JOB_ID"])),
        (without(Need::Sessions), Sent::attend(1, Act::Watch)),
        (without(Need::Sessions), Sent::attend(1, Act::Kill)),
        (without(Need::Control), Sent::attend(1, Act::Control)),
        (text().replace("allow_control = [\"outer\"]", "allow_control = [\"laptop\"]"), Sent::attend(1, Act::Control)),
    ];
    for (text, sent) in table {
        let failure = refused(&text, &sent);
        let hint = failure.hint.unwrap_or_else(|| panic!("{sent:?}: no hint"));
        let edited = as_hinted(&text, &hint);
        Config::check(&edited).unwrap_or_else(|problems| panic!("{problems:?}\n{edited}"));
        granted(&edited, &sent);
    }
}

#[test]
fn the_refusal_of_a_root_daemon_shows_the_exact_line() {
    let failure = refused(&without(Need::Username), &Sent::words(&["id"]));
    assert_eq!(failure.message, "the config sets no `username` for `web01`, and its daemon runs as root");
    assert_eq!(
        failure.hint.as_deref(),
        Some("in cluster.toml on `laptop`, under [machine.web01]: username = \"root\" - then run `malai rescan` there")
    );
}

#[test]
fn the_line_that_a_daemon_without_root_shows_allows_the_request_wherever_the_other_user_is_named() {
    let me = Me { id: &machine_id(TARGET), daemon_user: "CORP\\web", root: false };
    let machine = without(Need::Username) + "[defaults]\nusername = \"deploy\"\n";
    let named = Sent::words(&["restart"]);
    let table = [(text(), Sent::words(&["id"])), (machine, Sent::words(&["id"])), (text(), named)];
    for (text, sent) in table {
        let request = sent.request();
        let caller = machine_id(CALLER);
        let Decision::Refused(failure) = decide(&read(&text), &me, &caller, &request) else { panic!("{text}") };
        assert!(failure.message.starts_with("the daemon on `web01` runs as `CORP\\web`, not as root"), "{failure}");
        let hint = failure.hint.expect("a hint");
        assert!(hint.starts_with("start malai's daemon on `web01` as root; or in cluster.toml"), "{hint}");
        let edited = as_hinted(&text, &hint);
        Config::check(&edited).unwrap_or_else(|problems| panic!("{problems:?}\n{edited}"));
        let decision = decide(&read(&edited), &me, &caller, &request);
        assert!(matches!(&decision, Decision::Allowed(grant) if grant.run_as.is_none()), "{decision:?}\n{edited}");
    }
    // A user that the caller chose is left out.
    let sent = Sent { user: Some("postgres"), ..Sent::words(&["id"]) };
    let plain = Me { daemon_user: "deploy", ..me };
    let Decision::Refused(failure) = decide(&read(&text()), &plain, &machine_id(CALLER), &sent.request()) else {
        panic!("it cannot");
    };
    assert_eq!(failure.hint.as_deref(), Some("leave the user out; or start malai's daemon on `web01` as root"));
}

#[test]
fn an_account_is_checked_as_a_command_would_be() {
    let id = machine_id(TARGET);
    let me = |daemon_user, root| Me { id: &id, daemon_user, root };
    let (with, without) = (read(&text()), read(&without(Need::Username)));
    assert_eq!(check_account(&with, &me("root", true)), Ok(()));
    assert_eq!(check_account(&with, &me("deploy", false)), Ok(()));
    assert_eq!(check_account(&without, &me("alice", false)), Ok(()), "it decides itself");
    assert!(check_account(&with, &me("alice", false)).is_err_and(|why| why.message.contains("`alice`")));
    assert!(check_account(&without, &me("root", true)).is_err_and(|why| why.message.contains("no `username`")));
    let named = users_named(&with, &id);
    let of = |user: &str, section: &str| (user.to_owned(), section.to_owned());
    let wanted =
        [of("deploy", "machine.web01"), of("postgres", "machine.web01"), of("root", "machine.web01.command.restart")];
    assert_eq!(named, wanted);
    assert_eq!(users_named(&without, &machine_id(CALLER)), []);
}

#[test]
fn an_explanation_tells_the_way_through_the_groups() {
    let (me, caller) = (machine_id(TARGET), machine_id(CALLER));
    let verdict = explain(&read(&text()), &root(&me), &caller, &Sent::words(&["id"]).request());
    let steps = [
        "`caller` is a machine of the cluster",
        "`allow_from` of [machine.web01] allows the group `outer`, which has the group `inner`, which has `caller`",
        "it runs as `deploy`",
    ];
    assert_eq!((verdict.allowed, verdict.steps, verdict.hint), (true, steps.map(str::to_owned).to_vec(), None));
    let none = without(Need::Username);
    let verdict = explain_elsewhere(&read(&none), &me, &caller, &Sent::words(&["id"]).request());
    assert!(verdict.allowed && verdict.steps[2].contains("if that is root, the command is refused"), "{verdict:?}");
}

#[test]
fn allow_sessions_lets_watch_and_kill_and_only_allow_control_lets_control() {
    let of = |keys: &[&str]| -> Vec<Act> {
        let lines: String = keys.iter().map(|key| format!("{key} = [\"outer\"]\n")).collect();
        let text = without(Need::Sessions).replace("users = ", &format!("{lines}users = "));
        let acts = [Act::Watch, Act::Kill, Act::Control];
        acts.into_iter().filter(|act| matches!(decided(&text, &Sent::attend(1, *act)), Decision::Allowed(_))).collect()
    };
    assert_eq!(of(&[]), []);
    assert_eq!(of(&["allow_sessions"]), [Act::Watch, Act::Kill]);
    assert_eq!(of(&["allow_control"]), [Act::Watch, Act::Kill, Act::Control]);
    assert_eq!(of(&["allow_sessions", "allow_control"]), [Act::Watch, Act::Kill, Act::Control]);
    // Neither the right to run commands nor that to open a shell is one to somebody else's session.
    assert_eq!(of(&["allow_shell"]), []);
    let failure = refused(&without(Need::Control), &Sent::attend(1, Act::Control));
    assert_eq!(
        failure.message,
        "the session belongs to another machine, and `caller` is not in `allow_control` of [machine.web01]"
    );
    assert_eq!(
        failure.hint.as_deref(),
        Some(
            "in cluster.toml on `laptop`, under [machine.web01]: allow_control = [\"caller\"] - then run `malai rescan` there"
        )
    );
}

#[test]
fn to_end_a_session_by_signal_is_to_kill_it_and_any_other_signal_is_control() {
    for signal in (0..=u8::MAX).map(Some).chain([None]) {
        let kills = matches!(signal, None | Some(9 | 15));
        assert_eq!(Act::of_kill(signal), if kills { Act::Kill } else { Act::Control }, "{signal:?}");
    }
}

/// A session that was granted so.
fn session_of(sent: &Sent, grant: &Grant) -> Decided {
    Decided {
        words: sent.words.clone(),
        literal: sent.literal,
        shell: sent.shell,
        user: sent.user.map(str::to_owned),
        env_names: sent.env.clone(),
        named: grant.named.clone(),
        named_words: grant.named_words(),
        run_as: grant.run_as.clone(),
        reason: None,
        since_ms: 0,
        detached: false,
        audit: None,
    }
}

#[test]
fn a_session_goes_on_only_while_its_request_means_the_same() {
    let sent = Sent::words(&["restart"]);
    let grant = granted(&text(), &sent);
    let session = session_of(&sent, &grant);
    let anew = |text: &str| decide_anew(&read(text), &root(&machine_id(TARGET)), &machine_id(CALLER), &session);
    assert_eq!(anew(&text()), None);
    assert!(anew(&without(Need::Group)).is_some(), "the grant is gone");
    assert!(anew(&text().replace("username = \"root\"", "username = \"deploy\"")).is_some(), "another user");
    assert!(anew(&text().replace("command.restart", "command.other")).is_some(), "another command");
}

#[test]
fn a_session_of_a_named_command_goes_on_only_while_the_name_has_the_same_words() {
    let sent = Sent::words(&["restart"]);
    let grant = granted(&text(), &sent);
    let session = session_of(&sent, &grant);
    let anew = |text: &str, session: &Decided| {
        decide_anew(&read(text), &root(&machine_id(TARGET)), &machine_id(CALLER), session)
    };
    let words = "[\"systemctl\", \"restart\", \"nginx\"]";
    for other in [
        "[\"systemctl\", \"restart\", \"postgres\"]",
        "[\"systemctl\", \"restart\"]",
        "[\"systemctl\", \"restart\", \"nginx\", \"\"]",
        "[\"systemctl\", \"restartnginx\"]",
        "[\"systemctl\", \"nginx\", \"restart\"]",
    ] {
        let failure = anew(&text().replace(words, other), &session).unwrap_or_else(|| panic!("{other} goes on"));
        assert_eq!(failure.message, "the config changed: the named command `restart` now has other words", "{other}");
    }
    // The same in another form, and at another place.
    let again = text().replace(words, "[ 'systemctl',\n \"restart\", # as before\n 'nginx' ]");
    let (before, section) = again.split_once("[machine.web01.command.restart]").expect("the section");
    let (section, groups) = section.split_once("[group.outer]").expect("the groups");
    let moved = format!("{before}[group.outer]{groups}[machine.web01.command.restart]{section}");
    assert_eq!(anew(&moved, &session), None);
    let more = text() + "[machine.web01.command.after]\ncommand = [\"true\"]\n";
    assert_eq!(anew(&more, &session), None);
    // An older daemon noted the name alone.
    let old = Decided { named_words: None, ..session };
    assert_eq!(anew(&text().replace(words, "[\"true\"]"), &old), None);
}

#[test]
fn words_of_the_caller_s_own_are_not_compared_with_a_named_command() {
    let sent = Sent { literal: true, ..Sent::words(&["restart"]) };
    let session = session_of(&sent, &granted(&text(), &sent));
    assert_eq!(session.named_words, None);
    let other = text().replace("\"nginx\"", "\"postgres\"");
    assert_eq!(decide_anew(&read(&other), &root(&machine_id(TARGET)), &machine_id(CALLER), &session), None);
    // Words that were a program's become a name's.
    let sent = Sent::words(&["reload"]);
    let session = session_of(&sent, &granted(&text(), &sent));
    let named = text() + "[machine.web01.command.reload]\ncommand = [\"reload\"]\nusername = \"deploy\"\n";
    assert!(decide_anew(&read(&named), &root(&machine_id(TARGET)), &machine_id(CALLER), &session).is_some());
}
