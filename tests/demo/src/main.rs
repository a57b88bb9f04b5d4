//! The demo: three phones, two instances, one SQLite file; linked, filled, killed, taken over. And
//! what all that takes.

#![expect(clippy::disallowed_methods, reason = "people wait in real time")]

mod measure;
mod recorded;
mod story;

use std::process::ExitCode;

use clap::Parser;

/// Shows wa-backfill at work on this machine. Nothing leaves it: WhatsApp is a double.
#[derive(Parser)]
struct Args {
    /// End when everything has been shown, with exit code 0 if all was well
    #[arg(long)]
    once: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Measure what the server takes and how fast it is, instead of showing it
    Measure {
        /// Only what has one of these words in its name: start, failover-short, failover-default,
        /// idle-1, idle-30, idle-100, throughput-sqlite, throughput-firestore, ready
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    // The demo starts itself as the instances: the server as it is, in a process that takes the
    // double for WhatsApp.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        whatsapp_double::trust_doubles();
        return wa_server::cli::run(recorded::Recorded);
    }
    let args = Args::parse();
    let done = match args.command {
        Some(Command::Measure { words }) => measure::measure(&words).map(|()| true),
        None => story::tell(args.once),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
