//! Facts about the source itself: the layers of the house, and documents that say what the code says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push((path.clone(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The part of a file that is compiled into the program.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

/// Which modules of ours each module may name (lib.rs draws them).
const LAYERS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("error", &[]),
    ("stats", &[]),
    ("s3", &["base", "error", "stats"]),
    ("config", &["base", "error", "s3"]),
    ("tree", &["base", "error", "s3"]),
    ("read", &["base", "error", "s3", "stats"]),
    ("write", &["base", "error", "s3"]),
    ("fs", &["base", "error", "stats", "s3", "tree", "read", "write"]),
    ("fuse", &["base", "error", "fs", "tree"]),
    ("control", &["base", "error", "stats"]),
    ("demo", &["base", "error", "stats", "s3"]),
    ("mount", &["base", "error", "config", "control", "fs", "fuse", "s3", "stats", "write"]),
];

#[test]
fn arrows_point_down() {
    for (module, allowed) in LAYERS {
        let dir = src().join(module);
        let files = if dir.is_dir() {
            sources(&dir)
        } else {
            let file = src().join(format!("{module}.rs"));
            vec![(file.clone(), fs::read_to_string(&file).unwrap())]
        };
        for (path, text) in files {
            if path.ends_with("tests.rs") {
                continue;
            }
            for rest in without_tests(&text).split("crate::").skip(1) {
                let named: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let known = LAYERS.iter().any(|(name, _)| *name == named) || named == "cli";
                let fine = !known || named == *module || allowed.contains(&named.as_str());
                assert!(fine, "{} names crate::{named}", path.display());
            }
        }
    }
}

/// The module that a file is, from the crate's root.
fn module(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(src()).unwrap().with_extension("");
    let mut parts: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The modules that a file imports from, as `use` spells them: `crate::a::b` or `super::b`, one group of braces deep.
fn imported(of: &[String], is_mod: bool, text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for statement in text.split("\nuse ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let statement: String = statement.chars().filter(|c| !c.is_whitespace()).collect();
        let (head, group) = statement.split_once('{').unwrap_or((&statement, ""));
        let mut path = of.to_vec();
        if !is_mod {
            path.pop();
        }
        let mut steps = head.split("::").filter(|step| !step.is_empty());
        match steps.next() {
            Some("crate") => path.clear(),
            // A file's own directory is its parent's.
            Some("super") if !is_mod => {}
            Some("super") => drop(path.pop()),
            _ => continue,
        }
        for step in steps {
            match step {
                "super" => drop(path.pop()),
                step => path.push(step.to_owned()),
            }
        }
        for name in group.split([',', '{', '}']) {
            let mut path = path.clone();
            path.extend(name.split("::").map(str::to_owned));
            found.push(path);
        }
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let files: BTreeMap<Vec<String>, (bool, String)> = sources(&src())
        .into_iter()
        .filter(|(path, _)| !path.ends_with("tests.rs"))
        .map(|(path, text)| (module(&path), (path.ends_with("mod.rs"), without_tests(&text).to_owned())))
        .collect();
    let mut arrows: BTreeMap<&[String], BTreeSet<&[String]>> =
        files.keys().map(|file| (file.as_slice(), BTreeSet::new())).collect();
    for (from, (is_mod, text)) in &files {
        for path in imported(from, *is_mod, text) {
            let file = (1..=path.len()).rev().find_map(|len| files.get_key_value(&path[..len]));
            // What a module and its own parts share is its house.
            if let Some((to, _)) = file.filter(|(to, _)| !from.starts_with(to) && !to.starts_with(from)) {
                arrows.entry(from).or_default().insert(to);
            }
        }
    }
    let count: usize = arrows.values().map(BTreeSet::len).sum();
    assert!(count > 300, "the imports are read: {count}");
    // Whoever imports nothing that is left is in no circle, and nor is whom nothing that is left imports.
    while let Some(from) = arrows.iter().find(|(_, to)| to.is_empty()).map(|(from, _)| *from) {
        arrows.remove(from);
        for to in arrows.values_mut() {
            to.remove(from);
        }
    }
    while let Some(from) = arrows.keys().find(|from| !arrows.values().any(|to| to.contains(*from))).copied() {
        arrows.remove(from);
    }
    assert!(arrows.is_empty(), "in a circle: {arrows:#?}");
}

#[test]
fn one_place_speaks_s3_and_one_speaks_fuse() {
    for (path, text) in sources(&src()) {
        let inside = |dir: &str| path.starts_with(src().join(dir));
        for line in without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let sdk = ["aws_sdk", "aws_config", "aws_smithy", "aws_types", "aws_credential"];
            assert!(
                inside("s3") || !sdk.iter().any(|name| line.contains(name)),
                "{}: {line}",
                path.display()
            );
            assert!(inside("fuse") || !line.contains("fuser::"), "{}: {line}", path.display());
        }
    }
}

#[test]
fn two_places_alone_are_unsafe() {
    for (path, text) in sources(&src()) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let blocks = code.filter(|line| line.contains("unsafe")).count();
        let known = ["fuse/device.rs", "base/allocator.rs"].iter().any(|known| path.ends_with(known));
        let allowed = if known { 2 } else { 0 };
        assert_eq!(blocks, allowed, "{}: the lint's word, and one block", path.display());
    }
}

#[test]
fn the_table_of_flags_is_the_program_s() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FLAGS.md")).unwrap();
    let commands: &[&[&str]] = &[
        &["mount"],
        &["umount"],
        &["status"],
        &["flush"],
        &["log-level"],
        &["sessions"],
        &["sessions", "check"],
        &["completions"],
        &["demo"],
    ];
    let mut known = BTreeSet::new();
    for command in commands {
        let output =
            Command::new(env!("CARGO_BIN_EXE_pailfs")).args(*command).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let heading = format!("## `pailfs {}`", command.join(" "));
        let section = page
            .split("\n## ")
            .find(|s| format!("## {s}").starts_with(&heading))
            .unwrap_or_else(|| panic!("docs/FLAGS.md has no section {heading}"));
        for flag in help.lines().filter_map(|line| {
            let line = line.trim_start();
            let at = line.find("--").filter(|at| *at <= 4)?;
            line.starts_with('-').then(|| {
                let name: String =
                    line[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
                name
            })
        }) {
            assert!(flag == "--help" || section.contains(&format!("`{flag}")), "{heading} lacks {flag}");
            known.insert(flag);
        }
    }
    for flag in page.split('`').skip(1).step_by(2).filter(|text| text.starts_with("--")) {
        let name: String = flag.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        assert!(known.contains(&name), "docs/FLAGS.md tells of {name}, which there is not");
    }
}

#[test]
fn the_page_of_metrics_is_the_table_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    let wanted = pailfs::stats::markdown();
    if std::env::var_os("PAILFS_WRITE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap();
    let differs = page.lines().zip(wanted.lines()).find(|(has, wanted)| has != wanted);
    assert!(
        page == wanted,
        "docs/METRICS.md is not what the table says, first in {differs:?}; PAILFS_WRITE_DOCS=1 writes it"
    );
    for metric in pailfs::stats::table() {
        let rows = page.matches(&format!("\n| `{}` |", metric.name)).count();
        assert_eq!(rows, 1, "{} has {rows} rows", metric.name);
        assert!(!metric.meaning.contains('|'), "{}", metric.name);
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Folders hold pictures and figures.
    pages.retain(|page| page.is_file());
    pages.push(root.join("README.md"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.contains("://") && !target.starts_with('#') {
                let target = target.split('#').next().unwrap();
                assert!(page.parent().unwrap().join(target).exists(), "{}: {target}", page.display());
            }
        }
    }
}

#[test]
fn every_row_of_the_semantics_is_quoted_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
    let quotes: Vec<String> = sources(&root.join("tests"))
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.trim_start().strip_prefix("/// ").map(str::to_owned))
        .collect();
    let mut rows = 0;
    for row in page.lines().filter_map(|line| line.strip_prefix("| ")) {
        let first = row.split(" |").next().unwrap();
        if ["promise", "operation"].contains(&first) {
            continue;
        }
        rows += 1;
        let is_promise = first.len() <= 3 && first.ends_with(|c: char| c.is_ascii_digit());
        let quote = if is_promise { format!("{first}: \"") } else { format!("\"{first} |") };
        assert!(quotes.iter().any(|line| line.contains(&quote)), "no test quotes the row {first:?}");
    }
    assert!(rows > 20, "{rows} rows only");
}

/// Bug reports of other mounts, by our numbers, that a test has to show not to be ours: those that touch writing.
const REPORTS: [(u8, &str); 22] = [
    (1, "a file that was written, renamed and read at once is short"),
    (2, "a file that is renamed while it is written is corrupt"),
    (3, "one part fails, and the next flush copies the old object over itself"),
    (4, "a file that may not be written reads as if it had been"),
    (5, "a file that is replaced under an editor reads as a mixture"),
    (6, "an error's words are in a file"),
    (10, "small changes of a large object make parts that are too small"),
    (11, "a sparse or grown file cannot be uploaded"),
    (13, "a directory of 1,235 files is moved as one of 1,000"),
    (14, "a rename beside another client's delete ends the process"),
    (15, "rm -r beside another client's create ends the process"),
    (17, "ls beside a loop of renamed locks hangs for ever"),
    (19, "removing before close, and opening right after it, fail"),
    (24, "a copy larger than the local disk is cut short"),
    (25, "a closed file is dropped by umount, a signal or a kill"),
    (27, "connections that the server closed while idle hang the next upload"),
    (28, "credentials that expire during a copy end it"),
    (29, "a copy on the server that says nothing for long is given up"),
    (31, "a server that refuses checksums is not served"),
    (32, "files over 80 GB cannot be written, nor those over 5 GiB renamed"),
    (34, "two mounts that share a directory lose each other's files"),
    (36, "sqlite, git, vim, rsync, shutil and tar fail"),
];

#[test]
fn every_report_has_a_test_with_its_number() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = [root.join("tests"), src()].iter().flat_map(|dir| sources(dir)).collect::<Vec<_>>();
    let lines =
        || found.iter().filter(|(path, _)| !path.ends_with("tidy.rs")).flat_map(|(_, text)| text.lines());
    for (number, what) in REPORTS {
        let (name, quote) = (format!("fn t{number:02}_"), format!("/// T{number}: "));
        let named = lines().any(|line| line.contains(&name) || line.trim_start().starts_with(&quote));
        assert!(named, "no test is named for report T{number}: {what}");
    }
}
