//! CLI to daemon, over the Unix socket.
//!
//! The CLI sends `LocalHello`, then one `Request`. For [`Request::Session`] the frames of the session follow at once,
//! `Exec`, `Attach`, `List`, `Wait` or `Kill` first, and the target's frames come back, after `Sent` where the CLI said
//! which attachment it makes and there is a connection. Every other request is answered by any number of
//! [`Response::Progress`] or [`Response::Ping`], and one last [`Response`].

mod connect;
mod doctor;
mod invites;
mod machine;
mod metrics;
mod ping;
mod status;

use serde::{Deserialize, Serialize};

pub use connect::Connect;
pub use doctor::{Checkup, Finding, Level};
pub use invites::{CameBy, InviteEntry, InviteState, Redemption};
pub use machine::{Joined, MachineInit, MachineMade};
pub use metrics::{ClusterMetrics, Metrics};
pub use ping::{MIN_PING_INTERVAL_MS, Ping, PingAnswer, PingOutcome, THIS_MACHINE};
pub use status::{
    ClusterState, ClusterStatus, Connection, DaemonStatus, LostLines, MachineStatus, RelayState, RelayStatus, Role,
    Status, Tree,
};

use crate::failure::Failure;
use crate::id::{ClusterId, MachineId};
use crate::peer::Gone;
use crate::session::Reached;

/// Numbers the version that [`Hello`] tells.
pub const VERSION: u32 = 1;

/// Begins the connection: the first frame, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The sender's malai version, for people.
    pub malai: String,
    /// The process id, from the daemon.
    #[serde(default)]
    pub pid: u32,
    /// The daemon is an agent, which only calls.
    #[serde(default)]
    pub agent: bool,
}

impl Hello {
    /// Makes the hello of this version of the protocol.
    #[must_use]
    pub fn new(malai: &str, pid: u32, agent: bool) -> Self {
        Self { version: VERSION, malai: malai.to_owned(), pid, agent }
    }
}

/// Says what the CLI wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run a command, follow one, or ask about them; `Exec`, `Attach`, `List`, `Wait` or `Kill` follows.
    Session(SessionTarget),
    /// [`Status`] of all clusters.
    Status,
    /// The same, after every machine was asked whether it is there: those without a connection are dialled.
    Probe,
    /// What was counted: [`Metrics`].
    Metrics,
    /// Look for what does not work: [`Checkup`].
    Doctor,
    /// Ask a machine whether it is there, again and again. Answered by `Done` after the number of pings that was asked
    /// for.
    Ping(Ping),
    /// Connect to a machine, and tell how.
    Connect(Connect),
    /// [`DaemonStatus`].
    DaemonStatus,
    /// End all sessions, then the executor, then the daemon. Answered when the sessions have ended.
    Stop,
    /// End the daemon, and leave the executor and its sessions to the next one. Answered by `Done`.
    Leave,
    /// To an agent, from a daemon that starts: leave.
    Yield,
    /// The clusters of this home as the disk has them.
    ClusterList,
    /// Make a cluster; this machine becomes its manager and first machine.
    ClusterInit(ClusterInit),
    /// Make an invite.
    ClusterInvite(ClusterInvite),
    /// The invites that the manager's books have.
    ClusterInvites {
        /// The cluster's alias.
        cluster: String,
    },
    /// End an invite: from then on its token is refused as a wrong one is.
    ClusterRevoke {
        /// The cluster's alias.
        cluster: String,
        /// The invite's id, or its first characters where only one begins so.
        id: String,
    },
    /// The machines that knock.
    ClusterPending {
        /// The cluster's alias.
        cluster: String,
    },
    /// Enrol a machine that knocks, or any machine whose id52 is given in full.
    ClusterApprove(ClusterApprove),
    /// Take a machine out of the config.
    ClusterRemove {
        /// The cluster's alias.
        cluster: String,
        /// The machine's name.
        machine: String,
        /// Also end the invites by which it came, in one change.
        #[serde(default)]
        revoke_invite: bool,
    },
    /// Check, sign and publish `cluster.toml`.
    Rescan(Rescan),
    /// The signed text, and for the manager the edited one.
    ConfigShow {
        /// The cluster's alias.
        cluster: String,
    },
    /// Explain an access decision.
    Can(Can),
    /// Make a machine key for a cluster, to be enrolled without an invite.
    MachineInit(MachineInit),
    /// Join by invite.
    MachineJoin {
        /// The token.
        token: String,
        /// The alias; absent = the cluster's name.
        alias: Option<String>,
    },
    /// Forget a cluster: its key and its config on this machine.
    MachineLeave {
        /// The cluster's alias.
        cluster: String,
        /// Required to leave a cluster whose manager this machine is.
        force: bool,
    },
}

/// Says where a session goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionTarget {
    /// The machine's name.
    pub machine: String,
    /// The cluster's alias; absent = the only cluster that has such a machine.
    #[serde(default)]
    pub cluster: Option<String>,
    /// How long dialling may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long at most when the machine is known to have gone, in milliseconds; absent = as long as else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_timeout_ms: Option<u64>,
    /// Whether to wait for the machine: it has to have answered before the daemon sends the request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// The attachment that the CLI makes. The daemon names it to the target when both the CLI and the stream are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Gone>,
}

impl SessionTarget {
    /// Makes the target of a machine, which is dialled for this number of milliseconds at most.
    pub fn new(machine: &str, cluster: Option<&str>, connect_timeout_ms: u64) -> Self {
        Self {
            machine: machine.to_owned(),
            cluster: cluster.map(str::to_owned),
            connect_timeout_ms,
            gone_timeout_ms: None,
            wait: false,
            attachment: None,
        }
    }
}

/// Carries what `malai cluster init` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInit {
    /// The cluster's name, and its alias here.
    pub cluster: String,
    /// This machine's name; absent = from the host name.
    pub name: Option<String>,
    /// No public service is ever contacted.
    pub private: bool,
    /// The user that commands run as here.
    pub username: Option<String>,
}

/// Carries what `malai cluster invite` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInvite {
    /// The cluster's alias.
    pub cluster: String,
    /// The newcomer's name; absent = its host name.
    pub name: Option<String>,
    /// How often it may be redeemed, by different keys; 1 where a name is fixed.
    pub uses: u32,
    /// How long it is valid, in seconds.
    pub expires_s: u64,
    /// Groups that the newcomer joins.
    pub groups: Vec<String>,
    /// The user that commands run as there.
    pub username: Option<String>,
}

/// Carries what `malai cluster approve` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterApprove {
    /// The cluster's alias.
    pub cluster: String,
    /// The newcomer's id52, or a unique prefix of 12 or more characters among those that knock.
    pub id: String,
    /// Its name; absent = its host name.
    pub name: Option<String>,
    /// Groups that it joins.
    pub groups: Vec<String>,
    /// The user that commands run as there.
    pub username: Option<String>,
}

/// Carries what `malai rescan` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescan {
    /// The cluster's alias; absent = all that are managed here.
    pub cluster: Option<String>,
    /// Only check.
    pub check: bool,
    /// Drop machines enrolled since the base of the edit.
    pub yes: bool,
    /// Publish over a snapshot of this generation that this manager did not make.
    pub over: Option<u64>,
}

/// Carries what `malai can` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Can {
    /// The name of the machine that would call.
    pub who: String,
    /// The target machine's name.
    pub machine: String,
    /// The cluster's alias; absent = the only one that has such a machine.
    pub cluster: Option<String>,
    /// The user that `user@` names.
    pub user: Option<String>,
    /// The command; empty = any.
    pub words: Vec<String>,
    /// The words are an argv in any case.
    pub literal: bool,
}

/// Says what came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// What the daemon waits for, in words; more follows.
    Progress(String),
    /// To [`Request::Ping`]: what came of one ping; more follows.
    Ping(PingAnswer),
    /// It failed; last.
    Failed(Failure),
    /// Done, with nothing to tell; last.
    Done,
    /// To [`Request::Status`] and [`Request::Probe`]; last.
    Status(Status),
    /// To [`Request::Metrics`]; last.
    Metrics(Metrics),
    /// To [`Request::Doctor`]; last.
    Doctor(Checkup),
    /// To [`Request::Connect`]; last.
    Connected(Reached),
    /// To [`Request::DaemonStatus`]; last.
    Daemon(DaemonStatus),
    /// To [`Request::ClusterList`]: without addresses and machines, which only a daemon knows; last.
    Clusters(Vec<ClusterStatus>),
    /// To [`Request::ClusterInit`]; last.
    Made(ClusterMade),
    /// To [`Request::ClusterInvite`]; last.
    Invited(Invited),
    /// To [`Request::ClusterInvites`], by when they expire; last.
    Invites(Vec<InviteEntry>),
    /// To [`Request::ClusterRevoke`]: the invite that was ended; last.
    Revoked(InviteEntry),
    /// To [`Request::ClusterPending`]; last.
    Pending(Vec<Pending>),
    /// To [`Request::ClusterApprove`] and [`Request::ClusterRemove`]; last.
    Changed(Changed),
    /// To [`Request::Rescan`]; last.
    Rescanned(Vec<Rescanned>),
    /// To [`Request::ConfigShow`]; last.
    Config(Config),
    /// To [`Request::Can`]; last.
    Verdict(Verdict),
    /// To [`Request::MachineInit`]; last.
    Machine(MachineMade),
    /// To [`Request::MachineJoin`]; last.
    Joined(Joined),
}

/// Answers [`Request::ClusterInit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMade {
    /// The cluster's alias.
    pub alias: String,
    /// Its key.
    pub cluster: ClusterId,
    /// This machine's name.
    pub machine: String,
    /// This machine's key.
    pub machine_id: MachineId,
    /// The config to edit, a path.
    pub config: String,
    /// Where newcomers reach the manager; empty while no daemon runs and no port is fixed.
    pub join_addresses: Vec<String>,
}

/// Answers [`Request::ClusterInvite`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// What the invite is called in the manager's books; no secret.
    #[serde(default)]
    pub id: String,
    /// The token.
    pub token: String,
    /// When it expires, milliseconds since the epoch.
    pub expires_ms: u64,
    /// Where newcomers reach the manager; empty while no daemon runs.
    pub join_addresses: Vec<String>,
}

impl std::fmt::Debug for Invited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Invited {{ id: {}, token: …, expires_ms: {} }}", self.id, self.expires_ms)
    }
}

/// Describes a machine that knocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its key.
    pub id: MachineId,
    /// The name that it gives itself: another machine's words.
    pub hostname: String,
    /// The address that it knocks from.
    pub from: String,
    /// When it first knocked, milliseconds since the epoch.
    pub since_ms: u64,
    /// When it last knocked, milliseconds since the epoch.
    pub last_ms: u64,
}

/// Describes a new snapshot, and which machines have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Its generation.
    pub generation: u64,
    /// Whether a daemon publishes it; otherwise it is signed and stored only.
    pub published: bool,
    /// Machines known to hold it.
    pub holding: Vec<String>,
    /// Machines that were not reached.
    pub missing: Vec<String>,
}

/// Answers [`Request::ClusterApprove`] and [`Request::ClusterRemove`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The machine's name.
    pub machine: String,
    /// Its key.
    pub id: MachineId,
    /// The new snapshot.
    pub publication: Publication,
    /// A warning, such as that `cluster.toml` could not be edited too.
    pub warning: Option<String>,
    /// The invites by which a removed machine came, as far as they let others in or did until now.
    #[serde(default)]
    pub invites: Vec<CameBy>,
}

/// Describes one cluster in the answer to [`Request::Rescan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescanned {
    /// Its alias.
    pub alias: String,
    /// How the rescan of this cluster ended.
    pub outcome: RescanOutcome,
    /// Warnings about what is valid and hardly meant, each with its place; no reason to refuse the text.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Says what came of rescanning one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RescanOutcome {
    /// The text is in order; it was only checked, and nothing was signed.
    Checked {
        /// A unified difference to the signed text; empty = none.
        diff: String,
    },
    /// The text is the signed one already; nothing new was signed. It was published again.
    Unchanged(Publication),
    /// It was signed.
    Published(Publication),
    /// It was refused, and nothing was signed.
    Failed(Failure),
}

/// Answers [`Request::ConfigShow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The cluster's alias.
    pub alias: String,
    /// The generation of the signed text.
    pub generation: u64,
    /// The signed text.
    pub signed: String,
    /// The text of `cluster.toml`; on managers only.
    pub edited: Option<String>,
    /// A unified difference from the signed to the edited text, on managers only; empty = none.
    pub diff: String,
}

/// Answers [`Request::Can`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The steps of the decision, in words, the last one decisive.
    pub steps: Vec<String>,
    /// What to change to allow it, when it is not.
    pub hint: Option<String>,
}
