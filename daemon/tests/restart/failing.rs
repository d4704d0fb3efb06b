//! An executor that is lost with the first plan that it is sent, before it wrote anything down.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::home::Home;
use malai_protocol::id::Incarnation;
use malai_protocol::plan::{Hello, Inventory, Program, Retired, Sessions, Tree, VERSION};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::Framed;

/// How it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its process dies.
    Dies,
    /// Its control connection breaks, and the plan is lost with it.
    Drops,
}

/// The argument that makes this program one whose process dies.
pub(crate) const DIES: &str = "dies";
/// The argument that makes this program one whose connection breaks, and which is of another program.
pub(crate) const DROPS: &str = "drops";

/// This program as an executor that dies; the next one that it starts is a true one.
pub(crate) fn dies(home: &Home) -> (PathBuf, Vec<OsString>) {
    program(home, DIES)
}

/// This program as an executor whose connection breaks; the next one that it starts is a true one.
pub(crate) fn drops(home: &Home) -> (PathBuf, Vec<OsString>) {
    program(home, DROPS)
}

fn program(home: &Home, word: &str) -> (PathBuf, Vec<OsString>) {
    let program = std::env::current_exe().expect("this program");
    (program, vec![word.into(), home.root().as_os_str().to_owned()])
}

/// The file that says that it was lost.
fn mark(home: &Home) -> PathBuf {
    home.root().join("lost")
}

/// Runs as such an executor, or as a true one where one was lost before.
pub(crate) fn main(word: &str, home: &Path) -> Result<()> {
    let home = Home::new(home.to_owned());
    let way = if word == DIES { Way::Dies } else { Way::Drops };
    if mark(&home).exists() {
        return malai_daemon::executor::main(home, None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListener::bind(home.executor_socket())?;
        loop {
            let (stream, _) = listener.accept().await?;
            let home = home.clone();
            tokio::spawn(async move { serve(stream, &home, way).await });
        }
    })
}

async fn serve(stream: UnixStream, home: &Home, way: Way) -> Result<()> {
    let mut framed = Framed::new(stream, FrameCodec::new());
    match framed.next().await.context("a greeting")??.decode()? {
        Hello::Control { .. } => control(framed, home, way).await,
        Hello::Resume { .. } => Ok(framed.send(Frame::empty(Kind::Missing)).await?),
        Hello::List => {
            let none = Inventory { sessions: Vec::new(), more: false, lost_log: None };
            Ok(framed.send(Frame::control(Kind::Inventory, &none)?).await?)
        }
        Hello::Retire => {
            let leaves = mark(home).exists();
            framed.send(Frame::control(Kind::Retired, &Retired { leaves })?).await?;
            if leaves {
                std::process::exit(0);
            }
            Ok(())
        }
        _ => {
            while framed.next().await.is_some() {}
            Ok(())
        }
    }
}

async fn control(mut framed: Framed<UnixStream, FrameCodec>, home: &Home, way: Way) -> Result<()> {
    let program = (way == Way::Drops).then_some(Program { device: 0, inode: 0, changed_ns: 0 });
    let incarnation = Incarnation::from_bytes([7; 16]);
    let (live, ended) = (Vec::new(), Vec::new());
    let sessions = Sessions { version: VERSION, incarnation, tree: Tree::Marker, live, ended, program, more: false };
    framed.send(Frame::control(Kind::Sessions, &sessions)?).await?;
    while let Some(frame) = framed.next().await {
        if frame?.kind == Kind::Plan {
            std::fs::write(mark(home), "")?;
            if way == Way::Dies {
                std::process::exit(1);
            }
            return Ok(());
        }
    }
    Ok(())
}
