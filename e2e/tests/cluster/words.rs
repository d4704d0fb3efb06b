//! What is run there is what was typed here: argv, shell strings, directory, environment, user.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use malai_e2e::cluster::malai;
use malai_e2e::lab::Cmd;
use malai_e2e::trials;

use crate::{Office, told};

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        every_byte_of_every_word_arrives_as_it_was_typed,
        a_string_for_the_shell_is_read_by_the_users_shell_there,
        the_working_directory_is_the_users_home_unless_told,
        a_variable_arrives_when_the_config_accepts_its_name,
        a_command_starts_with_a_clean_environment,
        only_listed_users_can_be_asked_for,
    ]
}

/// The words of a command line on the laptop, the last of which need not be text.
fn line(words: &[&str], bytes: &[&[u8]]) -> Cmd {
    let text = words.iter().map(OsString::from);
    malai(text.chain(bytes.iter().map(|word| OsStr::from_bytes(word).to_owned())))
}

fn every_byte_of_every_word_arrives_as_it_was_typed() -> Result<()> {
    let office = Office::open(["web01"])?;
    let show = "hostname; for word do printf '%s\\0' \"$word\"; done";
    let words: &[&[u8]] = &[
        b"",
        b" ",
        b"a b",
        b"'",
        b"\"",
        b"\\",
        b"*",
        b"/etc/host*",
        b"$HOME",
        b"$(id)",
        b"`id`",
        b"a\nb",
        b"-n",
        b"--",
        b"--json",
        b"~",
        b"!",
        b"#",
        b";",
        b"&",
        b"|",
        b"\xff\xfe",
        b"gr\xc3\xbcn",
        b"\x1b[2J",
        b"",
    ];
    for separator in [&["--"][..], &[]] {
        let head = [&["web01.company"], separator, &["sh", "-c", show, "sh"]].concat();
        let output = office.laptop().run(line(&head, words))?.success()?;
        let mut wanted = b"web01\n".to_vec();
        words.iter().for_each(|word| wanted.extend([word, &b"\0"[..]].concat()));
        assert_eq!(String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&wanted));
        ensure!(output.stdout == wanted);
    }
    Ok(())
}

fn a_string_for_the_shell_is_read_by_the_users_shell_there() -> Result<()> {
    let office = Office::open(["web01"])?;
    let string = "cd /; X='a  b'; hostname | cat; printf '%s\\n' \"$X\" /etc/hostnam?; exit 5";
    let output = office.laptop().run(malai(["-c", string, "web01.company"]))?.exited(5)?;
    assert_eq!(output.text(), "web01\na  b\n/etc/hostname");
    told(office.laptop().run(malai(["-c", "true", "web01.company", "more"]))?, 2, &["-c"])?;
    Ok(())
}

fn the_working_directory_is_the_users_home_unless_told() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    web01.run(["mkdir", "-p", "/root/a b"])?.success()?;
    let pwd = |options: &[&str]| {
        let words = options.iter().chain(&["web01.company", "--", "sh", "-c", "hostname; pwd"]);
        office.laptop().run(malai(words).cwd("/tmp"))
    };
    assert_eq!(pwd(&[])?.success()?.text(), "web01\n/root");
    assert_eq!(pwd(&["--cwd", "/root/a b"])?.success()?.text(), "web01\n/root/a b");
    told(pwd(&["--cwd", "/only/on/the/laptop"])?, 255, &["/only/on/the/laptop"])?;
    Ok(())
}

fn a_variable_arrives_when_the_config_accepts_its_name() -> Result<()> {
    let office = Office::open(["web01"])?;
    let company = &office.company;
    let show = |options: &[&str], name: &str| {
        let words = options.iter().copied().chain(["web01.company", "--", "sh", "-c"]);
        let script = format!("hostname; printf '%s\\n' \"${name}\"");
        office.laptop().run(malai(words.chain([script.as_str()])).env("LC_TIME", "from here"))
    };
    assert_eq!(show(&["--env", "LC_TIME=a=b c"], "LC_TIME")?.success()?.text(), "web01\na=b c");
    assert_eq!(show(&["--env", "LC_TIME"], "LC_TIME")?.success()?.text(), "web01\nfrom here");
    assert_eq!(show(&[], "LC_TIME")?.success()?.text(), "web01");
    let refused = show(&["--env", "DEPLOY_REF=/x"], "DEPLOY_REF")?;
    told(refused, 254, &["does not accept the variable `DEPLOY_REF`", "accept_env = [\"DEPLOY_REF\"]"])?;
    company.publish("machine.web01", "accept_env = [\"DEPLOY_*\"]")?;
    assert_eq!(show(&["--env", "DEPLOY_REF=/x"], "DEPLOY_REF")?.success()?.text(), "web01\n/x");
    told(show(&["--env", "LD_PRELOAD=/x"], "LD_PRELOAD")?, 254, &["no machine accepts `LD_PRELOAD`"])?;
    Ok(())
}

fn a_command_starts_with_a_clean_environment() -> Result<()> {
    let office = Office::open(["web01"])?;
    let [web01] = &office.machines;
    let output = office.company.run(office.laptop(), web01, &["/usr/bin/env"])?.success()?.text();
    let value =
        |name: &str| output.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap_or("(not set)");
    for (name, wanted) in [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root"), ("MALAI_HOME", "(not set)")] {
        assert_eq!(value(name), wanted, "{name} in {output}");
    }
    ensure!(value("SHELL").starts_with('/') && value("PATH").contains("/usr/bin"), "{output}");
    let state = "hostname; umask; cat <&0; ls /proc/self/fd; ps -o pgid= -p $$ | tr -d ' '; echo $$";
    let output = office.company.run(office.laptop(), web01, &["sh", "-c", state])?.success()?.text();
    let lines: Vec<&str> = output.lines().collect();
    ensure!(lines.starts_with(&["web01", "0022", "0", "1", "2", "3"]), "{output}");
    ensure!(lines.len() == 8 && lines.get(6) == lines.get(7), "it does not lead its process group: {output}");
    Ok(())
}

fn only_listed_users_can_be_asked_for() -> Result<()> {
    let office = Office::open(["web01"])?;
    let (company, [web01]) = (&office.company, &office.machines);
    web01.add_user("dba")?;
    let ask = |words: &[&str]| {
        office.laptop().run(malai(words.iter().chain(&["--", "sh", "-c", "hostname; id -un; id -gn; pwd; echo $HOME"])))
    };
    told(ask(&["dba@web01.company"])?, 254, &["does not allow `dba` as a user", "users = [\"dba\"]"])?;
    company.publish("machine.web01", "users = [\"dba\", \"nobody-there\"]")?;
    let wanted = "web01\ndba\ndba\n/home/dba\n/home/dba";
    assert_eq!(ask(&["dba@web01.company"])?.success()?.text(), wanted);
    assert_eq!(ask(&["--user", "dba", "web01.company"])?.success()?.text(), wanted);
    assert_eq!(ask(&["root@web01.company"])?.success()?.text().lines().nth(1), Some("root"));
    told(ask(&["nobody-there@web01.company"])?, 255, &["nobody-there"])?;
    told(ask(&["--user", "root", "dba@web01.company"])?, 2, &["two users"])?;
    Ok(())
}
