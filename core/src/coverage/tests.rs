use smol_str::SmolStr;

use super::*;
use crate::doc::{FieldOp, Fields, Value};

fn message(second: i64, id: &str) -> Mark {
    Mark { second, id: Some(id.into()), from_me: false, participant: None }
}

fn anchor(second: i64, id: &str) -> Anchor {
    message(second, id).anchor().unwrap()
}

fn gap(seq: u64, from: i64, to: i64) -> Gap {
    Gap { seq, from, to }
}

/// Live from 100 to 200, then a gap up to 300, live again from 400.
fn with_a_hole() -> Coverage {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    assert!(c.suspect(gap(1, 200, 300), Some(&message(400, "d"))));
    c
}

fn ends(c: &Coverage) -> Vec<(i64, i64)> {
    c.stretches().iter().map(|s| (s.low.second, s.high.second)).collect()
}

fn stored(c: &Coverage) -> Fields {
    c.to_fields(7)
        .into_iter()
        .map(|(path, op)| match op {
            FieldOp::Set(value) => (SmolStr::from(path.as_str()), value),
            FieldOp::Remove | FieldOp::ServerTime => panic!("only values are written"),
        })
        .collect()
}

#[test]
fn a_live_stretch_reaches_to_now_and_nothing_is_written() {
    let mut c = Coverage::starting_at(&message(100, "a"), 3);
    assert!(c.is_live() && c.covers(101) && c.covers(i64::MAX) && !c.covers(100));
    assert!(!c.newer(&message(200, "b")));
    assert_eq!((c.applied_gap(), c.holes()), (3, Vec::new()));
    assert!(c.is_complete(Goal::Since(100)) && !c.is_complete(Goal::Since(99)));
}

#[test]
fn a_gap_leaves_a_hole_that_is_filled_from_the_message_after_it() {
    let c = with_a_hole();
    assert_eq!(ends(&c), [(100, 200), (400, 400)]);
    assert!(c.covers(150) && !c.covers(200) && !c.covers(300) && c.covers(401));
    let hole = Hole { after: Some(200), anchor: Some(anchor(400, "d")), exhausted: false };
    assert_eq!(c.holes(), [hole]);
    assert_eq!(c.next_anchor(Goal::Since(399)), Some(anchor(400, "d")));
    assert_eq!(c.next_anchor(Goal::Since(400)), None);
    assert!(!c.is_complete(Goal::Since(150)) && c.is_complete(Goal::Since(400)));
}

#[test]
fn a_gap_is_applied_once() {
    let mut c = with_a_hole();
    let before = c.clone();
    assert!(!c.suspect(gap(1, 450, 500), None));
    assert_eq!(c, before);
}

#[test]
fn gaps_that_overlap_wait_for_a_message_past_both() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.suspect(gap(1, 200, 300), None);
    c.suspect(gap(2, 210, 250), None);
    c.newer(&message(280, "b"));
    assert!(!c.is_live());
}

#[test]
fn a_message_in_the_first_second_of_a_gap_may_be_on_its_far_side() {
    let mut c = Coverage::starting_at(&message(300, "z"), 0);
    c.chunk(&message(100, "a"), &message(200, "b"), 2, PageEnd::Unstated);
    c.suspect(gap(1, 200, 250), None);
    c.page(&anchor(300, "z"), Some(&message(200, "b")), 1, PageEnd::MoreRemains);
    assert_eq!(ends(&c), [(100, 200), (200, 300)]);
    // and what lies before the lowest message may be missing too
    let mut c = Coverage::starting_at(&message(200, "b"), 0);
    c.suspect(gap(1, 200, 250), None);
    assert_eq!(c.bottom(), Bottom::Suspected(200));
}

#[test]
fn a_known_message_that_comes_again_later_opens_nothing() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.suspect(gap(1, 200, 300), Some(&message(150, "b")));
    assert!(!c.newer(&message(400, "b")));
    assert!(!c.is_live());
}

#[test]
fn a_gap_below_a_live_stretch_leaves_it_alone() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.suspect(gap(1, 20, 99), Some(&message(500, "x")));
    assert!(c.is_live() && c.covers(101));
    // but what lies below it may be missing
    assert_eq!(c.bottom(), Bottom::Suspected(20));
    assert_eq!(c.next_anchor(Goal::Since(50)), Some(anchor(100, "a")));
}

#[test]
fn an_earlier_gap_recorded_later_still_takes_its_time_away() {
    let mut c = Coverage::starting_at(&message(50, "a"), 0);
    c.suspect(gap(1, 149, 151), Some(&message(200, "b")));
    c.suspect(gap(2, 100, 300), Some(&message(200, "b")));
    assert_eq!(ends(&c), [(50, 100), (200, 200)]);
    assert!(!c.is_live() && !c.covers(120) && !c.covers(201));
}

#[test]
fn a_tail_hole_has_no_anchor_and_waits_for_the_next_message() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.suspect(gap(1, 200, 300), Some(&message(150, "b")));
    let tail = Hole { after: Some(200), anchor: None, exhausted: false };
    assert_eq!(c.holes(), [tail]);
    assert_eq!((c.next_anchor(Goal::Since(0)), c.remaining(Goal::Since(0))), (None, 0));
    assert!(!c.is_complete(Goal::Since(150)));
    assert!(c.newer(&message(301, "c")));
    assert!(c.is_live());
    assert_eq!(c.next_anchor(Goal::Since(0)), Some(anchor(301, "c")));
}

#[test]
fn a_message_from_inside_the_gap_is_an_anchor_but_opens_nothing() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.suspect(gap(1, 200, 300), Some(&message(250, "b")));
    assert!(!c.is_live() && !c.covers(260));
    assert_eq!(c.next_anchor(Goal::Since(0)), Some(anchor(250, "b")));
    // a later one takes its place
    c.newer(&message(260, "c"));
    assert_eq!(ends(&c), [(100, 200), (260, 260)]);
    c.newer(&message(310, "d"));
    assert!(c.is_live());
    assert_eq!(ends(&c), [(100, 200), (260, 260), (310, 310)]);
}

#[test]
fn a_page_that_contains_the_known_message_closes_the_hole() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.suspect(gap(1, 200, 300), Some(&message(199, "b")));
    c.newer(&message(400, "d"));
    assert!(c.page(&anchor(400, "d"), Some(&message(199, "b")), 3, PageEnd::MoreRemains));
    assert_eq!(c.holes(), []);
    assert_eq!((c.stretches()[0].low.second, c.stretches()[0].messages), (100, 4));
}

#[test]
fn a_page_closes_the_hole_when_it_passes_it_by_more_than_a_second() {
    for (second, closed) in [(198, true), (199, false), (200, false)] {
        let mut c = with_a_hole();
        c.page(&anchor(400, "d"), Some(&message(second, "x")), 9, PageEnd::MoreRemains);
        assert_eq!(c.holes().is_empty(), closed, "{second}");
    }
}

#[test]
fn a_page_that_ends_above_the_hole_moves_the_anchor_down() {
    let mut c = with_a_hole();
    c.asked(&anchor(400, "d"), 2);
    c.page(&anchor(400, "d"), Some(&message(350, "c")), 9, PageEnd::Unstated);
    assert_eq!(ends(&c), [(100, 200), (350, 400)]);
    assert_eq!((c.stretches()[1].tries, c.stretches()[1].messages), (0, 10));
    assert_eq!(c.next_anchor(Goal::Since(0)), Some(anchor(350, "c")));
}

#[test]
fn an_empty_page_reaches_the_bottom() {
    for end in [PageEnd::Unstated, PageEnd::EndOfHistory] {
        let mut c = Coverage::starting_at(&message(100, "a"), 0);
        assert!(c.page(&anchor(100, "a"), None, 0, end));
        assert_eq!(c.bottom(), Bottom::Reached);
        assert!(c.is_complete(Goal::Depth(50)) && c.is_complete(Goal::Since(0)));
        assert_eq!(c.next_anchor(Goal::Depth(50)), None);
    }
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    assert!(!c.page(&anchor(100, "a"), None, 0, PageEnd::MoreRemains));
    assert_eq!(c.bottom(), Bottom::Unknown);
}

#[test]
fn a_hole_below_which_the_phone_has_nothing_cannot_be_filled() {
    let mut c = with_a_hole();
    c.page(&anchor(400, "d"), Some(&message(350, "c")), 1, PageEnd::EndOfHistory);
    assert_eq!(c.bottom(), Bottom::Unknown);
    assert!(c.holes()[0].exhausted);
    assert_eq!(c.next_anchor(Goal::Since(0)), None);
    assert!(!c.is_complete(Goal::Since(0)));
    let mut c = with_a_hole();
    c.page(&anchor(400, "d"), None, 0, PageEnd::Unstated);
    assert!(c.holes()[0].exhausted);
}

#[test]
fn the_end_of_history_settles_what_a_tie_leaves_open() {
    // 199 does not pass 200 by more than a second, but nothing older exists.
    let mut c = with_a_hole();
    c.page(&anchor(400, "d"), Some(&message(199, "x")), 2, PageEnd::EndOfHistory);
    assert_eq!(c.holes(), []);
}

#[test]
fn something_older_than_the_bottom_means_it_was_not_the_bottom() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.page(&anchor(100, "a"), None, 0, PageEnd::EndOfHistory);
    c.chunk(&message(10, "x"), &message(20, "y"), 5, PageEnd::Unstated);
    assert_eq!(c.bottom(), Bottom::Unknown);
    assert_eq!(c.next_anchor(Goal::Since(50)), Some(anchor(100, "a")));
}

#[test]
fn two_tries_exhaust_an_anchor_until_forgiven() {
    let mut c = with_a_hole();
    let d = anchor(400, "d");
    assert!(c.asked(&d, 2) && c.next_anchor(Goal::Since(0)).is_some());
    assert!(c.asked(&d, 2) && c.next_anchor(Goal::Since(0)).is_none());
    assert_eq!(stored(&c)["open"], Value::Bool(false));
    assert!(c.forgive() && !c.forgive());
    assert_eq!(c.next_anchor(Goal::Since(0)), Some(d));
    assert_eq!(stored(&c)["open"], Value::Bool(true));
    assert!(!c.asked(&anchor(1, "unknown"), 2));
}

#[test]
fn a_late_answer_revives_an_exhausted_hole() {
    let mut c = with_a_hole();
    let d = anchor(400, "d");
    c.asked(&d, 1);
    c.page(&d, Some(&message(350, "c")), 9, PageEnd::MoreRemains);
    assert_eq!(c.next_anchor(Goal::Since(0)), Some(anchor(350, "c")));
}

#[test]
fn a_phone_that_answers_in_circles_is_not_asked_for_ever() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    let mut asked = 0;
    while let Some(at) = c.next_anchor(Goal::Depth(u32::MAX)) {
        asked += 1;
        c.asked(&at, 2);
        let other = if at.id == "a" { "b" } else { "a" };
        c.page(&at, Some(&message(100, other)), 1, PageEnd::MoreRemains);
    }
    assert_eq!(asked, MAX_LINGERING);
}

#[test]
fn a_full_second_takes_several_pages() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    for (at, oldest) in [("a", "z"), ("z", "m"), ("m", "q")] {
        c.asked(&anchor(100, at), 2);
        c.page(&anchor(100, at), Some(&message(100, oldest)), 5, PageEnd::MoreRemains);
    }
    assert_eq!(c.next_anchor(Goal::Depth(20)), Some(anchor(100, "q")));
    assert_eq!(c.remaining(Goal::Depth(20)), 4);
}

#[test]
fn a_second_that_two_stretches_share_is_not_bridged_by_part_of_it() {
    let mut c = Coverage::default();
    c.chunk(&message(50, "a"), &message(100, "b"), 5, PageEnd::Unstated);
    c.newer(&message(100, "f"));
    assert_eq!(ends(&c), [(50, 100), (100, 100)]);
    c.page(&anchor(100, "f"), Some(&message(100, "d")), 2, PageEnd::MoreRemains);
    assert!(!c.covers(100));
    assert_eq!(c.next_anchor(Goal::Since(0)), Some(anchor(100, "d")));
    c.page(&anchor(100, "d"), Some(&message(100, "b")), 2, PageEnd::MoreRemains);
    assert!(c.covers(100));
    assert_eq!(c.holes(), []);
}

#[test]
fn depth_fills_holes_then_goes_down_and_passes_what_cannot_be_filled() {
    let mut c = Coverage::default();
    c.chunk(&message(50, "a"), &message(200, "b"), 30, PageEnd::MoreRemains);
    c.newer(&message(400, "d"));
    assert_eq!(c.remaining(Goal::Depth(100)), 99);
    let d = c.next_anchor(Goal::Depth(100)).unwrap();
    assert_eq!(d, anchor(400, "d"));
    c.asked(&d, 1);
    assert_eq!(c.next_anchor(Goal::Depth(100)), Some(anchor(50, "a")));
    assert_eq!(c.remaining(Goal::Depth(100)), 69);
    c.forgive();
    c.page(&d, Some(&message(150, "c")), 50, PageEnd::MoreRemains);
    assert_eq!(c.next_anchor(Goal::Depth(100)), Some(anchor(50, "a")));
    assert!(!c.is_complete(Goal::Depth(52)) && c.is_complete(Goal::Depth(51)));
}

#[test]
fn chunks_join_what_they_overlap_and_stand_alone_otherwise() {
    let mut c = Coverage::starting_at(&message(500, "z"), 0);
    c.chunk(&message(10, "a"), &message(20, "b"), 3, PageEnd::Unstated);
    c.chunk(&message(30, "c"), &message(40, "d"), 4, PageEnd::Unstated);
    assert_eq!(ends(&c), [(10, 20), (30, 40), (500, 500)]);
    c.chunk(&message(15, "e"), &message(35, "f"), 9, PageEnd::Unstated);
    assert_eq!(ends(&c), [(10, 40), (500, 500)]);
    assert_eq!(c.stretches()[0].messages, 9);
    c.chunk(&message(5, "g"), &message(600, "h"), 99, PageEnd::EndOfHistory);
    assert_eq!(ends(&c), [(5, 600)]);
    assert!(c.is_live() && c.bottom() == Bottom::Reached);
    // repeated history changes nothing
    assert!(!c.chunk(&message(30, "c"), &message(40, "d"), 4, PageEnd::Unstated));
    assert!(!c.chunk(&message(5, "g"), &message(600, "h"), 99, PageEnd::EndOfHistory));
}

#[test]
fn a_page_for_an_unknown_anchor_is_kept() {
    let mut c = Coverage::starting_at(&message(500, "z"), 0);
    let late = anchor(300, "m");
    assert!(c.page(&late, Some(&message(200, "k")), 7, PageEnd::MoreRemains));
    assert_eq!(ends(&c), [(200, 300), (500, 500)]);
    assert!(!c.page(&late, Some(&message(200, "k")), 7, PageEnd::MoreRemains));
    assert!(!c.page(&anchor(400, "n"), None, 0, PageEnd::EndOfHistory));
}

#[test]
fn a_gap_after_a_chunk_takes_back_what_the_chunk_said_about_it() {
    let mut c = Coverage::starting_at(&message(100, "a"), 0);
    c.chunk(&message(50, "x"), &message(400, "y"), 40, PageEnd::Unstated);
    c.suspect(gap(1, 200, 300), None);
    assert_eq!(ends(&c), [(50, 200)]);
    assert!(!c.covers(250) && !c.is_live());
    // all 40 may lie above the cut
    assert_eq!(c.stretches()[0].messages, 1);
}

#[test]
fn a_stretch_that_reaches_past_the_gap_becomes_live_with_the_next_message() {
    let mut c = Coverage::default();
    c.suspect(gap(1, 0, 300), None);
    c.chunk(&message(50, "x"), &message(400, "y"), 40, PageEnd::Unstated);
    assert!(!c.is_live());
    c.newer(&message(390, "w"));
    assert!(c.is_live());
    assert_eq!(ends(&c), [(50, 400)]);
}

#[test]
fn equal_ids_of_different_group_members_do_not_meet() {
    let from =
        |second, who: &str| Mark { participant: Some(who.into()), ..message(second, "same") };
    let mut c = Coverage::starting_at(&from(100, "1@lid"), 0);
    c.suspect(gap(1, 150, 300), None);
    c.newer(&message(400, "d"));
    let mut forged = c.clone();
    forged.page(&anchor(400, "d"), Some(&from(350, "2@lid")), 9, PageEnd::MoreRemains);
    assert_eq!(forged.holes().len(), 1);
    c.page(&anchor(400, "d"), Some(&from(100, "1@s.whatsapp.net")), 9, PageEnd::MoreRemains);
    assert_eq!(c.holes(), []);
}

#[test]
fn the_oldest_stretches_are_forgotten_first() {
    let mut c = Coverage::default();
    for i in 1..=100 {
        let (low, high) = (message(i * 10, &format!("l{i}")), message(i * 10 + 5, "h"));
        c.chunk(&low, &Mark::bound(high.second), 2, PageEnd::EndOfHistory);
    }
    assert_eq!(c.stretches().len(), MAX_STRETCHES);
    assert_eq!(c.stretches()[0].low.second, 370);
    assert_eq!(c.bottom(), Bottom::Suspected(15));
    assert_eq!(Coverage::parse(&stored(&c)).0, c);
}

#[test]
fn what_is_written_is_read_back() {
    let mut waiting = with_a_hole();
    waiting.asked(&anchor(400, "d"), 2);
    waiting.suspect(gap(2, 500, 600), None);
    let mut reached = Coverage::starting_at(&message(9, "a"), 4);
    reached.page(&anchor(9, "a"), None, 0, PageEnd::EndOfHistory);
    for c in [Coverage::default(), with_a_hole(), waiting, reached] {
        assert_eq!(Coverage::parse(&stored(&c)), (c, 7));
    }
}

#[test]
fn damaged_documents_cover_nothing() {
    let good = stored(&with_a_hole());
    for name in good
        .keys()
        .filter(|n| !["beat", "open", "suspectedAfter", "waitingPast"].contains(&n.as_str()))
    {
        for damage in [None, Some(Value::Null), Some(Value::Int(-1)), Some("x".into())] {
            let mut fields = good.clone();
            match damage {
                None => fields.remove(name),
                Some(value) => fields.insert(name.clone(), value),
            };
            assert_eq!(Coverage::parse(&fields), (Coverage::default(), 7), "{name}");
        }
    }
    let mut swapped = good.clone();
    let mut stretches = good["stretches"].as_array().unwrap().to_vec();
    stretches.reverse();
    swapped.insert("stretches".into(), Value::Array(stretches));
    assert_eq!(Coverage::parse(&swapped).0, Coverage::default());
    assert_eq!(Coverage::parse(&Fields::new()), (Coverage::default(), 0));
}

#[test]
fn stretches_that_lie_within_others_are_no_coverage() {
    let mut live = Coverage::starting_at(&message(100, "a"), 0);
    live.chunk(&message(10, "x"), &message(20, "y"), 2, PageEnd::Unstated);
    let mut closed = live.clone();
    closed.suspect(gap(1, 150, 160), None);
    let second = |stretch: &Value, end: &str| {
        stretch.as_map().unwrap().at(&format!("{end}.second")).and_then(Value::as_int)
    };
    for (c, ends, sound) in [
        (&live, [(10, 20), (100, 100)], true),
        (&live, [(100, 101), (100, 100)], false),
        (&live, [(100, 101), (101, 101)], true),
        (&closed, [(10, 20), (21, 150)], true),
        (&closed, [(149, 150), (149, 150)], false),
        (&closed, [(148, 150), (149, 150)], false),
        (&closed, [(148, 149), (149, 150)], true),
        (&closed, [(30, 20), (100, 150)], false),
    ] {
        let mut fields = stored(c);
        let Some(Value::Array(stretches)) = fields.get_mut("stretches") else { panic!() };
        for (stretch, (low, high)) in stretches.iter_mut().zip(ends) {
            let Value::Map(stretch) = stretch else { panic!() };
            for (end, at) in [("low", low), ("high", high)] {
                let Some(Value::Map(mark)) = stretch.get_mut(end) else { panic!() };
                mark.insert("second".into(), Value::Int(at));
            }
        }
        assert!(stretches.iter().all(|s| second(s, "low").is_some()));
        let parsed = Coverage::parse(&fields).0;
        assert_eq!(parsed != Coverage::default(), sound, "{ends:?}");
    }
}

#[test]
fn senders_are_not_shown() {
    let mark = Mark { participant: Some("40712345678@s.whatsapp.net".into()), ..message(1, "a") };
    let shown = format!("{mark:?} {:?} {:?}", mark.anchor(), Coverage::starting_at(&mark, 0));
    assert!(!shown.contains("712345678"), "{shown}");
}

#[test]
fn a_block_that_meets_above_joins_all_that_lies_between() {
    // The phone has another time than we for a message that it sent itself.
    for (messages, kept) in [(9, 9), (2, 5)] {
        let mut c = Coverage::default();
        c.chunk(&message(100, "a"), &message(200, "b"), messages, PageEnd::Unstated);
        c.newer(&message(300, "m"));
        assert!(c.chunk(&message(50, "x"), &message(90, "m"), 5, PageEnd::Unstated));
        assert_eq!((ends(&c), c.is_live(), c.bottom()), (vec![(50, 300)], true, Bottom::Unknown));
        assert_eq!(c.stretches()[0].messages, kept, "how many they share is unknown");
    }
    // Complete up to where the one of them was that reached highest.
    let mut c = Coverage::starting_at(&message(450, "m"), 0);
    c.chunk(&message(100, "a"), &message(451, "q"), 9, PageEnd::Unstated);
    assert_eq!(ends(&c), [(100, 451), (450, 450)]);
    c.chunk(&message(50, "x"), &message(90, "m"), 5, PageEnd::Unstated);
    assert_eq!(ends(&c), [(50, 451)]);
    // Of two first messages in one second nobody knows which is older.
    let mut c = Coverage::default();
    c.chunk(&message(100, "a"), &message(200, "b"), 2, PageEnd::Unstated);
    c.newer(&message(300, "m"));
    c.chunk(&message(100, "x"), &message(101, "m"), 5, PageEnd::Unstated);
    assert_eq!((ends(&c), c.stretches()[0].messages), (vec![(100, 300)], 2));
}

#[test]
fn only_what_is_later_than_the_gap_opens_a_live_stretch() {
    for (second, opens) in [(300, false), (301, true)] {
        let mut c = Coverage::starting_at(&message(100, "a"), 0);
        c.suspect(gap(1, 200, 300), None);
        c.newer(&message(second, "c"));
        assert_eq!(c.is_live(), opens, "{second}");
    }
}

#[test]
fn a_page_without_a_message_that_can_be_named_is_not_an_empty_one() {
    for (oldest, messages) in [(None, 5), (Some(message(100, "a")), 0)] {
        let mut c = Coverage::starting_at(&message(100, "a"), 0);
        assert!(!c.page(&anchor(100, "a"), oldest.as_ref(), messages, PageEnd::Unstated));
        assert_eq!(c.bottom(), Bottom::Unknown);
    }
}

#[test]
fn a_try_that_was_not_made_does_not_count() {
    let mut c = with_a_hole();
    let d = anchor(400, "d");
    let before = c.clone();
    c.asked(&d, 1);
    assert_eq!(c.next_anchor(Goal::Since(0)), None);
    c.unasked(&d);
    assert_eq!(c, before);
    c.asked(&d, 2);
    assert!(c.forgive(), "one try of two is forgotten too");
    assert_eq!(c, before);
}

#[test]
fn blocks_join_when_they_overlap_by_more_than_a_second() {
    for (low, high, joined) in
        [(50, 101, false), (50, 102, true), (199, 300, false), (198, 300, true)]
    {
        let mut c = Coverage::default();
        c.chunk(&message(100, "a"), &message(200, "b"), 5, PageEnd::Unstated);
        c.chunk(&message(low, "x"), &message(high, "y"), 5, PageEnd::Unstated);
        assert_eq!(c.stretches().len() == 1, joined, "{low} {high}");
    }
}

#[test]
fn what_a_neighbour_may_have_counted_is_not_counted_again() {
    for (low, high, counted) in [(201, 300, 7), (200, 300, 0), (50, 99, 7), (50, 100, 0)] {
        let mut c = Coverage::default();
        c.chunk(&message(100, "a"), &message(200, "b"), 5, PageEnd::Unstated);
        c.chunk(&message(low, "x"), &message(high, "y"), 7, PageEnd::Unstated);
        let messages: u32 = c.stretches().iter().map(|s| s.messages).sum();
        assert_eq!(messages, 5 + counted, "{low} {high}");
    }
}

#[test]
fn history_inside_what_is_complete_changes_nothing() {
    let mut c = Coverage::default();
    c.chunk(&message(100, "a"), &message(200, "b"), 5, PageEnd::Unstated);
    for (low, high) in [(100, 101), (150, 151), (199, 200), (100, 100), (200, 200)] {
        assert!(!c.chunk(&message(low, "x"), &message(high, "y"), 2, PageEnd::Unstated));
    }
    // Which of two messages in one second is the older one is not known either.
    c.chunk(&message(100, "x"), &message(150, "y"), 2, PageEnd::Unstated);
    assert_eq!(c.stretches()[0].low, anchor(100, "a"));
}

#[test]
fn a_suspicion_ends_when_history_passes_it_by_more_than_a_second() {
    for (second, bottom) in
        [(19, Bottom::Suspected(20)), (18, Bottom::Unknown), (5, Bottom::Unknown)]
    {
        let mut c = Coverage::starting_at(&message(100, "a"), 0);
        c.suspect(gap(1, 20, 99), Some(&message(500, "x")));
        c.page(&anchor(100, "a"), Some(&message(second, "k")), 3, PageEnd::MoreRemains);
        assert_eq!(c.bottom(), bottom, "{second}");
    }
}

#[test]
fn a_message_that_a_page_can_meet_is_not_given_up_for_a_mere_time() {
    let mut c = Coverage::default();
    c.chunk(&message(100, "a"), &message(200, "b"), 5, PageEnd::Unstated);
    c.chunk(&message(150, "x"), &Mark::bound(200), 5, PageEnd::Unstated);
    assert_eq!(c.stretches()[0].high, message(200, "b"));
}
