//! Bad lines, and a lid that is closed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stage::Stage;
use super::traffic::{CODE, STARTED, Traffic, ran_once};
use super::{Evidence, Row, Scale, lines};
use crate::cluster::malai;
use crate::lab::Nat;

/// How long 5 MB may take over a line that loses 5 %.
const FIVE_MEGABYTES: Duration = Duration::from_secs(120);

pub(super) fn rows(scale: Scale) -> Vec<Row> {
    let (storm, frozen) = (scale.pick(20, 120), scale.pick(40, 90));
    vec![
        Row::new(format!("a_laptop_that_sleeps_for_{frozen}_s_loses_nothing"), move || {
            sleep(Duration::from_secs(frozen))
        }),
        Row::new("loss_of_20_percent_with_200_ms_jitter_is_not_seen", move || loss(Duration::from_secs(storm))),
        Row::new("five_megabytes_come_over_a_line_that_loses_5_percent", five_megabytes),
    ]
}

fn sleep(length: Duration) -> Result<Evidence> {
    let stage = Stage::internet(Nat::PortRestricted)?;
    let mut traffic = Traffic::start(&stage)?;
    let begun = Instant::now();
    stage.laptop.freeze()?;
    traffic.endure(begun, length)?;
    stage.laptop.thaw()?;
    traffic.repaired()?;
    traffic.finish(&stage)
}

fn loss(length: Duration) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut traffic = Traffic::start(&stage)?;
    stage.wire.set_loss(0.2);
    stage.wire.set_jitter(Duration::from_millis(200));
    traffic.repaired()?;
    traffic.go_on_until(Instant::now() + length)?;
    let words = traffic.words();
    stage.wire.set_loss(0.0);
    stage.wire.set_jitter(Duration::ZERO);
    let evidence = traffic.finish(&stage)?;
    ensure!(words.is_empty(), "a bad line was shown as a dead connection: {words:?}\n{}", stage.logs());
    Ok(evidence)
}

fn five_megabytes() -> Result<Evidence> {
    let stage = Stage::segment()?;
    let line = lines::line('o', 150_000).len();
    let count = 5_000_000 / line + 20_000;
    stage.wire.set_delay(Duration::from_millis(20));
    stage.wire.set_loss(0.05);
    let (code, count) = (CODE.to_string(), count.to_string());
    let words = ["web01.company", "--", "malai-lab-driver", "bulk", STARTED, &code, &count];
    let begun = Instant::now();
    // Longer than it may take, to tell how long it would.
    let output = stage.laptop.run(malai(words).timeout(FIVE_MEGABYTES * 2))?.exited(CODE)?;
    let took = begun.elapsed();
    let bytes = output.stdout.len();
    ensure!(bytes >= 5_000_000, "these are only {bytes} bytes");
    ensure!(lines::check(&output.stdout, &output.stderr)?.whole, "the last line is missing");
    ensure!(lines::own(&output.stderr).is_empty(), "malai says {}", output.error_text());
    ran_once(&stage)?;
    ensure!(took <= FIVE_MEGABYTES, "{bytes} bytes took {took:.0?}");
    ensure!(stage.wire.dropped() > 100, "the line lost only {} frames", stage.wire.dropped());
    Ok(Evidence { bytes: bytes as u64, ..Evidence::default() })
}
