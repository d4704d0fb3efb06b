//! `malai rescan`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{Request, Rescan as Asked, RescanOutcome, Rescanned};

use super::{Context, publication};
use crate::output::Output;

/// Check, sign and publish an edited cluster.toml
///
/// Exits with 0 when every cluster was signed and published, else with 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Rescan {
    /// The cluster's alias; default: all clusters that this machine manages
    cluster: Option<String>,
    /// Only check cluster.toml, and show the difference from the signed config
    #[arg(long)]
    check: bool,
    /// Publish even if that drops machines that were enrolled after the edit began
    #[arg(long)]
    yes: bool,
    /// Replace the snapshot of this generation, which this manager did not make
    #[arg(long, value_name = "GENERATION")]
    over: Option<u64>,
}

impl Rescan {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Self { cluster, check, yes, over } = self;
        rescan(cx, Asked { cluster, check, yes, over })
    }
}

/// Rescans, shows what came of it, and returns the exit code.
///
/// # Errors
/// What went wrong for all clusters alike.
pub(super) fn rescan(cx: &Context, asked: Asked) -> Result<u8, Failure> {
    let list = ask!(cx, Disk, Request::Rescan(asked) => Rescanned);
    if cx.out.json {
        cx.out.document(&list)?;
    }
    if list.is_empty() {
        cx.out.note("no cluster is managed here");
    }
    let mut all = !list.is_empty();
    for Rescanned { alias, outcome, warnings } in &list {
        warnings.iter().for_each(|words| cx.out.note(&format!("{alias}: warning: {words}")));
        all &= show(cx.out, alias, outcome)?;
    }
    Ok(u8::from(!all))
}

/// Shows one outcome, and tells whether it is what was asked for.
fn show(out: Output, alias: &str, outcome: &RescanOutcome) -> Result<bool, Failure> {
    match outcome {
        RescanOutcome::Checked { diff } => {
            out.note(&format!(
                "{alias}: correct, {}",
                if diff.is_empty() { "and already signed" } else { "but not signed yet" }
            ));
            if !out.json {
                out.data(diff)?;
            }
            Ok(true)
        }
        RescanOutcome::Unchanged(publication) => {
            out.note(&format!("{alias}: nothing to sign: cluster.toml has not changed"));
            publication::show(out, alias, publication);
            Ok(publication.published)
        }
        RescanOutcome::Published(publication) => {
            out.note(&format!("{alias}: signed"));
            publication::show(out, alias, publication);
            Ok(publication.published)
        }
        RescanOutcome::Failed(failure) => {
            out.explain(&Failure { message: format!("{alias}: {}", failure.message), ..failure.clone() });
            Ok(false)
        }
    }
}
