//! The `wa-backfill` command.

use std::process::ExitCode;

use backfill_core::io::{Answer, GatewayRequest, Rejection};
use backfill_driver::Handle;
use backfill_driver::port::{Gateway, Store};
use wa_server::config::Config;
use wa_server::{Connector, StartError, cli};

fn main() -> ExitCode {
    cli::run(Unreachable)
}

/// Stands where the real gateway will: it reaches nobody, and says so.
#[derive(Clone)]
struct Unreachable;

impl Gateway for Unreachable {
    async fn execute(&self, _: GatewayRequest) -> Answer {
        Answer::Rejected(Rejection::Unavailable)
    }
}

impl Connector for Unreachable {
    type Gateway<S: Store> = Self;

    async fn connect<S: Store>(&self, _: &Config, _: Handle, _: S) -> Result<Self, StartError> {
        Ok(Self)
    }
}
