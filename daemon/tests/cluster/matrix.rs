//! Every kind of request times every missing grant is refused at the target, over a real connection.

use anyhow::{Result, ensure};
use iroh::endpoint::Connection;
use malai_daemon::store::keys::MachineKey;
use malai_protocol::access::{Act, Exec, Request};
use malai_protocol::codec::{Frame, Kind as FrameKind};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::id::MachineId;
use malai_protocol::peer::{Close, Gone, Open};
use malai_protocol::session::{Attach, ExecSpec};
use malai_protocol::sessions::{Kill, Wait};
use nix::unistd::Uid;
use serde_bytes::ByteBuf;

use crate::support::peer::{attach, closed, exec, gone, open, send};
use crate::support::scene::Scene;
use crate::support::{again, follow, followed, next, spec};

/// A config in which every request below is allowed, each by lines of its own.
fn text(scene: &Scene) -> String {
    let lines = "allow_from = [\"outer\"]\nallow_sessions = [\"outer\"]\nallow_control = [\"outer\"]\nusername = \"root\"\nusers = [\"nobody\"]\naccept_env = [\"DEPLOY_*\"]\n\
                 [machine.web01.command.greet]\ncommand = [\"echo\", \"hello\"]\nallow_from = [\"on-call\"]\nusername = \"root\"\naccept_env = [\"DEPLOY_REF\"]\n\
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
    /// A list for the sessions of others that has what is asked for.
    Sessions,
    Control,
    Group,
    NestedGroup,
    Username,
    User,
    Variable,
}

/// What a request travels as.
#[derive(Debug, Clone)]
enum Sent {
    Exec(ExecSpec),
    Attach(Attach),
    Gone(Gone),
    Wait(Wait),
    Kill(Kill),
}

/// What a request travels as, and all that it needs. A new kind of request does not compile without an answer here.
fn on_the_wire(scene: &Scene, request: &Request<'_>) -> (Vec<Sent>, Vec<Need>) {
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
            (vec![Sent::Exec(spec)], needs)
        }
        Request::Attend { owner, act } => {
            if **owner != scene.friend.id {
                needs.extend([Need::Group, Need::NestedGroup]);
                needs.push(if *act == Act::Control { Need::Control } else { Need::Sessions });
            }
            (attending(**owner, *act), needs)
        }
    }
}

/// What is asked to do this with a session of that owner. All of it stays within the refusals that one machine may have at
/// once.
fn attending(owner: MachineId, act: Act) -> Vec<Sent> {
    let attach = Attach { owner: Some(owner), ..again(&followed(&[]), 2, 0) };
    let Attach { owner, id, follower, number, .. } = attach;
    let kill = |signal| Sent::Kill(Kill { owner, id, signal });
    match act {
        Act::Watch => {
            let gone = Gone { owner, id, follower, number };
            vec![Sent::Attach(attach), Sent::Gone(gone), Sent::Wait(Wait { owner, id })]
        }
        Act::Kill => vec![kill(None)],
        Act::Control => vec![Sent::Attach(Attach { take_over: true, ..attach }), kill(Some(1))],
    }
}

/// The config without what is needed.
fn without(scene: &Scene, need: Need, nobody: &str) -> String {
    let text = text(scene);
    match need {
        Need::CallerInConfig => text.replace(&scene.friend.id.to_string(), nobody),
        Need::TargetInConfig => text.replace(&scene.web01_id.to_string(), nobody),
        Need::NothingUnknown => text.replacen("accept_env", "from_the_future = 1\naccept_env", 1),
        Need::List => {
            text.replace("allow_from = [\"outer\"]\n", "").replace("allow_from = [\"on-call\"]", "allow_from = []")
        }
        Need::Sessions => without_lines(&without_lines(&text, "allow_sessions"), "allow_control"),
        Need::Control => without_lines(&text, "allow_control"),
        Need::Group => text.replace("members = [\"friend\"]", "members = []"),
        Need::NestedGroup => text.replace("members = [\"inner\"]", "members = []"),
        Need::Username => without_lines(&text, "username"),
        Need::User => without_lines(&text, "users"),
        Need::Variable => without_lines(&text, "accept_env"),
    }
}

const NEEDS: [Need; 11] = [
    Need::CallerInConfig,
    Need::TargetInConfig,
    Need::NothingUnknown,
    Need::List,
    Need::Sessions,
    Need::Control,
    Need::Group,
    Need::NestedGroup,
    Need::Username,
    Need::User,
    Need::Variable,
];

/// One of each kind of request, and of each way that it may take.
fn each(scene: &Scene, mut visit: impl FnMut(Request<'_>)) {
    let words = |words: &[&str]| -> Vec<ByteBuf> { words.iter().map(|w| ByteBuf::from(w.as_bytes())).collect() };
    let (argv, named, string) = (words(&["echo", "hello"]), words(&["greet"]), words(&["echo hello"]));
    let env = ["DEPLOY_REF".to_owned(), "LANG".to_owned()];
    let plain = Exec { words: &argv, literal: true, shell: false, user: None, env_names: &[] };
    visit(Request::Exec(plain));
    visit(Request::Exec(Exec { literal: false, ..plain }));
    visit(Request::Exec(Exec { words: &named, literal: false, ..plain }));
    visit(Request::Exec(Exec { words: &string, shell: true, ..plain }));
    visit(Request::Exec(Exec { env_names: &env, ..plain }));
    visit(Request::Exec(Exec { words: &named, literal: false, env_names: &env, ..plain }));
    if Uid::effective().is_root() {
        visit(Request::Exec(Exec { user: Some("nobody"), ..plain }));
    }
    for act in [Act::Watch, Act::Kill, Act::Control] {
        visit(Request::Attend { owner: &scene.friend.id, act });
        visit(Request::Attend { owner: &scene.guest.id, act });
    }
}

/// Sends one request; returns the kind of its refusal, or nothing when it was allowed. The id is always another.
async fn try_it(scene: &Scene, conn: &Connection, request: &Sent) -> Result<Option<Kind>> {
    let ran = match request {
        Sent::Exec(request) => {
            let request = ExecSpec { id: spec(&[]).id, ..request.clone() };
            follow(exec(conn, scene.key.id(), &request).await?).await?
        }
        Sent::Attach(request) => {
            let request = Attach { id: spec(&[]).id, ..*request };
            follow(attach(conn, scene.key.id(), &request).await?).await?
        }
        Sent::Gone(request) => {
            let answer = gone(conn, &Gone { id: spec(&[]).id, ..*request }).await?;
            let is_allowed = answer.kind == FrameKind::Pong;
            return if is_allowed { Ok(None) } else { Ok(Some(refused(&answer)?)) };
        }
        Sent::Wait(request) => {
            return known(&ask(scene, conn, FrameKind::Wait, &Wait { id: spec(&[]).id, ..*request }).await?);
        }
        Sent::Kill(request) => {
            return known(&ask(scene, conn, FrameKind::Kill, &Kill { id: spec(&[]).id, ..*request }).await?);
        }
    };
    match (request, ran.end) {
        (Sent::Exec(_), Ok(_)) if ran.stdout == b"hello\n" => Ok(None),
        // There is no such session: whoever may know, is told.
        (Sent::Attach(_), Err(Some(failure))) if failure.kind == Kind::Unknown => Ok(None),
        (_, Err(Some(failure))) if ran.started.is_none() => Ok(Some(failure.kind)),
        (_, end) => anyhow::bail!("{end:?}"),
    }
}

/// The answer to a question.
async fn ask<T: serde::Serialize>(scene: &Scene, conn: &Connection, kind: FrameKind, what: &T) -> Result<Frame> {
    let mut wire = open(conn).await?;
    send(&mut wire, FrameKind::Open, &Open { cluster: scene.key.id(), generation: 0 }).await?;
    send(&mut wire, kind, what).await?;
    next(&mut wire).await
}

/// There is no such session, and who may know hears so.
fn known(answer: &Frame) -> Result<Option<Kind>> {
    Ok(Some(refused(answer)?).filter(|kind| *kind != Kind::Unknown))
}

fn refused(answer: &Frame) -> Result<Kind> {
    let failure: Failure = answer.expect(FrameKind::Refused, "Pong or Refused")?;
    Ok(failure.kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_without_any_one_of_its_grants_is_refused_at_the_target() -> Result<()> {
    let scene = Scene::new().await?;
    let nobody = MachineKey::generate()?.id().to_string();
    let mut requests = Vec::new();
    each(&scene, |request| {
        let (sent, needs) = on_the_wire(&scene, &request);
        requests.extend(sent.into_iter().map(|sent| (sent, needs.clone())));
    });
    let mut conn = scene.friend.dial(&scene.web01).await?;
    scene.publish(&text(&scene)).await?;
    for (request, _) in &requests {
        let refused = try_it(&scene, &conn, request).await?;
        ensure!(refused.is_none(), "with all grants {request:?}: {refused:?}");
    }
    for need in NEEDS {
        scene.publish(&without(&scene, need, &nobody)).await?;
        for (request, needs) in &requests {
            let refused = match try_it(&scene, &conn, request).await {
                // A removed machine loses its connection soon, on a busy machine before all is asked.
                Err(_) if need == Need::CallerInConfig && closed(&conn).await?.0 == Some(Close::Removed) => {
                    Some(Kind::NotAMember)
                }
                refused => refused?,
            };
            let wanted = match need {
                _ if !needs.contains(&need) => continue,
                Need::CallerInConfig => Kind::NotAMember,
                Need::NothingUnknown => Kind::Unsupported,
                _ => Kind::Denied,
            };
            ensure!(refused == Some(wanted), "without {need:?}, {request:?}: {refused:?}");
        }
        // Each refusal is because of what is missing, and not of the one before.
        scene.publish(&text(&scene)).await?;
        if conn.close_reason().is_some() {
            conn = scene.friend.dial(&scene.web01).await?;
        }
        for (request, _) in &requests {
            let refused = try_it(&scene, &conn, request).await?;
            ensure!(refused.is_none(), "after {need:?}, {request:?}: {refused:?}");
        }
    }
    scene.web01.stop().await?;
    Ok(())
}
