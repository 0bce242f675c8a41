use super::*;

#[test]
fn one_at_a_time_until_an_answer_tells() {
    let mut book = Book::new();
    assert_eq!((book.ledger.quota(), book.available()), (Quota::Unknown, 1));
    assert_eq!(book.grant(1).available(), 0);
    assert_eq!((book.back_at(0), book.ledger.probe_at()), (None, None));
    assert_eq!(book.settle(false, 1).available(), 1, "it told nothing: the next one may");
    let sight = book.grant(1).own_sight();
    book.settle(false, 1).hear_of(None, sight);
    assert_eq!(book.available(), 1, "nor did this");
    book.ledger.set_unlimited();
    assert_eq!((book.ledger.quota(), book.available()), (Quota::Unlimited, u64::MAX));
    book.grant(3);
    let sight = book.own_sight();
    book.at(1).settle(true, 1).hear_of(Some(told(6)), sight);
    assert_eq!(book.available(), 4, "what it may have missed comes on top of what it counted");
    let sight = book.settle(true, 2).sight();
    book.hear_of(None, sight);
    book.ledger.set_unlimited();
    assert_eq!(book.available(), 4, "silence is no news once there is a limit");
}

#[test]
fn the_first_answer_may_have_missed_what_is_under_way() {
    let mut book = Book::new();
    let sight = book.grant(1).sight();
    book.at(1).hear_of(Some(told(7)), sight);
    assert_eq!(book.available(), 6, "the pull may not be among the three");
    let sight = book.own_sight();
    book.at(2).settle(true, 1).hear_of(Some(told(7)), sight);
    assert_eq!(book.available(), 7, "it was");
}

#[test]
fn limits_and_windows_change() {
    let with = |limit: u64, window: u64, remaining: i64| Told {
        limit: Some(limit),
        window: Some(seconds(window)),
        ..told(remaining)
    };
    let mut book = Book::with(10);
    book.spend(4);
    assert_eq!(book.hear(with(200, WINDOW, 196)).available(), 196);
    assert_eq!(book.hear(with(4, WINDOW, 0)).available(), 0);
    assert_eq!(book.hear(with(3, WINDOW, -1)).available(), 0);
    assert_eq!(book.hear(with(10, WINDOW, 6)).available(), 6);
    book.at(10).hear(with(10, 60, 6)).spend(1);
    assert_eq!(book.outlook([69, 70, 3599, 3600]), [5, 6, 6, 10], "what was spent before keeps its time");
    book.at(20).hear(with(10, 2 * WINDOW, 5)).spend(1);
    assert_eq!(book.outlook([70, 3600, 7219, 7220]), [5, 9, 9, 10]);
}

#[test]
fn a_reset_brings_forward_what_it_is_about() {
    let reset = |remaining, reset| Told { reset: Some(seconds(reset)), ..told(remaining) };
    let mut book = Book::with(10);
    book.spend(10).at(100).hear(reset(0, 50));
    assert_eq!(book.outlook([149, 150]), [0, 10]);
    assert_eq!(book.hear(reset(0, 5000)).outlook([149, 150]), [0, 10], "it puts nothing off");

    let mut book = Book::with(10);
    book.spend(5);
    let sight = book.sight();
    book.at(100).spend(5).hear_of(Some(reset(5, 10)), sight);
    assert_eq!(book.outlook([110, 3599]), [0, 0], "five may have been pulled after the reset");

    let mut book = Book::with(10);
    book.spend(10).hear(reset(0, 0));
    assert_eq!(book.outlook([0, 3599, 3600]), [0, 0, 10], "whole again now, and nothing left: one is wrong");
}

#[test]
fn absurd_words_change_nothing_for_the_worse() {
    let word = |limit, window: Option<u64>, remaining, reset: Option<u64>| Told {
        limit,
        window: window.map(seconds),
        remaining,
        reset: reset.map(seconds),
    };
    const HUGE: u64 = 999_999_999_999_999;
    let table = [
        word(Some(10), None, None, None),
        word(Some(HUGE), None, None, None),
        word(Some(HUGE), Some(1), None, None),
        word(Some(10), Some(1), None, None),
        word(Some(1), None, None, None),
        word(Some(10), None, Some(4), None),
        word(Some(10), None, Some(-10), None),
        word(Some(10), None, Some(0), Some(0)),
        word(Some(10), Some(WINDOW), Some(0), Some(31 * 24 * 3600)),
        word(None, None, Some(4), None),
        word(None, None, Some(0), None),
        word(None, None, Some(-1_000_000_000), None),
        word(None, Some(1), Some(-7), Some(0)),
        word(None, Some(WINDOW), None, None),
        word(None, None, None, Some(0)),
        word(None, None, None, Some(1)),
        word(None, None, None, None),
    ];
    for told in table {
        let mut good = Book::with(10);
        good.spend(4).at(10).spend(2);
        let mut book = Book { ledger: good.ledger.clone(), ..good };
        book.at(20).hear(told);
        for second in [20, 21, 100, 3599, 3600, 3609] {
            let (now, before) = (book.outlook([second]), good.outlook([second]));
            assert!(now <= before, "{told:?}: {now:?} in place of {before:?} at {second}");
        }
        assert!(book.outlook([20 + WINDOW])[0] > 0, "{told:?} blocks it for ever");
        book.at(30).hear(self::told(4));
        assert_eq!(book.available(), 4, "{told:?}: a good answer sets it right");
    }
}

#[test]
fn a_remainder_alone_is_a_limit_of_its_own() {
    let only = |remaining| Told { limit: None, window: None, remaining: Some(remaining), reset: None };
    let mut book = Book::new();
    book.spend(1).hear(only(7));
    assert_eq!(book.ledger.quota(), Quota::Limited { limit: 8, window: PRESUMED_WINDOW });
    assert_eq!(book.available(), 7);
    assert_eq!(book.hear(only(3)).available(), 3);
    assert_eq!(book.hear(only(1_000_000_000)).available(), 8, "no more than was ever known of");
    assert_eq!(book.hear(only(-2)).available(), 0);
    let mut book = Book::new();
    book.hear(only(0));
    assert_eq!(book.ledger.quota(), Quota::Unknown, "so some write `unlimited`");
    let mut book = Book::new();
    book.hear(Told { limit: Some(10), window: None, remaining: None, reset: None }).spend(10);
    assert_eq!((book.available(), book.back_at(0)), (0, Some(6 * 3600)));
}
