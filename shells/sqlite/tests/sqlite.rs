//! The contract, and what is SQLite's own, against files in a directory of their own.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

mod files;
mod processes;
mod time;

use std::path::PathBuf;
use std::process::ExitCode;

use store_contract::{Fixture, cases, run};
use store_sqlite::SqliteStore;

fn main() -> ExitCode {
    if let Some(code) = processes::run_as_child() {
        return code;
    }
    let directory = std::env::temp_dir().join(format!("store-sqlite-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the files");
    let files = Files { directory };
    let mut cases = cases(&files);
    cases.extend(files::cases(&files));
    cases.extend(processes::cases(&files));
    cases.extend(time::cases(&files));
    let code = run(cases);
    std::fs::remove_dir_all(&files.directory).expect("the directory is still there");
    code
}

/// A file per space; every client has connections and threads of its own, as a process has.
#[derive(Clone)]
pub(crate) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(crate) fn path(&self, space: &str) -> PathBuf {
        self.directory.join(space)
    }
}

impl Fixture for Files {
    type Store = SqliteStore;

    async fn open(&self, space: &str) -> SqliteStore {
        SqliteStore::open(&self.path(space)).expect("the file opens")
    }
}
