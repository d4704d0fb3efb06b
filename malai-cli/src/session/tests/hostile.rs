//! Targets and daemons whose answers fit nothing.

use std::io::{self, Write};

use bytes::Bytes;
use malai_protocol::codec::{Frame, Kind};
use malai_protocol::id::Incarnation;
use malai_protocol::session::{Ack, Attached, Sent};

use super::lab::{Lab, Wish, attached, record, started};

#[tokio::test]
async fn output_that_the_target_did_not_keep_is_never_a_success() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.daemon = None;
    assert_eq!(lab.attach().await.out_offset, 3);
    lab.send(Kind::Attached, &attached(8, 0)).await;
    lab.output(Kind::Stdout, b"xyz").await;
    assert_eq!(lab.expect::<Ack>(Kind::Ack).await, Ack { out_offset: 11 });
    lab.daemon = None;
    assert_eq!(lab.attach().await.out_offset, 11, "the gap is counted");
    lab.send(Kind::Attached, &attached(11, 0)).await;
    lab.exit(&record(0, 11, 0)).await;
    let (code, why) = lab.failure().await;
    assert_eq!(code, 253);
    let words = "not everything got through: only 6 of 11 bytes of its standard output arrived, and 5 bytes of output were not \
                 kept while the connection was lost";
    assert!(why.contains(words), "{why}");
}

#[tokio::test]
async fn a_target_that_goes_on_where_it_cannot_ends_the_session_as_unknown() {
    let other = Incarnation::from_bytes([9; 16]);
    let wrong = [
        ("repeats output", attached(2, 0)),
        ("repeats output", attached(0, 0)),
        ("more input than was sent", attached(3, 5)),
        ("did not start the command", Attached { incarnation: other, ..attached(3, 0) }),
        ("a command which runs has not started", Attached { started: None, ..attached(3, 0) }),
    ];
    for (words, answer) in wrong {
        let (stdin, mut writer) = io::pipe().expect("a pipe");
        let mut lab = Lab::started(Wish { stdin: Some(Box::new(stdin)), ..Wish::default() }).await;
        writer.write_all(b"1234").expect("writes");
        assert_eq!(lab.next().await.payload, Bytes::from_static(b"1234"));
        lab.output(Kind::Stdout, b"abc").await;
        lab.daemon = None;
        lab.attach().await;
        lab.send(Kind::Attached, &answer).await;
        lab.rest().await;
        let stdout = lab.stdout.clone();
        let (code, why) = lab.failure().await;
        assert_eq!(code, 253);
        assert!(why.contains(words), "{why}");
        assert_eq!(stdout.bytes(), b"abc");
    }
}

#[tokio::test]
async fn offsets_at_the_end_of_all_numbers_break_nothing() {
    let mut lab = Lab::started(Wish::default()).await;
    lab.daemon = None;
    lab.attach().await;
    lab.send(Kind::Attached, &Attached { credit: u64::MAX, ..attached(u64::MAX, 0) }).await;
    lab.output(Kind::Stdout, b"abc").await;
    lab.exit(&record(0, 3, 0)).await;
    assert_eq!(lab.failure().await.0, 253);
}

#[tokio::test]
async fn answers_that_fit_no_question_end_the_session_as_unknown() {
    let sent = Frame::control(Kind::Sent, &Sent { met: None, reached: None }).unwrap();
    let attached = Frame::control(Kind::Attached, &attached(0, 0)).unwrap();
    // To the first sending.
    for frames in [vec![attached.clone()], vec![sent.clone(), sent.clone()]] {
        let mut lab = Lab::new(Wish::default()).await;
        lab.flight().await;
        for frame in frames {
            lab.send_frame(frame).await;
        }
        let (code, why) = lab.failure().await;
        assert!(code == 253 && why.contains("is not understood"), "{code}: {why}");
    }
    // To one who attaches.
    let started = Frame::control(Kind::Started, &started()).unwrap();
    let output = Frame::data(Kind::Stdout, Bytes::from_static(b"x"));
    for frames in [vec![started], vec![output], vec![attached.clone(), attached], vec![sent.clone(), sent]] {
        let mut lab = Lab::started(Wish::default()).await;
        lab.daemon = None;
        lab.attach().await;
        for frame in frames {
            lab.send_frame(frame).await;
        }
        let (code, why) = lab.failure().await;
        assert!(code == 253 && why.contains("is not understood"), "{code}: {why}");
    }
}
