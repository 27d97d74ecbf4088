//! T36: programs that people use on a mount.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::harness::mount::Mounted;
use crate::harness::{Server, block_on, setting};
use crate::semantics::python;

/// Whether a program is installed. That it is not is said, or fails where the run insists.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        let required = setting("REQUIRE_FUSE").is_some_and(|value| value != "0");
        assert!(!required, "REQUIRE_FUSE is set and there is no {program}: scripts/servers install packages");
        let _ = std::io::stderr().write_all(format!("NOT RUN: {program} is not installed\n").as_bytes());
    }
    found.status.success()
}

/// A mount for a program, where both are to be had.
pub(crate) fn mounted(program: &str) -> Option<Mounted> {
    mounted_with(&[program], &[])
}

/// The same for several programs, with flags.
pub(crate) fn mounted_with(programs: &[&str], flags: &[&str]) -> Option<Mounted> {
    let all = programs.iter().all(|program| has(program));
    all.then(|| Mounted::with(Server::Demo, &programs.join("+"), flags)).flatten()
}

/// Runs a line of the shell in a directory, and gives back what it says.
pub(crate) fn sh(dir: &Path, line: &str) -> String {
    let output = Command::new("bash").args(["-ec", line]).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn t36_sqlite_has_three_writers_at_once() {
    let Some(m) = mounted("sqlite3") else { return };
    sh(&m.path(), "sqlite3 db 'create table t (writer, n)'");
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let dir = m.path();
            scope.spawn(move || {
                for n in 0..5 {
                    let insert = format!("insert into t values ({writer}, {n})");
                    sh(&dir, &format!("sqlite3 -cmd '.timeout 60000' db '{insert}'"));
                }
            });
        }
    });
    assert_eq!(sh(&m.path(), "sqlite3 db 'pragma integrity_check; select count(*) from t'"), "ok\n15\n");
    assert!(block_on(m.place.get("db")).unwrap().starts_with(b"SQLite format 3"));
    assert!(!m.at("db-journal").exists());
}

#[test]
fn t36_git_clones_commits_and_collects_garbage() {
    let Some(m) = mounted("git") else { return };
    let local = tempfile::tempdir().unwrap();
    let git = "git -c user.name=n -c user.email=e@example.org -c init.defaultBranch=main -c gc.auto=0";
    sh(
        local.path(),
        &format!(
            "{git} init -q origin; cd origin; for i in 1 2 3 4 5; do mkdir -p d$i; echo $i > d$i/f; {git} add .; \
             {git} commit -qm $i; done"
        ),
    );
    let origin = local.path().join("origin");
    let said = sh(
        &m.path(),
        &format!(
            "{git} clone -q --no-hardlinks {} copy; cd copy; echo changed > d3/f; {git} commit -qam changed; \
             {git} gc -q; {git} fsck --strict; {git} status --short; {git} log --oneline | wc -l; cat d3/f",
            origin.display()
        ),
    );
    assert_eq!(said, "6\nchanged\n");
}

#[test]
fn t36_vim_saves_over_a_file() {
    let Some(m) = mounted("vim.tiny") else { return };
    fs::write(m.at("text"), "one\ntwo\nthree\n").unwrap();
    for backup in ["set backupcopy=no", "set backupcopy=yes"] {
        let edit =
            format!("vim.tiny -N -u NONE -es -c '{backup}' -c '%s/t/T/ge' -c 'normal Goend' -c wq text");
        sh(&m.path(), &format!("{edit} </dev/null; grep -q Two text"));
    }
    assert_eq!(block_on(m.place.get("text")).unwrap(), "one\nTwo\nThree\nend\nend\n");
    assert_eq!(block_on(m.place.keys()).unwrap(), ["text"], "no swap file, no backup");
}

#[test]
fn t36_rsync_run_twice_copies_once() {
    let Some(m) = mounted("rsync") else { return };
    let local = tempfile::tempdir().unwrap();
    for i in 0..20 {
        fs::create_dir_all(local.path().join(format!("tree/d{}", i % 3))).unwrap();
        fs::write(local.path().join(format!("tree/d{}/f{i}", i % 3)), format!("{i}\n").repeat(i * 500))
            .unwrap();
    }
    let source = local.path().join("tree");
    let rsync = format!("rsync -rt --itemize-changes {}/ there", source.display());
    let first = sh(&m.path(), &rsync);
    assert_eq!(first.matches(">f").count(), 20, "{first}");
    let second = sh(&m.path(), &rsync);
    assert_eq!(second.matches(">f").count(), 0, "{second}");
    fs::write(source.join("d1/f1"), "newer, and longer than before\n").unwrap();
    assert_eq!(sh(&m.path(), &rsync).matches(">f").count(), 1);
    sh(&m.path(), &format!("rsync -a {}/ again; rsync -a {}/ again", source.display(), source.display()));
    sh(&m.path(), &format!("diff -r {} there; diff -r {} again", source.display(), source.display()));
}

#[test]
fn t36_tar_and_shutil_copy_trees() {
    let Some(m) = mounted("tar") else { return };
    let local = tempfile::tempdir().unwrap();
    sh(
        local.path(),
        "mkdir -p tree/a/b; for i in $(seq 30); do echo $i > tree/a/f$i; head -c ${i}00 /dev/zero > tree/a/b/z$i; done; \
         tar cf it.tar tree",
    );
    sh(&m.path(), &format!("tar xpf {}/it.tar; tar cf out.tar tree; tar df out.tar", local.path().display()));
    sh(&m.path(), &format!("diff -r tree {}/tree", local.path().display()));
    let copy = [
        "import shutil, sys",
        "d = sys.argv[1]",
        "shutil.copytree(d + '/tree', d + '/copied')",
        "shutil.copy(d + '/out.tar', d + '/copy.tar')",
        "shutil.copy2(d + '/out.tar', d + '/copy2.tar')",
        "shutil.move(d + '/copied', d + '/moved')",
    ];
    python(&copy, &[&m.path()]);
    sh(&m.path(), "diff -r tree moved; cmp out.tar copy.tar; cmp out.tar copy2.tar; rm -r tree moved; ls");
    assert_eq!(block_on(m.place.keys()).unwrap(), ["copy.tar", "copy2.tar", "out.tar"]);
}
