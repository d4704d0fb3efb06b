//! malai's own edits of a config with comments anywhere.

use malai_protocol::config::{Config, Name, edit};
use malai_protocol::id::MachineId;
use proptest::prelude::*;

const TEXT: &str = include_str!("../fuzz/corpus/config/good-full");

fn new() -> edit::NewMachine {
    let key = ed25519_dalek::SigningKey::from_bytes(&[77; 32]).verifying_key();
    edit::NewMachine {
        name: "late".parse().expect("a name"),
        id: MachineId::from_bytes(key.to_bytes()).expect("a key"),
        groups: vec!["admins".parse().expect("a name")],
        username: Some("deploy".into()),
    }
}

fn comments(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.find("# c").map(|at| line[at..].trim_end())).collect()
}

/// The text with numbered comments and blank lines before, and comments behind, some of its lines.
fn commented() -> impl Strategy<Value = String> {
    let lines = TEXT.lines().count();
    prop::collection::vec((0..4u8, any::<bool>(), any::<bool>()), lines).prop_map(|marks| {
        let mut text = String::new();
        for (i, (line, (before, blank, behind))) in TEXT.lines().zip(marks).enumerate() {
            if before == 0 {
                text += &format!("# c{i} before\n");
            }
            if blank && before < 2 {
                text += "\n";
            }
            text += line;
            text += &if behind && !line.is_empty() && !line.contains('#') {
                format!("  # c{i} behind\n")
            } else {
                "\n".into()
            };
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn enrolling_keeps_every_comment_in_its_order(text in commented()) {
        let after = edit::add_machine(&text, &new()).expect("added");
        prop_assert_eq!(comments(&after), comments(&text), "{}", after);
        let back = edit::remove_machine(&after, &new().name).expect("removed");
        prop_assert_eq!(back, text);
    }

    #[test]
    fn removing_loses_only_comments_of_what_is_removed(text in commented()) {
        let web01: Name = "web01".parse().expect("a name");
        let after = edit::remove_machine(&text, &web01).expect("removed");
        prop_assert!(Config::check(&after).expect("in order").machine("web01").is_none());
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.iter().position(|l| l.starts_with("[machine.web01]")).expect("there");
        let end = lines.iter().position(|l| l.starts_with("[group")).expect("there");
        // Comments directly above its header and within its sections go with it.
        let above = lines[..first].iter().rev().take_while(|l| l.starts_with('#')).count();
        let kept: String = lines[..first - above].iter().chain(&lines[end..]).map(|l| format!("{l}\n")).collect();
        for comment in comments(&kept) {
            prop_assert!(after.contains(comment), "lost {comment}:\n{text}\n-----\n{after}");
        }
    }

    #[test]
    fn line_ends_of_windows_are_edited_too(text in commented()) {
        let after = edit::add_machine(&text.replace('\n', "\r\n"), &new()).expect("added");
        prop_assert_eq!(comments(&after), comments(&text));
    }
}
