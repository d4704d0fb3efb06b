//! `malai rescan`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{Request, Rescan as Asked, RescanOutcome, Rescanned, Response};

use super::{Context, publication};
use crate::client::{self, Otherwise};
use crate::output::Output;

/// Check, sign and publish an edited cluster.toml
///
/// Exits with 0 once every cluster named is signed and published, with 1 when one is not.
#[derive(Debug, clap::Args)]
pub(crate) struct Rescan {
    /// The cluster's alias; default: all that are managed here
    cluster: Option<String>,
    /// Only check, and show the difference to the signed config
    #[arg(long)]
    check: bool,
    /// Drop machines that were enrolled since the edit began
    #[arg(long)]
    yes: bool,
    /// Publish over a snapshot of this generation that this manager did not make
    #[arg(long, value_name = "GENERATION")]
    over: Option<u64>,
}

impl Rescan {
    /// # Errors
    /// What went wrong for all clusters alike.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, check, yes, over } = self;
        rescan(cx, Asked { cluster, check, yes, over })
    }
}

/// Rescans, tells what came of it, and returns the exit code.
///
/// # Errors
/// What went wrong for all clusters alike.
pub(super) fn rescan(cx: &Context, asked: Asked) -> Result<u8, Failure> {
    let Response::Rescanned(list) = client::request(&cx.home, Request::Rescan(asked), Otherwise::Disk, cx.out)? else {
        return Err(client::unexpected());
    };
    if cx.out.json {
        cx.out.document(&list)?;
    }
    if list.is_empty() {
        cx.out.note("no cluster is managed here");
    }
    let mut all = !list.is_empty();
    for Rescanned { alias, outcome, warnings } in &list {
        warnings.iter().for_each(|words| cx.out.note(&format!("{alias}: warning: {words}")));
        all &= tell(cx.out, alias, outcome)?;
    }
    Ok(u8::from(!all))
}

/// Tells one outcome; whether it is what was asked for.
fn tell(out: Output, alias: &str, outcome: &RescanOutcome) -> Result<bool, Failure> {
    match outcome {
        RescanOutcome::Checked { diff } => {
            out.note(&format!(
                "{alias}: in order, {}",
                if diff.is_empty() { "and as signed" } else { "not signed yet" }
            ));
            if !out.json {
                out.data(diff)?;
            }
            Ok(true)
        }
        RescanOutcome::Unchanged(publication) => {
            out.note(&format!("{alias}: cluster.toml is as signed"));
            publication::tell(out, alias, publication);
            Ok(publication.published)
        }
        RescanOutcome::Published(publication) => {
            out.note(&format!("{alias}: signed"));
            publication::tell(out, alias, publication);
            Ok(publication.published)
        }
        RescanOutcome::Failed(failure) => {
            out.explain(&Failure { message: format!("{alias}: {}", failure.message), ..failure.clone() });
            Ok(false)
        }
    }
}
