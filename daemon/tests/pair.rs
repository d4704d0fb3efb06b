//! Two daemons in one process, over loopback: what a session needs besides a network.

mod support;

use anyhow::Result;
use malai_protocol::failure::Kind;
use malai_protocol::session::Status;
use support::{Machine, until};

async fn pair() -> Result<(Machine, Machine)> {
    let (laptop, web01) = (Machine::start().await?, Machine::start().await?);
    laptop.init("laptop").await?;
    web01.join(laptop.invite("web01").await?).await?;
    Ok((laptop, web01))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_crosses_from_one_daemon_to_the_other() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let ran = laptop.run("web01", &["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    assert_eq!((&ran.stdout[..], &ran.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(ran.end.expect("a record").status, Status::Exited { code: 7 });
    // The other side says so too: it writes the audit, the last line of it when the record is on its way already.
    let lines = || std::fs::read_to_string(web01.home.audit()).map(|audit| audit.lines().count());
    until("both lines of the audit", || async { Ok(lines()? == 2) }).await?;
    assert!(std::fs::read_to_string(laptop.home.audit()).unwrap_or_default().is_empty());
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_in_allow_from_is_refused() -> Result<()> {
    let (laptop, web01) = pair().await?;
    let ran = web01.run("laptop", &["true"]).await?;
    let failure = ran.end.expect_err("refused").expect("a reason");
    assert_eq!(failure.kind, Kind::Denied, "{failure}");
    assert!(ran.started.is_none());
    laptop.stop().await?;
    web01.stop().await?;
    Ok(())
}
