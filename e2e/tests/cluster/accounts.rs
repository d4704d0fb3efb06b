//! As whom commands run: the newcomer's own account where nobody named another, and accounts that are closed.

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::{SOON, json, malai, text};
use malai_e2e::lab::{Host, Lab, Output, wait_for};
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        the_newcomers_own_account_decides_where_a_manager_that_is_root_names_no_user,
        the_newcomers_own_account_decides_where_a_manager_that_is_not_root_names_no_user,
        an_account_that_has_expired_runs_nothing_and_doctor_finds_it,
        a_user_of_the_config_that_does_not_exist_is_found_by_doctor,
    ]
}

/// A manager whose daemon runs as this user.
struct Manager {
    host: Host,
    user: &'static str,
    config: String,
}

impl Manager {
    fn init(host: Host, user: &'static str) -> Result<Self> {
        let made =
            host.run(malai(["cluster", "init", "company", "--name", "laptop", "--private", "--json"]).user(user))?;
        let says_root = made.error_text().contains("commands on this machine run as root");
        ensure!(says_root == (user == "root"), "it is left unsaid as whom commands run: {}", made.error_text());
        let config = text(&json(&made.success()?)?, "/config")?.to_owned();
        host.run(malai(["daemon"]).user(user))?.success()?;
        Ok(Self { host, user, config })
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        self.host.run(malai(words).user(self.user))
    }

    /// Runs `id -un` on a machine, once that has a connection.
    fn who(&self, machine: &str) -> Result<Output> {
        self.run(&["--wait", &format!("{machine}.company"), "--", "id", "-un"])
    }

    /// Does what the hint of a refusal says: puts its line under the section that it names, and publishes.
    fn heed(&self, refused: &Output) -> Result<()> {
        let errors = refused.error_text();
        let (_, rest) = errors.split_once("under [").context("no section")?;
        let (section, rest) = rest.split_once("]: ").context("no line")?;
        let (line, _) = rest.split_once(" - then run `malai rescan` there").context("no next command")?;
        let key = line.split(' ').next().context("no key")?;
        let (mut out, mut is_inside) = (String::new(), false);
        for old in self.host.read(&self.config)?.lines() {
            is_inside = if old.starts_with('[') { old == format!("[{section}]") } else { is_inside };
            if !(is_inside && old.starts_with(key)) {
                out += &format!("{old}\n");
            }
            if is_inside && old.starts_with('[') {
                out += &format!("{line}\n");
            }
        }
        self.host.write(&self.config, &out)?;
        self.run(&["rescan", "company"])?.success()?;
        Ok(())
    }

    /// Lets a host in by an invite with these options; its daemon runs as this user.
    fn join(&self, host: &Host, user: &str, options: &[&str]) -> Result<Output> {
        let invite = [&["cluster", "invite", "company", "--name", host.hostname()][..], options].concat();
        let invited = self.run(&invite)?.success()?;
        ensure!(invited.error_text().contains("no --username") == options.is_empty(), "{}", invited.error_text());
        let joined = host.run(malai(["machine", "join", &invited.text()]).user(user))?.success()?;
        host.run(malai(["daemon"]).user(user))?.success()?;
        Ok(joined)
    }
}

fn the_newcomers_own_account_decides_where_a_manager_that_is_root_names_no_user() -> Result<()> {
    own_account_decides("root", "roots")
}

fn the_newcomers_own_account_decides_where_a_manager_that_is_not_root_names_no_user() -> Result<()> {
    own_account_decides("alice", "users")
}

fn own_account_decides(manager: &'static str, name: &str) -> Result<()> {
    let lab = Lab::new(name)?;
    let lan = lab.segment("lan")?;
    let boot = |name: &str, user: &str| -> Result<Host> {
        let host = lab.host(name).on(&lan).boot()?;
        if user != "root" {
            host.add_user(user)?;
        }
        Ok(host)
    };
    let manager = Manager::init(boot("laptop", manager)?, manager)?;

    let web01 = boot("web01", "deploy")?;
    let joined = manager.join(&web01, "deploy", &[])?;
    ensure!(!joined.error_text().contains("warning"), "{}", joined.error_text());
    assert_eq!(manager.who("web01")?.success()?.text(), "deploy");

    // A daemon that is root does not guess, says so when it joins, and says what helps.
    let web02 = boot("web02", "root")?;
    let told_so = "no command will run on this machine: the config sets no `username`";
    told(manager.join(&web02, "root", &[])?, 0, &[told_so, "under [machine.web02]: username = \"root\""])?;
    let refused = told(manager.who("web02")?, 254, &["no `username`", "malai rescan"])?;
    manager.heed(&refused)?;
    assert_eq!(manager.who("web02")?.success()?.text(), "root");

    // A user that this daemon cannot become: the hint leads to its own.
    let web03 = boot("web03", "deploy")?;
    let joined = manager.join(&web03, "deploy", &["--username", "root"])?;
    told(joined, 0, &["no command will run on this machine: the daemon on `web03` runs as `deploy`"])?;
    let refused = told(manager.who("web03")?, 254, &["not as root, so it cannot run commands as `root`"])?;
    manager.heed(&refused)?;
    assert_eq!(manager.who("web03")?.success()?.text(), "deploy");
    Ok(())
}

/// What doctor of a host says of its users.
fn users(host: &Host) -> Result<String> {
    let output = host.run(malai(["doctor", "--json"]))?;
    let findings = json(&output)?;
    let findings = findings.get("findings").and_then(|all| all.as_array()).context("no findings")?;
    let of_users = findings.iter().filter(|finding| finding.get("area").is_some_and(|area| area == "users"));
    Ok(of_users.map(ToString::to_string).collect())
}

fn an_account_that_has_expired_runs_nothing_and_doctor_finds_it() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    web01.add_user("deploy")?;
    company.publish("machine.web01", "username = \"deploy\"")?;
    let who = || company.run(office.laptop(), web01, &["id", "-un"]);
    assert_eq!(who()?.success()?.text(), "deploy");
    let healthy = users(web01)?;
    ensure!(healthy.contains("commands run as deploy"), "{healthy}");
    // A locked password keeps nobody out, as with sshd and a key.
    web01.run(["usermod", "--lock", "deploy"])?.success()?;
    assert_eq!(who()?.success()?.text(), "deploy");
    let closings = [
        (&["--expiredate", "1"][..], "the account deploy on this machine has expired", &["--expiredate", "-1"][..]),
        (
            &["--lastday", "2020-01-01", "--maxdays", "90", "--inactive", "7"][..],
            "the account deploy on this machine is closed: its password was not changed in time",
            &["--inactive", "-1"][..],
        ),
    ];
    for (close, why, open) in closings {
        web01.run([&["chage"][..], close, &["deploy"]].concat())?.success()?;
        let refused = told(who()?, 255, &[why, "chage"])?;
        ensure!(refused.text().is_empty(), "it ran: {}", refused.text());
        let found = users(web01)?;
        ensure!(found.contains(why) && found.contains("[machine.web01]") && found.contains("broken"), "{found}");
        web01.run([&["chage"][..], open, &["deploy"]].concat())?.success()?;
        assert_eq!(who()?.success()?.text(), "deploy");
    }
    Ok(())
}

fn a_user_of_the_config_that_does_not_exist_is_found_by_doctor() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    company.set("machine.web01", "users = ['CORP\\alice', \"svc$\"]")?;
    company.publish("machine.web01", "username = \"deploy\"")?;
    let found =
        wait_for(SOON, "doctor finds them", || Ok(Some(users(web01)?).filter(|found| found.contains("deploy"))))?;
    for words in ["there is no user deploy on this machine", "useradd --create-home deploy", "svc$", "alice"] {
        ensure!(found.contains(words), "{words}: {found}");
    }
    let refused = company.run(office.laptop(), web01, &["id"])?;
    told(refused, 255, &["there is no user deploy on this machine", "useradd --create-home deploy"])?;
    // A name with its domain goes to the user database as it is.
    for (target, name) in [("CORP\\alice@web01.company", "CORP\\alice"), ("svc$@web01.company", "svc$")] {
        let refused = office.laptop().run(malai([target, "--", "id"]))?;
        told(
            refused,
            255,
            &["there is no user", "on this machine", "getent passwd", name.trim_start_matches("CORP\\")],
        )?;
    }
    web01.add_user("deploy")?;
    assert_eq!(company.run(office.laptop(), web01, &["id", "-un"])?.success()?.text(), "deploy");
    // An account whose name has the form of a machine account exists, and is used.
    web01.sh("sed 's/^deploy:/svc$:/' /etc/passwd | grep '^svc' >>/etc/passwd")?.exited(0)?;
    let output = office.laptop().run(malai(["svc$@web01.company", "--", "sh", "-c", "echo $USER"]))?.success()?;
    assert_eq!(output.text(), "svc$");
    Ok(())
}
