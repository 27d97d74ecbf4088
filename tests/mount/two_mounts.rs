//! Two mounts write one key, as two hosts do: one wins, the other is told, and no byte of either is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Barrier;

use crate::harness::mount::{Mounted, fresh_place};
use crate::harness::{Place, Server, block_on};
use crate::semantics::status;

const ROUNDS: usize = 200;

/// What both do to the key in a round, in turn.
#[derive(Clone, Copy, Debug)]
enum How {
    Rewrite,
    Change,
    Append,
    New,
}

impl How {
    fn of(round: usize) -> Self {
        [Self::Rewrite, Self::Change, Self::Append, Self::New][round % 4]
    }

    fn key(self, round: usize) -> String {
        if matches!(self, Self::New) { format!("new-{round:03}") } else { "f".to_owned() }
    }

    /// Opens the key on one mount and writes to it, and nothing is saved yet.
    fn write(self, path: &PathBuf, words: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        match self {
            Self::Rewrite => options.write(true).truncate(true),
            Self::Change => options.write(true),
            Self::Append => options.append(true),
            Self::New => options.write(true).create(true),
        };
        let mut file = options.open(path)?;
        match self {
            Self::Change => file.write_all_at(words.as_bytes(), 4)?,
            _ => file.write_all(words.as_bytes())?,
        }
        Ok(file)
    }

    /// What one had written, `mine`, where all that was not written is what another, who won, has there.
    fn over(self, mine: &[u8], won: &[u8], words: &str) -> Vec<u8> {
        let at = match self {
            Self::Rewrite | Self::New => 0,
            Self::Change => 4,
            Self::Append => mine.len() - words.len(),
        };
        let mut bytes = won.to_vec();
        bytes.resize(mine.len(), 0);
        bytes[at..at + words.len()].copy_from_slice(words.as_bytes());
        bytes
    }

    /// What a writer has made of `old`.
    fn made(self, old: &[u8], words: &str) -> Vec<u8> {
        let words = words.as_bytes();
        match self {
            Self::Rewrite | Self::New => words.to_vec(),
            Self::Append => [old, words].concat(),
            Self::Change => {
                let mut bytes = old.to_vec();
                bytes.resize(bytes.len().max(4 + words.len()), 0);
                bytes[4..4 + words.len()].copy_from_slice(words);
                bytes
            }
        }
    }
}

/// What a writer says in a round; nobody else says it.
fn words(writer: usize, round: usize) -> String {
    format!("<{}{round:03}>", ["first", "second"][writer])
}

/// The conflict copies there are, taken away.
async fn take_copies(place: &Place, key: &str) -> Vec<Vec<u8>> {
    let mut copies = Vec::new();
    for key in place.keys().await.unwrap().iter().filter(|name| name.starts_with(&format!("{key}.conflict-")))
    {
        copies.push(place.get(key).await.unwrap().to_vec());
        place.delete(key).await.unwrap();
    }
    copies
}

/// One of two who save at once wins. The other hears `ESTALE`, and its bytes are in a conflict copy.
fn one_wins(server: Server) {
    let Some(place) = fresh_place(server, "two_mounts_write_one_key") else { return };
    let source = format!("s3://{}", place.bucket);
    let first = Mounted::mount(place.clone(), &source, &[]);
    let second = first.again(&[]);
    block_on(place.put("f", "the beginning")).unwrap();
    let mut f = b"the beginning".to_vec();
    let mut wins = [0; 2];
    for round in 0..ROUNDS {
        let how = How::of(round);
        let key = how.key(round);
        let both = Barrier::new(2);
        let save = |writer: usize, m: &Mounted| {
            // Whoever cannot write is not waited for.
            let file = how.write(&m.at(&key), &words(writer, round));
            both.wait();
            let file = file.expect("it can be written");
            let saved = file.sync_all().map_err(|error| error.raw_os_error());
            // It was told already, and has nothing more to lose.
            drop(file);
            saved
        };
        let answers = std::thread::scope(|scope| {
            let saving = [scope.spawn(|| save(0, &first)), scope.spawn(|| save(1, &second))];
            saving.map(|saving| saving.join().unwrap())
        });
        let context = format!("round {round}, {how:?}: {answers:?}");
        let stale = Err(Some(rustix::io::Errno::STALE.raw_os_error()));
        assert!(answers.contains(&Ok(())) && answers.contains(&stale), "{context}");
        let winner = usize::from(answers[1].is_ok());
        wins[winner] += 1;
        let old = if matches!(how, How::New) { Vec::new() } else { f.clone() };
        let won = how.made(&old, &words(winner, round));
        assert!(block_on(place.get(&key)).unwrap() == won, "{context}");
        // The one that lost is kept over the version that it was written to, or else over the one that won: either way
        // every byte that was written is in it.
        let lost = words(1 - winner, round);
        let mine = how.made(&old, &lost);
        let over_theirs = how.over(&mine, &won, &lost);
        let copies = block_on(take_copies(&place, &key));
        let shown: Vec<_> = copies.iter().map(|copy| String::from_utf8_lossy(copy)).collect();
        let kept = [mine, over_theirs];
        assert!(copies.len() == 1 && kept.contains(&copies[0]), "{context}: {shown:?}");
        if !matches!(how, How::New) {
            f = won;
        }
    }
    assert!(wins.iter().all(|wins| *wins > 0), "both are to win sometimes: {wins:?}");
    let keys = block_on(place.keys()).unwrap();
    assert_eq!(keys.len(), 1 + ROUNDS / 4, "the key, and the new ones: {keys:?}");
}

#[test]
fn one_of_two_mounts_wins_on_the_demo_server() {
    one_wins(Server::Demo);
}

#[test]
fn one_of_two_mounts_wins_on_seaweedfs() {
    one_wins(Server::SeaweedFs);
}

/// Of two who do not save at the same moment the later one is told, whatever the server makes of conditions; all that it
/// wrote is in a conflict copy.
fn the_later_is_told(first: &Mounted, second: &Mounted) {
    let place = &first.place;
    block_on(place.put("f", "the beginning")).unwrap();
    let mut f = b"the beginning".to_vec();
    for round in 0..20 {
        let how = How::of(round);
        let key = how.key(round);
        let mounts = if round % 8 < 4 { [first, second] } else { [second, first] };
        let [early, late] =
            [0, 1].map(|writer| how.write(&mounts[writer].at(&key), &words(writer, round)).unwrap());
        early.sync_all().unwrap();
        let told = late.sync_all().unwrap_err();
        assert_eq!(
            told.raw_os_error(),
            Some(rustix::io::Errno::STALE.raw_os_error()),
            "round {round}: {told}"
        );
        drop((early, late));
        let old = if matches!(how, How::New) { Vec::new() } else { f.clone() };
        let won = how.made(&old, &words(0, round));
        assert!(block_on(place.get(&key)).unwrap() == won, "round {round}, {how:?}");
        let lost = words(1, round);
        let mine = how.made(&old, &lost);
        let over_theirs = how.over(&mine, &won, &lost);
        let copies = block_on(take_copies(place, &key));
        assert!(copies.len() == 1 && [mine, over_theirs].contains(&copies[0]), "round {round}, {how:?}");
        if !matches!(how, How::New) {
            f = won;
        }
    }
}

/// moto looks at a condition, and puts the object after that, with nothing in between that would keep another request
/// out: of two at the same moment both can win there.
#[test]
fn the_later_of_two_mounts_is_told_on_moto() {
    let Some(place) = fresh_place(Server::Moto, "two_mounts_on_moto") else { return };
    let source = format!("s3://{}", place.bucket);
    let first = Mounted::mount(place, &source, &[]);
    the_later_is_told(&first, &first.again(&[]));
}

/// A server that takes conditions and does not look at them: `status` has a note of it.
#[test]
fn two_mounts_are_told_that_garage_ignores_conditions() {
    let Some(place) = fresh_place(Server::Garage, "two_mounts_on_garage") else { return };
    let source = format!("s3://{}", place.bucket);
    let first = Mounted::mount(place, &source, &[]);
    let second = first.again(&[]);
    the_later_is_told(&first, &second);
    for m in [&first, &second] {
        let notes = status(m)["notes"].to_string();
        assert!(notes.contains("does not honour every condition"), "{notes}");
        assert!(m.log_text().contains("does not honour every condition"));
    }
}
