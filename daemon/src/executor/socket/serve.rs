//! The executor's socket, and what a connection says first.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use nix::unistd::{Uid, geteuid};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;

use malai_protocol::codec::Frame;
use malai_protocol::codec::{CodecError, FrameCodec, Kind, MAX_CONTROL};
use malai_protocol::plan::{self, Hello};
use malai_protocol::session::{Attached, Resend};

use crate::runtime::backoff::Failing;

use super::ask::{self, Asking, Question};
use crate::executor::Connection;
use crate::executor::Shared;
use crate::executor::output::replay;
use crate::executor::refuse;
use crate::executor::session::link::{Attachment, Link, MEET};
use crate::executor::session::never_sent;
use crate::executor::socket::control;
use crate::executor::table::{Arrival, Attach, Command, Found, Record};
use crate::runtime::logging::Log;
use crate::store::socket::{SOCKET_PATH_MAX_BYTES, Socket};

/// How long a connection may take to say what it is for.
const HELLO: Duration = Duration::from_secs(10);
/// Connections that have not said it yet, or whose plan is not here yet.
const MAX_WAITING: usize = 2048;

/// Binds the socket. The journal's lock is held, so what is there is stale.
pub(crate) fn bind(path: &Path) -> anyhow::Result<Socket> {
    let length = path.as_os_str().len();
    anyhow::ensure!(
        length <= SOCKET_PATH_MAX_BYTES,
        "the path {} has {length} bytes, and a socket's may have {SOCKET_PATH_MAX_BYTES}: set MALAI_HOME to a shorter one",
        path.display()
    );
    Ok(Socket::bind(path)?)
}

/// Accepts connections of the own user and root.
pub(crate) async fn accept(shared: &Arc<Shared>, socket: &mut Socket) -> anyhow::Result<()> {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut failing = Failing::default();
    loop {
        match socket.accept(|| true).await {
            Ok(stream) if is_allowed(&stream) => {
                failing.over();
                serve(shared, Box::new(stream), &waiting);
            }
            Ok(_) => tracing::warn!("a connection of another user was closed"),
            Err(error) => sleep(failing.pause(format!("cannot accept: {error}"))).await,
        }
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw() || Uid::from_raw(peer.uid()).is_root())
}

/// Takes connections of the same process. When there can be no more, nobody can come back for anything: all is ended.
pub(crate) async fn take(shared: &Arc<Shared>, connections: &mut mpsc::Receiver<Connection>) {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    while let Some(connection) = connections.recv().await {
        serve(shared, connection, &waiting);
    }
    shared.shut_down("the program that ran the executor let it go".to_owned());
    std::future::pending().await
}

fn serve(shared: &Arc<Shared>, connection: Connection, waiting: &Arc<Semaphore>) {
    let Ok(permit) = waiting.clone().try_acquire_owned() else {
        tracing::warn!("too many connections wait: one was closed");
        return;
    };
    let task = shared.clone();
    shared.spawn(async move {
        let (reader, writer) = tokio::io::split(connection);
        let mut reader = FramedRead::new(reader, FrameCodec::capped(MAX_CONTROL));
        match hello(&mut reader).await {
            Ok(Hello::Control { version }) => {
                drop(permit);
                tracing::info!(version, "a daemon is here");
                control::serve(task, reader, writer).await;
            }
            Ok(Hello::Attach(who)) => attach(&task, Attachment::new(who, reader, writer), permit).await,
            Ok(Hello::Resume { attachment, out_offset, from_end, take_over, resend }) => {
                let attachment = Attachment::new(attachment, reader, writer);
                let arrival = Arrival { attachment, out_offset, from_end, take_over, _permit: permit };
                resume(task, Box::new(arrival), resend).await;
            }
            Ok(Hello::Retire) => ask::answer(&task, Question::Retire, Asking { reader, writer, permit }).await,
            Ok(Hello::Faults) => ask::answer(&task, Question::Faults, Asking { reader, writer, permit }).await,
            Ok(Hello::List) => ask::answer(&task, Question::List, Asking { reader, writer, permit }).await,
            Ok(Hello::Wait { session }) => {
                ask::answer(&task, Question::Wait(session), Asking { reader, writer, permit }).await;
            }
            Ok(Hello::Kill { session, signal, reason }) => {
                let question = match signal {
                    Some(number) => Question::Signal(session, number),
                    None => Question::End(session, control::short(reason)),
                };
                ask::answer(&task, question, Asking { reader, writer, permit }).await;
            }
            Err(error) => tracing::debug!(%error, "connection closed"),
        }
    });
}

async fn hello<R: tokio::io::AsyncRead + Unpin>(reader: &mut FramedRead<R, FrameCodec>) -> Result<Hello, CodecError> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it did not say in time what it is for");
    let Some(frame) = timeout(HELLO, reader.next()).await.map_err(late)? else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    };
    let hello = frame?.expect(Kind::ExecutorHello, "what the connection is for")?;
    reader.decoder_mut().set_cap(usize::MAX);
    Ok(hello)
}

/// Brings an attachment to the session whose plan comes with it.
async fn attach(shared: &Shared, attachment: Attachment, permit: OwnedSemaphorePermit) {
    let session = attachment.who().session;
    let slot = match shared.table.attach(session) {
        Attach::Now(slot) => slot,
        Attach::Later(slot) => match timeout(MEET, slot).await {
            Ok(Ok(slot)) => slot,
            _ => {
                shared.table.detach(session);
                tracing::info!(id = session.id.short(), "no plan came for an attachment");
                return;
            }
        },
        Attach::Refused(failure) => return refuse(Link::of(attachment), &failure).await,
    };
    if slot.send(attachment).is_err() {
        tracing::info!(id = session.id.short(), "an attachment came when its session had another, or was over");
    }
    drop(permit);
}

/// Brings an attachment to a session that is there already, or tells it what became of it.
pub(crate) async fn resume(shared: Arc<Shared>, mut arrival: Box<Arrival>, resend: Option<Resend>) {
    let plan::Attachment { session, .. } = arrival.attachment.who();
    // A session that ends meanwhile takes nobody any more; the next look finds its record.
    for _ in 0..2 {
        if !shared.table.lives(&session)
            && let Some(kept) = shared.spools.find(&session)
        {
            return replay::replay(&shared, &kept, *arrival).await;
        }
        match shared.table.find(session, resend) {
            Found::Session(commands) => match commands.send(Command::Attach(arrival)) {
                Ok(()) => return,
                Err(SendError(Command::Attach(back))) => arrival = back,
                Err(_) => return,
            },
            Found::Over(record) => return late(*arrival, &record).await,
            Found::Missing => {
                let mut link = Link::of(arrival.attachment);
                link.frame(Frame::empty(Kind::Missing));
                return link.deliver().await;
            }
            Found::Refused(failure) => return refuse(Link::of(arrival.attachment), &failure).await,
        }
    }
    tracing::info!(id = session.id.short(), "an attachment came when its session was ending");
}

/// Tells somebody who comes when only the record is kept.
async fn late(arrival: Arrival, record: &Record) {
    let mut link = Link::of(arrival.attachment);
    match record {
        Record::Exit(Attached { out_offset, .. }, _) if arrival.out_offset > *out_offset => {
            link.control(Kind::Refused, &never_sent(arrival.out_offset));
        }
        Record::Exit(attached, record) => {
            link.control(Kind::Attached, attached);
            link.control(Kind::Exit, record);
        }
        Record::Refused(failure) => link.control(Kind::Refused, failure),
    }
    link.deliver().await;
}

/// Ends the executor in good order by SIGTERM and SIGINT; SIGHUP has it open its log again.
pub(crate) async fn follow_signals(stop: CancellationToken, log: Option<Log>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Nothing may keep a process from being stopped.
    let _stops = stop.clone().drop_guard();
    loop {
        tokio::select! {
            Some(()) = hangup.recv() => log.iter().for_each(Log::reopen),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = stop.cancelled() => break,
        }
    }
    stop.cancel();
    Ok(())
}
