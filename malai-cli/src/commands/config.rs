//! `malai config`.

use malai_daemon::store::clusters;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Request, Rescan};

use super::{Context, NO_CLUSTER, NO_CLUSTER_HINT, rescan};

/// Show, check and compare a cluster's config
#[derive(Debug, clap::Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print the signed config that this machine holds
    Show {
        /// The cluster's alias; optional if there is only one
        cluster: Option<String>,
    },
    /// Check cluster.toml without signing it; exits with 0 if it is correct, else with 1
    Check {
        /// The cluster's alias; default: all clusters that this machine manages
        cluster: Option<String>,
    },
    /// Print the difference from the signed config to cluster.toml; exits with 0 if there is none, else with 1
    Diff {
        /// The cluster's alias; optional if there is only one
        cluster: Option<String>,
    },
}

impl Config {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let (cluster, is_diff) = match self.what {
            What::Check { cluster } => {
                return rescan::rescan(cx, Rescan { cluster, check: true, yes: false, over: None });
            }
            What::Show { cluster } => (cluster, false),
            What::Diff { cluster } => (cluster, true),
        };
        let cluster = cluster.map_or_else(|| only_cluster(cx), Ok)?;
        let config = ask!(cx, Disk, Request::ConfigShow { cluster } => Config);
        if is_diff && config.edited.is_none() {
            let message =
                format!("this machine does not manage {}, so it has no cluster.toml to compare", config.alias);
            return Err(Failure::new(Kind::BadConfig, message)
                .hint(format!("see the signed config: malai config show {}", config.alias)));
        }
        if cx.out.json {
            cx.out.document(&config)?;
        } else {
            cx.out.data(if is_diff { &config.diff } else { &config.signed })?;
        }
        Ok(u8::from(is_diff && !config.diff.is_empty()))
    }
}

/// Returns the alias of the only cluster of this home.
fn only_cluster(cx: &Context) -> Result<String, Failure> {
    let mut names: Vec<String> = clusters::list(&cx.home)?.into_iter().map(|found| found.alias).collect();
    names.sort_unstable();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Failure::new(Kind::NotConfigured, NO_CLUSTER).hint(NO_CLUSTER_HINT)),
        names => Err(Failure::new(Kind::Usage, format!("there are several clusters: {}", names.join(", ")))
            .hint("name one of them")),
    }
}
