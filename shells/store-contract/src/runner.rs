use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};

/// A case that takes longer than this has failed.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// One named test.
pub struct Case {
    name: String,
    body: Body,
}

enum Body {
    Missing(String),
    Test(Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>),
}

impl Case {
    /// A test; it fails by panicking.
    pub fn new<F>(name: impl Into<String>, test: impl FnOnce() -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { name: name.into(), body: Body::Test(Box::new(|| Box::pin(test()))) }
    }

    /// A test that cannot run here; it is listed by name, with the reason.
    #[must_use]
    pub fn missing(self, reason: impl Into<String>) -> Self {
        Self { body: Body::Missing(reason.into()), ..self }
    }
}

/// Runs the cases one after another and reports each by name, in the manner of `cargo test`.
///
/// Understands what `cargo test` passes on: words that select cases by part of their name,
/// `--exact` and `--list`.
pub fn run(cases: Vec<Case>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let words: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| {
        words.is_empty()
            || words.iter().any(|w| if has("--exact") { name == *w } else { name.contains(*w) })
    };
    let total = cases.len();
    let cases: Vec<Case> = cases.into_iter().filter(|case| chosen(&case.name)).collect();
    if has("--list") {
        for case in &cases {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let filtered_out = total - cases.len();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime without special options starts");
    let (mut passed, mut missing, mut failed) = (0, 0, String::new());
    for Case { name, body } in cases {
        match body {
            Body::Missing(reason) => {
                missing += 1;
                println!("test {name} ... not run: {reason}");
            }
            Body::Test(test) => {
                let (result, took) = runtime.block_on(async {
                    let started = Instant::now();
                    let task = tokio::spawn(test());
                    (timeout(TIME_LIMIT, task).await, started.elapsed())
                });
                let verdict = match result {
                    Ok(Ok(())) => "ok",
                    Ok(Err(_)) => "FAILED",
                    Err(_) => "FAILED (time limit)",
                };
                println!("test {name} ... {verdict} ({} ms)", took.as_millis());
                if verdict == "ok" {
                    passed += 1;
                } else {
                    let _ = writeln!(failed, "    {name}");
                }
            }
        }
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    let failures = failed.lines().count();
    println!(
        "\ntest result: {}. {passed} passed; {failures} failed; {missing} not run; {filtered_out} filtered out\n",
        if failures == 0 { "ok" } else { "FAILED" }
    );
    if failures == 0 {
        return ExitCode::SUCCESS;
    }
    println!("failures:\n{failed}");
    ExitCode::FAILURE
}
