//! Where secret keys lie in the memory of a daemon.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use malai_protocol::codec::Kind;
use malai_protocol::peer::{Redeem, VERSION};
use serde_bytes::ByteArray;
use zeroize::Zeroize;

use crate::support::peer::{Peer, open, send};
use crate::support::{Machine, next};

const KEY_BYTES: usize = 32;
const CHUNK_BYTES: usize = 1024 * 1024;

/// Sets how many copies of a key there may be. iroh keeps two or three for each endpoint (its settings, its TLS, and the
/// settings of what sends by relays), a handshake that goes on at this moment has one, and iroh's freed memory some more: up
/// to 12 were seen beside other tests, and a slower machine may free later. The newcomers below are 128, and left 60 before
/// keys were wiped: the bound lies between.
const MAX_KEY_COPIES: usize = 40;
const MASK: u8 = 0x5a;

/// Holds bytes to look for, in another form, so that this is not a copy itself.
struct Sought {
    masked: Vec<u8>,
}

impl Sought {
    /// The secret key of this file, and its digits as they are in the file.
    fn read(path: &Path) -> Result<[Self; 2]> {
        let mut digits = [0; 2 * KEY_BYTES];
        File::open(path)?.read_exact(&mut digits)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16).context("a digit");
        let mut masked = Vec::with_capacity(KEY_BYTES);
        for at in 0..KEY_BYTES {
            masked.push(u8::try_from((digit(2 * at)? << 4) | digit(2 * at + 1)?)? ^ MASK);
        }
        let as_text = Self { masked: digits.iter().map(|digit| digit ^ MASK).collect() };
        digits.zeroize();
        Ok([Self { masked }, as_text])
    }

    fn is_at(&self, bytes: &[u8]) -> bool {
        bytes.len() >= self.masked.len() && bytes.iter().zip(&self.masked).all(|(byte, masked)| byte ^ MASK == *masked)
    }

    /// Where in this process's own memory the key lies.
    fn places(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let memory = File::open("/proc/self/mem")?;
        let mut buffer = vec![0; CHUNK_BYTES + self.masked.len() - 1];
        let own = buffer.as_ptr().addr()..buffer.as_ptr().addr() + buffer.len();
        for line in std::fs::read_to_string("/proc/self/maps")?.lines().filter(|line| line.contains(" rw-p ")) {
            let (range, name) = line.split_once(' ').context("a mapping")?;
            let (start, end) = range.split_once('-').context("a range")?;
            let (start, end) = (usize::from_str_radix(start, 16)?, usize::from_str_radix(end, 16)?);
            for from in (start..end).step_by(CHUNK_BYTES) {
                let length = buffer.len().min(end - from);
                // Memory that was unmapped meanwhile is skipped.
                let Ok(read) = memory.read_at(&mut buffer[..length], from as u64) else { continue };
                for at in self.found_in(&buffer[..read]).into_iter().filter(|at| *at < CHUNK_BYTES) {
                    if !own.contains(&(from + at)) {
                        let name = name.rsplit(' ').next().unwrap_or_default();
                        found.push(format!("{:x} {range} {name}", from + at));
                    }
                }
            }
        }
        buffer.zeroize();
        Ok(found)
    }

    #[allow(unsafe_code, reason = "the C library's search is as fast in a debug build as in any")]
    fn found_in(&self, bytes: &[u8]) -> Vec<usize> {
        let first = i32::from(self.masked[0] ^ MASK);
        let (mut found, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            // SAFETY: looks at the bytes of this slice only.
            let hit = unsafe { libc::memchr(bytes[at..].as_ptr().cast(), first, bytes.len() - at) };
            if hit.is_null() {
                break;
            }
            at = hit.addr() - bytes.as_ptr().addr();
            if self.is_at(&bytes[at..]) {
                found.push(at);
            }
            at += 1;
        }
        found
    }
}

/// Shows an invite that nobody made, over a connection of its own.
async fn guess(laptop: &Machine, number: u8) -> Result<()> {
    let newcomer = Peer::new().await?;
    let conn = newcomer.dial_desk(laptop).await?;
    let mut wire = open(&conn).await?;
    let secret = ByteArray::new([number; 32]);
    send(&mut wire, Kind::Redeem, &Redeem { version: VERSION, secret, hostname: "web01".into() }).await?;
    let answer = next(&mut wire).await?;
    ensure!(answer.kind == Kind::Refused, "{:?}", answer.kind);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_leave_no_copies_of_the_managers_keys_in_its_memory() -> Result<()> {
    let laptop = Machine::start().await?;
    laptop.init("laptop").await?;
    let dir = laptop.home.cluster("c");
    let keys = [("cluster key", dir.cluster_key()), ("machine key", dir.machine_key())];
    let keys: Vec<_> = keys.into_iter().map(|(name, path)| Ok((name, Sought::read(&path)?))).collect::<Result<_>>()?;
    let (_first, _) = Peer::join(&laptop, "web00", &[]).await?;
    for round in 0..4u8 {
        try_join_all((0..32).map(|number| guess(&laptop, round * 32 + number))).await?;
    }
    let (_second, _) = Peer::join(&laptop, "web01", &[]).await?;
    for (name, [key, as_text]) in &keys {
        let (places, texts) = (key.places()?, as_text.places()?);
        ensure!(!places.is_empty(), "the {name} of a living endpoint was not found: this test cannot tell");
        ensure!(places.len() <= MAX_KEY_COPIES, "{} copies of the {name}: {places:#?}", places.len());
        ensure!(texts.is_empty(), "the {name} as it is in its file: {texts:#?}");
    }
    laptop.stop().await?;
    Ok(())
}
