//! Real programs, granted as named commands alone, and the variables by which they would run something else: the target
//! refuses each, whatever `accept_env` says.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use malai_protocol::failure::Kind;
use malai_protocol::session::ExecSpec;
use serde_bytes::ByteBuf;

use crate::support::peer::exec;
use crate::support::scene::Scene;
use crate::support::{Ran, follow, spec};

/// Patterns that reach every variable below; the refusals have to come from elsewhere.
const WIDE: &str = "accept_env = [\"GIT_*\", \"TAR*\", \"PER*\", \"EN*\", \"E*\", \"P*\", \"DEPLOY_REF\"]\n";

/// A program, and the variables by which it makes the file `marker`.
struct Abuse {
    name: &'static str,
    words: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

/// What is tried: each works with the program itself.
fn abuses(repository: &str, marker: &str) -> Vec<Abuse> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let touch = format!("touch {marker}");
    let script = format!("{marker}.sh");
    let alias = |key: &str| {
        vec![
            ("GIT_CONFIG_COUNT", "1".into()),
            ("GIT_CONFIG_KEY_0", key.to_owned()),
            ("GIT_CONFIG_VALUE_0", touch.clone()),
        ]
    };
    let abuse = |name, line: &[&str], variables| Abuse { name, words: words(line), variables };
    let git = ["git", "-C", repository];
    vec![
        abuse("pull", &[&git[..], &["pull", "ssh://localhost/x"]].concat(), vec![("GIT_SSH_COMMAND", touch.clone())]),
        abuse("fetch", &[&git[..], &["fetch", "ssh://localhost/x"]].concat(), vec![("GIT_SSH", script.clone())]),
        abuse("diff", &[&git[..], &["diff"]].concat(), vec![("GIT_EXTERNAL_DIFF", script.clone())]),
        abuse("heads", &[&git[..], &["ls-remote", "ssh://localhost/x"]].concat(), alias("core.sshCommand")),
        abuse("commit", &[&git[..], &["commit", "--allow-empty"]].concat(), vec![("GIT_EDITOR", touch.clone())]),
        abuse("amend", &[&git[..], &["commit", "--allow-empty"]].concat(), vec![("EDITOR", touch.clone())]),
        abuse(
            "archive",
            &["tar", "-cf", "/dev/null", repository],
            vec![("TAR_OPTIONS", format!("--checkpoint=1 --checkpoint-action=exec={script}"))],
        ),
        abuse("report", &["perl", "-e", "1"], vec![("PERL5OPT", format!("-Mvars;open(F,q(>),q({marker}))"))]),
        abuse("shell", &["sh", "-i"], vec![("ENV", script.clone())]),
    ]
}

/// What the program does with the variables when it is asked directly.
fn directly(abuse: &Abuse) -> Result<()> {
    let (program, arguments) = abuse.words.split_first().context("no program")?;
    Command::new(program)
        .args(arguments)
        .envs(abuse.variables.iter().map(|(name, value)| (name, value)))
        .env_remove("VISUAL")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} is needed by this test"))?;
    Ok(())
}

fn prepare(dir: &Path, marker: &Path) -> Result<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let repository = dir.join("repository").display().to_string();
    let git = |words: &[&str]| -> Result<()> {
        let done = Command::new("git").args(["-C", &repository]).args(words).output()?;
        ensure!(done.status.success(), "{done:?}");
        Ok(())
    };
    std::fs::create_dir(&repository)?;
    git(&["init", "--quiet"])?;
    git(&["config", "user.name", "test"])?;
    git(&["config", "user.email", "test@example.com"])?;
    std::fs::write(dir.join("repository/file"), "one\n")?;
    git(&["add", "file"])?;
    git(&["commit", "--quiet", "--message", "first"])?;
    std::fs::write(dir.join("repository/file"), "two\n")?;
    let script = format!("{}.sh", marker.display());
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", marker.display()))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(repository)
}

/// The config in which `friend` may run these named commands and nothing else; each has the widest `accept_env`.
fn text(scene: &Scene, abuses: &[Abuse], own: bool) -> String {
    let mut commands = String::new();
    for Abuse { name, words, .. } in abuses {
        let line = if own { WIDE } else { "" };
        commands += &format!("[machine.web01.command.{name}]\ncommand = {words:?}\nallow_from = [\"friend\"]\n{line}");
    }
    scene.text().replace("allow_from = [\"friend\"]\n", WIDE) + &commands
}

async fn named(scene: &Scene, name: &str, variables: &[(&str, String)]) -> Result<Ran> {
    let bytes = |text: &str| ByteBuf::from(text.as_bytes());
    let env = variables.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
    let conn = scene.friend.dial(&scene.web01).await?;
    let ran = follow(exec(&conn, scene.key.id(), &ExecSpec { literal: false, env, ..spec(&[name]) }).await?).await;
    conn.close(0u32.into(), b"");
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_command_is_not_turned_into_another_by_a_variable_that_accept_env_reaches() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let marker = dir.path().join("marker");
    let repository = prepare(dir.path(), &marker)?;
    let abuses = abuses(&repository, &marker.display().to_string());
    for abuse in &abuses {
        directly(abuse)?;
        ensure!(marker.exists(), "{} does nothing with {:?}: the test proves nothing", abuse.name, abuse.variables);
        std::fs::remove_file(&marker)?;
    }
    let scene = Scene::new().await?;
    for own in [false, true] {
        scene.publish(&text(&scene, &abuses, own)).await?;
        for abuse in &abuses {
            let ran = named(&scene, abuse.name, &abuse.variables).await?;
            let made = marker.exists();
            ensure!(!made && ran.started.is_none(), "{} with {:?} ran: {ran:?}", abuse.name, abuse.variables);
            let Err(Some(failure)) = ran.end else { anyhow::bail!("{}: no refusal", abuse.name) };
            ensure!(failure.kind == Kind::Denied && failure.message.starts_with("no machine accepts `"), "{failure}");
        }
    }
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_command_takes_the_variables_of_its_own_list_and_not_those_of_its_machine() -> Result<()> {
    let scene = Scene::new().await?;
    let value = |value: &str| value.to_owned();
    let command = |list: &str| {
        let show = format!(
            "[machine.web01.command.show]\ncommand = [\"sh\", \"-c\", \"echo $LC_TIME $CI_JOB_ID $DEPLOY_REF\"]\n\
             allow_from = [\"friend\"]\n{list}"
        );
        scene.text().replace("allow_from = [\"friend\"]\n", "accept_env = [\"CI_*\"]\n") + &show
    };
    scene.publish(&command("")).await?;
    let ran = named(&scene, "show", &[("LC_TIME", value("C"))]).await?;
    ensure!(ran.stdout == b"C\n", "{ran:?}");
    let ran = named(&scene, "show", &[("CI_JOB_ID", value("7"))]).await?;
    let Err(Some(refused)) = ran.end else { anyhow::bail!("{ran:?}") };
    ensure!(refused.message == "`show` does not accept the variable `CI_JOB_ID`", "{refused}");

    scene.publish(&command("accept_env = [\"DEPLOY_REF\"]\n")).await?;
    let ran = named(&scene, "show", &[("LC_TIME", value("C")), ("DEPLOY_REF", value("main"))]).await?;
    ensure!(ran.stdout == b"C main\n", "{ran:?}");
    let ran = named(&scene, "show", &[("CI_JOB_ID", value("7"))]).await?;
    ensure!(ran.started.is_none() && matches!(ran.end, Err(Some(_))), "{ran:?}");
    scene.web01.stop().await?;
    Ok(())
}
