//! The `wa-backfill` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    wa_server::cli::run(wa_server::RealWhatsApp)
}
