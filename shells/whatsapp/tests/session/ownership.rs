//! Shared sessions: who may write, with which key, and what damage looks like.

use backfill_core::doc::{Fields, Precondition, Query, Value, Write};
use backfill_core::id::AccountId;
use backfill_driver::port::Store;
use gateway_whatsapp::{SessionError, Sessions};
use store_sqlite::SqliteStore;
use wacore_binary::Jid;

use crate::session::harness::{Common, NEW_KEY, OLD_KEY, account, document, keys, sessions};

/// So many writes that some are in pages and some in the journal.
const WRITES: u32 = 100;

async fn filled(sessions: &Sessions<SqliteStore>, account: &AccountId) {
    let session = sessions.open(account).await.unwrap();
    session.backend.create().await.unwrap();
    let mut device = session.backend.load().await.unwrap().unwrap();
    device.pn = Some(Jid::pn("15550000001"));
    session.backend.save(&device).await.unwrap();
    for number in 0..WRITES {
        let state = number.to_be_bytes().repeat(100);
        session.backend.put_session(&format!("{number}@lid"), &state).await.unwrap();
    }
    session.close().await.unwrap();
}

async fn all(store: &SqliteStore, account: &AccountId) -> Vec<(String, Fields)> {
    let query = Query::all(account.path().child("session"), 500);
    let docs = store.query(&query).await.unwrap().docs;
    docs.iter().map(|doc| (doc.path.id().to_owned(), doc.fields.clone())).collect()
}

fn key_of(fields: &Fields) -> &str {
    fields["key"].as_str().unwrap()
}

#[tokio::test]
async fn a_former_owner_changes_nothing() {
    let common = Common::new();
    let account = account(1);
    let former = common.sessions(&account).await;
    filled(&former, &account).await;
    let stale = former.open(&account).await.unwrap();
    // Forgotten, and not yet written: it must not be written later either.
    stale.backend.remove_prekey(1).await.unwrap();

    let present = common.sessions(&account).await;
    let session = present.open(&account).await.unwrap();
    session.backend.put_session("1@lid", b"newer").await.unwrap();
    let before = all(&common.store, &account).await;

    let error = stale.backend.put_session("1@lid", b"stale").await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert!(matches!(source.downcast_ref(), Some(SessionError::Fenced)));
    assert!(stale.is_fenced());
    assert!(stale.backend.put_session("2@lid", b"stale").await.is_err());
    assert!(stale.backend.store_prekeys_batch(&[], true).await.is_err(), "nothing is taken");
    assert!(matches!(stale.close().await, Err(SessionError::Fenced)));
    assert!(matches!(former.wipe(&account).await, Err(SessionError::Fenced)));
    assert_eq!(all(&common.store, &account).await, before);

    session.backend.put_session("2@lid", b"newer").await.unwrap();
    assert!(!session.is_fenced());
    session.close().await.unwrap();
    let session = present.open(&account).await.unwrap();
    let state = session.backend.get_session("1@lid").await.unwrap();
    assert_eq!(state.as_deref(), Some(&b"newer"[..]));
}

/// Also without having written since, and with enough to empty the journal.
#[tokio::test]
async fn a_former_owner_does_not_even_tidy_up() {
    let common = Common::new();
    let account = account(1);
    let former = common.sessions(&account).await;
    let stale = former.open(&account).await.unwrap();
    for number in 0..63 {
        stale.backend.put_session("1@lid", &[number; 9]).await.unwrap();
    }
    common.acquire(&account).await;
    let before = all(&common.store, &account).await;
    assert!(stale.backend.put_session("1@lid", b"stale").await.is_err());
    assert_eq!(all(&common.store, &account).await, before);
}

/// A session that was open while the account went away and came back knows too little.
#[tokio::test]
async fn an_owner_that_returns_must_open_again() {
    let common = Common::new();
    let account = account(1);
    let former = common.sessions(&account).await;
    let stale = former.open(&account).await.unwrap();
    stale.backend.put_session("1@lid", b"first").await.unwrap();
    let other = common.sessions(&account).await;
    let session = other.open(&account).await.unwrap();
    session.backend.put_session("1@lid", b"second").await.unwrap();
    session.close().await.unwrap();
    common.acquire(&account).await;
    assert!(stale.backend.put_session("1@lid", b"third").await.is_err());
}

#[tokio::test]
async fn nobody_opens_what_he_does_not_own() {
    let common = Common::new();
    let sessions = Sessions::shared(common.store.clone(), keys(NEW_KEY), |_| None);
    assert!(matches!(sessions.open(&account(1)).await, Err(SessionError::NotOwned)));
    assert!(matches!(sessions.wipe(&account(1)).await, Err(SessionError::NotOwned)));
    assert_eq!(sessions.known().await.unwrap(), []);
}

#[tokio::test]
async fn a_new_key_seals_everything_once_a_session_is_opened() {
    let common = Common::new();
    let account = account(1);
    let fence = common.acquire(&account).await;
    let open = |setting: &str| sessions(common.store.clone(), setting, fence);
    filled(&open(OLD_KEY), &account).await;
    let docs = all(&common.store, &account).await;
    assert!(docs.iter().any(|(name, _)| name.starts_with('p')));
    assert!(docs.iter().any(|(name, _)| name.starts_with('j')));
    assert!(docs.iter().all(|(_, fields)| key_of(fields) == "old"));

    let both = format!("{NEW_KEY},{OLD_KEY}");
    let rotated = open(&both);
    rotated.open(&account).await.unwrap().close().await.unwrap();
    let docs = all(&common.store, &account).await;
    assert!(docs.iter().all(|(_, fields)| key_of(fields) == "new"));

    let session = open(NEW_KEY).open(&account).await.unwrap();
    for number in 0..WRITES {
        assert!(session.backend.has_session(&format!("{number}@lid")).await.unwrap());
    }
    session.close().await.unwrap();
    let refused = open(OLD_KEY).open(&account).await;
    assert!(matches!(refused, Err(SessionError::UnknownKey { key, .. }) if key == "new"));
}

#[tokio::test]
async fn a_wrong_key_is_an_error_and_never_a_fresh_device() {
    let common = Common::new();
    let account = account(1);
    let fence = common.acquire(&account).await;
    let open = |setting: &str| sessions(common.store.clone(), setting, fence);
    filled(&open(NEW_KEY), &account).await;
    let before = all(&common.store, &account).await;
    let wrong = OLD_KEY.replace("old", "new");
    let refused = open(&wrong).open(&account).await;
    assert!(matches!(refused, Err(SessionError::Undecryptable { key, .. }) if key == "new"));
    // Nobody has to own the account to find that out.
    let standby = |setting: &str| {
        let keys = keys(setting);
        Sessions::shared(common.store.clone(), keys, |_| None)
    };
    let found = standby(&wrong).check(&account).await;
    assert!(matches!(found, Err(SessionError::Undecryptable { key, .. }) if key == "new"));
    let found = standby(OLD_KEY).check(&account).await;
    assert!(matches!(found, Err(SessionError::UnknownKey { key, .. }) if key == "new"));
    standby(NEW_KEY).check(&account).await.unwrap();
    assert_eq!(all(&common.store, &account).await, before);
    assert!(open(&wrong).is_paired(&account).await.unwrap());
    open(NEW_KEY).open(&account).await.unwrap();
}

/// Every document in turn is cut short, altered, exchanged, taken away or put back.
#[tokio::test]
async fn whatever_is_damaged_is_an_error() {
    let common = Common::new();
    let (account, other) = (account(1), account(2));
    let fence = common.acquire(&account).await;
    let sessions = sessions(common.store.clone(), NEW_KEY, fence);
    filled(&sessions, &account).await;
    filled(&common.sessions(&other).await, &other).await;
    let put = async |name: &str, fields: &Fields| {
        let path = document(&account, name);
        let fields = fields.iter().map(|(field, value)| {
            (backfill_core::doc::FieldPath::parse(field).unwrap(), value.clone().into())
        });
        let write = Write::merge(path, Precondition::Any, fields.collect());
        common.store.commit(vec![write]).await.unwrap();
    };
    let remove = async |name: &str| {
        let delete = Write::delete(document(&account, name), Precondition::Any);
        common.store.commit(vec![delete]).await.unwrap();
    };
    let docs = all(&common.store, &account).await;
    let last = docs.iter().rfind(|(name, _)| name.starts_with('j')).unwrap().0.clone();
    assert!(docs.len() > 10);
    let foreign = all(&common.store, &other).await;
    for (index, (name, fields)) in docs.iter().enumerate() {
        let Value::Bytes(bytes) = &fields["data"] else { panic!("no bytes") };
        let mut altered = bytes.to_vec();
        altered[bytes.len() / 2] ^= 1;
        let neighbour = &docs[(index + 1) % docs.len()].1;
        let alien = foreign.iter().find(|(found, _)| found == name);
        let with = |bytes: &[u8]| {
            let mut damaged = fields.clone();
            damaged.insert("data".into(), Value::Bytes(bytes.into()));
            damaged
        };
        let mut damages =
            vec![with(&bytes[..bytes.len() - 1]), with(&bytes[..9]), with(&[]), with(&altered)];
        damages.push(neighbour.clone());
        damages.extend(alien.map(|(_, fields)| fields.clone()));
        for damage in damages {
            put(name, &damage).await;
            let opened = sessions.open(&account).await;
            assert!(opened.is_err(), "{name} is damaged");
            remove(name).await;
            put(name, fields).await;
        }
        if *name != last {
            remove(name).await;
            assert!(sessions.open(&account).await.is_err(), "{name} is missing");
            put(name, fields).await;
        }
    }
    // An old state of a page under a newer head.
    let session = sessions.open(&account).await.unwrap();
    for number in 0..WRITES {
        session.backend.put_session(&format!("{number}@lid"), b"changed").await.unwrap();
    }
    session.close().await.unwrap();
    let (name, old) = docs.iter().find(|(name, _)| name.starts_with('p')).unwrap();
    put(name, old).await;
    assert!(matches!(sessions.open(&account).await, Err(SessionError::Undecryptable { .. })));
}

#[tokio::test]
async fn a_newer_format_is_left_alone() {
    let common = Common::new();
    let account = account(1);
    let sessions = common.sessions(&account).await;
    filled(&sessions, &account).await;
    let newer = vec![("format".into(), 2_i64.into())];
    let write = Write::merge(document(&account, "head"), Precondition::Any, newer);
    common.store.commit(vec![write]).await.unwrap();
    assert!(matches!(sessions.open(&account).await, Err(SessionError::Newer { format: 2, .. })));
}

#[tokio::test]
async fn a_wiped_session_begins_anew() {
    let common = Common::new();
    let account = account(1);
    let sessions = common.sessions(&account).await;
    filled(&sessions, &account).await;
    assert!(sessions.is_paired(&account).await.unwrap());
    sessions.wipe(&account).await.unwrap();
    assert!(!sessions.is_paired(&account).await.unwrap());
    assert_eq!(all(&common.store, &account).await.len(), 1, "only the head stays");
    let session = sessions.open(&account).await.unwrap();
    assert!(!session.backend.exists().await.unwrap());
    assert!(!session.backend.has_session("1@lid").await.unwrap());
    session.backend.put_session("1@lid", b"new life").await.unwrap();
    session.close().await.unwrap();
    let session = sessions.open(&account).await.unwrap();
    assert!(session.backend.has_session("1@lid").await.unwrap());
}

/// Many rows in many pages come back, whatever is removed meanwhile.
#[tokio::test]
async fn pages_are_filled_emptied_and_filled_again() {
    let common = Common::new();
    let account = account(1);
    let sessions = common.sessions(&account).await;
    let session = sessions.open(&account).await.unwrap();
    let keys = |from: u32| -> Vec<(u32, bytes::Bytes)> {
        (from..from + 812).map(|id| (id, vec![id as u8; 72].into())).collect()
    };
    for round in 0..6 {
        session.backend.store_prekeys_batch(&keys(round * 1000), true).await.unwrap();
        for id in 0..400 {
            session.backend.remove_prekey(round * 1000 + id).await.unwrap();
            if id % 8 == 0 {
                session.backend.put_session("1@lid", &id.to_be_bytes()).await.unwrap();
            }
        }
    }
    session.close().await.unwrap();
    let docs = all(&common.store, &account).await;
    let pages = docs.iter().filter(|(name, _)| name.starts_with('p')).count();
    assert!(pages < 15, "{pages} pages for 200 kB");
    let session = sessions.open(&account).await.unwrap();
    for round in 0..6 {
        for id in 0..812 {
            let key = session.backend.load_prekey(round * 1000 + id).await.unwrap();
            assert_eq!(key.is_some(), id >= 400, "{round} {id}");
        }
    }
}
