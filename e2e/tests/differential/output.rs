//! Standard output and error: bytes, amounts, readers that leave, writers that stay.

use crate::row::{Row, argv, sh};
use crate::stage::{LARGE, LARGE_FILE};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = short();
    rows.extend(apart());
    rows.extend(cut());
    rows.extend(left_open());
    rows.extend(large());
    rows
}

fn short() -> Vec<Row> {
    vec![
        argv("nothing", ["true"]),
        argv("a_line", ["echo", "hello"]),
        argv("without_an_end_of_line", ["printf", "hello"]),
        argv("a_newline_alone", ["echo"]),
        argv("a_nul_byte", ["printf", "a\\0b\\0"]),
        argv("every_byte", ["perl", "-e", "binmode STDOUT; print map { chr } 0..255"]),
        argv("bytes_that_are_not_utf8", ["printf", "\\377\\376\\303"]),
        argv("carriage_returns", ["printf", "a\\r\\nb\\r"]),
        argv("escape_sequences", ["printf", "\\033[31mred\\033[0m\\007\\033]0;title\\007"]),
        argv("a_long_line", ["head", "-c", "300000", "/dev/zero"]),
        argv("many_lines", ["seq", "1", "50000"]),
        argv("one_byte_at_a_time", ["perl", "-e", "$| = 1; print 'x' for 1..2000"]),
        argv("exactly_one_frame", ["head", "-c", "65536", "/dev/zero"]),
        argv("one_frame_and_a_byte", ["head", "-c", "65537", "/dev/zero"]),
        argv("a_megabyte", ["head", "-c", "1048576", LARGE_FILE]),
        sh("in_two_parts_with_a_pause", "echo a; sleep 0.3; echo b"),
        sh("what_it_is", "test -p /dev/stdout && echo a pipe; test -t 1 || echo no terminal"),
    ]
}

fn apart() -> Vec<Row> {
    let turns = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done";
    vec![
        sh("errors_only", "echo oops >&2"),
        sh("both_streams", "echo out; echo err >&2; exit 3"),
        sh("both_streams_by_turns", turns),
        sh("both_streams_at_once", "seq 1 20000 & seq 1 20000 >&2; wait"),
        sh("errors_into_output_there", &format!("({turns}) 2>&1")),
        sh("output_into_errors_there", "echo swapped >&2; echo and back 2>&1"),
        sh("streams_exchanged", "{ echo out; echo err >&2; } 3>&1 1>&2 2>&3"),
        sh("errors_are_large", "head -c 3000000 /dev/zero >&2; echo done"),
        sh("errors_are_binary", "printf '\\377\\000' >&2"),
        argv("errors_of_a_program", ["ls", "/nothing-here"]),
        argv("output_and_errors_of_a_program", ["ls", "-d", "/etc", "/nothing-here", "/usr"]),
        argv("what_it_is_for_errors", ["sh", "-c", "test -p /dev/stderr && echo a pipe; test -t 2 || echo none >&2"]),
        sh("output_to_the_null_device_of_the_caller", "echo out; echo err >&2").line("exec \"$@\" >/dev/null"),
        sh("errors_to_the_null_device_of_the_caller", "echo out; echo err >&2").line("exec \"$@\" 2>/dev/null"),
        sh("output_to_a_file_of_the_caller", "echo out; echo err >&2")
            .line("\"$@\" >/tmp/of-caller; echo $?; cat /tmp/of-caller"),
        sh("output_appended_to_a_file_of_the_caller", "echo out")
            .line("echo first >/tmp/appended; \"$@\" >>/tmp/appended; cat /tmp/appended"),
        sh("in_a_substitution_of_the_caller", "echo a; echo; echo").line("x=$(\"$@\"); echo \"<$x>\""),
        sh("in_a_condition_of_the_caller", "exit 1").line("if \"$@\"; then echo yes; else echo no $?; fi"),
    ]
}

/// Readers that have enough, streams that are closed.
fn cut() -> Vec<Row> {
    let statuses = |reader: &str| format!("\"$@\" | {reader}; echo ${{PIPESTATUS[*]}}");
    vec![
        argv("yes_and_head", ["yes"]).line(&statuses("head -n 3")),
        argv("endless_and_a_reader_of_bytes", ["cat", "/dev/zero"]).line(&statuses("head -c 100000 | md5sum")),
        argv("endless_and_no_reader", ["yes"]).line(&statuses("true")),
        argv("much_and_one_byte_read", ["seq", "1", "1000000"]).line(&statuses("head -c 1")),
        sh("little_by_little_and_no_reader", "while sleep 0.05; do echo little; done").line(&statuses("true")),
        sh("a_writer_that_ignores_the_cut", "trap '' PIPE; while echo x; do :; done 2>/dev/null; exit 8")
            .line(&statuses("head -n 1")),
        sh("a_writer_that_traps_the_cut", "trap 'exit 7' PIPE; while :; do echo x; done").line(&statuses("head -n 1")),
        sh("a_pipeline_there_is_cut", "yes | cat | head -n 2"),
        sh("a_cut_there_is_told", "set -e; bash -c 'yes | head -n 1; echo ${PIPESTATUS[*]}'"),
        sh("errors_go_on_after_output_is_cut", "yes; echo status $? >&2; exit 2")
            .line("\"$@\" 2>/tmp/after-the-cut | head -n 1; echo ${PIPESTATUS[*]}; cat /tmp/after-the-cut"),
        sh("output_closed_by_the_command", "exec >&-; echo lost; echo status $? >&2"),
        sh("errors_closed_by_the_command", "exec 2>&-; echo out; ls /nothing-here; echo $?"),
        sh("both_closed_and_still_at_work", "exec >&- 2>&-; sleep 0.3; exit 12"),
        argv("echo_to_closed_output_there", ["sh", "-c", "/bin/echo x >&-"]),
        argv("a_full_device_there", ["sh", "-c", "echo x >/dev/full"]),
        sh("closed_output_of_the_caller_not_needed", "echo err >&2; exit 3").line("exec \"$@\" >&-"),
        sh("closed_errors_of_the_caller_not_needed", "echo out; exit 3").line("exec \"$@\" 2>&-"),
        // As with ssh, a closed descriptor of the caller is the null device there.
        sh("closed_output_of_the_caller", "echo out; echo $? >&2")
            .line("exec \"$@\" >&-")
            .line_here("exec \"$@\" >/dev/null"),
    ]
}

/// Processes that outlive the command, or hold its output.
fn left_open() -> Vec<Row> {
    vec![
        sh("a_background_child_with_streams_of_its_own", "sleep 2 >/dev/null 2>&1 </dev/null & echo started"),
        sh("a_background_child_that_is_waited_for", "(sleep 0.2; echo late) & wait; echo end"),
        sh("a_background_child_that_writes_soon", "(sleep 0.02; echo late) & echo first"),
        sh("a_background_child_that_writes_on", "(sleep 1; echo late; echo err >&2) & echo first; exit 3")
            .option("--wait-output"),
        sh("a_daemon_that_detaches", "setsid sleep 2 >/dev/null 2>&1 </dev/null & echo started; exit 0"),
        sh("nohup", "nohup echo hi; nohup sleep 2 >/dev/null 2>&1 & echo $?"),
        sh(
            "a_coprocess",
            "mkfifo /tmp/co-$$; (cat /tmp/co-$$ | tr a-z A-Z) & echo through >/tmp/co-$$; wait; rm /tmp/co-$$",
        ),
        sh("children_of_children", "sh -c 'sh -c \"echo deep; exit 4\"; echo $?'; echo $?"),
        sh(
            "many_children_at_once",
            "for i in 1 2 3 4 5 6 7 8; do (echo $i >/dev/null; exit $i) & done; wait; echo all",
        ),
        sh("an_orphan_that_writes_before_its_parent_ends", "(sh -c 'echo orphan' &); sleep 0.2; echo parent"),
    ]
}

fn large() -> Vec<Row> {
    let sum = "\"$@\" | md5sum; echo ${PIPESTATUS[*]}";
    vec![
        argv("large", ["cat", LARGE_FILE]).line(sum),
        argv("large_zeros", ["head", "-c", &LARGE.to_string(), "/dev/zero"]).line(sum),
        argv("large_errors", ["sh", "-c", &format!("cat {LARGE_FILE} >&2")]).line("\"$@\" 2>&1 >/dev/null | md5sum"),
        argv("large_on_both", ["sh", "-c", &format!("cat {LARGE_FILE} & cat {LARGE_FILE} >&2; wait")])
            .line("{ \"$@\" 2>&3 | md5sum >&4; } 3>&1 4>/tmp/sum | md5sum; cat /tmp/sum"),
        argv("large_to_a_reader_that_pauses", ["cat", LARGE_FILE])
            .line("\"$@\" | { head -c 100000 | md5sum; sleep 1; md5sum; }"),
        argv("large_in_small_writes", ["dd", &format!("if={LARGE_FILE}"), "bs=1000", "count=20000", "status=none"])
            .line(sum),
    ]
}
