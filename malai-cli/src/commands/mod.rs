//! One command, one file. A doc comment there is the help that users read.

/// Asks the daemon, or does without it as the second word says, and returns what an answer of this kind holds.
macro_rules! ask {
    ($cx:expr, $otherwise:ident, $request:expr => $answer:ident) => {
        match crate::client::request(&$cx.home, $request, crate::client::Otherwise::$otherwise, $cx.out)? {
            malai_protocol::local::Response::$answer(answer) => answer,
            _ => return Err(crate::client::unexpected()),
        }
    };
}

mod agent;
mod attach;
mod audit;
mod can;
mod cluster;
mod config;
mod connect;
mod daemon;
mod doctor;
mod exec;
mod executor;
mod explain;
mod kill;
mod machine;
mod meant;
mod metrics;
mod ping;
mod place;
mod publication;
mod relay;
mod rescan;
mod sessions;
mod status;
mod token;
mod wait;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use malai_daemon::store::owners::Trusted;
use malai_protocol::failure::Failure;
use malai_protocol::home::Home;

use crate::output::Output;
use crate::{args, home, output};

const ABOUT_TARGETS: &str = "\
Run a command on a machine:
  malai web01.company -- uptime           options before the target are malai's: malai exec --help
  malai deploy@web01.company ls -l /srv   everything after the target is the command, word by word
  malai web01.company --detach -- make    start it, and leave it running

If a machine has the name of a command above, use its full name, or malai exec.
malai keeps its files in $MALAI_HOME; the default is the platform's data directory.";

/// Run commands on the machines of a cluster, found by public key.
#[derive(Debug, Parser)]
#[command(
    name = "malai",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    override_usage = "malai [OPTIONS] <TARGET> [--] <ARGV>...\n       malai <COMMAND>",
    after_help = ABOUT_TARGETS
)]
pub(crate) struct Cli {
    /// Print JSON: one document, or for a stream one object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Exec(exec::Exec),
    Sessions(sessions::Sessions),
    Attach(attach::Attach),
    Wait(wait::Wait),
    Kill(kill::Kill),
    Cluster(cluster::Cluster),
    Machine(machine::Machine),
    Daemon(daemon::Daemon),
    Relay(relay::Relay),
    Rescan(rescan::Rescan),
    Config(config::Config),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Metrics(metrics::Metrics),
    Ping(ping::Ping),
    Connect(connect::Connect),
    Can(can::Can),
    Audit(audit::Audit),
    Executor(executor::Executor),
    Agent(agent::Agent),
}

/// Is said where no cluster is known.
const NO_CLUSTER: &str = "no cluster was made or joined here";
/// Is the hint to that.
const NO_CLUSTER_HINT: &str = "make one: malai cluster init company; or join one: malai machine join TOKEN";

/// Holds what every command needs.
#[derive(Debug)]
pub(crate) struct Context {
    /// The directory of this malai's files.
    pub(crate) home: Home,
    /// How it prints.
    pub(crate) out: Output,
    /// The words up to the target of a command: options, and the target.
    pub(crate) head: Vec<OsString>,
}

/// Does what the command line says, reports a failure, and returns the exit code.
pub(crate) fn run(args: Vec<OsString>) -> u8 {
    let mut root = Cli::command();
    let cut = args::cut(args, &root);
    let wants_json = Output { json: cut.head.iter().any(|word| word == "--json") };
    let head = cut.head.get(2..).unwrap_or_default().to_vec();
    let parsed = root.try_get_matches_from_mut(cut.head).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return output::exit_code(wants_json.usage(&error)),
    };
    let out = Output { json: cli.json };
    // The exit code of a ping is its result, also when the reader has left.
    let is_ping = matches!(cli.command, Command::Ping(_));
    let code = home::find().and_then(|home| {
        // Before anything of it is read: a user who may change it decides what malai does for this one.
        Trusted::own().check(&home)?;
        dispatch(cli.command, &Context { home, out, head }, cut.literal, cut.words)
    });
    let code = code.unwrap_or_else(|failure| out.failure(&failure));
    if is_ping { code } else { output::exit_code(code) }
}

fn dispatch(command: Command, cx: &Context, literal: bool, words: Vec<OsString>) -> Result<u8, Failure> {
    match command {
        Command::Exec(exec) => exec.run(cx, literal, words),
        Command::Sessions(sessions) => sessions.run(cx),
        Command::Attach(attach) => attach.run(cx),
        Command::Wait(wait) => wait.run(cx),
        Command::Kill(kill) => kill.run(cx),
        Command::Cluster(cluster) => cluster.run(cx),
        Command::Machine(machine) => machine.run(cx),
        Command::Daemon(daemon) => daemon.run(cx),
        Command::Relay(relay) => relay.run(cx),
        Command::Rescan(rescan) => rescan.run(cx),
        Command::Config(config) => config.run(cx),
        Command::Status(status) => status.run(cx),
        Command::Doctor(doctor) => doctor.run(cx),
        Command::Metrics(metrics) => metrics.run(cx),
        Command::Ping(ping) => ping.run(cx),
        Command::Connect(connect) => connect.run(cx),
        Command::Can(can) => can.run(cx, literal, words),
        Command::Audit(audit) => audit.run(cx),
        Command::Executor(executor) => executor.run(cx),
        Command::Agent(agent) => agent.run(cx),
    }
}
