//! Finds out how the keys of a large directory divide, by asking what comes after a few strings. Pure.
//!
//! A listing has come to a key, and more is to come. First: which is the leftmost character of that key that
//! changes in what comes? Then: which other characters are there in its place? Each that is there begins
//! a shard. Where that makes few shards, each is divided the same way. Whatever the answers are, the result
//! is a list of strings in ascending order: they decide how fast a listing is, never what it shows.

use std::collections::BTreeSet;

use crate::s3::ListPage;

/// Shards that are enough: the first is divided again when it shows to be large.
const SHARDS_WANTED: usize = 2;
pub const SHARDS_MAX: usize = 16;
/// Questions asked side by side about one piece, to find the character that changes: three leave a quarter.
const NARROWING: usize = 3;
/// Pages of a shard that are enough: each costs about one page that two shards show.
const SHARD_PAGES_WANTED: usize = 4;
/// Times that shards are divided again.
const LEVELS_MAX: u32 = 3;
/// Characters in a row that are tried where a piece is divided again.
const TRIES: u32 = 3;
/// Names seen before that are looked at.
const SEEN_MAX: usize = 64;
/// Characters of a name that are looked at.
const NAME_MAX: usize = 64;

/// A search for keys that divide what a listing has not come to yet.
#[derive(Debug)]
pub struct Split {
    prefix: String,
    /// Some of the names seen so far.
    seen: Vec<Vec<char>>,
    /// In order, and without gaps.
    pieces: Vec<Piece>,
    level: u32,
    /// Pages that were seen.
    pages: u32,
}

#[derive(Debug)]
struct Piece {
    /// It begins after this; `None` where the listing is.
    start: Option<String>,
    /// It ends with this.
    end: Option<String>,
    /// A name that is in it.
    name: Vec<char>,
    /// What is to be found out.
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// The character that changes is after `same` and not after `differs`.
    Narrow {
        same: usize,
        differs: usize,
    },
    /// It is this one, or one of a few after it; up to so many others are looked for.
    Fan {
        at: usize,
        tries: u32,
        width: usize,
        asked: Vec<char>,
    },
    Done,
}

impl Split {
    /// `reached` is the last key seen, on the last of so many `pages`, `seen` are some of the keys before, and `end` is
    /// the last string of interest.
    pub fn new<'a>(
        prefix: &str,
        reached: &str,
        seen: impl Iterator<Item = &'a str>,
        end: Option<String>,
        pages: u32,
    ) -> Self {
        let name = name_of(prefix, reached);
        let seen = seen.take(SEEN_MAX).map(|key| name_of(prefix, key)).collect();
        let step = Step::Narrow { same: 0, differs: name.len() };
        let piece = Piece { start: None, end, name, step };
        Self { prefix: prefix.to_owned(), seen, pieces: vec![piece], level: 0, pages }
    }

    /// Strings to be asked for: what is the first key after each? None when all is found out.
    pub fn probes(&mut self) -> Vec<String> {
        let mut probes = Vec::new();
        for piece in &mut self.pieces {
            match &mut piece.step {
                Step::Narrow { same, differs } => {
                    let places = spread(*same, *differs, NARROWING);
                    probes.extend(places.iter().map(|at| after_all_of(&self.prefix, &piece.name, *at)));
                }
                Step::Fan { at, width, asked, .. } => {
                    let from = piece.name[*at];
                    let alphabet = alphabet(self.seen.iter().chain([&piece.name]), *at);
                    let larger: Vec<char> = alphabet.iter().copied().filter(|c| *c > from).collect();
                    let apart = chars_apart(&self.seen, &piece.name, *at, self.pages);
                    let width = (*width).min(larger.len() / apart);
                    *asked = match apart {
                        1 => spread(0, larger.len(), width).iter().map(|i| larger[*i]).collect(),
                        _ => larger.iter().skip(apart - 1).step_by(apart).take(width).copied().collect(),
                    };
                    let base: String = piece.name[..*at].iter().collect();
                    probes.extend(asked.iter().map(|c| format!("{}{base}{c}", self.prefix)));
                }
                Step::Done => {}
            }
        }
        probes
    }

    /// Takes the answers, in the order of the questions.
    pub fn answers(&mut self, answers: Vec<Option<String>>) {
        let mut answers = answers.into_iter();
        let mut pieces = Vec::new();
        for mut piece in std::mem::take(&mut self.pieces) {
            let is_inside = |key: &String| piece.end.as_ref().is_none_or(|end| key <= end);
            match &mut piece.step {
                Step::Narrow { same, differs } => {
                    let places = spread(*same, *differs, NARROWING);
                    let (mut low, mut high) = (*same, None);
                    for at in places {
                        let answer = answers.next().flatten().filter(is_inside);
                        match answer {
                            Some(_) if high.is_none() => high = Some(at),
                            None if high.is_none() => low = at + 1,
                            _ => {}
                        }
                    }
                    piece.step = match high {
                        Some(at) if at == low => {
                            Step::Fan { at, tries: 1, width: SHARDS_MAX, asked: Vec::new() }
                        }
                        Some(at) => Step::Narrow { same: low, differs: at + 1 },
                        None if low < *differs => Step::Narrow { same: low, differs: *differs },
                        None => Step::Done,
                    };
                    pieces.push(piece);
                }
                Step::Fan { at, tries, width, asked } => {
                    let (at, tries, width) = (*at, *tries, *width);
                    let base: String = piece.name[..at].iter().collect();
                    let base = format!("{}{base}", self.prefix);
                    let found: BTreeSet<String> =
                        asked.iter().filter_map(|_| answers.next().flatten()).filter(is_inside).collect();
                    let mut cut = cut_at(piece, &self.prefix, &base, at, found);
                    if let [same] = &mut cut[..]
                        && tries > 1
                        && at + 1 < same.name.len()
                    {
                        same.step = Step::Fan { at: at + 1, tries: tries - 1, width, asked: Vec::new() };
                    }
                    pieces.append(&mut cut);
                }
                Step::Done => pieces.push(piece),
            }
        }
        self.pieces = pieces;
        if self.pieces.iter().all(|piece| matches!(piece.step, Step::Done)) {
            self.next_level();
        }
    }

    /// What was found: each begins a shard after it and ends the one before with it.
    pub fn points(&self) -> Vec<String> {
        let mut points: Vec<String> = self.pieces.iter().filter_map(|piece| piece.start.clone()).collect();
        let surplus = points.len().saturating_sub(SHARDS_MAX - 1);
        if surplus > 0 {
            let kept = spread(0, points.len(), SHARDS_MAX - 1);
            points = kept.into_iter().map(|i| points[i].clone()).collect();
        }
        points
    }

    fn next_level(&mut self) {
        self.level += 1;
        if self.pieces.len() == 1 || self.pieces.len() >= SHARDS_WANTED || self.level >= LEVELS_MAX {
            return;
        }
        let width = SHARDS_MAX.div_ceil(self.pieces.len());
        for piece in &mut self.pieces {
            let known = piece.start.as_ref().or(piece.end.as_ref());
            let same = known.map_or(0, |known| name_of(&self.prefix, known).len());
            if same < piece.name.len() {
                piece.step = Step::Fan { at: same, tries: TRIES, width, asked: Vec::new() };
            }
        }
    }
}

/// Cuts a piece where keys with another character begin.
fn cut_at(piece: Piece, prefix: &str, base: &str, at: usize, found: BTreeSet<String>) -> Vec<Piece> {
    let mut cuts: Vec<(String, String)> = Vec::new();
    for key in found {
        let Some(other) = key.strip_prefix(base).and_then(|rest| rest.chars().next()) else { continue };
        let start = format!("{base}{other}");
        let is_inside = piece.end.as_ref().is_none_or(|end| start < *end);
        if other != '/' && is_inside && cuts.last().is_none_or(|(last, _)| *last < start) {
            cuts.push((start, key));
        }
    }
    let end = piece.end.clone();
    let mut pieces = vec![Piece { step: Step::Done, ..piece }];
    for (start, key) in cuts {
        if let Some(last) = pieces.last_mut() {
            last.end = Some(start.clone());
        }
        let name = name_of(prefix, &key);
        if name.len() > at {
            pieces.push(Piece { start: Some(start), end: end.clone(), name, step: Step::Done });
        }
    }
    pieces
}

fn name_of(prefix: &str, key: &str) -> Vec<char> {
    let rest = key.strip_prefix(prefix).unwrap_or_default();
    rest.chars().take_while(|c| *c != '/').take(NAME_MAX).collect()
}

/// A string after every key that has the same characters up to, and with, this one.
fn after_all_of(prefix: &str, name: &[char], at: usize) -> String {
    let base: String = name[..at].iter().collect();
    // Some numbers are no characters; after the last character there is nothing to look for.
    let next = (name[at] as u32 + 1..=char::MAX as u32).find_map(char::from_u32).filter(|c| *c != '/');
    format!("{prefix}{base}{}", next.unwrap_or('0'))
}

/// Up to `count` numbers of `from..to`, spread evenly, the last among them.
fn spread(from: usize, to: usize, count: usize) -> Vec<usize> {
    let len = to.saturating_sub(from);
    if len <= count {
        return (from..to).collect();
    }
    (1..=count).map(|i| from + i * len / count - 1).collect()
}

/// How many characters of this place make a shard of some pages, as far as the names seen tell: those that they have
/// there are all that came so far.
fn chars_apart(seen: &[Vec<char>], name: &[char], at: usize, pages: u32) -> usize {
    let alike = seen.iter().filter(|other| other.get(..at) == name.get(..at));
    let there: BTreeSet<char> = alike.filter_map(|other| other.get(at).copied()).collect();
    if there.len() < 2 { 1 } else { (SHARD_PAGES_WANTED * there.len()).div_ceil(pages.max(1) as usize) }
}

/// Characters that names like these may have in a place: they are of the kind that is there, and right after it.
fn alphabet<'a>(names: impl Iterator<Item = &'a Vec<char>>, at: usize) -> Vec<char> {
    let there = names.flat_map(|name| name.iter().skip(at).take(3));
    let there: BTreeSet<char> = there.copied().filter(char::is_ascii_alphanumeric).collect();
    let all = |kind: fn(&char) -> bool| there.iter().all(kind);
    let digits = '0'..='9';
    if all(char::is_ascii_digit) {
        digits.collect()
    } else if all(|c| c.is_ascii_digit() || ('a'..='f').contains(c)) {
        digits.chain('a'..='f').collect()
    } else if all(|c| c.is_ascii_digit() || ('A'..='F').contains(c)) {
        digits.chain('A'..='F').collect()
    } else if all(char::is_ascii_lowercase) {
        ('a'..='z').collect()
    } else {
        digits.chain('A'..='Z').chain('a'..='z').collect()
    }
}

/// Divides a page into what is up to `end` and what is beyond.
pub fn cut(mut page: ListPage, end: &str) -> (ListPage, ListPage) {
    let objects = page.objects.partition_point(|object| object.key.as_str() <= end);
    let prefixes = page.common_prefixes.partition_point(|prefix| prefix.as_str() <= end);
    let beyond = ListPage {
        objects: page.objects.split_off(objects),
        common_prefixes: page.common_prefixes.split_off(prefixes),
        next: page.next.take(),
    };
    (page, beyond)
}

/// Compares a listing that went on beyond a shard's end with a page of the next shard: both have to say the same.
/// Returns what that page has not told of yet; `None` where they differ.
pub fn agree(mut beyond: ListPage, page: &ListPage) -> Option<ListPage> {
    let keys = |page: &ListPage| -> Vec<String> {
        let objects = page.objects.iter().map(|object| object.key.clone());
        let mut keys: Vec<String> = objects.chain(page.common_prefixes.iter().cloned()).collect();
        keys.sort();
        keys
    };
    let (a, b) = (keys(&beyond), keys(page));
    let common = a.len().min(b.len());
    // Where one of them ends the other has to end too, unless more of it is to come.
    let a_is_all = a.len() <= common || page.next.is_some();
    let b_is_all = b.len() <= common || beyond.next.is_some();
    if a[..common] != b[..common] || !a_is_all || !b_is_all {
        return None;
    }
    if let Some(last) = common.checked_sub(1) {
        beyond = cut(beyond, &a[last]).1;
    }
    Some(beyond)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Divides as a listing of these keys would that has come to the `reached`-th; returns the points, and how many
    /// questions and rounds it took.
    fn divide(keys: &BTreeSet<String>, prefix: &str, reached: usize) -> (Vec<String>, usize, usize) {
        let all: Vec<&String> = keys.iter().collect();
        let sample = all[..reached].iter().step_by(reached / 64 + 1).map(|key| key.as_str());
        let mut split = Split::new(prefix, all[reached], sample, None, (reached / 1_000) as u32);
        let (mut asked, mut rounds) = (0, 0);
        loop {
            let probes = split.probes();
            if probes.is_empty() {
                return (split.points(), asked, rounds);
            }
            asked += probes.len();
            rounds += 1;
            assert!(rounds < 40, "it never ends");
            let next = |after: &String| {
                keys.range::<String, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded)).next()
            };
            split.answers(probes.iter().map(|after| next(after).cloned()).collect());
        }
    }

    /// Keys of the largest shard, in percent of what was to come.
    fn largest(keys: &BTreeSet<String>, reached: usize, points: &[String]) -> usize {
        let rest: Vec<&String> = keys.iter().skip(reached + 1).collect();
        let mut sizes = vec![0; points.len() + 1];
        for key in &rest {
            sizes[points.partition_point(|point| point < *key)] += 1;
        }
        sizes.iter().max().unwrap() * 100 / rest.len()
    }

    #[test]
    fn numbers_hashes_and_dates_divide_well() {
        let numbers: BTreeSet<String> = (0..100_000).map(|i| format!("d/file-{i:06}")).collect();
        let hashes: BTreeSet<String> =
            (0..50_000u64).map(|i| format!("d/{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        let dates: BTreeSet<String> = (0..3)
            .flat_map(|y| (1..=12).flat_map(move |m| (1..=28).map(move |d| (y, m, d))))
            .flat_map(|(y, m, d)| (0..50).map(move |i| format!("d/{}-{m:02}-{d:02}T{i:02}.log", 2023 + y)))
            .collect();
        let words: BTreeSet<String> = (0..26 * 26)
            .flat_map(|i| {
                let (a, b) = ((b'a' + (i / 26) as u8) as char, (b'a' + (i % 26) as u8) as char);
                (0..30).map(move |n| format!("d/{a}{b}{n}.txt"))
            })
            .collect();
        for (what, keys, bound) in
            [("numbers", numbers, 15), ("hashes", hashes, 16), ("dates", dates, 45), ("words", words, 30)]
        {
            let reached = 10_000.min(keys.len() / 5);
            let (points, asked, rounds) = divide(&keys, "d/", reached);
            let largest = largest(&keys, reached, &points);
            println!("{what}: {} points, {asked} questions in {rounds} rounds, {largest} %", points.len());
            assert!(largest <= bound, "{what}: {largest} % in one shard of {points:?}");
            assert!(asked <= 60 && rounds <= 8, "{what}: {asked} questions in {rounds} rounds");
        }
    }

    proptest! {
        #[test]
        fn points_are_in_order_and_after_what_was_reached(
            keys in proptest::collection::btree_set("[!-0a-c\u{e9}\u{10ffff}/]{1,5}", 2..60),
            reached in 0usize..59,
        ) {
            let reached = reached % keys.len();
            let (points, ..) = divide(&keys, "", reached);
            prop_assert!(points.is_sorted_by(|a, b| a < b), "{:?}", points);
            prop_assert!(points.len() < SHARDS_MAX);
            let key = keys.iter().nth(reached).unwrap();
            for point in &points {
                prop_assert!(point > key && !point.contains('/'), "{:?} {:?}", point, key);
            }
        }
    }
}
