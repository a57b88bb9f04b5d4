//! The cases, the same on each store.

use std::time::{Duration, Instant};

use backfill_core::doc::{Document, FieldOp, FieldPath, Precondition, Value, Write};
use backfill_driver::port::Store;
use demo::api::until;
use demo::fleet::Instance;
use rustix::process::Signal;
use serde_json::json;
use store_contract::Case;
use whatsapp_double::Seen;

use crate::case;
use crate::stage::{PATIENCE, Place, Stage, TERM, log};

/// The stage of a case, and the instances that still run.
type Ended<S> = (Stage<S>, Vec<Instance>);

/// Every case, on the places that `place` makes.
pub(crate) fn all<S: Store, F>(
    name: &str,
    place: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Vec<Case>
where
    F: Future<Output = Place<S>> + 'static,
{
    macro_rules! cases {
        ($($test:ident),* $(,)?) => {
            vec![$({
                let place = place.clone();
                case(name, stringify!($test), move || async move {
                    let (stage, instances) = $test(place().await).await;
                    stage.end(instances).await;
                })
            }),*]
        };
    }
    cases![
        history_is_filled_on_connect_and_status_tells_the_truth,
        a_failing_phone_is_not_asked_without_end,
        one_of_two_serves_and_the_other_takes_over_after_kill_9,
        a_stopped_instance_hands_over_at_once,
        a_frozen_instance_does_nothing_when_it_wakes,
        the_same_instance_id_twice_stays_passive,
        a_killed_instance_returns_under_its_own_name,
        instances_are_replaced_one_by_one,
        one_of_three_serves,
        cooldown_and_backoff_hold_between_runs,
        accounts_are_shared_among_three,
        what_the_proxy_queues_is_sent_once,
    ]
}

async fn history_is_filled_on_connect_and_status_tells_the_truth<S: Store>(
    place: Place<S>,
) -> Ended<S> {
    let stage = Stage::new(place, 1, &[30, 60]).await;
    let one = stage.active("one", &[]).await;
    let ids = stage.link(&one, 10).await;
    let running = stage.account("a run with its lease", &ids[0], |doc| {
        let status = doc.value("lastAutoBackfillStatus")?.as_map()?;
        let running = status.get("running")?.as_bool()?;
        let holder = doc.str("autoBackfillLeaseHolder")?;
        let until = doc.time("autoBackfillLeaseUntil")?;
        let acquired = doc.time("autoBackfillLeaseAcquiredAt")?;
        running.then(|| (holder.to_owned(), until, acquired, status.clone()))
    });
    let (holder, until, acquired, status) = running.await;
    assert!(holder.starts_with("one"), "{holder}");
    assert!(until > acquired);
    assert_eq!(status["trigger"].as_str(), Some("connect"));
    assert!(status["startedAt"].as_time().is_some(), "{status:?}");

    // Asked for another one, it goes on with the one that runs.
    let manual = one.api().post(&format!("/api/whatsapp/backfill/{}", ids[0]), json!({})).await;
    assert_eq!(manual.unwrap().status, 200);

    stage.even(&ids).await;
    let ok = stage.account("the end of the run", &ids[0], |doc| {
        let status = doc.value("lastAutoBackfillStatus")?.as_map()?;
        let ok = status.get("ok")?.as_bool()? && !status.get("running")?.as_bool()?;
        let free = doc.value("autoBackfillLeaseHolder").is_none_or(|v| *v == Value::Null);
        (ok && free && doc.time("lastAutoBackfillSuccessAt").is_some()).then(|| status.clone())
    });
    let status = ok.await;
    for counter in ["threads", "messages", "errors", "durationMs"] {
        assert!(status[counter].as_int().is_some(), "{counter} in {status:?}");
    }

    let ready = one.api().get("/ready").await.unwrap();
    assert_eq!((ready.status, &ready.body["lockStatus"]), (200, &json!("held_by_this_instance")));
    let diag = one.api().get("/diag").await.unwrap();
    assert_eq!(diag.body["latestRealtime"].as_array().unwrap().len(), 1);

    let log = log(&one);
    let lines = |message: &str| {
        let same = |line: &&serde_json::Value| line["message"] == message;
        log.iter().filter(same).collect::<Vec<_>>()
    };
    for tick in ["[wa-auto-backfill] tick", "[recent-sync] tick"] {
        let ticks = lines(tick);
        assert!(ticks.iter().any(|line| line["connected"] == 1), "{tick}: {ticks:?}");
    }
    let masked = ids[0].rsplit_once('_').map(|(_, hex)| format!("{}...", &hex[..8])).unwrap();
    for end in ["[wa-auto-backfill] start", "[wa-auto-backfill] end", "[realtime] connection open"]
    {
        let ends = lines(end);
        assert!(ends.iter().any(|line| line["account"] == masked.as_str()), "{end}: {ends:?}");
    }
    let text: String = log.iter().map(ToString::to_string).collect();
    assert!(!text.contains(&stage.desks[0].number), "a phone number is in the log");
    assert!(!text.contains(&ids[0]), "an account's whole id is in the log");
    (stage, vec![one])
}

async fn a_failing_phone_is_not_asked_without_end<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[60]).await;
    stage.desks[0].account.phone().set_online(false);
    let one = stage.active("one", &[("PHONE_REQUEST_TIMEOUT_MS", "1000")]).await;
    let ids = stage.link(&one, 10).await;
    let attempted = |doc: &Document| doc.time("lastAutoBackfillAttemptAt");
    let first = stage.account("an attempt", &ids[0], attempted).await;
    let later = |doc: &Document| attempted(doc).filter(|at| *at > first);
    let second = stage.account("another attempt", &ids[0], later).await;
    let backoff = Duration::from_millis(3_000);
    assert!(second >= first + backoff, "{first:?} and {second:?} are too close");
    let asked = |log: &[Seen]| log.iter().filter(|s| matches!(s, Seen::HistoryAsked(_))).count();
    let seen = asked(&stage.desks[0].account.log());
    assert!(seen <= 4, "the phone was asked {seen} times");
    (stage, vec![one])
}

async fn one_of_two_serves_and_the_other_takes_over_after_kill_9<S: Store>(
    place: Place<S>,
) -> Ended<S> {
    let stage = Stage::new(place, 2, &[20]).await;
    let one = stage.active("one", &[]).await;
    let two = stage.start("two", &[]).await;
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;
    let ready = two.api().get("/ready").await.unwrap();
    assert_eq!((&ready.body["ready"], &ready.body["mode"]), (&json!(false), &json!("passive")));
    let refused = two.api().post(&format!("/api/whatsapp/backfill/{}", ids[0]), json!({})).await;
    let refused = refused.unwrap();
    assert_eq!((refused.status, &refused.body["error"]), (503, &json!("instance_passive")));

    let killed = Instant::now();
    one.kill().await.unwrap();
    for desk in &stage.desks {
        desk.contacts[0].text("while nobody listened");
    }
    two.active(PATIENCE).await.unwrap();
    stage.even(&ids).await;
    println!("    complete {:.1} s after kill -9, term {TERM:?}", killed.elapsed().as_secs_f64());
    let lease = stage.doc(&format!("accounts/{}/leases/connection", ids[0])).await.unwrap();
    assert!(lease.int("epoch").unwrap() >= 2, "{lease:?}");
    (stage, vec![two])
}

async fn a_stopped_instance_hands_over_at_once<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[20]).await;
    let one = stage.active("one", &[]).await;
    let two = stage.start("two", &[]).await;
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;
    let stopped = Instant::now();
    assert_eq!(one.stop(PATIENCE).await.unwrap(), Some(0));
    two.active(PATIENCE).await.unwrap();
    let took = stopped.elapsed();
    println!("    active {:.1} s after SIGTERM", took.as_secs_f64());
    assert!(took < TERM * 2, "{took:?}");
    stage.desks[0].contacts[0].text("for the new one");
    stage.even(&ids).await;
    (stage, vec![two])
}

async fn a_frozen_instance_does_nothing_when_it_wakes<S: Store>(place: Place<S>) -> Ended<S> {
    let mut stage = Stage::new(place, 1, &[20]).await;
    stage.froze = true;
    let one = stage.active("one", &[]).await;
    let two = stage.start("two", &[]).await;
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;
    stage.freeze(&one).await;
    two.active(PATIENCE).await.unwrap();
    stage.desks[0].connected(two.api(), &ids[0]).await.unwrap();
    let path = format!("accounts/{}/leases/connection", ids[0]);
    let epoch = stage.doc(&path).await.unwrap().int("epoch");
    one.signal(Signal::CONT).unwrap();
    let passive =
        async || Ok((one.api().get("/ready").await?.body["mode"] == "passive").then_some(()));
    until("the one that woke to be passive", PATIENCE, passive).await.unwrap();
    stage.desks[0].contacts[0].text("for the new one");
    stage.even(&ids).await;
    assert!(two.is_active().await);
    assert_eq!(stage.doc(&path).await.unwrap().int("epoch"), epoch, "nobody else took it");
    (stage, vec![one, two])
}

async fn the_same_instance_id_twice_stays_passive<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[5]).await;
    let one = stage.active("same", &[]).await;
    let two = stage.start("same", &[]).await;
    let passive = async || {
        let ready = two.api().get("/ready").await?;
        Ok((ready.body["reason"] == "duplicate_instance_id").then_some(()))
    };
    until("the second to notice", PATIENCE, passive).await.unwrap();
    assert!(one.is_active().await);
    // Started anew with its own name, it is not taken for its double.
    two.kill().await.unwrap();
    one.kill().await.unwrap();
    let again = stage.active("same", &[]).await;
    (stage, vec![again])
}

async fn a_killed_instance_returns_under_its_own_name<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[20]).await;
    let one = stage.active("one", &[]).await;
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;
    one.kill().await.unwrap();
    stage.desks[0].contacts[0].text("while nobody listened");
    let one = stage.active("one", &[]).await;
    stage.even(&ids).await;
    let lease = stage.doc(&format!("accounts/{}/leases/connection", ids[0])).await.unwrap();
    assert_eq!((lease.str("instanceId"), lease.int("epoch")), (Some("one"), Some(2)));
    (stage, vec![one])
}

async fn instances_are_replaced_one_by_one<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[20]).await;
    let one = stage.active("one", &[]).await;
    let two = stage.start("two", &[]).await;
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;
    let contact = &stage.desks[0].contacts[0];
    contact.text("before");
    assert_eq!(one.stop(PATIENCE).await.unwrap(), Some(0));
    contact.text("while one is away");
    two.active(PATIENCE).await.unwrap();
    let one = stage.start("one", &[]).await;
    assert_eq!(two.stop(PATIENCE).await.unwrap(), Some(0));
    contact.text("while two is away");
    one.active(PATIENCE).await.unwrap();
    let two = stage.start("two", &[]).await;
    contact.text("after");
    stage.even(&ids).await;
    assert!(!two.is_active().await);
    (stage, vec![one, two])
}

async fn one_of_three_serves<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[20]).await;
    let one = stage.active("one", &[]).await;
    let (two, three) = (stage.start("two", &[]).await, stage.start("three", &[]).await);
    let ids = stage.link(&one, 20).await;
    stage.even(&ids).await;
    assert!(!two.is_active().await && !three.is_active().await);
    one.kill().await.unwrap();
    stage.desks[0].contacts[0].text("while nobody listened");
    let next = async || Ok((two.is_active().await || three.is_active().await).then_some(()));
    until("another one to be active", PATIENCE, next).await.unwrap();
    stage.even(&ids).await;
    assert_ne!(two.is_active().await, three.is_active().await, "one of them is active");
    (stage, vec![two, three])
}

async fn cooldown_and_backoff_hold_between_runs<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[10]).await;
    let cooldown = Duration::from_millis(6_000);
    let vars = [("AUTO_BACKFILL_COOLDOWN_SUCCESS_MS", "6000")];
    let one = stage.active("one", &vars).await;
    let ids = stage.link(&one, 10).await;
    let succeeded = |doc: &Document| doc.time("lastAutoBackfillSuccessAt");
    // History that comes after the run on connect has a run of its own; the ticks follow.
    let started = |trigger: &str| {
        let is = |line: &serde_json::Value| {
            line["message"] == "[wa-auto-backfill] start" && line["trigger"] == trigger
        };
        log(&one).iter().any(is)
    };
    let ticked = async || Ok(started("periodic").then_some(()));
    until("a periodic run", PATIENCE, ticked).await.unwrap();
    assert!(started("connect"), "there was no run on connect");
    let first = stage.account("a success", &ids[0], succeeded).await;
    let later = |doc: &Document| succeeded(doc).filter(|at| *at > first);
    let second = stage.account("the next success", &ids[0], later).await;
    assert!(second >= first + cooldown, "{first:?} and {second:?} are too close");
    (stage, vec![one])
}

async fn accounts_are_shared_among_three<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 3, &[10]).await;
    let shared = [("INSTANCE_MODE", "shared")];
    let one = stage.active("one", &shared).await;
    let ids = stage.link(&one, 10).await;
    stage.even(&ids).await;
    let two = stage.active("two", &shared).await;
    let three = stage.active("three", &shared).await;
    let owner = async |id: &str| {
        let lease = stage.doc(&format!("accounts/{id}/leases/connection")).await;
        lease.and_then(|lease| lease.str("instanceId").map(str::to_owned))
    };
    for id in &ids {
        assert_eq!(owner(id).await.as_deref(), Some("one"));
    }
    one.kill().await.unwrap();
    let moved = async || {
        for id in &ids {
            let owner = owner(id).await;
            anyhow::ensure!(matches!(owner.as_deref(), Some("two" | "three")), "{owner:?}");
        }
        Ok(Some(()))
    };
    until("the accounts to have other owners", PATIENCE, moved).await.unwrap();
    for desk in &stage.desks {
        desk.contacts[0].text("for whoever has it now");
    }
    stage.even(&ids).await;
    (stage, vec![two, three])
}

async fn what_the_proxy_queues_is_sent_once<S: Store>(place: Place<S>) -> Ended<S> {
    let stage = Stage::new(place, 1, &[5]).await;
    let one = stage.active("one", &[]).await;
    let ids = stage.link(&one, 5).await;
    stage.even(&ids).await;
    let contact = &stage.desks[0].contacts[0];
    let thread = format!("{}__{}", ids[0], contact.pn());
    let request = "5e".repeat(32);
    let text = |s: &str| FieldOp::Set(Value::from(s));
    let outbox = vec![
        (FieldPath::new("status"), text("queued")),
        (FieldPath::new("attemptCount"), FieldOp::from(0_i64)),
        (FieldPath::new("nextAttemptAt"), FieldOp::ServerTime),
        (FieldPath::new("createdAt"), FieldOp::ServerTime),
        (FieldPath::new("toJid"), text(&contact.pn().to_string())),
        (FieldPath::new("body"), text("Good morning!")),
        (FieldPath::new("payload"), FieldOp::Set(Value::map([("text", "Good morning!".into())]))),
        (FieldPath::new("threadId"), text(&thread)),
        (FieldPath::new("accountId"), text(&ids[0])),
        (FieldPath::new("createdByUid"), text("uid")),
        (FieldPath::new("clientMessageId"), text("client-1")),
    ];
    let message = vec![
        (FieldPath::new("direction"), text("outbound")),
        (FieldPath::new("status"), text("queued")),
        (FieldPath::new("body"), text("Good morning!")),
        (FieldPath::new("tsClient"), text("2026-01-01T00:00:00.000Z")),
        (FieldPath::new("tsServer"), FieldOp::ServerTime),
        (FieldPath::new("createdAtMs"), FieldOp::from(1_767_225_600_000_i64)),
    ];
    let path = |p: String| backfill_core::doc::DocPath::parse(p).unwrap();
    let (outbox_path, message_path) =
        (format!("outbox/{request}"), format!("threads/{thread}/messages/{request}"));
    let queued = Instant::now();
    let writes = vec![
        Write::merge(path(outbox_path.clone()), Precondition::Absent, outbox),
        Write::merge(path(message_path.clone()), Precondition::Absent, message),
    ];
    stage.store.commit(writes).await.unwrap();
    let sent = async || {
        let doc = stage.doc(&outbox_path).await.unwrap();
        anyhow::ensure!(doc.str("status") == Some("sent"), "{:?}", doc.str("status"));
        Ok(Some(doc))
    };
    let doc = until("the outbox to say sent", PATIENCE, sent).await.unwrap();
    println!("    sent {} ms after it was queued", queued.elapsed().as_millis());
    assert_eq!(doc.bool("success"), Some(true));
    let wa_id = doc.str("providerMessageId").unwrap().to_owned();
    contact.deliver(&wa_id);
    let delivered = async || {
        let doc = stage.doc(&message_path).await.unwrap();
        anyhow::ensure!(doc.str("status") == Some("delivered"), "{:?}", doc.str("status"));
        Ok(Some(doc))
    };
    let doc = until("the message to be delivered", PATIENCE, delivered).await.unwrap();
    assert!(matches!(doc.value("tsClient"), Some(Value::String(_) | Value::Timestamp(_))));
    let log = stage.desks[0].account.log();
    let to_contact = log.iter().filter(|seen| matches!(seen, Seen::Message(m) if m.id == wa_id));
    assert!(to_contact.count() >= 1, "nobody received it");
    assert!(stage.doc(&format!("threads/{thread}/messages/{wa_id}")).await.is_none(), "twice");
    (stage, vec![one])
}
