//! The variables that no machine accepts, by family. docs/environment.md shows these tables; a test compares them.
//!
//! A variable is here when its value can make a program that is common on servers run another program, load code
//! or settings that name programs, write a file, connect to another server, or trust other keys or certificates. A
//! variable whose value is only passed on or printed is not, such as `GIT_AUTHOR_NAME` or `AWS_REGION`.

/// Names variables that are refused for one reason.
#[derive(Debug)]
pub struct Refused {
    /// Names in capitals; `*` at the end or at the beginning of one stands for any text.
    pub names: &'static [&'static str],
    /// What they do, as a sentence without its full stop.
    pub why: &'static str,
    /// Where that is described.
    pub source: &'static str,
}

/// Names variables of programs that belong together.
#[derive(Debug)]
pub struct Family {
    /// Whose variables they are, for a heading.
    pub title: &'static str,
    /// The tables' rows.
    pub refused: &'static [Refused],
}

/// Makes a row of a family's table.
const fn row(names: &'static [&'static str], why: &'static str, source: &'static str) -> Refused {
    Refused { names, why, source }
}

/// Holds what no machine accepts, whatever its config says: every family, in the order of docs/environment.md.
pub const REFUSED_VARIABLES: &[Family] = &[
    Family { title: "malai itself and the account", refused: ACCOUNT },
    Family { title: "Loaders and the C library", refused: LOADERS },
    Family { title: "Shells", refused: SHELLS },
    Family { title: "Terminals", refused: TERMINALS },
    Family { title: "Temporary files and XDG", refused: PLACES },
    Family { title: "Proxies, host names and certificates", refused: NETWORK },
    Family { title: "git", refused: GIT },
    Family { title: "Other version control", refused: VERSION_CONTROL },
    Family { title: "ssh", refused: SSH },
    Family { title: "rsync, archives and transfers", refused: TRANSFER },
    Family { title: "Pagers and searching", refused: PAGERS },
    Family { title: "Editors", refused: EDITORS },
    Family { title: "man and documents", refused: DOCUMENTS },
    Family { title: "gpg and secrets", refused: SECRETS },
    Family { title: "systemd, D-Bus and other users", refused: SYSTEM },
    Family { title: "Packages", refused: PACKAGES },
    Family { title: "make, compilers and debuggers", refused: BUILDING },
    Family { title: "Rust", refused: RUST },
    Family { title: "Go", refused: GO },
    Family { title: "Perl", refused: PERL },
    Family { title: "Python", refused: PYTHON },
    Family { title: "Ruby", refused: RUBY },
    Family { title: "Node and JavaScript", refused: NODE },
    Family { title: "Java", refused: JAVA },
    Family { title: "Other languages", refused: LANGUAGES },
    Family { title: "Containers and clouds", refused: CLOUDS },
    Family { title: "Databases", refused: DATABASES },
    Family { title: "Desktops", refused: DESKTOPS },
    // Last: where a name is in a family too, that one says more.
    Family { title: "Names by their ending", refused: ENDINGS },
];

/// Holds what malai sets from the user's account, or for itself.
const ACCOUNT: &[Refused] = &[
    row(&["PATH"], "it decides which program a name means", "environ(7)"),
    row(&["HOME"], "programs read their settings from there", "environ(7)"),
    row(&["USER", "LOGNAME", "USERNAME"], "malai sets the account's own", "environ(7)"),
    row(&["SHELL"], "programs run it as the shell", "environ(7)"),
    row(&["PWD", "OLDPWD"], "malai sets the directory, and shells believe these", "environ(7)"),
    row(&["MALAI_*"], "malai tells by them which session a process belongs to", "docs/protocol.md"),
];

/// Holds endings: by convention such a name stands for a program, a library or a server, in every program that reads
/// it.
const ENDINGS: &[Refused] = &[
    row(&["*EDITOR"], "it names a program that is run to edit a text", "environ(7), git(1), sudo(8), crontab(1)"),
    row(&["*PAGER"], "it names a program that is run to show a text", "environ(7), git(1), man(1), psql(1)"),
    row(&["*BROWSER"], "it names a program that is run to show a page", "xdg-open(1), gh(1)"),
    row(&["*ASKPASS"], "it names a program that is run to ask for a password", "ssh(1), git(1), sudo(8)"),
    row(&["*_COMMAND", "*_CMD"], "it names a command that is run", "git(1), bash(1), restic(1), fzf(1)"),
    row(&["*_RSH", "*_SSH"], "it names a program that is run to reach a server", "rsync(1), cvs(1), borg(1)"),
    row(&["*_PRELOAD"], "it names libraries that are loaded", "ld.so(8)"),
    row(&["*_LIBRARY_PATH", "*_PLUGIN_PATH"], "libraries are loaded from there", "ld.so(8), dyld(1)"),
    row(&["*_PROXY"], "it sends requests through another server", "curl(1), wget(1), Python's urllib.request"),
    row(&["*_CA_BUNDLE", "*_CA_FILE", "*_CACERT"], "it names whom to trust", "curl(1), Python's requests, aws-cli"),
];

const LOADERS: &[Refused] = &[
    row(&["LD_*"], "the dynamic loader loads the libraries that it names, or prints a trace", "ld.so(8)"),
    row(&["DYLD_*"], "the dynamic loader of macOS loads the libraries that it names", "dyld(1)"),
    row(&["GCONV_PATH"], "the C library loads conversions of characters, which are code, from there", "ld.so(8)"),
    row(&["GETCONF_DIR"], "getconf runs programs from there", "ld.so(8)"),
    row(
        &["GLIBC_TUNABLES"],
        "it changes how the C library allocates memory, and which of its routines run",
        "ld.so(8)",
    ),
    row(&["MALLOC_*"], "it changes how memory is allocated, or names a file that is written", "ld.so(8), mallopt(3)"),
    row(&["LOCPATH"], "locales are loaded from there", "ld.so(8), locale(7)"),
    row(&["NLSPATH"], "format strings of programs are read from there", "ld.so(8), catopen(3)"),
    row(
        &["LANGUAGE", "TEXTDOMAINDIR"],
        "format strings of programs are read from there; `LANG` chooses the language too",
        "GNU gettext, The LANGUAGE variable; gettext(1)",
    ),
    row(&["TZDIR"], "time zones are read from there", "ld.so(8), tzset(3)"),
    row(&["LIBC_FATAL_STDERR_"], "it changes where errors go", "glibc, sysdeps/posix/libc_fatal.c"),
    row(&["ASAN_*", "LSAN_*", "MSAN_*", "TSAN_*", "UBSAN_*"], "sanitizers write files and run a program", "clang"),
];

const SHELLS: &[Refused] = &[
    row(&["ENV", "KSH_ENV"], "shells run the file that it names", "sh(1), ksh(1)"),
    row(
        &["BASH_*", "BASHOPTS", "SHELLOPTS"],
        "bash runs the file or the function in it, or parses differently",
        "bash(1)",
    ),
    row(&["IFS"], "it changes how shells split words", "sh(1)"),
    row(&["PS0", "PS1", "PS2", "PS3", "PS4"], "shells run the commands in it", "bash(1)"),
    row(&["MAILPATH"], "bash expands the messages in it", "bash(1)"),
    row(&["CDPATH", "GLOBIGNORE", "EXECIGNORE"], "it changes which directories and files shells find", "bash(1)"),
    row(&["HISTFILE"], "shells write to the file that it names", "bash(1)"),
    row(&["INPUTRC"], "its key bindings type commands", "readline(3)"),
    row(&["FPATH", "ZDOTDIR", "MODULE_PATH"], "functions and start files are loaded from there", "zshparam(1), ksh(1)"),
    row(&["NULLCMD", "READNULLCMD"], "zsh runs it where a command has no name", "zshparam(1)"),
    row(&["FISH_*", "YASH_LOADPATH"], "functions are loaded from there", "fish(1), yash(1)"),
    row(&["FCEDIT"], "the shell runs it to edit a command", "sh(1)"),
];

const TERMINALS: &[Refused] = &[
    row(&["TERMINFO*", "TERMCAP", "TERMPATH"], "descriptions of terminals are read from there", "terminfo(5)"),
    row(&["TMUX*", "SCREENDIR"], "programs talk to another tmux or screen", "tmux(1), screen(1)"),
    row(&["SCREENRC", "SYSSCREENRC"], "screen runs the commands in it", "screen(1)"),
];

const PLACES: &[Refused] = &[
    row(&["XDG_*"], "programs read their settings, and load code, from there", "XDG Base Directory Specification"),
    row(
        &["TMPDIR", "TMP", "TEMP", "TEMPDIR"],
        "programs write there, and read back what they find",
        "ld.so(8), environ(7)",
    ),
];

const NETWORK: &[Refused] = &[
    // All that ends in `_PROXY` is among the endings.
    row(&["NO_PROXY", "SOCKS_*", "SOCKS5_*"], "it changes which server requests go to", "curl(1), ssh(1)"),
    row(&["PROXYCHAINS_*", "TORSOCKS_*", "TSOCKS_*"], "it sends connections through another server", "torsocks(8)"),
    row(&["SSL_CERT_*"], "it names whom to trust", "SSL_CTX_set_default_verify_paths(3)"),
    row(&["SSLKEYLOGFILE"], "keys of connections are written to the file that it names", "curl(1)"),
    row(&["OPENSSL_*"], "it names settings, engines and modules that are loaded", "openssl-env(7)"),
    row(&["REQUESTS_CA_BUNDLE"], "it names whom to trust", "Python's requests"),
    row(&["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"], "it names whom to trust", "gRPC, Environment Variables"),
    row(
        &["GNUTLS_*", "P11_KIT_*", "PKCS11_*", "SOFTHSM2_CONF"],
        "it changes whom to trust, or loads a module",
        "GnuTLS",
    ),
    row(&["SASL_PATH", "SASL_CONF_PATH"], "plugins are loaded from there", "Cyrus SASL"),
    row(&["KRB5*", "GSS_MECH_CONFIG"], "it names servers, keys and plugins", "kerberos(7)"),
    row(&["LDAP*"], "it names the server and whom to trust", "ldap.conf(5)"),
    row(
        &["HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "RESOLV_*", "NIS_PATH"],
        "it changes which address a host name means",
        "ld.so(8), hostname(7), resolv.conf(5), host.conf(5)",
    ),
    row(&["CURL_HOME", "CURL_SSL_BACKEND"], "curl reads its settings from there", "curl(1)"),
    row(&["WGETRC", "SYSTEM_WGETRC"], "wget takes a program to run, and whom to trust, from it", "wget(1)"),
    row(&["NETRC"], "passwords for servers are read from it", "Python's requests, ftp(1)"),
];

const GIT: &[Refused] = &[
    row(&["GIT_SSH_COMMAND", "GIT_SSH", "GIT_SSH_VARIANT"], "git runs it to reach a server", "git(1)"),
    row(&["GIT_PROXY_COMMAND", "GIT_PROXY_*"], "git runs it, or trusts what it names", "git-config(1)"),
    row(
        &["GIT_CONFIG", "GIT_CONFIG_*"],
        "it sets any setting of git, and many name programs to run",
        "git(1), git-config(1)",
    ),
    row(&["GIT_EXTERNAL_DIFF"], "git runs it to show a difference", "git(1)"),
    row(&["GIT_EDITOR", "GIT_SEQUENCE_EDITOR"], "git runs it to edit a text", "git-var(1), git-rebase(1)"),
    row(&["GIT_PAGER"], "git runs it to show a text", "git(1)"),
    row(&["GIT_ASKPASS"], "git runs it to ask for a password", "git(1), gitcredentials(7)"),
    row(&["GIT_TEXTDOMAINDIR"], "git reads its format strings from there", "git, gettext.c"),
    row(&["GIT_EXEC_PATH"], "git runs its own programs from there", "git(1)"),
    row(&["GIT_TEMPLATE_DIR"], "git copies hooks from there, and runs them later", "git-init(1)"),
    row(
        &["GIT_DIR", "GIT_COMMON_DIR", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"],
        "git takes settings and hooks from another repository",
        "git(1)",
    ),
    row(&["GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_ATTR_*"], "git reads and writes other files", "git(1)"),
    row(
        &[
            "GIT_OBJECT_DIRECTORY",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_NAMESPACE",
            "GIT_REPLACE_REF_BASE",
            "GIT_GRAFT_FILE",
            "GIT_SHALLOW_FILE",
            "GIT_QUARANTINE_PATH",
        ],
        "git takes content from another place",
        "git(1), gitnamespaces(7)",
    ),
    row(
        &["GIT_ALLOW_PROTOCOL", "GIT_PROTOCOL", "GIT_PROTOCOL_*"],
        "it allows URLs that name a program to run",
        "git(1), git-remote-ext(1)",
    ),
    row(&["GIT_SSL_*", "GIT_HTTP_*"], "it changes whom git trusts, and how it asks", "git-config(1)"),
    row(
        &["GIT_TRACE*", "GIT_TR2_*", "GIT_CURL_VERBOSE", "GIT_REDIRECT_*"],
        "git writes to the file that it names, secrets too",
        "git(1), Trace2 API",
    ),
    row(&["GIT_TEST_*", "GIT_CLONE_PROTECTION_ACTIVE"], "it switches off a protection of git", "git, t/README"),
    row(&["GIT_MERGETOOL*", "GIT_DIFFTOOL*", "GIT_DIFF_TOOL", "GIT_MERGE_TOOL"], "git runs it", "git-difftool(1)"),
    row(&["GIT_LFS_*"], "git-lfs takes settings from it", "git-lfs-config(5)"),
    row(
        &["GIT_PROJECT_ROOT", "GITWEB_*", "GITPERLLIB"],
        "other repositories, settings or code are used",
        "git-http-backend(1), gitweb(1)",
    ),
    row(
        &["GH_HOST", "GH_CONFIG_DIR", "GH_PATH", "GLAB_CONFIG_DIR"],
        "it names the server, settings and aliases",
        "gh(1)",
    ),
];

const VERSION_CONTROL: &[Refused] = &[
    row(&["HG", "HGRCPATH", "HGMERGE", "HG_*"], "Mercurial runs it, or loads extensions that it names", "hg(1)"),
    row(&["SVN_*"], "Subversion runs it", "svn(1)"),
    row(&["CVS*"], "CVS runs it, or connects to another server", "cvs(1)"),
    row(&["BZR*", "BRZ*"], "plugins are loaded from there", "brz(1)"),
    row(&["JJ_*"], "Jujutsu takes settings from it, which name programs", "jj, Settings"),
    row(&["P4*"], "Perforce runs it, or connects to another server", "p4(1)"),
    row(&["DARCS_*", "FOSSIL_*"], "it names programs to run", "darcs(1), fossil"),
];

const SSH: &[Refused] = &[
    row(
        &["SSH_*"],
        "ssh runs the programs that some name, loads a library, and signs with the keys of another agent",
        "ssh(1), ssh-agent(1), ssh-keygen(1)",
    ),
    row(&["AUTOSSH_*"], "autossh runs it", "autossh(1)"),
    row(&["PDSH_*", "WCOLL"], "pdsh loads modules from there, and connects to other hosts", "pdsh(1)"),
    row(&["CLUSTERSHELL_*"], "settings are read from there, which name programs", "clush(1)"),
];

const TRANSFER: &[Refused] = &[
    row(
        &["RSYNC_RSH", "RSYNC_CONNECT_PROG", "RSYNC_SHELL", "RSYNC_PROXY", "RSYNC_*"],
        "rsync runs it, or goes through the server that it names",
        "rsync(1), rsyncd.conf(5)",
    ),
    row(&["TAR_OPTIONS"], "options of tar run programs", "GNU tar, TAR_OPTIONS"),
    row(
        &["TAPE"],
        "it may name an archive on another host, which tar runs a program to reach",
        "GNU tar, Remote Tape Server",
    ),
    row(&["RSH", "RMT"], "it names a program that is run to reach a host", "dump(8)"),
    row(&["ZIP", "ZIPOPT"], "an option of zip runs a program", "zip(1)"),
    row(&["UNZIP", "UNZIPOPT"], "an option of unzip lets an archive write anywhere", "unzip(1)"),
    row(&["LFTP_*"], "settings are read from there, which name programs", "lftp(1)"),
    row(&["RCLONE_*"], "it sets any option, and some name programs to run", "rclone, Environment variables"),
    row(&["RESTIC_*", "BORG_*"], "it names programs to run, and another repository", "restic, borg(1)"),
    row(&["PARALLEL", "PARALLEL_*"], "it sets options of parallel, which name programs and hosts", "parallel(1)"),
];

const PAGERS: &[Refused] = &[
    row(&["LESS", "LESS*"], "less runs the commands that these name, also in its options", "less(1)"),
    row(&["MORE", "MOST_*", "LV"], "it sets options of the pager, which run commands", "more(1), most(1)"),
    row(&["BAT_*", "DELTA_*"], "it sets options, which name a program", "bat(1), delta"),
    row(&["RIPGREP_CONFIG_PATH"], "an option in that file runs a program for each file", "rg(1)"),
    row(&["ACKRC", "ACK_OPTIONS"], "options in that file run a program", "ack(1)"),
    row(&["FZF_*", "SKIM_*"], "options and key bindings run commands", "fzf(1), sk(1)"),
    row(&["AWKPATH", "AWKLIBPATH"], "awk loads programs and extensions from there", "gawk(1)"),
    row(&["BC_ENV_ARGS", "DC_ENV_ARGS"], "dc runs the commands in its arguments", "bc(1), dc(1)"),
];

const EDITORS: &[Refused] = &[
    row(&["VISUAL"], "it names a program that is run to edit a text", "environ(7)"),
    row(&["EXINIT", "NEXINIT", "VIMINIT", "GVIMINIT"], "vi runs the commands in it", "vi(1), vim(1)"),
    row(&["VIM", "VIMRUNTIME", "MYVIMRC", "MYGVIMRC", "NVIM*"], "vim loads scripts from there", "vim(1), nvim(1)"),
    row(&["EMACS*"], "emacs loads code and runs programs from there", "GNU Emacs, General Variables"),
    row(&["KAKOUNE_*", "HELIX_RUNTIME"], "scripts are loaded from there", "kak(1), hx"),
    row(&["DIFFPROG", "MERGEPROG"], "it names a program that is run to show or join differences", "pacdiff(8)"),
];

const DOCUMENTS: &[Refused] = &[
    row(&["MANOPT", "MANLESS", "MANROFFSEQ", "MANROFFOPT"], "it sets options of man, which run programs", "man(1)"),
    row(&["MANPATH", "INFOPATH"], "pages are formatted from there", "manpath(1), info(1)"),
    row(&["GROFF_*"], "groff runs programs and loads macros from there", "groff(1)"),
    row(&["TEXINPUTS*", "TEXMF*", "TEXFORMATS"], "TeX reads settings and programs from there", "kpathsea"),
    row(&["TEXEDIT", "MFEDIT", "MPEDIT"], "TeX and its kin run it to edit a text", "tex(1), mf(1), mpost(1)"),
    row(&["SHELL_ESCAPE*", "OPENIN_ANY", "OPENOUT_ANY"], "it lets documents run commands and write files", "kpathsea"),
    row(&["GS_*"], "Ghostscript runs PostScript from there, and takes options from it", "gs(1)"),
    row(&["MAGICK_*"], "ImageMagick takes programs to run, and modules, from there", "ImageMagick, Resources"),
    row(&["LYNX_*", "WWW_HOME"], "settings are read from there, which name programs", "lynx(1)"),
    row(&["MAILCAPS", "MAILRC", "SENDMAIL"], "it names programs to run", "mailcap(5), mailx(1)"),
];

const SECRETS: &[Refused] = &[
    row(&["GNUPGHOME"], "gpg takes keys, trust and programs to run from there", "gpg(1)"),
    row(&["GPG_AGENT_INFO", "PINENTRY_*"], "gpg connects to another agent", "gpg-agent(1)"),
    row(&["PASSWORD_STORE_*"], "pass runs extensions from there", "pass(1)"),
    row(&["SOPS_*"], "it names programs to run and servers", "sops"),
    row(
        &["VAULT_ADDR", "VAULT_AGENT_ADDR", "VAULT_CONFIG_PATH", "VAULT_CAPATH", "VAULT_CLIENT_*", "VAULT_SKIP_VERIFY"],
        "it names the server, whom to trust, and a program to run",
        "vault, Environment variables",
    ),
];

const SYSTEM: &[Refused] = &[
    row(&["SYSTEMD_*"], "systemctl runs an editor and a pager, and loads units, that it names", "systemctl(1)"),
    row(
        &["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_PID", "WATCHDOG_USEC"],
        "programs take it from systemd",
        "sd_notify(3), sd_listen_fds(3)",
    ),
    row(
        &["CREDENTIALS_DIRECTORY", "CONFIGURATION_DIRECTORY"],
        "settings and secrets are read from there",
        "systemd.exec(5)",
    ),
    row(&["DBUS_*"], "an address of a bus can name a program to run", "D-Bus Specification, unixexec"),
    row(&["SUDO_*", "DOAS_*", "PKEXEC_*"], "programs take from it who asked, or run it", "sudo(8), pkexec(1)"),
];

const PACKAGES: &[Refused] = &[
    row(&["APT_*"], "apt reads settings from there, which name programs to run", "apt.conf(5)"),
    row(&["DPKG_*"], "dpkg takes directories and programs from it", "dpkg(1)"),
    row(
        &["DEBIAN_FRONTEND", "DEBCONF_*", "UCF_*"],
        "debconf loads the module, or the database, that it names",
        "debconf(7)",
    ),
    row(&["RPM_*", "YUM*", "DNF_*", "ZYPP_*"], "settings and macros are read from there", "rpm(8), dnf(8)"),
    row(&["MAKEPKG_*", "PACMAN*"], "it names programs to run", "makepkg(8)"),
    row(&["HOMEBREW_*"], "it names programs to run and servers", "brew(1)"),
    row(&["NIX_*", "GUIX_*"], "it names settings, servers and code to build", "nix.conf(5), guix"),
    row(
        &["ASDF_*", "MISE_*", "PYENV_*", "RBENV_*", "NODENV_*", "NVM_*", "JENV_*", "SDKMAN_*", "DIRENV_*", "VOLTA_*"],
        "it chooses which program a name means",
        "pyenv, rbenv, asdf, mise",
    ),
];

const BUILDING: &[Refused] = &[
    row(
        &["MAKEFLAGS", "MAKEFILES", "MAKE*", "GNUMAKEFLAGS", "MFLAGS"],
        "make runs what its options and files say",
        "make(1)",
    ),
    row(
        &[
            "AR", "AS", "CC", "CO", "CPP", "CTANGLE", "CWEAVE", "CXX", "F77", "FC", "GET", "LD", "LEX", "LINT", "M2C",
            "MAKEINFO", "NM", "OBJC", "OBJCOPY", "PC", "RANLIB", "RM", "STRIP", "TANGLE", "TEX", "TEXI2DVI", "WEAVE",
            "YACC",
        ],
        "make and configure run it",
        "GNU make, Implicit Variables",
    ),
    row(
        &[
            "ARFLAGS",
            "ASFLAGS",
            "CFLAGS",
            "COFLAGS",
            "CPPFLAGS",
            "CXXFLAGS",
            "FFLAGS",
            "GFLAGS",
            "LDFLAGS",
            "LDLIBS",
            "LFLAGS",
            "LOADLIBES",
            "OBJCFLAGS",
            "PFLAGS",
            "RFLAGS",
            "YFLAGS",
        ],
        "make puts it into commands, and it can make compilers load plugins",
        "GNU make, Implicit Variables; gcc(1)",
    ),
    row(
        &["GCC_*", "COLLECT_GCC*", "COLLECT_LTO*", "COMPILER_PATH", "CCC_OVERRIDE_OPTIONS"],
        "the compiler runs its parts from there",
        "gcc(1), clang(1)",
    ),
    row(
        &["CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "OBJC_INCLUDE_PATH", "LIBRARY_PATH"],
        "code is compiled and linked from there",
        "gcc(1)",
    ),
    row(&["DEPENDENCIES_OUTPUT", "SUNPRO_DEPENDENCIES"], "the compiler writes to the file that it names", "gcc(1)"),
    row(&["CCACHE_*", "DISTCC_*", "SCCACHE_*"], "it names programs to run and servers", "ccache(1), distcc(1)"),
    row(&["CMAKE_*", "CTEST_*"], "CMake runs the compilers and launchers that it names", "cmake-env-variables(7)"),
    row(&["PKG_CONFIG*"], "it names the program, or the flags, that builds use", "pkg-config(1)"),
    row(
        &["ACLOCAL*", "AUTOCONF", "AUTOHEADER", "AUTOM4TE*", "AUTOMAKE*", "AUTORECONF", "LIBTOOLIZE", "M4", "M4PATH"],
        "the autotools run it",
        "autoconf(1)",
    ),
    row(&["CONFIG_SHELL", "CONFIG_SITE"], "configure runs it", "Autoconf, Site Defaults"),
    row(&["BAZEL*", "JUST_*", "SCONS*", "QMAKE*"], "it names files with commands to run", "bazel, just(1), scons(1)"),
    row(
        &["GDB*", "RUST_GDB", "RUST_LLDB", "DEBUGINFOD_*"],
        "scripts are read from there, or it names a server",
        "gdb(1)",
    ),
    row(&["VALGRIND_*", "PERF_*"], "it names programs to run and options", "valgrind(1), perf(1)"),
];

const RUST: &[Refused] = &[
    row(
        &["CARGO", "CARGO_*"],
        "cargo runs the compilers, linkers and runners that it names",
        "cargo, Environment Variables",
    ),
    row(&["RUSTC", "RUSTC_*", "RUSTDOC*", "RUSTFMT"], "cargo runs it", "cargo, Environment Variables"),
    row(&["RUSTFLAGS"], "an option of rustc names the linker", "cargo, Environment Variables"),
    row(&["RUSTUP_*"], "it chooses which program a name means, and the server", "rustup, Environment variables"),
];

const GO: &[Refused] = &[
    row(&["GOFLAGS", "GOENV", "GOAUTH", "GOCACHEPROG"], "an option of go runs a program", "go help environment"),
    row(
        &["GOROOT", "GOPATH", "GOBIN", "GOTOOLCHAIN", "GOWORK", "GOMODCACHE", "GOCACHE", "GOTMPDIR"],
        "go takes programs and code from there",
        "go help environment",
    ),
    row(
        &["GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GONOPROXY", "GOPRIVATE", "GOINSECURE", "GOVCS"],
        "it changes which servers go trusts",
        "go help environment",
    ),
    row(&["GCCGO", "GOGCCFLAGS", "CGO_*"], "go runs it to compile", "go help environment"),
    row(
        &["GODEBUG", "GOTRACEBACK", "GOEXPERIMENT", "GOCOVERDIR"],
        "it changes how programs in Go run, or what they write",
        "Go, package runtime",
    ),
];

const PERL: &[Refused] = &[
    row(&["PERL5OPT", "PERL5LIB", "PERL*"], "perl loads the code that it names", "perlrun(1)"),
    row(
        &["HARNESS_*"],
        "prove runs the perl, with the options and code, that it names",
        "Test::Harness, TAP::Harness::Env",
    ),
];

const PYTHON: &[Refused] = &[
    row(&["PYTHONPATH", "PYTHONSTARTUP", "PYTHON*"], "python loads the code that it names", "python(1)"),
    row(
        &["PIP_*", "PIPENV_*", "PIPX_*", "POETRY_*", "PDM_*", "UV_*", "CONDA*", "MAMBA_*", "VIRTUALENV_*"],
        "it sets options, and packages come from the server that it names",
        "pip, Configuration; uv, poetry, conda",
    ),
    row(&["SETUPTOOLS_*", "DISTUTILS_*", "LDSHARED"], "it names code to load, or a program to run", "setuptools"),
    row(&["PYTEST_*", "TOX_*", "NOX*"], "plugins that it names are loaded", "pytest, Configuration"),
    row(
        &["DJANGO_SETTINGS_MODULE", "FLASK_*", "GUNICORN_*", "UVICORN_*", "CELERY_*"],
        "it names a module to load",
        "django-admin, Flask, Gunicorn",
    ),
    row(
        &["IPYTHON*", "JUPYTER*", "MPLBACKEND", "MPLCONFIGDIR"],
        "code is loaded from there",
        "IPython, Jupyter, Matplotlib",
    ),
];

const RUBY: &[Refused] = &[
    row(&["RUBYOPT", "RUBYLIB", "RUBY*"], "ruby loads the code that it names", "ruby(1)"),
    row(&["GEM_*", "GEMRC", "BUNDLE_*", "BUNDLER_*"], "packages are loaded from there", "gem(1), bundle-config(1)"),
    row(
        &["IRBRC", "RAKEOPT", "SPEC_OPTS", "JRUBY_*", "TRUFFLERUBYOPT"],
        "code is loaded by it",
        "irb(1), rake(1), rspec",
    ),
    row(&["VAGRANT_*"], "vagrant runs the file that it names", "vagrant, Environmental Variables"),
];

const NODE: &[Refused] = &[
    row(
        &["NODE_OPTIONS", "NODE_PATH", "NODE_*"],
        "node loads the code that it names, or trusts the certificates that it names",
        "node(1)",
    ),
    row(
        &["NPM_CONFIG_*", "NPM_*", "YARN_*", "PNPM_*", "COREPACK_*"],
        "it sets any option, such as the shell that runs scripts and the server",
        "npm, config(7)",
    ),
    row(
        &["BUN_*", "DENO_*", "TS_NODE_*", "ELECTRON_*"],
        "it names code to load and servers",
        "bun, deno, ts-node, Electron",
    ),
    row(
        &["PUPPETEER_*", "PLAYWRIGHT_*", "CHROME_BIN", "CHROME_PATH"],
        "it names the program that is run",
        "Puppeteer, Playwright",
    ),
];

const JAVA: &[Refused] = &[
    row(
        &["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "JAVA_OPTS", "JAVA_*", "JDK_*", "_JAVA_*"],
        "options of java load code, and java is run from there",
        "java(1), JVM Tool Interface",
    ),
    row(&["IBM_JAVA_OPTIONS", "OPENJ9_JAVA_OPTIONS", "JRE_*", "JVM_*"], "options of java load code", "OpenJ9"),
    row(&["JAVACMD"], "start scripts run it as java", "mvn(1), gradle, ant"),
    row(&["CLASSPATH"], "java loads code from there", "java(1)"),
    row(
        &["MAVEN_*", "M2_*", "GRADLE_*", "ANT_*", "SBT_*", "LEIN_*"],
        "options of java load code",
        "mvn(1), gradle, ant, sbt",
    ),
    row(
        &["KOTLIN_*", "SCALA_*", "GROOVY_*", "CLOJURE_*", "CLJ_CONFIG"],
        "options of java load code",
        "their start scripts",
    ),
    row(
        &["CATALINA_*", "JPDA_*", "JBOSS_*", "HADOOP_*", "SPARK_*", "KAFKA_*", "ES_JAVA_*", "LS_JAVA_*", "ZK_*"],
        "options of java load code",
        "their start scripts",
    ),
];

const LANGUAGES: &[Refused] = &[
    row(
        &["DOTNET_*", "CORECLR_*", "COR_*", "COMPLUS_*", "MONO_*"],
        "a profiler or hook that it names is loaded",
        ".NET, Environment variables; mono(1)",
    ),
    row(&["NUGET_*", "MSBUILD*"], "it names code to load and servers", "NuGet, MSBuild"),
    row(&["PHPRC", "PHP_*", "COMPOSER*"], "settings that load code are read from there", "php(1), composer"),
    row(&["LUA_*", "LUAROCKS_*"], "lua runs the code in it, or loads it from there", "lua(1)"),
    row(&["TCL*", "TK_LIBRARY"], "code is loaded from there", "tclsh(1)"),
    row(&["GUILE_*"], "code is loaded from there", "guile(1)"),
    row(&["ERL_*", "ERLC_*", "ELIXIR_*", "IEX_*", "REBAR*", "ESCRIPT_*"], "options of erl run code", "erl(1), elixir"),
    row(
        &["MIX_EXS", "MIX_HOME", "MIX_ARCHIVES", "MIX_PATH", "MIX_REBAR*", "MIX_BUILD_*", "MIX_DEPS_PATH"],
        "code is loaded from there",
        "mix",
    ),
    row(&["R_*", "RENV_*"], "R runs the files that it names", "R, Startup"),
    row(&["JULIA_*"], "code is loaded from there", "julia(1)"),
    row(
        &["GHC*", "STACK_ROOT", "STACK_YAML", "STACK_WORK", "CABAL_*"],
        "options and packages are taken from it",
        "ghc(1), stack, cabal",
    ),
    row(&["OCAML*", "CAML*", "OPAM*"], "options and code are taken from it", "ocaml(1), opam(1)"),
    row(&["SBCL_*", "CLISP*", "PLTCOLLECTS", "PLTADDONDIR"], "code is loaded from there", "sbcl(1), racket(1)"),
    row(&["OCTAVE_*", "MATLAB*"], "code is loaded from there", "octave(1)"),
    row(
        &["CUDA_INJECTION*", "OMPI_MCA_*", "PMIX_MCA_*", "PRTE_MCA_*", "HYDRA_*", "I_MPI_*"],
        "it names libraries to load or programs to run",
        "CUDA, Open MPI, MPICH",
    ),
];

const CLOUDS: &[Refused] = &[
    row(
        &["DOCKER_*", "BUILDKIT_HOST", "BUILDX_*"],
        "docker connects to another daemon, or runs plugins from there",
        "docker(1)",
    ),
    row(&["COMPOSE_*"], "docker compose runs what another file says", "docker compose, Environment variables"),
    row(
        &[
            "CONTAINER_HOST",
            "CONTAINER_CONNECTION",
            "CONTAINER_SSHKEY",
            "CONTAINERS_*",
            "PODMAN_*",
            "CONTAINERD_*",
            "CNI_*",
        ],
        "it names another daemon, or programs to run",
        "podman(1), containers.conf(5)",
    ),
    row(&["KUBE*"], "kubectl connects to another cluster, and runs programs that its settings name", "kubectl(1)"),
    row(&["HELM_*"], "helm runs plugins from there", "helm"),
    row(
        &["TF_CLI_*", "TF_PLUGIN_*", "TF_DATA_DIR", "TF_REGISTRY_*", "TF_REATTACH_PROVIDERS"],
        "terraform runs providers from there",
        "terraform, Environment Variables",
    ),
    row(
        &["TF_ENCRYPTION"],
        "it is a part of the configuration, which can name a program to run",
        "OpenTofu, State and Plan Encryption",
    ),
    row(&["TF_LOG_PATH*"], "terraform writes to the file that it names", "terraform, Environment Variables"),
    row(&["TERRAGRUNT_*", "PACKER_*", "PULUMI_*"], "it names programs to run", "terragrunt, packer, pulumi"),
    row(&["ANSIBLE_*"], "ansible runs code and programs from there", "ansible-config(1)"),
    row(
        &["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_DATA_PATH", "AWS_CLI_*", "BOTO_CONFIG"],
        "settings are read from there, which name a program to run",
        "aws-cli, Sourcing credentials with an external process",
    ),
    row(
        &["AWS_ENDPOINT_URL*", "AWS_CONTAINER_*", "AWS_EC2_METADATA_*"],
        "requests and credentials come from another server",
        "aws-cli, Environment variables",
    ),
    row(
        &["CLOUDSDK_*", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES"],
        "gcloud runs the program that it names, or connects to another server",
        "gcloud topic configurations",
    ),
    row(&["GCE_METADATA_*"], "requests and credentials come from another server", "Google Auth Library"),
    row(
        &["AZURE_CONFIG_DIR", "AZURE_EXTENSION_DIR", "AZURE_AUTHORITY_HOST"],
        "az loads code from there, or connects to another server",
        "az",
    ),
    row(
        &["CONSUL_HTTP_*", "NOMAD_ADDR", "ETCDCTL_*"],
        "it names the server and whom to trust",
        "consul, nomad, etcdctl",
    ),
];

const DATABASES: &[Refused] = &[
    row(&["PSQLRC", "PSQL_*"], "psql runs the commands in that file", "psql(1)"),
    row(
        &[
            "PGHOST",
            "PGHOSTADDR",
            "PGPORT",
            "PGSERVICE*",
            "PGSYSCONFDIR",
            "PGPASSFILE",
            "PGSSL*",
            "PGGSS*",
            "PGREQUIRE*",
            "PGOPTIONS",
        ],
        "it names the server and whom to trust",
        "PostgreSQL, libpq, Environment Variables",
    ),
    row(&["MYSQL_*", "MARIADB_*", "LIBMYSQL_*"], "it names the server, settings, and plugins to load", "mysql(1)"),
    row(&["ODBC*"], "drivers are loaded from there", "odbcinst.ini(5)"),
    row(&["ORACLE_*", "TNS_ADMIN"], "libraries are loaded from there, and it names the server", "sqlplus"),
    row(&["REDISCLI_*"], "settings are read from there", "redis-cli(1)"),
];

const DESKTOPS: &[Refused] = &[
    row(
        &["DISPLAY", "WAYLAND_*", "XAUTHORITY", "ICEAUTHORITY", "SESSION_MANAGER"],
        "programs connect to another display",
        "X(7)",
    ),
    row(&["TERMINAL"], "it names a program that is run", "i3-sensible-terminal(1)"),
    row(&["QT_*", "QML*", "KDE*"], "plugins are loaded from there", "Qt, Environment variables"),
    row(
        &["GTK*", "GDK_*", "GIO_*", "GST_*", "GSETTINGS_*", "GVFS_*", "GI_TYPELIB_PATH"],
        "modules are loaded from there",
        "GTK, GIO, GStreamer",
    ),
    row(
        &["LIBGL_*", "LIBVA_*", "VDPAU_*", "VK_*", "OCL_ICD_*", "OPENCL_*", "MESA_*", "EGL_*"],
        "drivers are loaded from there",
        "Mesa, Vulkan loader",
    ),
    row(
        &["XMODIFIERS", "XLOCALEDIR", "XKB*", "XFILESEARCHPATH", "XUSERFILESEARCHPATH", "XAPPLRESDIR", "XENVIRONMENT"],
        "settings and modules are read from there",
        "X(7)",
    ),
    row(&["ALSA_*", "PULSE_*", "LADSPA_PATH"], "plugins are loaded from there", "ALSA, PulseAudio"),
];
