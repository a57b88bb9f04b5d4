//! What the instance does, for the logs.

use std::collections::BTreeMap;
use std::time::Duration;

use backfill_core::id::{AccountId, RequestId};
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, CloseReason, Event, GatewayEvent, HoleChange, Input, Key, Output, RunKind, Source,
};
use backfill_core::time::Mono;
use backfill_driver::Observer;
use backfill_driver::port::StoreError;
use tracing::field::{DisplayValue, display};
use tracing::{debug, info, warn};
use wa_http::metered::Reached;
use wa_http::view::{Witness, key_name, mode_name, reason_name, skip_name, trigger_name};

/// Writes the log, and lets the HTTP side see the same.
pub(crate) struct Journal {
    witness: Witness,
    reached: Reached,
    arrived: BTreeMap<AccountId, Arrived>,
    /// Why connections were closed that are about to be mentioned
    closed: BTreeMap<AccountId, CloseReason>,
    now: Mono,
    trouble: Option<Trouble>,
}

/// Why the store does not answer, and when that was last mentioned.
struct Trouble {
    why: String,
    mentioned: Mono,
}

/// Live messages since they were last mentioned.
#[derive(Default)]
struct Arrived {
    mentioned: Option<Mono>,
    messages: u32,
}

impl Journal {
    pub(crate) fn new(witness: Witness, reached: Reached) -> Self {
        Self {
            witness,
            reached,
            arrived: BTreeMap::new(),
            closed: BTreeMap::new(),
            now: Mono::default(),
            trouble: None,
        }
    }

    /// A store that goes on failing is mentioned now and then, not with every call.
    fn note_trouble(&mut self, error: &StoreError) {
        let advice = match error {
            StoreError::Denied(_) => "; check its credentials and what they allow",
            _ => "",
        };
        let why = format!("{error}{advice}");
        let known = self.trouble.as_ref().filter(|trouble| trouble.why == why);
        if known.is_some_and(|known| self.now.since(known.mentioned) < TROUBLE_SPACING) {
            debug!("[store] {why}");
        } else {
            warn!("[store] {why}");
            self.trouble = Some(Trouble { why, mentioned: self.now });
        }
    }

    /// A busy account is mentioned now and then, not with every message.
    fn note_realtime(&mut self, now: Mono, account: &AccountId, messages: u32) {
        let arrived = self.arrived.entry(account.clone()).or_default();
        arrived.messages = arrived.messages.saturating_add(messages);
        if arrived.mentioned.is_none_or(|at| now.since(at) >= MENTION_SPACING) {
            info!(account = %account, messages = arrived.messages, "[realtime] stored");
            *arrived = Arrived { mentioned: Some(now), messages: 0 };
        }
    }
}

impl Observer for Journal {
    fn input(&mut self, now: Mono, input: &Input) {
        self.witness.input(now, input);
        self.now = now;
        let answered = matches!(
            input,
            Input::Answer(_, Answer::Committed { .. } | Answer::Found { .. } | Answer::Read { .. })
        );
        if answered && self.trouble.take().is_some() {
            info!("[store] the store answers again");
        }
        match input {
            Input::Gateway(account, GatewayEvent::Closed { reason, .. }) => {
                self.closed.insert(account.clone(), *reason);
            }
            Input::Ingested(account, ingested) => {
                let messages = ingested.messages;
                match ingested.source {
                    Source::Realtime => self.note_realtime(now, account, messages),
                    Source::Chunk { .. } => debug!(%account, messages, "[history-sync] stored"),
                    Source::LatePage => {
                        info!(%account, messages, "[history-sync] late page stored");
                    }
                }
            }
            _ => {}
        }
    }

    fn settled(&mut self, now: Mono, instance: &Instance, outputs: &[Output]) {
        self.witness.settled(now, instance, outputs);
        for output in outputs {
            match output {
                Output::Event(Event::Connection { account, state }) => {
                    let reason = self.closed.remove(account).filter(|_| *state == "closed");
                    let reason = reason.map(CloseReason::as_str);
                    info!(%account, state, reason, "[realtime] connection {state}");
                }
                Output::Event(event) => log(instance, event),
                _ => {}
            }
        }
    }

    fn store_failed(&mut self, request: RequestId, error: &StoreError) {
        self.witness.store_failed(request, error);
        if matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_)) {
            self.reached.gave_up();
        }
        match error {
            // Losing a race is everyday life.
            StoreError::Conflict(_) => debug!("[store] {error}"),
            StoreError::Invalid { .. } => warn!("[store] {error}"),
            StoreError::Denied(_) | StoreError::Unavailable(_) | StoreError::Unknown(_) => {
                self.note_trouble(error);
            }
        }
    }
}

fn log(instance: &Instance, event: &Event) {
    match event {
        // Mentioned with its reason already.
        Event::Connection { .. } => {}
        Event::DeadMarked { boot } => info!(%boot, "[lock] a silent session was marked dead"),
        Event::Fenced { key } => {
            let account = account_of(key);
            warn!(key = key_name(key), account, "[lock] write refused: somebody else owns it now");
        }
        Event::Hole { account, change } => {
            let change = match change {
                HoleChange::Exhausted => "exhausted",
                HoleChange::Filled => "filled",
                HoleChange::Suspected => "suspected",
            };
            info!(%account, change, "[recent-sync] hole {change}");
        }
        Event::Incident { account, kind } => match account {
            Some(account) => warn!(%account, kind, "[incident] {kind}"),
            None => warn!(kind, "[incident] {kind}"),
        },
        Event::LeaseLost { key } => {
            warn!(key = key_name(key), account = account_of(key), "[lock] lease lost");
        }
        Event::LeaseReleased { key } => {
            info!(key = key_name(key), account = account_of(key), "[lock] lease released");
        }
        Event::LeaseTaken { key, epoch } => {
            let (account, epoch) = (account_of(key), epoch.0);
            info!(key = key_name(key), account, epoch, "[lock] lease taken");
        }
        Event::Mode { mode } => {
            info!(
                mode = mode_name(*mode),
                reason = reason_name(*mode),
                instance = instance.policy().instance.as_str(),
                "[lock] mode {}",
                mode_name(*mode)
            );
        }
        Event::RunEnded { account, kind, result } => info!(
            %account,
            ok = result.ok,
            error = result.error,
            threads = result.threads,
            messages = result.messages,
            errors = result.errors,
            remaining = result.remaining,
            duration_ms = u64::try_from(result.duration.as_millis()).unwrap_or(u64::MAX),
            "{} end",
            tag(*kind)
        ),
        Event::RunStarted { account, kind, trigger } => {
            info!(%account, trigger = trigger_name(*trigger), "{} start", tag(*kind));
        }
        Event::SessionStarted { boot } => debug!(%boot, "[lock] session started"),
        Event::SessionEnded { boot, graceful } => info!(%boot, graceful, "[lock] session ended"),
        Event::Skipped { account, kind, reason } => {
            info!(%account, reason = skip_name(*reason), "{} skip", tag(*kind));
        }
        Event::Tick { kind, connected, started, skipped } => {
            let skips: Vec<String> =
                skipped.iter().map(|(reason, n)| format!("{}={n}", skip_name(*reason))).collect();
            info!(connected, started, skipped = skips.join(" "), "{} tick", tag(*kind));
        }
        Event::UnknownOutcome { key } => {
            let key = key.as_ref().map_or("other", key_name);
            warn!(key, "[store] outcome of a commit unknown; looking again");
        }
    }
}

/// The account that a lease is about, masked.
fn account_of(key: &Key) -> Option<DisplayValue<&AccountId>> {
    match key {
        Key::Account(account) | Key::Run(account, _) => Some(display(account)),
        Key::Lock => None,
    }
}

/// What operators grep for.
const fn tag(kind: RunKind) -> &'static str {
    match kind {
        RunKind::AutoBackfill => "[wa-auto-backfill]",
        RunKind::RecentSync => "[recent-sync]",
    }
}

const MENTION_SPACING: Duration = Duration::from_secs(10);
const TROUBLE_SPACING: Duration = Duration::from_secs(60);
