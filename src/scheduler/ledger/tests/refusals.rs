use super::*;

#[test]
fn a_refusal_with_numbers_needs_no_rest() {
    let mut book = Book::with(10);
    book.spend(3).grant(1).at(10).settle(false, 1).refuse(Some(told(0)), None);
    assert_eq!((book.available(), book.resting()), (0, None));
    assert_eq!(book.outlook([3599, 3600, 3610]), [0, 3, 10], "others spent the rest of it");
    assert_eq!(book.back_at(0), Some(3600));
    assert!(book.ledger.probe_at().is_some());
}

#[test]
fn a_refusal_without_a_limit_rests_all_the_same() {
    let only = |remaining| Told { limit: None, window: None, ..told(remaining) };
    for (told, reset) in [(only(0), None), (only(-3), None), (only(0), Some(0)), (told(0), Some(0))] {
        let told = Told { reset: reset.map(seconds), ..told };
        let mut book = Book::new();
        book.grant(1).settle(false, 1).refuse(Some(told), None);
        assert_eq!(book.available(), 0, "{told:?}");
        assert!(book.ledger.probe_at().is_some(), "{told:?}");
        book.at(A_MINUTE).hear(only(5));
        assert_eq!(book.available(), 5, "{told:?}");
    }
}

#[test]
fn what_ends_a_rest() {
    let book = |told: Option<Told>, retry_after: Option<u64>| {
        let mut book = Book::with(8);
        let early = book.sight();
        book.at(100).refuse(told, retry_after);
        (book, early)
    };
    // A refusal; when an answer to a question of then comes, and what it tells; whether that ends the rest.
    let silent = (None, None);
    let contradicted = (Some(told(8)), None);
    let by_word = (None, Some(600));
    let table = [
        (silent, 100, Some(8), true),
        (silent, 100, Some(0), false),
        (silent, 100, None, false),
        (silent, 159, None, false),
        (silent, 160, None, false),
        (silent, 160, Some(8), true),
        (silent, 160, Some(0), false),
        (contradicted, 159, Some(8), false),
        (contradicted, 160, Some(8), true),
        (contradicted, 160, None, false),
        (by_word, 101, Some(8), true),
        (by_word, 699, None, false),
        (by_word, 699, Some(0), false),
    ];
    for ((word, retry_after), second, remaining, ends) in table {
        let case = format!("{word:?} {retry_after:?}, {second}: {remaining:?}");
        let (mut book, early) = book(word, retry_after);
        assert_eq!(book.resting(), Some(retry_after.unwrap_or(A_MINUTE)), "{case}");
        assert_eq!(book.at(second).hear_of(remaining.map(told), early).available(), 0, "{case}: sent before");
        let sight = book.sight();
        book.hear_of(remaining.map(told), sight);
        assert_eq!(book.resting().is_none(), ends, "{case}");
        assert_eq!(book.available() > 0, ends, "{case}");
    }
}

#[test]
fn where_no_limit_is_known_any_answer_ends_a_rest() {
    let mut book = Book::new();
    book.refuse(None, None);
    for (second, rests) in [(59, true), (60, false)] {
        let sight = book.at(second).sight();
        assert_eq!(book.hear_of(None, sight).resting().is_some(), rests, "{second}");
    }
}

#[test]
fn how_long_a_rest_is() {
    let mut book = Book::with(8);
    book.refuse(None, Some(600));
    assert_eq!((book.back_at(0), book.outlook([599, 600])), (Some(600), [0, 8]), "by its word");
    book.at(600).refuse(None, None);
    assert_eq!(book.resting(), Some(1200), "again: longer");
    assert_eq!((book.back_at(0), book.outlook([2999, 3000])), (Some(3000), [0, 8]), "without any answer");
    let mut book = Book::with(8);
    book.refuse(None, Some(1_000_000_000));
    assert_eq!(book.resting(), Some(WINDOW), "by then all is back, whatever is said");
    let mut book = Book::new();
    book.refuse(None, Some(3 * 3600)).at(3 * 3600).refuse(None, None);
    assert_eq!(book.resting(), Some(3600), "what nobody named is not so long");
    let mut book = Book::with(8);
    book.spend(8).refuse(Some(told(0)), Some(60));
    assert_eq!((book.resting(), book.back_at(0)), (Some(60), Some(3600)), "whichever is later");
    let mut book = Book::with(8);
    for rest in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(book.refuse(None, Some(0)).resting(), Some(rest), "come back at once, again and again");
        book.second += rest;
    }
}

#[test]
fn many_refused_at_once_are_one_refusal() {
    let mut book = Book::with(8);
    book.grant(8).at(1);
    for _ in 0..8 {
        book.settle(false, 1).refuse(None, None);
    }
    assert_eq!(book.resting(), Some(A_MINUTE));
    book.at(31).refuse(None, Some(60));
    assert_eq!(book.resting(), Some(60), "a word counts from when it is said");
    book.at(32).refuse(None, Some(5));
    assert_eq!(book.resting(), Some(59), "and the longer one of two");
    book.at(33).refuse(None, None);
    assert_eq!(book.resting(), Some(58));
}

#[test]
fn a_yes_within_a_no_gives_nothing_back() {
    let mut book = Book::with(3);
    book.at(1).refuse(Some(told(9)), Some(60));
    assert_eq!(book.outlook([60, 61]), [0, 3]);
}

#[test]
fn a_spent_account_is_probed_ever_more_rarely() {
    let mut book = Book::with(1);
    assert_eq!(book.ledger.probe_at(), None);
    book.spend(1);
    let mut longest = FIRST_PROBE;
    for _ in 0..8 {
        let wait = book.ledger.probe_at().unwrap() - book.now();
        assert!(wait >= longest / 2 && wait <= longest, "{wait:?} of {longest:?}");
        longest = (longest * 2).min(LONGEST_PROBE);
        book.second += wait.as_secs() + 1;
        let now = book.now();
        book.ledger.probed(now);
        book.hear(told(0));
    }
    book.hear(told(1));
    assert_eq!(book.ledger.probe_at(), None);
    let wait = book.spend(1).ledger.probe_at().unwrap() - book.now();
    assert!(wait <= FIRST_PROBE, "the next time it begins anew: {wait:?}");
}
