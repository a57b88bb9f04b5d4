//! A copy of the database, taken while an instance runs.

use std::path::Path;
use std::process::ExitCode;

use clap::ArgMatches;
use store_sqlite::SqliteStore;

use super::{Outcome, Refusal, given};
use crate::config::{Config, StoreChoice};

/// Copies the SQLite database of the settings to a file that does not exist yet.
pub(super) fn backup(args: &ArgMatches) -> Outcome {
    let config =
        Config::new(&given(args)?).map_err(|errors| Refusal::of_setup(errors.to_string()))?;
    let StoreChoice::Sqlite(source) = config.store else {
        return Err(Refusal::of_setup("STORE is firestore: export it with Google's own tools"));
    };
    if !source.exists() {
        let source = source.display();
        return Err(Refusal::of_setup(format!("{source}: there is no database; see DATA_DIR")));
    }
    let target = args.get_one::<String>("file").map(Path::new).unwrap_or_else(|| Path::new(""));
    if target.exists() {
        let target = target.display();
        return Err(Refusal::new(format!("{target} exists; name a file that does not")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal::new(error.to_string()))?;
    let copied = runtime.block_on(async { SqliteStore::open(&source)?.backup(target).await });
    copied.map_err(|error| {
        let cause = std::error::Error::source(&error);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        Refusal::new(format!("{}: {error}{cause}", target.display()))
    })?;
    println!("{} is a copy of {}.", target.display(), source.display());
    Ok(ExitCode::SUCCESS)
}
