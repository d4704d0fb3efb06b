use super::*;

#[test]
fn a_write_replaces_the_whole_content_and_is_private() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("snapshot");
    write(&path, b"first, and longer").expect("written");
    write(&path, b"second").expect("written");
    assert_eq!(read(&path, 100).expect("reads"), Some(b"second".to_vec()));
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
}

#[test]
fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
    let dir = tempfile::tempdir().expect("a directory");
    // A directory cannot be replaced by a file: the rename fails, after everything else was done.
    let path = dir.path().join("snapshot");
    fs::create_dir(&path).expect("made");
    fs::write(path.join("inside"), "old").expect("written");
    let failed = write(&path, b"new").expect_err("a directory is in the way");
    assert!(failed.message.starts_with(&format!("cannot write {}: ", path.display())), "{failed}");
    assert_eq!(fs::read(path.join("inside")).expect("reads"), b"old");
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
}

#[test]
fn a_leftover_of_a_crash_is_ignored_and_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("snapshot");
    write(&path, b"whole").expect("written");
    let leftover = Temp::with(&path, b"half", FILE_MODE).expect("written");
    assert_eq!(read(&path, 100).expect("reads"), Some(b"whole".to_vec()));
    let name = leftover.path.clone();
    std::mem::forget(leftover);
    sweep(dir.path());
    assert!(!name.exists());
    assert!(path.exists());
}

#[test]
fn an_edited_file_keeps_its_mode_and_its_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let real = dir.path().join("in-git.toml");
    fs::write(&real, "old").expect("written");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o664)).expect("chmod");
    let path = dir.path().join("cluster.toml");
    std::os::unix::fs::symlink(&real, &path).expect("linked");
    write_edited(&path, b"new").expect("written");
    assert!(path.symlink_metadata().expect("there").is_symlink());
    assert_eq!(fs::read(&real).expect("reads"), b"new");
    assert_eq!(fs::metadata(&real).expect("there").mode() & 0o777, 0o664);
}

#[test]
fn what_is_over_its_cap_or_not_text_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("malai.toml");
    fs::write(&path, b"a\nb\xff").expect("written");
    assert_eq!(read(&path, 4).expect("just fits").map(|b| b.len()), Some(4));
    assert!(read(&path, 3).expect_err("too large").message.ends_with("is larger than 3 bytes"));
    assert!(read_text(&path, 4).expect_err("not UTF-8").message.ends_with("is not UTF-8 text: line 2"));
    assert_eq!(read(&dir.path().join("missing"), 4), Ok(None));
}

#[test]
fn a_home_under_a_file_is_refused_with_the_path() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    let home = Home::new(file.join("home"));
    let failed = prepare(&home).expect_err("a file is in the way");
    assert!(failed.message.contains(&home.root().display().to_string()), "{failed}");
    assert!(failed.hint.is_some_and(|hint| hint.contains("is a file")));
}

#[test]
fn a_home_is_made_private_and_one_that_others_write_to_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::new(dir.path().join("a/b"));
    prepare(&home).expect("made");
    assert_eq!(fs::metadata(home.root()).expect("there").mode() & 0o7777, 0o700);
    fs::set_permissions(home.root(), fs::Permissions::from_mode(0o770)).expect("chmod");
    let refused = prepare(&home).expect_err("writable by the group");
    assert_eq!(refused.hint, Some(format!("chmod g-w {}", home.root().display())));
}

#[test]
fn a_full_or_read_only_disk_says_what_to_do() {
    let path = Path::new("/home/malai/clusters/company/snapshot");
    let table = [
        (io::ErrorKind::StorageFull, "df -h /home/malai/clusters/company"),
        (io::ErrorKind::QuotaExceeded, "make room"),
        (io::ErrorKind::ReadOnlyFilesystem, "MALAI_HOME"),
        (io::ErrorKind::PermissionDenied, "ls -ld /home/malai"),
    ];
    for (kind, hint) in table {
        let failure = disk_failure("write", path, &kind.into());
        assert!(failure.message.starts_with("cannot write /home/malai/clusters/company/snapshot: "), "{failure}");
        assert!(failure.hint.is_some_and(|told| told.contains(hint)), "{kind}");
    }
}

#[test]
fn what_is_the_users_own_and_closed_to_writing_is_opened_by_the_hint() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).expect("chmod");
    let failure = disk_failure("write", &dir.path().join("a/b"), &io::ErrorKind::PermissionDenied.into());
    assert_eq!(failure.hint, Some(format!("chmod u+rwX {}", dir.path().display())));
}
