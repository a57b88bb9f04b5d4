//! What happens when: events in order of time, and of arrival where the time is equal.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::clock::Real;

/// A queue of events.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Slot>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    sequence: u64,
}

/// Small, so that sifting moves little; the event itself stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    at: Real,
    sequence: u64,
    event: u32,
}

impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Queue<E> {
    /// A queue without events.
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), sequence: 0 }
    }

    /// Adds an event.
    pub fn push(&mut self, at: Real, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot as usize] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                (self.events.len() - 1) as u32
            }
        };
        self.heap.push(Slot { at, sequence: self.sequence, event: slot });
        self.sequence += 1;
    }

    /// Takes the next event out.
    pub fn pop(&mut self) -> Option<(Real, E)> {
        let slot = self.heap.pop()?;
        self.free.push(slot.event);
        let event = self.events[slot.event as usize].take()?;
        Some((slot.at, event))
    }

    /// When the next event happens.
    pub fn next(&self) -> Option<Real> {
        self.heap.peek().map(|slot| slot.at)
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_at_equal_times_in_order_of_arrival() {
        let mut q = Queue::new();
        for (at, event) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            q.push(Real(at), event);
        }
        assert_eq!(q.pop(), Some((Real(3), 'a')));
        q.push(Real(5), 'e');
        let rest: Vec<char> = std::iter::from_fn(|| q.pop()).map(|(_, e)| e).collect();
        assert_eq!(rest, ['b', 'c', 'd', 'e']);
        assert!(q.is_empty());
    }
}
