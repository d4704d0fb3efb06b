//! Serves the CLI at its Unix socket: on each connection a hello and one request.

use std::sync::Arc;
use std::time::Duration;

use malai_protocol::codec::{Frame, Kind, MAX_CONTROL, MAX_EXEC};
use malai_protocol::failure::{Failure, Kind as FailureKind};
use malai_protocol::local::{Hello, Request, Response, VERSION};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::caller;
use crate::net::Frames;
use crate::requests::{self, Context};
use crate::runtime::backoff::Failing;
use crate::store::lock::Lock;
use crate::store::socket::Socket;

/// Bounds the connections of CLIs that are served at once; more wait in the socket's queue.
const MAX_CLI_CONNECTIONS: usize = 2048;
/// Bounds how long the hello and the request may take: both are in the CLI's first write.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the answers before the last one that wait for a slow CLI.
const MAX_WAITING_ANSWERS: usize = 16;

/// Serves CLIs until `cancel`, and then closes their sockets. Binds the socket again when it is removed, unless another
/// daemon has the home by then: in that case this one ends.
pub(crate) async fn serve(mut socket: Socket, lock: Arc<Lock>, context: Arc<Context>, cancel: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CLI_CONNECTIONS));
    let tasks = TaskTracker::new();
    let mut failing = Failing::default();
    let leave = cancel.clone();
    let may_bind = move || is_ours(&lock, &leave);
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&mut socket, &slots, &may_bind) => accepted,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => {
                failing.over();
                accepted
            }
            Err(error) => {
                // Out of descriptors, most likely: those that are served will return some.
                tokio::time::sleep(failing.pause(format!("a CLI could not be accepted: {error}"))).await;
                continue;
            }
        };
        let (context, cancel) = (Arc::clone(&context), cancel.clone());
        tasks.spawn(async move {
            let _busy = context.busy();
            tokio::select! {
                () = cancel.cancelled() => {}
                result = connection(stream, &context) => if let Err(error) = result {
                    tracing::debug!("a CLI's connection ended: {error:#}");
                },
            }
            drop(slot);
        });
    }
    drop(socket);
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    socket: &mut Socket,
    slots: &Arc<Semaphore>,
    may_bind: &(impl Fn() -> bool + Clone + Send + 'static),
) -> std::io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let stream = socket.accept(may_bind.clone()).await?;
    Ok((stream, slot))
}

/// Says whether the home is still this daemon's. The daemon holds the lock's file even after its name was removed, and then
/// locks a new file of that name, unless another process was faster.
fn is_ours(lock: &Lock, leave: &CancellationToken) -> bool {
    match lock.confirm() {
        Ok(None) => true,
        Ok(Some(holder)) => {
            tracing::error!(
                pid = holder.pid,
                "another process took this home while the lock file was missing: this daemon ends"
            );
            leave.cancel();
            false
        }
        Err(failure) => {
            tracing::error!("cannot check the lock: {failure}");
            false
        }
    }
}

async fn connection(stream: UnixStream, context: &Arc<Context>) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut frames = Frames::new(reader, MAX_CONTROL);
    let hello: Hello = frames.next(REQUEST_TIMEOUT).await?.expect(Kind::LocalHello, "LocalHello")?;
    let ours = Hello::new(crate::VERSION, std::process::id(), context.agent());
    writer.write_all(&Frame::control(Kind::LocalHello, &ours)?.to_bytes()).await?;
    if hello.version != VERSION {
        let text = format!("this malai {} speaks another version than the daemon, malai {}", hello.malai, ours.malai);
        let failure = Failure::new(FailureKind::Unsupported, text).hint("`malai daemon stop`, then `malai daemon`");
        return last(&mut writer, &Response::Failed(failure)).await;
    }
    frames.set_cap(MAX_EXEC);
    let request: Request = frames.next(REQUEST_TIMEOUT).await?.expect(Kind::Request, "Request")?;
    if context.agent()
        && let Err(failure) = context.clusters().refresh().await
    {
        tracing::warn!("cannot read the clusters again: {failure}");
    }
    if !matches!(request, Request::DaemonStatus | Request::Stop | Request::Leave | Request::Yield) {
        context.clusters().settled().await;
    }
    match request {
        Request::Session(target) => caller::session(context.caller(), &target, frames, writer).await,
        request => answer(context, request, frames, writer).await,
    }
}

async fn say(writer: &mut OwnedWriteHalf, response: &Response) -> anyhow::Result<()> {
    Ok(writer.write_all(&Frame::control(Kind::Response, response)?.to_bytes()).await?)
}

async fn last(writer: &mut OwnedWriteHalf, response: &Response) -> anyhow::Result<()> {
    say(writer, response).await?;
    Ok(writer.shutdown().await?)
}

/// Carries out a request. When the CLI leaves, waiting for others ends; what was begun on the disk is finished.
async fn answer(
    context: &Arc<Context>,
    request: Request,
    mut frames: Frames<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> anyhow::Result<()> {
    let (more, mut answers) = mpsc::channel(MAX_WAITING_ANSWERS);
    let work = requests::answer(context, request, more);
    tokio::pin!(work);
    loop {
        tokio::select! {
            response = &mut work => {
                while let Ok(answer) = answers.try_recv() {
                    say(&mut writer, &answer).await?;
                }
                return last(&mut writer, &response).await;
            }
            Some(answer) = answers.recv() => say(&mut writer, &answer).await?,
            more = frames.next_unbounded() => {
                if more.is_some() {
                    anyhow::bail!("a frame after the request");
                }
                anyhow::bail!("the CLI left");
            }
        }
    }
}
