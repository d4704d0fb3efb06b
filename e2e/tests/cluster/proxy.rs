//! A machine whose network has no way out but an HTTP proxy.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, json, malai, stop};
use malai_e2e::lab::{Host, Lab, Nat, Proxy, Router, wait_until};
use malai_e2e::reach::world::World;
use malai_e2e::trials;
use serde_json::Value;

use crate::told;

/// Where a daemon in the background logs.
const LOG: &str = "/root/malai-home/daemon.log";

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        where_only_a_proxy_leads_out_a_machine_joins_runs_and_is_reached_through_it_and_not_without,
        doctor_names_the_proxy_without_its_password_and_says_what_is_wrong_with_it,
        a_proxy_that_is_named_wrongly_is_told_of_and_stops_nothing,
    ]
}

/// A world, and behind the proxy's router a host that is in no cluster yet.
struct Behind {
    world: World,
    web01: Host,
    proxy: Proxy,
    _hosts: (Host, Router),
}

fn behind(name: &str) -> Result<Behind> {
    let world = World::new(name)?;
    let lab: &Lab = &world.lab;
    let gate = lab.host("gate").on(&world.internet).boot()?;
    let proxy = Proxy::start(&gate)?;
    let lan = lab.segment("lan")?;
    let router = lab.router("router").between(&lan, &world.internet).nat(Nat::Only(proxy.at())).start()?;
    let web01 = lab.host("web01").on(&lan).boot()?;
    Ok(Behind { world, web01, proxy, _hosts: (gate, router) })
}

impl Behind {
    /// Starts the daemon in an environment with this proxy.
    fn start(&self, url: &str) -> Result<()> {
        self.web01.run(malai(["daemon"]).env("HTTPS_PROXY", url))?.success()?;
        Ok(())
    }

    fn restart(&self, url: &str) -> Result<()> {
        stop(&self.web01)?;
        self.start(url)
    }

    /// Lets the host in, through the proxy.
    fn join(&self) -> Result<()> {
        let token = self.world.company.invite(&["--name", "web01"])?;
        let join = malai(["machine", "join", &token]).env("HTTPS_PROXY", self.proxy.url(Proxy::PASSWORD));
        self.web01.run(join)?.success()?;
        self.start(&self.proxy.url(Proxy::PASSWORD))?;
        self.world.company.linked(&self.web01)
    }

    /// What `malai doctor` there finds.
    fn findings(&self) -> Result<Vec<Value>> {
        let output = self.web01.run(malai(["doctor", "--json"]))?;
        ensure!(!output.text().contains(Proxy::PASSWORD), "{}", output.text());
        Ok(json(&output)?["findings"].as_array().context("no findings")?.clone())
    }

    /// The finding about the proxy, with this level and these words.
    fn about_proxy(&self, level: &str, words: &str) -> Result<Value> {
        let found = self.findings()?;
        let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let fits =
            |f: &&Value| text(f, "area") == "proxy" && text(f, "level") == level && text(f, "what").contains(words);
        let finding =
            found.iter().find(fits).with_context(|| format!("no {level} proxy with {words:?} in {found:#?}"))?;
        ensure!(level == "ok" || !finding["mend"].is_null(), "what mends {finding}?");
        Ok(finding.clone())
    }

    fn ensure_secret(&self) -> Result<()> {
        let log = self.web01.read(LOG)?;
        ensure!(log.contains("http://lab:…@") && !log.contains(Proxy::PASSWORD), "{log}");
        Ok(())
    }
}

fn where_only_a_proxy_leads_out_a_machine_joins_runs_and_is_reached_through_it_and_not_without() -> Result<()> {
    let net = behind("proxied")?;
    let (company, web01) = (&net.world.company, &net.web01);
    net.join()?;
    company.ran_remotely(company.manager(), web01)?;
    company.ran_remotely(web01, company.manager())?;
    let requests = net.proxy.requests();
    ensure!(requests.iter().any(|line| line.starts_with("200 CONNECT ")), "{requests:?}");
    // The lab's server for discovery has no TLS.
    ensure!(requests.iter().any(|line| line.contains("/pkarr/")), "{requests:?}");
    net.ensure_secret()?;
    // Without the variable nothing leads out.
    stop(web01)?;
    web01.run(malai(["daemon"]))?.success()?;
    let run = malai(["--connect-timeout", "5s", &company.target(web01), "--", "hostname"]);
    told(company.manager().run(run)?, 255, &["cannot be reached"])?;
    // A daemon that is started by itself keeps what it was started with.
    net.restart(&net.proxy.url(Proxy::PASSWORD))?;
    company.linked(web01)?;
    company.ran_remotely(company.manager(), web01)
}

fn doctor_names_the_proxy_without_its_password_and_says_what_is_wrong_with_it() -> Result<()> {
    let net = behind("proxydoctor")?;
    net.join()?;
    let fine = net.about_proxy("ok", "HTTPS_PROXY names http://lab:…@")?;
    ensure!(fine["what"].as_str().is_some_and(|what| what.contains(", which connects to ")), "{fine}");
    net.restart(&net.proxy.url("another"))?;
    let refused = net.about_proxy("broken", "(407)")?;
    ensure!(refused["mend"].as_str().is_some_and(|mend| mend.contains("USER:PASSWORD")), "{refused}");
    wait_until(SOON, "malai status says why the relay cannot be used", || {
        let status = net.web01.run(malai(["status"])).and_then(malai_e2e::lab::Output::success);
        status.is_ok_and(|status| status.text().contains("407"))
    })?;
    net.restart(&format!("http://lab:{}@{}:1", Proxy::PASSWORD, net.proxy.at().ip()))?;
    // The router drops what goes to any other port.
    net.about_proxy("broken", "does not answer within ")?;
    net.ensure_secret()?;
    // The shell has a proxy, and the daemon does not.
    stop(&net.web01)?;
    net.web01.run(malai(["daemon"]))?.success()?;
    let doctor = malai(["doctor"]).env("HTTPS_PROXY", net.proxy.url(Proxy::PASSWORD));
    let text = net.web01.run(doctor)?.text();
    ensure!(text.contains("the daemon was started without") && !text.contains(Proxy::PASSWORD), "{text}");
    Ok(())
}

fn a_proxy_that_is_named_wrongly_is_told_of_and_stops_nothing() -> Result<()> {
    let net = behind("badproxy")?;
    net.join()?;
    stop(&net.web01)?;
    let started =
        net.web01.run(malai(["daemon"]).env("HTTPS_PROXY", "socks5://lab:s3cret@192.0.2.1:1080"))?.success()?;
    let words = "HTTPS_PROXY is not the URL of an HTTP proxy";
    ensure!(
        started.error_text().contains(words) && !started.error_text().contains("s3cret"),
        "{}",
        started.error_text()
    );
    net.about_proxy("broken", words)?;
    let status = net.web01.run(malai(["status"]))?;
    ensure!(status.error_text().contains(words) || status.text().contains(words), "{status:?}");
    // What needs no way out works.
    let here = net.world.company.run(&net.web01, &net.web01, &["hostname"])?.success()?;
    ensure!(here.text() == "web01", "it ran on {}", here.text());
    Ok(())
}
