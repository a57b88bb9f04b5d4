//! Where the log goes and how it looks.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::LogConfig;

/// Begins to log to standard output: for people on a terminal, as JSON otherwise.
pub(crate) fn begin(config: &LogConfig) {
    let targets: Targets = config.level.parse().unwrap_or_default();
    // It logs every failed request, which the caller reports anyway, with names of documents.
    let targets = targets.with_target("gcloud_sdk", LevelFilter::OFF);
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
