//! Does without a daemon what needs only the disk. Nothing is published.

mod leave;
mod stop;

use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{Request, Response};

use crate::admin::{self, DeskState};
use crate::requests::doctor;
use crate::runtime::blocking::blocking;
use crate::runtime::clock::now_ms;
use crate::store::lock::{self, Changes};

pub use stop::{end_executor, stop_by_signal};

/// Does what a request needs of the disk, in a home where no daemon runs. An agent may run there.
pub async fn offline(home: &Home, request: Request) -> Response {
    if let Request::MachineLeave { cluster, force } = &request {
        return leave::leave(home, cluster, *force).await.unwrap_or_else(Response::Failed);
    }
    let home = home.clone();
    // The disk may be slow, and the lock may have to be waited for.
    blocking(move || answer(&home, &request)).await.unwrap_or_else(Response::Failed)
}

fn answer(home: &Home, request: &Request) -> Result<Response, Failure> {
    let begin = || {
        let changes = Changes::begin(home)?;
        changes.refuse_beside_a_daemon()?;
        Ok(changes)
    };
    if let Request::Doctor = request {
        return Ok(Response::Doctor(doctor::offline(home)));
    }
    if let Some(done) = admin::carry_out(home, request, DeskState::default(), begin, now_ms())? {
        return Ok(done.answer);
    }
    match lock::find_holder(home)? {
        Some(holder) if !holder.agent => Err(holder.unreachable(home)),
        _ => Err(Failure::new(Kind::NotConfigured, "this needs a daemon, and none runs here").hint("malai daemon")),
    }
}

#[cfg(test)]
mod tests;
