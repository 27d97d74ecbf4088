use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::*;
use crate::base::ManualClock;

const BUCKET: &str = "https://s3.example/bucket";
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for a file, and an object in a bucket.
struct Scene {
    dir: tempfile::TempDir,
    path: PathBuf,
    clock: Arc<ManualClock>,
    etag: ETag,
    modified: SystemTime,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mount").join("kept");
        let modified = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Self { dir, path, clock: Arc::default(), etag: ETag::new("e"), modified }
    }

    fn open(&self) -> Kept {
        self.open_for(10_000)
    }

    fn open_for(&self, entries_max: u64) -> Kept {
        Kept::open(&self.path, entries_max, self.clock.clone())
    }

    fn object<'a>(&'a self, key: &'a str) -> Listed<'a> {
        Listed { key, etag: &self.etag, last_modified: self.modified }
    }

    /// Long after it was written.
    fn put(&self, kept: &Kept, key: &str, value: &[u8]) {
        kept.put(BUCKET, self.object(key), self.modified + PATIENCE, value);
    }

    async fn find(&self, kept: &Kept, key: &str) -> Option<Vec<u8>> {
        find(kept, self.object(key)).await
    }
}

async fn find(kept: &Kept, object: Listed<'_>) -> Option<Vec<u8>> {
    assert!(kept.flush(PATIENCE));
    let found = kept.find(BUCKET, &[object]).await;
    assert_eq!(found.len(), 1);
    found.into_iter().next().flatten()
}

fn is_none(kept: &Kept) -> bool {
    kept.0.is_none()
}

#[tokio::test]
async fn what_was_put_is_found_by_the_next_mount_in_the_order_asked() {
    let scene = Scene::new();
    let kept = scene.open();
    let keys: Vec<String> = (0..3000).map(|n| format!("dir/{n}")).collect();
    for key in &keys[1..] {
        scene.put(&kept, key, key.as_bytes());
    }
    drop(kept);
    let kept = scene.open();
    let wanted: Vec<_> = keys.iter().map(|key| scene.object(key)).collect();
    let found = kept.find(BUCKET, &wanted).await;
    assert_eq!(found[0], None);
    for (key, value) in keys.iter().zip(found).skip(1) {
        assert_eq!(value.as_deref(), Some(key.as_bytes()));
    }
    assert_eq!(kept.find("https://s3.example/other", &wanted[..10]).await, vec![None; 10]);
    assert_eq!(kept.find(BUCKET, &[]).await, Vec::<Option<Vec<u8>>>::new());
}

#[tokio::test]
async fn another_etag_or_last_modified_is_another_object_and_takes_its_place() {
    let scene = Scene::new();
    let kept = scene.open();
    scene.put(&kept, "k", b"old");
    assert_eq!(scene.find(&kept, "k").await.as_deref(), Some(&b"old"[..]));
    let (etag, object) = (ETag::new("other"), scene.object("k"));
    let tagged = Listed { etag: &etag, ..object };
    let later = Listed { last_modified: scene.modified + Duration::from_secs(1), ..object };
    assert_eq!(find(&kept, tagged).await, None);
    assert_eq!(find(&kept, later).await, None);
    for (object, value) in [(tagged, b"1"), (later, b"2"), (later, b"3")] {
        kept.put(BUCKET, object, scene.modified + PATIENCE, value);
    }
    assert_eq!(find(&kept, later).await.as_deref(), Some(&b"3"[..]));
    assert_eq!(find(&kept, tagged).await, None);
    assert_eq!(scene.find(&kept, "k").await, None);
}

#[tokio::test]
async fn an_answer_asked_for_within_two_seconds_of_the_last_change_is_not_kept() {
    let scene = Scene::new();
    let kept = scene.open();
    for (after_millis, is_kept) in [(0, false), (1999, false), (2000, true)] {
        kept.put(BUCKET, scene.object("k"), scene.modified + Duration::from_millis(after_millis), b"v");
        assert_eq!(scene.find(&kept, "k").await.is_some(), is_kept, "{after_millis} ms");
    }
    kept.put(BUCKET, scene.object("future"), scene.modified - PATIENCE, b"v");
    assert_eq!(scene.find(&kept, "future").await, None);
}

#[tokio::test]
async fn last_modified_of_head_is_that_of_list_without_its_milliseconds() {
    let scene = Scene::new();
    let kept = scene.open();
    scene.put(&kept, "k", b"v");
    let listed = Listed { last_modified: scene.modified + Duration::from_millis(999), ..scene.object("k") };
    assert_eq!(find(&kept, listed).await.as_deref(), Some(&b"v"[..]));
}

#[tokio::test]
async fn the_bound_holds_however_much_is_put_and_the_latest_stays() {
    let scene = Scene::new();
    let entries_max = 1024;
    let kept = scene.open_for(entries_max);
    let keys: Vec<String> = (0..3 * entries_max).map(|n| format!("k{n}")).collect();
    for some in keys.chunks(256) {
        for key in some {
            scene.put(&kept, key, b"some sixty bytes of attributes, as the files of a mount have them");
        }
        assert!(kept.flush(PATIENCE));
    }
    let bytes = fs::metadata(&scene.path).unwrap().len();
    assert_eq!(bytes, (1 + entries_max / 32) * 4096);
    let wanted: Vec<_> = keys.iter().map(|key| scene.object(key)).collect();
    let found = kept.find(BUCKET, &wanted).await;
    let count = |from: usize| found[from..].iter().flatten().count();
    assert!(count(0) <= 1024 && count(0) > 900, "{}", count(0));
    // Of the latest half of what there is room for, nearly all.
    assert!(count(3072 - 512) > 500, "{}", count(3072 - 512));
}

#[tokio::test]
async fn what_is_longer_than_any_object_s_metadata_is_not_kept() {
    let scene = Scene::new();
    let kept = scene.open();
    scene.put(&kept, "fits", &[7; VALUE_MAX_BYTES]);
    scene.put(&kept, "too long", &[7; VALUE_MAX_BYTES + 1]);
    assert_eq!(scene.find(&kept, "fits").await, Some(vec![7; VALUE_MAX_BYTES]));
    assert_eq!(scene.find(&kept, "too long").await, None);
}

#[tokio::test]
async fn a_file_that_is_something_else_is_begun_anew() {
    let scene = Scene::new();
    let begins: [&dyn Fn(); 5] = [
        &|| fs::write(&scene.path, b"").unwrap(),
        &|| fs::write(&scene.path, vec![0xAA; 100_000]).unwrap(),
        &|| {
            let file = OpenOptions::new().write(true).open(&scene.path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        },
        &|| OpenOptions::new().append(true).open(&scene.path).unwrap().write_all(b"more").unwrap(),
        &|| {
            let file = OpenOptions::new().write(true).open(&scene.path).unwrap();
            file.write_all_at(&(FORMAT + 1).to_le_bytes(), 8).unwrap();
        },
    ];
    for (n, damages) in begins.into_iter().enumerate() {
        let kept = scene.open();
        scene.put(&kept, "k", b"v");
        assert!(scene.find(&kept, "k").await.is_some());
        drop(kept);
        damages();
        let kept = scene.open();
        assert!(!is_none(&kept));
        assert_eq!(scene.find(&kept, "k").await, None, "{n}");
    }
    assert_eq!(fs::read_dir(scene.path.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");
}

#[tokio::test]
async fn one_made_for_another_number_of_answers_is_begun_anew() {
    let scene = Scene::new();
    let before = scene.open_for(1000);
    scene.put(&before, "k", b"v");
    assert!(before.flush(PATIENCE));
    let after = scene.open_for(2000);
    assert_eq!(scene.find(&after, "k").await, None);
    scene.put(&after, "k", b"w");
    assert_eq!(scene.find(&after, "k").await.as_deref(), Some(&b"w"[..]));
    assert_eq!(
        scene.find(&before, "k").await.as_deref(),
        Some(&b"v"[..]),
        "its mount goes on with the old one"
    );
}

#[tokio::test]
async fn damage_loses_the_answers_it_falls_on_and_no_others() {
    let scene = Scene::new();
    let kept = scene.open();
    let keys: Vec<String> = (0..5000).map(|n| format!("k{n}")).collect();
    for key in &keys {
        scene.put(&kept, key, key.as_bytes());
    }
    drop(kept);
    let file = OpenOptions::new().read(true).write(true).open(&scene.path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096 - 1;
    for page in (0..pages).step_by(2) {
        // Among the entries, some 16 to a page.
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset(page) + 100).unwrap();
        file.write_all_at(&[byte[0] ^ 4], offset(page) + 100).unwrap();
    }
    let kept = scene.open();
    let wanted: Vec<_> = keys.iter().map(|key| scene.object(key)).collect();
    let found = kept.find(BUCKET, &wanted).await;
    for (key, value) in keys.iter().zip(&found) {
        let is_damaged = scene.object(key).of(BUCKET).page(pages).is_multiple_of(2);
        assert_eq!(value.as_deref(), (!is_damaged).then_some(key.as_bytes()), "{key}");
    }
    for key in &keys {
        scene.put(&kept, key, b"again");
    }
    assert!(kept.flush(PATIENCE));
    assert!(kept.find(BUCKET, &wanted).await.iter().all(Option::is_some), "and there is room again");
}

#[tokio::test]
async fn a_file_that_is_shortened_while_it_is_open_is_gone_on_with() {
    let scene = Scene::new();
    let kept = scene.open();
    scene.put(&kept, "k", b"v");
    assert!(kept.flush(PATIENCE));
    OpenOptions::new().write(true).open(&scene.path).unwrap().set_len(0).unwrap();
    assert_eq!(scene.find(&kept, "k").await, None);
    scene.put(&kept, "k", b"w");
    assert_eq!(scene.find(&kept, "k").await.as_deref(), Some(&b"w"[..]));
}

#[tokio::test]
async fn two_mounts_share_a_file() {
    let scene = Scene::new();
    // One page, so that both write it.
    let (one, two) = (scene.open_for(1), scene.open_for(1));
    scene.put(&one, "k", b"1");
    assert_eq!(scene.find(&one, "k").await.as_deref(), Some(&b"1"[..]));
    scene.put(&two, "l", b"2");
    assert_eq!(scene.find(&two, "l").await.as_deref(), Some(&b"2"[..]));
    assert_eq!(scene.find(&one, "l").await.as_deref(), Some(&b"2"[..]));
    assert_eq!(scene.find(&two, "k").await.as_deref(), Some(&b"1"[..]));
    // Whoever comes first, what is found is true.
    std::thread::scope(|scope| {
        for kept in [&one, &two] {
            scope.spawn(|| {
                for n in 0..500 {
                    let key = format!("k{}", n % 40);
                    scene.put(kept, &key, key.as_bytes());
                }
                assert!(kept.flush(PATIENCE));
            });
        }
    });
    for n in 0..40 {
        let key = format!("k{n}");
        let found = scene.find(&one, &key).await;
        assert!(found.is_none_or(|value| value == key.as_bytes()), "{key}");
    }
}

#[tokio::test]
async fn where_others_could_write_and_where_no_file_can_be_it_is_done_without() {
    let scene = Scene::new();
    drop(scene.open());
    let dir = scene.path.parent().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(dir), mode(&scene.path)), (0o700, 0o600));
    for (open_to_others, is_used) in [(0o770, false), (0o702, false), (0o755, true)] {
        fs::set_permissions(dir, fs::Permissions::from_mode(open_to_others)).unwrap();
        assert_eq!(!is_none(&scene.open()), is_used, "{open_to_others:o}");
    }
    let no_dir = Kept::open(&scene.path.join("below a file"), 1000, scene.clock.clone());
    fs::remove_file(&scene.path).unwrap();
    fs::create_dir(&scene.path).unwrap();
    let no_file = scene.open();
    for kept in [no_dir, no_file, Kept::open(Path::new("/"), 1000, scene.clock.clone()), Kept::default()] {
        assert!(is_none(&kept));
        scene.put(&kept, "k", b"v");
        assert_eq!(scene.find(&kept, "k").await, None);
    }
    assert!(scene.dir.path().exists());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_not_waited_for_and_asked_again_after_a_while() {
    let scene = Scene::new();
    let kept = scene.open();
    scene.put(&kept, "k", b"v");
    assert!(scene.find(&kept, "k").await.is_some());
    let hangs = tokio::spawn(std::future::pending::<()>());
    assert_eq!(kept.0.as_ref().unwrap().in_time(hangs).await, None);
    assert_eq!(scene.find(&kept, "k").await, None);
    scene.clock.advance(REST);
    assert!(scene.find(&kept, "k").await.is_some());
}

#[tokio::test]
async fn a_disk_that_fails_fails_nobody() {
    let scene = Scene::new();
    drop(scene.open());
    let written_only = OpenOptions::new().write(true).open(&scene.path).unwrap();
    let shared = Shared {
        file: written_only,
        pages: 1,
        behind: Behind::default(),
        resting_until: Mutex::default(),
        has_warned: AtomicBool::new(false),
        clock: scene.clock.clone(),
    };
    let shared = Arc::new(shared);
    let writer = Arc::clone(&shared);
    let thread = std::thread::spawn(move || writer.write_all());
    let kept = Kept(Some(shared));
    scene.put(&kept, "k", b"v");
    assert!(kept.flush(PATIENCE));
    assert_eq!(scene.find(&kept, "k").await, None);
    assert!(kept.0.as_ref().unwrap().rests());
    drop(kept);
    thread.join().unwrap();
}

#[tokio::test]
async fn what_a_link_in_its_place_leads_to_is_neither_read_nor_written() {
    let scene = Scene::new();
    drop(scene.open());
    let victim = scene.dir.path().join("victim");
    fs::rename(&scene.path, &victim).unwrap();
    let before = fs::read(&victim).unwrap();
    std::os::unix::fs::symlink(&victim, &scene.path).unwrap();
    let kept = scene.open();
    scene.put(&kept, "k", b"v");
    assert_eq!(scene.find(&kept, "k").await.as_deref(), Some(&b"v"[..]));
    assert!(fs::symlink_metadata(&scene.path).unwrap().is_file());
    assert!(fs::read(&victim).unwrap() == before);
}
