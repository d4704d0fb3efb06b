//! Standard input: pipes, files, nothing, more than anybody reads.

use crate::row::{Row, argv, sh};
use crate::stage::{LARGE, LARGE_FILE};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = short();
    rows.extend(of_the_caller());
    rows.extend(large());
    rows
}

fn short() -> Vec<Row> {
    let every: Vec<u8> = (0..=255).collect();
    vec![
        argv("a_line", ["cat"]).stdin("hello\n"),
        argv("a_line_without_its_end", ["cat"]).stdin("hello"),
        argv("nothing", ["cat"]),
        argv("nothing_counted", ["wc", "-c"]),
        argv("every_byte", ["od", "-An", "-tx1"]).stdin(every.repeat(9)),
        argv("zeros", ["md5sum"]).stdin(vec![0; 100_000]),
        argv("newlines_alone", ["wc", "-l"]).stdin("\n\n\n"),
        argv("sorted_after_its_end", ["sort", "-n"]).stdin("10\n9\n8\n"),
        argv("the_first_line_only", ["head", "-n", "1"]).stdin("a\nb\nc\n"),
        argv("the_first_bytes_only", ["head", "-c", "3"]).stdin("abcdef"),
        argv("the_last_bytes", ["tail", "-c", "3"]).stdin("abcdef"),
        argv("a_script_from_input", ["sh"]).stdin("echo one\necho $0 $#\nexit 9\n"),
        argv("a_script_from_input_with_arguments", ["sh", "-s", "a b", "c"])
            .stdin("echo \"$1\" $#\ncat\n")
            .status_only(),
        argv("bash_from_input", ["bash", "-s", "x"]).stdin("echo $1; read line; echo \"<$line>\"\nfor the read\n"),
        argv("both_streams_from_input", ["tee", "/dev/stderr"]).stdin("twice\n"),
        argv("not_read_at_all", ["true"]).stdin("x\n"),
        sh("read_line_by_line", "read a; read b; echo \"$b-$a\"; read c || echo none").stdin("1\n2\n"),
        sh("words_of_a_line", "read -r a b c; echo \"$a|$b|$c\"").stdin("one two three four\\\n"),
        sh("output_goes_on_after_its_end", "cat; echo after; cat; echo more").stdin("in\n"),
        sh("two_readers_in_turn", "head -c 2 >/dev/null; cat").stdin("abcd"),
        sh("closed_by_the_command", "exec <&-; echo still here"),
        sh("closed_before_it_is_read", "cat <&-").stdin("unread\n"),
        sh("from_another_file_there", "cat </etc/hostname").stdin("unread\n"),
        sh("a_missing_file_there", "cat </nothing-here"),
        sh("what_it_is", "test -p /dev/stdin && echo a pipe; test -t 0 || echo no terminal").stdin("x"),
        sh("a_background_reader_has_none", "cat & wait; echo done").stdin("unread\n"),
        sh("in_a_subshell", "(read a; echo \"$a\"); read b; echo \"$b\"").stdin("1\n2\n"),
    ]
}

/// The caller's standard input is something else than a pipe that is written to.
fn of_the_caller() -> Vec<Row> {
    vec![
        argv("a_file", ["cat"]).line("exec \"$@\" </tmp/small"),
        argv("an_empty_file", ["cat"]).line("exec \"$@\" </tmp/empty"),
        argv("the_rest_of_a_file", ["cat"]).line("exec </tmp/small; read line; exec \"$@\""),
        argv("the_null_device", ["cat"]).line("exec \"$@\" </dev/null"),
        argv("a_pipeline", ["tr", "a-z", "A-Z"]).line("echo hello | \"$@\" | rev"),
        argv("a_slow_writer", ["cat"]).line("(echo a; sleep 0.2; echo b) | \"$@\""),
        argv("a_writer_that_fails", ["cat"]).line("(echo a; exit 3) | \"$@\""),
        argv("a_here_document_of_the_caller", ["cat"]).line("exec \"$@\" <<EOF\n$((1 + 1))\nEOF"),
        argv("zeros_until_the_reader_has_enough", ["head", "-c", "1000000"]).line("exec \"$@\" </dev/zero"),
        argv("random_until_the_reader_has_none_of_it", ["true"]).line("exec \"$@\" </dev/urandom"),
        argv("yes_until_the_reader_has_enough", ["head", "-n", "2"]).line("yes | \"$@\"; echo ${PIPESTATUS[*]}"),
        argv("what_is_not_read_stays", ["true"]).line("{ \"$@\" </dev/null; cat; }").stdin("for the caller\n"),
        argv("no_input_asked_for", ["cat"]).option("-n").line_here("exec \"$@\" </dev/null").stdin("unread\n"),
        sh("closed_and_not_needed", "echo hi; exit 4").line("exec \"$@\" <&-"),
        // As with ssh, a closed descriptor of the caller is the null device there.
        argv("closed", ["cat"]).line("exec \"$@\" <&-").line_here("exec \"$@\" </dev/null"),
    ]
}

fn large() -> Vec<Row> {
    let file = format!("exec \"$@\" <{LARGE_FILE}");
    vec![
        argv("large_from_a_file", ["md5sum"]).line(&file),
        argv("large_from_a_pipe", ["md5sum"]).line(&format!("cat {LARGE_FILE} | \"$@\"")),
        argv("large_and_half_of_it_read", ["sh", "-c", "head -c 33554432 | md5sum; echo ok"]).line(&file),
        argv("large_and_none_of_it_read", ["sh", "-c", "exec <&-; echo ok; exit 6"]).line(&file),
        argv("large_there_and_back", ["cat"]).line(&format!("{file} | md5sum")),
        argv("large_to_a_reader_that_starts_late", ["sh", "-c", "sleep 0.5; md5sum"]).line(&file),
        argv("large_of_zeros", ["wc", "-c"]).line(&format!("head -c {LARGE} /dev/zero | \"$@\"")),
    ]
}
