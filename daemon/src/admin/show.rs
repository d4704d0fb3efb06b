//! `malai config show` and `malai can`: what is signed, and what it means.

use malai_protocol::access::{Exec, Me, Request, explain, explain_elsewhere};
use malai_protocol::config::{Config, Problem};
use malai_protocol::failure::{Failure, Kind};
use malai_protocol::home::Home;
use malai_protocol::local::{self, Can, Role, Verdict};
use malai_protocol::snapshot::{MAX_TEXT, Snapshot};
use serde_bytes::ByteBuf;

use super::manager::diff;
use crate::runtime::user::own_user_name;
use crate::store;
use crate::store::clusters::{self, Cluster};

/// Reads the signed text, and at the manager the edited one with the difference.
///
/// # Errors
/// [`Kind::NotConfigured`] when there is no such cluster, or no snapshot yet; else what the disk says.
pub(super) fn config_show(home: &Home, alias: &str) -> Result<local::Config, Failure> {
    let cluster = clusters::load(home, alias)?;
    let snapshot = signed(&cluster)?;
    let edited = match cluster.role() {
        Role::Manager => store::read_edited(&cluster.dir.config(), MAX_TEXT)?,
        Role::Machine => None,
    };
    let diff = edited
        .as_deref()
        .map_or_else(String::new, |edited| diff(("signed", snapshot.text()), ("cluster.toml", edited)));
    Ok(local::Config {
        alias: alias.to_owned(),
        generation: snapshot.header().generation,
        signed: snapshot.text().to_owned(),
        edited,
        diff,
    })
}

/// Explains what a target would decide, by the config that is stored here.
///
/// # Errors
/// [`Kind::UnknownTarget`] and [`Kind::AmbiguousTarget`] for names that no cluster, or more than one, knows; else what
/// the disk says.
pub(super) fn can(home: &Home, ask: &Can) -> Result<Verdict, Failure> {
    let (cluster, config) = choose(home, ask)?;
    let find = |name: &str| {
        config.machine(name).ok_or_else(|| {
            Failure::new(Kind::UnknownTarget, format!("the cluster {} has no machine {name:?}", cluster.alias))
                .hint("`malai status` lists the machines")
        })
    };
    let (caller, target) = (find(&ask.who)?.id, find(&ask.machine)?.id);
    let words: Vec<ByteBuf> = ask.words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect();
    let exec = Exec { words: &words, literal: ask.literal, shell: false, user: ask.user.as_deref(), env_names: &[] };
    let request = Request::Exec(exec);
    if target != cluster.machine_key.id() {
        return Ok(explain_elsewhere(&config, &target, &caller, &request));
    }
    let user = own_user_name()?;
    let me = Me { id: &target, daemon_user: &user, root: nix::unistd::geteuid().is_root() };
    Ok(explain(&config, &me, &caller, &request))
}

/// Finds the cluster that is named, else the only one that has such a machine. A search passes over broken ones.
fn choose(home: &Home, ask: &Can) -> Result<(Cluster, Config), Failure> {
    let load = |alias: &str| {
        let cluster = clusters::load(home, alias)?;
        let config = Config::read(signed(&cluster)?.text())
            .map_err(|problems| Problem::failure(&problems, &format!("the config of {alias}")))?;
        Ok::<_, Failure>((cluster, config))
    };
    if let Some(alias) = &ask.cluster {
        return load(alias);
    }
    let loaded = clusters::list(home)?.into_iter().filter_map(|found| load(&found.alias).ok());
    let mut having: Vec<_> = loaded.filter(|(_, config)| config.machine(&ask.machine).is_some()).collect();
    let aliases: Vec<String> = having.iter().map(|(c, _)| format!("{}.{}", ask.machine, c.alias)).collect();
    match (having.pop(), having.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => {
            Err(Failure::new(Kind::AmbiguousTarget, format!("more than one cluster has a machine {}", ask.machine))
                .hint(format!("say which: {}", aliases.join(", "))))
        }
        (None, _) => Err(Failure::new(Kind::UnknownTarget, format!("no cluster here has a machine {:?}", ask.machine))
            .hint("`malai status` lists clusters and machines")),
    }
}

fn signed(cluster: &Cluster) -> Result<&Snapshot, Failure> {
    cluster.snapshot.as_ref().ok_or_else(|| {
        let message = format!("{} has no config here yet", cluster.alias);
        match cluster.role() {
            Role::Manager => Failure::new(Kind::NotConfigured, message).hint(format!("malai rescan {}", cluster.alias)),
            Role::Machine => Failure::new(Kind::NotConfigured, message).hint(format!(
                "it has to be enrolled; on the cluster manager: malai cluster approve {} {}",
                cluster.alias,
                cluster.machine_key.id()
            )),
        }
    })
}
