//! A cloud in the lab: it answers the calls of `doctl` that `scripts/digitalocean` makes, and its droplets are hosts.
//!
//! On the host that runs the script, `doctl` is a few lines of shell that send their words here and print the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use malai_e2e::lab::{Child, Host, Lab, Segment, wait_for};
use serde_json::{Value, json};

use crate::stage::{LONG, serve_ssh};

/// The shell's side: how many words, the words, each on a line; back come an exit code and what to print.
const DOCTL: &str = r#"#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/PORT || exit 1
printf '%s\n' $# "$@" >&3
read -r code <&3
if [ "$code" = 0 ]; then exec cat <&3; fi
cat <&3 >&2
exit "${code:-1}"
"#;

/// What goes wrong in the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The second droplet is not made; nor is it in the cases of a deletion.
    SecondRefused,
    /// The answer to the first creation does not come before the caller has gone; the droplet comes after that.
    Late,
    /// The first deletion of a droplet fails.
    OneDeletion,
    /// No droplet is ever deleted.
    EveryDeletion,
}

/// The account, and what stands behind it.
#[derive(Debug)]
pub(crate) struct Cloud {
    lab: Lab,
    lan: Segment,
    fault: Fault,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    keys: BTreeMap<u64, (String, String)>,
    droplets: BTreeMap<u64, Droplet>,
    tags: BTreeSet<String>,
    /// Every call, for messages and for what was asked.
    calls: Vec<String>,
}

#[derive(Debug)]
struct Droplet {
    name: String,
    region: String,
    tag: String,
    looked_at: bool,
    host: Host,
    _server: Child,
}

impl Cloud {
    /// An empty account, and a `doctl` for it in `/root/bin` of this host.
    pub(crate) fn open(lab: Lab, lan: Segment, driver: &Host, fault: Fault) -> Result<Arc<Self>> {
        let listener = driver.in_network(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        let port = listener.local_addr()?.port().to_string();
        driver.write("/root/bin/doctl", DOCTL.replace("PORT", &port))?;
        driver.run(["chmod", "755", "/root/bin/doctl"])?.success()?;
        let cloud = Arc::new(Self { lab, lan, fault, state: Mutex::default(), changed: Condvar::new() });
        let weak = Arc::downgrade(&cloud);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let Some(cloud) = weak.upgrade() else { return };
                // A caller that has gone is no error of the cloud.
                thread::spawn(move || drop(cloud.serve(&connection)));
            }
        });
        Ok(cloud)
    }

    /// What the account has, in words; empty when it has nothing.
    pub(crate) fn account(&self) -> String {
        let state = self.lock();
        let droplets = state.droplets.values().map(|one| format!("droplet {} in {}", one.name, one.region));
        let keys = state.keys.values().map(|(name, _)| format!("key {name}"));
        let tags = state.tags.iter().map(|tag| format!("tag {tag}"));
        droplets.chain(keys).chain(tags).collect::<Vec<_>>().join(", ")
    }

    /// The calls that were made, each on a line.
    pub(crate) fn calls(&self) -> String {
        self.lock().calls.join("\n")
    }

    /// Waits until a call with these words was made.
    pub(crate) fn wait_for_call(&self, words: &str) -> Result<()> {
        let called = || Ok(self.lock().calls.iter().any(|call| call.contains(words)).then_some(()));
        wait_for(LONG, words, called).with_context(|| self.calls())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, connection: &TcpStream) -> Result<()> {
        let mut lines = BufReader::new(connection).lines();
        let count: usize = lines.next().context("no words")??.parse()?;
        let words = lines.take(count).collect::<Result<Vec<_>, _>>()?;
        self.lock().calls.push(words.join(" "));
        let (code, answer) = match self.answer(&words, connection) {
            Ok(document) => (0, document.to_string()),
            Err(error) => (1, format!("Error: {error:#}")),
        };
        let mut connection = connection;
        write!(connection, "{code}\n{answer}\n")?;
        Ok(())
    }

    fn answer(&self, words: &[String], connection: &TcpStream) -> Result<Value> {
        let plain: Vec<_> = words.iter().map(String::as_str).take_while(|word| !word.starts_with("--")).collect();
        let reads = !plain.contains(&"delete");
        ensure!(!reads || option(words, "--output")? == "json", "this cloud speaks JSON alone");
        ensure!(reads || words.iter().any(|word| word == "--force"), "a deletion would ask: Are you sure?");
        match plain.as_slice() {
            ["compute", "region", "list"] => Ok(regions()),
            ["compute", "size", "list"] => Ok(sizes()),
            ["compute", "ssh-key", "create", name] => self.create_key(name, option(words, "--public-key")?),
            ["compute", "ssh-key", "list"] => Ok(self.keys()),
            ["compute", "ssh-key", "delete", id] => self.delete_key(id.parse()?),
            ["compute", "droplet", "create", name] => self.create_droplet(name, words, connection),
            ["compute", "droplet", "get", id] => self.get_droplet(id.parse()?),
            ["compute", "droplet", "list"] => Ok(self.droplets(option(words, "--tag-name")?)),
            ["compute", "droplet", "delete"] => self.delete_tagged(option(words, "--tag-name")?),
            ["compute", "droplet", "delete", id] => self.delete_droplet(id.parse()?),
            ["compute", "tag", "delete", tag] => {
                ensure!(self.lock().tags.remove(*tag), "no tag {tag}");
                Ok(Value::Null)
            }
            other => bail!("unknown command {other:?} for \"doctl\""),
        }
    }
}

/// Keys.
impl Cloud {
    fn create_key(&self, name: &str, key: &str) -> Result<Value> {
        let mut state = self.lock();
        ensure!(key.starts_with("ssh-ed25519 "), "422 Key invalid: {key}");
        let id = state.next_id();
        state.keys.insert(id, (name.to_owned(), key.to_owned()));
        Ok(json!([{ "id": id, "name": name, "fingerprint": "aa:bb", "public_key": key }]))
    }

    fn keys(&self) -> Value {
        self.lock().keys.iter().map(|(id, (name, key))| json!({ "id": id, "name": name, "public_key": key })).collect()
    }

    fn delete_key(&self, id: u64) -> Result<Value> {
        self.lock().keys.remove(&id).context("404 The resource you were accessing could not be found.")?;
        Ok(Value::Null)
    }
}

/// Droplets.
impl Cloud {
    fn create_droplet(&self, name: &str, words: &[String], connection: &TcpStream) -> Result<Value> {
        let (region, tag) = (option(words, "--region")?, option(words, "--tag-names")?);
        ensure!(words.iter().any(|word| word == "--wait"), "nobody waits for it");
        ensure!(option(words, "--size")? == "s-1vcpu-1gb" && option(words, "--image")? == "debian-12-x64", "{words:?}");
        let number = self.lock().droplets.len();
        let one = matches!(self.fault, Fault::SecondRefused | Fault::OneDeletion | Fault::EveryDeletion);
        ensure!(!one || number == 0, "422 creating this will exceed your droplet limit");
        if self.fault == Fault::Late && number == 0 {
            gone(connection)?;
        }
        let id = self.lock().next_id();
        let key: u64 = option(words, "--ssh-keys")?.parse()?;
        let key = self.lock().keys.get(&key).map(|(_, key)| key.clone());
        let host = self.lab.host(name).on(&self.lan).boot()?;
        let server = serve_ssh(&host, &key.unwrap_or_default())?;
        let (name, region, tag) = (name.to_owned(), region.to_owned(), tag.to_owned());
        let mut state = self.lock();
        state.tags.insert(tag.clone());
        let droplet = Droplet { name, region, tag, looked_at: false, host, _server: server };
        let document = droplet.document(id);
        state.droplets.insert(id, droplet);
        self.changed.notify_all();
        Ok(json!([document]))
    }

    fn get_droplet(&self, id: u64) -> Result<Value> {
        let mut state = self.lock();
        let droplet = state.droplets.get_mut(&id).context("404 The resource you were accessing could not be found.")?;
        let document = droplet.document(id);
        droplet.looked_at = true;
        Ok(json!([document]))
    }

    fn droplets(&self, tag: &str) -> Value {
        let state = self.lock();
        let tagged = state.droplets.iter().filter(|(_, droplet)| droplet.tag == tag);
        tagged.map(|(id, droplet)| droplet.document(*id)).collect()
    }

    fn delete_droplet(&self, id: u64) -> Result<Value> {
        let mut state = self.lock();
        let tries = state.calls.iter().filter(|call| call.starts_with("compute droplet delete")).count();
        let fails = self.fault == Fault::EveryDeletion || self.fault == Fault::OneDeletion && tries == 1;
        ensure!(!fails, "500 Server Error");
        state.droplets.remove(&id).context("404 The resource you were accessing could not be found.")?;
        Ok(Value::Null)
    }

    fn delete_tagged(&self, tag: &str) -> Result<Value> {
        self.lock().droplets.retain(|_, droplet| droplet.tag != tag);
        Ok(Value::Null)
    }

    /// Waits until there are so many droplets.
    pub(crate) fn wait_for_droplets(&self, number: usize) -> Result<()> {
        let state = self.lock();
        let fewer = |state: &mut State| state.droplets.len() < number;
        let (state, waited) =
            self.changed.wait_timeout_while(state, LONG, fewer).unwrap_or_else(PoisonError::into_inner);
        drop(state);
        ensure!(!waited.timed_out(), "there are no {number} droplets");
        Ok(())
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

impl Droplet {
    /// As the real one is told; new at the first look.
    fn document(&self, id: u64) -> Value {
        let status = if self.looked_at { "active" } else { "new" };
        json!({
            "id": id, "name": self.name, "status": status, "region": { "slug": self.region }, "tags": [self.tag],
            "networks": { "v4": [
                { "ip_address": "10.255.0.1", "netmask": "255.255.0.0", "type": "private" },
                { "ip_address": self.host.ip().to_string(), "netmask": "255.255.255.0", "type": "public" },
            ] },
        })
    }
}

/// Waits until a caller that waits for its answer has gone.
fn gone(connection: &TcpStream) -> Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    ensure!(connection.peek(&mut [0])? == 0, "the caller says more");
    Ok(())
}

fn option<'w>(words: &'w [String], name: &str) -> Result<&'w str> {
    let value = words.iter().skip_while(|word| *word != name).nth(1);
    value.map(String::as_str).with_context(|| format!("{name} is missing in {words:?}"))
}

fn regions() -> Value {
    let region =
        |slug: &str, available: bool| json!({ "slug": slug, "available": available, "sizes": ["s-1vcpu-1gb"] });
    json!([region("fra1", true), region("nyc3", true), region("nyc1", false)])
}

fn sizes() -> Value {
    json!([{ "slug": "s-1vcpu-1gb", "memory": 1024, "vcpus": 1, "price_monthly": 6.0, "price_hourly": 0.00893,
        "regions": ["fra1", "nyc3"], "available": true }])
}
