use std::env;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// With this variable set to `1`, a missing emulator fails the tests that need it.
pub const REQUIRE_EMULATOR: &str = "WA_BACKFILL_REQUIRE_EMULATOR";

/// How long an emulator may take until it answers; a loaded machine needs its time.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A Firestore emulator: the one `FIRESTORE_EMULATOR_HOST` names, or one of our own, which ends
/// when this value is dropped.
pub struct Emulator {
    host: String,
    child: Option<Child>,
}

/// Why there is no emulator.
#[derive(Debug)]
pub enum EmulatorError {
    /// It was found and did not start
    Failed(String),
    /// None is installed
    Missing,
}

impl std::fmt::Display for EmulatorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(reason) => write!(f, "the Firestore emulator did not start: {reason}"),
            Self::Missing => f.write_str("no Firestore emulator is installed"),
        }
    }
}

impl Emulator {
    /// The emulator of the environment, or a new one on a free port; waits until it answers.
    ///
    /// # Errors
    /// [`EmulatorError`] if there is none or it does not answer.
    pub fn start() -> Result<Self, EmulatorError> {
        match env::var("FIRESTORE_EMULATOR_HOST") {
            Ok(host) => {
                let emulator = Self { host, child: None };
                emulator.wait_until_it_answers()?;
                Ok(emulator)
            }
            Err(_) => Self::start_own(free_port()?),
        }
    }

    /// A new emulator on a free port, whatever the environment says: for tests that stop it.
    ///
    /// # Errors
    /// [`EmulatorError`] if none is installed or it does not answer.
    pub fn start_private() -> Result<Self, EmulatorError> {
        Self::start_own(free_port()?)
    }

    /// A new emulator on this port of 127.0.0.1.
    ///
    /// # Errors
    /// [`EmulatorError`] if none is installed or it does not answer.
    pub fn start_own(port: u16) -> Result<Self, EmulatorError> {
        let jar = installed().ok_or(EmulatorError::Missing)?;
        // Its start script leaves Java as a child of the shell; without it, the pid is Java's.
        let child = Command::new(env::var_os("JAVA").unwrap_or_else(|| "java".into()))
            .args(["-Duser.language=en", "-cp"])
            .arg(jar)
            .args(["com.google.cloud.datastore.emulator.firestore.CloudFirestore", "start"])
            .args(["--host=127.0.0.1", &format!("--port={port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| EmulatorError::Failed(e.to_string()))?;
        let emulator = Self { host: format!("127.0.0.1:{port}"), child: Some(child) };
        emulator.wait_until_it_answers()?;
        Ok(emulator)
    }

    /// `host:port`, as `FIRESTORE_EMULATOR_HOST` wants it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The process id, if it is ours.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether tests that need the emulator must fail without it.
    pub fn required() -> bool {
        env::var(REQUIRE_EMULATOR).is_ok_and(|v| v == "1")
    }

    fn wait_until_it_answers(&self) -> Result<(), EmulatorError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.ping() {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() >= deadline => {
                    return Err(EmulatorError::Failed(e.to_string()));
                }
                // The condition is another process's; asking again is all that can be done.
                Err(_) => park(Duration::from_millis(20)),
            }
        }
    }

    fn ping(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(&self.host)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.host)?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        if answer.ends_with(b" 200") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> Result<u16, EmulatorError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| EmulatorError::Failed(e.to_string()))
}

/// The emulator's jar.
fn installed() -> Option<PathBuf> {
    const BELOW_SDK: &str = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar";
    let gcloud = env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join("gcloud"))
        .find(|program| program.is_file())?;
    let below = |root: &Path| Some(root.join(BELOW_SDK)).filter(|jar| jar.is_file());
    let beside = gcloud.canonicalize().ok().and_then(|gcloud| below(gcloud.parent()?.parent()?));
    beside.or_else(|| {
        // A wrapper script hides where the SDK lies; asking it takes a second.
        let answer = Command::new(gcloud)
            .args(["info", "--format=value(installation.sdk_root)"])
            .output()
            .ok()?;
        below(Path::new(String::from_utf8(answer.stdout).ok()?.trim()))
    })
}

fn park(duration: Duration) {
    std::thread::park_timeout(duration);
}
