//! How commands end: every exit code, every signal, and what cannot be started.

use anyhow::{Result, ensure};

use crate::row::{Ended, Row, argv, sh};
use crate::stage::Stage;

/// The highest signal of Linux.
const LAST_SIGNAL: i32 = 64;
/// It stops a process, which then does not end.
const STOP: i32 = 19;

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = codes();
    rows.extend(signals());
    rows.extend(not_started());
    rows
}

fn codes() -> Vec<Row> {
    vec![
        argv("true", ["true"]),
        argv("false", ["false"]),
        sh("a_code_over_255", "exit 256"),
        sh("a_code_over_256", "exit 300"),
        argv("a_negative_code", ["bash", "-c", "exit -1"]),
        argv("a_codes_lowest_eight_bits", ["perl", "-e", "exit 1000"]),
        sh("the_last_commands_code", "false; true; (exit 17)"),
        sh("set_e", "set -e; echo before; false; echo after"),
        sh("set_u", "set -u; echo before; echo $NOT_SET; echo after"),
        sh("a_trap_at_exit", "trap 'echo leaving; exit 44' EXIT; exit 3"),
        sh("exec_replaces_the_shell", "exec sh -c 'exit 21'"),
        argv("timeout", ["timeout", "0.1", "sleep", "5"]),
        argv("timeout_by_kill", ["timeout", "-s", "KILL", "0.1", "sleep", "5"]),
        argv("a_program_that_finds_nothing", ["grep", "nothing-like-it", "/etc/hostname"]),
        argv("a_program_with_a_wrong_option", ["ls", "--no-such-option"]),
        argv("cmp", ["cmp", "/etc/hostname", "/etc/passwd"]),
    ]
}

fn signals() -> Vec<Row> {
    vec![
        sh("killed_by_itself", "echo before; kill -KILL $$; echo after"),
        sh("ended_by_itself", "echo before; kill -TERM $$; echo after"),
        sh("aborted", "echo before; kill -ABRT $$"),
        sh("a_signal_that_is_trapped", "trap 'echo got it; exit 3' TERM; kill -TERM $$; echo after"),
        sh("a_signal_that_is_ignored", "trap '' TERM HUP INT; kill -TERM $$; kill -HUP $$; kill -INT $$; echo alive"),
        sh("a_signal_without_effect", "kill -CONT $$; kill -CHLD $$; kill -WINCH $$; kill -URG $$; echo alive"),
        sh("a_child_dies_by_a_signal", "sh -c 'kill -KILL $$'; echo $?"),
        sh("its_whole_group_dies", "sleep 5 & kill -TERM 0; echo after"),
        sh("a_stop_is_ended_by_a_child", "(sleep 0.2; kill -CONT $$) >/dev/null 2>&1 & kill -STOP $$; echo resumed"),
        sh("killed_with_children_left", "sleep 1 >/dev/null 2>&1 & kill -KILL $$"),
        sh("an_alarm", "exec perl -e 'alarm 1; sleep 5'"),
        argv("a_segmentation_fault", ["perl", "-e", "kill SEGV => $$; sleep 5"]),
        argv("a_code_like_a_signals", ["sh", "-c", "exit 137"]),
    ]
}

/// The words are malai's own, so that only the status is compared.
fn not_started() -> Vec<Row> {
    let rows = vec![
        argv("no_such_program", ["no-such-program"]),
        argv("no_such_path", ["/no/such/program"]),
        argv("a_directory", ["/etc"]),
        argv("a_file_that_is_not_executable", ["/etc/passwd"]),
        argv("a_file_in_a_directory_that_may_not_be_entered", ["/root/x"]).by_user(),
        argv("a_relative_path_to_nothing", ["./no-such-program"]),
        argv("a_name_with_spaces", ["no such program"]),
        argv("a_program_of_another_user_that_is_not_there", ["no-such-program"]).by_user(),
    ];
    let mut rows: Vec<Row> = rows.into_iter().map(Row::status_only).collect();
    rows.push(sh("a_shell_does_not_find_it", "no-such-program; echo $?; /etc; echo $?; /etc/passwd; echo $?"));
    rows
}

/// `exit n`, for every n.
pub(crate) fn every_exit_code(stage: &Stage) -> Result<()> {
    let script = "for n in $(seq 0 255); do \"$@\" \"exit $n\"; echo $?; done";
    argv("every_exit_code", ["sh", "-c"]).line(script).compare(stage)?;
    let all: String = (0..256).map(|code| format!("{code}\n")).collect();
    let there = stage.laptop().run(argv("", ["sh", "-c"]).line(script).there())?;
    ensure!(there.stdout == all.as_bytes(), "the codes through malai: {}", there.text());
    Ok(())
}

/// `kill -n $$`, for every n, and what a shell shows of it.
pub(crate) fn every_signal(stage: &Stage) -> Result<()> {
    let mut wrong = Vec::new();
    for number in (1..=LAST_SIGNAL).filter(|number| *number != STOP) {
        // By a program that leaves signals to the kernel, other than a shell.
        let command = ["perl", "-e", "kill shift, $$; select undef, undef, undef, 0.02", &number.to_string()];
        let row = argv("", command);
        let here = Ended::of(stage.web01().run(row.here())?).status;
        let there = Ended::of(stage.laptop().run(row.there())?).status;
        if here != there {
            wrong.push(format!("{number}: {here} on the machine itself, {there} through malai"));
        }
    }
    ensure!(wrong.is_empty(), "signals told otherwise: {}", wrong.join("; "));
    Ok(())
}
