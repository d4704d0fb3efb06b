//! A machine without grants that asks on and on: it is refused each time, and the audit stays readable and complete.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use malai_protocol::audit::{Entry, Event};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::home::Home;
use malai_protocol::session::ExecSpec;

use crate::support::peer::{self, exec};
use crate::support::scene::Scene;
use crate::support::{follow, spec, until};

/// So many attempts, which is more than what is listed.
const ASKED: usize = 300;

/// Asks so often at once, as `guest`, who may nothing; returns what it was told.
async fn hammer(scene: &Scene) -> Result<Vec<Failure>> {
    let conn = scene.guest.dial(&scene.web01).await?;
    let asked = (0..ASKED).map(|_| async {
        let ran = peer::run(&conn, scene.key.id(), &["true"]).await?;
        ensure!(ran.started.is_none(), "it ran: {ran:?}");
        Ok(ran.end.expect_err("refused").expect("a reason"))
    });
    try_join_all(asked).await
}

fn audit(home: &Home) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(home.audit())?;
    // The last line may be in the middle of being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// How many attempts of this machine the audit lists as refused, and how many it only counts.
fn refused(home: &Home, who: &str) -> Result<(usize, u64)> {
    let of = audit(home)?.into_iter().filter(|entry| entry.who.as_deref() == Some(who));
    let (listed, counted): (Vec<_>, Vec<_>) =
        of.filter(|entry| entry.event != Event::Start).partition(|entry| entry.event == Event::Refused);
    Ok((listed.len(), counted.iter().filter_map(|entry| entry.count).sum()))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_on_and_on_is_counted_and_not_listed_and_nobody_else_is_touched() -> Result<()> {
    let scene = Scene::new().await?;
    let told = hammer(&scene).await?;
    let busy = told.iter().filter(|failure| failure.kind == FailureKind::Busy).count();
    let denied = told.iter().filter(|failure| failure.kind == FailureKind::Denied).count();
    ensure!(busy + denied == ASKED, "{told:?}");
    // Room comes back while they ask, but not for all of them.
    ensure!((100..ASKED).contains(&denied), "{denied} were listed");
    ensure!(told.iter().all(|failure| failure.message.contains("`guest` is not in") && failure.hint.is_some()));
    // Others run what they may at once, and what they may not has lines of its own.
    scene.serves().await?;
    let conn = scene.friend.dial(&scene.web01).await?;
    let needy = ExecSpec { needs: vec!["colour".into()], ..spec(&["true"]) };
    let ran = follow(exec(&conn, scene.key.id(), &needy).await?).await?;
    ensure!(ran.end.expect_err("refused").expect("a reason").kind == FailureKind::Unsupported);
    let home = &scene.web01.home;
    ensure!(refused(home, "friend")? == (1, 0), "{:?}", refused(home, "friend")?);
    // Nothing is lost.
    let all = (denied, u64::try_from(busy)?);
    until("the count is written", || async { Ok(refused(home, "guest")? == all) }).await?;
    // And from here on each has its line again.
    let conn = scene.guest.dial(&scene.web01).await?;
    let ran = peer::run(&conn, scene.key.id(), &["true"]).await?;
    ensure!(ran.end.expect_err("refused").expect("a reason").kind == FailureKind::Denied);
    ensure!(refused(home, "guest")? == (all.0 + 1, all.1));
    scene.web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_writes_down_first_how_many_it_left_out() -> Result<()> {
    let scene = Scene::new().await?;
    let told = hammer(&scene).await?;
    let denied = told.iter().filter(|failure| failure.kind == FailureKind::Denied).count();
    ensure!(denied < ASKED, "all were listed");
    let home = scene.web01.home.clone();
    let _dir = scene.web01.stop().await?;
    ensure!(refused(&home, "guest")? == (denied, u64::try_from(ASKED - denied)?));
    Ok(())
}
