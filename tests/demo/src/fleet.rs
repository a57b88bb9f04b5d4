//! Instances of the server, each a process of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::api::{Api, until};

/// What all instances have in common.
#[derive(Clone, Debug)]
pub struct Fleet {
    program: PathBuf,
    args: Vec<String>,
    directory: PathBuf,
    token: String,
    vars: BTreeMap<String, String>,
    records: bool,
    started: Arc<AtomicU32>,
}

/// Names the file to which the demo's instances write what they are told.
pub const RECORDING: &str = "WA_BACKFILL_RECORDING";

impl Fleet {
    /// Instances of `program`, whose files are in `directory` and whose environment is `vars`.
    pub fn new(
        program: impl Into<PathBuf>,
        args: &[&str],
        directory: &Path,
        vars: &[(&str, &str)],
    ) -> Self {
        let token = format!("admin-token-of-this-run-{}", std::process::id());
        let mut vars: BTreeMap<String, String> =
            vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        vars.insert("ADMIN_TOKEN".into(), token.clone());
        vars.entry("DATA_DIR".into()).or_insert_with(|| directory.display().to_string());
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (program, directory) = (program.into(), directory.into());
        Self { program, args, directory, token, vars, records: false, started: Arc::default() }
    }

    /// The same, with instances of the demo that write down what they are told.
    #[must_use]
    pub fn recorded(self) -> Self {
        Self { records: true, ..self }
    }

    /// Every recorded instance so far has written what it was told into one of these.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn recordings(&self) -> Result<Vec<PathBuf>> {
        let files = std::fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path()));
        let files: Result<Vec<PathBuf>> = files.collect();
        let is_recording = |path: &PathBuf| path.extension().is_some_and(|e| e == "recording");
        Ok(files?.into_iter().filter(is_recording).collect())
    }

    /// The token for administration.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The directory of all files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts an instance with this `INSTANCE_ID`, and waits until it answers. `vars` go before
    /// those of the fleet.
    ///
    /// # Errors
    /// It does not start; its log says why.
    pub async fn start(&self, name: &str, vars: &[(&str, &str)]) -> Result<Instance> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let log = self.directory.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.program);
        if self.records {
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            command.env(RECORDING, self.directory.join(format!("{number}-{name}.recording")));
        }
        let child = command
            .args(&self.args)
            .current_dir(&self.directory)
            .envs(&self.vars)
            .env("INSTANCE_ID", name)
            .env("PORT", port.to_string())
            .env("LOG_FORMAT", "json")
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        let api = Api::new(format!("http://127.0.0.1:{port}"), &self.token)?;
        let mut instance = Instance { name: name.into(), api, log, child };
        let answers = until("an answer to /ready", START, async || {
            if let Some(status) = instance.child.try_wait()? {
                return Ok(Some(Err(status)));
            }
            Ok(instance.api.get("/ready").await.is_ok().then_some(Ok(())))
        });
        let answers = answers.await;
        match answers {
            Ok(Ok(())) => Ok(instance),
            Ok(Err(status)) => {
                let log = std::fs::read_to_string(&instance.log).unwrap_or_default();
                anyhow::bail!("{name} ended with {status}:\n{log}")
            }
            Err(error) => Err(error),
        }
    }
}

/// A running instance. It is killed when dropped.
#[derive(Debug)]
pub struct Instance {
    name: String,
    api: Api,
    log: PathBuf,
    child: Child,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.base())
    }
}

impl Instance {
    /// Its `INSTANCE_ID`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its API.
    pub const fn api(&self) -> &Api {
        &self.api
    }

    /// Where it logs.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it is ACTIVE now.
    pub async fn is_active(&self) -> bool {
        let ready = self.api.get("/ready").await;
        ready.is_ok_and(|answer| answer.body["mode"] == "active")
    }

    /// Waits until it is ACTIVE.
    ///
    /// # Errors
    /// It did not become so within `patience`.
    pub async fn active(&self, patience: Duration) -> Result<()> {
        let what = format!("{} to become active", self.name);
        until(&what, patience, async || Ok(self.is_active().await.then_some(()))).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(kill_process(id.context("it has ended")?, signal)?)
    }

    /// Kills it as a power failure would.
    ///
    /// # Errors
    /// It has ended.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to stop and waits until it has; answers its exit code.
    ///
    /// # Errors
    /// It has ended already, or does not within `patience`.
    pub async fn stop(mut self, patience: Duration) -> Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        let ended = tokio::time::timeout(patience, self.child.wait()).await;
        Ok(ended.with_context(|| format!("{} does not stop", self.name))??.code())
    }
}

const START: Duration = Duration::from_secs(30);
