//! `pailfs sessions`: which sessions there are, where their values come from, and what an endpoint really does.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use futures::StreamExt;
use serde::Serialize;

use super::args::{CheckArgs, SessionsArgs};
use super::exit::{Code, Failure};
use super::printable::{printable, printable_json};
use super::{machine, mount};
use crate::base::SystemClock;
use crate::config::{ConfigFile, DEFAULT_SESSION, S3Url};
use crate::error::{Error, Kind};
use crate::s3::{
    Caller, Capabilities, CapabilityCache, Depth, Probed, Session, SessionConfig, SessionDescription, probe,
};

/// Sessions whose credentials are looked for at once.
const SESSIONS_AT_ONCE: usize = 8;
/// How a profile of the AWS files is named.
const BY_PROFILE: &str = "--profile";

/// A session that can be named, and how.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    /// What `--session` or `--profile` takes.
    name: String,
    flag: &'static str,
    settings: SessionConfig,
}

#[derive(Serialize)]
struct Listed {
    flag: &'static str,
    #[serde(flatten)]
    session: SessionDescription,
}

pub async fn list(args: &SessionsArgs) -> Result<(), Failure> {
    let (file, warnings) = machine::load_config(args.config.config.as_deref())?;
    warn(&warnings);
    let files: Vec<String> =
        machine::profile_files().iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let described = futures::stream::iter(known(&file, &files).into_iter().map(describe));
    let described: Vec<Listed> = described.buffered(SESSIONS_AT_ONCE).collect().await;
    let text = if args.json {
        json(&described)?
    } else {
        described.iter().map(|listed| format!("{}\n", show(listed))).collect()
    };
    print(&text)
}

/// The default session, those of the configuration, and the profiles of the AWS files.
fn known(file: &ConfigFile, aws_files: &[String]) -> Vec<Known> {
    let others = file.sessions.keys().map(String::as_str).filter(|&name| name != DEFAULT_SESSION);
    let configured = std::iter::once(DEFAULT_SESSION).chain(others).map(|name| Known {
        name: name.to_owned(),
        flag: "--session",
        settings: file.sessions.get(name).cloned().unwrap_or_default(),
    });
    let profiles: BTreeSet<String> = aws_files.iter().flat_map(|text| profiles(text)).collect();
    let profiles = profiles.into_iter().map(|name| Known {
        flag: BY_PROFILE,
        settings: SessionConfig { profile: Some(name.clone()), ..SessionConfig::default() },
        name,
    });
    configured.chain(profiles).collect()
}

/// The names of the profiles in a file of the AWS tools: `[profile work]`, or `[work]`.
fn profiles(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let section = line.trim().strip_prefix('[')?.split_once(']')?.0.trim();
        match section.split_once(char::is_whitespace) {
            Some(("profile", name)) => Some(name.trim().trim_matches(['"', '\'']).to_owned()),
            // `[sso-session x]`, `[services x]`
            Some(_) => None,
            None => Some(section.to_owned()),
        }
    };
    text.lines().filter_map(name).filter(|name| !name.is_empty()).collect()
}

async fn describe(known: Known) -> Listed {
    let built = Session::builder().name(&known.name).settings(known.settings.clone()).build().await;
    let mut session = match built {
        Ok(session) => session.describe().await,
        Err(error) => not_built(&known, &error),
    };
    if let Some(profile) = session.profile.as_mut().filter(|_| known.flag == BY_PROFILE) {
        profile.source = "AWS files".to_owned();
    }
    Listed { flag: known.flag, session }
}

fn not_built(known: &Known, error: &Error) -> SessionDescription {
    let value = |value: Option<&str>| crate::s3::Described {
        value: value.unwrap_or("unknown").to_owned(),
        source: "configuration".to_owned(),
    };
    SessionDescription {
        name: known.name.clone(),
        profile: known.settings.profile.as_deref().map(|profile| value(Some(profile))),
        region: value(known.settings.region.as_deref()),
        endpoint: value(known.settings.endpoint_url.as_deref()),
        credentials: value(None),
        expires: None,
        problem: Some(error.report()),
    }
}

fn show(listed: &Listed) -> String {
    let session = &listed.session;
    let mut text = format!("{} ({} {})\n", session.name, listed.flag, session.name);
    text.push_str(&rows(session));
    text
}

fn rows(session: &SessionDescription) -> String {
    let mut text = String::new();
    let values = [
        ("profile", session.profile.as_ref()),
        ("region", Some(&session.region)),
        ("endpoint", Some(&session.endpoint)),
        ("credentials", Some(&session.credentials)),
    ];
    for (what, value) in values {
        if let Some(value) = value {
            let (value, source) = (printable(&value.value), printable(&value.source));
            let _ = writeln!(text, "  {what:<12} {value:<32} from {source}");
        }
    }
    if let Some(expires) = session.expires {
        let _ = writeln!(text, "  {:<12} {expires} (seconds since 1970)", "expires");
    }
    if let Some(problem) = &session.problem {
        let _ = writeln!(text, "  {:<12} {}", "problem", printable(problem));
    }
    text
}

#[derive(Serialize)]
struct Checked {
    session: SessionDescription,
    caller: Option<Caller>,
    /// Why the caller is not known.
    caller_unknown: Option<String>,
    bucket: Option<CheckedBucket>,
}

#[derive(Serialize)]
struct CheckedBucket {
    name: String,
    region: Option<String>,
    capabilities: Capabilities,
    /// Why not everything was asked.
    stopped: Option<String>,
    /// What the check could not take away again.
    left: Vec<String>,
}

pub async fn check(args: &CheckArgs) -> Result<(), Failure> {
    let (name, place) = subject(&args.what, args.session.session.as_deref())?;
    let (file, warnings) = machine::load_config(args.config.config.as_deref())?;
    warn(&warnings);
    let settings = mount::session_settings(&name, &args.session, &file)?;
    let session = Session::builder().name(&name).settings(settings).build().await.map_err(|error| {
        let code = if error.kind() == Kind::InvalidArgument { Code::Config } else { Code::of(error.kind()) };
        Failure::coded(code, &error)
    })?;
    let (caller, caller_unknown) = match session.caller().await {
        Ok(caller) => (Some(caller), None),
        // Not every server has an STS to ask; the requests that follow tell whether the identity is good.
        Err(error) if error.kind() == Kind::Unsupported => (None, Some(error.message().to_owned())),
        Err(error) => return Err(error.into()),
    };
    let bucket = match place {
        Some((bucket, prefix)) => Some(check_bucket(&session, bucket, &prefix).await?),
        None => None,
    };
    let typed = args.session.settings().map_err(|message| Failure::new(Code::Usage, message))?;
    let described = with_typed(session.describe().await, &typed);
    let checked = Checked { session: described, caller, caller_unknown, bucket };
    print(&if args.json { json(&checked)? } else { show_checked(&checked) })
}

/// What was typed reached the session in the same way as the configuration did, but people tell them apart.
fn with_typed(mut described: SessionDescription, typed: &SessionConfig) -> SessionDescription {
    let values = [
        (typed.profile.is_some(), described.profile.as_mut()),
        (typed.region.is_some(), Some(&mut described.region)),
        (typed.endpoint_url.is_some(), Some(&mut described.endpoint)),
        (typed.no_sign_request.is_some(), Some(&mut described.credentials)),
    ];
    for (typed, value) in values {
        if let Some(value) = value.filter(|_| typed) {
            value.source = "command line".to_owned();
        }
    }
    described
}

async fn check_bucket(session: &Session, name: String, prefix: &str) -> Result<CheckedBucket, Failure> {
    let (store, region) = session.store_for(&name).await?;
    // What the endpoint says of itself is the truth, if it says something.
    let region = store.head_bucket(&name).await?.region.or(session.region_of(&name).await?).or(region);
    let Probed { capabilities, stopped, left } = probe(&*store, &name, prefix, Depth::Full).await?;
    // What was found out serves the mounts to come. Without a state directory each asks for itself.
    if let (Some(endpoint), Ok(dir)) = (session.endpoint_url(), machine::default_state_dir()) {
        CapabilityCache::new(Some(&dir), Arc::new(SystemClock)).learn(&endpoint, &name, &capabilities);
    }
    Ok(CheckedBucket { name, region, capabilities, stopped, left })
}

fn show_checked(checked: &Checked) -> String {
    let mut text = format!("{}\n{}", checked.session.name, rows(&checked.session));
    match (&checked.caller, &checked.caller_unknown) {
        (Some(caller), _) => {
            let (arn, account) = (printable(&caller.arn), printable(&caller.account));
            let _ = writeln!(text, "  {:<12} {arn} (account {account})", "caller");
        }
        (None, Some(why)) => {
            let _ = writeln!(text, "  {:<12} unknown: {}", "caller", printable(why));
        }
        (None, None) => {}
    }
    if let Some(bucket) = &checked.bucket {
        let region = printable(bucket.region.as_deref().unwrap_or("not told by the endpoint"));
        let _ = writeln!(text, "s3://{}\n  {:<34} {region}", bucket.name, "region");
        for (name, verdict, meaning) in bucket.capabilities.table() {
            let _ = writeln!(text, "  {name:<34} {verdict:<8} {meaning}");
        }
        if let Some(why) = &bucket.stopped {
            let _ = writeln!(
                text,
                "  nothing was written to find out more, because it would stay: {}",
                printable(why)
            );
        }
        for left in &bucket.left {
            let _ = writeln!(
                text,
                "  left behind, because it could not be deleted: s3://{}/{}",
                bucket.name,
                printable(left)
            );
        }
    }
    text
}

/// What is to be checked: a session by its name, a bucket, or both in either order.
fn subject(what: &[String], typed: Option<&str>) -> Result<(String, Option<(String, String)>), Failure> {
    let usage = |message: &str| Err(Failure::new(Code::Usage, message));
    let (mut name, mut place) = (typed.map(str::to_owned), None);
    for word in what {
        if !word.starts_with("s3://") {
            if name.replace(word.clone()).is_some() {
                return usage("name one session only");
            }
            continue;
        }
        let S3Url::Bucket { bucket, prefix } = S3Url::parse(word)? else {
            return usage("name the bucket to check, as in s3://bucket");
        };
        if place.replace((bucket, prefix)).is_some() {
            return usage("name one bucket only");
        }
    }
    Ok((name.unwrap_or_else(|| DEFAULT_SESSION.to_owned()), place))
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("pailfs: warning: {warning}");
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| printable_json(&text) + "\n")
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))
}

fn print(text: &str) -> Result<(), Failure> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|error| Failure::new(Code::Local, format!("cannot write the answer: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[session.a]\nregion = 'x'\n[session.lab]\naccess_key_id = 'AKIDLABLABLAB'\nsecret_access_key = 'hush-hush'\nregion = 'garage'\n";

    #[test]
    fn the_default_session_the_configured_ones_and_the_profiles_are_known() {
        let aws = [
            "[default]\nregion=x\n[profile work]\n[profile \"two words\"]\n[sso-session s]\n[services t]\n"
                .to_owned(),
            "[work]\naws_access_key_id = [secret]\n".to_owned(),
        ];
        let known = known(&ConfigFile::parse(FILE).unwrap(), &aws);
        let names: Vec<_> = known.iter().map(|known| (known.flag, known.name.as_str())).collect();
        assert_eq!(
            names,
            [
                ("--session", "default"),
                ("--session", "a"),
                ("--session", "lab"),
                ("--profile", "default"),
                ("--profile", "two words"),
                ("--profile", "work")
            ]
        );
    }

    #[tokio::test]
    async fn a_listing_shows_where_values_come_from_and_no_secret() {
        let file = ConfigFile::parse(FILE).unwrap();
        let lab = known(&file, &[]).into_iter().find(|known| known.name == "lab").unwrap();
        let listed = describe(lab).await;
        let text = show(&listed) + &json(&listed).unwrap();
        assert!(text.contains("garage") && text.contains("from configuration"), "{text}");
        assert!(!text.contains("hush-hush") && !text.contains("AKIDLABLABLAB"), "{text}");
    }

    #[test]
    fn a_check_is_of_a_session_a_bucket_or_both() {
        let subject =
            |what: &[&str]| subject(&what.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), None);
        let bucket = || Some(("b".to_owned(), "p/".to_owned()));
        assert_eq!(subject(&[]).unwrap(), (DEFAULT_SESSION.to_owned(), None));
        assert_eq!(subject(&["s3://b/p"]).unwrap(), (DEFAULT_SESSION.to_owned(), bucket()));
        assert_eq!(subject(&["lab", "s3://b/p"]).unwrap(), ("lab".to_owned(), bucket()));
        for wrong in [&["a", "b"][..], &["s3://a", "s3://b"], &["s3://"]] {
            assert_eq!(subject(wrong).unwrap_err().code, Code::Usage, "{wrong:?}");
        }
    }
}
