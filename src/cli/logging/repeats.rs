//! What says the same again and again is held back, and counted.
//!
//! An endpoint that fails may fail every program that works in a directory, thousands of times a minute. The first few lines
//! say what there is to say; a log that is full of the rest hides the next trouble and fills a disk.
//!
//! [`Repeats`] is pure: time is an argument. [`HoldBack`] is the layer around it, with the thread that tells how many were held
//! back when their minute is over.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::base::{Clock, SystemClock};

/// Lines of one place about one directory that are shown in a window; what comes then is counted.
const SHOWN_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Windows at once. More directories than that are counted together, by place alone.
const WINDOWS_MAX: usize = 1024;
/// Of what is remembered of a line, at most this much each.
const TEXT_MAX_BYTES: usize = 256;
/// The lines that tell of others are never held back.
const TARGET: &str = "pailfs::log";

/// A place in the program, and what its lines are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key<P> {
    place: P,
    /// Empty where there are too many.
    about: String,
}

#[derive(Debug)]
struct Window<L> {
    begun: Instant,
    shown: u32,
    held: u64,
    like: L,
}

/// What was held back.
#[derive(Debug, PartialEq, Eq)]
struct Held<L> {
    about: String,
    count: u64,
    /// The first of them all, which was shown.
    like: L,
}

/// Which lines are shown. Pure.
#[derive(Debug)]
struct Repeats<P, L> {
    window: Duration,
    windows: HashMap<Key<P>, Window<L>>,
}

impl<P: Clone + Eq + Hash, L: Clone> Repeats<P, L> {
    fn new(window: Duration) -> Self {
        Self { window, windows: HashMap::new() }
    }

    /// Whether a line is shown, and what is to be told of others before it: the window that it follows may have ended.
    fn admit(
        &mut self,
        place: P,
        about: String,
        now: Instant,
        like: impl FnOnce() -> L,
    ) -> (bool, Option<Held<L>>) {
        let mut key = Key { place, about };
        let time = self.window;
        if !self.windows.contains_key(&key) && self.windows.len() >= WINDOWS_MAX {
            // What has nothing to tell is forgotten first.
            self.windows.retain(|_, window| window.held > 0 || !window.has_lasted(time, now));
            if self.windows.len() >= WINDOWS_MAX {
                key.about.clear();
            }
        }
        let told = match self.windows.get(&key) {
            Some(window) if window.has_lasted(time, now) => {
                self.windows.remove(&key).and_then(|w| w.told(&key.about))
            }
            _ => None,
        };
        let window =
            self.windows.entry(key).or_insert_with(|| Window { begun: now, shown: 0, held: 0, like: like() });
        let shown = window.shown < SHOWN_MAX;
        window.shown += u32::from(shown);
        window.held += u64::from(!shown);
        (shown, told)
    }

    /// What the windows have held back that are over.
    fn ended(&mut self, now: Instant) -> Vec<Held<L>> {
        let time = self.window;
        let over = self.windows.extract_if(|_, window| window.has_lasted(time, now));
        over.filter_map(|(key, window)| window.told(&key.about)).collect()
    }

    /// When there is the next to tell.
    fn next_end(&self) -> Option<Instant> {
        self.windows.values().filter(|window| window.held > 0).map(|window| window.begun + self.window).min()
    }

    /// Everything, now.
    fn take_all(&mut self) -> Vec<Held<L>> {
        self.windows.drain().filter_map(|(key, window)| window.told(&key.about)).collect()
    }
}

impl<L> Window<L> {
    fn has_lasted(&self, time: Duration, now: Instant) -> bool {
        self.begun + time <= now
    }

    fn told(self, about: &str) -> Option<Held<L>> {
        (self.held > 0).then(|| Held { about: about.to_owned(), count: self.held, like: self.like })
    }
}

/// What a line that is held back is like.
#[derive(Clone, Debug)]
struct Like {
    level: Level,
    message: String,
}

/// A layer that holds repeated lines back, of all that people are to see.
#[derive(Clone)]
pub struct HoldBack(Arc<Shared>);

struct Shared {
    clock: Box<dyn Clock>,
    /// Whether everything is shown.
    all: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    repeats: Repeats<Identifier, Like>,
    /// Whether the thread that tells runs.
    telling: bool,
    closed: bool,
}

impl HoldBack {
    pub fn new() -> Self {
        Self::within(WINDOW)
    }

    fn within(window: Duration) -> Self {
        let state = State { repeats: Repeats::new(window), telling: false, closed: false };
        Self(Arc::new(Shared {
            clock: Box::new(SystemClock),
            all: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// Whoever looks for a fault wants every line.
    pub fn show_all(&self, all: bool) {
        self.0.all.store(all, Ordering::Relaxed);
    }

    /// Tells what was held back until now.
    pub fn settle(&self) {
        let held = self.0.lock().repeats.take_all();
        tell(held);
    }

    /// The same, for the last time.
    pub fn close(&self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
        self.settle();
    }

    /// Whether a line is shown. A thread is there to tell of those that are not.
    fn admit(&self, event: &Event<'_>) -> bool {
        let mut said = Said::default();
        event.record(&mut said);
        let level = *event.metadata().level();
        let now = self.0.clock.now();
        let mut state = self.0.lock();
        let like = || Like { level, message: shortened(&said.message) };
        let about = said.about();
        let (shown, told) = state.repeats.admit(event.metadata().callsite(), about, now, like);
        if !shown && !std::mem::replace(&mut state.telling, true) {
            let shared = Arc::clone(&self.0);
            // Without a thread it is told at the end.
            let _ = std::thread::Builder::new()
                .name("log-repeats".to_owned())
                .spawn(move || shared.tell_in_time());
        } else if !shown {
            self.0.changed.notify_all();
        }
        drop(state);
        tell(told);
        shown
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of each window when it is over, until the log is closed.
    fn tell_in_time(&self) {
        let mut state = self.lock();
        while !state.closed {
            let now = self.clock.now();
            let held = state.repeats.ended(now);
            if !held.is_empty() {
                drop(state);
                tell(held);
                state = self.lock();
                continue;
            }
            state = match state.repeats.next_end() {
                Some(end) => {
                    let wait = end.saturating_duration_since(now);
                    self.changed
                        .wait_timeout(state, wait)
                        .map_or_else(|e| e.into_inner().0, |(state, _)| state)
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// No lock is held: what is told comes through the layer like any other line.
fn tell(held: impl IntoIterator<Item = Held<Like>>) {
    let seconds = WINDOW.as_secs();
    for Held { about, count, like: Like { level, message } } in held {
        let told = format!("{count} more like this were not logged in {seconds} s: {message}");
        match level {
            Level::ERROR => tracing::error!(target: TARGET, about, count, "{told}"),
            Level::WARN => tracing::warn!(target: TARGET, about, count, "{told}"),
            _ => tracing::info!(target: TARGET, about, count, "{told}"),
        }
    }
}

impl<S: Subscriber> Layer<S> for HoldBack {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let meta = event.metadata();
        let free = *meta.level() > Level::INFO || meta.target() == TARGET;
        free || self.0.all.load(Ordering::Relaxed) || self.admit(event)
    }
}

/// What a line says of where it belongs.
#[derive(Debug, Default)]
struct Said {
    message: String,
    op: String,
    errno: String,
    bucket: String,
    path: String,
    key: String,
}

impl Said {
    /// The operation, how it failed, and the directory that it was in.
    fn about(&self) -> String {
        let named = if self.path.is_empty() { &self.key } else { &self.path };
        let directory = named.rsplit_once('/').map_or("", |(directory, _)| directory);
        let place = match (self.bucket.is_empty(), named.is_empty()) {
            (true, true) => String::new(),
            (false, true) => self.bucket.clone(),
            // A path of the mount says which bucket.
            _ if !self.path.is_empty() => format!("{directory}/"),
            (true, false) => format!("{directory}/"),
            (false, false) => format!("s3://{}/{directory}", self.bucket),
        };
        let words = [&self.op, &self.errno, &place].map(String::as_str);
        shortened(&words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        let slot = match field.name() {
            "message" => &mut self.message,
            "op" => &mut self.op,
            "errno" => &mut self.errno,
            "bucket" => &mut self.bucket,
            "path" => &mut self.path,
            "key" => &mut self.key,
            _ => return,
        };
        value.clone_into(slot);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if matches!(field.name(), "message" | "path" | "key") {
            self.record_str(field, &format!("{value:?}"));
        }
    }
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repeats() -> Repeats<u8, ()> {
        Repeats::new(WINDOW)
    }

    impl Repeats<u8, ()> {
        fn say(&mut self, place: u8, about: &str, now: Instant) -> bool {
            self.admit(place, about.to_owned(), now, || ()).0
        }
    }

    #[test]
    fn of_a_line_that_repeats_five_are_shown_and_the_rest_is_counted() {
        let mut repeats = repeats();
        let begun = SystemClock.now();
        let shown = (0..12).filter(|_| repeats.say(1, "close EACCES /a/", begun)).count();
        assert_eq!(shown, 5);
        assert!(repeats.say(1, "close EACCES /b/", begun), "another directory has its own");
        assert!(repeats.say(2, "close EACCES /a/", begun), "and so has another place");
        assert_eq!(repeats.next_end(), Some(begun + WINDOW));
        assert_eq!(repeats.ended(begun + WINDOW - Duration::from_millis(1)), []);
        let held = Held { about: "close EACCES /a/".into(), count: 7, like: () };
        assert_eq!(repeats.ended(begun + WINDOW), [held]);
        assert!(repeats.windows.is_empty() && repeats.next_end().is_none());
        assert!(repeats.say(1, "close EACCES /a/", begun + WINDOW), "a new window has begun");
    }

    #[test]
    fn a_line_after_the_window_tells_of_those_before_it() {
        let mut repeats = repeats();
        let begun = SystemClock.now();
        for _ in 0..6 {
            repeats.say(1, "a", begun);
        }
        let (shown, told) = repeats.admit(1, "a".into(), begun + WINDOW, || ());
        assert!(shown);
        assert_eq!(told.map(|held| held.count), Some(1));
    }

    #[test]
    fn at_the_end_everything_is_told() {
        let mut repeats = repeats();
        for _ in 0..9 {
            repeats.say(1, "a", SystemClock.now());
        }
        assert_eq!(repeats.take_all().iter().map(|held| held.count).sum::<u64>(), 4);
        assert_eq!(repeats.take_all(), []);
    }

    #[test]
    fn a_line_is_about_its_operation_and_directory() {
        let said = |path: &str, key: &str, bucket: &str| {
            let (path, key, bucket) = (path.to_owned(), key.to_owned(), bucket.to_owned());
            Said { op: "close".into(), errno: "EIO".into(), path, key, bucket, message: "x".into() }.about()
        };
        assert_eq!(said("/d/e/file", "p/d/e/file", "b"), "close EIO /d/e/");
        assert_eq!(said("/file", "", ""), "close EIO /");
        assert_eq!(said("", "d/file", "b"), "close EIO s3://b/d");
        assert_eq!(said("", "", "b"), "close EIO b");
        assert_eq!(Said::default().about(), "");
        let long = "ä".repeat(1000);
        assert!(said(&format!("/{long}/x"), "", "").len() <= TEXT_MAX_BYTES);
    }

    #[test]
    fn the_rest_is_told_when_the_window_is_over_though_nothing_else_is_logged() {
        use tracing_subscriber::layer::SubscriberExt;
        use tracing_subscriber::util::SubscriberInitExt;
        #[derive(Clone, Default)]
        struct Shown(Arc<Mutex<Vec<String>>>);
        impl<S: Subscriber> Layer<S> for Shown {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                let mut said = Said::default();
                event.record(&mut said);
                self.0.lock().unwrap().push(said.message);
            }
        }
        let (shown, hold_back) = (Shown::default(), HoldBack::within(Duration::from_millis(300)));
        if tracing_subscriber::registry().with(hold_back.clone()).with(shown.clone()).try_init().is_err() {
            // The log of this process is another test's.
            return;
        }
        let say = || (0..8).for_each(|_| tracing::warn!(path = "/d/f", "it fails"));
        say();
        let count = |word: &str| shown.0.lock().unwrap().iter().filter(|line| line.contains(word)).count();
        assert_eq!(count("it fails"), 5);
        let end = SystemClock.now() + Duration::from_secs(20);
        while count("3 more like this were not logged") == 0 {
            assert!(SystemClock.now() < end, "{:?}", shown.0);
            std::thread::park_timeout(Duration::from_millis(5));
        }
        hold_back.show_all(true);
        say();
        assert_eq!(count("more like this"), 1);
        assert_eq!(shown.0.lock().unwrap().iter().filter(|line| *line == "it fails").count(), 13);
    }

    proptest! {
        /// Nothing is lost, nobody is shown more than his share, and memory is bounded.
        #[test]
        fn every_line_is_shown_or_counted(
            lines in proptest::collection::vec((0u8..3, 0u16..4000, 0u64..30), 0..3000),
        ) {
            let mut repeats = repeats();
            let mut now = SystemClock.now();
            let (mut shown, mut told) = (0u64, 0u64);
            let mut by_window: HashMap<(u8, u16), (Instant, u32)> = HashMap::new();
            for (place, about, seconds) in &lines {
                // Many lines at once, and now and then a pause.
                now += Duration::from_secs(seconds.saturating_sub(28) * 20);
                let (one, held) = repeats.admit(*place, about.to_string(), now, || ());
                shown += u64::from(one);
                told += held.map_or(0, |held| held.count);
                if one {
                    let (begun, count) = by_window.entry((*place, *about)).or_insert((now, 0));
                    if *begun + WINDOW <= now {
                        (*begun, *count) = (now, 0);
                    }
                    *count += 1;
                    // Beside its own window there is at most the one that many share.
                    prop_assert!(*count <= 2 * SHOWN_MAX);
                }
                prop_assert!(repeats.windows.len() <= WINDOWS_MAX + 3, "one more for each place");
            }
            told += repeats.ended(now).iter().map(|held| held.count).sum::<u64>();
            told += repeats.take_all().iter().map(|held| held.count).sum::<u64>();
            prop_assert_eq!(shown + told, lines.len() as u64);
        }
    }
}
