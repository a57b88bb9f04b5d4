//! Sessions in files of this host.

use std::fs::{DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backfill_core::id::AccountId;
use store_sqlite::SqliteStore;

use super::error::SessionError;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const EXTENSION: &str = "sqlite";
/// What SQLite puts beside a file, and the file itself last: while it is there, so is the session.
const FILES: [&str; 3] = ["sqlite-wal", "sqlite-shm", "sqlite"];

#[derive(Clone)]
pub(crate) struct Directory(Arc<Path>);

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path.into())
    }

    /// Opens the account's file, or creates it.
    pub(crate) async fn open(&self, account: &AccountId) -> Result<SqliteStore, SessionError> {
        let file = self.file(account, EXTENSION);
        let directory = Arc::clone(&self.0);
        blocking(move || {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&directory)?;
            std::fs::set_permissions(&directory, Permissions::from_mode(DIRECTORY_MODE))?;
            let store = SqliteStore::open_alone(&file)?;
            std::fs::set_permissions(&file, Permissions::from_mode(FILE_MODE))?;
            Ok(store)
        })
        .await
    }

    pub(crate) async fn has(&self, account: &AccountId) -> Result<bool, SessionError> {
        let file = self.file(account, EXTENSION);
        blocking(move || Ok(file.try_exists()?)).await
    }

    /// The accounts that have a file.
    pub(crate) async fn accounts(&self) -> Result<Vec<AccountId>, SessionError> {
        let directory = Arc::clone(&self.0);
        blocking(move || {
            let entries = match directory.read_dir() {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut accounts = Vec::new();
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == EXTENSION) {
                    let name = path.file_stem().and_then(|name| name.to_str());
                    accounts.extend(name.and_then(|name| AccountId::parse(name).ok()));
                }
            }
            accounts.sort_unstable();
            Ok(accounts)
        })
        .await
    }

    /// Removes the account's file.
    pub(crate) async fn remove(&self, account: &AccountId) -> Result<(), SessionError> {
        let files = FILES.map(|extension| self.file(account, extension));
        blocking(move || {
            for file in files {
                match std::fs::remove_file(file) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    /// An account's id is one segment of a path, so its file lies in this directory.
    fn file(&self, account: &AccountId, extension: &str) -> PathBuf {
        self.0.join(format!("{}.{extension}", account.as_str()))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SessionError> + Send + 'static,
) -> Result<T, SessionError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(io::Error::other(e).into()))
}
