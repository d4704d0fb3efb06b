//! `malai relay init`.

use std::net::SocketAddr;
use std::path::PathBuf;

use malai_daemon::relay::init::{self, Made};
use malai_protocol::failure::Failure;

use crate::commands::Context;
use crate::commands::token::read_token;

/// Make a relay on this host, or add a cluster to this host's relay
///
/// Prints on standard output the entry for `[network] relays` of the cluster's config. The relay admits machines of its
/// clusters, and newcomers with an invite; it learns the cluster's config from the cluster manager.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The token that `malai cluster invite company --relay` printed; `-` reads it from standard input
    #[arg(env = "MALAI_INVITE", hide_env_values = true)]
    token: String,
    /// Where machines reach it; required for a new relay
    #[arg(long, value_name = "https://HOST[:PORT]")]
    url: Option<String>,
    /// A certificate for HOST, PEM; default: the relay makes one, and machines know it by its hash
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// That certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Where it listens; default: every address, at the port of the URL
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
}

impl Init {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let (_, invite) = read_token(self.token, "make one on the manager: malai cluster invite company --relay")?;
        let (name, lets_in) = (invite.name.clone(), invite.lets_in());
        let ask = init::Init { invite, url: self.url, listen: self.listen, certificate: self.cert.zip(self.key) };
        malai_daemon::runtime::secrecy::hide_memory();
        let made = init::init(&cx.home, &ask)?;
        if cx.out.json {
            cx.out.document(&made)?;
        } else {
            cx.out.row(&made.entry())?;
        }
        if lets_in {
            cx.out.note("this token is an invite for a machine; its secret was not used, and is still valid");
        }
        let Made { url, listen, given, clusters, .. } = &made;
        cx.out.note(&format!("relay {url}, at TCP and UDP {listen} and UDP 7842, for: {}", clusters.join(", ")));
        if *given {
            cx.out.note(
                "warning: when the certificate is renewed, its sha256 changes; leave that out if a public authority \
                 signed it",
            );
        }
        cx.out.hint(&format!(
            "on the cluster manager put this into `relays` under [network] of cluster.toml, then: malai rescan {name}; \
             here: malai relay run (restart a relay that already runs)"
        ));
        Ok(0)
    }
}
