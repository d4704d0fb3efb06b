//! What users see of a new snapshot, and of the machines that have it.

use malai_protocol::local::Publication;

use crate::output::Output;

/// Says which machines have the snapshot, by name, and which do not.
pub(super) fn show(out: Output, alias: &str, publication: &Publication) {
    let Publication { generation, published, holding, missing } = publication;
    out.note(&format!("{alias}: generation {generation}"));
    if !published {
        out.note("not published: no daemon runs here");
        out.hint("start one: malai daemon");
        return;
    }
    if !holding.is_empty() {
        out.note(&format!("{alias}: these machines have it: {}", holding.join(", ")));
    }
    if !missing.is_empty() {
        out.note(&format!(
            "{alias}: not reached: {}; they get it from the next machine that has it",
            missing.join(", ")
        ));
    }
}
