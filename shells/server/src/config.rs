//! Settings put together: parsed, checked against one another, all problems at once.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use backfill_core::id::InstanceId;
use backfill_core::policy::{Credentials, Policy, Settings};
use gateway_whatsapp::SessionKeys;
use smol_str::SmolStr;
use wa_http::{FirebaseOptions, KEYS_URL};

use crate::settings::{Given, Parsed};

/// Everything a server has to know, and nothing that contradicts itself.
#[derive(Clone)]
pub struct Config {
    /// What decisions depend on
    pub policy: Policy,
    /// Where documents are kept
    pub store: StoreChoice,
    /// Where files of this host lie
    pub data_dir: PathBuf,
    /// Where WhatsApp credentials are kept
    pub sessions: SessionChoice,
    /// How WhatsApp is used
    pub whatsapp: WhatsAppConfig,
    /// The API
    pub http: HttpConfig,
    /// The logs
    pub logs: LogConfig,
}

/// Where documents are kept.
#[derive(Clone, Debug)]
pub enum StoreChoice {
    /// In this Firestore database
    Firestore(store_firestore::Options),
    /// In this file
    Sqlite(PathBuf),
}

/// Where WhatsApp credentials are kept.
#[derive(Clone)]
pub enum SessionChoice {
    /// In this directory
    Local(PathBuf),
    /// In the store, encrypted with these keys
    Shared(SessionKeys),
}

impl fmt::Debug for SessionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => f.debug_tuple("Local").field(path).finish(),
            Self::Shared(_) => f.write_str("Shared(…)"),
        }
    }
}

/// How WhatsApp is used.
#[derive(Clone, Debug)]
pub struct WhatsAppConfig {
    /// Ask for the whole history when an account is paired
    pub full_history: bool,
    /// Store nothing of it
    pub history_dry_run: bool,
    /// Another WebSocket URL
    pub url: Option<String>,
    /// Another base URL of media
    pub media_url: Option<String>,
}

/// The API.
#[derive(Clone)]
pub struct HttpConfig {
    /// Where to listen
    pub bind: SocketAddr,
    /// `None`: generated in the data directory
    pub admin_token: Option<String>,
    /// Whose ID tokens count
    pub firebase: Option<FirebaseOptions>,
    /// If not empty: only these may change accounts
    pub operators: BTreeSet<String>,
    /// or those with this claim
    pub operator_claim: Option<String>,
    /// Requests a minute and user
    pub per_token: u32,
    /// Requests a minute and address
    pub per_ip: u32,
    /// The address comes from `X-Forwarded-For`
    pub behind_proxy: bool,
    /// The console offers "Sync / Backfill"
    pub console_debug: bool,
    /// Part of the ids of new accounts
    pub namespace: String,
    /// No more than this can be added
    pub max_accounts: u32,
}

/// The logs.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `None`: depends on where they go
    pub json: Option<bool>,
    /// A filter
    pub level: String,
}

/// All that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Puts settings together.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(given: &Given) -> Result<Self, ConfigErrors> {
        let mut parsed = Parsed::new(given);
        let logs = logs(&mut parsed);
        let data_dir = PathBuf::from(parsed.text("DATA_DIR").unwrap_or_default());
        let http = http(&mut parsed);
        let whatsapp = whatsapp(&mut parsed);
        let sessions = sessions(&mut parsed, &data_dir);
        let store = store(&mut parsed, given, &data_dir);
        let policy = policy(&mut parsed);
        match (policy, store, sessions, http, parsed.problems.is_empty()) {
            (Some(policy), Some(store), Some(sessions), Some(http), true) => {
                Ok(Self { policy, store, data_dir, sessions, whatsapp, http, logs })
            }
            _ => Err(ConfigErrors(parsed.problems)),
        }
    }

    /// What is allowed but may surprise.
    pub fn warnings(&self) -> Vec<&'static str> {
        let shared = matches!(self.policy.mode, backfill_core::policy::InstanceMode::Shared { .. });
        let mut warnings = Vec::new();
        if shared && matches!(self.sessions, SessionChoice::Local(_)) {
            warnings.push("SESSION_STORE=local: an account can be served only on the host where it was paired");
        }
        if self.whatsapp.history_dry_run {
            warnings.push(
                "WHATSAPP_HISTORY_SYNC_DRY_RUN=true: history that pairing brings is not stored",
            );
        }
        if !self.policy.auto_backfill.enabled {
            warnings.push("AUTO_BACKFILL_ENABLED=false: history is filled only when somebody asks");
        }
        if !self.policy.recent_sync.enabled {
            warnings.push("RECENT_SYNC_ENABLED=false: gaps are not closed");
        }
        warnings
    }
}

fn logs(parsed: &mut Parsed<'_>) -> LogConfig {
    let json = match parsed.word("LOG_FORMAT").as_str() {
        "json" => Some(true),
        "human" => Some(false),
        _ => None,
    };
    let level = parsed.text("LOG_LEVEL").unwrap_or_default();
    if level.parse::<tracing_subscriber::filter::Targets>().is_err() {
        parsed.wrong("LOG_LEVEL", &level, "has to be a level or a filter like info,wa_http=debug");
    }
    LogConfig { json, level }
}

fn http(parsed: &mut Parsed<'_>) -> Option<HttpConfig> {
    let port = small(parsed, "PORT");
    let firebase = parsed.text("FIREBASE_PROJECT_ID").map(|project| {
        let keys_url = parsed.text("FIREBASE_JWKS_URL").unwrap_or_else(|| KEYS_URL.to_owned());
        FirebaseOptions { project, keys_url }
    });
    if let Some(firebase) = &firebase
        && !is_protected(&firebase.keys_url, "https://", "http://")
    {
        parsed.wrong("FIREBASE_JWKS_URL", &firebase.keys_url, "has to begin with https://");
    }
    let bind = parsed.text("BIND_ADDR");
    let address = match (&bind, &firebase) {
        (Some(text), _) => match text.parse::<IpAddr>() {
            Ok(address) => Some(address),
            Err(_) => {
                parsed.wrong("BIND_ADDR", text, "has to be an IP address");
                None
            }
        },
        (None, Some(_)) => Some(Ipv4Addr::UNSPECIFIED.into()),
        (None, None) => Some(Ipv4Addr::LOCALHOST.into()),
    };
    if firebase.is_none() {
        if address.is_some_and(|address| !address.is_loopback()) {
            let shown = bind.unwrap_or_default();
            let why = "others than loopback need Firebase authentication (FIREBASE_PROJECT_ID)";
            parsed.wrong("BIND_ADDR", &shown, why);
        }
        for name in ["OPERATOR_EMAILS", "OPERATOR_CLAIM"] {
            if let Some(value) = parsed.text(name) {
                parsed.wrong(name, &value, "means nothing without FIREBASE_PROJECT_ID");
            }
        }
    }
    let admin_token = parsed.text("ADMIN_TOKEN");
    if admin_token.as_ref().is_some_and(|token| token.len() < 16) {
        parsed.wrong("ADMIN_TOKEN", "", "has to have at least 16 characters");
    }
    let namespace = parsed.text("ACCOUNT_NAMESPACE").unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if namespace.len() > 64 || !namespace.chars().all(plain) {
        parsed.wrong("ACCOUNT_NAMESPACE", &namespace, "has to be letters, digits and -");
    }
    let operators = parsed.text("OPERATOR_EMAILS").unwrap_or_default();
    let operators: BTreeSet<String> = operators
        .split(',')
        .map(|email| email.trim().to_lowercase())
        .filter(|email| !email.is_empty())
        .collect();
    Some(HttpConfig {
        operator_claim: parsed.text("OPERATOR_CLAIM"),
        per_token: small(parsed, "RATE_LIMIT_PER_TOKEN").unwrap_or_default(),
        per_ip: small(parsed, "RATE_LIMIT_PER_IP").unwrap_or_default(),
        behind_proxy: parsed.bool("BEHIND_PROXY"),
        console_debug: parsed.bool("CONSOLE_DEBUG"),
        max_accounts: small(parsed, "MAX_ACCOUNTS").unwrap_or_default(),
        bind: SocketAddr::new(address?, u16::try_from(port?).ok()?),
        admin_token,
        firebase,
        operators,
        namespace,
    })
}

fn whatsapp(parsed: &mut Parsed<'_>) -> WhatsAppConfig {
    let url = parsed.text("WHATSAPP_URL");
    if let Some(url) = &url
        && !is_protected(url, "wss://", "ws://")
    {
        parsed.wrong("WHATSAPP_URL", url, "has to begin with wss://, or lead to this host");
    }
    let media_url = parsed.text("WHATSAPP_MEDIA_URL");
    if let Some(url) = &media_url
        && !is_protected(url, "https://", "http://")
    {
        parsed.wrong("WHATSAPP_MEDIA_URL", url, "has to begin with https://, or lead to this host");
    }
    WhatsAppConfig {
        full_history: parsed.bool("WHATSAPP_SYNC_FULL_HISTORY"),
        history_dry_run: parsed.bool("WHATSAPP_HISTORY_SYNC_DRY_RUN"),
        url,
        media_url,
    }
}

fn sessions(parsed: &mut Parsed<'_>, data_dir: &std::path::Path) -> Option<SessionChoice> {
    let key = parsed.text("SESSION_ENCRYPTION_KEY");
    if parsed.word("SESSION_STORE") != "shared" {
        let path = parsed.text("SESSIONS_PATH").map(PathBuf::from);
        return Some(SessionChoice::Local(path.unwrap_or_else(|| data_dir.join("sessions"))));
    }
    match SessionKeys::parse(&key.unwrap_or_default()) {
        Ok(keys) => Some(SessionChoice::Shared(keys)),
        Err(error) => {
            let problem = format!("SESSION_STORE is shared: SESSION_ENCRYPTION_KEY: {error}");
            parsed.problems.push(problem);
            None
        }
    }
}

fn store(
    parsed: &mut Parsed<'_>,
    given: &Given,
    data_dir: &std::path::Path,
) -> Option<StoreChoice> {
    if parsed.word("STORE") != "firestore" {
        return Some(StoreChoice::Sqlite(data_dir.join("wa-backfill.sqlite")));
    }
    let file = given.get(CREDENTIALS_FILE).filter(|_| given.get(EMULATOR).is_none());
    let key = file.map(std::fs::read_to_string).transpose();
    let problem = match &key {
        Ok(Some(key)) if serde_json::from_str::<serde_json::Value>(key).is_err() => {
            Some("is not a key as JSON".to_owned())
        }
        Ok(_) => None,
        Err(error) => Some(format!("cannot be read: {error}")),
    };
    if let Some(problem) = problem {
        parsed.wrong(CREDENTIALS_FILE, file.unwrap_or_default(), &problem);
        return None;
    }
    // Google's library looks into the environment only, not into our file of settings.
    let key = key.ok().flatten().filter(|_| std::env::var_os(CREDENTIALS_FILE).is_none());
    let var = |name: &str| match (given.get(name), name) {
        (None, "FIREBASE_SERVICE_ACCOUNT_JSON") => key.clone(),
        (value, _) => value.map(str::to_owned),
    };
    match store_firestore::Options::from_vars(var) {
        Ok(options) => Some(StoreChoice::Firestore(options)),
        Err(error) => {
            parsed.problems.push(format!("STORE is firestore: {error}"));
            None
        }
    }
}

const CREDENTIALS_FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const EMULATOR: &str = "FIRESTORE_EMULATOR_HOST";

fn policy(parsed: &mut Parsed<'_>) -> Option<Policy> {
    let instance = parsed.text("INSTANCE_ID").unwrap_or_else(default_instance_id);
    let instance = match InstanceId::parse(instance.as_str()) {
        Ok(id) if !instance.contains('#') && instance.len() <= 200 => Some(id),
        _ => {
            let why = "has to be at most 200 characters without / and #";
            parsed.wrong("INSTANCE_ID", &instance, why);
            // The other settings are judged all the same.
            InstanceId::parse("unnamed").ok()
        }
    }?;
    let shared = parsed.word("INSTANCE_MODE") == "shared";
    let cluster = parsed.text("CLUSTER").or_else(|| parsed.text("ACCOUNT_NAMESPACE"));
    let mut s = if shared {
        Settings::shared(instance, cluster.unwrap_or_default())
    } else {
        Settings::exclusive(instance)
    };
    let millis = |parsed: &mut Parsed<'_>, name| parsed.number(name).map(Duration::from_millis);
    // Both are looked at, so that a mistake in the one that is not used is found too.
    let exclusive_term = millis(parsed, "INSTANCE_LEASE_MS");
    let shared_term = millis(parsed, "PROCESS_LEASE_MS");
    let renewal = millis(parsed, "INSTANCE_LEASE_RENEW_MS");
    let term = if shared { shared_term } else { exclusive_term }.unwrap_or(s.session_term);
    s.session_term = term;
    s.session_renewal = if shared { None } else { renewal }.unwrap_or(term / 3);
    // What has to fit into a term shrinks with it.
    s.margin = s.margin.min(term / 6);
    s.close_timeout = s.close_timeout.min(s.margin);
    s.read_timeout = s.read_timeout.min(term / 15);
    s.write_timeout = s.write_timeout.min(term / 10);
    s.passive_retry = s.passive_retry.min(term / 6);
    s.lock_delay = millis(parsed, "LOCK_DELAY_MS").unwrap_or(s.lock_delay);
    s.url = parsed.text("PUBLIC_URL").map(SmolStr::from);

    let auto = &mut s.auto_backfill;
    auto.enabled = parsed.bool("AUTO_BACKFILL_ENABLED");
    set(&mut auto.interval, millis(parsed, "AUTO_BACKFILL_INTERVAL_MS"));
    set(&mut auto.cooldown, millis(parsed, "AUTO_BACKFILL_COOLDOWN_SUCCESS_MS"));
    set(&mut auto.backoff, millis(parsed, "AUTO_BACKFILL_ATTEMPT_BACKOFF_MS"));
    set(&mut auto.lease, millis(parsed, "AUTO_BACKFILL_LEASE_MS"));
    set(&mut auto.connect_jitter_min, millis(parsed, "AUTO_BACKFILL_CONNECT_DELAY_MIN_MS"));
    set(&mut auto.connect_jitter_max, millis(parsed, "AUTO_BACKFILL_CONNECT_DELAY_MAX_MS"));
    set(&mut auto.max_accounts_per_tick, small(parsed, "AUTO_BACKFILL_MAX_ACCOUNTS_PER_TICK"));
    set(&mut auto.max_concurrency, small(parsed, "AUTO_BACKFILL_MAX_CONCURRENCY"));
    set(&mut auto.threads, small(parsed, "WHATSAPP_BACKFILL_THREADS"));
    set(&mut auto.depth, small(parsed, "WHATSAPP_BACKFILL_COUNT"));
    set(&mut auto.page, small(parsed, "WHATSAPP_BACKFILL_MESSAGES_PER_THREAD"));

    let recent = &mut s.recent_sync;
    recent.enabled = parsed.bool("RECENT_SYNC_ENABLED");
    set(&mut recent.interval, millis(parsed, "RECENT_SYNC_INTERVAL_MS"));
    set(&mut recent.lease, millis(parsed, "RECENT_SYNC_LEASE_MS"));
    set(&mut recent.lookback, millis(parsed, "RECENT_SYNC_LOOKBACK_MS"));
    set(&mut recent.max_threads, small(parsed, "RECENT_SYNC_MAX_THREADS"));
    set(&mut recent.page, small(parsed, "RECENT_SYNC_MAX_MESSAGES_PER_THREAD"));
    set(&mut recent.max_concurrency, small(parsed, "RECENT_SYNC_MAX_CONCURRENCY"));

    set(&mut s.phone.spacing, millis(parsed, "PHONE_REQUEST_SPACING_MS"));
    set(&mut s.phone.timeout, millis(parsed, "PHONE_REQUEST_TIMEOUT_MS"));
    s.credentials = match parsed.word("SESSION_STORE").as_str() {
        "shared" => Credentials::Shared,
        _ => Credentials::Local,
    };
    match Policy::new(s) {
        Ok(policy) => Some(policy),
        Err(errors) => {
            let alone = parsed.problems.len();
            for error in errors.0 {
                let about = format!("{} is ", variable(error.field, shared));
                // What could not even be read was judged by its default.
                if !parsed.problems[..alone].iter().any(|problem| problem.starts_with(&about)) {
                    parsed.problems.push(format!("{about}{}: {}", error.value, error.expected));
                }
            }
            None
        }
    }
}

/// The variable that a field of the policy comes from.
fn variable(field: &'static str, shared: bool) -> &'static str {
    match field {
        "session_term" | "margin" | "close_timeout" | "read_timeout" | "write_timeout"
            if shared =>
        {
            "PROCESS_LEASE_MS"
        }
        "session_term" | "margin" | "close_timeout" | "read_timeout" | "write_timeout" => {
            "INSTANCE_LEASE_MS"
        }
        "session_renewal" if shared => "PROCESS_LEASE_MS",
        "session_renewal" => "INSTANCE_LEASE_RENEW_MS",
        "lock_delay" => "LOCK_DELAY_MS",
        "mode.cluster" => "CLUSTER",
        "auto_backfill.interval" => "AUTO_BACKFILL_INTERVAL_MS",
        "auto_backfill.cooldown" => "AUTO_BACKFILL_COOLDOWN_SUCCESS_MS",
        "auto_backfill.backoff" => "AUTO_BACKFILL_ATTEMPT_BACKOFF_MS",
        "auto_backfill.lease" => "AUTO_BACKFILL_LEASE_MS",
        "auto_backfill.connect_jitter_min" => "AUTO_BACKFILL_CONNECT_DELAY_MIN_MS",
        "auto_backfill.connect_jitter_max" => "AUTO_BACKFILL_CONNECT_DELAY_MAX_MS",
        "recent_sync.interval" => "RECENT_SYNC_INTERVAL_MS",
        "recent_sync.lease" => "RECENT_SYNC_LEASE_MS",
        "recent_sync.lookback" => "RECENT_SYNC_LOOKBACK_MS",
        "phone.spacing" => "PHONE_REQUEST_SPACING_MS",
        "phone.timeout" => "PHONE_REQUEST_TIMEOUT_MS",
        other => other,
    }
}

fn small(parsed: &mut Parsed<'_>, name: &str) -> Option<u32> {
    parsed.number(name).and_then(|n| u32::try_from(n).ok())
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Whether nobody on the way can read or change what goes to this URL.
fn is_protected(url: &str, encrypted: &str, plain: &str) -> bool {
    let host = url.strip_prefix(plain).map(|rest| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
        host.rsplit_once(':').filter(|(_, after)| port(after)).map_or(host, |(host, _)| host)
    });
    let here = |host| ["127.0.0.1", "localhost", "[::1]"].contains(&host);
    url.starts_with(encrypted) || host.is_some_and(here)
}

fn default_instance_id() -> String {
    let name = rustix::system::uname();
    let host = name.nodename().to_string_lossy().replace(['/', '#'], "-");
    let host = if host.is_empty() { "host".to_owned() } else { host };
    format!("{host}-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let given = Given::from_lookup(|name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        });
        Config::new(&given).map_err(|errors| errors.0)
    }

    fn problems(pairs: &[(&str, &str)]) -> Vec<String> {
        config(pairs).err().unwrap_or_default()
    }

    #[test]
    fn the_defaults_are_the_seeds() {
        let config = config(&[("INSTANCE_ID", "i")]).unwrap_or_else(|e| panic!("{e:?}"));
        let defaults = Settings::exclusive(InstanceId::parse("i").unwrap());
        assert_eq!(*config.policy, defaults);
        assert_eq!(config.http.bind, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.http.max_accounts, 30);
    }

    #[test]
    fn the_defaults_of_shared_mode_are_the_cores() {
        let config = config(&[("INSTANCE_ID", "i"), ("INSTANCE_MODE", "shared")]);
        let config = config.unwrap_or_else(|e| panic!("{e:?}"));
        let mut defaults = Settings::shared(InstanceId::parse("i").unwrap(), "prod");
        defaults.passive_retry = Duration::from_secs(5);
        assert_eq!(*config.policy, defaults);
    }

    #[test]
    fn short_terms_for_tests_fit_together() {
        for term in ["2000", "5000", "90000"] {
            assert_eq!(problems(&[("INSTANCE_LEASE_MS", term)]), Vec::<String>::new());
            let shared = [("INSTANCE_MODE", "shared"), ("PROCESS_LEASE_MS", term)];
            assert_eq!(problems(&shared), Vec::<String>::new());
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let found = problems(&[
            ("AUTO_BACKFILL_ENABLED", "maybe"),
            ("PHONE_REQUEST_SPACING_MS", "10"),
            ("BIND_ADDR", "0.0.0.0"),
            ("SESSION_STORE", "shared"),
            ("STORE", "firestore"),
            ("ADMIN_TOKEN", "short"),
            ("WHATSAPP_URL", "ws://example.org/ws"),
            ("OPERATOR_EMAILS", "a@b.c"),
        ]);
        let about = [
            "AUTO_BACKFILL_ENABLED",
            "PHONE_REQUEST_SPACING_MS",
            "BIND_ADDR",
            "SESSION_ENCRYPTION_KEY",
            "STORE is firestore",
            "ADMIN_TOKEN",
            "WHATSAPP_URL",
            "OPERATOR_EMAILS",
        ];
        for about in about {
            assert!(found.iter().any(|p| p.contains(about)), "{about} is missing in {found:?}");
        }
        assert_eq!(found.len(), about.len(), "{found:?}");
        assert!(!found.iter().any(|p| p.contains("short")), "the token is shown");
    }

    #[test]
    fn what_cannot_be_read_hides_nothing_else() {
        let found = problems(&[
            ("INSTANCE_ID", "a/b"),
            ("AUTO_BACKFILL_INTERVAL_MS", "often"),
            ("AUTO_BACKFILL_COOLDOWN_SUCCESS_MS", "1000"),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        let about =
            ["INSTANCE_ID is a/b", "AUTO_BACKFILL_INTERVAL_MS is often", "AUTO_BACKFILL_ATTEMPT"];
        for (found, about) in found.iter().zip(about) {
            assert!(found.starts_with(about), "{found}");
        }
    }

    #[test]
    fn what_the_policy_refuses_is_named_by_its_variable() {
        let found = problems(&[("INSTANCE_LEASE_RENEW_MS", "60000")]);
        assert!(!found.is_empty());
        assert!(
            found.iter().all(|p| p.starts_with("INSTANCE_LEASE_RENEW_MS is 60 s")),
            "{found:?}"
        );
        let found = problems(&[("AUTO_BACKFILL_COOLDOWN_SUCCESS_MS", "1000")]);
        assert!(found[0].starts_with("AUTO_BACKFILL_ATTEMPT_BACKOFF_MS is 600 s"), "{found:?}");
    }

    #[test]
    fn all_interfaces_only_with_firebase() {
        let with = config(&[("FIREBASE_PROJECT_ID", "p")]).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(with.http.bind.ip(), IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let loopback = config(&[("BIND_ADDR", "::1")]).unwrap_or_else(|e| panic!("{e:?}"));
        assert!(loopback.http.bind.ip().is_loopback());
    }

    #[test]
    fn plain_urls_lead_to_this_host_only() {
        assert!(is_protected("ws://127.0.0.1:99/ws", "wss://", "ws://"));
        assert!(is_protected("ws://[::1]:99", "wss://", "ws://"));
        assert!(!is_protected("ws://127.0.0.1.evil.example/", "wss://", "ws://"));
        assert!(!is_protected("ws://localhost@evil.example/", "wss://", "ws://"));
        assert!(!is_protected("ws://localhost:1@evil.example/", "wss://", "ws://"));
        assert!(!is_protected("ftp://x", "wss://", "ws://"));
    }

    #[test]
    fn a_credentials_file_named_in_a_file_of_settings_is_read() {
        let path = std::env::temp_dir().join(format!("wa-config-{}.json", std::process::id()));
        let key = r#"{"project_id":"from-file","client_email":"a@b","private_key":"k"}"#;
        std::fs::write(&path, key).unwrap();
        let pairs = [("STORE", "firestore"), (CREDENTIALS_FILE, path.to_str().unwrap())];
        let config = config(&pairs).unwrap_or_else(|e| panic!("{e:?}"));
        let StoreChoice::Firestore(options) = config.store else { panic!("another store") };
        assert_eq!(options.project, "from-file");
        assert!(matches!(options.credentials, store_firestore::Credentials::ServiceAccount(_)));
        std::fs::write(&path, "{").unwrap();
        let broken = problems(&pairs);
        assert!(broken[0].contains("is not a key as JSON"), "{broken:?}");
        let missing = problems(&[("STORE", "firestore"), (CREDENTIALS_FILE, "/nowhere")]);
        assert!(missing[0].contains("cannot be read"), "{missing:?}");
    }

    #[test]
    fn the_default_id_names_host_and_process() {
        assert!(default_instance_id().ends_with(&format!("-{}", std::process::id())));
    }
}
