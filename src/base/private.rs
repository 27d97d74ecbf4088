//! Files and directories that are this user's alone, on a machine where others may have been there before.
//!
//! A directory is made or found for its user alone, in a place where nobody else can put another one later: what is done in it
//! by its path is done in it. A file is opened as what it is, and never through a link: a directory that others could write to
//! once may have links of theirs in it still, to files that its user has and they have not.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Whom a file or link may belong to, beside its user: root could do anything anyway.
const ROOT: u32 = 0;
const OTHERS_WRITE: u32 = 0o022;
const ANYBODY_WRITES: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why something that is there is not used. Inside of an [`io::Error`].
#[derive(Debug, PartialEq, Eq)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, Refused(why.into()))
}

/// Whether an error says that something is there that is not its user's alone.
pub fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refused>())
}

/// Opens a file of ours, or makes one for its user alone where `options` say so. Refuses what is no plain file, belongs to
/// somebody else or could be written by others; a link is not followed, and a pipe not waited for.
///
/// `options` must not cut it: what is refused stays as it is.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = options.clone();
    let opened = options.mode(0o600).custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => refused("it is a symbolic link"),
        // A pipe without a reader, a socket.
        Some(Errno::NXIO) => refused("it is no plain file"),
        _ => error,
    })?;
    check_file(&file.metadata()?)?;
    Ok(file)
}

/// A new empty file in the place of whatever has the name.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Whoever has the name holds a link at most, which is not followed here.
    options.read(true).write(true).create_new(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)
        }
        made => made,
    }
}

/// Opens a file of ours to read it.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Opens a file that is appended to, and that whoever named it may have put anywhere: a pipe, a terminal, a file that another
/// program rotates. In a directory where anybody could have been first, as in /tmp, a plain file has to be its user's or root's,
/// and a link too; that is what `fs.protected_regular` and `fs.protected_symlinks` are for, where a machine has them on.
pub fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let dir = path.parent().and_then(|dir| fs::metadata(dir).ok());
    let Some(dir) = dir.filter(|dir| dir.mode() & ANYBODY_WRITES != 0) else { return options.open(path) };
    let trusted = [ROOT, dir.uid(), rustix::process::geteuid().as_raw()];
    match fs::symlink_metadata(path) {
        Ok(link) if link.is_symlink() => require_owner(&link, &trusted, "it is a symbolic link of")?,
        // Nobody puts a link there meanwhile that would be followed.
        _ => drop(options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed())),
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        require_owner(&metadata, &trusted, "it belongs to")?;
    }
    Ok(file)
}

/// Makes a directory for its user alone, with those above it, if it is not there; and [refuses](check_dir) one that is not.
pub fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => check_dir(path),
    }
}

/// Refuses a directory that belongs to somebody else, or that others could put something into, or something in the place of.
pub fn check_dir(path: &Path) -> io::Result<()> {
    check_dir_of(path, &[rustix::process::geteuid().as_raw()])
}

/// The same of one that may be root's as well: it has directories of its user in it.
pub fn check_dir_above(path: &Path) -> io::Result<()> {
    check_dir_of(path, &[ROOT, rustix::process::geteuid().as_raw()])
}

fn check_dir_of(path: &Path, owners: &[u32]) -> io::Result<()> {
    let path = &std::path::absolute(path)?;
    check_links(path)?;
    let real = fs::canonicalize(path)?;
    let metadata = fs::symlink_metadata(&real)?;
    if !metadata.is_dir() {
        return Err(refused("it is no directory"));
    }
    if !owners.contains(&metadata.uid()) {
        let me = rustix::process::geteuid().as_raw();
        return Err(refused(format!("it belongs to user {}, and user {me} mounts", metadata.uid())));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(refused(format!("it can be written by others (mode {mode:o}): chmod go-w")));
    }
    for above in real.ancestors().skip(1) {
        check_above(above)?;
    }
    Ok(())
}

/// In a directory that anybody can write to, what is in it stays its owner's only where it is sticky, as /tmp is.
fn check_above(dir: &Path) -> io::Result<()> {
    let mode = fs::symlink_metadata(dir)?.mode();
    if mode & ANYBODY_WRITES != 0 && mode & STICKY == 0 {
        return Err(refused(format!(
            "anybody could put another one in its place, because anybody can write to {}: chmod o-w, or chmod +t",
            dir.display()
        )));
    }
    Ok(())
}

/// No part of a path may be a link that somebody else has put there: it leads wherever they want, and elsewhere tomorrow.
fn check_links(path: &Path) -> io::Result<()> {
    for part in path.ancestors() {
        let metadata = fs::symlink_metadata(part)?;
        if metadata.is_symlink() {
            let what = format!("{} is a symbolic link of", part.display());
            require_owner(&metadata, &[ROOT, rustix::process::geteuid().as_raw()], &what)?;
        }
    }
    Ok(())
}

fn check_file(metadata: &Metadata) -> io::Result<()> {
    if !metadata.is_file() {
        return Err(refused("it is no plain file"));
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(refused(format!("it belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(refused(format!("others can write to it (mode {:o})", metadata.mode() & 0o7777)));
    }
    Ok(())
}

fn require_owner(metadata: &Metadata, trusted: &[u32], what: &str) -> io::Result<()> {
    if !trusted.contains(&metadata.uid()) {
        return Err(refused(format!("{what} user {}", metadata.uid())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    const SOMEBODY: u32 = 12_345;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn pipe(path: &Path) {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }

    fn told<T>(result: io::Result<T>) -> String {
        let error = result.map(drop).unwrap_err();
        assert!(is_refusal(&error), "{error}");
        error.to_string()
    }

    #[test]
    fn what_is_no_plain_file_of_ours_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut all = OpenOptions::new();
        all.read(true).write(true).create(true);
        assert_eq!(open(&at("new"), &all).unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        fs::write(at("victim"), "mine").unwrap();
        symlink(at("victim"), at("link")).unwrap();
        symlink(at("nothing"), at("loose")).unwrap();
        pipe(&at("pipe"));
        for options in [&all, OpenOptions::new().read(true), OpenOptions::new().write(true)] {
            assert!(told(open(&at("link"), options)).contains("symbolic link"));
            assert!(told(open(&at("loose"), options)).contains("symbolic link"));
            assert!(told(open(&at("pipe"), options)).contains("no plain file"));
        }
        assert!(open(dir.path(), OpenOptions::new().write(true)).is_err());
        assert!(told(open_to_read(dir.path())).contains("no plain file"));
        assert!(!at("nothing").exists());
        assert_eq!(fs::read(at("victim")).unwrap(), b"mine");
        set_mode(&at("victim"), 0o620);
        assert!(told(open_to_read(&at("victim"))).contains("others can write"));
        set_mode(&at("victim"), 0o644);
        open_to_read(&at("victim")).unwrap();
        if chown(at("victim"), Some(SOMEBODY), None).is_ok() {
            assert!(told(open_to_read(&at("victim"))).contains("belongs to user 12345"));
        }
        assert_eq!(open_to_read(&at("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_new_file_takes_the_place_of_a_link_and_not_of_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, name) = (dir.path().join("victim"), dir.path().join("name"));
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, &name).unwrap();
        create(&name).unwrap();
        assert!(fs::symlink_metadata(&name).unwrap().is_file());
        fs::remove_file(&name).unwrap();
        fs::hard_link(&victim, &name).unwrap();
        create(&name).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(fs::read(&name).unwrap(), b"");
    }

    #[test]
    fn a_log_goes_where_its_user_says_and_not_where_others_do() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        append(&at("log")).unwrap();
        symlink(at("log"), at("own")).unwrap();
        append(&at("own")).unwrap();
        append(Path::new("/dev/null")).unwrap();
        if chown(at("log"), Some(SOMEBODY), None).is_err() {
            return;
        }
        fs::write(at("victim"), "mine").unwrap();
        symlink(at("victim"), at("theirs")).unwrap();
        lchown(at("theirs"), Some(SOMEBODY), None).unwrap();
        // Where nobody else can be, another program has made it so: the machine's, that rotates logs.
        append(&at("log")).unwrap();
        append(&at("theirs")).unwrap();
        set_mode(dir.path(), 0o1777);
        assert!(told(append(&at("log"))).contains("belongs to user 12345"));
        assert!(told(append(&at("own"))).contains("belongs to user 12345"));
        assert!(told(append(&at("theirs"))).contains("link of user 12345"));
        assert_eq!(fs::read(at("victim")).unwrap(), b"mine");
        append(&at("fresh")).unwrap();
    }

    #[test]
    fn a_directory_is_its_user_s_alone_and_so_is_its_place() {
        let base = tempfile::tempdir().unwrap();
        let (above, dir) = (base.path().join("above"), base.path().join("above/dir"));
        make_dir(&dir).unwrap();
        for made in [&above, &dir] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700);
        }
        for mode in [0o770, 0o702, 0o1777] {
            set_mode(&dir, mode);
            assert!(told(check_dir(&dir)).contains("written by others"), "{mode:o}");
        }
        set_mode(&dir, 0o755);
        for (mode, is_safe) in [(0o777, false), (0o1777, true), (0o775, true)] {
            set_mode(&above, mode);
            assert_eq!(check_dir(&dir).is_ok(), is_safe, "{mode:o}");
            assert_eq!(make_dir(&above.join("dir/below")).is_ok(), is_safe, "{mode:o}");
        }
        set_mode(&above, 0o777);
        assert!(told(check_dir(&dir)).contains("anybody can write to"));
        set_mode(&above, 0o700);
        let link = base.path().join("link");
        symlink(&above, &link).unwrap();
        check_dir(&link.join("dir")).unwrap();
        if lchown(&link, Some(SOMEBODY), None).is_ok() {
            assert!(told(check_dir(&link.join("dir"))).contains("link of user 12345"));
            chown(&dir, Some(SOMEBODY), None).unwrap();
            assert!(told(check_dir(&dir)).contains("belongs to user 12345"));
        }
        assert!(told(check_dir(Path::new("/proc/self/cmdline"))).contains("no directory"));
    }
}
