//! The HTTP API, the console and the metrics.
