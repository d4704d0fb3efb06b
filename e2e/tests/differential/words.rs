//! argv: every word arrives as it was, and no shell reads it again.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use crate::row::{Row, argv, by_shell, sh};

/// Prints each of its arguments, and where it ends.
const SHOW: [&str; 2] = ["printf", "<%s>\\n"];

/// A row that shows what became of these words.
fn kept<const N: usize>(name: &str, words: [&str; N]) -> Row {
    argv(name, SHOW.into_iter().chain(words))
}

fn bytes(words: &[&[u8]]) -> Vec<OsString> {
    words.iter().map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// As [`kept`], of words that are no text.
fn kept_bytes(name: &str, words: &[&[u8]]) -> Row {
    argv(name, SHOW.map(OsString::from).into_iter().chain(bytes(words)))
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = plain();
    rows.extend(odd_bytes());
    rows.extend(like_options());
    rows.extend(scripts());
    rows.extend(by_the_users_shell());
    rows.extend(long());
    rows
}

fn plain() -> Vec<Row> {
    vec![
        kept("one_word", ["a"]),
        kept("spaces_inside_a_word", ["a b", " c", "d "]),
        kept("many_spaces_in_a_row", ["a     b"]),
        kept("an_empty_word", [""]),
        kept("empty_words_between_others", ["", "a", "", "", "b", ""]),
        kept("a_space_alone", [" "]),
        kept("single_quotes", ["it's", "''", "'a b'"]),
        kept("double_quotes", ["say \"hi\"", "\"\"", "\""]),
        kept("quotes_that_do_not_match", ["'\"", "\"'", "`"]),
        kept("backslashes", ["\\", "\\\\", "a\\ b", "\\n", "\\'"]),
        kept("a_backslash_at_the_end", ["a\\"]),
        kept("a_star", ["*", "/etc/*", "**"]),
        kept("a_question_mark", ["?", "/etc/host?"]),
        kept("brackets", ["[a-z]", "[!a]*", "]"]),
        kept("braces", ["{a,b}", "{1..3}", "{}", "}"]),
        kept("a_tilde", ["~", "~root", "~/x"]),
        kept("a_variable", ["$HOME", "${HOME}", "$$", "$", "$1", "$@"]),
        kept("a_command_substitution", ["$(id)", "`id`", "$((1+1))"]),
        kept("operators_of_a_shell", ["a;b", "a|b", "a&&b", "a||b", "a&", ";", "|", "&"]),
        kept("redirections", [">x", "<x", ">>x", "2>&1", "<<<x", "<(id)"]),
        kept("a_comment", ["#", "#a", "a#b"]),
        kept("history", ["!", "!!", "a!b"]),
        kept("an_assignment", ["A=b", "PATH=/x", "="]),
        kept("percent_signs", ["%s", "%d", "%%", "%"]),
        kept("commas_and_colons", ["a,b", "a:b", ":", ","]),
        kept("an_at_sign_and_dots", ["a@b", "web01.company", ".", ".."]),
        kept("parentheses", ["(a)", "(", ")", "a(b"]),
        kept("words_of_a_shell", ["if", "then", "fi", "while", "[", "]]", "exec"]),
    ]
}

fn odd_bytes() -> Vec<Row> {
    let every: Vec<u8> = (1..=255).collect();
    vec![
        kept("a_newline", ["a\nb", "\n", "\n\n", "a\n"]),
        kept("a_tab_and_other_white_space", ["a\tb", "\r", "\u{b}", "\u{c}"]),
        kept("control_characters", ["\u{1}\u{2}\u{1b}[31m\u{7f}", "\u{8}"]),
        kept("letters_of_other_scripts", ["é", "日本語", "🦀", "\u{202e}abc", "a\u{301}"]),
        kept_bytes("bytes_that_are_not_utf8", &[b"\xff", b"\xfe\xff", b"\xc3", b"a\x80b", b"\xed\xa0\x80"]),
        kept_bytes("every_byte_but_nul", &[&every]),
        kept_bytes("every_byte_backwards", &[&every.iter().rev().copied().collect::<Vec<_>>()]),
        argv(
            "a_file_name_that_is_not_utf8",
            bytes(&[b"sh", b"-c", b"echo x >/tmp/\xff-odd; ls -b /tmp/\xff*; rm /tmp/\xff*"]),
        ),
        argv("a_script_that_is_not_utf8", bytes(&[b"sh", b"-c", b"printf '%s' \xff\xc3 | od -c"])),
        argv("a_program_that_is_not_utf8", bytes(&[b"/tmp/\xff"])).status_only(),
    ]
}

fn like_options() -> Vec<Row> {
    vec![
        kept("two_dashes_later", ["--", "a", "--"]),
        kept("options_of_malai", ["--json", "-c", "-n", "--help", "--version", "--user", "--timeout", "1s", "-v"]),
        kept("a_dash", ["-", "--", "-"]),
        argv("options_of_the_command", ["ls", "-d", "--", "/etc"]),
        argv("two_dashes_and_an_option_after", ["echo", "-n", "--", "-e", "x"]),
        argv("names_of_malais_commands", ["echo", "status", "cluster", "daemon", "exec"]),
        argv("help_of_the_command", ["env", "--help"]),
        argv("a_target_again", ["echo", "web01.company", "--", "hostname"]),
        sh("no_arguments", "echo $#"),
        argv("three_arguments", ["sh", "-c", "echo $#; echo \"$0\"", "zero", "a b", "", "c"]),
        argv("at_and_star", ["sh", "-c", "for a in \"$@\"; do echo \"[$a]\"; done; echo \"$*\"", "sh", "a b", "", "c"]),
    ]
}

fn scripts() -> Vec<Row> {
    vec![
        sh("nested_quotes", r#"echo "a 'b' \"c\" \$HOME" 'd "e"'"#),
        sh("a_pipeline", "printf 'b\\na\\n' | sort | tr a-z A-Z"),
        sh("a_glob_is_read_there", "cd /etc; echo host*"),
        sh("a_glob_without_a_match", "echo /nothing-here*"),
        sh("a_variable_is_read_there", "A='x  y'; echo $A; echo \"$A\"; echo ${#A}"),
        sh("arithmetic", "echo $((6 * 7)) $((1 << 20))"),
        sh("a_loop", "for i in 1 2 3; do echo $i; done; while false; do :; done; echo end"),
        sh("a_function", "f() { echo \"f $1\"; return 3; }; f x; echo $?"),
        sh("several_lines", "echo one\necho two\n\necho three # four\n"),
        sh("a_here_document", "cat <<EOF\n$((1 + 1)) $(echo two) 'three'\nEOF\n"),
        sh("a_quoted_here_document", "cat <<'EOF'\n$HOME `id` \\\\\nEOF\n"),
        sh("an_indented_here_document", "cat <<-EOF\n\t\tone\n\ttwo\n\tEOF\n"),
        sh("a_syntax_error", "echo a; if"),
        sh("a_case", "case \"$0\" in sh) echo yes;; *) echo no;; esac"),
        sh("evaluation", "a='echo \"$b\"'; b='x y'; eval \"$a\""),
        sh("an_empty_script", ""),
        argv("bash_arrays", ["bash", "-c", "a=('x y' '' z); echo ${#a[@]}; printf '<%s>' \"${a[@]}\"; echo {1..5}"]),
        argv("bash_process_substitution", ["bash", "-c", "diff <(echo a) <(echo b)"]),
        argv("bash_here_string", ["bash", "-c", "cat <<<\"$0 $1\"", "x", "y z"]),
        argv("perl", ["perl", "-e", "print join('|', @ARGV), \"\\n\"", "a b", "$x", "@y"]),
        argv("awk", ["awk", "BEGIN { print ARGC, ARGV[1]; exit 4 }", "{ print $1 }"]),
        argv("sed", ["sed", "-e", "s/\\(a\\)b/\\1 $& /", "-e", "y/c/\\n/"]).stdin("abc\n"),
        argv("xargs", ["xargs", "-n", "1", "printf", "<%s>"]).stdin("a 'b c' \"d\"\n"),
        argv("find", ["find", "/etc/hostname", "-name", "h*", "-printf", "%f\\n"]),
    ]
}

fn by_the_users_shell() -> Vec<Row> {
    vec![
        by_shell("a_string_for_the_shell", "echo $HOME; echo *.none; echo $((2+3))"),
        by_shell("the_shell_is_the_users_own", "echo ${BASH_VERSION%%.*} \"$0\" $#"),
        by_shell("quotes_in_a_string_for_the_shell", "echo 'a  b' \"c\"'d' \\\\"),
        by_shell("a_pipeline_for_the_shell", "printf 'a\\nb\\n' | wc -l; exit ${PIPESTATUS[0]}"),
        by_shell("a_here_document_for_the_shell", "cat <<EOF\n$LOGNAME\nEOF"),
        by_shell("lines_for_the_shell", "echo 1\necho 2\nexit 5"),
        by_shell("an_empty_string_for_the_shell", ""),
        by_shell("a_string_like_an_option", "-x"),
        by_shell("a_syntax_error_of_the_shell", "echo 'a"),
        by_shell("a_command_that_the_shell_does_not_find", "no-such-command a"),
        by_shell("input_for_the_shells_command", "cat; echo after").stdin("before\n"),
        by_shell("another_users_shell", "echo \"$0\" $HOME; pwd").by_user(),
    ]
}

fn long() -> Vec<Row> {
    let large = "x'y \"z$".repeat(100 * 1024 / 7);
    let many: Vec<String> = (0..1000).map(|n| format!("argument {n}")).collect();
    let sum = "echo $#; printf '%s\\0' \"$@\" | md5sum";
    let with =
        |words: &[String]| ["sh", "-c", sum, "sh"].into_iter().map(str::to_owned).chain(words.to_vec()).collect();
    let rows: [(&str, Vec<String>); 4] = [
        ("an_argument_of_100_kb", with(std::slice::from_ref(&large))),
        ("a_thousand_arguments", with(&many)),
        ("a_thousand_empty_arguments", with(&vec![String::new(); 1000])),
        ("900_kb_of_arguments", with(&vec![large.clone(); 9])),
    ];
    let mut rows: Vec<Row> = rows.into_iter().map(|(name, words)| argv(name, words)).collect();
    rows.push(argv("an_argument_of_100_kb_comes_back", ["printf", "%s", &large]));
    rows.push(sh("a_script_of_60_kb", &"echo one line of many >/dev/null\n".repeat(1800)));
    rows
}
