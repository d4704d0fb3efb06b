//! Messages that go to the target and come back, byte for byte, of every size that a frame, a window or a log may split.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::stage::Stage;
use super::{Evidence, Row, Scale};
use crate::cluster::malai;

/// How long the largest message may take over the worst line.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(900);

pub(super) fn rows(scale: Scale) -> Vec<Row> {
    let (largest, name) = scale.pick((1 << 20, "1_mib"), (1 << 26, "64_mib"));
    vec![Row::new(format!("messages_of_1_b_to_{name}_come_back_whole"), move || sweep(largest))]
}

/// Sends one message after the other, up to this many bytes.
fn sweep(largest: u64) -> Result<Evidence> {
    let stage = Stage::segment()?;
    let mut evidence = Evidence::default();
    for length in lengths(largest) {
        evidence.add(&there_and_back(&stage, length, length)?);
    }
    Ok(evidence)
}

/// Each power of two up to the largest, with its neighbours: what counts bytes is wrong by one where it is wrong.
fn lengths(largest: u64) -> Vec<u64> {
    let powers = (0..u64::BITS).map(|power| 1 << power).take_while(|power| *power <= largest);
    let around = powers.flat_map(|power| [power - 1, power, power + 1]);
    let mut lengths: Vec<u64> = around.filter(|length| (1..=largest).contains(length)).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Has `cat` on the target send a message of this length back; its bytes depend on the number.
pub(super) fn there_and_back(stage: &Stage, length: u64, number: u64) -> Result<Evidence> {
    let message: Vec<u8> = (0..length).map(|at| (at ^ (at >> 8) ^ number).to_le_bytes()[0]).collect();
    // A message that is sent during a fault waits for its end.
    let words = ["--connect-timeout", "5m", "web01.company", "--", "cat"];
    let output = stage.laptop.run(malai(words).stdin(message.clone()).timeout(MESSAGE_DEADLINE))?;
    let returned = output.success().with_context(|| format!("a message of {length} bytes"))?.stdout;
    ensure!(returned == message, "{length} bytes were sent, and other {} came back", returned.len());
    Ok(Evidence { bytes: length * 2, messages: vec![length], ..Evidence::default() })
}

#[cfg(test)]
mod tests {
    use super::lengths;

    #[test]
    fn the_sweep_has_every_power_of_two_and_its_neighbours() {
        assert_eq!(lengths(1), [1]);
        assert_eq!(lengths(8), [1, 2, 3, 4, 5, 7, 8]);
        let all = lengths(1 << 26);
        assert_eq!((all.len(), all.first(), all.last()), (76, Some(&1), Some(&(1 << 26))));
    }
}
