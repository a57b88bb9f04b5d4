//! A server in a process of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::TcpListener;

/// Everything here ends within this time, or is stuck.
const PATIENCE_MS: u64 = 60_000;

/// The command without anything of this environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wa-backfill"));
    command.env_clear().current_dir(std::env::temp_dir()).args(args);
    command
}

/// A directory of this test alone.
pub(crate) fn temporary() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("wa-server-{}-{n}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Speaks the protocol of Firestore, and lets nobody in.
pub(crate) struct RefusingFirestore {
    pub(crate) address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl RefusingFirestore {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let refusal = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .header("grpc-status", "16")
                            .header("grpc-message", "invalid authentication credentials")
                            .body(())
                            .unwrap();
                        // Whoever has gone does not hear it.
                        let _ = respond.send_response(refusal, true);
                    }
                });
            }
        });
        Self { address, _runtime: runtime }
    }
}

pub(crate) struct Server {
    child: Child,
    address: String,
    log: PathBuf,
    data: PathBuf,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

impl Server {
    /// Starts an instance on a free port.
    pub(crate) fn start(data: &Path, settings: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = data.join(format!("log-{n}"));
        let child = command(&["serve", "--port", "0"])
            .env("DATA_DIR", data)
            .env("RATE_LIMIT_PER_TOKEN", "0")
            .env("RATE_LIMIT_PER_IP", "0")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::create(data.join(format!("errors-{n}"))).unwrap())
            .spawn()
            .unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let mut server =
            Self { child, address: String::new(), log, data: data.to_owned(), runtime, client };
        server.address = server.wait("it listens", |server| {
            let log = server.log();
            let line = log.lines().find(|line| line.contains("[http] listening"))?;
            let line: Value = serde_json::from_str(line).ok()?;
            Some(format!("http://{}", line["address"].as_str()?))
        });
        server
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.runtime.block_on(async {
            let response = self.client.get(format!("{}{path}", self.address)).send().await.unwrap();
            response.json().await.unwrap()
        })
    }

    /// What Prometheus gets.
    pub(crate) fn metrics(&self) -> String {
        let token = std::fs::read_to_string(self.data.join("admin-token")).unwrap();
        self.runtime.block_on(async {
            let request = self.client.get(format!("{}/metrics", self.address));
            request.bearer_auth(token.trim()).send().await.unwrap().text().await.unwrap()
        })
    }

    /// A request whose body never comes, and which is being answered already.
    pub(crate) fn unfinished_request(&self) -> TcpStream {
        let address = self.address.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "POST /console/login HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\n\
                    Content-Type: application/json\r\nContent-Length: 99\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        // Whoever is told to go on is waited for.
        let mut told = [0; 12];
        stream.read_exact(&mut told).unwrap();
        assert_eq!(&told, b"HTTP/1.1 100");
        stream
    }

    /// What an administrator gets.
    pub(crate) fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        let token = std::fs::read_to_string(self.data.join("admin-token")).unwrap();
        self.runtime.block_on(async {
            let request = self.client.request(method, format!("{}{path}", self.address));
            let request = request.bearer_auth(token.trim());
            let request = match body {
                Some(body) => request.json(&body),
                None => request,
            };
            let response = request.send().await.unwrap();
            let status = response.status();
            let body: Value = response.json().await.unwrap();
            assert!(status.is_success(), "{path}: {status} {body}");
            body
        })
    }

    /// What the command says when it talks to this server, and how it ends.
    pub(crate) fn cli(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = command(args)
            .env("DATA_DIR", &self.data)
            .env("WA_BACKFILL_URL", &self.address)
            .output()
            .unwrap();
        let mut text = String::from_utf8(output.stdout).unwrap();
        text.push_str(&String::from_utf8(output.stderr).unwrap());
        (output.status.code(), text)
    }

    pub(crate) fn until_ready(&mut self, ready: bool) {
        self.until("it is ready", |body| body["ready"] == ready);
    }

    /// Waits until `/ready` shows something.
    pub(crate) fn until(&mut self, what: &str, shows: impl Fn(&Value) -> bool) {
        self.wait(what, |server| shows(&server.get("/ready")).then_some(()));
    }

    /// Waits for something that follows by itself.
    pub(crate) fn wait<T>(&mut self, what: &str, found: impl Fn(&Self) -> Option<T>) -> T {
        for _ in 0..PATIENCE_MS / 50 {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended; {}", self.log());
            if let Some(found) = found(self) {
                return found;
            }
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
        }
        panic!("never: {what}; {}", self.log());
    }

    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        for _ in 0..PATIENCE_MS / 50 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
        }
        panic!("it does not end; {}", self.log());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
