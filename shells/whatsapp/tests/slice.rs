//! From the core's word to connect to the core's word to close.

use backfill_core::io::{CloseReason, GatewayEvent};
use gateway_whatsapp::Http;
use store_sqlite::SqliteStore;
use whatsapp_double::Via;
use whatsapp_rust::transport::TokioWebSocketTransportFactory;

use crate::harness::World;
use crate::harness::store::TestStore;

#[tokio::test(start_paused = true)]
async fn a_live_message_is_stored_before_it_is_confirmed() {
    let world = World::linked().await;
    let contact = world.account.contact("15550000002", "102");
    let process = world.start().await;
    process.opened(1).await;
    world.until_status("connected").await;

    let id = contact.text("hello");
    let message = world.until_message("15550000002@s.whatsapp.net", &id).await;
    assert_eq!(message.str("body"), Some("hello"));
    assert_eq!(message.str("direction"), Some("inbound"));
    assert_eq!(message.str("syncSource"), Some("realtime"));
    assert_eq!(message.str("senderName"), Some("Contact 15550000002"));
    world.account.wait_drained().await;

    let seen = process.seen.clone();
    process.stop().await;
    assert!(!world.account.is_connected());
    let closed = seen.events().into_iter().find_map(|event| match event {
        GatewayEvent::Closed { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(closed, Some(CloseReason::Asked));
    assert_eq!(world.status().await.as_deref(), Some("disconnected"));
}

/// In real time, because the store has threads of its own.
#[tokio::test]
async fn the_same_with_a_real_database() {
    let directory = std::env::temp_dir().join(format!("gateway-sqlite-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let store = SqliteStore::open(&directory.join("store.db")).unwrap();
    let world = World::over(TestStore::sqlite(store)).await;
    world.link().await;
    let contact = world.account.contact("15550000002", "102");
    let backlog = contact.text("while away");
    let process = world.start().await;
    process.opened(1).await;
    let live = contact.text("hello");
    for id in [backlog, live] {
        world.until_message("15550000002@s.whatsapp.net", &id).await;
    }
    world.account.wait_drained().await;
    process.stop().await;
    drop(world);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// In real time, as sockets want it.
#[tokio::test]
async fn the_same_over_a_real_socket() {
    let world = World::linked().await;
    let server = world.double.listen().await.unwrap();
    let mut options = world.options();
    let transport = TokioWebSocketTransportFactory::new().with_url(server.url());
    options.transport = std::sync::Arc::new(transport);
    // The current version comes from there as well.
    let media = world.double.listen_for_media().await.unwrap();
    options.http = std::sync::Arc::new(Http::new(Some(media.url())).unwrap());
    options.version = None;
    let contact = world.account.contact("15550000002", "102");
    let process = world.start_with(world.store.clone(), options, world.settings()).await;
    process.opened(1).await;
    for round in 0..20 {
        contact.text(&format!("{round}"));
    }
    world.account.wait_drained().await;
    assert_eq!(world.messages().len(), 20);
    let requests = world.double.media().requests();
    world.account.phone().keep_texts(contact.pn(), "old", 1_740_000_000, 30);
    world.account.phone().send_all_history(1, Via::Blob);
    world.until("history", async || (world.messages().len() == 50).then_some(())).await;
    assert!(world.double.media().requests() > requests, "fetched over the port");
    process.stop().await;
    // The server learns of it a little later than we know it.
    world.account.wait_gone().await;
}
