//! Machines of a test: daemons of this process with homes of their own, reached over their Unix sockets as a CLI would.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod forge;
pub(crate) mod peer;
pub(crate) mod scene;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use iroh::EndpointAddr;
use malai_daemon::{Daemon, Options};
use malai_protocol::codec::{Frame, FrameCodec, Kind};
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;
use malai_protocol::id::{FollowerId, SessionId};
use malai_protocol::invite::Invite;
use malai_protocol::local::{
    ClusterInit, ClusterInvite, ClusterStatus, Hello, Request, Response, SessionTarget, Status, VERSION,
};
use malai_protocol::peer::Gone;
use malai_protocol::session::{Ack, Attach, ExecSpec, ExitRecord, Started};
use serde_bytes::ByteBuf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

/// A socket to a daemon.
pub(crate) type Socket = Framed<UnixStream, FrameCodec>;

/// A state that a test waits for comes within this time, or the test fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One machine: a daemon in this process.
pub(crate) struct Machine {
    /// Its home.
    pub(crate) home: Home,
    address: OnceCell<EndpointAddr>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
    program: Program,
    _dir: tempfile::TempDir,
}

/// What starts the executor of a home; absent = it runs inside the daemon, and ends with it.
pub(crate) type Program = Option<fn(&Home) -> (PathBuf, Vec<OsString>)>;

/// How a command ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its start.
    pub(crate) started: Option<Started>,
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// Its record, or why there is none.
    pub(crate) end: Result<ExitRecord, Option<Failure>>,
}

impl Machine {
    /// Starts a daemon in an empty home.
    pub(crate) async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("m").tempdir()?;
        Self::start_in(dir).await
    }

    /// Starts a daemon in the home that is, or will be, in this directory.
    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Result<Self> {
        Self::start_with(dir, None).await
    }

    /// The same, with this executor.
    pub(crate) async fn start_with(dir: tempfile::TempDir, program: Program) -> Result<Self> {
        Self::start_as(dir, program, false).await
    }

    /// Starts an agent in the home that is in this directory.
    pub(crate) async fn start_agent_in(dir: tempfile::TempDir) -> Result<Self> {
        Self::start_agent_with(dir, None).await
    }

    /// The same, with this executor.
    pub(crate) async fn start_agent_with(dir: tempfile::TempDir, program: Program) -> Result<Self> {
        Self::start_as(dir, program, true).await
    }

    /// Waits until the daemon, or agent, has left by itself.
    pub(crate) async fn left(&self) -> Result<()> {
        until("it leaves by itself", || async { Ok(self.task.is_finished()) }).await
    }

    async fn start_as(dir: tempfile::TempDir, program: Program, agent: bool) -> Result<Self> {
        let home = home_in(&dir);
        let executor = program.map(|program| program(&home));
        let daemon = Daemon::bind(Options { home: home.clone(), agent, executor, log: None }).await?;
        let stop = daemon.stop_token();
        let task = tokio::spawn(async move {
            let (stopped, result) = daemon.run().await;
            stopped.shutdown().await;
            result
        });
        Ok(Self { home, address: OnceCell::new(), stop, task, program, _dir: dir })
    }

    /// Stops the daemon in good order, and waits until another one can have its port. A process that ends frees its
    /// ports; in this one, the endpoint of the daemon may still be closing when all else of it is over.
    pub(crate) async fn stop(self) -> Result<tempfile::TempDir> {
        let known = self.address.get().and_then(|address| address.ip_addrs().next().map(SocketAddr::port));
        let dir = self.finish().await?;
        if let Some(port) = known {
            until("the port is free", || async { Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()) }).await?;
        }
        Ok(dir)
    }

    /// Stops the daemon in good order: returns when a process of it alone would end.
    pub(crate) async fn finish(self) -> Result<tempfile::TempDir> {
        self.stop.cancel();
        self.task.await??;
        Ok(self._dir)
    }

    /// Stops the daemon and starts another in the same home.
    pub(crate) async fn restart(self) -> Result<Self> {
        let program = self.program;
        Self::start_with(self.stop().await?, program).await
    }

    /// Has the daemon, its executor and all sessions end, as `malai daemon stop` does.
    pub(crate) async fn end(self) -> Result<()> {
        // It may be gone before its answer is read; whether it is, the next line tells.
        drop(self.ask(Request::Stop).await);
        self.stop().await?;
        Ok(())
    }

    /// A file of the cluster `c`.
    pub(crate) fn config(&self) -> PathBuf {
        self.home.cluster("c").config()
    }

    /// A connection to the socket, past the greeting.
    pub(crate) async fn connect(&self) -> Result<Socket> {
        let mut socket = Framed::new(UnixStream::connect(self.home.socket()).await?, FrameCodec::new());
        let hello = Hello { version: VERSION, malai: "test".into(), pid: 0, agent: false };
        socket.send(Frame::control(Kind::LocalHello, &hello)?).await?;
        let _theirs: Hello = next(&mut socket).await?.expect(Kind::LocalHello, "LocalHello")?;
        Ok(socket)
    }

    /// Asks, and returns the last answer.
    pub(crate) async fn ask(&self, request: Request) -> Result<Response> {
        let mut socket = self.connect().await?;
        socket.send(Frame::control(Kind::Request, &request)?).await?;
        loop {
            match next(&mut socket).await?.expect(Kind::Response, "Response")? {
                Response::Progress(_) => {}
                last => return Ok(last),
            }
        }
    }

    /// The status.
    pub(crate) async fn status(&self) -> Result<Status> {
        match self.ask(Request::Status).await? {
            Response::Status(status) => Ok(status),
            other => bail!("{other:?}"),
        }
    }

    /// This machine's part in the cluster `c`.
    pub(crate) async fn cluster(&self) -> Result<ClusterStatus> {
        self.status().await?.clusters.into_iter().find(|cluster| cluster.alias == "c").context("no cluster c")
    }

    /// Where its machine key is reached on this host. Asked once: a status waits for peers that do not answer.
    pub(crate) async fn address(&self) -> Result<EndpointAddr> {
        let ask = || async {
            let cluster = self.cluster().await?;
            peer::loopback(*cluster.machine_id.context("no machine key")?.as_bytes(), &cluster.addresses)
        };
        self.address.get_or_try_init(ask).await.cloned()
    }

    /// Where the cluster manager's desk is reached on this host.
    pub(crate) async fn desk(&self) -> Result<EndpointAddr> {
        let cluster = self.cluster().await?;
        peer::loopback(*cluster.cluster.context("no cluster key")?.as_bytes(), &cluster.join_addresses)
    }

    /// Makes the cluster `c`, private, with this machine named so.
    pub(crate) async fn init(&self, name: &str) -> Result<()> {
        self.init_as("c", name).await
    }

    /// Makes a private cluster, with this machine named so.
    pub(crate) async fn init_as(&self, cluster: &str, name: &str) -> Result<()> {
        let username = nix::unistd::Uid::effective().is_root().then(|| "root".to_owned());
        let ask = ClusterInit { cluster: cluster.into(), name: Some(name.into()), private: true, username };
        match self.ask(Request::ClusterInit(ask)).await? {
            Response::Made(_) => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    /// Makes an invite for a machine of this name.
    pub(crate) async fn invite(&self, name: &str) -> Result<String> {
        self.invited(name, Vec::new()).await
    }

    async fn invited(&self, name: &str, groups: Vec<String>) -> Result<String> {
        let username = nix::unistd::Uid::effective().is_root().then(|| "root".to_owned());
        let ask =
            ClusterInvite { cluster: "c".into(), name: Some(name.into()), uses: 1, expires_s: 3600, groups, username };
        match self.ask(Request::ClusterInvite(ask)).await? {
            Response::Invited(invited) => Ok(invited.token),
            other => bail!("{other:?}"),
        }
    }

    /// Makes an invite into these groups, and reads it.
    pub(crate) async fn invite_into(&self, name: &str, groups: &[&str]) -> Result<Invite> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Ok(self.invited(name, groups).await?.parse()?)
    }

    /// Joins by invite.
    pub(crate) async fn join(&self, token: String) -> Result<()> {
        match self.ask(Request::MachineJoin { token, alias: None }).await? {
            Response::Joined(_) => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    /// Begins a session; the frames that follow are the caller's business.
    pub(crate) async fn begin(&self, machine: &str, spec: &ExecSpec) -> Result<Socket> {
        let attachment = spec.follower.map(|follower| {
            let number = spec.resend.map_or(1, |resend| resend.number);
            Gone { owner: None, id: spec.id, follower, number }
        });
        self.open(machine, attachment, Frame::control(Kind::Exec, spec)?).await
    }

    /// Follows a session that exists, as the CLI does that began it.
    pub(crate) async fn attach(&self, machine: &str, attach: &Attach) -> Result<Socket> {
        let Attach { owner, id, follower, number, .. } = *attach;
        self.open(machine, Some(Gone { owner, id, follower, number }), Frame::control(Kind::Attach, attach)?).await
    }

    async fn open(&self, machine: &str, attachment: Option<Gone>, first: Frame) -> Result<Socket> {
        let mut socket = self.connect().await?;
        let target = SessionTarget {
            machine: machine.into(),
            cluster: Some("c".into()),
            connect_timeout_ms: 10_000,
            gone_timeout_ms: None,
            wait: false,
            attachment,
        };
        // In one piece, as the CLI does: a daemon that refuses closes without waiting for the rest.
        socket.feed(Frame::control(Kind::Request, &Request::Session(target))?).await?;
        socket.send(first).await?;
        Ok(socket)
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, machine: &str, words: &[&str]) -> Result<Ran> {
        let socket = self.begin(machine, &spec(words)).await?;
        follow(socket).await
    }
}

/// The home in a test's directory.
pub(crate) fn home_in(dir: &tempfile::TempDir) -> Home {
    Home::new(dir.path().join("home"))
}

/// Random bytes.
pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("randomness");
    bytes
}

/// A command of a caller that can come back to it.
pub(crate) fn followed(words: &[&str]) -> ExecSpec {
    ExecSpec { follower: Some(FollowerId::from_bytes(random())), stdin: true, ..spec(words) }
}

/// The same caller's next attachment to its command, from this offset on.
pub(crate) fn again(spec: &ExecSpec, number: u32, out_offset: u64) -> Attach {
    let follower = spec.follower.expect("a follower");
    Attach {
        owner: None,
        id: spec.id,
        follower,
        number,
        out_offset,
        from_end: false,
        binding: true,
        take_over: false,
        or_watch: false,
    }
}

/// A plain command.
pub(crate) fn spec(words: &[&str]) -> ExecSpec {
    ExecSpec {
        id: SessionId::from_bytes(random()),
        words: words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect(),
        literal: true,
        shell: false,
        env: Vec::new(),
        cwd: None,
        user: None,
        stdin: false,
        timeout_ms: None,
        wait_output: false,
        reason: None,
        follower: None,
        resend: None,
        kill_on_lost: false,
        detach: false,
        needs: Vec::new(),
    }
}

/// Follows a session to its end, acknowledging what comes.
pub(crate) async fn follow<T: AsyncRead + AsyncWrite + Unpin>(mut socket: Framed<T, FrameCodec>) -> Result<Ran> {
    let mut ran = Ran { started: None, stdout: Vec::new(), stderr: Vec::new(), end: Err(None) };
    while let Some(frame) = tokio::time::timeout(SOON, socket.next()).await.context("the session stalls")? {
        let Ok(frame) = frame else { break };
        match frame.kind {
            Kind::Started => ran.started = Some(frame.decode()?),
            Kind::Stdout => ran.stdout.extend_from_slice(&frame.payload),
            Kind::Stderr => ran.stderr.extend_from_slice(&frame.payload),
            Kind::StdinAck | Kind::StdinClosed | Kind::Sent | Kind::Attached => continue,
            Kind::Refused => ran.end = Err(Some(frame.decode()?)),
            Kind::Exit => {
                ran.end = Ok(frame.decode()?);
                drop(socket.send(Frame::empty(Kind::Goodbye)).await);
                return Ok(ran);
            }
            other => bail!("{other:?} came"),
        }
        let out_offset = (ran.stdout.len() + ran.stderr.len()) as u64;
        if out_offset > 0 {
            // The other side may have closed already: what it said before is still to be read.
            drop(socket.send(Frame::control(Kind::Ack, &Ack { out_offset })?).await);
        }
    }
    Ok(ran)
}

/// The next frame, soon.
pub(crate) async fn next<T: AsyncRead + AsyncWrite + Unpin>(socket: &mut Framed<T, FrameCodec>) -> Result<Frame> {
    let frame = tokio::time::timeout(SOON, socket.next()).await.context("no frame came")?;
    Ok(frame.context("the socket was closed")??)
}

/// Waits for a state.
pub(crate) async fn until<F, Fut>(what: &str, mut state: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool>>,
{
    let deadline = tokio::time::Instant::now() + SOON;
    while !state().await? {
        if tokio::time::Instant::now() > deadline {
            bail!("not within {SOON:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
