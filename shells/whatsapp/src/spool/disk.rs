//! A spool in files: one directory per account, one file per chunk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backfill_core::id::AccountId;
use backfill_core::io::ChunkId;
use bytes::Bytes;

use super::{Keep, Lost};
use crate::chunk::Chunk;

pub(super) struct Disk {
    directory: PathBuf,
}

impl Disk {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn of(&self, account: &AccountId) -> PathBuf {
        let mut name = String::new();
        for byte in account.as_str().bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
                _ => name.push_str(&format!("%{byte:02x}")),
            }
        }
        self.directory.join(name)
    }
}

#[async_trait]
impl Keep for Disk {
    async fn put(&self, account: &AccountId, chunk: ChunkId, it: &Chunk) -> Result<(), Lost> {
        let (directory, it) = (self.of(account), it.clone());
        aside(move || {
            let crc = crc(&it.payload);
            let mut header = Vec::with_capacity(HEADER);
            header.extend(MAGIC);
            header.extend(it.size.to_be_bytes());
            header.extend(it.at.to_be_bytes());
            header.extend(crc.to_be_bytes());
            write(&directory, &file_name(chunk), &[&header, &it.payload])
        })
        .await
    }

    async fn get(&self, account: &AccountId, chunk: ChunkId) -> Result<Option<Chunk>, Lost> {
        let path = self.of(account).join(file_name(chunk));
        aside(move || {
            let mut content = Vec::new();
            match File::open(&path) {
                Ok(mut file) => file.read_to_end(&mut content)?,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            parse(content).map(Some)
        })
        .await
    }

    async fn list(&self, account: &AccountId) -> Result<Vec<ChunkId>, Lost> {
        let directory = self.of(account);
        aside(move || {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut chunks = Vec::new();
            for entry in entries {
                let name = entry?.file_name();
                let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
                chunks.extend(id.and_then(|id| id.parse().ok()).map(ChunkId));
            }
            chunks.sort_unstable();
            Ok(chunks)
        })
        .await
    }

    async fn remove(&self, account: &AccountId, chunk: ChunkId) -> Result<(), Lost> {
        let path = self.of(account).join(file_name(chunk));
        aside(move || unless_gone(fs::remove_file(path))).await
    }

    async fn clear(&self, account: &AccountId) -> Result<(), Lost> {
        let directory = self.of(account);
        aside(move || unless_gone(fs::remove_dir_all(directory))).await
    }

    async fn note(&self, account: &AccountId, expected: u64) -> Result<(), Lost> {
        let directory = self.of(account);
        aside(move || match expected {
            0 => unless_gone(fs::remove_file(directory.join(NOTE))),
            _ => write(&directory, NOTE, &[expected.to_string().as_bytes()]),
        })
        .await
    }

    async fn noted(&self, account: &AccountId) -> Result<u64, Lost> {
        let path = self.of(account).join(NOTE);
        aside(move || match fs::read_to_string(path) {
            Ok(text) => text.parse().map_err(|_| Lost::Damaged),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        })
        .await
    }
}

/// Files are dealt with where nobody waits for anything else.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Lost> + Send + 'static,
) -> Result<T, Lost> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::other("the process ends").into()),
    }
}

/// Writes a file so that it is there as a whole or not at all.
fn write(directory: &Path, name: &str, parts: &[&[u8]]) -> Result<(), Lost> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = directory.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(temporary, directory.join(name))?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

fn unless_gone(result: io::Result<()>) -> Result<(), Lost> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn parse(content: Vec<u8>) -> Result<Chunk, Lost> {
    let content = Bytes::from(content);
    let field = |from: usize| content.get(from..from + 8).and_then(|b| <[u8; 8]>::try_from(b).ok());
    let (Some(size), Some(at)) = (field(4), field(12)) else { return Err(Lost::Damaged) };
    let stored_crc = content.get(20..HEADER).and_then(|b| <[u8; 4]>::try_from(b).ok());
    let payload = content.slice(HEADER..);
    if !content.starts_with(MAGIC) || stored_crc.map(u32::from_be_bytes) != Some(crc(&payload)) {
        return Err(Lost::Damaged);
    }
    let (size, at) = (u64::from_be_bytes(size), i64::from_be_bytes(at));
    Ok(Chunk { payload, size, at, _room: None })
}

fn crc(payload: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(payload);
    crc.sum()
}

fn file_name(chunk: ChunkId) -> String {
    format!("{:020}{SUFFIX}", chunk.0)
}

const HEADER: usize = 24;
const MAGIC: &[u8; 4] = b"WBH1";
const NOTE: &str = "announced";
const SUFFIX: &str = ".history";

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn disk() -> Disk {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("wa-spool-{}-{number}", std::process::id()));
        fs::remove_dir_all(&directory).ok();
        Disk::new(directory)
    }

    fn chunk(payload: &'static [u8]) -> Chunk {
        Chunk { payload: Bytes::from_static(payload), size: 99, at: 1_800_000_000, _room: None }
    }

    #[tokio::test]
    async fn a_chunk_comes_back_as_it_was_until_it_is_removed() {
        let (disk, account) = (disk(), AccountId::parse("..a b").unwrap());
        assert!(disk.list(&account).await.unwrap().is_empty());
        for id in [9, 10, 2] {
            disk.put(&account, ChunkId(id), &chunk(b"payload")).await.unwrap();
        }
        disk.put(&account, ChunkId(9), &chunk(b"payload")).await.unwrap();
        assert_eq!(disk.list(&account).await.unwrap(), [ChunkId(2), ChunkId(9), ChunkId(10)]);
        let back = disk.get(&account, ChunkId(9)).await.unwrap().unwrap();
        assert_eq!((&back.payload[..], back.size, back.at), (&b"payload"[..], 99, 1_800_000_000));
        disk.remove(&account, ChunkId(9)).await.unwrap();
        disk.remove(&account, ChunkId(9)).await.unwrap();
        assert!(disk.get(&account, ChunkId(9)).await.unwrap().is_none());
        let other = AccountId::parse("other").unwrap();
        assert!(disk.list(&other).await.unwrap().is_empty());
        disk.clear(&account).await.unwrap();
        assert!(disk.list(&account).await.unwrap().is_empty());
        fs::remove_dir_all(&disk.directory).unwrap();
    }

    #[tokio::test]
    async fn damage_is_noticed_and_half_a_file_is_none() {
        let (disk, account) = (disk(), AccountId::parse("a").unwrap());
        disk.put(&account, ChunkId(1), &chunk(b"payload")).await.unwrap();
        let path = disk.of(&account).join(file_name(ChunkId(1)));
        let mut content = fs::read(&path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(&path, &content).unwrap();
        assert!(matches!(disk.get(&account, ChunkId(1)).await, Err(Lost::Damaged)));
        fs::write(&path, b"WB").unwrap();
        assert!(matches!(disk.get(&account, ChunkId(1)).await, Err(Lost::Damaged)));
        fs::rename(&path, path.with_extension("history.new")).unwrap();
        assert!(disk.list(&account).await.unwrap().is_empty());
        fs::remove_dir_all(&disk.directory).unwrap();
    }

    #[tokio::test]
    async fn what_was_announced_is_remembered() {
        let (disk, account) = (disk(), AccountId::parse("a").unwrap());
        assert_eq!(disk.noted(&account).await.unwrap(), 0);
        disk.note(&account, 3).await.unwrap();
        assert_eq!(disk.noted(&account).await.unwrap(), 3);
        disk.note(&account, 0).await.unwrap();
        assert_eq!(disk.noted(&account).await.unwrap(), 0);
        fs::remove_dir_all(&disk.directory).unwrap();
    }
}
