//! Detached sessions: nobody's going ends them, and their output is there for whoever comes, while they run and after.

use malai_protocol::codec::{Frame, Kind};
use malai_protocol::failure::Kind as FailureKind;
use malai_protocol::plan::{Attachment, Audited, CallerGone, Hello, Inventory, Outcome, Plan, SessionName};
use malai_protocol::session::{Attached, EndedBy, ExitRecord, Status, Superseded};
use malai_protocol::sessions::State;

use super::harness::{Caller, Lab, attachment, lives, other_caller, plan, process, script, within};

/// As the daemon plans what was asked for with `--detach`.
fn detached(mut plan: Plan) -> Plan {
    plan.request.detached = true;
    Plan { grace_ms: 0, kill_on_lost: false, ..plan }
}

/// An attachment that ends nothing when it goes.
fn watching(session: SessionName, follower: u8, number: u32) -> Attachment {
    Attachment { binding: false, ..attachment(session, Some(process(follower)), number) }
}

/// Starts it as a caller does that leaves as soon as it runs.
async fn launch(lab: &mut Lab, plan: Plan) -> u32 {
    lab.control.send(Kind::Plan, &plan).await;
    let mut caller = lab.greet(Hello::Attach(watching(plan.session, 1, 1))).await;
    let pid = caller.started().await.pid;
    caller.raw(Frame::empty(Kind::Goodbye)).await;
    pid
}

/// Starts one that prints a line, waits until somebody writes to a pipe, and prints another; returns the pipe's path.
async fn one_and_two(lab: &mut Lab) -> (SessionName, String) {
    let fifo = lab.path("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let plan = detached(script("echo one; read -r line < fifo; echo two"));
    let plan = Plan { cwd: Some(lab.dir.path().as_os_str().as_encoded_bytes().to_vec().into()), ..plan };
    let session = plan.session;
    launch(lab, plan).await;
    (session, fifo)
}

async fn attach(lab: &Lab, who: Attachment, out_offset: u64, from_end: bool) -> Caller {
    let hello = Hello::Resume { attachment: who, out_offset, from_end, take_over: true, resend: None };
    Caller { received: out_offset, ..lab.greet(hello).await }
}

async fn ask(lab: &Lab, question: Hello) -> Frame {
    lab.greet(question).await.next().await.expect("an answer")
}

async fn inventory(lab: &Lab) -> Inventory {
    ask(lab, Hello::List).await.expect(Kind::Inventory, "sessions").expect("decodes")
}

/// Kills it, and returns its record.
async fn kill(lab: &Lab, session: SessionName) -> ExitRecord {
    let kill = Hello::Kill { session, signal: None, reason: "a test".into() };
    ask(lab, kill).await.expect(Kind::Exit, "a record").expect("decodes")
}

#[tokio::test]
async fn a_detached_command_outlives_its_caller_and_its_whole_output_waits_for_whoever_attaches() {
    let mut lab = Lab::new().await;
    let text = "seq 100000; echo oh >&2; exit 7";
    let plan = detached(script(text));
    let session = plan.session;
    launch(&mut lab, plan).await;
    let gone = CallerGone { session, follower: Some(process(1)), number: 1 };
    lab.control.send(Kind::CallerGone, &gone).await;
    let Outcome::Exit(record) = lab.control.ended().await.outcome else { panic!("it ran") };
    assert_eq!((record.status, record.ended_by), (Status::Exited { code: 7 }, EndedBy::Itself));

    // More than once, and at once, each for itself.
    let callers =
        [attach(&lab, watching(session, 2, 1), 0, false).await, attach(&lab, watching(session, 3, 1), 0, false).await];
    let wanted: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    for caller in callers {
        let done = caller.finish().await;
        assert!(done.text() == wanted, "{} bytes of {}", done.stdout.len(), wanted.len());
        assert_eq!((done.stderr.as_slice(), done.record()), (&b"oh\n"[..], &record));
    }
    // From the middle, and from the end.
    let end = record.stdout_bytes + record.stderr_bytes;
    let rest = attach(&lab, watching(session, 4, 1), end - 10, false).await.finish().await;
    assert_eq!(rest.stdout.len() + rest.stderr.len(), 10);
    let nothing = attach(&lab, watching(session, 5, 1), 0, true).await.finish().await;
    assert_eq!((nothing.stdout.len() + nothing.stderr.len(), nothing.record()), (0, &record));
    lab.close().await;
}

#[tokio::test]
async fn a_detached_command_is_followed_while_it_runs_and_another_may_take_over() {
    let mut lab = Lab::new().await;
    let (session, fifo) = one_and_two(&mut lab).await;
    let mut first = attach(&lab, watching(session, 2, 1), 0, false).await;
    let attached = first.attached().await;
    assert!(attached.started.is_some() && attached.stdin_closed && attached.out_offset == 0, "{attached:?}");
    assert_eq!(&first.wait_for(Kind::Stdout).await.payload[..], b"one\n");

    let mut second = attach(&lab, watching(session, 3, 1), 0, false).await;
    let by: Superseded = first.wait_for(Kind::Superseded).await.decode().expect("decodes");
    assert_eq!(by.follower, process(3));
    second.attached().await;
    // It has read the first line before the last one is written.
    assert_eq!(&second.wait_for(Kind::Stdout).await.payload[..], b"one\n");
    std::fs::write(fifo, "\n").expect("written");
    let done = second.finish().await;
    assert_eq!((done.text().as_str(), done.code()), ("two\n", Some(0)));
    lab.close().await;
}

#[tokio::test]
async fn a_follower_that_comes_at_the_end_gets_only_what_comes_from_now_on() {
    let mut lab = Lab::new().await;
    let (session, fifo) = one_and_two(&mut lab).await;
    // The first line is on the disk when somebody has it from there.
    let mut first = attach(&lab, watching(session, 2, 1), 0, false).await;
    first.wait_for(Kind::Stdout).await;
    let mut second = attach(&lab, watching(session, 3, 1), 0, true).await;
    assert_eq!(second.attached().await.out_offset, 4);
    std::fs::write(fifo, "\n").expect("written");
    assert_eq!(second.finish().await.text(), "two\n");
    lab.close().await;
}

#[tokio::test]
async fn sessions_are_listed_waited_for_signalled_and_ended() {
    let mut lab = Lab::new().await;
    let (sleeper, other) = (detached(plan(&["sleep", "1000"])), detached(plan(&["sleep", "1001"])));
    let (session, signalled) = (sleeper.session, other.session);
    let pid = launch(&mut lab, sleeper).await;
    launch(&mut lab, other).await;
    let listed = inventory(&lab).await.sessions;
    let commands: Vec<_> =
        listed.iter().map(|known| (known.summary.command.as_str(), known.summary.detached)).collect();
    assert_eq!(commands.len(), 2);
    assert!(commands.contains(&("sleep 1000", true)) && commands.contains(&("sleep 1001", true)), "{commands:?}");
    assert!(listed.iter().all(|known| known.summary.state == State::Running), "{listed:?}");

    let mut waiting = lab.greet(Hello::Wait { session }).await;
    let record = kill(&lab, session).await;
    assert_eq!((record.ended_by, record.reason.as_deref()), (EndedBy::Killed, Some("a test")));
    assert!(!lives(pid));
    let heard: ExitRecord = waiting.wait_for(Kind::Exit).await.decode().expect("decodes");
    assert_eq!(heard, record);

    let hup = |signal| Hello::Kill { session: signalled, signal: Some(signal), reason: String::new() };
    let refused = ask(&lab, hup(250)).await;
    assert_eq!(refused.kind, Kind::Refused, "no such signal");
    assert_eq!(ask(&lab, hup(1)).await.kind, Kind::Killed);
    let record: ExitRecord = ask(&lab, Hello::Wait { session: signalled }).await.decode().expect("decodes");
    assert_eq!((record.status, record.ended_by), (Status::Signalled { signal: 1, core: false }, EndedBy::Itself));
    assert_eq!(ask(&lab, hup(1)).await.kind, Kind::Refused, "it is over");

    let unknown = SessionName { caller: other_caller(), ..session };
    assert_eq!(ask(&lab, Hello::Wait { session: unknown }).await.kind, Kind::Missing);
    assert_eq!(
        ask(&lab, Hello::Kill { session: unknown, signal: None, reason: String::new() }).await.kind,
        Kind::Missing
    );
    lab.close().await;
}

#[tokio::test]
async fn what_ended_before_the_executor_did_is_there_in_the_next_one() {
    let mut lab = Lab::new().await;
    let plan = detached(script("echo hi; exit 3"));
    let session = plan.session;
    launch(&mut lab, plan).await;
    lab.control.ended().await;
    lab.control.send(Kind::Audited, &Audited { session }).await;
    let dir = lab.close().await;

    let lab = Lab::at(dir, true).await;
    let listed = inventory(&lab).await.sessions;
    let states: Vec<_> = listed.iter().map(|known| &known.summary.state).collect();
    assert!(matches!(states[..], [State::Ended(record)] if record.exit_code() == 3), "{states:?}");
    let done = attach(&lab, watching(session, 2, 1), 0, false).await.finish().await;
    assert_eq!((done.text().as_str(), done.code()), ("hi\n", Some(3)));
    lab.close().await;
}

#[tokio::test]
async fn an_attachment_may_not_ask_for_output_that_does_not_exist_nor_acknowledge_it() {
    let mut lab = Lab::new().await;
    let plan = detached(script("echo hi"));
    let session = plan.session;
    launch(&mut lab, plan).await;
    lab.control.ended().await;
    let failure = attach(&lab, watching(session, 2, 1), 4, false).await.refused().await;
    assert_eq!(failure.kind, FailureKind::Unknown);
    let mut liar = attach(&lab, watching(session, 3, 1), 0, false).await;
    liar.acks = false;
    liar.attached().await;
    liar.send(Kind::Ack, &malai_protocol::session::Ack { out_offset: 1000 }).await;
    // Either it had all before it lied, or it is cut off: it gets nothing more than there is.
    let mut got = 0;
    while let Some(frame) = liar.next().await {
        if frame.kind == Kind::Stdout {
            got += frame.payload.len();
        }
    }
    assert!(got <= 3, "{got}");
    lab.close().await;
}

#[tokio::test]
async fn detached_commands_that_print_for_ever_do_not_hold_another_up() {
    let mut lab = Lab::new().await;
    let mut loud = Vec::new();
    for _ in 0..40 {
        let plan = detached(plan(&["yes"]));
        loud.push(plan.session);
        launch(&mut lab, plan).await;
    }
    // Each has written more than memory keeps of one.
    for session in &loud {
        let mut caller = attach(&lab, watching(*session, 2, 1), 0, false).await;
        while caller.received < 1024 * 1024 {
            caller.next().await.expect("it goes on");
        }
    }
    let quiet = lab.run(plan(&["echo", "hi"])).await;
    assert_eq!(quiet.text(), "hi\n");
    let plan = detached(plan(&["echo", "hi"]));
    let session = plan.session;
    launch(&mut lab, plan).await;
    let done =
        within("the output of the quiet one", attach(&lab, watching(session, 2, 1), 0, false).await.finish()).await;
    assert_eq!(done.text(), "hi\n");
    for session in loud {
        assert_eq!(kill(&lab, session).await.ended_by, EndedBy::Killed);
    }
    lab.close().await;
}

#[tokio::test]
async fn a_follower_that_is_slower_than_the_command_is_told_what_was_dropped() {
    let mut lab = Lab::new().await;
    // 80 MB in lines of 100 bytes, each with its number: more than is kept.
    let plan = detached(script("seq -f '%099.0f' 800000"));
    let session = plan.session;
    launch(&mut lab, plan).await;
    let mut slow = attach(&lab, watching(session, 2, 1), 0, false).await;
    slow.acks = false;
    assert_eq!(slow.attached().await.out_offset, 0);
    // It takes nothing until the command has ended.
    let Outcome::Exit(record) = lab.control.ended().await.outcome else { panic!("it ran") };
    assert_eq!(record.stdout_bytes, 80_000_000);
    let (mut offset, mut gaps) = (0, 0);
    loop {
        let frame = slow.next().await.expect("open");
        match frame.kind {
            Kind::Stdout => {
                // Whole lines are looked at where they begin in the frame.
                let skip = (100 - offset % 100) % 100;
                let lines = frame.payload.get(skip as usize..).unwrap_or_default();
                for (n, line) in lines.chunks_exact(100).enumerate() {
                    let wanted = format!("{:099}\n", (offset + skip) / 100 + n as u64 + 1);
                    assert!(line == wanted.as_bytes(), "at {offset}");
                }
                offset += frame.payload.len() as u64;
            }
            Kind::Attached => {
                let attached: Attached = frame.decode().expect("decodes");
                assert!(attached.out_offset > offset, "a gap");
                (offset, gaps) = (attached.out_offset, gaps + 1);
            }
            kind => break assert_eq!(kind, Kind::Exit),
        }
    }
    assert_eq!((offset, gaps), (80_000_000, 1));
    lab.close().await;
}
