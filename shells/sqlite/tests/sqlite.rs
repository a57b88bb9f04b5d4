//! The contract, and what is SQLite's own, against files in a directory of their own.

use std::path::PathBuf;
use std::process::ExitCode;

use store_contract::{Fixture, cases, run};
use store_sqlite::SqliteStore;

fn main() -> ExitCode {
    let directory = std::env::temp_dir().join(format!("store-sqlite-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the files");
    let files = Files { directory };
    let code = run(cases(&files));
    std::fs::remove_dir_all(&files.directory).expect("the directory is still there");
    code
}

/// A file per space; every client has connections and threads of its own, as a process has.
#[derive(Clone)]
struct Files {
    directory: PathBuf,
}

impl Fixture for Files {
    type Store = SqliteStore;

    async fn open(&self, space: &str) -> SqliteStore {
        SqliteStore::open(&self.directory.join(space)).expect("the file opens")
    }
}
