//! The server: configuration, wiring and command line of wa-backfill.
