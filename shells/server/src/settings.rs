//! Every setting there is: one table, from which `--help`, `check-config` and the example file
//! are made.

use std::collections::BTreeMap;

/// One environment variable.
#[derive(Debug)]
pub struct Setting {
    /// The variable
    pub name: &'static str,
    /// Under which heading it is shown
    pub group: Group,
    /// What it may be
    pub kind: Kind,
    /// What it is if it is not set
    pub default: Preset,
    /// One line
    pub about: &'static str,
}

/// Headings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Who this process is
    Instance,
    /// Where documents are kept
    Store,
    /// Where WhatsApp credentials are kept, and how WhatsApp is reached
    WhatsApp,
    /// Automatic backfill
    Backfill,
    /// The gap filler
    RecentSync,
    /// What may be asked of a phone
    Phone,
    /// API and console
    Http,
    /// Logs
    Logs,
}

impl Group {
    /// The heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Instance => "Instance",
            Self::Store => "Store",
            Self::WhatsApp => "WhatsApp",
            Self::Backfill => "Automatic backfill",
            Self::RecentSync => "Recent sync",
            Self::Phone => "Requests to phones",
            Self::Http => "HTTP",
            Self::Logs => "Logs",
        }
    }
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true`, `false`, `1` or `0`
    Bool,
    /// One of these words
    Choice(&'static [&'static str]),
    /// A number from .. to
    Count(u64, u64),
    /// Milliseconds from .. to
    Millis(u64, u64),
    /// Text that is never shown
    Secret,
    /// Text
    Text,
}

/// What a setting is if it is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Not set
    Unset,
    /// This
    Is(&'static str),
    /// Something that depends on others, in words
    Derived(&'static str),
}

use Kind::{Bool, Choice, Count, Millis, Secret, Text};
use Preset::{Derived, Is, Unset};

const fn setting(
    group: Group,
    name: &'static str,
    kind: Kind,
    default: Preset,
    about: &'static str,
) -> Setting {
    Setting { name, group, kind, default, about }
}

const DAY_MS: u64 = 24 * 3_600 * 1_000;
const YEAR_MS: u64 = 365 * DAY_MS;

/// All of them, by group.
pub const SETTINGS: &[Setting] = &[
    setting(
        Group::Instance,
        "INSTANCE_ID",
        Text,
        Derived("hostname-pid"),
        "Name of this process in leases and logs; every process needs its own",
    ),
    setting(
        Group::Instance,
        "INSTANCE_MODE",
        Choice(&["exclusive", "shared"]),
        Is("exclusive"),
        "exclusive: one instance serves, the others stand by; shared: all serve a part of the accounts",
    ),
    setting(
        Group::Instance,
        "CLUSTER",
        Text,
        Derived("ACCOUNT_NAMESPACE"),
        "Shared mode: names the group of instances that share the accounts",
    ),
    setting(
        Group::Instance,
        "INSTANCE_LEASE_MS",
        Millis(2_000, DAY_MS),
        Is("90000"),
        "Exclusive mode: a silent instance counts as dead after this long",
    ),
    setting(
        Group::Instance,
        "INSTANCE_LEASE_RENEW_MS",
        Millis(100, DAY_MS),
        Derived("a third of the lease"),
        "Exclusive mode: the lease is renewed this often",
    ),
    setting(
        Group::Instance,
        "PROCESS_LEASE_MS",
        Millis(2_000, DAY_MS),
        Is("30000"),
        "Shared mode: a silent instance counts as dead after this long; renewed each third",
    ),
    setting(
        Group::Instance,
        "LOCK_DELAY_MS",
        Millis(0, DAY_MS),
        Is("5000"),
        "Pause before an account is connected whose owner died without giving it back",
    ),
    setting(
        Group::Instance,
        "ACCOUNT_NAMESPACE",
        Text,
        Is("prod"),
        "Part of the ids of new accounts",
    ),
    setting(
        Group::Instance,
        "MAX_ACCOUNTS",
        Count(1, 1_000),
        Is("30"),
        "No more accounts than this can be added",
    ),
    setting(
        Group::Instance,
        "PUBLIC_URL",
        Text,
        Unset,
        "Where other instances and people reach this one; shown to operators",
    ),
    setting(
        Group::Store,
        "STORE",
        Choice(&["sqlite", "firestore"]),
        Is("sqlite"),
        "Where documents are kept",
    ),
    setting(
        Group::Store,
        "DATA_DIR",
        Text,
        Is("./data"),
        "Directory for the SQLite file, sessions and the generated admin token",
    ),
    setting(
        Group::Store,
        "GOOGLE_CLOUD_PROJECT",
        Text,
        Derived("the key's project"),
        "Firestore: the project",
    ),
    setting(
        Group::Store,
        "FIREBASE_SERVICE_ACCOUNT_JSON",
        Secret,
        Unset,
        "Firestore: a service account's key as JSON",
    ),
    setting(
        Group::Store,
        "GOOGLE_APPLICATION_CREDENTIALS",
        Text,
        Unset,
        "Firestore: file with a service account's key",
    ),
    setting(
        Group::Store,
        "FIRESTORE_EMULATOR_HOST",
        Text,
        Unset,
        "Firestore: host:port of an emulator, used without credentials",
    ),
    setting(
        Group::WhatsApp,
        "SESSION_STORE",
        Choice(&["local", "shared"]),
        Is("local"),
        "WhatsApp credentials on this host, or encrypted in the store so that accounts can move",
    ),
    setting(
        Group::WhatsApp,
        "SESSIONS_PATH",
        Text,
        Derived("DATA_DIR/sessions"),
        "Directory for local credentials",
    ),
    setting(
        Group::WhatsApp,
        "SESSION_ENCRYPTION_KEY",
        Secret,
        Unset,
        "Shared credentials: id:base64 of 32 random bytes, the same everywhere; newest first, with commas",
    ),
    setting(
        Group::WhatsApp,
        "WHATSAPP_SYNC_FULL_HISTORY",
        Bool,
        Is("true"),
        "Ask for the whole history when an account is paired",
    ),
    setting(
        Group::WhatsApp,
        "WHATSAPP_HISTORY_SYNC_DRY_RUN",
        Bool,
        Is("false"),
        "Count what pairing brings, and store none of it",
    ),
    setting(
        Group::WhatsApp,
        "WHATSAPP_URL",
        Text,
        Derived("WhatsApp's own"),
        "WebSocket URL, for tests",
    ),
    setting(
        Group::WhatsApp,
        "WHATSAPP_MEDIA_URL",
        Text,
        Derived("WhatsApp's own"),
        "Base URL of media, for tests",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_ENABLED",
        Bool,
        Is("true"),
        "Fill history on connect and periodically",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_INTERVAL_MS",
        Millis(1_000, YEAR_MS),
        Is("720000"),
        "A tick this often",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_COOLDOWN_SUCCESS_MS",
        Millis(0, YEAR_MS),
        Is("21600000"),
        "No periodic run this soon after a complete one",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_ATTEMPT_BACKOFF_MS",
        Millis(1, YEAR_MS),
        Is("600000"),
        "No automatic run this soon after any attempt",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_LEASE_MS",
        Millis(1_000, DAY_MS),
        Is("900000"),
        "Term of a run's lease",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_MAX_ACCOUNTS_PER_TICK",
        Count(1, 1_000),
        Is("3"),
        "A tick starts at most this many runs",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_MAX_CONCURRENCY",
        Count(1, 100),
        Is("1"),
        "At most this many runs work at once",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_CONNECT_DELAY_MIN_MS",
        Millis(0, DAY_MS),
        Is("10000"),
        "A connect is followed by a run after at least this long",
    ),
    setting(
        Group::Backfill,
        "AUTO_BACKFILL_CONNECT_DELAY_MAX_MS",
        Millis(0, DAY_MS),
        Is("40000"),
        "and at most this long",
    ),
    setting(
        Group::Backfill,
        "WHATSAPP_BACKFILL_COUNT",
        Count(1, 100_000),
        Is("100"),
        "Depth to reach, in messages per thread",
    ),
    setting(
        Group::Backfill,
        "WHATSAPP_BACKFILL_THREADS",
        Count(1, 500),
        Is("50"),
        "Newest threads per run",
    ),
    setting(
        Group::Backfill,
        "WHATSAPP_BACKFILL_MESSAGES_PER_THREAD",
        Count(1, 50),
        Is("20"),
        "Messages per request to the phone",
    ),
    setting(Group::RecentSync, "RECENT_SYNC_ENABLED", Bool, Is("true"), "Close gaps"),
    setting(
        Group::RecentSync,
        "RECENT_SYNC_INTERVAL_MS",
        Millis(1_000, YEAR_MS),
        Is("120000"),
        "A tick this often",
    ),
    setting(
        Group::RecentSync,
        "RECENT_SYNC_MAX_THREADS",
        Count(1, 500),
        Is("30"),
        "Newest threads per account and tick",
    ),
    setting(
        Group::RecentSync,
        "RECENT_SYNC_MAX_MESSAGES_PER_THREAD",
        Count(1, 50),
        Is("20"),
        "Messages per request to the phone",
    ),
    setting(
        Group::RecentSync,
        "RECENT_SYNC_LEASE_MS",
        Millis(1_000, DAY_MS),
        Is("300000"),
        "Term of a run's lease",
    ),
    setting(
        Group::RecentSync,
        "RECENT_SYNC_LOOKBACK_MS",
        Millis(1_000, YEAR_MS),
        Is("21600000"),
        "Gaps that ended longer ago are left to the backfill",
    ),
    setting(
        Group::RecentSync,
        "RECENT_SYNC_MAX_CONCURRENCY",
        Count(1, 100),
        Is("1"),
        "At most this many runs work at once",
    ),
    setting(
        Group::Phone,
        "PHONE_REQUEST_SPACING_MS",
        Millis(5_000, DAY_MS),
        Is("30000"),
        "Requests to one phone are at least this far apart",
    ),
    setting(
        Group::Phone,
        "PHONE_REQUEST_TIMEOUT_MS",
        Millis(1_000, DAY_MS),
        Is("60000"),
        "A phone's answer is waited for this long",
    ),
    setting(Group::Http, "PORT", Count(0, 65_535), Is("8080"), "Port; 0 takes a free one"),
    setting(
        Group::Http,
        "BIND_ADDR",
        Text,
        Derived("0.0.0.0 with Firebase authentication, else 127.0.0.1"),
        "Address to listen on; others than loopback need Firebase authentication",
    ),
    setting(
        Group::Http,
        "ADMIN_TOKEN",
        Secret,
        Derived("generated in DATA_DIR/admin-token"),
        "Token for administration and the console, at least 16 characters",
    ),
    setting(
        Group::Http,
        "FIREBASE_PROJECT_ID",
        Text,
        Unset,
        "Firebase authentication: whose ID tokens count",
    ),
    setting(
        Group::Http,
        "FIREBASE_JWKS_URL",
        Text,
        Derived("Google's"),
        "Firebase authentication: where the public keys are",
    ),
    setting(
        Group::Http,
        "OPERATOR_EMAILS",
        Text,
        Unset,
        "Comma-separated; if set, of Firebase's users only these may add, pair, delete and backfill accounts",
    ),
    setting(
        Group::Http,
        "OPERATOR_CLAIM",
        Text,
        Unset,
        "or those whose token has this claim set to true, for instance admin",
    ),
    setting(
        Group::Http,
        "RATE_LIMIT_PER_TOKEN",
        Count(0, 1_000_000),
        Is("600"),
        "Requests a minute and user; 0 for no limit",
    ),
    setting(
        Group::Http,
        "RATE_LIMIT_PER_IP",
        Count(0, 1_000_000),
        Is("1200"),
        "Requests a minute and address; 0 for no limit",
    ),
    setting(
        Group::Http,
        "BEHIND_PROXY",
        Bool,
        Is("false"),
        "Take a caller's address from the last entry of X-Forwarded-For",
    ),
    setting(Group::Http, "CONSOLE_DEBUG", Bool, Is("false"), "The console offers Sync / Backfill"),
    setting(
        Group::Logs,
        "LOG_FORMAT",
        Choice(&["auto", "human", "json"]),
        Is("auto"),
        "auto: human on a terminal, JSON otherwise",
    ),
    setting(
        Group::Logs,
        "LOG_LEVEL",
        Text,
        Is("info"),
        "error, warn, info, debug, trace, or a filter like info,wa_http=debug",
    ),
];

/// Values of settings, as they were given.
#[derive(Clone, Default)]
pub struct Given(BTreeMap<&'static str, String>);

impl Given {
    /// What `lookup` finds. Blank values count as not given.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let found = SETTINGS.iter().filter_map(|setting| {
            let value = lookup(setting.name)?.trim().to_owned();
            (!value.is_empty()).then_some((setting.name, value))
        });
        Self(found.collect())
    }

    /// What was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// Settings that were parsed one by one; what is wrong with any of them is collected.
pub struct Parsed<'a> {
    given: &'a Given,
    /// What is wrong so far
    pub problems: Vec<String>,
}

impl<'a> Parsed<'a> {
    /// Begins with no problem.
    pub const fn new(given: &'a Given) -> Self {
        Self { given, problems: Vec::new() }
    }

    /// A text, if it is given or has a default.
    pub fn text(&self, name: &str) -> Option<String> {
        let setting = find(name);
        let default = if let Is(default) = setting.default { Some(default) } else { None };
        self.given.get(name).or(default).map(str::to_owned)
    }

    /// A truth value.
    pub fn bool(&mut self, name: &str) -> bool {
        let Some(text) = self.text(name) else { return false };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => {
                self.wrong(name, &text, "has to be true, false, 1 or 0");
                false
            }
        }
    }

    /// A number within the setting's range.
    pub fn number(&mut self, name: &str) -> Option<u64> {
        let text = self.text(name)?;
        let (low, high, unit) = match find(name).kind {
            Kind::Millis(low, high) => (low, high, " milliseconds"),
            Kind::Count(low, high) => (low, high, ""),
            _ => return None,
        };
        match text.parse() {
            Ok(n) if (low..=high).contains(&n) => Some(n),
            _ => {
                self.wrong(name, &text, &format!("has to be a number from {low} to {high}{unit}"));
                None
            }
        }
    }

    /// A word out of the setting's choice.
    pub fn word(&mut self, name: &str) -> String {
        let text = self.text(name).unwrap_or_default();
        if let Kind::Choice(words) = find(name).kind
            && !words.contains(&text.as_str())
        {
            self.wrong(name, &text, &format!("has to be {}", words.join(" or ")));
        }
        text
    }

    /// Notes that a setting is wrong, without showing secrets.
    pub fn wrong(&mut self, name: &str, value: &str, expected: &str) {
        let shown = if find(name).kind == Kind::Secret { "(hidden)" } else { value };
        self.problems.push(format!("{name} is {shown}: {expected}"));
    }
}

/// The settings with what they are now, one per line, secrets masked.
pub fn effective(given: &Given) -> String {
    let mut out = String::new();
    for setting in SETTINGS {
        let value = match (given.get(setting.name), setting.kind, setting.default) {
            (Some(_), Kind::Secret, _) => "(set)".to_owned(),
            (Some(value), _, _) => value.to_owned(),
            (None, _, Is(default)) => format!("{default} (default)"),
            (None, _, Derived(how)) => format!("({how})"),
            (None, _, Unset) => "(not set)".to_owned(),
        };
        out.push_str(&format!("{} = {value}\n", setting.name));
    }
    out
}

/// An environment file with every setting, all of them commented out.
pub fn example() -> String {
    let mut out = String::from("# Settings of wa-backfill. Everything here is optional.\n");
    let mut group = None;
    for setting in SETTINGS {
        if group != Some(setting.group) {
            group = Some(setting.group);
            out.push_str(&format!("\n# --- {} ---\n", setting.group.title()));
        }
        let default = if let Is(default) = setting.default { default } else { "" };
        out.push_str(&format!("\n# {}\n#{}={default}\n", described(setting), setting.name));
    }
    out
}

/// One line about a setting: what it is, in which unit and range, and its default.
pub fn described(setting: &Setting) -> String {
    let range = match setting.kind {
        Kind::Bool => " [true|false]".to_owned(),
        Kind::Choice(words) => format!(" [{}]", words.join("|")),
        Kind::Count(low, high) => format!(" [{low}..{high}]"),
        Kind::Millis(low, high) => format!(" [{low}..{high} ms]"),
        Kind::Secret | Kind::Text => String::new(),
    };
    let default = match setting.default {
        Unset => String::new(),
        Is(default) => format!(" (default {default})"),
        Derived(how) => format!(" (default: {how})"),
    };
    format!("{}{range}{default}", setting.about)
}

fn find(name: &str) -> &'static Setting {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .unwrap_or_else(|| panic!("{name} is not in the table"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Given {
        Given::from_lookup(|name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_default_is_within_its_own_range() {
        let nothing = Given::default();
        let mut parsed = Parsed::new(&nothing);
        for setting in SETTINGS {
            match setting.kind {
                Kind::Bool => drop(parsed.bool(setting.name)),
                Kind::Choice(_) => drop(parsed.word(setting.name)),
                Kind::Count(..) | Kind::Millis(..) => drop(parsed.number(setting.name)),
                Kind::Secret | Kind::Text => {}
            }
        }
        assert_eq!(parsed.problems, Vec::<String>::new());
    }

    #[test]
    fn names_are_unique_and_lines_are_short() {
        let mut names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        for setting in SETTINGS {
            assert!(
                !setting.about.ends_with('.') && setting.about.len() <= 110,
                "{}",
                setting.name
            );
        }
    }

    #[test]
    fn booleans_are_four_words() {
        for (text, value) in [("true", true), ("1", true), ("FALSE", false), ("0", false)] {
            let given = given(&[("AUTO_BACKFILL_ENABLED", text)]);
            let mut parsed = Parsed::new(&given);
            assert_eq!(parsed.bool("AUTO_BACKFILL_ENABLED"), value);
            assert!(parsed.problems.is_empty());
        }
        let given = given(&[("AUTO_BACKFILL_ENABLED", "yes")]);
        let mut parsed = Parsed::new(&given);
        parsed.bool("AUTO_BACKFILL_ENABLED");
        assert_eq!(
            parsed.problems,
            ["AUTO_BACKFILL_ENABLED is yes: has to be true, false, 1 or 0"]
        );
    }

    #[test]
    fn secrets_are_never_shown() {
        let given = given(&[("ADMIN_TOKEN", "hunter2hunter2hunter2")]);
        assert!(!effective(&given).contains("hunter2"));
        assert!(effective(&given).contains("ADMIN_TOKEN = (set)"));
        let mut parsed = Parsed::new(&given);
        parsed.wrong("ADMIN_TOKEN", "hunter2", "is too short");
        assert_eq!(parsed.problems, ["ADMIN_TOKEN is (hidden): is too short"]);
    }

    #[test]
    fn the_example_names_every_setting_once() {
        let example = example();
        for setting in SETTINGS {
            let line = format!("#{}=", setting.name);
            let found = example.lines().filter(|l| l.starts_with(&line)).count();
            assert_eq!(found, 1, "{}", setting.name);
        }
    }

    #[test]
    fn the_example_file_is_current() {
        let file = include_str!("../../../deploy/wa-backfill.env.example");
        assert!(
            file == example(),
            "renew it: wa-backfill check-config --example > deploy/wa-backfill.env.example"
        );
    }
}
