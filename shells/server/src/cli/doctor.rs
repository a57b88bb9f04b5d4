//! "How to tell if sync is running or blocked", automated.

use std::process::ExitCode;

use clap::ArgMatches;
use serde_json::Value;

use super::Outcome;
use super::client::{Client, shown};

/// Says per account how its sync stands and what to do. Fails if something needs attention.
pub(super) fn doctor(args: &ArgMatches) -> Outcome {
    let client = Client::new(args)?;
    let ready = client.get("/ready")?;
    let overview = client.get("/api/admin/overview")?;
    let (lines, healthy) = report(&ready, &overview);
    for line in lines {
        println!("{line}");
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(UNHEALTHY) })
}

/// What is said, and whether all is well.
fn report(ready: &Value, overview: &Value) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let mut healthy = true;
    let instance = &overview["instance"];
    let name = shown(&ready["instanceId"]);
    if ready["ready"] == true {
        lines.push(format!("instance {name}: ACTIVE. Ticks run here."));
    } else {
        let holder = ready["heldBy"].as_str().unwrap_or("nobody");
        let reason = shown(&ready["reason"]);
        lines.push(format!("instance {name}: PASSIVE ({reason}). Ticks run only where it is active; the lock is held by {holder}."));
        if holder == "nobody" {
            healthy = false;
            lines.push("  -> Nobody serves. If that lasts longer than a minute, check the store and the logs for [lock].".into());
        }
    }
    if instance["storeConnected"] != true {
        healthy = false;
        lines.push("store: NOT CONNECTED.".into());
        lines.push("  -> Check that it runs and that its credentials are right; nothing is acknowledged to WhatsApp meanwhile.".into());
    } else {
        lines.push("store: connected.".into());
    }
    let accounts = overview["accounts"].as_array().cloned().unwrap_or_default();
    if accounts.is_empty() {
        lines.push("There are no accounts. -> wa-backfill accounts add NAME".into());
    }
    for account in &accounts {
        let verdict = &account["verdict"];
        let state = verdict["state"].as_str().unwrap_or("unknown");
        healthy &= matches!(state, "running" | "cooldown" | "backoff" | "due" | "interrupted");
        let summary = verdict["summary"].as_str().unwrap_or("Nothing is known of it here.");
        lines.push(format!(
            "account {} ({}): {state}. {summary}",
            shown(&account["masked"]),
            shown(&account["name"])
        ));
        if let Some(action) = verdict["action"].as_str().filter(|action| *action != "Nothing.") {
            lines.push(format!("  -> {action}"));
        }
        lines.push(format!(
            "  last live message {}, stored {}; last recent sync {}; last backfill {}",
            shown(&account["lastRealtimeMessageAt"]),
            shown(&account["lastRealtimeIngestAt"]),
            shown(&account["lastRecentSyncAt"]),
            shown(&account["lastAutoBackfillSuccessAt"]),
        ));
    }
    lines.push("Live test: send a message to an account from another phone; it has to appear in the inbox within seconds. If it does, gaps are closed by themselves.".into());
    (lines, healthy)
}

/// Something needs attention.
const UNHEALTHY: u8 = 2;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_blocked_account_is_named_with_what_to_do() {
        let ready = json!({ "ready": true, "instanceId": "i" });
        let overview = json!({
            "instance": { "storeConnected": true },
            "accounts": [{ "masked": "01234567...", "name": "Shop", "verdict": {
                "state": "blocked_on_error", "summary": "It failed.", "action": "Look." } }],
        });
        let (lines, healthy) = report(&ready, &overview);
        assert!(!healthy);
        assert!(
            lines.iter().any(|l| l == "account 01234567... (Shop): blocked_on_error. It failed.")
        );
        assert!(lines.iter().any(|l| l == "  -> Look."));
    }

    #[test]
    fn a_passive_instance_is_well_if_somebody_else_serves() {
        let overview = json!({ "instance": { "storeConnected": true }, "accounts": [] });
        let held =
            json!({ "ready": false, "reason": "lock_held_by_other_instance", "heldBy": "j" });
        assert!(report(&held, &overview).1);
        let unheld = json!({ "ready": false, "reason": "starting", "heldBy": null });
        assert!(!report(&unheld, &overview).1);
    }
}
