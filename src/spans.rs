//! Stretches of something that is as long as a file: which of them are there, or are still to be had.

use std::collections::BTreeMap;
use std::ops::Range;

/// Stretches that neither overlap nor touch, in order.
#[derive(Debug, Clone, Default)]
pub struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// One stretch.
    pub fn of(span: Range<u64>) -> Spans {
        let mut spans = Spans::default();
        spans.add(span);
        spans
    }

    /// Adds one; what overlaps or touches it becomes one with it.
    pub fn add(&mut self, span: Range<u64>) {
        let Range { mut start, mut end } = span;
        if start >= end {
            return;
        }
        while let Some((&before, &until)) =
            self.0.range(..=end).next_back().filter(|(_, until)| **until >= start)
        {
            (start, end) = (start.min(before), end.max(until));
            self.0.remove(&before);
        }
        self.0.insert(start, end);
    }

    /// The lowest one.
    pub fn first(&self) -> Option<Range<u64>> {
        self.0.first_key_value().map(|(&start, &end)| start..end)
    }

    /// Takes the lowest one out, or as much of its beginning as `most`.
    pub fn take_first(&mut self, most: u64) -> Option<Range<u64>> {
        let (start, end) = self.0.pop_first()?;
        let taken = start..end.min(start.saturating_add(most));
        self.add(taken.end..end);
        Some(taken)
    }

    /// How far it goes from 0 on without a gap.
    pub fn reach(&self) -> u64 {
        self.first().filter(|first| first.start == 0).map_or(0, |first| first.end)
    }

    /// How long all of them are together.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_a_row_of_flags_would_have_it(added in prop::collection::vec((0..64u64, 0..16u64), 0..40)) {
            let (mut spans, mut flags) = (Spans::default(), [false; 80]);
            for (start, length) in added {
                spans.add(start..start + length);
                (start..start + length).for_each(|at| flags[at as usize] = true);
                prop_assert_eq!(spans.sum(), flags.iter().filter(|flag| **flag).count() as u64);
                let reach = flags.iter().position(|flag| !flag).unwrap();
                prop_assert_eq!(spans.reach(), reach as u64);
                let touching = spans.0.iter().zip(spans.0.iter().skip(1)).any(|((_, end), (start, _))| end >= start);
                prop_assert!(!touching, "{spans:?}");
            }
            while let Some(taken) = spans.take_first(5) {
                prop_assert!(taken.end - taken.start <= 5);
                prop_assert_eq!(flags.iter().position(|flag| *flag), Some(taken.start as usize));
                for at in taken {
                    prop_assert!(std::mem::take(&mut flags[at as usize]));
                }
            }
            prop_assert!(!flags.contains(&true));
        }
    }
}
