//! A process that is killed by the system: the test binary runs itself again as a child, with the
//! real client over a session of either kind, and kills it with SIGKILL in the middle of traffic.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gateway_whatsapp::Sessions;
use store_sqlite::SqliteStore;
use wacore::types::events::InboundMessage;
use wacore_binary::Jid;
use whatsapp_double::{Account, Double, Seen, text};
use whatsapp_rust::transport::TokioWebSocketTransportFactory;
use whatsapp_rust::{Client, InboundDurabilityHook};

use crate::session::harness::{Common, Dice, account};
use crate::session::kills::{start, text_of};

const LIVES: u64 = 25;
const DIRECTORY: &str = "SESSION_TEST_DIRECTORY";
const PLACE: &str = "SESSION_TEST_PLACE";
const SERVER: &str = "SESSION_TEST_SERVER";
const CONTACT: &str = "15550000002";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_by_the_system_damages_no_local_session() {
    kill_again_and_again("local").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_by_the_system_damages_no_shared_session() {
    kill_again_and_again("shared").await;
}

async fn kill_again_and_again(place: &str) {
    let directory = tempfile::tempdir().unwrap();
    let double = Double::new();
    double.set_patience(Duration::from_secs(300));
    let owner = double.account("15550000001", "100000000000001");
    let contact = owner.contact(CONTACT, "100000000000002");
    let server = double.listen().await.unwrap();
    let number = {
        let sessions = sessions(place, directory.path()).await;
        let session = sessions.open(&account(1)).await.unwrap();
        let number = owner.seed(&session.backend).await.unwrap();
        session.close().await.unwrap();
        number
    };

    let mut dice = Dice::new(1);
    let mut expected = Vec::new();
    for life in 0..LIVES {
        let before = receipts(&owner);
        let mut child = run(place, directory.path(), &server.url());
        for index in 0..20 {
            let body = format!("text {index} of life {life}");
            contact.text(&body);
            expected.push(body);
        }
        // Dies after some of them have been confirmed, or none, or all.
        let confirmed = before + dice.roll(21) as usize;
        let enough = |log: &[Seen]| (confirmed_in(log) >= confirmed).then_some(());
        owner.wait_for_log("receipts", enough).await;
        owner.wait("a login", |seen| matches!(seen, Seen::Connected { .. }).then_some(())).await;
        child.kill().unwrap();
        child.wait().unwrap();
        owner.wait_gone().await;
    }
    let mut child = run(place, directory.path(), &server.url());
    owner.wait_drained().await;
    child.kill().unwrap();
    child.wait().unwrap();

    let stored = std::fs::read_to_string(directory.path().join("stored.txt")).unwrap();
    let mut stored: Vec<&str> = stored.lines().collect();
    stored.sort_unstable();
    stored.dedup();
    expected.sort_unstable();
    assert_eq!(stored, expected);
    for seen in owner.log() {
        match seen {
            Seen::Receipt(receipt) => assert_ne!(receipt.kind, "retry", "{receipt:?}"),
            Seen::Connected { device, .. } => assert_eq!(device, number),
            Seen::Paired { .. } | Seen::ResendAsked { .. } | Seen::Unreadable { .. } => {
                panic!("{seen:?}")
            }
            _ => {}
        }
    }
    let sessions = sessions(place, directory.path()).await;
    assert!(sessions.is_paired(&account(1)).await.unwrap());
}

/// The child. It ends when it is killed.
#[tokio::test]
#[ignore = "runs in a process of its own, started by the tests above"]
async fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let url = std::env::var(SERVER).unwrap();
    let directory = Path::new(&directory);
    let sessions = sessions(&std::env::var(PLACE).unwrap(), directory).await;
    let session = sessions.open(&account(1)).await.unwrap();
    let hook = File(directory.join("stored.txt"));
    let transport = TokioWebSocketTransportFactory::new().with_url(url);
    let nowhere = Double::new();
    let (bot, mut connected) = start(&nowhere, session.backend.clone(), transport, hook).await;
    connected.wait_for(|connected| *connected).await.unwrap();
    let mut number = 0;
    loop {
        number += 1;
        let body = text(&format!("answer {number}"));
        if bot.client().send_message(Jid::pn(CONTACT), body).await.is_err() {
            return;
        }
    }
}

async fn sessions(place: &str, directory: &Path) -> Sessions<SqliteStore> {
    match place {
        "local" => Sessions::local(directory),
        _ => Common::within(directory).sessions(&account(1)).await,
    }
}

fn run(place: &str, directory: &Path, url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "session::process::child", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(PLACE, place)
        .env(SERVER, url)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn receipts(owner: &Account) -> usize {
    confirmed_in(&owner.log())
}

fn confirmed_in(log: &[Seen]) -> usize {
    let ids = log.iter().map(|seen| match seen {
        Seen::Receipt(receipt) if receipt.kind != "retry" => receipt.ids.len(),
        _ => 0,
    });
    ids.sum()
}

/// Stores messages as lines of a file
struct File(PathBuf);

#[async_trait]
impl InboundDurabilityHook for File {
    async fn on_messages(&self, _: Arc<Client>, batch: &[InboundMessage]) -> anyhow::Result<()> {
        let lines: String =
            batch.iter().filter_map(text_of).map(|text| format!("{text}\n")).collect();
        let mut file = OpenOptions::new().append(true).create(true).open(&self.0)?;
        file.write_all(lines.as_bytes())?;
        Ok(())
    }
}
