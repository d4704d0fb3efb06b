//! What a command finds around it: environment, directory, user, limits, descriptors, groups, signals.

use crate::row::{Row, argv, sh};

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = environment();
    rows.extend(directory());
    rows.extend(user());
    rows.extend(process());
    rows
}

fn environment() -> Vec<Row> {
    vec![
        // Of the mark of its session only the name is the same.
        sh("the_whole_environment", "env | sed 's/^\\(MALAI_SESSION\\)=.*/\\1/' | sort"),
        argv("home", ["printenv", "HOME"]),
        argv("path", ["printenv", "PATH"]),
        argv("user_logname_and_shell", ["printenv", "USER", "LOGNAME", "SHELL"]),
        argv("no_variable_of_the_daemon", ["printenv", "SECRET", "MALAI_HOME", "LC_ALL"]),
        argv("no_terminal_is_named", ["printenv", "TERM"]),
        argv("an_addition", ["printenv", "LC_TIME"]).env("LC_TIME=C"),
        argv("an_addition_with_odd_characters", ["printenv", "LC_X"]).env("LC_X=a b$c'd\"e=f\\g\nh"),
        argv("an_empty_addition", ["sh", "-c", "echo ${LC_X+set} \"<$LC_X>\""]).env("LC_X="),
        sh("several_additions", "printenv LANG LC_A LC_B").env("LANG=C.UTF-8").env("LC_A=1").env("LC_B=2"),
        argv("the_environment_of_another_user", ["sh", "-c", "env | grep -v ^MALAI_SESSION= | sort"]).by_user(),
        argv("env_dash_i", ["env", "-i", "A=b", "/usr/bin/env"]),
        argv("a_program_found_by_path", ["sh", "-c", "command -v ls"]),
        argv("a_login_shells_profile_is_not_read", ["sh", "-c", "set | grep -c PS1"]),
    ]
}

fn directory() -> Vec<Row> {
    vec![
        argv("home_is_the_directory", ["pwd"]),
        argv("home_by_the_kernel", ["readlink", "/proc/self/cwd"]),
        argv("another_directory", ["pwd"]).cwd("/etc"),
        argv("a_relative_path", ["ls", "-d", "hostname"]).cwd("/etc"),
        argv("a_relative_program", ["./true"]).cwd("/bin"),
        argv("a_directory_that_is_a_link", ["sh", "-c", "pwd -P"]).cwd("/bin"),
        argv("the_directory_of_another_user", ["pwd"]).by_user(),
        sh("a_file_is_made_there", "cd /tmp; echo x >made-here; cat made-here; rm made-here; ls made-here"),
        sh("umask", "umask; umask -S"),
        sh(
            "the_mode_of_a_new_file",
            "cd /tmp; rm -f mode; >mode; stat -c %a mode; rm mode; mkdir d; stat -c %a d; rmdir d",
        ),
        argv("the_hostname", ["hostname"]),
    ]
}

fn user() -> Vec<Row> {
    vec![
        argv("id", ["id"]),
        argv("whoami", ["whoami"]),
        argv("groups", ["groups"]),
        argv("id_of_another_user", ["id"]).by_user(),
        argv("what_another_user_may_not_read", ["cat", "/etc/shadow"]).by_user(),
        argv("what_another_user_may_not_write", ["sh", "-c", "echo x >/etc/malai-was-here"]).by_user(),
        argv("capabilities", ["grep", "-E", "Cap|NoNewPrivs|Seccomp:|^Groups|^Uid|^Gid", "/proc/self/status"]),
        argv(
            "capabilities_of_another_user",
            ["grep", "-E", "Cap|NoNewPrivs|Seccomp:|^Groups|^Uid|^Gid", "/proc/self/status"],
        )
        .by_user(),
    ]
}

fn process() -> Vec<Row> {
    let leader = "read pid comm state ppid group session rest </proc/$$/stat; \
        [ $pid = $$ ] && [ $group = $$ ] && [ $session = $$ ] && echo leads both";
    vec![
        sh("no_terminal", "for n in 0 1 2; do test -t $n && echo terminal $n; done; echo $?"),
        argv("tty", ["tty"]),
        sh("no_controlling_terminal", "echo x >/dev/tty"),
        sh("it_leads_its_group_and_session", leader),
        sh("descriptors", "cd /proc/self/fd; echo *"),
        sh("descriptors_are_pipes", "for n in 0 1 2; do readlink /proc/$$/fd/$n | sed 's/[0-9]*//g'; done"),
        argv("signals", ["grep", "-E", "^Sig(Pnd|Blk|Ign|Cgt)", "/proc/self/status"]),
        argv("limits", ["bash", "-c", "ulimit -a"]),
        argv("hard_limits", ["bash", "-c", "ulimit -H -a"]),
        argv("limits_of_another_user", ["bash", "-c", "ulimit -a"]).by_user(),
        argv("nice", ["nice"]),
        argv("memory_killer", ["cat", "/proc/self/oom_score_adj"]),
        argv("scheduling", ["grep", "-E", "^(policy|prio)", "/proc/self/sched"]),
        argv("personality", ["cat", "/proc/self/personality"]),
        argv(
            "namespaces",
            ["readlink", "/proc/self/ns/net", "/proc/self/ns/mnt", "/proc/self/ns/pid", "/proc/self/ns/uts"],
        ),
        argv("processors", ["nproc"]),
        argv("core_dumps", ["cat", "/proc/self/coredump_filter"]),
        argv("timer_slack", ["cat", "/proc/self/timerslack_ns"]),
        argv("root_directory", ["readlink", "/proc/self/root"]),
        sh("job_control", "set -m; sleep 0.1 & wait %1; echo $?"),
        argv("argv_by_the_kernel", ["sh", "-c", "tr '\\0' '|' </proc/$$/cmdline", "zero", "a b", ""]),
    ]
}
