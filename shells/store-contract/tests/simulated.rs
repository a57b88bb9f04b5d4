//! The contract, against the simulated store.

use std::process::ExitCode;

use store_contract::{Simulated, cases, run};

fn main() -> ExitCode {
    run(cases(&Simulated::default()))
}
