//! The command, as real processes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod process;
mod whole;

use serde_json::{Value, json};

use process::{RefusingFirestore, Server, command, temporary};

#[test]
fn check_config_shows_everything_and_hides_secrets() {
    let output = command(&["check-config"])
        .env("ADMIN_TOKEN", "a-very-secret-token")
        .env("INSTANCE_ID", "box")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("ADMIN_TOKEN = (set)") && !text.contains("a-very-secret"), "{text}");
    assert!(text.contains("INSTANCE_ID = box"));
    assert!(text.contains("AUTO_BACKFILL_INTERVAL_MS = 720000 (default)"));
}

#[test]
fn check_config_lists_all_that_is_wrong() {
    let output = command(&["check-config", "--port", "99999"])
        .env("AUTO_BACKFILL_ENABLED", "perhaps")
        .env("BIND_ADDR", "0.0.0.0")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78));
    for name in ["PORT is 99999", "AUTO_BACKFILL_ENABLED is perhaps", "BIND_ADDR is 0.0.0.0"] {
        assert!(text.contains(name), "{name} is missing in {text}");
    }
}

#[test]
fn settings_come_from_a_file_the_environment_and_the_command_line() {
    let dir = temporary();
    let file = dir.join("settings");
    std::fs::write(&file, "INSTANCE_ID=file\nMAX_ACCOUNTS='7'\nLOG_LEVEL=warn\n").unwrap();
    let file = file.to_str().unwrap();
    let output = command(&["check-config", "--env-file", file, "--log-level", "debug"])
        .env("INSTANCE_ID", "environment")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["INSTANCE_ID = environment", "MAX_ACCOUNTS = 7", "LOG_LEVEL = debug"] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[test]
fn the_example_is_a_file_that_works() {
    let output = command(&["check-config", "--example"]).output().unwrap();
    let file = temporary().join("example");
    std::fs::write(&file, output.stdout).unwrap();
    let check = command(&["check-config", "--env-file", file.to_str().unwrap()]).output().unwrap();
    assert!(check.status.success());
}

#[test]
fn what_cannot_work_is_refused_once_and_clearly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = temporary();
    let output = command(&["serve", "--port", &port]).env("DATA_DIR", &dir).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");

    let output =
        command(&["serve", "--port", "0"]).env("DATA_DIR", "/dev/null/data").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("/dev/null/data"), "{text}");

    let broken = temporary();
    std::fs::write(
        broken.join("wa-backfill.sqlite"),
        "this is no database, but long enough to be looked at",
    )
    .unwrap();
    let output = command(&["serve", "--port", "0"]).env("DATA_DIR", &broken).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("the store cannot be used"), "{text}");
}

#[test]
fn an_instance_serves_and_stops_when_told() {
    let dir = temporary();
    let mut server = Server::start(&dir, &[("INSTANCE_ID", "one")]);
    server.until_ready(true);
    let ready = server.get("/ready");
    assert_eq!(ready["mode"], "active");
    assert_eq!(ready["instanceId"], "one");
    assert_eq!(ready["lockStatus"], "held_by_this_instance");
    assert_eq!(server.get("/diag")["firestoreConnected"], true);

    let token = std::fs::read_to_string(dir.join("admin-token")).unwrap();
    assert_eq!(token.len(), 48);
    let list = server.cli(&["accounts", "list"]);
    assert_eq!(list.0, Some(0));
    assert_eq!(list.1, "There are no accounts.\n");
    let (code, text) = server.cli(&["accounts", "add", "Shop", "--phone", "0712345678"]);
    assert_eq!(code, Some(0), "{text}");
    let id = text.split_whitespace().next().unwrap().to_owned();
    assert!(id.starts_with("account_prod_"), "{text}");
    let (code, text) = server.cli(&["accounts", "list"]);
    assert_eq!(code, Some(0));
    assert!(text.contains(&id) && text.contains("+40712345678"), "{text}");
    let (code, text) = server.cli(&["status"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("instance one: active"), "{text}");
    let (code, text) = server.cli(&["doctor"]);
    assert_eq!(code, Some(2), "an account that is not connected needs attention: {text}");
    assert!(text.contains("ACTIVE") && text.contains("store: connected."), "{text}");
    assert!(text.contains("(Shop): "), "{text}");
    let (code, _) = server.cli(&["backfill", &id]);
    assert_eq!(code, Some(1), "it is not connected");

    assert_eq!(server.terminate(), Some(0));
    let log = server.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["message"] == "[lock] mode active"), "{log}");
    assert!(lines.iter().any(|line| line["message"] == "[lock] stopped"), "{log}");
    assert!(!log.contains("40712345678") && !log.contains(&id) && !log.contains(&token), "{log}");
}

#[test]
fn a_backup_is_taken_beside_a_running_instance_and_can_be_served() {
    let dir = temporary();
    let mut server = Server::start(&dir, &[("INSTANCE_ID", "one")]);
    server.until_ready(true);
    let other = temporary();
    let copy = other.join("wa-backfill.sqlite");
    let (code, text) = server.cli(&["backup", copy.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = server.cli(&["backup", copy.to_str().unwrap()]);
    assert!(code == Some(1) && text.contains("exists"), "{code:?} {text}");
    server.until_ready(true);
    assert_eq!(server.terminate(), Some(0));

    // In the copy the first instance still holds the lock.
    let mut restored = Server::start(&other, &[("INSTANCE_ID", "two")]);
    restored.until("it knows who holds the lock", |body| body["heldBy"] == "one");
    assert_eq!(restored.terminate(), Some(0));

    let (code, text) = {
        let output = command(&["backup", "x"]).env("DATA_DIR", temporary()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(code == Some(78) && text.contains("DATA_DIR"), "{code:?} {text}");
}

#[test]
fn an_answer_that_never_ends_delays_the_end_only_a_while() {
    let dir = temporary();
    let mut server = Server::start(&dir, &[]);
    server.until_ready(true);
    let caller = server.unfinished_request();
    assert_eq!(server.terminate(), Some(0));
    assert!(server.log().contains("[http] some answers took too long and were dropped"));
    drop(caller);
}

#[test]
fn a_second_signal_ends_at_once() {
    let dir = temporary();
    let mut server = Server::start(&dir, &[]);
    server.until_ready(true);
    let caller = server.unfinished_request();
    server.signal(rustix::process::Signal::TERM);
    server
        .wait("it begins to stop", |server| server.log().contains("[lock] stopping").then_some(()));
    assert_eq!(server.terminate(), Some(130));
    drop(caller);
}

#[test]
fn the_second_instance_stands_by_and_takes_over_at_once() {
    let dir = temporary();
    let mut first = Server::start(&dir, &[("INSTANCE_ID", "one")]);
    first.until_ready(true);
    let mut second = Server::start(&dir, &[("INSTANCE_ID", "two")]);
    second.until("it knows who serves", |ready| ready["heldBy"] == "one");
    let ready = second.get("/ready");
    assert_eq!(ready["ready"], false);
    assert_eq!(ready["reason"], "lock_held_by_other_instance");
    let (code, text) = second.cli(&["accounts", "add", "Shop"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("instance_passive") && text.contains("Ask instance one."), "{text}");
    let (code, text) = second.cli(&["doctor"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("PASSIVE (lock_held_by_other_instance)"), "{text}");
    assert_eq!(first.terminate(), Some(0));
    second.until_ready(true);
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn a_killed_instance_is_replaced_after_its_term() {
    let dir = temporary();
    let short = [("INSTANCE_LEASE_MS", "3000"), ("LOCK_DELAY_MS", "0")];
    let mut first = Server::start(&dir, &[short[0], short[1], ("INSTANCE_ID", "one")]);
    first.until_ready(true);
    let mut second = Server::start(&dir, &[short[0], short[1], ("INSTANCE_ID", "two")]);
    second.until("it knows who serves", |ready| ready["heldBy"] == "one");
    first.kill();
    second.until_ready(true);
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn an_account_added_while_whatsapp_is_away_is_served_after_a_restart() {
    let dir = temporary();
    let away = [("WHATSAPP_URL", "ws://127.0.0.1:9/ws"), ("INSTANCE_ID", "one")];
    let mut server = Server::start(&dir, &away);
    server.until_ready(true);
    let body = json!({ "name": "Shop", "phone": "0712345678" });
    server.call(reqwest::Method::POST, "/api/whatsapp/add-account", Some(body));
    server.wait("a connection fails", |server| {
        server.log().contains("[realtime] connection closed").then_some(())
    });
    assert_eq!(server.terminate(), Some(0));
    let mut server = Server::start(&dir, &away);
    server.until_ready(true);
    server.wait("it is taken again", |server| {
        let overview = server.call(reqwest::Method::GET, "/api/admin/overview", None);
        (overview["accounts"][0]["ownedHere"] == true).then_some(())
    });
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_store_that_is_not_there_makes_it_passive_not_dead() {
    let dir = temporary();
    let mut server = Server::start(
        &dir,
        &[
            ("STORE", "firestore"),
            ("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9"),
            ("GOOGLE_CLOUD_PROJECT", "test"),
        ],
    );
    server.until("it says why", |ready| ready["reason"] == "store_unreachable");
    assert_eq!(server.get("/diag")["firestoreConnected"], false);
    assert_eq!(server.get("/diag")["latestRealtime"], json!([]));
    let (code, text) = server.cli(&["doctor"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("NOT CONNECTED"), "{text}");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_store_that_refuses_the_key_makes_it_passive_and_is_mentioned_once() {
    let refusing = RefusingFirestore::start();
    let dir = temporary();
    let host = refusing.address.to_string();
    let settings = [
        ("STORE", "firestore"),
        ("FIRESTORE_EMULATOR_HOST", &*host),
        ("GOOGLE_CLOUD_PROJECT", "p"),
    ];
    let mut server = Server::start(&dir, &settings);
    server.until("it says why", |ready| ready["reason"] == "store_denies_access");
    let (code, text) = server.cli(&["doctor"]);
    assert!(code == Some(2) && text.contains("PASSIVE (store_denies_access)"), "{text}");
    // It goes on trying, and does not go on complaining.
    let tries = |server: &Server| {
        let metrics = server.metrics();
        let failed = "wa_store_failures_total{reason=\"denied\"} ";
        let failed = metrics.lines().find_map(|line| line.strip_prefix(failed));
        failed.unwrap().parse::<u32>().unwrap()
    };
    let first = tries(&server);
    server.wait("it tries again", |server| (tries(server) > first + 2).then_some(()));
    let log = server.log();
    let complaints = log.lines().filter(|line| line.contains("the store denies access")).count();
    assert_eq!(complaints, 1, "{log}");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn what_google_cannot_take_for_a_key_is_refused() {
    let dir = temporary();
    let file = dir.join("key.json");
    std::fs::write(&file, "{ no key").unwrap();
    let file = file.to_str().unwrap();
    let nowhere = dir.join("nowhere");
    for (name, value, complaint) in [
        ("FIREBASE_SERVICE_ACCOUNT_JSON", "{ no key", "is not JSON"),
        ("FIREBASE_SERVICE_ACCOUNT_JSON", r#"{"project_id":"p"}"#, "has no `client_email`"),
        ("GOOGLE_APPLICATION_CREDENTIALS", file, "is not a key as JSON"),
        ("GOOGLE_APPLICATION_CREDENTIALS", nowhere.to_str().unwrap(), "cannot be read"),
    ] {
        let serve = command(&["serve", "--port", "0"])
            .env("DATA_DIR", &dir)
            .env("STORE", "firestore")
            .env("GOOGLE_CLOUD_PROJECT", "p")
            .env(name, value)
            .output()
            .unwrap();
        let text = String::from_utf8(serve.stderr).unwrap();
        assert_eq!(serve.status.code(), Some(78), "{text}");
        assert!(text.contains(complaint) && !text.contains("{ no key"), "{text}");
    }
}

#[test]
fn all_lines_of_a_file_that_cannot_be_read_are_named_and_unknown_settings_are_noticed() {
    let file = temporary().join("settings");
    std::fs::write(&file, "PORT\nLOG_LEVEL=warn\nMAX_ACCOUNTS='7\n").unwrap();
    let path = file.to_str().unwrap();
    let check = command(&["check-config", "--env-file", path]).output().unwrap();
    let text = String::from_utf8(check.stderr).unwrap();
    assert_eq!(check.status.code(), Some(78));
    assert!(text.contains("line 1 is not NAME=value") && text.contains("line 3 has"), "{text}");

    std::fs::write(&file, "RECENT_SYNC_INTERVALL_MS=60000\n").unwrap();
    let check = command(&["check-config", "--env-file", path]).output().unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0));
    assert!(text.contains("RECENT_SYNC_INTERVALL_MS is not a setting"), "{text}");
}

#[test]
fn what_cannot_be_asked_is_said_in_words() {
    let dir = temporary();
    let mut server = Server::start(&dir, &[]);
    server.until_ready(true);
    for (args, complaint) in [
        (&["status", "--url", "nonsense"][..], "nonsense is not a URL"),
        (&["status", "--url", "http://127.0.0.1:1"], "Connection refused"),
        (&["status", "--token", "a-wrong-token-for-it"], "The token is wrong. (401 unauthorized)"),
        (&["backfill", "a/b"], "a/b is not an account's id"),
        (&["backfill", "account_prod_none"], "no such account. (404 account_not_found)"),
        (&["accounts", "add", " "], "`name` has to have 1 to 100 characters. (400 bad_request)"),
        (&["accounts", "add", "A", "--phone", "12"], "`phone` has to have 7 to 15 digits."),
    ] {
        let (code, text) = server.cli(args);
        assert!(code == Some(1) && text.contains(complaint), "{args:?}: {code:?} {text}");
    }
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn sessions_that_have_no_place_are_refused() {
    let dir = temporary();
    let output = command(&["serve", "--port", "0"])
        .env("DATA_DIR", &dir)
        .env("SESSIONS_PATH", "/dev/null/sessions")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("/dev/null/sessions cannot be used"), "{text}");
}

#[test]
fn sessions_without_a_key_are_refused() {
    let output = command(&["serve", "--port", "0"])
        .env("DATA_DIR", temporary())
        .env("SESSION_STORE", "shared")
        .env("SESSION_ENCRYPTION_KEY", "k1:too-short-secret")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("SESSION_ENCRYPTION_KEY") && !text.contains("too-short-secret"),
        "{text}"
    );
}
