//! `malai doctor`.

use malai_daemon::PROXY_VARIABLES;
use malai_protocol::failure::Failure;
use malai_protocol::local::{Finding, Level, Request};
use serde::Serialize;

use super::Context;

/// Names the area of findings about the proxy.
const PROXY_AREA: &str = "proxy";

/// Is the exit code when something is broken.
const EXIT_BROKEN: u8 = 1;

/// Find what is broken on this machine, and say how to fix it
///
/// Looks at files, daemon, executor and config, and tries UDP, NAT, relays and discovery services (the first eight of
/// each) and every machine for real. Contacts nothing that the cluster's config does not name. Takes a few seconds.
/// Exits with 1 when something is broken. Without a daemon it checks only the files.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor;

/// Is the answer of `malai doctor --json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    broken: usize,
    findings: &'a [Finding],
}

impl Doctor {
    pub(super) fn run(self, cx: &Context) -> Result<u8, Failure> {
        let checkup = ask!(cx, Disk, Request::Doctor => Doctor);
        let mut findings = checkup.findings;
        findings.extend(unseen_proxy(&findings, |name| std::env::var_os(name).is_some_and(|value| !value.is_empty())));
        let findings = &findings[..];
        let broken = findings.iter().filter(|finding| finding.level == Level::Broken).count();
        if cx.out.json {
            cx.out.document(&Document { broken, findings })?;
        } else {
            findings.iter().flat_map(lines).try_for_each(|line| cx.out.row(&line))?;
        }
        Ok(if broken == 0 { 0 } else { EXIT_BROKEN })
    }
}

/// Reports a proxy that this shell's environment names and the daemon's does not.
fn unseen_proxy(findings: &[Finding], is_set: impl Fn(&str) -> bool) -> Option<Finding> {
    let is_tried = findings.iter().any(|finding| finding.cluster.is_some());
    let is_known = findings.iter().any(|finding| finding.area == PROXY_AREA);
    let named = PROXY_VARIABLES.iter().find(|name| is_set(name)).filter(|_| is_tried && !is_known)?;
    let text = format!("{named} names a proxy in this shell, but the daemon was started without it and uses none");
    let mend = "malai daemon restart in this environment; for systemd: Environment= in its unit (docs/malai.service)";
    Some(Finding::note(PROXY_AREA, text).mend(mend))
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
    fn a_proxy_of_the_shell_that_the_daemon_does_not_have_is_a_note() {
        let found = [Finding::ok("link", "to laptop").of("company")];
        let note = unseen_proxy(&found, |name| name == "HTTPS_PROXY").expect("a note");
        assert!(note.level == Level::Note && note.what.contains("HTTPS_PROXY") && note.mend.is_some(), "{note:?}");
        assert!(unseen_proxy(&found, |_| false).is_none());
        assert!(unseen_proxy(&found, |name| name == "HTTP_PROXY").is_none(), "it is for no relay");
        let known = [found[0].clone(), Finding::ok("proxy", "it connects").of("company")];
        assert!(unseen_proxy(&known, |_| true).is_none());
        assert!(unseen_proxy(&[Finding::broken("daemon", "none runs", "malai daemon")], |_| true).is_none());
    }

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
