//! Properties of access decisions over generated configs.

use malai_protocol::access::{Decision, Exec, Me, Request, decide, explain};
use malai_protocol::config::Config;
use malai_protocol::id::MachineId;
use proptest::prelude::*;
use serde_bytes::ByteBuf;

const MACHINES: usize = 5;
const GROUPS: usize = 4;

fn key(number: usize) -> MachineId {
    let seed = [u8::try_from(number).expect("small"); 32];
    MachineId::from_bytes(ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes()).expect("a key")
}

/// A config as its lists: what a line of text says, as indices.
#[derive(Debug, Clone)]
struct Model {
    /// Of [defaults], of the target, of its named command; None = no such line.
    allow: [Option<Vec<usize>>; 3],
    /// Members of each group. Index below MACHINES = a machine, above = a group.
    members: Vec<Vec<usize>>,
    users: Vec<usize>,
    accept: Vec<usize>,
    username: bool,
}

const USERS: [&str; 3] = ["postgres", "backup", "deploy"];
const ACCEPT: [&str; 3] = ["DEPLOY_*", "CI_JOB_ID", "L*"];
const NAMES: [&str; 5] = ["DEPLOY_REF", "CI_JOB_ID", "LOCATION", "LANG", "LD_PRELOAD"];

fn subject(index: usize) -> String {
    match index {
        i if i < MACHINES => format!("\"m{i}\""),
        i if i < MACHINES + GROUPS => format!("\"g{}\"", i - MACHINES),
        _ => "\"*\"".to_owned(),
    }
}

fn list(items: &[usize]) -> String {
    items.iter().map(|i| subject(*i)).collect::<Vec<_>>().join(", ")
}

impl Model {
    fn text(&self) -> String {
        let line = |list_of: &Option<Vec<usize>>| match list_of {
            Some(items) => format!("allow_from = [{}]\n", list(items)),
            None => String::new(),
        };
        let quoted = |names: &[&str], picked: &[usize]| {
            picked.iter().map(|i| format!("\"{}\"", names[*i])).collect::<Vec<_>>().join(", ")
        };
        let mut text = format!("[cluster]\nname = \"c\"\nid52 = \"{}\"\nmanager = \"m0\"\n", key(100));
        text += &format!("[defaults]\n{}", line(&self.allow[0]));
        for i in 1..MACHINES {
            text += &format!("[machine.m{i}]\nid52 = \"{}\"\n", key(i + 1));
        }
        text += &format!("[machine.m0]\nid52 = \"{}\"\n{}", key(1), line(&self.allow[1]));
        text +=
            &format!("users = [{}]\naccept_env = [{}]\n", quoted(&USERS, &self.users), quoted(&ACCEPT, &self.accept));
        if self.username {
            text += "username = \"deploy\"\n";
        }
        text += &format!("[machine.m0.command.x]\ncommand = [\"true\"]\n{}", line(&self.allow[2]));
        for (i, members) in self.members.iter().enumerate() {
            text += &format!("[group.g{i}]\nmembers = [{}]\n", list(members));
        }
        text
    }

    /// Every list of the config.
    fn lists(&mut self) -> Vec<&mut Vec<usize>> {
        let allow = self.allow.iter_mut().flatten();
        allow.chain(self.members.iter_mut()).chain([&mut self.users, &mut self.accept]).collect()
    }

    /// Whether the machine is in the list, found in the plainest way: add members until nothing is new.
    fn contains(&self, list: &[usize], machine: usize) -> bool {
        let mut all = list.to_vec();
        loop {
            let more: Vec<usize> = all
                .iter()
                .filter(|i| (MACHINES..MACHINES + GROUPS).contains(*i))
                .flat_map(|i| self.members[i - MACHINES].clone())
                .filter(|i| !all.contains(i))
                .collect();
            if more.is_empty() {
                return all.contains(&machine) || all.contains(&(MACHINES + GROUPS));
            }
            all.extend(more);
            all.sort_unstable();
            all.dedup();
        }
    }
}

fn model() -> impl Strategy<Value = Model> {
    let allow = || prop::option::weighted(0.8, prop::collection::vec(0..=MACHINES + GROUPS, 0..4));
    // A group has only groups after it, so that none contains itself.
    let members = (0..GROUPS).map(|g| {
        let later = (g + 1 + MACHINES..MACHINES + GROUPS).collect::<Vec<_>>();
        let any: Vec<usize> = (0..MACHINES).chain(later).collect();
        prop::collection::vec(prop::sample::select(any), 0..4)
    });
    let picked = || prop::collection::vec(0..3usize, 0..3);
    ([allow(), allow(), allow()], members.collect::<Vec<_>>(), picked(), picked(), any::<bool>())
        .prop_map(|(allow, members, users, accept, username)| Model { allow, members, users, accept, username })
}

#[derive(Debug, Clone)]
struct Sent {
    caller: usize,
    named: bool,
    literal: bool,
    user: Option<usize>,
    env: Vec<usize>,
    root: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        0..=MACHINES,
        any::<bool>(),
        any::<bool>(),
        prop::option::of(0..3usize),
        prop::collection::vec(0..5usize, 0..3),
        any::<bool>(),
    )
        .prop_map(|(caller, named, literal, user, env, root)| Sent { caller, named, literal, user, env, root })
}

fn ask(text: &str, sent: &Sent) -> (Decision, bool) {
    let config = Config::check(text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
    let words = [ByteBuf::from(if sent.named { "x" } else { "id" }.as_bytes())];
    let env: Vec<String> = sent.env.iter().map(|i| NAMES[*i].to_owned()).collect();
    let user = sent.user.map(|i| USERS[i]);
    let request = Request::Exec(Exec { words: &words, literal: sent.literal, shell: false, user, env_names: &env });
    let id = key(1);
    let me = Me { id: &id, daemon_user: if sent.root { "root" } else { "deploy" }, root: sent.root };
    let caller = key(sent.caller + 1);
    (decide(&config, &me, &caller, &request), explain(&config, &me, &caller, &request).allowed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn taking_anything_out_of_a_list_never_allows_what_was_refused(
        model in model(), sent in sent(), at in any::<prop::sample::Index>(), item in any::<prop::sample::Index>(),
    ) {
        let (before, _) = ask(&model.text(), &sent);
        let mut less = model.clone();
        let mut lists = less.lists();
        let index = at.index(lists.len());
        if !lists[index].is_empty() {
            let item = item.index(lists[index].len());
            lists[index].remove(item);
        }
        let (after, _) = ask(&less.text(), &sent);
        prop_assert!(
            matches!(before, Decision::Allowed(_)) || matches!(after, Decision::Refused(_)),
            "{before:?}\n{after:?}\n{}\n{}", model.text(), less.text()
        );
    }

    #[test]
    fn nobody_is_allowed_whom_no_list_has(model in model(), sent in sent()) {
        let (decision, _) = ask(&model.text(), &sent);
        let [defaults, machine, command] = &model.allow;
        let named = sent.named && !sent.literal;
        let list = if named { command.as_ref() } else { None }.or(machine.as_ref()).or(defaults.as_ref());
        let listed = sent.caller < MACHINES && list.is_some_and(|list| model.contains(list, sent.caller));
        prop_assert!(listed || matches!(decision, Decision::Refused(_)), "{decision:?}\n{}", model.text());
        // And whom a list has is refused only for the user or the environment.
        if listed && sent.env.is_empty() && sent.user.is_none() && (model.username || !sent.root) {
            prop_assert!(matches!(decision, Decision::Allowed(_)), "{decision:?}\n{}", model.text());
        }
    }

    #[test]
    fn an_explanation_says_what_the_decision_is(model in model(), sent in sent()) {
        let (decision, explained) = ask(&model.text(), &sent);
        prop_assert_eq!(matches!(decision, Decision::Allowed(_)), explained);
    }
}
