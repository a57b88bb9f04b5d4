//! The demo: three phones, two instances, one SQLite file; linked, filled, killed, taken over.

#![expect(clippy::disallowed_methods, reason = "people wait in real time")]

mod story;

use std::process::ExitCode;

use clap::Parser;

/// Shows wa-backfill at work on this machine. Nothing leaves it: WhatsApp is a double.
#[derive(Parser)]
struct Args {
    /// End when everything has been shown, with exit code 0 if all was well
    #[arg(long)]
    once: bool,
}

fn main() -> ExitCode {
    // The demo starts itself as the instances: the server as it is, in a process that takes the
    // double for WhatsApp.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        whatsapp_double::trust_doubles();
        return wa_server::cli::run(wa_server::RealWhatsApp);
    }
    let args = Args::parse();
    match story::tell(args.once) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
