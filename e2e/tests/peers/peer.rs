//! A peer on a host of the lab, which takes orders and answers them, both as lines of JSON.

use anyhow::{Context as _, Result, ensure};
use malai_e2e::cluster::{Cluster, SOON};
use malai_e2e::lab::peers::{self, Language};
use malai_e2e::lab::{Child, Host, wait_for};
use serde_json::{Value, json};

/// A peer that runs.
pub(crate) struct Peer {
    // Before the host on which it runs goes.
    child: Child,
    host: Host,
    language: Language,
    orders: u32,
    id52: String,
}

impl Peer {
    /// Starts it, with what an earlier one left on this host.
    pub(crate) fn start(host: Host, language: Language) -> Result<Self> {
        let child = host.spawn(peers::command(language).stdin_open())?;
        let peer = Self { child, host, language, orders: 0, id52: String::new() };
        peer.answer(0)?;
        Ok(peer)
    }

    /// Has it join by an invite for its host's name, and waits until the manager has its link.
    pub(crate) fn join(&mut self, company: &Cluster) -> Result<()> {
        let token = company.invite(&["--name", self.host.hostname()])?;
        let joined = self.ask(json!({"do": "join", "token": token}))?;
        Self::has(&joined, &json!({"name": self.host.hostname()}))?;
        joined.get("id52").and_then(Value::as_str).context("no id52")?.clone_into(&mut self.id52);
        company.linked(&self.host)
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn id52(&self) -> &str {
        &self.id52
    }

    /// What it tells as its malai version.
    pub(crate) fn version(&self) -> &'static str {
        match self.language {
            Language::Python => "a peer in Python",
            Language::JavaScript => "a peer in JavaScript",
        }
    }

    /// What its command writes to standard error.
    pub(crate) fn signature(&self) -> &'static str {
        match self.language {
            Language::Python => "said in Python",
            Language::JavaScript => "said in JavaScript",
        }
    }

    /// Gives an order, and returns the answer of one that was done.
    pub(crate) fn ask(&mut self, order: Value) -> Result<Value> {
        let answer = self.order(order.clone())?;
        ensure!(answer.get("ok") == Some(&true.into()), "{order} came to {answer}");
        Ok(answer)
    }

    /// Gives an order, and returns the kind of the failure that came of it.
    pub(crate) fn refused(&mut self, order: Value) -> Result<String> {
        let answer = self.order(order.clone())?;
        ensure!(answer.get("ok") == Some(&false.into()), "{order} came to {answer}");
        Ok(answer.get("kind").and_then(Value::as_str).context("no kind")?.to_owned())
    }

    /// Waits until the commands of other machines on it, in the order in which they began, ended so.
    pub(crate) fn ended(&mut self, by: &[&str]) -> Result<()> {
        let wanted = json!(by);
        wait_for(SOON, &format!("the commands ended by {wanted}"), || {
            let answer = self.ask(json!({"do": "sessions"}))?;
            Ok((answer.get("ended_by") == Some(&wanted)).then_some(()))
        })
    }

    /// Checks that an answer has all of this.
    pub(crate) fn has(answer: &Value, wanted: &Value) -> Result<()> {
        for (name, value) in wanted.as_object().context("a map")? {
            ensure!(answer.get(name) == Some(value), "{name} is not {value} in {answer}");
        }
        Ok(())
    }

    /// Lets it go in good order, and returns its host.
    pub(crate) fn stop(mut self) -> Result<Host> {
        self.child.close_stdin();
        self.child.output_within(SOON)?.success()?;
        Ok(self.host)
    }

    fn order(&mut self, mut order: Value) -> Result<Value> {
        self.orders += 1;
        order.as_object_mut().context("an order is a map")?.insert("n".to_owned(), self.orders.into());
        self.child.write(format!("{order}\n").as_bytes())?;
        self.answer(self.orders)
    }

    fn answer(&self, number: u32) -> Result<Value> {
        let line = self.child.wait_for_line(&format!("{{\"n\":{number},"), SOON * 4);
        let line = line.with_context(|| String::from_utf8_lossy(&self.child.stderr()).into_owned())?;
        Ok(serde_json::from_str(&line)?)
    }
}
