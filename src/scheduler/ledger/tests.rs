mod refusals;
mod words;

use proptest::prelude::*;

use super::*;

const WINDOW: u64 = 3600;
const A_MINUTE: u64 = 60;

/// A ledger, and the second that it is.
struct Book {
    ledger: Ledger,
    start: Instant,
    second: u64,
}

/// What an answer tells of a limit of ten an hour.
fn told(remaining: i64) -> Told {
    Told {
        limit: Some(10),
        window: Some(Duration::from_secs(WINDOW)),
        remaining: Some(remaining),
        reset: None,
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Book {
    fn new() -> Book {
        let start = Instant::now();
        Book { ledger: Ledger::new(start), start, second: 0 }
    }

    /// One of ten an hour, so many of them left by a free answer.
    fn with(remaining: i64) -> Book {
        let mut book = Book::new();
        book.hear(told(remaining));
        book
    }

    fn now(&self) -> Instant {
        self.start + seconds(self.second)
    }

    fn at(&mut self, second: u64) -> &mut Book {
        self.second = second;
        self
    }

    fn grant(&mut self, pulls: u64) -> &mut Book {
        for _ in 0..pulls {
            assert!(self.ledger.available(self.now()) > 0);
            self.ledger.grant(self.now());
            self.ledger.send();
        }
        self
    }

    fn settle(&mut self, spent: bool, pulls: u64) -> &mut Book {
        for _ in 0..pulls {
            self.ledger.settle(true, spent, self.now());
        }
        self
    }

    /// Pulls that are granted and over at once, their answers without a word.
    fn spend(&mut self, pulls: u64) -> &mut Book {
        self.grant(pulls).settle(true, pulls)
    }

    /// A free question that is answered at once.
    fn hear(&mut self, told: Told) -> &mut Book {
        let sight = self.sight();
        self.hear_of(Some(told), sight)
    }

    fn hear_of(&mut self, told: Option<Told>, sight: Sight) -> &mut Book {
        self.ledger.hear(told.as_ref(), sight, self.now());
        self
    }

    /// What a free question sees that is sent now.
    fn sight(&self) -> Sight {
        self.ledger.sight(false, self.now())
    }

    /// What a pull sees that is sent now.
    fn own_sight(&self) -> Sight {
        self.ledger.sight(true, self.now())
    }

    fn refuse(&mut self, told: Option<Told>, retry_after: Option<u64>) -> &mut Book {
        self.ledger.refuse(told.as_ref(), retry_after.map(seconds), self.now());
        self
    }

    fn available(&self) -> u64 {
        self.ledger.available(self.now())
    }

    /// What is available at each of these seconds, if nothing happens.
    fn outlook<const N: usize>(&self, at: [u64; N]) -> [u64; N] {
        at.map(|second| self.ledger.available(self.start + seconds(second)))
    }

    /// Seconds of rest that are left.
    fn resting(&self) -> Option<u64> {
        self.ledger.resting(self.now()).map(|left| left.as_secs())
    }

    fn back_at(&self, beyond: u64) -> Option<u64> {
        self.ledger.back_at(beyond, self.now()).map(|at| (at - self.start).as_secs())
    }
}

#[test]
fn a_pull_comes_back_one_window_after_its_answer() {
    let mut book = Book::with(10);
    book.at(5).grant(1).at(25);
    assert_eq!(book.outlook([25, 3605, 100_000]), [9, 9, 9], "as long as it is under way");
    book.settle(true, 1);
    assert_eq!(book.outlook([25, 3624, 3625]), [9, 9, 10]);
    book.grant(1).at(30).settle(false, 1);
    assert_eq!(book.available(), 9, "one that was not counted is back at once");
}

#[test]
fn one_that_was_given_up_may_be_counted_later() {
    let mut book = Book::with(10);
    book.grant(1).at(20);
    let now = book.now();
    book.ledger.lose(now);
    assert_eq!(book.outlook([20, 3739, 3740]), [9, 9, 10]);
    assert_eq!(book.at(139).hear(told(10)).available(), 9, "it may still be on its way");
    assert_eq!(book.at(140).hear(told(10)).available(), 10);
    let mut book = Book::new();
    let now = book.grant(1).now();
    book.ledger.lose(now);
    book.at(10).hear(told(10));
    assert_eq!(book.outlook([10, 3719, 3720]), [9, 9, 10], "by the window that is known by now");
}

#[test]
fn what_is_owed_comes_back_part_by_part() {
    let mut book = Book::with(10);
    book.at(0).spend(1).at(10).spend(5).at(20).spend(4);
    assert_eq!(book.outlook([20, 3600, 3609, 3610, 3619, 3620]), [0, 1, 1, 6, 6, 10]);
    let table =
        [(0, Some(3600)), (1, Some(3610)), (5, Some(3610)), (6, Some(3620)), (9, Some(3620)), (10, None)];
    for (beyond, at) in table {
        assert_eq!(book.back_at(beyond), at, "more than {beyond}");
    }
    book.at(3610);
    assert_eq!(book.back_at(5), Some(3610), "there are more than that already");
}

#[test]
fn leases_that_are_out_do_not_come_back_by_themselves() {
    let mut book = Book::with(10);
    book.spend(9).grant(1);
    assert_eq!((book.back_at(0), book.back_at(8), book.back_at(9)), (Some(3600), Some(3600), None));
}

#[test]
fn answers_correct_both_ways() {
    // Two are spent at the beginning and two at 100; what is told at 200, and what is available then and later.
    let table = [
        // What others spent, they are held to have spent just now.
        (4, [4, 6, 8, 8, 10]),
        (0, [0, 2, 4, 4, 10]),
        (6, [6, 8, 10, 10, 10]),
        // Of what was not spent after all, it is the part that would have come back first.
        (7, [7, 8, 10, 10, 10]),
        (9, [9, 9, 10, 10, 10]),
        (10, [10, 10, 10, 10, 10]),
    ];
    for (remaining, available) in table {
        let mut book = Book::with(10);
        book.spend(2).at(100).spend(2).at(200).hear(told(remaining));
        assert_eq!(book.outlook([200, 3600, 3700, 3799, 3800]), available, "{remaining} left");
    }
}

#[test]
fn an_answer_may_not_have_seen_what_overlaps_it() {
    // Five are spent; leases out when it is sent, leases given before it comes, what it tells; what is then
    // held to be used.
    let table = [
        (0, 0, 5, 5),
        (0, 0, 8, 2),
        (0, 0, 2, 8),
        (2, 0, 5, 7),
        (2, 0, 3, 7),
        (2, 0, 8, 4),
        (2, 0, 2, 8),
        (0, 3, 5, 8),
        (0, 3, 8, 5),
        (1, 2, 6, 7),
        (1, 2, 10, 3),
    ];
    for (out, given, remaining, used) in table {
        let mut book = Book::with(10);
        book.spend(5).grant(out);
        let sight = book.sight();
        book.at(1).grant(given).hear_of(Some(told(remaining)), sight);
        assert_eq!(book.ledger.used(book.now()), used, "{out} out, {given} given, {remaining} left");
    }
}

#[test]
fn what_was_not_sent_yet_is_in_no_answer() {
    let mut book = Book::with(10);
    let now = book.now();
    book.ledger.grant(now);
    book.ledger.grant(now);
    assert_eq!(book.hear(told(7)).available(), 5, "others spent three, and two are to go");
    book.ledger.send();
    assert_eq!(book.hear(told(5)).available(), 4, "one of the five may be ours");
    book.ledger.take_back();
    assert_eq!(book.hear(told(4)).available(), 2);
}

#[test]
fn an_older_answer_may_take_but_not_give() {
    let mut book = Book::with(10);
    let older = book.spend(4).sight();
    book.at(1).hear(told(3));
    assert_eq!(book.at(2).hear_of(Some(told(6)), older).available(), 3);
    assert_eq!(book.hear_of(Some(told(1)), older).available(), 1);
}

#[test]
fn pulls_answered_out_of_order() {
    let mut book = Book::with(10);
    book.grant(2);
    let (first, second) = (book.own_sight(), book.own_sight());
    // The second was counted first, and its answer comes last.
    book.at(1).settle(true, 1).hear_of(Some(told(8)), first);
    assert_eq!(book.available(), 8);
    book.at(2).settle(true, 1).hear_of(Some(told(9)), second);
    assert_eq!(book.available(), 8, "it had not seen the first");
    book.at(3).hear(told(8));
    assert_eq!(book.outlook([3, 3600, 3601, 3602]), [8, 8, 9, 10]);
}

#[test]
fn a_free_answer_does_not_give_back_what_was_granted_meanwhile() {
    let mut book = Book::with(2);
    let sight = book.sight();
    book.at(1).grant(2).at(2).hear_of(Some(told(2)), sight);
    assert_eq!(book.available(), 0);
    book.at(3).settle(true, 2).at(4).hear_of(Some(told(2)), sight);
    assert_eq!(book.available(), 0, "though both are answered, it was sent before");
    book.at(5).hear(told(1));
    assert_eq!(book.available(), 1, "this one was not");
}

#[test]
fn the_forecast() {
    // Where ten an hour are spent, so many at each of these seconds: how long until nothing is left.
    let forecast = |pulls: &[(u64, u64)], second: u64| {
        let mut book = Book::with(10);
        for (at, count) in pulls {
            book.at(*at).spend(*count);
        }
        let now = book.at(second).now();
        book.ledger.exhaustion(now).map(|left| left.as_secs())
    };
    assert_eq!(forecast(&[], 600), None, "nothing is pulled");
    assert_eq!(forecast(&[(0, 10)], 600), Some(0), "all is gone");
    assert_eq!(forecast(&[(0, 4)], 600), Some(900), "four last for ten minutes, six for fifteen");
    let with_three = Some(3500 * 4 / 9);
    assert_eq!(forecast(&[(0, 3), (3499, 6)], 3500), with_three, "one is left, and three come back in time");
    assert_eq!(forecast(&[(1800, 2)], 3600), None, "what comes back suffices");
    assert_eq!(forecast(&[(0, 4)], 4000), None, "that was long ago");
    assert_eq!(Book::new().ledger.exhaustion(Instant::now()), None, "no limit, no end");
}

#[test]
fn the_burn_rate_is_that_of_an_hour_and_others_burn_too() {
    let mut book = Book::with(4);
    let per_hour = |book: &Book| (book.ledger.burn_rate(book.now()) * 3600.0).round() as u64;
    assert_eq!(per_hour(&book), 0, "nobody knows when the six were spent");
    book.at(600).spend(1).hear(told(2));
    assert_eq!(per_hour(&book), 12, "two in ten minutes");
    book.at(3599);
    assert_eq!(per_hour(&book), 2);
    book.at(7200);
    assert_eq!(per_hour(&book), 0);
}

#[test]
fn what_is_kept_is_owed_for_as_long_as_before() {
    let mut book = Book::with(10);
    book.spend(2).at(50).spend(3).at(100).grant(1).refuse(None, Some(30));
    let (owed, rest) = (book.ledger.owed(book.now()), book.ledger.resting(book.now()));
    let left: Vec<u64> = owed.iter().map(|(left, _)| left.as_secs()).collect();
    assert_eq!(left, [3500, 3500, 3550, 3550, 3550, 3720], "what is under way is as good as lost");
    let later = book.start + seconds(1000);
    let kept = Ledger::restore(book.ledger.quota(), &owed, rest, later);
    let at = |second: u64| kept.available(later + seconds(second));
    assert_eq!([0, 29, 30, 3499, 3500, 3550, 3719, 3720].map(at), [0, 0, 4, 4, 6, 9, 9, 10]);
    assert_eq!(kept.probe_at(), Some(later), "it may have recovered meanwhile");
    assert_eq!(kept.sight(false, later).open, 1, "what was under way may still arrive");
    let absurd = [(Duration::MAX, 4), (seconds(5), 3)];
    let kept = Ledger::restore(book.ledger.quota(), &absurd, Some(Duration::MAX), later);
    let at = |second: u64| kept.available(later + seconds(second));
    assert_eq!([5, 3599, 3600, 3720].map(at), [0, 0, 6, 10], "no note blocks it for longer");
}

proptest! {
    #[test]
    fn joining_what_is_owed_brings_nothing_forward(debts in proptest::collection::vec((0..500_u64, 0..9_u64), 0..40)) {
        let start = Instant::now();
        let mut apart = Ledger::new(start);
        for (due, pulls) in &debts {
            apart.owe(start + seconds(*due), *pulls);
        }
        let mut joined = apart.clone();
        joined.join_debts();
        prop_assert_eq!(joined.debts.len(), apart.debts.len().div_ceil(2));
        prop_assert!(joined.debts.iter().is_sorted_by_key(|debt| debt.due));
        let sum = |ledger: &Ledger| ledger.debts.iter().map(|debt| debt.pulls).sum::<u64>();
        prop_assert_eq!(sum(&joined), sum(&apart));
        for second in 0..500 {
            let at = start + seconds(second);
            prop_assert!(joined.used(at) >= apart.used(at), "at {}", second);
        }
    }

    #[test]
    fn however_much_is_owed_it_takes_little_room(pulls in 1..20_000_u64) {
        let mut book = Book::with(10);
        for second in 0..pulls {
            let now = book.start + seconds(second);
            book.ledger.owe(now + seconds(1_000_000), 1);
        }
        prop_assert!(book.ledger.debts.len() <= MOST_DEBTS);
        prop_assert_eq!(book.ledger.used(book.now()), pulls);
    }

    #[test]
    fn what_is_kept_is_kept_whole(
        spent in proptest::collection::vec(0..WINDOW, 0..=10),
        look in 0..2 * WINDOW,
    ) {
        let mut spent = spent;
        spent.sort_unstable();
        let mut book = Book::with(10);
        for second in spent {
            book.at(second).spend(1);
        }
        book.at(book.second.max(look));
        let now = book.now();
        let kept = Ledger::restore(book.ledger.quota(), &book.ledger.owed(now), book.ledger.resting(now), now);
        for second in (0..=2 * WINDOW).step_by(7) {
            let at = now + seconds(second);
            prop_assert_eq!(kept.available(at), book.ledger.available(at));
        }
    }
}
