//! Standard tools that care for modes, owners, times and symbolic links: what they do on a local directory they do on a
//! mount, and another mount shows the same.

use std::fs;
use std::path::Path;

use crate::harness::block_on;
use crate::harness::mount::Mounted;
use crate::programs::{mounted_with, sh};
use crate::tools::as_on_a_local_disk;

/// A directory as `ls -lR` would tell of it, one line for each name: type, mode, owner, size, time, name, target. Of directories
/// the size is the file system's own affair.
fn told(dir: &Path) -> String {
    sh(
        dir,
        "find . -mindepth 1 -type d -printf '%P %y %m %U:%G %T@\\n' -o -mindepth 1 -printf '%P %y %m %U:%G %s %T@ %l\\n' | sort",
    )
}

/// The same without times, for what a tool writes at its own time.
fn told_without_times(dir: &Path) -> String {
    sh(
        dir,
        "find . -mindepth 1 -type d -printf '%P %y %m %U:%G\\n' -o -mindepth 1 -printf '%P %y %m %U:%G %s %l\\n' | sort",
    )
}

/// A tree that has everything: modes, times to the nanosecond and of long ago, links that lead somewhere and nowhere, a fifo,
/// owners where we may give them.
fn tree_at(dir: &Path) {
    sh(
        dir,
        "umask 022; mkdir -p tree/sub/empty tree/private; for i in $(seq 12); do seq $((i * 50)) > tree/sub/f$i; done; \
         echo '#!/bin/sh' > tree/run; echo 'echo it runs' >> tree/run; chmod 755 tree/run; \
         echo secret > tree/private/key; chmod 600 tree/private/key; chmod 700 tree/private; \
         chmod 640 tree/sub/f1; chmod 444 tree/sub/f2; chmod 2775 tree/sub; chmod 1777 tree/sub/empty; \
         ln -s sub/f1 tree/link; ln -s ../nowhere tree/sub/dangling; ln -s sub tree/to-dir; ln -s /etc/hostname tree/absolute; \
         mkfifo tree/fifo; : > tree/nothing; head -c 9000000 /dev/zero > tree/large; \
         [ $(id -u) != 0 ] || { chown 1234:4321 tree/sub/f3; chown -h 77:88 tree/link; chown 99 tree/sub/empty; }; \
         touch -d '2001-02-03 04:05:06.123456789' tree/sub/f4; touch -d '1970-01-01 00:00:01' tree/sub/f5; \
         touch -h -d '2010-11-12 13:14:15.5' tree/link tree/to-dir tree/absolute tree/sub/dangling tree/fifo; touch -d '2024-02-29 12:00:00.000000001' tree/sub/f6 tree/private; \
         touch -d '2022-03-04 05:06:07.8' tree/sub tree/sub/empty tree",
    );
}

/// Both have to show the same tree, now and out of S3.
fn same_on_another_mount(mut m: Mounted, at: &str, expected: &Path) -> Mounted {
    assert_eq!(told(&m.at(at)), told(expected));
    assert!(m.umount().success());
    let again = m.again(&[]);
    assert_eq!(told(&again.at(at)), told(expected), "on another mount");
    sh(
        &again.path(),
        &format!("diff -r --no-dereference {at} {} 2>&1 | grep -v fifo || true", expected.display()),
    );
    again
}

#[test]
fn rsync_a_run_again_moves_nothing_on_another_mount_too() {
    let Some(mut m) = mounted_with(&["rsync"], &[]) else { return };
    let local = tempfile::tempdir().unwrap();
    tree_at(local.path());
    let source = local.path().join("tree");
    let rsync = format!("rsync -aAX --no-acls --itemize-changes {}/ there/", source.display());
    assert!(!sh(&m.path(), &rsync).is_empty());
    assert_eq!(sh(&m.path(), &rsync), "", "at once");
    assert_eq!(told(&m.at("there")), told(&source));
    assert!(m.umount().success());
    let m = m.again(&[]);
    assert_eq!(sh(&m.path(), &rsync), "", "on another mount");
    assert_eq!(sh(&m.path(), &format!("{rsync} --checksum")), "", "by their bytes");
    let back = tempfile::tempdir().unwrap();
    sh(&m.path(), &format!("rsync -a there/ {}/", back.path().display()));
    assert_eq!(told(back.path()), told(&source), "and back");
    // A change of a mode alone is one.
    sh(
        &source,
        "chmod 600 sub/f7; touch -d 2023-01-01 sub/f8; ln -sfn elsewhere link; touch -h -d 2012-01-01 link",
    );
    let changed = sh(&m.path(), &rsync);
    assert_eq!(
        changed.lines().filter(|line| line.starts_with(['.', '>', 'c']) && !line.contains("/ ")).count(),
        4,
        "{changed}"
    );
    same_on_another_mount(m, "there", &source);
}

#[test]
fn cp_a_and_mv_keep_what_a_tree_is() {
    let Some(m) = mounted_with(&["cp"], &[]) else { return };
    let local = tempfile::tempdir().unwrap();
    tree_at(local.path());
    let source = local.path().join("tree");
    // In, on the mount itself, by a rename, and out again.
    sh(&m.path(), &format!("cp -a {} .; cp -a tree copied; mv copied moved; rm -r tree", source.display()));
    let back = tempfile::tempdir().unwrap();
    sh(back.path(), &format!("cp -a {} out", m.at("moved").display()));
    assert_eq!(told(&back.path().join("out")), told(&source));
    assert_eq!(sh(&m.path(), "moved/run"), "it runs\n");
    let m = same_on_another_mount(m, "moved", &source);
    assert_eq!(sh(&m.path(), "moved/run; cat moved/link | head -n 1"), "it runs\n1\n");
}

#[test]
fn tar_packs_and_unpacks_what_a_tree_is() {
    let Some(m) = mounted_with(&["tar"], &[]) else { return };
    let local = tempfile::tempdir().unwrap();
    tree_at(local.path());
    // Seconds alone, as far as the old format goes, and all of it with the newer one.
    sh(local.path(), "tar --format=posix -cpf it.tar tree");
    sh(
        &m.path(),
        &format!(
            "tar --same-owner -xpf {}/it.tar; tar --format=posix -cpf out.tar tree; tar -df out.tar",
            local.path().display()
        ),
    );
    let back = tempfile::tempdir().unwrap();
    sh(back.path(), &format!("tar --same-owner -xpf {}", m.at("out.tar").display()));
    assert_eq!(told(&back.path().join("tree")), told(&local.path().join("tree")));
    let m = same_on_another_mount(m, "tree", &local.path().join("tree"));
    sh(&m.path(), "tar -df out.tar");
}

#[test]
fn zip_makes_the_same_archive_as_on_a_local_disk() {
    as_on_a_local_disk(
        &["zip", "unzip"],
        "mkdir -p tree/sub; for i in $(seq 40); do seq $((i * 100)) > tree/sub/$i; done; head -c 5000000 /dev/zero > tree/zeros; \
         TZ=UTC touch -d 2020-01-02T03:04:06 tree/sub/* tree/zeros tree/sub tree; \
         find tree | sort | zip -qX it.zip -@; unzip -tq it.zip; unzip -q it.zip -d out; diff -r tree out/tree && echo same; \
         echo new > tree/sub/1; TZ=UTC touch -d 2021-01-02T03:04:06 tree/sub/1; zip -qX it.zip tree/sub/1; \
         zip -qd it.zip tree/zeros; unzip -tq it.zip; unzip -p it.zip tree/sub/1; unzip -Z1 it.zip | sort | md5sum; \
         unzip -qo it.zip -d out; diff -r tree out/tree && echo same; rm -r out",
    );
}

#[test]
fn zip_keeps_modes_times_and_links() {
    let Some(m) = mounted_with(&["zip", "unzip"], &[]) else { return };
    let local = tempfile::tempdir().unwrap();
    // The format has neither fifos nor parts of a second.
    sh(
        local.path(),
        "mkdir tree; echo '#!/bin/sh' > tree/run; chmod 755 tree/run; ln -s run tree/link; echo x > tree/x; chmod 600 tree/x; \
         touch -d '2019-08-07 06:05:04' tree/run tree/x",
    );
    sh(
        &m.path(),
        &format!(
            "cp -a {}/tree .; zip -qry it.zip tree; rm -r tree; unzip -q it.zip; rm it.zip",
            local.path().display()
        ),
    );
    let listed =
        |dir: &Path| sh(dir, "find tree -type f -printf '%P %m %T@\\n' -o -type l -printf '%P %l\\n' | sort");
    assert_eq!(listed(&m.path()), listed(local.path()));
}

const SOURCES: &str = "mkdir -p src; \
    printf 'int half(int n);\\n' > src/half.h; \
    printf '#include \"half.h\"\\nint half(int n) { return n / 2; }\\n' > src/half.c; \
    printf '#include <stdio.h>\\n#include \"half.h\"\\nint main(void) { printf(\"%%d\\\\n\", half(84)); return 0; }\\n' > src/main.c; \
    printf 'program: src/main.o libhalf.a\\n\\t$(CC) -o $@ src/main.o -L. -lhalf\\n\
libhalf.a: src/half.o\\n\\trm -f $@\\n\\tar rcsD $@ src/half.o\\n\
src/%%.o: src/%%.c src/half.h\\n\\t$(CC) -c -o $@ $<\\n' > Makefile; ";

#[test]
fn gcc_and_make_build_what_runs_and_make_builds_it_once() {
    let build = "make --no-print-directory; ./program; make --no-print-directory; \
                 sed -i 's:/ 2:/ 4:' src/half.c; make --no-print-directory; ./program; \
                 make --no-print-directory -q && echo nothing to do; \
                 touch src/half.h; make --no-print-directory -n | wc -l; make -s -j4; make -q && echo built; \
                 gcc -O1 -g -fPIC -shared -o libhalf.so src/half.c; \
                 gcc -o dynamic src/main.c -L. -l:libhalf.so -Wl,-rpath,'$ORIGIN'; ./dynamic; \
                 cp program copied; ./copied; strip copied; ./copied; rm -f libhalf.so dynamic";
    as_on_a_local_disk(&["gcc", "make"], &format!("{SOURCES}{build}"));
}

#[test]
fn make_and_python_find_nothing_to_do_on_another_mount() {
    let Some(mut m) = mounted_with(&["make", "gcc", "python3"], &[]) else { return };
    sh(
        &m.path(),
        "mkdir src package; echo 'int main(void) { return 0; }' > src/main.c; \
         printf 'all: program list\\nprogram: src/main.o\\n\\t$(CC) -o $@ $<\\nsrc/main.o: src/main.c\\n\\t$(CC) -c -o $@ $<\\n\
list: src/main.c\\n\\tls src > $@\\n' > Makefile; make -s; make -q; \
         echo 'x = 1' > package/__init__.py; touch -d '2020-05-06 07:08:09.5' package/__init__.py; unset PYTHONDONTWRITEBYTECODE; python3 -c 'import package'",
    );
    assert!(m.umount().success());
    let m = m.again(&[]);
    // What the mount finds out of the server may be under way.
    let keys = || {
        let mut keys = block_on(m.place.keys()).unwrap();
        keys.retain(|key| !key.starts_with(".pailfs-probe"));
        keys
    };
    let (before, bytecode) = (keys(), || keys().into_iter().find(|key| key.ends_with(".pyc")).unwrap());
    let written = || block_on(m.place.store.head(&m.place.bucket, &bytecode(), None)).unwrap().last_modified;
    let made = written();
    sh(&m.path(), "make -q; ./program");
    let said = sh(&m.path(), "python3 -v -c 'import package' 2>&1 | grep -c 'matches .*/mnt/package/'");
    assert_eq!(said, "1\n");
    assert_eq!((keys(), written()), (before, made), "nothing was written");
}

#[test]
fn git_sees_no_change_on_another_mount() {
    let Some(mut m) = mounted_with(&["git"], &[]) else { return };
    let git =
        "git -c user.name=n -c user.email=e@example.org -c init.defaultBranch=main -c safe.directory='*'";
    sh(
        &m.path(),
        &format!(
            "{git} init -q work; cd work; echo x > file; echo '#!/bin/sh' > run; chmod +x run; ln -s file link; \
             {git} config core.symlinks true; {git} config core.filemode true; {git} add .; {git} commit -qm one; \
             [ $({git} ls-files -s | grep -c ^120000) = 1 ]; [ $({git} ls-files -s | grep -c ^100755) = 1 ]"
        ),
    );
    assert!(m.umount().success());
    let m = m.again(&[]);
    assert_eq!(
        sh(&m.at("work"), &format!("{git} status --porcelain; {git} fsck --strict; {git} diff --stat")),
        ""
    );
    sh(
        &m.at("work"),
        &format!("{git} checkout -q -b other; rm link run; {git} checkout -q -- .; ./run; cat link"),
    );
    assert_eq!(sh(&m.at("work"), &format!("{git} status --porcelain")), "");
}

#[test]
fn chmod_chown_touch_and_find_agree_with_a_local_disk() {
    let Some(mut m) = mounted_with(&["find"], &[]) else { return };
    let local = tempfile::tempdir().unwrap();
    let script = "umask 027; mkdir d; echo x > f; echo y > d/g; umask 077; mkdir d/p; : > d/p/h; ln -s d/g l; \
         chmod u+s,g+s f; chmod a+rX d; chmod -R o+w d/p; chmod +t d; install -m 751 -D f bin/tool; mkdir -m 2770 group; \
         [ $(id -u) != 0 ] || { chown 5:6 d/g; chgrp -h 7 l; chown -R 8:9 d/p; }; \
         touch -d '2000-01-01 00:00:00.000000009' f; touch -r f d/g; touch -m -d 2011-01-01 d/p/h; touch -h -r f l; \
         find . -perm -4000; find . -perm -o+w | sort; find . -type l; find . -newermt 2010-01-01 -type f | sort; \
         find . -uid 5; find . -gid 9 | sort; stat -c '%A %h %F' f d/g l; touch -r f bin; readlink l; readlink -e l | grep -c d/g; \
         test -x bin/tool && echo executable; test f -ot d/p/h && echo older; test f -ef ./f && echo same";
    assert_eq!(sh(&m.path(), script), sh(local.path(), script));
    assert_eq!(told_without_times(&m.path()), told_without_times(local.path()));
    // What no one has set the time of shows there when S3 got it.
    let times = |dir: &Path| sh(dir, "stat -c '%n %y %x' f d/g; stat -c '%n %y' l d/p/h");
    let before = (told_without_times(&m.path()), times(&m.path()));
    assert_eq!(before.1, times(local.path()));
    assert!(m.umount().success());
    let m = m.again(&[]);
    assert_eq!((told_without_times(&m.path()), times(&m.path())), before, "on another mount");
    fs::remove_file(m.at("l")).unwrap();
    assert!(m.at("d/g").exists(), "a link is removed, not what it leads to");
}
