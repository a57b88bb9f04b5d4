//! The store stands still for longer than every term, and goes on.

use backfill_driver::port::Store;
use demo::api::until;
use serde_json::json;
use store_contract::Case;

use crate::case;
use crate::stage::{PATIENCE, Place, Stage};

/// The case, on the places that `place` makes; their stores are processes of our own.
pub(crate) fn case_in<S: Store, F>(place: impl Fn() -> F + Send + 'static) -> Case
where
    F: Future<Output = Place<S>> + 'static,
{
    case("firestore", "a_store_that_stands_still_costs_nothing_but_time", move || async move {
        stand_still(place().await).await;
    })
}

async fn stand_still<S: Store>(place: Place<S>) {
    let stage = Stage::new(place, 1, &[20]).await;
    let one = stage.active("one", &[]).await;
    let two = stage.start("two", &[]).await;
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;

    let stopped = stage.stop_store();
    let passive = async || {
        let ready = one.api().get("/ready").await?;
        anyhow::ensure!(ready.status == 200, "{ready:?}");
        Ok((ready.body["mode"] == "passive").then_some(()))
    };
    until("the holder to step down", PATIENCE, passive).await.unwrap();
    let blind = async || {
        let diag = one.api().get("/diag").await?;
        anyhow::ensure!(diag.status == 200, "{diag:?}");
        let seen = (&diag.body["firestoreConnected"], &diag.body["latestRealtime"]);
        Ok((seen == (&json!(false), &json!([]))).then_some(()))
    };
    until("/diag to say that the store is away", PATIENCE, blind).await.unwrap();
    stage.desks[0].contacts[0].text("while the store stands still");
    drop(stopped);

    stage.even(&ids).await;
    let one_of_two = async || Ok((one.is_active().await != two.is_active().await).then_some(()));
    until("one of two to be active", PATIENCE, one_of_two).await.unwrap();
    stage.end(vec![one, two]).await;
}
