//! What a command gets, and what comes back.

use malai_protocol::codec::Kind;
use malai_protocol::session::{EndedBy, Status, StopOutput};

use super::harness::{Lab, lives, pid_in, plan, script, until};

#[tokio::test]
async fn output_and_exit_code_come_back_apart_and_complete() {
    let mut lab = Lab::new().await;
    let done = lab.run(script("echo out; echo err >&2; exit 7")).await;
    assert_eq!(done.stdout, b"out\n");
    assert_eq!(done.stderr, b"err\n");
    let record = done.record();
    assert_eq!(record.status, Status::Exited { code: 7 });
    assert_eq!(record.ended_by, EndedBy::Itself);
    assert_eq!((record.stdout_bytes, record.stderr_bytes, record.output_open), (4, 4, false));
    lab.close().await;
}

#[tokio::test]
async fn arguments_arrive_byte_for_byte() {
    let mut lab = Lab::new().await;
    let mut odd = plan(&["/bin/sh", "-c", "printf '<%s>' \"$@\"", "sh", "", "a b", "$HOME", "*", "-n", "'\"\\"]);
    odd.argv.push(vec![0xff, 0xfe, b'\n', 0x80].into());
    let done = lab.run(odd).await;
    assert_eq!(done.stdout, [&b"<><a b><$HOME><*><-n><'\"\\><"[..], &[0xff, 0xfe, b'\n', 0x80], b">"].concat());
    lab.close().await;
}

#[tokio::test]
async fn a_signal_that_kills_the_command_is_told_by_number() {
    let mut lab = Lab::new().await;
    let done = lab.run(script("kill -TERM $$")).await;
    assert_eq!(done.record().status, Status::Signalled { signal: 15, core: false });
    assert_eq!(done.record().exit_code(), 143);
    lab.close().await;
}

#[tokio::test]
async fn the_users_shell_runs_a_string() {
    let mut lab = Lab::new().await;
    let mut string = plan(&["echo $((40 + 2)) | cat"]);
    string.shell = true;
    assert_eq!(lab.run(string).await.text(), "42\n");
    lab.close().await;
}

#[tokio::test]
async fn the_environment_is_the_users_own_with_the_plans_additions() {
    let mut lab = Lab::new().await;
    let mut env = plan(&["env"]);
    env.env = vec![(b"LANG".to_vec().into(), b"C.UTF-8".to_vec().into())];
    let session = env.session;
    let text = lab.run(env).await.text();
    let mut names: Vec<_> = text.lines().map(|line| line.split_once('=').expect("a variable").0).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "LOGNAME", "MALAI_SESSION", "PATH", "PWD", "SHELL", "USER"]);
    assert!(text.contains(&format!("MALAI_SESSION={}.{}\n", session.id, session.caller)));
    lab.close().await;
}

/// Returns the variables in the table of docs/config.md with the environment of a command.
fn documented() -> Vec<&'static str> {
    let text = include_str!("../../../docs/config.md");
    let (_, table) = text.split_once("The whole environment of a command").expect("the table");
    let rows = table.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
    let mut names: Vec<_> = rows
        .flat_map(|row| row.split('|').nth(1).expect("a cell").split(',').map(|name| name.trim().trim_matches('`')))
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn the_documentation_lists_the_whole_environment_of_a_command() {
    let mut lab = Lab::new().await;
    for user in [None, Some("nobody")].into_iter().take(1 + usize::from(nix::unistd::geteuid().is_root())) {
        let mut env = plan(&["env"]);
        env.user = user.map(str::to_owned);
        let text = lab.run(env).await.text();
        let mut names: Vec<_> = text.lines().map(|line| line.split_once('=').expect("a variable").0).collect();
        names.sort_unstable();
        assert_eq!(names, documented(), "{user:?}");
    }
    lab.close().await;
}

#[tokio::test]
async fn the_working_directory_is_where_it_was_asked_for_and_pwd_names_it_so() {
    let mut lab = Lab::new().await;
    let home = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("a database").expect("this user").dir;
    let home = home.to_str().expect("text").to_owned();
    let below = tempfile::tempdir_in(&home).expect("a directory in the home");
    let name = below.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    std::os::unix::fs::symlink(lab.dir.path(), below.path().join("link")).expect("linked");
    let place = lab.dir.path().canonicalize().expect("a directory").display().to_string();
    let cases = [
        (None, home.clone(), home.clone()),
        (Some("/usr/lib".to_owned()), "/usr/lib".to_owned(), "/usr/lib".to_owned()),
        // Relative to the home, as users of ssh expect.
        (Some(name.clone()), format!("{home}/{name}"), format!("{home}/{name}")),
        (Some(".".to_owned()), home.clone(), home.clone()),
        // A link keeps its name; a path with dots in it becomes the true one.
        (Some(format!("{name}/link")), format!("{home}/{name}/link"), place.clone()),
        (Some(format!("{name}/link/.")), place.clone(), place.clone()),
        (Some("/usr/../usr/lib".to_owned()), "/usr/lib".to_owned(), "/usr/lib".to_owned()),
    ];
    for (cwd, pwd, physical) in cases {
        let bytes = cwd.clone().map(|cwd| cwd.into_bytes().into());
        // No shell, which would set it itself.
        let (mut env, mut place) = (plan(&["env"]), plan(&["readlink", "/proc/self/cwd"]));
        (env.cwd, place.cwd) = (bytes.clone(), bytes);
        let text = lab.run(env).await.text();
        assert_eq!(text.lines().find_map(|line| line.strip_prefix("PWD=")), Some(pwd.as_str()), "{cwd:?}");
        assert_eq!(lab.run(place).await.text(), format!("{physical}\n"), "{cwd:?}");
    }
    let mut nowhere = plan(&["true"]);
    nowhere.cwd = Some(b"no/such/place".to_vec().into());
    let done = lab.run(nowhere).await;
    let failure = done.failure();
    assert!(failure.message.starts_with("cannot enter the directory no/such/place in the home as "), "{failure}");
    lab.close().await;
}

#[tokio::test]
async fn a_command_starts_clean_session_signals_mask_umask_directory_and_descriptors() {
    let mut lab = Lab::new().await;
    let done = lab.run(script("umask; pwd; echo $HOME; ls /proc/self/fd; cat /proc/self/status")).await;
    let text = done.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("0022"));
    assert_eq!(lines.next(), lines.next(), "the directory is the home");
    // Descriptor 3 is what `ls` reads the directory by.
    assert_eq!(lines.by_ref().take(4).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).expect("a field");
        line.split_once(':').expect("a value").1.trim().to_owned()
    };
    assert_eq!(field("SigBlk"), "0000000000000000");
    // The C library keeps 32 and 33 for itself, and does not let them be changed.
    let ignored = u64::from_str_radix(&field("SigIgn"), 16).expect("a mask");
    assert_eq!(ignored & !(3 << 31), 0, "{ignored:x}");

    let stat = lab.run(plan(&["cat", "/proc/self/stat"])).await.text();
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!(fields[0], fields[4], "it leads its process group");
    assert_eq!(fields[0], fields[5], "it leads its session");
    assert_eq!(fields[6], "0", "it has no terminal");
    lab.close().await;
}

#[tokio::test]
async fn without_standard_input_a_command_reads_an_end() {
    let mut lab = Lab::new().await;
    let done = lab.run(script("cat; readlink /proc/self/fd/0")).await;
    assert_eq!(done.text(), "/dev/null\n");
    lab.close().await;
}

#[tokio::test]
async fn standard_input_ends_when_the_caller_says_so() {
    let mut lab = Lab::new().await;
    let mut cat = script("cat; echo end");
    cat.stdin = true;
    let mut caller = lab.start(cat).await;
    caller.stdin(b"hello\n").await;
    caller.raw(malai_protocol::codec::Frame::empty(Kind::StdinEof)).await;
    assert_eq!(caller.finish().await.text(), "hello\nend\n");
    lab.close().await;
}

#[tokio::test]
async fn a_command_that_closes_its_input_says_so_while_nothing_is_sent() {
    let mut lab = Lab::new().await;
    let mut sleeper = script("exec <&-; exec sleep 1000");
    sleeper.stdin = true;
    let mut caller = lab.start(sleeper).await;
    caller.started().await;
    caller.wait_for(Kind::StdinClosed).await;
    caller.signal(15).await;
    assert_eq!(caller.finish().await.record().exit_code(), 143);
    lab.close().await;
}

#[tokio::test]
async fn when_a_stream_is_stopped_the_command_gets_sigpipe() {
    let mut lab = Lab::new().await;
    let mut caller = lab.start(plan(&["yes"])).await;
    caller.wait_for(Kind::Stdout).await;
    caller.send(Kind::StopOutput, &StopOutput { stream: malai_protocol::session::Output::Stdout }).await;
    let done = caller.finish().await;
    assert_eq!(done.record().status, Status::Signalled { signal: 13, core: false });
    lab.close().await;
}

#[tokio::test]
async fn a_background_process_keeps_output_open_and_gets_no_sigpipe_later() {
    let mut lab = Lab::new().await;
    let file = lab.path("late");
    let late = format!("sh -c 'sleep 1; echo late && echo late && echo $$ > {file}'");
    let text = format!("{late} & echo now");
    let done = lab.run(script(&text)).await;
    assert_eq!(done.text(), "now\n");
    assert!(done.record().output_open);
    assert_eq!(done.record().exit_code(), 0);
    let survivor = pid_in(file.as_ref()).await;
    until("the background process ends", || !lives(survivor)).await;
    lab.close().await;
}

#[tokio::test]
async fn with_wait_output_a_background_process_is_followed_to_its_end() {
    let mut lab = Lab::new().await;
    let mut waits = script("(sleep 1; echo late) & echo now");
    waits.wait_output = true;
    let done = lab.run(waits).await;
    assert_eq!(done.text(), "now\nlate\n");
    assert!(!done.record().output_open);
    lab.close().await;
}

#[tokio::test]
async fn the_attachment_may_come_before_its_plan() {
    let mut lab = Lab::new().await;
    let echo = plan(&["echo", "hi"]);
    let caller = lab.attach(echo.session).await;
    // A second one shows that the first has arrived: it is refused for it.
    let second = lab.attach(echo.session).await.finish().await;
    assert_eq!(second.failure().kind, malai_protocol::failure::Kind::Conflict);
    lab.control.send(Kind::Plan, &echo).await;
    assert_eq!(caller.finish().await.text(), "hi\n");
    lab.close().await;
}

#[tokio::test]
async fn root_becomes_another_user_with_its_groups_and_nothing_of_its_own() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI runs this as root");
        return;
    }
    let mut lab = Lab::new().await;
    let mut id = script("id -u; id -G; echo $USER $LOGNAME; grep -E '^(Uid|Gid|Groups)' /proc/self/status; pwd");
    id.user = Some("nobody".into());
    let done = lab.run(id).await;
    let entry = nix::unistd::User::from_name("nobody").expect("a database").expect("nobody is there");
    let (uid, gid) = (entry.uid, entry.gid);
    let status = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\nGroups:\t{gid} \n");
    let home = if entry.dir.is_dir() { entry.dir.display().to_string() } else { "/".to_owned() };
    assert_eq!(done.text(), format!("{uid}\n{gid}\nnobody nobody\n{status}{home}\n"));
    lab.close().await;
}

#[tokio::test]
async fn a_program_is_found_in_the_path_of_the_session() {
    let mut lab = Lab::new().await;
    let program = lab.path("only-here");
    std::fs::write(&program, "#!/bin/sh\necho found \"$0\"\n").expect("writes");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut named = plan(&["only-here"]);
    named.env = vec![(b"PATH".to_vec().into(), lab.dir.path().display().to_string().into_bytes().into())];
    assert_eq!(lab.run(named).await.text(), format!("found {program}\n"));
    lab.close().await;
}
