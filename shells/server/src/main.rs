//! The `wa-backfill` command.

fn main() {}
