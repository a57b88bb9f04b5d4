//! The client's own backend in memory as the model: whatever is done, both must look the same,
//! also after reopening, after a crash, and over a store in which commits fail in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use gateway_whatsapp::{Session, SessionError, Sessions};
use store_sqlite::SqliteStore;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::traits::*;
use wacore::store::{Device, InMemoryBackend};
use wacore_binary::Jid;

use crate::session::harness::{Common, Dice, NEW_KEY, account, sessions};
use crate::session::trial::Trial;
use backfill_driver::port::Store;

const STEPS: u64 = 160;

#[tokio::test]
async fn a_local_session_is_what_the_client_expects() {
    let directory = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let sessions = Sessions::<SqliteStore>::local(directory.path());
        compare(seed, &sessions).await;
    }
}

#[tokio::test]
async fn a_shared_session_is_what_the_client_expects() {
    let common = Common::new();
    for seed in 0..20 {
        let sessions = common.sessions(&account(seed)).await;
        compare(seed, &sessions).await;
    }
}

#[tokio::test]
async fn a_store_in_trouble_changes_nothing() {
    let common = Common::new();
    for seed in 0..40 {
        let fence = common.acquire(&account(seed)).await;
        let trial = Trial::faulty(common.store.clone(), seed, 2 + seed % 7);
        compare(seed, &sessions(trial, NEW_KEY, fence)).await;
    }
}

async fn compare<S: Store>(seed: u64, sessions: &Sessions<S>) {
    let account = account(seed);
    let mut dice = Dice::new(seed);
    let model = InMemoryBackend::new();
    let mut session = sessions.open(&account).await.unwrap();
    for step in 0..STEPS {
        change(&mut dice, &session.backend, &model).await;
        match dice.roll(30) {
            0 => session = reopened(session, sessions, seed, step).await,
            1 => {
                // What is only forgotten is durable with the next change.
                insist(async || session.backend.put_session("x", &step.to_be_bytes()).await).await;
                model.put_session("x", &step.to_be_bytes()).await.unwrap();
                drop(session);
                session = sessions.open(&account).await.unwrap();
            }
            2..6 => {}
            _ => continue,
        }
        assert_eq!(picture(&*session.backend).await, picture(&model).await, "{seed} {step}");
    }
    session = reopened(session, sessions, seed, STEPS).await;
    assert_eq!(picture(&*session.backend).await, picture(&model).await, "{seed}");
}

/// Closes the session and opens it again. A store in trouble may refuse to do what is left to do;
/// so before there is a change that takes with it whatever is only forgotten.
async fn reopened<S: Store>(
    session: Session,
    sessions: &Sessions<S>,
    seed: u64,
    step: u64,
) -> Session {
    insist(async || session.backend.put_session("y", &step.to_be_bytes()).await).await;
    let closed = session.close().await;
    assert!(matches!(closed, Ok(()) | Err(SessionError::Store(_))), "{closed:?}");
    sessions.open(&account(seed)).await.unwrap()
}

/// Asks until it succeeds.
async fn insist<T, E: Debug>(ask: impl AsyncFn() -> Result<T, E>) -> T {
    for _ in 0..200 {
        if let Ok(value) = ask().await {
            return value;
        }
    }
    panic!("it never succeeds: {:?}", ask().await.err());
}

macro_rules! both {
    ($ours:expr, $model:expr, $method:ident($($argument:expr),*)) => {{
        let wanted = $model.$method($($argument),*).await.unwrap();
        let ours = insist(async || $ours.$method($($argument),*).await).await;
        assert_eq!(format!("{ours:?}"), format!("{wanted:?}"), stringify!($method));
    }};
}

const USERS: [&str; 5] = ["100", "1001", "200", "300", "400"];
const GROUPS: [&str; 3] = ["1@g.us", "2@g.us", "11@g.us"];
const IDS: [&str; 5] = ["A", "B", "C", "D", "E"];
const NAMES: [&str; 3] = ["regular", "regular_low", "critical"];

fn addresses() -> Vec<String> {
    let forms = |user: &&str| [format!("{user}@lid"), format!("{user}:7@lid")];
    USERS.iter().flat_map(forms).collect()
}

/// One random change, made to both.
#[expect(clippy::too_many_lines, reason = "one arm for each method of the traits")]
async fn change(dice: &mut Dice, ours: &Arc<dyn Backend>, model: &InMemoryBackend) {
    let now = wacore::time::now_secs();
    let addresses = addresses();
    let address = dice.pick(&addresses).as_str();
    let other = dice.pick(&addresses).as_str();
    let (user, group) = (*dice.pick(&USERS), *dice.pick(&GROUPS));
    let (id, name) = (*dice.pick(&IDS), *dice.pick(&NAMES));
    let key = [dice.roll(256) as u8; 32];
    let number = dice.roll(40) as u32;
    let even = number.is_multiple_of(2);
    // Mostly small, some that fill a page, a few that do not fit into a document.
    let length = match dice.roll(60) {
        0 => 950_000 + dice.roll(100_000),
        1..5 => dice.roll(20_000),
        _ => dice.roll(300),
    };
    let blob = if length > 1_000 {
        vec![dice.roll(256) as u8; length as usize]
    } else {
        dice.bytes(length)
    };
    let both_addresses: [(Arc<str>, Bytes); 2] =
        [(address.into(), blob.clone().into()), (other.into(), Bytes::from_static(b"other"))];
    match dice.roll(43) {
        0 => both!(ours, model, put_identity(address, key)),
        1 => {
            let batch = [(Arc::from(address), key), (Arc::from(other), key)];
            both!(ours, model, put_identities_batch(&batch));
        }
        2 => both!(ours, model, delete_identity(address)),
        3 => both!(ours, model, put_session(address, &blob)),
        4 => both!(ours, model, put_sessions_batch(&both_addresses)),
        5 => both!(ours, model, delete_session(address)),
        6 => both!(ours, model, store_prekey(number, &blob, false)),
        7 => {
            let keys: Vec<_> = (0..number).map(|id| (id, Bytes::from(vec![7; 70]))).collect();
            both!(ours, model, store_prekeys_batch(&keys, false));
        }
        8 => both!(ours, model, mark_prekeys_uploaded(&[number, number / 2])),
        9 => both!(ours, model, remove_prekey(number)),
        10 => both!(ours, model, store_signed_prekey(number, &blob)),
        11 => both!(ours, model, remove_signed_prekey(number)),
        12 => both!(ours, model, put_sender_key(address, &blob)),
        13 => both!(ours, model, put_sender_keys_batch(&both_addresses)),
        14 => both!(ours, model, delete_sender_key(address)),
        15 => {
            let key = AppStateSyncKey { key_data: blob, fingerprint: vec![1], timestamp: now };
            both!(ours, model, set_sync_key(id.as_bytes(), key.clone()));
        }
        16 => {
            let state = HashState { version: u64::from(number), ..HashState::default() };
            both!(ours, model, set_version(name, state.clone()));
        }
        17 | 18 => {
            let mac =
                |i: u8| AppStateMutationMAC { index_mac: vec![i; 32], value_mac: blob.clone() };
            let macs = [mac(number as u8), mac(number as u8 / 2)];
            both!(ours, model, put_mutation_macs(name, 1, &macs));
        }
        19 => both!(ours, model, delete_mutation_macs(name, &[vec![number as u8; 32]])),
        20 => both!(ours, model, clear_mutation_macs(name)),
        21 | 22 => {
            let entries = [(address, even), (other, true)];
            both!(ours, model, set_sender_key_status(group, &entries));
        }
        23 => both!(ours, model, clear_sender_key_devices(group)),
        24 => both!(ours, model, delete_sender_key_device_rows(&[address, other])),
        25 if number == 0 => both!(ours, model, clear_all_sender_key_devices()),
        25..28 => {
            // No two LIDs share a number here; that is another test.
            let entry = LidPnMappingEntry {
                lid: user.to_owned(),
                phone_number: format!("{user}{}", number % 2),
                created_at: 1,
                updated_at: now,
                learning_source: "usync".to_owned(),
            };
            both!(ours, model, put_lid_mappings(std::slice::from_ref(&entry)));
        }
        28 => both!(ours, model, save_base_key(address, id, &key)),
        29 => both!(ours, model, delete_base_key(address, id)),
        30 => {
            let record = DeviceListRecord {
                user: user.to_owned(),
                devices: vec![DeviceInfo::new(number, Some(1)).with_hosting(even)],
                timestamp: now,
                phash: Some(id.to_owned()),
                raw_id: Some(number),
            };
            both!(ours, model, update_device_lists(vec![record.clone()]));
        }
        31 => both!(ours, model, delete_devices(user)),
        32 => both!(ours, model, put_group_metadata(group, &blob)),
        33 => both!(ours, model, delete_group_metadata(group)),
        34 => match number % 5 {
            0 => both!(ours, model, touch_tc_token_sender_timestamp(user, i64::from(number))),
            1 => both!(ours, model, store_received_tc_token(user, &key, i64::from(number))),
            2 => {
                let (token, at) = (blob, i64::from(number));
                let entry = TcTokenEntry { token, token_timestamp: at, sender_timestamp: None };
                both!(ours, model, put_tc_token(user, &entry));
            }
            3 => both!(ours, model, delete_tc_token(user)),
            _ => both!(ours, model, delete_expired_tc_tokens(20, 20)),
        },
        35 => both!(ours, model, store_sent_message(group, id, &blob)),
        36 => both!(ours, model, take_sent_message(group, id)),
        37 => {
            let cutoff = now + 10 - i64::from(number % 2) * 20;
            both!(ours, model, delete_expired_sent_messages(cutoff));
            both!(ours, model, delete_expired_pending_inbound(cutoff));
        }
        38 => {
            let row = |id| PendingInboundRow { chat: group, sender: address, id, message: &blob };
            both!(ours, model, store_pending_inbound_batch(&[row(id), row("F")]));
        }
        39 => {
            let keys = [PendingInboundKey { chat: group, sender: address, id }];
            both!(ours, model, delete_pending_inbound_batch(&keys));
        }
        40 | 41 => {
            let entry = MsgSecretEntry {
                chat: group.into(),
                sender: address.into(),
                msg_id: id.into(),
                secret: key,
                expires_at: i64::from(number),
                message_ts: i64::from(number / 2),
            };
            both!(ours, model, put_msg_secrets(vec![entry.clone()]));
            if number > 35 {
                both!(ours, model, delete_expired_msg_secrets(20));
            }
        }
        _ => {
            let mut device = Device::new();
            device.pn = even.then(|| Jid::pn(user));
            both!(ours, model, save(&device));
        }
    }
}

/// Everything that can be asked, with its answers.
async fn picture(of: &dyn Backend) -> Vec<String> {
    let mut out = Vec::new();
    let mut see = |what: &str, value: &dyn Debug| out.push(format!("{what} {value:?}"));
    fn sorted<T: Debug>(values: Vec<T>) -> BTreeSet<String> {
        values.iter().map(|value| format!("{value:?}")).collect()
    }
    for address in addresses().iter().map(String::as_str).chain(["x"]) {
        see(address, &of.load_identity(address).await.unwrap());
        see(address, &of.get_session(address).await.unwrap());
        see(address, &of.has_session(address).await.unwrap());
        see(address, &of.get_sender_key(address).await.unwrap());
        for id in IDS.iter().chain(&["F"]) {
            see(address, &of.has_same_base_key(address, id, &[7; 32]).await.unwrap());
            for group in GROUPS {
                see(id, &of.get_pending_inbound(group, address, id).await.unwrap());
                see(id, &of.get_msg_secret(group, address, id).await.unwrap());
                see(id, &of.get_msg_secret_with_ts(group, address, id).await.unwrap());
            }
        }
    }
    for user in USERS.iter().chain(&["10", "20"]) {
        see(user, &of.has_signal_state_for_user(user).await.unwrap());
        see(user, &of.get_lid_mapping(user).await.unwrap());
        for end in 0..2 {
            see(user, &of.get_pn_mapping(&format!("{user}{end}")).await.unwrap());
        }
        see(user, &of.get_devices(user).await.unwrap());
        see(user, &of.get_tc_token(user).await.unwrap());
    }
    for group in GROUPS {
        see(group, &sorted(of.get_sender_key_devices(group).await.unwrap()));
        see(group, &of.get_group_metadata(group).await.unwrap());
    }
    for name in NAMES {
        see(name, &of.get_version(name).await.unwrap());
        let macs: Vec<[u8; 32]> = (0..40).map(|number| [number; 32]).collect();
        for mac in &macs {
            see(name, &of.get_mutation_mac(name, mac).await.unwrap());
        }
        let found = of.get_mutation_macs(name, &macs).await.unwrap();
        see(name, &sorted(found.into_iter().collect()));
    }
    for id in IDS {
        see(id, &of.get_sync_key(id.as_bytes()).await.unwrap());
    }
    let numbers: Vec<u32> = (0..40).collect();
    for number in &numbers {
        see("prekey", &of.load_prekey(*number).await.unwrap());
        see("signed", &of.load_signed_prekey(*number).await.unwrap());
    }
    see("prekeys", &of.load_prekeys_batch(&numbers).await.unwrap());
    see("signed", &sorted(of.load_all_signed_prekeys().await.unwrap()));
    see("max", &of.get_max_prekey_id().await.unwrap());
    see("latest", &of.get_latest_sync_key_id().await.unwrap());
    see("lids", &sorted(of.get_all_lid_mappings().await.unwrap()));
    see("tokens", &sorted(of.get_all_tc_token_jids().await.unwrap()));
    see("exists", &of.exists().await.unwrap());
    let device = of.load().await.unwrap();
    see("device", &device.map(|device| serde_json::to_string(&device).unwrap()));
    out
}

/// Dies at every commit in turn, also while pages are written and after commits that failed: what
/// was confirmed is there, and nothing is there that nobody wrote.
#[tokio::test]
async fn a_death_at_any_commit_loses_nothing_confirmed() {
    let common = Common::new();
    for death in 0..16_u64 {
        let account = account(death);
        let mut dice = Dice::new(death);
        // By address: the last value confirmed and the last one tried, none meaning removed.
        let mut confirmed = BTreeMap::<String, (u64, bool)>::new();
        let mut tried = BTreeMap::<String, Vec<(u64, bool)>>::new();
        for life in 0..3 {
            let fence = common.acquire(&account).await;
            let (commits, applied) = (1 + (death * 7 + life * 31) % 110, dice.roll(2) == 0);
            let faults = if death % 2 == 0 { 0 } else { 4 };
            let trial = Trial::dying(common.store.clone(), death, faults, commits, applied);
            let sessions = sessions(trial.clone(), NEW_KEY, fence);
            let session = sessions.open(&account).await.unwrap();
            for (address, tries) in &tried {
                let value = session.backend.get_session(address).await.unwrap();
                let value = value.map(|value| u64::from_be_bytes(value[..8].try_into().unwrap()));
                let last = confirmed.get(address).copied().unwrap_or((0, false));
                let possible = tries.iter().chain([&last]).filter(|(number, _)| *number >= last.0);
                let is = |&(number, there): &(u64, bool)| value == there.then_some(number);
                assert!(possible.clone().any(is), "{death} {life} {address} {value:?}");
            }
            let work = async {
                for step in 1..400_u64 {
                    let number = life * 1_000 + step;
                    let count = if dice.roll(60) == 0 { 60 } else { 1 + dice.roll(3) };
                    let removes = dice.roll(6) == 0;
                    let length = if count > 3 { 40_000 } else { 8 + dice.roll(3_000) };
                    let mut batch = Vec::new();
                    for _ in 0..count {
                        let address = format!("{}@lid", dice.roll(80));
                        tried.entry(address.clone()).or_default().push((number, !removes));
                        let mut value = number.to_be_bytes().to_vec();
                        value.resize(length as usize, 7);
                        batch.push((Arc::from(address), Bytes::from(value)));
                    }
                    insist(async || {
                        if !removes {
                            return session.backend.put_sessions_batch(&batch).await;
                        }
                        for (address, _) in &batch {
                            session.backend.delete_session(address).await?;
                        }
                        Ok(())
                    })
                    .await;
                    for (address, _) in batch {
                        confirmed.insert(address.to_string(), (number, !removes));
                    }
                }
            };
            tokio::select! {
                () = work => panic!("it should have died"),
                () = trial.stopped.notified() => {}
            }
        }
    }
}

#[tokio::test]
async fn a_number_that_went_to_another_lid_stays_there() {
    let common = Common::new();
    let sessions = common.sessions(&account(1)).await;
    let session = sessions.open(&account(1)).await.unwrap();
    let put = async |lid: &str, phone: &str| {
        let entry = LidPnMappingEntry {
            lid: lid.to_owned(),
            phone_number: phone.to_owned(),
            created_at: 1,
            updated_at: 1,
            learning_source: "usync".to_owned(),
        };
        session.backend.put_lid_mapping(&entry).await.unwrap();
    };
    put("first", "1").await;
    put("second", "1").await;
    put("first", "2").await;
    let lid =
        async |phone| session.backend.get_pn_mapping(phone).await.unwrap().map(|entry| entry.lid);
    assert_eq!(lid("1").await.as_deref(), Some("second"));
    assert_eq!(lid("2").await.as_deref(), Some("first"));
}

/// Removing what is merely forgotten costs no commit of its own, and is made up for later.
#[tokio::test]
async fn what_is_forgotten_waits_for_the_next_commit() {
    let common = Common::new();
    let fence = common.acquire(&account(1)).await;
    let counted = Trial::faulty(common.store.clone(), 0, 0);
    let sessions = sessions(counted.clone(), NEW_KEY, fence);
    let session = sessions.open(&account(1)).await.unwrap();
    session.backend.store_pending_inbound("c", "s", "1", b"text").await.unwrap();
    session.backend.store_pending_inbound("c", "s", "2", b"text").await.unwrap();
    let commits = counted.commits();
    session.backend.delete_pending_inbound("c", "s", "1").await.unwrap();
    assert_eq!(session.backend.get_pending_inbound("c", "s", "1").await.unwrap(), None);
    assert_eq!(counted.commits(), commits);

    drop(session);
    let session = sessions.open(&account(1)).await.unwrap();
    let text = session.backend.get_pending_inbound("c", "s", "1").await.unwrap();
    assert_eq!(text.as_deref(), Some(&b"text"[..]), "after a crash it is still there");
    session.backend.delete_pending_inbound("c", "s", "1").await.unwrap();
    session.backend.put_session("x", b"1").await.unwrap();
    assert_eq!(counted.commits(), commits + 1, "one commit for both");
    session.backend.delete_pending_inbound("c", "s", "2").await.unwrap();
    session.close().await.unwrap();
    let session = sessions.open(&account(1)).await.unwrap();
    for id in ["1", "2"] {
        assert_eq!(session.backend.get_pending_inbound("c", "s", id).await.unwrap(), None);
    }
    let commits = counted.commits();
    session.close().await.unwrap();
    assert_eq!(counted.commits(), commits, "nothing to do");
}

/// Calls that come together share commits.
#[tokio::test]
async fn concurrent_writes_share_a_commit() {
    let common = Common::new();
    let fence = common.acquire(&account(1)).await;
    let counted = Trial::faulty(common.store.clone(), 0, 0);
    let sessions = sessions(counted.clone(), NEW_KEY, fence);
    let session = sessions.open(&account(1)).await.unwrap();
    let puts = (0..200_u32).map(|number| {
        let backend = session.backend.clone();
        async move { backend.put_session(&number.to_string(), b"state").await.unwrap() }
    });
    futures_util::future::join_all(puts).await;
    assert!(counted.commits() <= 3, "{} commits", counted.commits());
    drop(session);
    let session = sessions.open(&account(1)).await.unwrap();
    for number in 0..200 {
        assert!(session.backend.has_session(&number.to_string()).await.unwrap());
    }
}
