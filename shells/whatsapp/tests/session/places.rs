//! Where sessions lie, and who may open them.

use backfill_core::id::AccountId;
use gateway_whatsapp::{SessionError, Sessions};
use store_sqlite::SqliteStore;

fn account() -> AccountId {
    AccountId::parse("account_test_0123456789abcdef0123456789abcdef").unwrap()
}

#[tokio::test]
async fn a_local_session_is_there_again_after_closing_and_gone_after_wiping() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions");
    let sessions = Sessions::<SqliteStore>::local(&path);
    assert!(!sessions.is_paired(&account()).await.unwrap());
    let session = sessions.open(&account()).await.unwrap();
    assert!(matches!(sessions.open(&account()).await, Err(SessionError::AlreadyOpen)));
    session.backend.put_session("1@lid", b"ratchet").await.unwrap();
    session.backend.create().await.unwrap();
    assert_eq!(sessions.known().await.unwrap(), []);
    let mut device = session.backend.load().await.unwrap().unwrap();
    device.pn = Some(wacore_binary::Jid::pn("15550000001"));
    session.backend.save(&device).await.unwrap();
    assert_eq!(sessions.known().await.unwrap(), [account()]);
    let kept = session.backend.clone();
    session.close().await.unwrap();
    assert!(kept.put_session("1@lid", b"late").await.is_err());

    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(format!("{}.sqlite", account().as_str()))), 0o600);

    let session = sessions.open(&account()).await.unwrap();
    let ratchet = session.backend.get_session("1@lid").await.unwrap();
    assert_eq!(ratchet.as_deref(), Some(&b"ratchet"[..]));
    let again = session.backend.load().await.unwrap().unwrap();
    assert_eq!(again.registration_id, device.registration_id);
    assert!(matches!(sessions.wipe(&account()).await, Err(SessionError::AlreadyOpen)));
    session.close().await.unwrap();
    sessions.wipe(&account()).await.unwrap();
    assert_eq!(path.read_dir().unwrap().count(), 0);
    assert!(!sessions.is_paired(&account()).await.unwrap());
    let session = sessions.open(&account()).await.unwrap();
    assert!(!session.backend.exists().await.unwrap());
}
