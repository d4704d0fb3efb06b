//! `malai config`.

use malai_daemon::store::clusters;
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::local::{Config as Answer, Request, Rescan, Response};

use super::{Context, rescan};
use crate::client::{self, Otherwise};

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
        /// The cluster's alias; may be left out where there is only one
        cluster: Option<String>,
    },
    /// Check cluster.toml without signing it: 0 when it is in order, 1 when not
    Check {
        /// The cluster's alias; default: all that are managed here
        cluster: Option<String>,
    },
    /// Print the difference from the signed config to cluster.toml: 0 when there is none, 1 when there is one
    Diff {
        /// The cluster's alias; may be left out where there is only one
        cluster: Option<String>,
    },
}

impl Config {
    /// # Errors
    /// What went wrong.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        match self.what {
            What::Check { cluster } => rescan::rescan(cx, Rescan { cluster, check: true, yes: false, over: None }),
            What::Show { cluster } => {
                let config = ask(cx, cluster)?;
                if cx.out.json {
                    cx.out.document(&config)?
                } else {
                    cx.out.data(&config.signed)?
                }
                Ok(0)
            }
            What::Diff { cluster } => {
                let config = ask(cx, cluster)?;
                if config.edited.is_none() {
                    return Err(Failure::new(
                        Kind::BadConfig,
                        format!("{} is not managed here, so there is no cluster.toml to compare", config.alias),
                    )
                    .hint(format!("see the signed config: malai config show {}", config.alias)));
                }
                if cx.out.json {
                    cx.out.document(&config)?
                } else {
                    cx.out.data(&config.diff)?
                }
                Ok(u8::from(!config.diff.is_empty()))
            }
        }
    }
}

fn ask(cx: &Context, cluster: Option<String>) -> Result<Answer, Failure> {
    let cluster = match cluster {
        Some(cluster) => cluster,
        None => only_cluster(cx)?,
    };
    match client::request(&cx.home, Request::ConfigShow { cluster }, Otherwise::Disk, cx.out)? {
        Response::Config(config) => Ok(config),
        _ => Err(client::unexpected()),
    }
}

/// The alias of the only cluster of this home.
fn only_cluster(cx: &Context) -> Result<String, Failure> {
    let mut names: Vec<String> = clusters::list(&cx.home)?.into_iter().map(|found| found.alias).collect();
    names.sort_unstable();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Failure::new(Kind::NotConfigured, "no cluster was made or joined here")
            .hint("make one: malai cluster init company; or join one: malai machine join TOKEN")),
        names => Err(Failure::new(Kind::Usage, format!("there are several clusters: {}", names.join(", ")))
            .hint("name one of them")),
    }
}
