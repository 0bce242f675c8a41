//! How much may come at which time of day.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::ByteSize;

/// A part of each day, by the local clock, written `22:00-06:00`. From its first minute to before its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Minutes since midnight.
    from: u16,
    until: u16,
}

/// So many bytes a second, always or at some hours: `2MB`, `20MB 22:00-06:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second; never 0.
    pub bytes: ByteSize,
    /// When it holds; always where there are none.
    pub hours: Option<Hours>,
}

/// The first of them that holds at a time is the limit then; without one there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bandwidth(pub Vec<Rate>);

const DAY: u16 = 24 * 60;
const HOURS: &str = "hours of the day such as 22:00-06:00";
const RATE: &str =
    "bytes a second such as 2MB, at some hours such as \"20MB 22:00-06:00\", or a list of these";
/// Less would take minutes for what comes in one piece.
const SLOWEST: u64 = 1000;

impl Hours {
    /// Whether `time`, since midnight, is within them.
    pub fn contains(self, time: Duration) -> bool {
        let minute = time.as_secs() / 60;
        let (from, until) = (u64::from(self.from), u64::from(self.until));
        if from < until { (from..until).contains(&minute) } else { minute >= from || minute < until }
    }

    /// How long it is from `time`, since midnight, until they begin; nothing while they last.
    pub fn begin_in(self, time: Duration) -> Duration {
        if self.contains(time) {
            return Duration::ZERO;
        }
        let begin = Duration::from_secs(60 * u64::from(self.from));
        let tomorrow = begin + Duration::from_secs(60 * u64::from(DAY));
        if begin > time { begin - time } else { tomorrow.saturating_sub(time) }
    }
}

impl Bandwidth {
    /// Whether there is no limit at any time.
    pub fn is_unlimited(&self) -> bool {
        self.0.is_empty()
    }

    /// The limit at `time`, since midnight, in bytes a second.
    pub fn at(&self, time: Duration) -> Option<u64> {
        let holds = |rate: &&Rate| rate.hours.is_none_or(|hours| hours.contains(time));
        self.0.iter().find(holds).map(|rate| rate.bytes.0)
    }
}

impl FromStr for Hours {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, until) = text.split_once('-').ok_or(HOURS)?;
        let (from, until) = (minute(from.trim()).ok_or(HOURS)?, minute(until.trim()).ok_or(HOURS)?);
        // Midnight as the end of a day.
        let until = until % DAY;
        if from == until || from == DAY { Err(HOURS) } else { Ok(Hours { from, until }) }
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hours = text.trim().rsplit_once(' ').filter(|(_, hours)| hours.contains(':'));
        let (bytes, hours) = match hours {
            Some((bytes, hours)) => (bytes, Some(hours.parse().map_err(|_| RATE)?)),
            None => (text, None),
        };
        let bytes: ByteSize = bytes.trim().parse().map_err(|_| RATE)?;
        if bytes.0 < SLOWEST { Err("1KB a second at least") } else { Ok(Rate { bytes, hours }) }
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let two = |text: &str| (text.len() == 2).then(|| text.parse::<u16>().ok()).flatten();
    let (hour, minute) = (two(hour)?, two(minute)?);
    let whole = hour * 60 + minute;
    (minute < 60 && whole <= DAY).then_some(whole)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hours { from, until } = *self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hours {
            Some(hours) => write!(f, "{} {hours}", self.bytes),
            None => self.bytes.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(hour: u64, minute: u64) -> Duration {
        Duration::from_secs(3600 * hour + 60 * minute)
    }

    #[test]
    fn the_first_that_holds_is_the_limit() {
        let bandwidth = Bandwidth(vec!["2MB 08:00-18:00".parse().unwrap(), "20MB".parse().unwrap()]);
        assert_eq!(bandwidth.at(at(8, 0)), Some(2_000_000));
        assert_eq!([bandwidth.at(at(7, 59)), bandwidth.at(at(18, 0))], [Some(20_000_000); 2]);
        let nights = Bandwidth(vec!["1MiB 22:00-06:00".parse().unwrap()]);
        assert_eq!([nights.at(at(23, 0)), nights.at(at(5, 59))], [Some(1 << 20); 2]);
        assert_eq!([nights.at(at(6, 0)), nights.at(at(21, 59))], [None; 2]);
    }

    #[test]
    fn how_long_until_it_begins() {
        let nights: Hours = "22:00-06:00".parse().unwrap();
        assert_eq!(nights.begin_in(at(21, 0)), at(1, 0));
        assert_eq!(nights.begin_in(at(3, 0)), Duration::ZERO);
        let mornings: Hours = "06:30-07:00".parse().unwrap();
        assert_eq!(mornings.begin_in(at(7, 0)), at(23, 30));
        assert_eq!("18:00-24:00".parse::<Hours>().unwrap().to_string(), "18:00-00:00");
    }

    #[test]
    fn what_is_no_rate() {
        for text in
            ["", "20MB 22:00", "22:00-06:00", "20MB 22:00-22:00", "20MB 24:00-01:00", "1MB 25:00-26:00"]
        {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert!("999".parse::<Rate>().is_err() && "1MB 7:00-8:00".parse::<Rate>().is_err());
        assert!("1MB 07:60-08:00".parse::<Rate>().is_err());
    }

    proptest! {
        #[test]
        fn reads_what_it_prints(from in 0..1440u16, until in 0..1440u16, bytes in 1000u64.., always: bool) {
            prop_assume!(from != until);
            let hours = (!always).then_some(Hours { from, until });
            let rate = Rate { bytes: ByteSize(bytes), hours };
            prop_assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
        }

        #[test]
        fn never_panics(text in "[0-9:KMB -]{0,20}") {
            let _ = text.parse::<Rate>();
            let _ = text.parse::<Hours>();
        }

        #[test]
        fn begins_when_it_says(from in 0..1440u16, until in 0..1440u16, second in 0..86_400u64) {
            prop_assume!(from != until);
            let (hours, time) = (Hours { from, until }, Duration::from_secs(second));
            let begin = Duration::from_secs((second + hours.begin_in(time).as_secs()) % 86_400);
            prop_assert!(hours.contains(begin));
        }
    }
}
