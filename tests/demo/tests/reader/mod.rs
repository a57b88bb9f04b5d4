//! Somebody else's reader: Google's own client for Python does what the inbox and its proxy do.

use std::process::{Command, Stdio};

use backfill_driver::port::Store;
use store_contract::Case;

use crate::case;
use crate::stage::{Place, Stage};

/// Names a Python that has `google-cloud-firestore`; `python3` otherwise.
const PYTHON: &str = "WA_BACKFILL_PYTHON";
/// With this variable set to `1`, a missing client fails the test that needs it.
const REQUIRE_READER: &str = "WA_BACKFILL_REQUIRE_READER";

/// The case, on the places that `place` makes; listed as not run where the client is missing.
pub(crate) fn case_in<S: Store, F>(place: impl Fn() -> F + Send + 'static) -> Case
where
    F: Future<Output = Place<S>> + 'static,
{
    let name = "googles_python_client_reads_and_queues";
    let case = case("firestore", name, move || async move { read_and_queue(place().await).await });
    let required = std::env::var(REQUIRE_READER).is_ok_and(|value| value == "1");
    if required || has_client() {
        return case;
    }
    case.missing(format!("{} has no google-cloud-firestore", python()))
}

async fn read_and_queue<S: Store>(place: Place<S>) {
    let vars = place.vars.clone();
    let stage = Stage::new(place, 1, &[30, 5]).await;
    let one = stage.active("one", &[]).await;
    let ids = stage.link(&one, 10).await;
    stage.even(&ids).await;
    stage.desks[0].contacts[0].text("live");
    stage.even(&ids).await;
    let done = |doc: &backfill_core::doc::Document| {
        (doc.bool("lastAutoBackfillStatus.ok")? && doc.time("lastRecentSyncAt").is_some())
            .then_some(())
    };
    stage.account("a run and a recent sync to end", &ids[0], done).await;
    let contact = &stage.desks[0].contacts[0];
    let mut reader = Command::new(python());
    reader.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/reader.py"));
    reader.args([&ids[0], &contact.pn().to_string()]).envs(vars).stdin(Stdio::null());
    let read = tokio::task::spawn_blocking(move || reader.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&read.stdout);
    let wrong = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "the reader says:\n{said}{wrong}");
    print!("{said}");
    stage.end(vec![one]).await;
}

fn python() -> String {
    std::env::var(PYTHON).unwrap_or_else(|_| "python3".into())
}

fn has_client() -> bool {
    let mut tried = Command::new(python());
    tried.args(["-c", "import google.cloud.firestore"]);
    tried.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    tried.status().is_ok_and(|status| status.success())
}
