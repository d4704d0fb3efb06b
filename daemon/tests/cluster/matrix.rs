//! Every kind of request times every missing grant is refused at the target, over a real connection.

use anyhow::{Result, ensure};
use iroh::endpoint::Connection;
use malai_daemon::store::keys::MachineKey;
use malai_protocol::access::{Exec, Request};
use malai_protocol::failure::Kind;
use malai_protocol::session::ExecSpec;
use nix::unistd::Uid;
use serde_bytes::ByteBuf;

use crate::support::peer::exec;
use crate::support::scene::Scene;
use crate::support::{Ran, follow, spec};

/// A config in which every request below is allowed, each by lines of its own.
fn text(scene: &Scene) -> String {
    let lines = "allow_from = [\"outer\"]\nusername = \"root\"\nusers = [\"nobody\"]\naccept_env = [\"GIT_*\"]\n\
                 [machine.web01.command.greet]\ncommand = [\"echo\", \"hello\"]\nallow_from = [\"on-call\"]\nusername = \"root\"\n\
                 [group.outer]\nmembers = [\"inner\"]\n\
                 [group.inner]\nmembers = [\"friend\"]\n\
                 [group.on-call]\nmembers = [\"friend\"]\n";
    let text = scene.text().replace("username = \"root\"\n", "").replace("allow_from = [\"friend\"]\n", lines);
    // A daemon that is not root runs commands as its own user only, so that these lines are no grants there.
    if Uid::effective().is_root() { text } else { without_lines(&without_lines(&text, "username"), "users") }
}

fn without_lines(text: &str, beginning: &str) -> String {
    text.lines().filter(|line| !line.starts_with(beginning)).map(|line| format!("{line}\n")).collect()
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
}

/// What a request travels as, and all that it needs. A new kind of request does not compile without an answer here.
fn on_the_wire(request: &Request<'_>) -> (ExecSpec, Vec<Need>) {
    let mut needs = vec![Need::CallerInConfig, Need::TargetInConfig, Need::NothingUnknown];
    match request {
        Request::Exec(Exec { words, literal, shell, user, env_names }) => {
            needs.extend([Need::List, Need::Group]);
            let named = !literal && words.first().is_some_and(|word| word.as_slice() == b"greet");
            if !named {
                needs.push(Need::NestedGroup);
            }
            if Uid::effective().is_root() {
                needs.push(if user.is_some() { Need::User } else { Need::Username });
            }
            if !env_names.is_empty() {
                needs.push(Need::Variable);
            }
            let env = env_names.iter().map(|name| (ByteBuf::from(name.as_bytes()), ByteBuf::from(b"x".to_vec())));
            let user = user.map(str::to_owned);
            let spec = ExecSpec {
                words: words.to_vec(),
                literal: *literal,
                shell: *shell,
                user,
                env: env.collect(),
                ..spec(&[])
            };
            (spec, needs)
        }
        Request::Attend { .. } => unreachable!("no session is attended to here"),
    }
}

/// The config without what is needed.
fn without(scene: &Scene, need: Need, nobody: &str) -> String {
    let text = text(scene);
    match need {
        Need::CallerInConfig => text.replace(&scene.friend.id.to_string(), nobody),
        Need::TargetInConfig => text.replace(&scene.web01_id.to_string(), nobody),
        Need::NothingUnknown => text.replace("accept_env", "from_the_future = 1\naccept_env"),
        Need::List => {
            text.replace("allow_from = [\"outer\"]\n", "").replace("allow_from = [\"on-call\"]", "allow_from = []")
        }
        Need::Group => text.replace("members = [\"friend\"]", "members = []"),
        Need::NestedGroup => text.replace("members = [\"inner\"]", "members = []"),
        Need::Username => without_lines(&text, "username"),
        Need::User => without_lines(&text, "users"),
        Need::Variable => without_lines(&text, "accept_env"),
    }
}

const NEEDS: [Need; 9] = [
    Need::CallerInConfig,
    Need::TargetInConfig,
    Need::NothingUnknown,
    Need::List,
    Need::Group,
    Need::NestedGroup,
    Need::Username,
    Need::User,
    Need::Variable,
];

/// One of each kind of request, and of each way that it may take. Each prints something when it runs.
fn each(mut visit: impl FnMut(Request<'_>)) {
    let words = |words: &[&str]| -> Vec<ByteBuf> { words.iter().map(|w| ByteBuf::from(w.as_bytes())).collect() };
    let (argv, named, string) = (words(&["echo", "hello"]), words(&["greet"]), words(&["echo hello"]));
    let env = ["GIT_DIR".to_owned(), "LANG".to_owned()];
    let plain = Exec { words: &argv, literal: true, shell: false, user: None, env_names: &[] };
    visit(Request::Exec(plain));
    visit(Request::Exec(Exec { literal: false, ..plain }));
    visit(Request::Exec(Exec { words: &named, literal: false, ..plain }));
    visit(Request::Exec(Exec { words: &string, shell: true, ..plain }));
    visit(Request::Exec(Exec { env_names: &env, ..plain }));
    if Uid::effective().is_root() {
        visit(Request::Exec(Exec { user: Some("nobody"), ..plain }));
    }
}

/// Sends one request, and returns what came of it. The id is always another.
async fn try_it(scene: &Scene, conn: &Connection, request: &ExecSpec) -> Result<Ran> {
    let request = ExecSpec { id: spec(&[]).id, ..request.clone() };
    follow(exec(conn, scene.key.id(), &request).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_without_any_one_of_its_grants_is_refused_at_the_target() -> Result<()> {
    let scene = Scene::new().await?;
    let nobody = MachineKey::generate()?.id().to_string();
    let mut requests = Vec::new();
    each(|request| requests.push(on_the_wire(&request)));
    let conn = scene.friend.dial(&scene.web01).await?;
    scene.publish(&text(&scene)).await?;
    for (request, _) in &requests {
        let ran = try_it(&scene, &conn, request).await?;
        ensure!(ran.stdout == b"hello\n", "with all grants {request:?}: {ran:?}");
    }
    for need in NEEDS {
        scene.publish(&without(&scene, need, &nobody)).await?;
        for (request, needs) in &requests {
            let ran = try_it(&scene, &conn, request).await?;
            if !needs.contains(&need) {
                continue;
            }
            let kind = match &ran.end {
                Err(Some(failure)) => failure.kind,
                other => anyhow::bail!("without {need:?}, {request:?}: {other:?}"),
            };
            let wanted = match need {
                Need::CallerInConfig => Kind::NotAMember,
                Need::NothingUnknown => Kind::Unsupported,
                _ => Kind::Denied,
            };
            ensure!(kind == wanted && ran.started.is_none(), "without {need:?}, {request:?}: {ran:?}");
        }
        // Each refusal is because of what is missing, and not of the one before.
        scene.publish(&text(&scene)).await?;
        for (request, _) in &requests {
            let ran = try_it(&scene, &conn, request).await?;
            ensure!(ran.stdout == b"hello\n", "after {need:?}, {request:?}: {ran:?}");
        }
    }
    scene.web01.stop().await?;
    Ok(())
}
