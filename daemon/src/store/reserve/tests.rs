use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::*;
use crate::store::keys::ClusterKey;

struct Lab {
    dir: tempfile::TempDir,
    key: ClusterKey,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), key: ClusterKey::generate().expect("randomness") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("snapshot.reserve")
    }

    fn sign(&self, generation: u64, bytes: usize) -> Snapshot {
        let text = format!("# {generation}\n{}", "#".repeat(bytes));
        self.key.sign(generation, 1, text).expect("signs")
    }

    /// A reserve of this length.
    fn of(length: u64) -> Self {
        let lab = Self::new();
        let file = File::create(lab.path()).expect("made");
        extend(&file, length).expect("there is room");
        lab
    }

    fn generation(&self) -> Option<u64> {
        load(&self.path(), &self.key.id()).map(|found| found.header().generation)
    }

    fn save(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        save(&self.path(), snapshot)
    }

    /// Spoils one byte in the middle of the frame with this generation's text.
    fn spoil(&self, generation: u64) {
        let mut bytes = fs::read(self.path()).expect("reads");
        let words = format!("# {generation}\n");
        let at = bytes.windows(words.len()).position(|part| part == words.as_bytes()).expect("is there");
        bytes[at + words.len()] ^= 1;
        fs::write(self.path(), bytes).expect("written");
    }
}

#[test]
fn what_is_saved_is_loaded_and_needs_no_more_room() {
    let lab = Lab::new();
    prepare(&lab.path(), 1000).expect("made");
    let before = fs::metadata(lab.path()).expect("there");
    assert_eq!(before.mode() & 0o7777, 0o600);
    assert!(before.blocks() * 512 >= SMALL_RESERVE_BYTES, "its blocks are not taken");
    assert_eq!(lab.generation(), None);
    for generation in 1..20 {
        lab.save(&lab.sign(generation, 1000)).expect("saved");
        assert_eq!(lab.generation(), Some(generation));
    }
    let after = fs::metadata(lab.path()).expect("there");
    assert_eq!((after.len(), after.blocks(), after.ino()), (before.len(), before.blocks(), before.ino()));
}

#[test]
fn an_older_snapshot_does_not_replace_what_is_there() {
    let lab = Lab::of(SMALL_RESERVE_BYTES);
    for (generation, left) in [(7, 7), (6, 7), (7, 7), (8, 8)] {
        lab.save(&lab.sign(generation, 10)).expect("saved");
        assert_eq!(lab.generation(), Some(left));
    }
}

#[test]
fn a_write_that_was_cut_short_leaves_the_one_before() {
    let lab = Lab::of(SMALL_RESERVE_BYTES);
    for generation in 1..6 {
        lab.save(&lab.sign(generation, 100_000)).expect("saved");
        if generation > 1 {
            let whole = fs::read(lab.path()).expect("reads");
            lab.spoil(generation);
            assert_eq!(lab.generation(), Some(generation - 1));
            fs::write(lab.path(), whole).expect("written");
        }
    }
}

#[test]
fn a_snapshot_of_more_than_half_the_file_is_taken_and_followed() {
    let lab = Lab::of(SMALL_RESERVE_BYTES);
    for (generation, bytes) in [(1, 10), (2, 200_000), (3, 200_000), (4, 10), (5, 10), (6, 200_000)] {
        lab.save(&lab.sign(generation, bytes)).expect("saved");
        assert_eq!(lab.generation(), Some(generation));
    }
    lab.spoil(6);
    assert_eq!(lab.generation(), None, "what was written over came back");
}

#[test]
fn a_snapshot_that_is_too_large_is_refused_and_leaves_the_one_before() {
    let lab = Lab::of(SMALL_RESERVE_BYTES);
    lab.save(&lab.sign(1, 10)).expect("saved");
    let refused = lab.save(&lab.sign(2, 300_000)).expect_err("too large");
    assert!(refused.message.contains("needs 300"), "{refused}");
    assert_eq!(lab.generation(), Some(1));
}

#[test]
fn without_a_reserve_nothing_is_saved_and_nothing_found() {
    let lab = Lab::new();
    assert!(lab.save(&lab.sign(1, 10)).expect_err("nowhere").message.contains("there is no reserve"));
    assert_eq!(lab.generation(), None);
    assert!(!lab.path().exists());
}

#[test]
fn what_another_key_signed_or_nobody_does_not_count() {
    let lab = Lab::of(SMALL_RESERVE_BYTES);
    let other = Lab::new();
    lab.save(&other.sign(9, 10)).expect("saved");
    assert_eq!(lab.generation(), None);
    // A frame that is whole, around bytes that are nothing.
    let framed = |bytes: &[u8], length: u64| {
        [&FRAME_MAGIC[..], &length.to_le_bytes(), blake3::hash(bytes).as_bytes(), bytes].concat()
    };
    for (bytes, length) in [(&b""[..], 0), (b"junk", 4), (b"junk", u64::MAX), (b"junk", MAX_SNAPSHOT as u64 + 1)] {
        let mut file = framed(bytes, length);
        file.resize(SMALL_RESERVE_BYTES as usize, 0);
        fs::write(lab.path(), file).expect("written");
        assert_eq!(lab.generation(), None);
        lab.save(&lab.sign(3, 10)).expect("saved over it");
        assert_eq!(lab.generation(), Some(3));
    }
    // Files of every odd length.
    for length in [0, 1, FRAME_BYTES - 1, FRAME_BYTES, 4095, 4096, 8191] {
        fs::write(lab.path(), vec![0xff; length]).expect("written");
        assert_eq!(lab.generation(), None);
    }
}

#[test]
fn prepare_empties_it_and_makes_it_large_enough_for_the_next() {
    let lab = Lab::of(2 * BLOCK_BYTES);
    lab.save(&lab.sign(1, 10)).expect("saved");
    lab.save(&lab.sign(2, 10)).expect("saved");
    prepare(&lab.path(), 1_000_000).expect("there is room");
    assert_eq!(lab.generation(), None, "it is not empty");
    lab.save(&lab.sign(3, 1_000_000)).expect("fits");
    assert_eq!(lab.generation(), Some(3));
}

#[test]
fn a_file_system_without_fallocate_gives_its_blocks_for_zeros() {
    let lab = Lab::new();
    let file = File::create(lab.path()).expect("made");
    extend(&file, 10_000).expect("there is room");
    let meta = file.metadata().expect("there");
    assert_eq!(meta.len(), 10_000);
    assert!(meta.blocks() * 512 >= 10_000, "{}", meta.blocks());
}

#[test]
fn a_full_disk_gives_no_reserve_and_leaves_no_empty_one() {
    let lab = Lab::new();
    let missing = lab.dir.path().join("not there").join("snapshot.reserve");
    assert!(prepare(&missing, 10).expect_err("no directory").message.starts_with("cannot take room for "));
    assert!(!missing.exists());
}
