//! The options of `mount -o` and of the fourth column of /etc/fstab: taken apart, and told what they mean. Pure.
//!
//! A list is `name` and `name=value` with commas between. A value with a comma in it is written in double quotes, or with a
//! backslash before the comma; a backslash takes the next character as it is, or three octal digits as a byte (libfuse and
//! mount(8) read them the same way). /etc/fstab has a syntax of its own above that, which mount(8) undoes: a space there
//! is `\040`, and `\,` stays.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What mount(8), systemd and people write that changes nothing here: words for whoever reads the table, kernel flags that
/// hold for no mount of ours or for each of them.
const WITHOUT_EFFECT: &[&str] = &[
    "_netdev",
    "_rnetdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "suid",
    "user",
    "users",
];

/// What is not taken, because it would promise what is not kept, or because it has another name here than in other mounts.
const REFUSED: &[(&str, &str)] = &[
    ("remount", "a running mount cannot be changed: unmount it and mount it again"),
    ("sync", "every write would be an upload; close() and fsync() mean S3 already"),
    (
        "dirsync",
        "names are changed in S3 before the call returns; of files removed in a row fsync of the directory waits",
    ),
    ("allow_root", "allow_other lets root in, and everybody else whom the permissions of the files let in"),
    ("fmask", "write file_mode=644"),
    ("dmask", "write dir_mode=755"),
    ("url", "write endpoint_url=URL"),
    ("use_cache", "write cache_dir=DIR"),
    ("passwd_file", "keys come from env_file=FILE, a session of the configuration, or a profile"),
    ("iam_role", "the role of the machine or container is found without it"),
    ("nonempty", "nothing has to be said to mount on a directory that is not empty"),
];

/// A file of environment variables, the one option that is no flag of `pailfs mount`.
pub const ENV_FILE: &str = "env_file";

/// One option of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOption {
    pub name: String,
    pub value: Option<OsString>,
}

/// Takes a list apart. An error is a sentence about the list.
pub fn split(list: &[u8]) -> Result<Vec<MountOption>, String> {
    let mut options = Vec::new();
    let mut name = Vec::new();
    let mut value: Option<Vec<u8>> = None;
    let mut quoted = false;
    let mut rest = list;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let mut plain = byte;
        match byte {
            b'"' => {
                quoted = !quoted;
                continue;
            }
            b',' if !quoted => {
                push(&mut options, &mut name, &mut value)?;
                continue;
            }
            b'=' if !quoted && value.is_none() => {
                value = Some(Vec::new());
                continue;
            }
            b'\\' => (plain, rest) = unescape(rest)?,
            _ => {}
        }
        if plain == 0 {
            return Err("an option cannot hold the byte 0".to_owned());
        }
        value.as_mut().unwrap_or(&mut name).push(plain);
    }
    if quoted {
        return Err("a double quote is not closed".to_owned());
    }
    push(&mut options, &mut name, &mut value)?;
    Ok(options)
}

/// What follows a backslash, and what follows that.
fn unescape(rest: &[u8]) -> Result<(u8, &[u8]), String> {
    match rest {
        [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
            Ok(((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'), after))
        }
        [byte, after @ ..] => Ok((*byte, after)),
        [] => Err("there is nothing after the last backslash".to_owned()),
    }
}

/// Ends an option. One without a name and a value is none: `defaults,,ro` is what editing leaves behind.
fn push(
    options: &mut Vec<MountOption>,
    name: &mut Vec<u8>,
    value: &mut Option<Vec<u8>>,
) -> Result<(), String> {
    let (name, value) = (std::mem::take(name), value.take());
    if name.is_empty() && value.is_none() {
        return Ok(());
    }
    let name = String::from_utf8(name).map_err(|error| {
        format!("{:?} is not the name of an option", error.into_bytes().escape_ascii().to_string())
    })?;
    options.push(MountOption { name, value: value.map(OsString::from_vec) });
    Ok(())
}

/// A flag that may be given as an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// As on the command line, without the dashes before it.
    pub name: String,
    pub takes_value: bool,
    /// Whether each time adds something; otherwise the last one counts, as everywhere in /etc/fstab.
    pub repeats: bool,
}

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// For the command line of `pailfs mount`.
    pub flags: Vec<OsString>,
    pub env_file: Option<PathBuf>,
    /// Options that nobody knows, which a caller may pass over where it is told to be sloppy.
    pub unknown: Vec<String>,
}

/// What the options mean, in the flags of `pailfs mount`.
pub fn translate(options: &[MountOption], flags: &[Flag]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut given: Vec<(&str, OsString)> = Vec::new();
    for MountOption { name, value } in options {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(format!("the option {name} is not offered: {why}"));
        }
        let flag_name = match name.as_str() {
            "ro" => "read-only".to_owned(),
            // They take back what was said before them.
            "rw" | "exec" => {
                given.retain(|(flag, _)| *flag != if name == "rw" { "read-only" } else { "noexec" });
                continue;
            }
            ENV_FILE => {
                let Some(file) = value else { return Err(format!("the option {ENV_FILE} needs a file")) };
                asked.env_file = Some(file.into());
                continue;
            }
            _ => name.replace('_', "-"),
        };
        if let Some(flag) = flags.iter().find(|flag| flag.name == flag_name) {
            let typed = match (value, flag.takes_value) {
                (Some(value), true) => joined(&flag.name, value),
                (None, false) => OsString::from(format!("--{}", flag.name)),
                (None, true) => return Err(format!("the option {name} needs a value: {name}=...")),
                (Some(_), false) => return Err(format!("the option {name} takes no value")),
            };
            if !flag.repeats {
                given.retain(|(before, _)| *before != flag.name);
            }
            given.push((&flag.name, typed));
        } else if !is_without_effect(name) {
            asked.unknown.push(match nearest(name, flags) {
                Some(near) => format!("there is no option {name:?}; is {near} meant?"),
                None => format!("there is no option {name:?}; `pailfs mount --help` has all of them"),
            });
        }
    }
    asked.flags = given.into_iter().map(|(_, typed)| typed).collect();
    Ok(asked)
}

fn joined(flag: &str, value: &OsString) -> OsString {
    let mut typed = format!("--{flag}=").into_bytes();
    typed.extend_from_slice(value.as_bytes());
    OsString::from_vec(typed)
}

fn is_without_effect(name: &str) -> bool {
    // mount(8) sets these words aside for others: x-systemd.automount, comment=...
    let for_others = name.starts_with("x-") || name.starts_with("X-") || name == "comment";
    for_others || WITHOUT_EFFECT.contains(&name)
}

/// The option that a misspelt one is nearest to, if it is near enough to be meant.
fn nearest(name: &str, flags: &[Flag]) -> Option<String> {
    let as_typed = name.replace('-', "_");
    let known = flags.iter().map(|flag| flag.name.replace('-', "_"));
    let words = WITHOUT_EFFECT.iter().map(|word| (*word).to_owned());
    known
        .chain(words)
        .chain(["ro", "rw", "exec", ENV_FILE].map(str::to_owned))
        .map(|word| (distance(&as_typed, &word), word))
        .filter(|(distance, word)| *distance <= word.len().max(as_typed.len()) / 3)
        .min()
        .map(|(_, word)| word)
}

/// Characters that are to be added, taken away or replaced to come from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flags() -> Vec<Flag> {
        let flag = |name: &str, takes_value, repeats| Flag { name: name.into(), takes_value, repeats };
        vec![
            flag("read-only", false, false),
            flag("noexec", false, false),
            flag("allow-other", false, false),
            flag("metadata-ttl", true, false),
            flag("endpoint-url", true, false),
            flag("tag", true, true),
        ]
    }

    fn asked(list: &str) -> Result<Asked, String> {
        translate(&split(list.as_bytes())?, &flags())
    }

    /// The list that `split` takes apart into these.
    fn join(options: &[MountOption]) -> Vec<u8> {
        let mut list = Vec::new();
        for MountOption { name, value } in options {
            if !list.is_empty() {
                list.push(b',');
            }
            escape(name.as_bytes(), &mut list);
            if let Some(value) = value {
                list.push(b'=');
                escape(value.as_bytes(), &mut list);
            }
        }
        list
    }

    fn escape(text: &[u8], list: &mut Vec<u8>) {
        for byte in text {
            if matches!(byte, b',' | b'\\' | b'"' | b'=') {
                list.push(b'\\');
            }
            list.push(*byte);
        }
    }

    #[test]
    fn a_list_is_taken_apart_at_its_commas() {
        for (list, expected) in [
            ("", &[][..]),
            (",,ro,", &[("ro", None)]),
            ("a=b=c,d", &[("a", Some("b=c")), ("d", None)]),
            ("a=", &[("a", Some(""))]),
            (r#"a="x,y",b"#, &[("a", Some("x,y")), ("b", None)]),
            (r#"a=x\,y,b=\"q\\"#, &[("a", Some("x,y")), ("b", Some(r#""q\"#))]),
            (r"a=x\040y\054z\777", &[("a", Some("x y,z777"))]),
            (r"=v", &[("", Some("v"))]),
        ] {
            let found = split(list.as_bytes()).unwrap();
            let found: Vec<_> =
                found.iter().map(|o| (o.name.as_str(), o.value.as_ref().and_then(|v| v.to_str()))).collect();
            assert_eq!(found, expected, "{list}");
        }
        for (list, word) in
            [("a=\\", "backslash"), ("a=\"b,c", "quote"), ("a=\\000", "byte 0"), ("a=\0", "byte 0")]
        {
            assert!(split(list.as_bytes()).unwrap_err().contains(word), "{list:?}");
        }
        assert!(split(b"\xff=x").unwrap_err().contains(r"\\xff"));
        assert_eq!(split(b"a=\xff").unwrap()[0].value.as_ref().unwrap().as_bytes(), b"\xff");
    }

    #[test]
    fn flags_are_options_by_their_names_with_either_dash() {
        let asked = asked("allow_other,metadata-ttl=5s,endpoint_url=http://x:1,tag=a=1,tag=b=2").unwrap();
        let expected =
            ["--allow-other", "--metadata-ttl=5s", "--endpoint-url=http://x:1", "--tag=a=1", "--tag=b=2"];
        assert_eq!(asked.flags, expected);
        assert_eq!((asked.env_file, asked.unknown.len()), (None, 0));
    }

    #[test]
    fn the_last_word_counts() {
        assert_eq!(asked("metadata_ttl=1s,metadata-ttl=2s").unwrap().flags, ["--metadata-ttl=2s"]);
        assert_eq!(asked("ro").unwrap().flags, ["--read-only"]);
        assert_eq!(asked("read_only,rw").unwrap().flags, [""; 0]);
        assert_eq!(asked("rw,ro").unwrap().flags, ["--read-only"]);
        assert_eq!(asked("user,noexec,nosuid,exec").unwrap().flags, [""; 0]);
        assert_eq!(asked("users,noexec").unwrap().flags, ["--noexec"]);
    }

    #[test]
    fn what_others_read_is_passed_over_and_what_nobody_knows_is_not() {
        let list = "defaults,_netdev,nofail,noauto,x-systemd.automount,x-systemd.requires=a.service,X-mount.mkdir,\
                    comment=mine,rw,exec,suid,dev,user=anna,relatime";
        assert_eq!(asked(list).unwrap(), Asked::default());
        for (list, near) in [
            ("alow_other", "is allow_other meant?"),
            ("metadata-tll=1s", "is metadata_ttl meant?"),
            ("_netdv", "is _netdev meant?"),
            ("zzzzzzzzzzzz", "--help"),
        ] {
            let unknown = asked(list).unwrap().unknown;
            assert!(unknown.len() == 1 && unknown[0].contains(near), "{list}: {unknown:?}");
        }
        for (list, word) in [
            ("sync", "not offered"),
            ("fmask=022", "file_mode=644"),
            ("remount,ro", "mount it again"),
            ("metadata_ttl", "needs a value"),
            ("allow_other=yes", "takes no value"),
            ("env_file", "needs a file"),
        ] {
            assert!(asked(list).unwrap_err().contains(word), "{list}");
        }
        assert_eq!(asked("env_file=/etc/e").unwrap().env_file, Some("/etc/e".into()));
    }

    #[test]
    fn the_words_that_change_nothing_are_in_order() {
        assert!(WITHOUT_EFFECT.is_sorted());
    }

    fn options() -> impl Strategy<Value = Vec<MountOption>> {
        let value = proptest::collection::vec(
            prop_oneof![Just(b','), Just(b'\\'), Just(b'"'), Just(b'='), Just(b' '), 1..=255_u8],
            0..8,
        );
        let name = r#"[a-z_\-.,="\\ ]{1,6}"#;
        let option = (name, proptest::option::of(value))
            .prop_map(|(name, value)| MountOption { name, value: value.map(OsString::from_vec) });
        proptest::collection::vec(option, 0..6)
    }

    proptest! {
        #[test]
        fn what_was_put_together_is_taken_apart_again(options in options()) {
            // Octal digits after a literal backslash are not an escape, because the backslash itself is one.
            prop_assert_eq!(split(&join(&options)).unwrap(), options);
        }

        #[test]
        fn no_bytes_make_it_panic(list in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(options) = split(&list) {
                let _ = translate(&options, &flags());
                prop_assert_eq!(split(&join(&options)).unwrap(), options);
            }
        }

        #[test]
        fn words_of_the_table_are_never_misread(list in "(ro|rw|exec|noexec|user|tag=a=b|sync|,|\"|\\\\|=|x-a){0,12}") {
            if let Ok(options) = split(list.as_bytes()) && let Ok(asked) = translate(&options, &flags()) {
                for flag in &asked.flags {
                    prop_assert!(flag.as_bytes().starts_with(b"--"));
                }
                prop_assert!(asked.flags.iter().filter(|flag| *flag == "--read-only").count() <= 1);
            }
        }
    }
}
