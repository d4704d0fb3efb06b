//! What the lab needs of the machine that it runs on.

use std::path::{Path, PathBuf};

use super::group;

/// The programs that build the lab, and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 3] = [("ip", "iproute2"), ("nft", "nftables"), ("ping", "iputils-ping")];

/// Every reason why the lab cannot run here; empty when it can.
pub fn missing() -> Vec<String> {
    let mut reasons = Vec::new();
    if !nix::unistd::Uid::effective().is_root() {
        reasons.push("it needs root, to make namespaces".to_owned());
    }
    for (program, package) in PROGRAMS {
        if find_program(program).is_none() {
            reasons.push(format!("`{program}` is missing (apt-get install {package})"));
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        reasons.push("/dev/net/tun is missing, and wires are made of TAP devices".to_owned());
    }
    if let Err(error) = group::mount_point() {
        reasons.push(format!("{error:#}"));
    }
    reasons
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
