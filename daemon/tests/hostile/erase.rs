//! Callers that try to erase the audit: whatever they may run, the lines about others and about refusals stay.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use malai_protocol::audit::{Entry, Event, KEPT, MAX_LINE_BYTES};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::session::{ExecSpec, MAX_REASON_BYTES};
use serde_bytes::ByteBuf;

use crate::support::peer::{self, exec};
use crate::support::scene::Scene;
use crate::support::{Machine, follow, spec};

/// Bounds what one caller writes at once, with room for the lines that were there before.
const MOST_AT_ONCE_BYTES: u64 = 9 * 1024 * 1024;
/// Bounds the pace at which one caller goes on writing, about its commands and its refusals.
const MOST_BYTES_PER_S: u64 = (24 + 10) * 1024;

/// A scene in which `friend` may run one harmless command, and nothing else; and the refusal of an intruder is in the audit.
async fn intruded() -> Result<Scene> {
    let scene = Scene::new().await?;
    let named = "allow_from = []\n[machine.web01.command.hello]\ncommand = [\"true\"]\nallow_from = [\"friend\"]\n";
    let text = scene.text();
    let (rest, user) = text.split_once("allow_from = [\"friend\"]\n").context("a grant")?;
    scene.publish(&format!("{rest}{user}{named}")).await?;
    let guest = scene.guest.dial(&scene.web01).await?;
    let refused = peer::run(&guest, scene.key.id(), &["intrude"]).await?.end.expect_err("a guest").context("why")?;
    ensure!(refused.kind == FailureKind::Denied, "{refused}");
    ensure!(intrusions(&scene.web01)? == 1);
    Ok(scene)
}

/// Calls the named command.
fn hello() -> ExecSpec {
    ExecSpec { literal: false, ..spec(&["hello"]) }
}

async fn call(scene: &Scene, conn: &iroh::endpoint::Connection, spec: &ExecSpec) -> Result<Result<u8, Failure>> {
    match follow(exec(conn, scene.key.id(), spec).await?).await?.end {
        Ok(record) => Ok(Ok(record.exit_code())),
        Err(refused) => Ok(Err(refused.context("neither a record nor a reason")?)),
    }
}

fn files(machine: &Machine) -> Vec<std::path::PathBuf> {
    let older = (1..=KEPT).map(|number| machine.home.audit_part(number));
    older.chain([machine.home.audit()]).filter(|path| path.exists()).collect()
}

/// Counts the lines of the whole audit about the intruder.
fn intrusions(machine: &Machine) -> Result<usize> {
    let mut found = 0;
    for path in files(machine) {
        let text = std::fs::read_to_string(path)?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Entry>(line).ok());
        found += lines.filter(|line| line.event == Event::Refused && line.words == ["intrude"]).count();
    }
    Ok(found)
}

fn written(machine: &Machine) -> Result<u64> {
    files(machine).iter().try_fold(0, |all, path| Ok(all + std::fs::metadata(path)?.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_one_named_command_does_not_erase_the_audit_by_long_reasons() -> Result<()> {
    let scene = intruded().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    for _ in 0..12 {
        let long = ExecSpec { reason: Some("\u{1}".repeat(1_000_000)), ..hello() };
        let refused = call(&scene, &conn, &long).await?.expect_err("a reason of a megabyte");
        ensure!(refused.kind == FailureKind::Usage && refused.message.contains("1024 bytes"), "{refused}");
    }
    let longest = ExecSpec { reason: Some("x".repeat(MAX_REASON_BYTES)), ..hello() };
    ensure!(call(&scene, &conn, &longest).await? == Ok(0));
    ensure!(intrusions(&scene.web01)? == 1, "the refusal of the intruder is gone");
    ensure!(written(&scene.web01)? < 1024 * 1024, "{}", written(&scene.web01)?);
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_request_makes_its_lines_longer_than_lines_may_be() -> Result<()> {
    let scene = Scene::new().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let long = |byte: u8| ByteBuf::from(vec![byte; 300_000]);
    let hostile = [
        ExecSpec { words: vec!["true".as_bytes().to_vec().into(), long(0xff), long(b'\\')], ..spec(&[]) },
        ExecSpec { words: vec![ByteBuf::from(&b"true"[..]); 20_000], ..spec(&[]) },
        ExecSpec {
            env: (0..1024)
                .map(|n| (format!("LC_{n:0250}").into_bytes().into(), long(b'x').split_off(299_990).into()))
                .collect(),
            ..spec(&["true"])
        },
        ExecSpec { env: vec![(long(0x9b), ByteBuf::new())], ..spec(&["true"]) },
        ExecSpec { user: Some("\u{202e}".repeat(100_000)), ..spec(&["true"]) },
        ExecSpec { cwd: Some(long(b'/')), ..spec(&["true"]) },
        ExecSpec { needs: vec!["\u{1b}".repeat(100_000)], ..spec(&["true"]) },
        ExecSpec { literal: false, ..spec(&[&"\u{9b}".repeat(100_000)]) },
        ExecSpec { reason: Some("\u{1}".repeat(MAX_REASON_BYTES)), ..spec(&["true"]) },
    ];
    for (number, spec) in hostile.iter().enumerate() {
        let answer = call(&scene, &conn, spec).await;
        ensure!(answer.is_ok(), "request {number}: {answer:?}");
    }
    // The end of the last one is written before the next one that comes by the same way is.
    scene.serves().await?;
    let text = std::fs::read_to_string(scene.web01.home.audit())?;
    for line in text.lines() {
        ensure!(line.len() < MAX_LINE_BYTES, "{} bytes: {}", line.len(), &line[..200]);
        let entry: Entry = serde_json::from_str(line)?;
        ensure!(entry.words_bytes.is_some() == entry.words_blake3.is_some(), "{entry:?}");
    }
    let harmless = |c: char| c == '\n' || c == '…' || (' '..='~').contains(&c);
    ensure!(text.chars().all(harmless), "a terminal would obey the file");
    let all = ByteBuf::from(["true\0".as_bytes(), &[0xff; 300_000], b"\0", &[b'\\'; 300_000], b"\0"].concat());
    let hash = blake3::hash(&all).to_hex().to_string();
    ensure!(
        text.contains(&format!("\"words_bytes\":{},\"words_blake3\":\"{hash}\"", all.len())),
        "no hash of the words"
    );
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_one_named_command_does_not_erase_the_audit_by_hundreds_of_long_calls() -> Result<()> {
    let scene = intruded().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    // The longest lines that there may be.
    let longest = || ExecSpec {
        reason: Some("\u{1}".repeat(MAX_REASON_BYTES)),
        env: (0..40).map(|n| (format!("LC_{n:030}").into_bytes().into(), ByteBuf::new())).collect(),
        ..hello()
    };
    let (mut ran, mut refused, begun) = (0, 0, std::time::Instant::now());
    while refused < 200 {
        let calls: Vec<ExecSpec> = (0..20).map(|_| longest()).collect();
        for answer in try_join_all(calls.iter().map(|spec| call(&scene, &conn, spec))).await? {
            match answer {
                Ok(0) => ran += 1,
                Err(failure) if failure.kind == FailureKind::Busy => refused += 1,
                other => anyhow::bail!("{other:?}"),
            }
        }
        let most = MOST_AT_ONCE_BYTES + MOST_BYTES_PER_S * (begun.elapsed().as_secs() + 1);
        ensure!(written(&scene.web01)? < most, "{} bytes after {ran} calls, not {most}", written(&scene.web01)?);
    }
    ensure!(ran > 200, "{ran} ran, {refused} were refused");
    ensure!(intrusions(&scene.web01)? == 1, "the refusal of the intruder is gone");
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_hundred_usual_commands_are_no_attack() -> Result<()> {
    let scene = intruded().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    for _ in 0..15 {
        let usual: Vec<ExecSpec> = (0..20).map(|_| hello()).collect();
        for answer in try_join_all(usual.iter().map(|spec| call(&scene, &conn, spec))).await? {
            ensure!(answer == Ok(0), "{answer:?}");
        }
    }
    ensure!(intrusions(&scene.web01)? == 1);
    scene.web01.stop().await?;
    Ok(())
}
