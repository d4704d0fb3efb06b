//! `malai doctor`.

use malai_protocol::failure::Failure;
use malai_protocol::local::{Finding, Level, Request, Response};
use serde::Serialize;

use super::Context;
use crate::client::{self, Otherwise};

/// The exit code when something is broken.
const BROKEN: u8 = 1;

/// Look for what does not work, and say what mends it
///
/// Looks at files, daemon, executor and config, and tries UDP, NAT, relays and discovery services (the first eight of
/// each) and every machine for real; nothing is contacted that the cluster's config does not name. Takes a few seconds.
/// Exits with 1 when something is broken. Without a daemon only the files are looked at.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor;

/// `malai doctor --json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    broken: usize,
    findings: &'a [Finding],
}

impl Doctor {
    /// # Errors
    /// Why nothing could be looked at.
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let Response::Doctor(checkup) = client::request(&cx.home, Request::Doctor, Otherwise::Disk, cx.out)? else {
            return Err(client::unexpected());
        };
        let findings = &checkup.findings[..];
        let broken = findings.iter().filter(|finding| finding.level == Level::Broken).count();
        if cx.out.json {
            cx.out.document(&Document { broken, findings })?;
        } else {
            findings.iter().flat_map(lines).try_for_each(|line| cx.out.row(&line))?;
        }
        Ok(if broken == 0 { 0 } else { BROKEN })
    }
}

fn lines(finding: &Finding) -> Vec<String> {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Broken => "broken",
    };
    let cluster = finding.cluster.as_ref().map(|alias| format!("{alias}: ")).unwrap_or_default();
    let first = format!("{level:<8}{cluster}{}: {}", finding.area, finding.what);
    let mend = finding.mend.as_ref().map(|mend| format!("{:<8}mend: {mend}", ""));
    std::iter::once(first).chain(mend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_has_its_level_its_area_and_what_mends_it() {
        let all = [
            Finding::ok("daemon", "malai 0.1.0"),
            Finding::note("clock", "7 s ahead").of("company").mend("timedatectl set-ntp true"),
            Finding::broken("relay https://r.example.com/", "connection refused", "start it").of("company"),
        ];
        insta::assert_snapshot!(all.iter().flat_map(lines).collect::<Vec<_>>().join("\n"), @r"
        ok      daemon: malai 0.1.0
        note    company: clock: 7 s ahead
                mend: timedatectl set-ntp true
        broken  company: relay https://r.example.com/: connection refused
                mend: start it
        ");
    }
}
