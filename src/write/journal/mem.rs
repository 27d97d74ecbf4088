//! The disk of the tests: it tells what was written from what was synced, fails at a chosen call, and goes down.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::log::{LogDir, LogFile};

/// What happens at a call, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Fault {
    #[default]
    None,
    /// This one fails with nothing done, or as much as half of a write.
    Fails(usize),
    /// This one is done and fails all the same.
    Lies(usize),
    /// This one is done half, and nothing is done after it: the process is gone.
    Dies(usize),
}

#[derive(Clone, Default)]
pub(super) struct MemDir(Arc<Mutex<State>>, Arc<Mutex<Option<Meanwhile>>>);

type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    /// Names as they were after every change since the last sync, which is the first of them.
    history: Vec<BTreeMap<String, usize>>,
    calls: usize,
    fault: Fault,
}

#[derive(Clone, Default)]
struct Content {
    written: Vec<u8>,
    synced: Vec<u8>,
    /// A sync failed: the kernel counts the pages clean, and no later sync writes them.
    abandoned: bool,
}

/// What a call is to do.
#[derive(PartialEq)]
enum Turn {
    Do,
    Fail,
    Lie,
    Nothing,
}

impl MemDir {
    pub(super) fn set(&self, fault: Fault) {
        let mut state = self.state();
        state.fault = fault;
        state.calls = 0;
    }

    /// Happens while the next file is being synced.
    pub(super) fn meanwhile(&self, happens: impl FnOnce() + Send + 'static) {
        *self.1.lock().unwrap() = Some(Box::new(happens));
    }

    pub(super) fn calls(&self) -> usize {
        self.state().calls
    }

    /// As the next process finds it.
    pub(super) fn after_kill(&self) -> Self {
        let mut state = self.state().clone();
        state.fault = Fault::None;
        Self(Arc::new(Mutex::new(state)), Arc::default())
    }

    /// Directory states that a power loss may leave.
    pub(super) fn name_states(&self) -> usize {
        self.state().history.len().max(1)
    }

    /// The most bytes of one file that a power loss may take.
    pub(super) fn unsynced(&self) -> usize {
        let unsynced = |file: &Content| file.written.len().saturating_sub(file.synced.len());
        self.state().files.iter().map(unsynced).max().unwrap_or(0)
    }

    /// As it is found after a power loss that kept so many changes of names, and so many bytes that were not synced.
    pub(super) fn after_power_loss(&self, names: usize, kept: usize) -> Self {
        let mut state = self.state().clone();
        state.fault = Fault::None;
        state.names = state.history.get(names).cloned().unwrap_or_default();
        state.history = vec![state.names.clone()];
        for file in &mut state.files {
            let mut left = file.synced.clone();
            if file.written.starts_with(&left) {
                let end = file.written.len().min(left.len() + kept);
                left.extend_from_slice(&file.written[left.len()..end]);
            }
            *file = Content { written: left.clone(), synced: left, abandoned: false };
        }
        Self(Arc::new(Mutex::new(state)), Arc::default())
    }

    pub(super) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let index = state.names[name];
        edit(&mut state.files[index].written);
    }

    pub(super) fn bytes(&self) -> usize {
        let state = self.state();
        state.names.values().map(|index| state.files[*index].written.len()).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn turn(&mut self) -> Turn {
        self.calls += 1;
        match self.fault {
            Fault::Fails(at) if at == self.calls => Turn::Fail,
            Fault::Lies(at) if at == self.calls => Turn::Lie,
            Fault::Dies(at) if at == self.calls => Turn::Fail,
            Fault::Dies(at) if at < self.calls => Turn::Nothing,
            _ => Turn::Do,
        }
    }

    fn change_names(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) -> io::Result<()> {
        let turn = self.turn();
        if matches!(turn, Turn::Do | Turn::Lie) {
            if self.history.is_empty() {
                self.history.push(self.names.clone());
            }
            change(&mut self.names);
            self.history.push(self.names.clone());
        }
        answer(&turn)
    }
}

fn answer(turn: &Turn) -> io::Result<()> {
    if *turn == Turn::Do { Ok(()) } else { Err(ErrorKind::StorageFull.into()) }
}

impl LogDir for MemDir {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state();
        let index = state.files.len();
        state.files.push(Content::default());
        state.change_names(|names| {
            names.insert(name.to_owned(), index);
        })?;
        Ok(Arc::new(MemFile { dir: self.clone(), index }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let index = *self.state().names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Arc::new(MemFile { dir: self.clone(), index }))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let index = *state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(state.files[index].written.clone())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state().change_names(|names| {
            if let Some(index) = names.remove(from) {
                names.insert(to.to_owned(), index);
            }
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().change_names(|names| {
            names.remove(name);
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        let turn = state.turn();
        if matches!(turn, Turn::Do | Turn::Lie) {
            state.history = vec![state.names.clone()];
        }
        answer(&turn)
    }
}

struct MemFile {
    dir: MemDir,
    index: usize,
}

impl LogFile for MemFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.dir.state();
        let turn = state.turn();
        let len = match turn {
            Turn::Do | Turn::Lie => bytes.len(),
            Turn::Fail => bytes.len() / 2,
            Turn::Nothing => 0,
        };
        let written = &mut state.files[self.index].written;
        let start = offset as usize;
        if len > 0 {
            written.resize(written.len().max(start + len), 0);
            written[start..start + len].copy_from_slice(&bytes[..len]);
        }
        answer(&turn)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.dir.state();
        let start = offset as usize;
        let from = state.files[self.index].written.get(start..start + buffer.len());
        buffer.copy_from_slice(from.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.dir.state();
        let turn = state.turn();
        if matches!(turn, Turn::Do | Turn::Lie) {
            state.files[self.index].written.truncate(len as usize);
        }
        answer(&turn)
    }

    fn sync(&self) -> io::Result<()> {
        let (turn, written) = {
            let mut state = self.dir.state();
            (state.turn(), state.files[self.index].written.clone())
        };
        let meanwhile = self.dir.1.lock().unwrap().take();
        if let Some(happens) = meanwhile {
            happens();
        }
        let mut state = self.dir.state();
        let file = &mut state.files[self.index];
        match turn {
            Turn::Do | Turn::Lie if !file.abandoned => file.synced = written,
            Turn::Fail => file.abandoned = true,
            _ => {}
        }
        answer(&turn)
    }
}
