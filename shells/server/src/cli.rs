//! The command line.

mod backup;
mod client;
mod doctor;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::config::Config;
use crate::serve::{Connector, StartError, start};
use crate::settings::{Given, Preset, SETTINGS, described, effective, example};
use crate::{dotenv, logs};

/// Does what the command line says, with this connector for `serve`.
pub fn run(connector: impl Connector) -> ExitCode {
    let matches = command().get_matches();
    let outcome = match matches.subcommand() {
        Some(("serve", args)) => serve(args, connector),
        Some(("check-config", args)) => check_config(args),
        Some(("backup", args)) => backup::backup(args),
        Some(("accounts", args)) => client::accounts(args),
        Some(("backfill", args)) => client::backfill(args),
        Some(("status", args)) => client::status(args),
        Some(("doctor", args)) => doctor::doctor(args),
        _ => Ok(ExitCode::FAILURE),
    };
    outcome.unwrap_or_else(|refusal| {
        eprintln!("wa-backfill: {}", refusal.message);
        ExitCode::from(refusal.code)
    })
}

/// Why nothing was done.
struct Refusal {
    message: String,
    code: u8,
}

impl Refusal {
    /// Starting again would change nothing.
    fn of_setup(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: SETUP }
    }

    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Ended => Self::new(error.to_string()),
            _ => Self::of_setup(error.to_string()),
        }
    }
}

type Outcome = Result<ExitCode, Refusal>;

/// The command line and its help.
pub fn command() -> Command {
    let account = || {
        Arg::new("account")
            .value_name("ACCOUNT")
            .required(true)
            .help("Its id, from `accounts list`")
    };
    Command::new("wa-backfill")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps a WhatsApp inbox complete by itself. An unofficial client: accounts can be banned.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(Command::new("serve").about("Run an instance")))
        .subcommand(
            with_settings(
                Command::new("check-config").about("Show the effective settings, or all that is wrong with them"),
            )
            .arg(
                Arg::new("example")
                    .long("example")
                    .num_args(0)
                    .help("Print an example environment file instead"),
            ),
        )
        .subcommand(
            with_settings(
                Command::new("backup").about("Copy the SQLite database, while instances run or not"),
            )
            // Otherwise variables of the environment would be shown as if they had to be given.
            .override_usage("wa-backfill backup [OPTIONS] <FILE>")
            .arg(
                Arg::new("file")
                    .value_name("FILE")
                    .required(true)
                    .help("The file to make; it must not exist"),
            ),
        )
        .subcommand(
            Command::new("accounts")
                .about("List, add or remove accounts of a running instance")
                .subcommand_required(true)
                .subcommand(with_server(Command::new("list").about("List the accounts")))
                .subcommand(with_server(
                    Command::new("add")
                        .about("Add an account and begin to pair it")
                        .arg(Arg::new("name").value_name("NAME").required(true).help("What people call it"))
                        .arg(Arg::new("phone").long("phone").value_name("NUMBER").help("Its phone number")),
                ))
                .subcommand(with_server(
                    Command::new("remove").about("Log an account out and mark it deleted").arg(account()),
                )),
        )
        .subcommand(with_server(
            Command::new("backfill").about("Run a backfill of an account now").arg(account()),
        ))
        .subcommand(with_server(Command::new("status").about("Show how a running instance stands")))
        .subcommand(with_server(
            Command::new("doctor").about("Say per account whether sync is running or blocked, and what to do"),
        ))
}

fn with_settings(command: Command) -> Command {
    let command = command.arg(env_file());
    SETTINGS.iter().fold(command, |command, setting| {
        command.arg(
            Arg::new(setting.name)
                .long(setting.name.to_ascii_lowercase().replace('_', "-"))
                .env(setting.name)
                .hide_env_values(true)
                .value_name("VALUE")
                .help(described(setting))
                .help_heading(setting.group.title()),
        )
    })
}

fn with_server(command: Command) -> Command {
    command
        .arg(env_file())
        .arg(
            Arg::new("url")
                .long("url")
                .env(URL)
                .help("The running instance (default: http://127.0.0.1 and PORT)"),
        )
        .arg(
            Arg::new("token")
                .long("token")
                .env("ADMIN_TOKEN")
                .hide_env_values(true)
                .help("The admin token (default: the one in DATA_DIR/admin-token)"),
        )
}

fn env_file() -> Arg {
    Arg::new("env-file")
        .long("env-file")
        .value_name("FILE")
        .help("File with NAME=value lines (default: .env, if there is one)")
}

/// What the command line, the environment and the file say.
struct Found {
    given: Given,
    /// What the file has besides settings
    warnings: Vec<String>,
}

/// Settings: from the command line, else from the environment, else from the file.
fn given(args: &ArgMatches) -> Result<Given, Refusal> {
    found(args).map(|found| found.given)
}

fn found(args: &ArgMatches) -> Result<Found, Refusal> {
    let named = args.get_one::<String>("env-file").map(PathBuf::from);
    if let Some(path) = named.as_deref().filter(|path| !path.exists()) {
        return Err(Refusal::of_setup(format!("{}: there is no such file", path.display())));
    }
    let path = named.unwrap_or_else(|| Path::new(".env").to_owned());
    let file = dotenv::read(&path).map_err(Refusal::of_setup)?;
    let known = |name: &str| args.try_get_one::<String>(name).ok().flatten().cloned();
    let given = Given::from_lookup(|name| {
        known(name).or_else(|| std::env::var(name).ok()).or_else(|| file.get(name).cloned())
    });
    let setting = |name: &str| SETTINGS.iter().any(|setting| setting.name == name);
    let others = file.keys().filter(|name| !setting(name) && *name != URL);
    let warnings =
        others.map(|name| format!("{}: {name} is not a setting, and does nothing", path.display()));
    Ok(Found { given, warnings: warnings.collect() })
}

fn check_config(args: &ArgMatches) -> Outcome {
    if args.get_flag("example") {
        print!("{}", example());
        return Ok(ExitCode::SUCCESS);
    }
    let Found { given, mut warnings } = found(args)?;
    print!("{}", effective(&given));
    println!();
    let config = Config::new(&given);
    warnings.extend(config.iter().flat_map(Config::warnings).map(str::to_owned));
    for warning in warnings {
        println!("warning: {warning}");
    }
    let config = config.map_err(|errors| Refusal::of_setup(errors.to_string()))?;
    println!("The configuration can be used by instance {}.", config.policy.instance);
    Ok(ExitCode::SUCCESS)
}

fn serve(args: &ArgMatches, connector: impl Connector) -> Outcome {
    let Found { given, mut warnings } = found(args)?;
    let config = Config::new(&given).map_err(|errors| Refusal::of_setup(errors.to_string()))?;
    logs::begin(&config.logs);
    warnings.extend(config.warnings().into_iter().map(str::to_owned));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal::new(error.to_string()))?;
    runtime.block_on(async {
        let failed = |error: std::io::Error| Refusal::new(error.to_string());
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        for warning in warnings {
            warn!("[config] {warning}");
        }
        info!(instance = %config.policy.instance, "[config] starting");
        let starting = start(config, connector);
        let mut server = starting.await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            error = server.ended() => return Err(error.into()),
        }
        info!("[lock] stopping: handing everything over; another signal ends at once");
        tokio::select! {
            () = server.stop() => {
                info!("[lock] stopped");
                Ok(ExitCode::SUCCESS)
            }
            _ = terminate.recv() => Ok(ExitCode::from(KILLED)),
            _ = interrupt.recv() => Ok(ExitCode::from(KILLED)),
        }
    })
}

/// The default of a setting, for what has to be known of a server without its configuration.
fn preset(name: &str) -> &'static str {
    let setting = SETTINGS.iter().find(|setting| setting.name == name);
    match setting.map(|setting| setting.default) {
        Some(Preset::Is(default)) => default,
        _ => "",
    }
}

/// Where the running instance is.
const URL: &str = "WA_BACKFILL_URL";
/// `EX_CONFIG`: what supervisors should not start again.
const SETUP: u8 = 78;
/// Ended before everything was handed over.
const KILLED: u8 = 130;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_help_is_grouped() {
        command().debug_assert();
        let help = command().find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        for group in ["Instance:", "Store:", "Automatic backfill:", "Recent sync:", "HTTP:"] {
            assert!(help.contains(group), "{group} is missing");
        }
        for setting in SETTINGS {
            assert!(help.contains(&format!("[env: {}]", setting.name)), "{}", setting.name);
        }
    }
}
