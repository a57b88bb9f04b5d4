//! The fault plan at work: what strikes now.

use crate::chance::{draw, scale};
use crate::clock::Real;
use crate::scenario::{Fault, Kind, Scenario, Target};

/// Answers whether a planned fault strikes. Each fault draws by itself, from its own salt and
/// how often it was asked, so that leaving one out does not change what the others do.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    faults: Vec<(Fault, u64)>,
    /// Begin and end of each fault, in order of time
    edges: Vec<(Real, bool, u32)>,
    passed: usize,
    /// By kind, the faults that are on
    active: [Vec<u32>; Kind::COUNT],
    struck: [u64; Kind::COUNT],
    /// How many are on
    on: u32,
}

impl FaultPlan {
    /// The plan of a scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let mut edges = Vec::new();
        for (i, fault) in scenario.faults.iter().enumerate() {
            let end = scenario.fault_end(fault);
            if fault.from < end {
                edges.push((fault.from, true, i as u32));
                edges.push((end, false, i as u32));
            }
        }
        edges.sort_by_key(|(at, on, i)| (*at, *on, *i));
        Self {
            faults: scenario.faults.iter().map(|f| (*f, 0)).collect(),
            edges,
            passed: 0,
            active: std::array::from_fn(|_| Vec::new()),
            struck: [0; Kind::COUNT],
            on: 0,
        }
    }

    /// Moves on to `now`, which must not go back.
    pub fn advance(&mut self, now: Real) {
        while let Some((at, on, i)) = self.edges.get(self.passed).copied()
            && at <= now
        {
            self.passed += 1;
            let active = &mut self.active[self.faults[i as usize].0.kind.index()];
            if on {
                active.push(i);
                self.on += 1;
            } else {
                active.retain(|a| *a != i);
                self.on -= 1;
            }
        }
    }

    /// The fault of this kind that strikes one of the targets this time, if one does. Only the
    /// kind of `kind` counts; its size comes from the plan.
    pub fn strikes(&mut self, kind: Kind, instance: u8, account: u16) -> Option<Fault> {
        let k = kind.index();
        for i in &self.active[k] {
            let (fault, asked) = &mut self.faults[*i as usize];
            if fault.target.includes(instance, account) {
                *asked += 1;
                if scale(draw(fault.salt, *asked), 1_000) < u64::from(fault.permille) {
                    self.struck[k] += 1;
                    return Some(*fault);
                }
            }
        }
        None
    }

    /// Whether a fault of this kind, one that is a state, is on.
    pub fn on(&self, kind: Kind, instance: u8, account: u16) -> bool {
        self.active[kind.index()]
            .iter()
            .any(|i| self.faults[*i as usize].0.target.includes(instance, account))
    }

    /// Like [`on`](Self::on), and counts that it struck.
    pub fn holds(&mut self, kind: Kind, instance: u8, account: u16) -> bool {
        let holds = self.on(kind, instance, account);
        self.struck[kind.index()] += u64::from(holds);
        holds
    }

    /// Whether nothing may start on the host of an instance: it is meant to be down, or stands
    /// still.
    pub fn keeps_down(&self, instance: u8) -> bool {
        [Kind::Crash, Kind::HostReboot { ms: 0 }, Kind::Stop, Kind::Freeze]
            .iter()
            .any(|kind| self.on(*kind, instance, NO_ACCOUNT))
    }

    /// Whether no fault is on.
    pub fn is_quiet(&self) -> bool {
        self.on == 0
    }

    /// Counts a fault that the world carried out by itself.
    pub fn count(&mut self, kind: Kind) {
        self.struck[kind.index()] += 1;
    }

    /// How often each kind struck.
    pub fn struck(&self) -> &[u64; Kind::COUNT] {
        &self.struck
    }
}

/// Stands for no instance.
pub const NO_INSTANCE: u8 = u8::MAX;
/// Stands for no account.
pub const NO_ACCOUNT: u16 = u16::MAX;

impl Target {
    fn includes(self, instance: u8, account: u16) -> bool {
        match self {
            Self::Account(a) => a == account,
            Self::All => true,
            Self::Instance(i) => i == instance,
        }
    }
}
