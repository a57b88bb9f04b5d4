//! What the specification wants to be true, against real processes on both stores.
//!
//! Each case starts its own WhatsApp double, phones and instances; they speak the real protocol to
//! the real client, over real sockets. Terms are short, rules are those of production.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "processes live in real time")]

mod cases;
mod outage;
mod reader;
mod stage;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use store_contract::{Case, Emulator, EmulatorError, run};
use store_firestore::{Credentials, FirestoreStore, Options};
use store_sqlite::SqliteStore;

use stage::Place;

fn main() -> ExitCode {
    let emulator = Emulator::start();
    let host = emulator.as_ref().map_or("127.0.0.1:1", Emulator::host).to_owned();
    let server = emulator.as_ref().ok().and_then(Emulator::pid);
    let mut cases = cases::all("sqlite", sqlite);
    let place = move || firestore(host.clone(), server);
    let mut firestore = cases::all("firestore", place.clone());
    firestore.push(reader::case_in(place.clone()));
    if server.is_some() || emulator.is_err() {
        firestore.push(outage::case_in(place));
    }
    match &emulator {
        Ok(_) => cases.extend(firestore),
        Err(EmulatorError::Missing) if !Emulator::required() => {
            let reason = EmulatorError::Missing.to_string();
            cases.extend(firestore.into_iter().map(|case| case.missing(reason.as_str())));
        }
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    }
    let code = run(cases);
    drop(emulator);
    code
}

async fn sqlite() -> Place<SqliteStore> {
    let directory = directory();
    let store = SqliteStore::open(&directory.join("wa-backfill.sqlite")).unwrap();
    Place { store, directory, vars: vec![("STORE".into(), "sqlite".into())], server: None }
}

async fn firestore(host: String, server: Option<u32>) -> Place<FirestoreStore> {
    let directory = directory();
    let project = directory.file_name().unwrap().to_str().unwrap().to_owned();
    let credentials = Credentials::Emulator(host.clone());
    let options = Options { project: project.clone(), credentials };
    let store = FirestoreStore::connect(&options).await.unwrap();
    let vars = [("STORE", "firestore"), ("FIRESTORE_EMULATOR_HOST", &*host)];
    let mut vars: Vec<(String, String)> =
        vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    vars.push(("GOOGLE_CLOUD_PROJECT".into(), project));
    Place { store, directory, vars, server }
}

/// A directory that nobody else uses, which also names a database.
fn directory() -> std::path::PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("wa-acceptance-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Gives a case the name of the store it runs on, and a runtime of its own.
fn case<F: Future<Output = ()>>(
    store: &str,
    name: &str,
    test: impl FnOnce() -> F + Send + 'static,
) -> Case {
    Case::new(format!("{store}::{name}"), move || async move {
        let run = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime.unwrap().block_on(test());
        };
        if let Err(failed) = tokio::task::spawn_blocking(run).await {
            std::panic::resume_unwind(failed.into_panic());
        }
    })
}
