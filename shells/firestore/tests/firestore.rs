//! The contract, and what is Firestore's own, against the real emulator.

#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

mod outages;

use std::process::ExitCode;
use std::time::Duration;

use store_contract::{Emulator, EmulatorError, Fixture, cases, run};
use store_firestore::{Credentials, FirestoreStore, Options, Timeouts};

fn main() -> ExitCode {
    let emulator = Emulator::start();
    let host = emulator.as_ref().map_or("127.0.0.1:1", Emulator::host).to_owned();
    let mut cases = cases(&Database { host });
    cases.extend(outages::cases());
    let code = match &emulator {
        Ok(_) => run(cases),
        Err(EmulatorError::Missing) if !Emulator::required() => {
            let reason = EmulatorError::Missing.to_string();
            run(cases.into_iter().map(|case| case.missing(reason.as_str())).collect())
        }
        Err(e) => {
            println!("{e}");
            ExitCode::FAILURE
        }
    };
    drop(emulator);
    code
}

/// A project per space: the emulator keeps them apart.
#[derive(Clone)]
struct Database {
    host: String,
}

impl Fixture for Database {
    type Store = FirestoreStore;
    const TORN_READS: bool = true;

    async fn open(&self, space: &str) -> FirestoreStore {
        let options = Options {
            project: space.chars().take(60).collect(),
            credentials: Credentials::Emulator(self.host.clone()),
        };
        let store = FirestoreStore::connect(&options).await.expect("the emulator answers");
        // A cold emulator on a busy machine takes long; deadlines are for the cases of outages.
        let patient = Duration::from_secs(60);
        store.with_timeouts(Timeouts { get: patient, commit: patient, query: patient })
    }
}
