//! Standard tools: what they do on a local directory they do on a mount, and S3 has it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::block_on;
use crate::harness::mount::{Mounted, wait_for};
use crate::programs::{mounted, mounted_with, sh};
use crate::semantics::python;

const SOON: Duration = Duration::from_secs(60);

/// Runs a script on a fresh mount and in a local directory. It has to say the same and to leave the same files, which another
/// mount, that knows nothing but S3, shows too.
pub(crate) fn as_on_a_local_disk(programs: &[&str], script: &str) -> Option<Mounted> {
    let mut m = mounted_with(programs, &[])?;
    let local = tempfile::tempdir().unwrap();
    let said = sh(local.path(), script);
    assert!(!said.is_empty(), "a script that says nothing compares nothing");
    assert_eq!(sh(&m.path(), script), said);
    sh(&m.path(), &format!("diff -r {} .", local.path().display()));
    assert!(m.umount().success());
    let again = m.again(&[]);
    sh(&again.path(), &format!("diff -r {} .", local.path().display()));
    Some(again)
}

#[test]
fn sed_dd_and_the_shell_change_files_in_place() {
    as_on_a_local_disk(
        &["sed", "dd"],
        "seq 20000 > numbers; sed -i -e 's/7$/seven/' -e '100,200d' numbers; md5sum numbers; \
         sed -i.bak 1d numbers; wc -c numbers numbers.bak; \
         head -c 3000000 /dev/zero | tr '\\0' x > large; \
         echo in the middle | dd of=large bs=1 seek=1500000 conv=notrunc status=none; \
         dd if=numbers of=large bs=4096 seek=10 count=3 conv=notrunc status=none; md5sum large; \
         dd if=large of=part bs=1000 skip=1499 count=2 status=none; md5sum part; \
         for i in $(seq 50); do echo line $i >> log; done; wc -l log; { echo a; echo b; } >> log; tail -n 3 log; \
         seq 5 | tee -a log >/dev/null; tail -n 6 log; \
         truncate -s 100 log; truncate -s +50 log; md5sum log; : > emptied; : > part; \
         exec 3<> both; echo one >&3; echo two >&3; exec 3>&-; cat both; \
         cat numbers log > joined; split -n 7 joined piece.; cat piece.* | cmp - joined && ls",
    );
}

#[test]
fn find_grep_sort_and_du_see_a_tree() {
    let tree = "mkdir -p a/b/c 'with space' empty; for i in $(seq 60); do \
                seq $i > a/f$i; seq $((i * 40)) > \"a/b/c/g$i\"; echo $i > \"with space/$i\"; done; ";
    let looks = "find . -type f | sort | md5sum; find . -type d | sort; find . -empty; find a -size +4k | sort | wc -l; \
                 find . -name 'f?' | sort | xargs cat | md5sum; find . -type f -print0 | xargs -0 md5sum | sort | md5sum; \
                 find . -type f -printf '%s %p\\n' | sort | md5sum; \
                 grep -rl 2399 . | sort; grep -rc 1 a | sort | md5sum; grep -c 9 a/f9; \
                 sort -rn a/b/c/g60 | md5sum; sort -n -T . -S 32k -o a/b/c/g60 a/b/c/g60 a/f60; md5sum a/b/c/g60; \
                 comm -12 <(sort a/f20) <(sort a/f10) | wc -l; ls -R | md5sum; \
                 du -b a/f60; du -ab 'with space' | grep / | sort -k2 | head -n 60 | md5sum; \
                 find a -newer a/f1 -name f60; find . -name 'g*' -delete; find . -name g1; ls a/b";
    let Some(m) = as_on_a_local_disk(&["find", "grep"], &format!("{tree}{looks}")) else { return };
    // What a local disk says otherwise: the size of directories is a fixed figure, and there is always room.
    let used = sh(&m.path(), "du -s --block-size=1 a/f60; stat -c '%b %B' a/f60");
    assert_eq!(used.split_whitespace().collect::<Vec<_>>(), ["512", "a/f60", "1", "512"]);
    let df = sh(&m.path(), "df --output=fstype,pcent . | tail -n 1");
    assert!(df.starts_with("fuse.pailfs"), "{df}");
    let room: u64 = sh(&m.path(), "df --output=avail . | tail -n 1").trim().parse().unwrap();
    assert!(room > 1 << 30, "{room} KiB");
}

#[test]
fn zip_packs_updates_and_unpacks() {
    as_on_a_local_disk(
        &["zip", "unzip"],
        "mkdir -p tree/sub; for i in $(seq 40); do seq $((i * 100)) > tree/sub/$i; done; \
         head -c 5000000 /dev/zero > tree/zeros; \
         zip -qr it.zip tree; unzip -tq it.zip; unzip -q it.zip -d out; diff -r tree out/tree && echo same; \
         echo new > tree/sub/1; zip -q it.zip tree/sub/1; zip -qd it.zip tree/zeros; unzip -tq it.zip; \
         unzip -p it.zip tree/sub/1; unzip -Z1 it.zip | sort | md5sum; \
         unzip -qo it.zip -d out; diff -r tree out/tree && echo same; rm -r out it.zip",
    );
}

#[test]
fn python_imports_packages_and_archives() {
    let script = "unset PYTHONDONTWRITEBYTECODE; mkdir -p package/inner; \
         touch package/__init__.py package/inner/__init__.py; \
         echo 'from package.inner.deep import answer' > package/top.py; \
         echo 'def answer(): return 42' > package/inner/deep.py; \
         ask() { python3 -c 'import package.top; print(package.top.answer())'; }; \
         ask; ask; echo 'def answer(): return \"forty-two\"' > package/inner/deep.py; ask; ask; ls package/__pycache__; \
         python3 -m compileall -q package; python3 -m zipfile -c package.zip package/; \
         python3 -c 'import sys; sys.path.insert(0, \"package.zip\"); import package; print(package.__file__[-31:])'; \
         rm -r package.zip; find . -name __pycache__ -prune -exec rm -r {} +; ls -R";
    as_on_a_local_disk(&["python3"], script);
}

#[test]
fn sqlite_rolls_back_by_its_journal() {
    // The second program dies in the middle of a transaction, of which the database file has some already.
    let dies = "import os, sqlite3\\n\
                db = sqlite3.connect('db')\\n\
                db.execute('pragma cache_size = 5')\\n\
                db.execute('update t set text = upper(text) || n')\\n\
                os._exit(7)\\n";
    let script = format!(
        "sqlite3 db 'pragma journal_mode = delete; create table t (n integer primary key, text)'; \
         sqlite3 db \"with recursive c(n) as (select 1 union all select n + 1 from c where n < 3000) \
         insert into t select n, 'some text of row ' || n from c\"; \
         sqlite3 db 'begin; delete from t; select count(*) from t; rollback; select count(*) from t'; ls; \
         printf \"{dies}\" | python3 - || echo died; ls; \
         sqlite3 db \"select count(*), sum(text = 'some text of row ' || n) from t; pragma integrity_check\"; ls; \
         sqlite3 db 'delete from t where n % 3 = 0; vacuum; select count(*) from t; pragma integrity_check'; \
         sqlite3 db .dump | md5sum; sqlite3 db 'pragma journal_mode = truncate; insert into t values (0, 0)'; ls -s db-journal | cut -c1; \
         rm db-journal"
    );
    as_on_a_local_disk(&["sqlite3", "python3"], &script);
}

#[test]
fn tail_follows_a_file_that_grows() {
    let Some(m) = mounted("tail") else { return };
    fs::write(m.at("log"), "first\n").unwrap();
    let seen = m.path().with_file_name("seen");
    let mut tail = Command::new("tail")
        .args(["-n", "+1", "-s", "0.05", "-f", "log"])
        .current_dir(m.path())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&seen).unwrap())
        .spawn()
        .unwrap();
    let mut expected = "first\n".to_owned();
    let mut followed = wait_for(SOON, || fs::read_to_string(&seen).unwrap() == expected);
    for n in 0..5 {
        let mut log = fs::OpenOptions::new().append(true).open(m.at("log")).unwrap();
        for line in 0..3 {
            let line = format!("line {line} of {n}\n");
            log.write_all(line.as_bytes()).unwrap();
            expected.push_str(&line);
        }
        drop(log);
        followed &= wait_for(SOON, || fs::read_to_string(&seen).unwrap() == expected);
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert!(followed, "{:?}", fs::read_to_string(&seen));
}

#[test]
fn borg_backs_up_into_a_mount() {
    let Some(mut m) = mounted("borg") else { return };
    let local = tempfile::tempdir().unwrap();
    sh(
        local.path(),
        "mkdir -p tree/deep; for i in $(seq 50); do seq $((i * 300)) > tree/deep/$i; done; \
         head -c 8000000 /dev/urandom > tree/random; mkdir base",
    );
    let borg = format!(
        "export BORG_BASE_DIR={0}/base BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes; \
         repo=$PWD/repo; cd {0}; ",
        local.path().display()
    );
    sh(
        &m.path(),
        &format!(
            "{borg} borg init -e none $repo; borg create $repo::one tree; borg check --verify-data $repo"
        ),
    );
    assert!(m.umount().success());
    let m = m.again(&[]);
    sh(
        &m.path(),
        &format!(
            "{borg} borg check $repo; echo more >> tree/deep/1; borg create $repo::two tree; borg list --short $repo; \
             borg prune --keep-last 1 $repo; borg compact $repo; borg check $repo; \
             mkdir out; cd out; borg extract $repo::two; diff -r tree ../tree"
        ),
    );
    assert_eq!(sh(&m.path(), &format!("{borg} borg list --short $repo")), "two\n");
}

#[test]
fn fio_finds_what_it_wrote() {
    let Some(m) = mounted("fio") else { return };
    let common = "fio --directory=. --size=4m --verify=crc32c --verify_fatal=1 --output=../fio.log --minimal";
    for job in [
        "--name=random --rw=randwrite --bsrange=1k-64k",
        "--name=ahead --rw=write --bs=1m --end_fsync=1",
        "--name=mapped --rw=randwrite --bs=4k --ioengine=mmap",
        "--name=mixed --rw=randrw --bs=16k --numjobs=2 --fsync=100",
        "--name=vectors --rw=randwrite --bs=8k --ioengine=pvsync2",
        "--name=direct --rw=randwrite --bs=4k --direct=1",
    ] {
        sh(&m.path(), &format!("{common} {job} || {{ cat ../fio.log; false; }}"));
    }
    // Of another mount, from S3.
    let other = m.again(&[]);
    sh(
        &other.path(),
        &format!(
            "{common} --name=random --rw=randwrite --bsrange=1k-64k --verify_only || {{ cat ../fio.log; false; }}"
        ),
    );
}

#[test]
fn sixteen_processes_append_to_one_file() {
    let append = "import os, sys\n\
        me = int(sys.argv[1])\n\
        fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)\n\
        for n in range(100):\n\
        \x20   line = f'{me} {n} '.encode() + b'x' * ((me * 37 + n * 91) % 3000) + b'\\n'\n\
        \x20   assert os.write(fd, line) == len(line)\n\
        os.close(fd)\n";
    let check = "import collections\n\
        seen = collections.defaultdict(list)\n\
        for line in open('log'):\n\
        \x20   me, n, rest = line.split(' ')\n\
        \x20   me, n = int(me), int(n)\n\
        \x20   assert rest == 'x' * ((me * 37 + n * 91) % 3000) + '\\n', (me, n)\n\
        \x20   seen[me].append(n)\n\
        assert dict(seen) == {me: list(range(100)) for me in range(16)}, seen\n\
        print('whole')\n";
    for durability in ["close", "journal"] {
        let Some(mut m) = mounted_with(&["python3"], &["--durability", durability]) else { return };
        let beside = m.path().with_file_name("append.py");
        fs::write(&beside, append).unwrap();
        sh(
            &m.path(),
            "pids=(); for i in $(seq 0 15); do python3 ../append.py $i & pids+=($!); done; \
             for pid in ${pids[@]}; do wait $pid; done",
        );
        fs::write(beside.with_file_name("check.py"), check).unwrap();
        assert_eq!(sh(&m.path(), "python3 ../check.py"), "whole\n", "{durability}");
        assert!(m.umount().success());
        let again = m.again(&[]);
        fs::write(again.path().with_file_name("check.py"), check).unwrap();
        assert_eq!(sh(&again.path(), "python3 ../check.py"), "whole\n", "{durability}, from S3");
    }
}

/// Every stressor of the class at once, each verifying what it did where it can.
#[test]
fn stress_ng_finds_nothing_wrong() {
    // For root it changes what is the machine's: mounts, users, priorities.
    let Some(m) = mounted("stress-ng") else { return };
    // Not of files here: binderfs and bind-mount mount, eventfd, procfs and ioprio have no files, and file-ioctl compares a figure
    // that Linux keeps of a FUSE file only from one stat to the next (FIOQSIZE). fanotify, getdent and io go to every mount of the
    // machine: they hold those of other tests, which cannot be unmounted meanwhile, and ask them for what nobody else does.
    let left_out = "binderfs,bind-mount,eventfd,procfs,ioprio,file-ioctl,fanotify,getdent,io";
    let run = format!(
        "stress-ng --class filesystem --all 1 -x {left_out} -t 8 --verify --temp-path . > ../said 2>&1 || true; \
         grep -E 'fail:|error:|stuck' ../said || true"
    );
    assert_eq!(sh(&m.path(), &run), "");
    // It removes what it made, also of what it had to break off.
    sh(&m.path(), "rm -rf tmp-stress-ng-*; [ -z \"$(ls -A)\" ]");
    assert!(block_on(m.place.keys()).unwrap().is_empty());
}

/// `O_RDONLY | O_TRUNC` is the one open that Linux refuses only after it has reached us.
#[test]
fn a_program_that_runs_cannot_be_cut() {
    let Some(m) = mounted("sleep") else { return };
    sh(&m.path(), "cp $(command -v sleep) program; chmod 755 program");
    let mut program = Command::new(m.at("program")).arg("100").spawn().unwrap();
    let open = "import errno, os, sys\n\
        for how in os.O_RDONLY | os.O_TRUNC, os.O_WRONLY, os.O_RDWR | os.O_TRUNC:\n\
        \x20   try: print(os.open(sys.argv[1], how))\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno])";
    let said = python(&[open], &[&m.at("program")]);
    let running = program.try_wait().unwrap().is_none();
    program.kill().unwrap();
    program.wait().unwrap();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["ETXTBSY"; 3]);
    assert!(running);
    sh(&m.path(), "cmp $(command -v sleep) program");
    // It is over when the kernel has let go of it.
    let cut = || fs::OpenOptions::new().write(true).truncate(true).open(m.at("program")).is_ok();
    assert!(wait_for(SOON, cut));
    let cut = python(
        &["import os, sys; print(os.open(sys.argv[1], os.O_RDONLY | os.O_TRUNC))"],
        &[&m.at("program")],
    );
    assert!(!cut.is_empty());
}
