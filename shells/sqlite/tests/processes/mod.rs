//! Several processes on one file: this binary starts itself again as a child that writes.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use backfill_core::doc::{DocPath, FieldOp, Precondition, Write};
use backfill_driver::port::{Store, StoreError};
use store_contract::{Case, Fixture};
use store_sqlite::SqliteStore;

use crate::Files;
use crate::files::put;

const CHILD: &str = "STORE_SQLITE_CHILD";

pub(crate) fn cases(files: &Files) -> Vec<Case> {
    let (a, b) = (files.clone(), files.clone());
    vec![
        Case::new("processes::all_get_through_beside_bulk", || rivals(a)),
        Case::new("processes::what_was_answered_survives_kill", || kill(b)),
    ]
}

/// What a child does, if this process is one.
pub(crate) fn run_as_child() -> Option<ExitCode> {
    let task = std::env::var(CHILD).ok()?;
    let (kind, path) = task.split_once(' ').expect("a kind and a path");
    let store = SqliteStore::open(Path::new(path)).expect("the file opens");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        match kind {
            "count" => count(&store, 40).await,
            "bulk" => bulk(&store).await,
            _ => acknowledge(&store).await,
        }
    });
    Some(ExitCode::SUCCESS)
}

fn child(kind: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{kind} {}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Raises a counter by compare-and-set.
async fn count(store: &SqliteStore, times: u32) {
    let path = DocPath::parse("coordination/counter").unwrap();
    for _ in 0..times {
        loop {
            let seen =
                store.get(std::slice::from_ref(&path)).await.unwrap().docs.remove(0).unwrap();
            let next = seen.int("n").unwrap() + 1;
            let precondition = Precondition::Version(seen.version);
            let change = vec![("n".into(), FieldOp::from(next))];
            match store.commit(vec![Write::merge(path.clone(), precondition, change)]).await {
                Ok(_) => break,
                Err(StoreError::Conflict(_)) => {}
                Err(e) => panic!("{e:?}"),
            }
        }
    }
}

/// Writes batches until it is killed.
async fn bulk(store: &SqliteStore) {
    for batch in 0_i64.. {
        let writes = (0..300).map(|n| put(&format!("threads/t{}/messages/{n}", batch % 9), batch));
        store.commit(writes.collect()).await.unwrap();
        if batch == 1 {
            println!("busy");
        }
    }
}

/// Says which commits were answered, until it is killed.
async fn acknowledge(store: &SqliteStore) {
    let mut out = std::io::stdout();
    for n in 0_i64.. {
        let fields = vec![put(&format!("c/{n}"), n), put("c/last", n)];
        store.commit(fields).await.unwrap();
        writeln!(out, "{n}").unwrap();
        out.flush().unwrap();
    }
}

async fn rivals(files: Files) {
    let path = files.path("rivals");
    let store = files.open("rivals").await;
    store.commit(vec![put("coordination/counter", 0)]).await.unwrap();
    let mut busy = child("bulk", &path);
    let mut said = String::new();
    BufReader::new(busy.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "busy\n");
    let counters = [child("count", &path), child("count", &path)];
    count(&store, 40).await;
    for mut counter in counters {
        assert!(counter.wait().unwrap().success());
    }
    busy.kill().unwrap();
    busy.wait().unwrap();
    let counter = DocPath::parse("coordination/counter").unwrap();
    let doc = store.get(&[counter]).await.unwrap().docs.remove(0).unwrap();
    assert_eq!(doc.int("n"), Some(120));
}

async fn kill(files: Files) {
    let path = files.path("killed");
    let mut answered = -1;
    for round in 1..=3 {
        let mut writing = child("acknowledge", &path);
        let mut lines = BufReader::new(writing.stdout.take().unwrap()).lines();
        for _ in 0..20 * round {
            answered = lines.next().unwrap().unwrap().parse().unwrap();
        }
        writing.kill().unwrap();
        // What it said before it died counts too.
        for line in lines.map_while(Result::ok) {
            answered = line.parse().unwrap_or(answered);
        }
        writing.wait().unwrap();

        let store = files.open("killed").await;
        let paths: Vec<_> = (0..=answered)
            .map(|n: i64| n.to_string())
            .chain(["last".into()])
            .map(|n| DocPath::parse(format!("c/{n}")).unwrap())
            .collect();
        let docs = store.get(&paths).await.unwrap().docs;
        assert!(docs.iter().all(Option::is_some), "an answered commit is lost");
        let last = docs.last().unwrap().as_ref().unwrap().int("n").unwrap();
        assert!(last == answered || last == answered + 1, "{last} after {answered}");
    }
}
