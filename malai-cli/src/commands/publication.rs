//! How a new snapshot and who has it are told.

use malai_protocol::local::Publication;

use crate::output::Output;

/// Says who has the snapshot, by name, and what is missing.
pub(super) fn tell(out: Output, alias: &str, publication: &Publication) {
    let Publication { generation, published, holding, missing } = publication;
    out.note(&format!("{alias}: generation {generation}"));
    if !published {
        out.note("not published: no daemon runs here");
        out.hint("start one: malai daemon");
        return;
    }
    if !holding.is_empty() {
        out.note(&format!("{alias}: held by {}", holding.join(", ")));
    }
    if !missing.is_empty() {
        out.note(&format!(
            "{alias}: not reached: {}; they get it as soon as they meet a machine that has it",
            missing.join(", ")
        ));
    }
}
