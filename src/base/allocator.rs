//! How the C library's allocator gives memory back, and what the process has. The one place in the house that needs `unsafe`
//! for that.

/// From this size on, memory is the kernel's own again as soon as it is freed, in bytes: where glibc begins by itself. What a
/// connection reads into is smaller and stays the process's: mapped for each read anew, it made reading in order a third
/// dearer in processor time.
pub const MAPPED_FROM_BYTES: usize = 128 << 10;

/// Holds the allocator to that size, for the rest of the process.
///
/// glibc raises it to the size of whatever large block was freed last, up to 32 MiB, and cuts such blocks out of its arenas
/// from then on. Parts and pieces of different sizes, freed on other threads than they were made on, then leave holes that
/// nobody fits into: 64 writers took 370 MiB where the budget was 224, and kept 255 of them. With the size held they
/// take 217 and keep 29. Held at 272 KiB, 1,000 readers, 64 writers and `find` at once take 285 MiB of a limit of 256, and 270
/// as it is. jemalloc took 265 for the writers.
pub fn give_large_blocks_back() {
    tell(Word::MappedFrom(i32::try_from(MAPPED_FROM_BYTES).unwrap_or(i32::MAX)));
}

/// Gives pages back that nothing is on. By itself the allocator does that at the end of each of its arenas alone, so that one
/// name above a thousand that are gone keeps all of their pages: `find` over 1,000,000 names left 114 MiB where 54 were in use.
/// Takes a few ms for each 100 MiB.
pub fn give_back() {
    tell(Word::GiveBack);
}

/// What there is to tell the allocator.
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), allow(dead_code))]
enum Word {
    MappedFrom(i32),
    GiveBack,
}

/// Tells the allocator, where it is one that listens.
fn tell(word: Word) {
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = word;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: both take numbers and keep no address, and may be called at any time, from any thread. Where they refuse,
    // everything works as before.
    unsafe {
        match word {
            Word::MappedFrom(bytes) => libc::mallopt(libc::M_MMAP_THRESHOLD, bytes),
            Word::GiveBack => libc::malloc_trim(0),
        };
    }
}

/// Memory of this process that is in RAM, as the kernel says.
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
