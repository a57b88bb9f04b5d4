//! Where the log goes and how it looks.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::LogConfig;

/// Begins to log to standard output: for people on a terminal, as JSON otherwise.
pub(crate) fn begin(config: &LogConfig) {
    let targets = ours(&config.level);
    let human = !config.json.unwrap_or_else(|| !std::io::stdout().is_terminal());
    let layer = if human {
        fmt::layer().with_target(false).with_ansi(std::io::stdout().is_terminal()).boxed()
    } else {
        fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed()
    };
    // Another one stays if there is one: tests log in their own way.
    let _ = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
}

/// Lets only this project's own code speak. Libraries name phone numbers, addresses and documents in
/// their logs: the client of WhatsApp does when it links a device, the one of Firestore when a request fails.
fn ours(level: &str) -> Targets {
    let asked: Targets = level.parse().unwrap_or_default();
    let default = asked.default_level().unwrap_or(LevelFilter::OFF);
    let own = OWN.iter().map(|name| (*name, default));
    let named = asked.iter().filter(|(name, _)| OWN.iter().any(|own| name.starts_with(own)));
    let named: Vec<(String, LevelFilter)> =
        named.map(|(name, level)| (name.to_owned(), level)).collect();
    Targets::new().with_targets(own).with_targets(named)
}

/// The crates whose logs mask what has to be masked.
const OWN: [&str; 7] = [
    "backfill_core",
    "backfill_driver",
    "gateway_whatsapp",
    "store_firestore",
    "store_sqlite",
    "wa_http",
    "wa_server",
];

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_never_speak() {
        for level in ["info", "trace", "debug,whatsapp_rust=trace,gcloud_sdk=debug"] {
            let targets = ours(level);
            for library in ["whatsapp_rust::pair_code", "Client/PairCode", "wacore", "gcloud_sdk"] {
                assert!(!targets.would_enable(library, &Level::ERROR), "{library} at {level}");
            }
            assert!(targets.would_enable("wa_server::journal", &Level::INFO));
        }
        let targets = ours("warn,wa_http=debug");
        assert!(targets.would_enable("wa_http::app", &Level::DEBUG));
        assert!(!targets.would_enable("gateway_whatsapp", &Level::INFO));
    }
}
