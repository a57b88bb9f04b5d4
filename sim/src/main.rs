//! Runs simulated worlds: many of them, one to look at, one again, one made smaller.

use std::fmt::{self, Display};
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;

use backfill_core::bug::Bug;
use backfill_core::policy::PolicyErrors;
use clap::{ArgAction, Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sim::campaign::{self, Summary, Tier};
use sim::clock::Real;
use sim::meta::{self, Comparison};
use sim::mutants;
use sim::picture::Picture;
use sim::regression::Regression;
use sim::report::Report;
use sim::scenario::Scenario;
use sim::shrink;
use sim::story::{self, Weight, clock, masked};
use sim::swarm;
use sim::timeline::{self, Chosen};
use sim::trace::Trace;
use sim::variant::Variant;
use sim::world::World;

/// Most of what a world does is to make small documents and drop them again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Worlds in which everything goes wrong that can, and what became of them
#[derive(Parser)]
#[command(name = "sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a world for every seed; fails if one violates something, or if a large campaign never
    /// reaches something that has to happen sometimes
    Campaign {
        /// In which worlds: 1, the bare core in an event queue; 2, driver and core in nodes of a
        /// simulated network
        #[arg(long, value_name = "N", value_parser = tier, default_value = "1")]
        tier: Tier,
        /// Which seeds
        #[arg(long, value_name = "A..B", allow_hyphen_values = true, default_value = "0..2000")]
        seeds: Seeds,
        #[command(flatten)]
        jobs: Jobs,
        /// Where to write the report, as JSON
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Run every seed in two processes; fails if their traces differ in one byte
    Meta {
        /// Which seeds
        #[arg(long, value_name = "A..B", allow_hyphen_values = true, default_value = "0..20")]
        seeds: Seeds,
    },
    /// Break every known rule in turn; fails if the fixed seeds do not notice one
    Mutants {
        /// In which worlds: in tier 2, of which the real driver is a part, only the core's rules are
        /// broken
        #[arg(long, value_name = "N", value_parser = tier, default_value = "1")]
        tier: Tier,
        /// Which seeds
        #[arg(long, value_name = "A..B", allow_hyphen_values = true, default_value = "0..250")]
        seeds: Seeds,
        #[command(flatten)]
        jobs: Jobs,
        /// Only this known bug; may be given more than once
        #[arg(long, value_name = "BUG", value_parser = variant)]
        only: Vec<Variant>,
        /// Where to write the table, as JSON
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Tell what happens in one world, or draw it; fails if it violates something
    Replay {
        /// In which world: 1, the bare core in an event queue; 2, driver and core in nodes of a
        /// simulated network
        #[arg(long, value_name = "N", value_parser = tier, default_value = "1")]
        tier: Tier,
        #[command(flatten)]
        world: Which,
        /// Draw it, as one HTML file, instead of telling it
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Only from this time of the world on
        #[arg(long, value_name = "H:MM:SS", default_value = "0:00:00")]
        from: Moment,
        /// Only until this time of the world
        #[arg(long, value_name = "H:MM:SS")]
        to: Option<Moment>,
        /// Only what is about this account, or about none
        #[arg(long, value_name = "N")]
        account: Option<u16>,
        /// Only what this instance does, or what happens to all
        #[arg(long, value_name = "N")]
        instance: Option<u8>,
        /// Tell details too; twice: everything
        #[arg(short, long, action = ArgAction::Count)]
        verbose: u8,
    },
    /// Make a failing world smaller, and keep it as a regression
    Shrink {
        #[command(flatten)]
        world: Which,
        /// Which property has to go on failing; by default the first that fails
        #[arg(long, value_name = "PROPERTY", value_parser = property)]
        check: Option<&'static str>,
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write everything that happens in one world, for `meta`
    #[command(hide = true)]
    Trace {
        /// Which world
        #[arg(long, value_name = "N", value_parser = seed)]
        seed: u64,
    },
}

/// Which world.
#[derive(Args)]
struct Which {
    #[command(flatten)]
    world: SeedOrFile,
    /// Break a rule on purpose: the name of a known bug
    #[arg(long, value_name = "BUG", value_parser = variant)]
    bug: Option<Variant>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct SeedOrFile {
    /// The world of this seed
    #[arg(long, value_name = "N", value_parser = seed, allow_hyphen_values = true)]
    seed: Option<u64>,
    /// The world in this file: a scenario, or a regression
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
}

#[derive(Args)]
struct Jobs {
    /// Threads; by default as many as there are processors
    #[arg(long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    jobs: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Campaign { tier, seeds, jobs, out } => {
            run_campaign(tier, seeds.0, jobs.count(), out)
        }
        Command::Meta { seeds } => run_meta(seeds.0),
        Command::Mutants { tier, seeds, jobs, only, out } => {
            run_mutants(tier, seeds.0, jobs.count(), only, out)
        }
        Command::Replay { tier, world, html, from, to, account, instance, verbose } => {
            let least = match verbose {
                0 => Weight::Plain,
                1 => Weight::Detail,
                _ => Weight::Routine,
            };
            let times = from.0..to.map_or(Real::NEVER, |to| to.0);
            replay(tier, &world, html, &Chosen { least, times, account, instance })
        }
        Command::Shrink { world, check, out } => run_shrink(&world, check, &out),
        Command::Trace { seed } => {
            meta::write_trace(seed, &mut BufWriter::new(io::stdout().lock()))
                .map(|()| Verdict::Good)
                .map_err(Failed::output)
        }
    };
    match result {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::FAILURE,
        // Whoever reads has read enough.
        Err(Failed { closed: true, .. }) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("error: {}", failed.what);
            ExitCode::from(2)
        }
    }
}

/// Whether the worlds were as they have to be.
enum Verdict {
    Bad,
    Good,
}

impl Verdict {
    const fn good_if(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// Why a command could not be carried out.
struct Failed {
    what: String,
    closed: bool,
}

impl Failed {
    fn because(what: impl Into<String>) -> Self {
        Self { what: what.into(), closed: false }
    }

    fn output(error: io::Error) -> Self {
        let closed = error.kind() == io::ErrorKind::BrokenPipe;
        Self { what: format!("cannot write the output: {error}"), closed }
    }
}

fn run_campaign(
    tier: Tier,
    seeds: Range<u64>,
    jobs: usize,
    out: Option<PathBuf>,
) -> Result<Verdict, Failed> {
    let bar = progress(seeds.end - seeds.start, "worlds");
    let summary = campaign::run(tier, seeds, jobs, |_| bar.inc(1));
    bar.finish_and_clear();
    say(&campaign_text(&summary))?;
    write_file(out.as_deref(), &summary.to_json())?;
    Ok(Verdict::good_if(!summary.is_failed()))
}

fn campaign_text(s: &Summary) -> String {
    let mut out = format!(
        "{} worlds, {} simulated in {:.1} s: {} : 1, {} events/s, {:.1} worlds/s\n",
        s.worlds,
        story::span(s.simulated_ms),
        s.wall_ms as f64 / 1_000.0,
        s.simulated_to_real,
        s.events_per_second,
        s.seeds_per_second
    );
    let list = |counts: &mut dyn Iterator<Item = (&&str, &u64)>| {
        counts.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    };
    out += &format!("faults: {}\n", list(&mut s.faults.iter()));
    out += &format!("sometimes: {}\n", list(&mut s.sometimes.iter()));
    let excuse = if s.is_large() { "" } else { " (too few worlds for that to be a failure)" };
    for (what, never) in [("struck", &s.never_struck), ("reached", &s.never_reached)] {
        if !never.is_empty() {
            out += &format!("never {what}{excuse}: {}\n", never.join(", "));
        }
    }
    if s.failed_seeds == 0 {
        out += "nothing was violated\n";
        return out;
    }
    out += &format!("{} worlds violated something:\n", s.failed_seeds);
    for (name, check) in s.checks.iter().filter(|(_, check)| check.failed_seeds > 0) {
        out += &format!("  {name} in {} worlds: {}\n", check.failed_seeds, check.says);
        for failure in s.first_failures.iter().filter(|failure| failure.check == *name) {
            let at = clock(Real(failure.at_ms));
            out += &format!("    seed {} at {at}: {}\n", failure.seed, masked(&failure.text));
        }
    }
    out
}

fn run_meta(seeds: Range<u64>) -> Result<Verdict, Failed> {
    let program = std::env::current_exe()
        .map_err(|error| Failed::because(format!("cannot find this program: {error}")))?;
    let bar = progress(seeds.end - seeds.start, "worlds, each in two processes");
    let (mut bytes, mut differ) = (0, 0);
    for seed in seeds.clone() {
        let compared = meta::compare(&program, seed)
            .map_err(|error| Failed::because(format!("cannot compare seed {seed}: {error}")))?;
        match compared {
            Comparison::Equal(length) => bytes += length,
            Comparison::DifferAt(byte) => {
                differ += 1;
                bar.suspend(|| say(&format!("seed {seed}: traces differ from byte {byte} on\n")))?;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let worlds = seeds.end - seeds.start;
    say(&format!(
        "{} of {worlds} worlds are the same in two processes, byte for byte ({bytes} bytes)\n",
        worlds - differ
    ))?;
    Ok(Verdict::good_if(differ == 0))
}

fn run_mutants(
    tier: Tier,
    seeds: Range<u64>,
    jobs: usize,
    only: Vec<Variant>,
    out: Option<PathBuf>,
) -> Result<Verdict, Failed> {
    let breakable = |variant: &Variant| tier == Tier::One || variant.bug().is_some();
    if let Some(slip) = only.iter().find(|variant| !breakable(variant)) {
        return Err(Failed::because(format!("--only {}: {NO_SLIP}", slip.name())));
    }
    let variants: Vec<Variant> =
        if only.is_empty() { Variant::all().filter(breakable).collect() } else { only };
    let bar = progress(variants.len() as u64, "known bugs");
    let found = mutants::hunt(tier, &variants, seeds.clone(), jobs, |_| bar.inc(1));
    bar.finish_and_clear();
    let caught = found.iter().filter(|mutant| mutant.caught.is_some()).count();
    say(&mutants::table(&found))?;
    say(&format!(
        "{caught} of {} known bugs are caught by seeds {}..{}\n",
        found.len(),
        seeds.start,
        seeds.end
    ))?;
    let json = serde_json::to_string_pretty(&found).expect("a table has only plain data");
    write_file(out.as_deref(), &json)?;
    Ok(Verdict::good_if(caught == found.len()))
}

fn replay(
    tier: Tier,
    which: &Which,
    html: Option<PathBuf>,
    chosen: &Chosen,
) -> Result<Verdict, Failed> {
    let (scenario, variant) = which.world()?;
    let ran = match (tier, variant) {
        (Tier::One, _) => World::new(scenario.clone(), Trace::recording())
            .map(|world| world.breaking(variant).run()),
        (Tier::Two, Some(slip)) if slip.bug().is_none() => {
            return Err(Failed::because(format!("--bug {}: {NO_SLIP}", slip.name())));
        }
        (Tier::Two, _) => in_tier_2(&scenario, variant.and_then(Variant::bug))?,
    };
    let (report, trace) =
        ran.map_err(|errors| Failed::because(format!("the scenario's settings: {errors}")))?;
    if let Some(path) = html {
        let picture = Picture::new(&scenario, variant, &report, &trace);
        write_file(Some(&path), &picture.to_html())?;
        say(&format!("{}{} shows it\n", timeline::verdict(&report), path.display()))?;
    } else {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut print = || -> io::Result<()> {
            write!(out, "{}", timeline::head(&scenario))?;
            if let Some(variant) = variant {
                writeln!(out, "Broken on purpose: {} ({})", variant.name(), variant.describe())?;
            }
            for note in story::tell(&scenario, &trace) {
                if chosen.includes(&note) {
                    writeln!(out, "{}", timeline::line(&note))?;
                }
            }
            write!(out, "{}", timeline::verdict(&report))?;
            out.flush()
        };
        print().map_err(Failed::output)?;
    }
    Ok(Verdict::good_if(report.violations.is_empty()))
}

#[cfg(madsim)]
fn in_tier_2(
    scenario: &Scenario,
    bug: Option<Bug>,
) -> Result<Result<(Report, Trace), PolicyErrors>, Failed> {
    Ok(sim::tier2::run(scenario.clone(), bug, Trace::recording()))
}

#[cfg(not(madsim))]
fn in_tier_2(
    _: &Scenario,
    _: Option<Bug>,
) -> Result<Result<(Report, Trace), PolicyErrors>, Failed> {
    Err(Failed::because("--tier 2: this program was built without `--cfg madsim`"))
}

const NO_SLIP: &str = "this is a slip of the shell, whose place the real driver has in tier 2";

fn run_shrink(which: &Which, check: Option<&str>, out: &Path) -> Result<Verdict, Failed> {
    let (scenario, variant) = which.world()?;
    let before = shrink::size(&scenario);
    let bar = ProgressBar::new_spinner();
    let shrunk = shrink::shrink(scenario, variant, check, |s| {
        bar.set_message(format!("{} of {before} entries left", shrink::size(s)));
        bar.tick();
    });
    bar.finish_and_clear();
    let Some(shrunk) = shrunk else {
        let what = check.unwrap_or("anything");
        return Err(Failed::because(format!("this world does not violate {what}")));
    };
    let (check, text) = (shrunk.violation.check, masked(&shrunk.violation.text));
    let regression = Regression {
        check: check.into(),
        bug: variant.map(|variant| variant.name().into()),
        found: format!("{} {text}", clock(shrunk.violation.at)),
        scenario: shrunk.scenario,
    };
    write_file(Some(out), &regression.to_json())?;
    say(&format!(
        "{} of {before} entries still violate {check} ({text}), after {} runs; {} has them\n",
        shrink::size(&regression.scenario),
        shrunk.runs,
        out.display()
    ))?;
    Ok(Verdict::Good)
}

impl Which {
    fn world(&self) -> Result<(Scenario, Option<Variant>), Failed> {
        let path = match &self.world {
            SeedOrFile { scenario: Some(path), .. } => path,
            SeedOrFile { seed, .. } => {
                let seed = seed.expect("one of the two is given");
                // A known bug is replayed in the world in which it is looked for.
                let scenario = match self.bug {
                    Some(variant) => variant.world(seed),
                    None => swarm::scenario(seed),
                };
                return Ok((scenario, self.bug));
            }
        };
        let shown = path.display();
        let text = fs::read_to_string(path)
            .map_err(|error| Failed::because(format!("--scenario {shown}: {error}")))?;
        let regression = Regression::from_json(&text).map_err(|error| {
            Failed::because(format!("--scenario {shown} is not a scenario: {error}"))
        })?;
        let variant = match (&self.bug, &regression.bug) {
            (Some(variant), _) => Some(*variant),
            (None, None) => None,
            (None, Some(name)) => Some(variant(name).map_err(|wrong| {
                Failed::because(format!("--scenario {shown}: bug {name}: {wrong}"))
            })?),
        };
        Ok((regression.scenario, variant))
    }
}

impl Jobs {
    fn count(&self) -> usize {
        self.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// Seeds from the first to before the last.
#[derive(Clone)]
struct Seeds(Range<u64>);

impl FromStr for Seeds {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong("two whole numbers with `..` between them, as in 0..20000".into());
        let (start, end) = text.split_once("..").ok_or_else(wrong)?;
        let (start, end): (u64, u64) =
            (start.parse().map_err(|_| wrong())?, end.parse().map_err(|_| wrong())?);
        if start >= end {
            return Err(Wrong("the end comes after the start and is not included itself".into()));
        }
        Ok(Self(start..end))
    }
}

/// A time of the world, as the timeline shows it.
#[derive(Clone)]
struct Moment(Real);

impl FromStr for Moment {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong("hours, minutes and seconds, as in 1:02:03 or 0:00:07.250".into());
        let parts: Vec<&str> = text.split(':').collect();
        let [h, m, s] = parts.as_slice() else { return Err(wrong()) };
        let (s, ms) = s.split_once('.').unwrap_or((s, "0"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let (h, m, s) = (number(h)?, number(m)?, number(s)?);
        let digits = u32::try_from(ms.len()).unwrap_or(u32::MAX);
        if digits > 3 || m > 59 || s > 59 || h > 1_000_000 {
            return Err(wrong());
        }
        let ms = number(ms)? * 10_u64.pow(3 - digits);
        Ok(Self(Real(((h * 60 + m) * 60 + s) * 1_000 + ms)))
    }
}

/// What would have been right.
#[derive(Debug)]
struct Wrong(String);

impl Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

fn seed(text: &str) -> Result<u64, Wrong> {
    text.parse().map_err(|_| Wrong(format!("a whole number from 0 to {}", u64::MAX)))
}

fn tier(text: &str) -> Result<Tier, Wrong> {
    match text {
        "1" => Ok(Tier::One),
        "2" => Ok(Tier::Two),
        _ => Err(Wrong("1 or 2".into())),
    }
}

fn threads(text: &str) -> Result<NonZeroUsize, Wrong> {
    text.parse().map_err(|_| Wrong("a whole number from 1 on".into()))
}

fn variant(text: &str) -> Result<Variant, Wrong> {
    Variant::named(text).ok_or_else(|| {
        let names: Vec<&str> = Variant::all().map(Variant::name).collect();
        Wrong(format!("one of {}", names.join(", ")))
    })
}

fn property(text: &str) -> Result<&'static str, Wrong> {
    let names = || sim::properties::PROPERTIES.iter().map(|property| property.name);
    names().find(|name| *name == text).ok_or_else(|| {
        let names: Vec<&str> = names().collect();
        Wrong(format!("one of {}", names.join(", ")))
    })
}

fn progress(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}, {eta} left")
        .expect("a constant template");
    ProgressBar::new(length).with_style(style).with_message(what)
}

fn say(text: &str) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failed::output)
}

fn write_file(path: Option<&Path>, text: &str) -> Result<(), Failed> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, text)
        .map_err(|error| Failed::because(format!("cannot write {}: {error}", path.display())))
}
