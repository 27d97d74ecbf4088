//! Whose keys, which region, which endpoint: what a session is made of, and what `pailfs sessions` says of it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use pailfs::s3::ListVersionsRequest;
use serde_json::Value;

use crate::harness::mount::{endpoint, fresh_place, pailfs};
use crate::harness::{Server, block_on};

/// Files of the AWS tools, and a state directory, for one test.
struct Home(tempfile::TempDir);

impl Home {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config"), config).unwrap();
        Self(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The binary with these files, and nothing of AWS in its environment.
    fn pailfs(&self) -> Command {
        let mut command = pailfs(&endpoint(Server::Demo));
        for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
            command.env_remove(variable);
        }
        for variable in ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
            command.env_remove(variable);
        }
        command
            .env("AWS_CONFIG_FILE", self.at("config"))
            .env("AWS_SHARED_CREDENTIALS_FILE", self.at("credentials"))
            .env("XDG_CONFIG_HOME", self.at("xdg"))
            .env("XDG_STATE_HOME", self.at("state"))
            .env("HOME", self.0.path());
        command
    }
}

/// What a command said, and the number it ended with.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn json(command: &mut Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// As with boto3 and the AWS CLI, the keys of the environment are for whoever names no profile.
#[test]
fn a_profile_that_is_named_wins_over_the_environment() {
    let Some(place) = fresh_place(Server::Demo, "a_profile_that_is_named_wins") else { return };
    let at = endpoint(Server::Demo);
    let (url, access, secret) = (&at.url, &at.access, &at.secret);
    let home = Home::new(&format!(
        "[profile work]\nregion = eu-west-3\nendpoint_url = {url}\naws_access_key_id = {access}\n\
         aws_secret_access_key = {secret}\n[profile bare]\nendpoint_url = {url}\n"
    ));
    let bucket = format!("s3://{}", place.bucket);
    let environment = |command: &mut Command| {
        command
            .env("AWS_ACCESS_KEY_ID", "AKIASOMEBODYELSE0000")
            .env("AWS_SECRET_ACCESS_KEY", "not-the-secret")
            .env("AWS_REGION", "us-west-2")
            .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    };
    let check = |args: &[&str]| {
        let mut command = home.pailfs();
        environment(&mut command);
        command.args(["sessions", "check"]).args(args);
        command
    };
    let report = json(check(&["--profile", "work"]).arg(&bucket));
    let session = &report["session"];
    assert_eq!(session["region"]["value"], "eu-west-3", "{report:#}");
    assert_eq!(session["region"]["source"], "profile work");
    assert_eq!(session["endpoint"]["value"], url.as_str());
    assert_eq!(session["profile"]["source"], "command line");
    assert!(session["credentials"]["source"].as_str().unwrap().contains("rofile"), "{report:#}");

    // A profile without keys does not borrow those of the environment.
    let (code, said) = run(check(&["--profile", "bare"]).arg(&bucket));
    assert_eq!(code, Some(4), "{said}");

    // Nor does one that is not there.
    fs::create_dir_all(home.at("xdg/pailfs")).unwrap();
    fs::write(home.at("xdg/pailfs/config.toml"), "[session.bad]\nprofile = 'nope'\n").unwrap();
    for args in [&["--profile", "nope"][..], &["bad"]] {
        let (code, said) = run(&mut check(args));
        assert!(code == Some(3) && said.contains("\"nope\" does not exist"), "{code:?} {said}");
    }
    let mut mount = home.pailfs();
    environment(&mut mount);
    fs::create_dir(home.at("mnt")).unwrap();
    let (code, said) = run(mount.args(["mount", &bucket, "--profile", "nope"]).arg(home.at("mnt")));
    assert!(code == Some(3) && said.contains("\"nope\" does not exist"), "{code:?} {said}");
}

/// An endpoint can be said in five places, and S3's own comes before the one of all services.
#[test]
fn the_endpoint_is_the_one_that_the_aws_files_and_the_environment_name_for_s3() {
    let at = endpoint(Server::Demo);
    let home = Home::new(&format!(
        "[profile svc]\nregion = us-east-1\nservices = mine\nendpoint_url = http://127.0.0.1:1\n\
         aws_access_key_id = {}\naws_secret_access_key = {}\n[services mine]\ns3 =\n  endpoint_url = {}\n\
         [profile off]\nignore_configured_endpoint_urls = true\nendpoint_url = http://127.0.0.1:1\n",
        at.access, at.secret, at.url
    ));
    let endpoint_of = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = home.pailfs();
        let listed = json(command.envs(variables.iter().copied()).arg("sessions").args(args));
        let default = listed.as_array().unwrap()[0]["endpoint"].clone();
        (default["value"].as_str().unwrap().to_owned(), default["source"].as_str().unwrap().to_owned())
    };
    let said = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    let (svc, url) = (("AWS_PROFILE", "svc"), ("AWS_ENDPOINT_URL", "http://all:1"));
    assert_eq!(endpoint_of(&[svc], &[]), said(&at.url, "services mine of profile svc"));
    assert_eq!(endpoint_of(&[svc, url], &[]), said("http://all:1", "environment AWS_ENDPOINT_URL"));
    let s3 = ("AWS_ENDPOINT_URL_S3", "http://s3:1");
    assert_eq!(endpoint_of(&[svc, url, s3], &[]), said("http://s3:1", "environment AWS_ENDPOINT_URL_S3"));
    assert_eq!(endpoint_of(&[("AWS_PROFILE", "off")], &[]), said("AWS", "default"));
    let ignored = ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
    assert_eq!(endpoint_of(&[svc, ignored, s3], &[]), said("AWS", "default"));

    // And that is where the requests go.
    let Some(place) = fresh_place(Server::Demo, "the_endpoint_of_services") else { return };
    let bucket = format!("s3://{}", place.bucket);
    let (code, said) = run(home.pailfs().args(["sessions", "check", "--profile", "svc", &bucket]));
    assert_eq!(code, Some(0), "{said}");
    assert!(block_on(place.keys()).unwrap().is_empty() && Path::new(&home.at("config")).exists());
}

/// `pailfs sessions` names the place where a value was really found.
#[test]
fn the_listing_of_sessions_shows_true_sources() {
    let home = Home::new(
        "[profile work]\nregion = eu-west-3\naws_access_key_id = AKIAWORKWORKWORKWORK\naws_secret_access_key = s\n",
    );
    fs::create_dir_all(home.at("xdg/pailfs")).unwrap();
    let config = "[session.lab]\naccess_key_id = 'GKLABLABLABLAB'\nsecret_access_key = 'hush'\n";
    fs::write(home.at("xdg/pailfs/config.toml"), config).unwrap();
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(home.at("xdg/pailfs/config.toml"), own).unwrap();
    let listed = json(home.pailfs().env("AWS_PROFILE", "work").arg("sessions"));
    let of = |name: &str| {
        listed.as_array().unwrap().iter().find(|session| session["name"] == name).expect(name).clone()
    };
    assert_eq!(of("lab")["profile"], Value::Null, "explicit keys come from no profile");
    assert_eq!(of("lab")["credentials"]["source"], "configuration");
    assert_eq!(of("default")["profile"]["source"], "environment AWS_PROFILE");
    assert_eq!(of("default")["credentials"]["source"], "profile work");
    assert_eq!(of("work")["profile"]["source"], "AWS files");
    assert_eq!(of("work")["region"]["source"], "profile work");
}

/// Garage signs for a region of its own name and refuses any other; its answer names it, so nobody has to.
#[test]
fn the_region_of_an_own_endpoint_is_found_out() {
    let Some(place) = fresh_place(Server::Garage, "the_region_of_an_own_endpoint") else { return };
    let at = endpoint(Server::Garage);
    let home = Home::new("");
    let bucket = format!("s3://{}", place.bucket);
    let session = |region: &str| {
        let mut command = home.pailfs();
        command
            .env("AWS_ACCESS_KEY_ID", &at.access)
            .env("AWS_SECRET_ACCESS_KEY", &at.secret)
            .env("AWS_ENDPOINT_URL", &at.url)
            .env("AWS_REGION", region);
        command
    };
    for region in ["", "eu-west-3"] {
        let report = json(session(region).args(["sessions", "check", &bucket]));
        assert_eq!(report["session"]["region"]["value"], at.region.as_str(), "{report:#}");
        assert_eq!(report["session"]["region"]["source"], "the endpoint");
        assert_eq!(report["bucket"]["region"], at.region.as_str());
    }
    let dir = home.at("mnt");
    fs::create_dir(&dir).unwrap();
    for source in [&bucket, "s3://"] {
        let (code, said) = run(session("").args(["mount", source]).arg(&dir));
        assert_eq!(code, Some(0), "{said}");
        let seen = fs::read_dir(&dir).unwrap().count();
        let (code, said) = run(session("").arg("umount").arg(&dir));
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(seen > 0, source == "s3://");
    }
}

/// A check takes away what it wrote, versions too; where it could not, it writes nothing and says so.
#[test]
fn a_check_leaves_nothing_behind_or_says_what() {
    let Some(place) = fresh_place(Server::Demo, "a_check_leaves_nothing_behind") else { return };
    let at = endpoint(Server::Demo);
    let home = Home::new("");
    let bucket = format!("s3://{}", place.bucket);
    let check = || {
        let mut command = home.pailfs();
        command.env("AWS_ACCESS_KEY_ID", &at.access).env("AWS_SECRET_ACCESS_KEY", &at.secret).args([
            "sessions",
            "check",
            &bucket,
            "--endpoint-url",
            &at.url,
        ]);
        command
    };
    let versions = || {
        let request = ListVersionsRequest { bucket: place.bucket.clone(), ..ListVersionsRequest::default() };
        block_on(place.store.list_versions(request)).unwrap().versions
    };
    for versioned in [false, true] {
        if versioned {
            block_on(place.store.set_versioning(&place.bucket, true)).unwrap();
        }
        let report = json(&mut check());
        assert_eq!(report["bucket"]["capabilities"]["copy_if_match"], "works");
        assert_eq!(report["bucket"]["left"], serde_json::json!([]));
        assert!(versions().is_empty(), "{:?}", versions());
    }
    block_on(place.store.set_versioning(&place.bucket, false)).unwrap();
    json(&mut check());
    assert!(versions().is_empty(), "suspended: {:?}", versions());
    // A mount finds the verdicts and does not probe again.
    let kept = fs::read_to_string(home.at("state/pailfs/capabilities.json")).unwrap();
    assert!(kept.contains(&format!("{} {}", at.url, place.bucket)), "{kept}");

    let rule = format!("bucket={},op=DeleteObject,fault=denied", place.bucket);
    let _faults = crate::harness::server::faults(Server::Demo, &rule);
    let (code, said) = run(&mut check());
    assert!(code == Some(0) && said.contains("may not delete"), "{said}");
    assert!(versions().is_empty(), "{:?}", versions());
}

/// STS is asked wherever it may be: moto answers it beside S3, other servers do not offer it.
#[test]
fn the_caller_is_asked_for_at_own_endpoints_too() {
    for server in [Server::Demo, Server::Moto, Server::Garage, Server::SeaweedFs] {
        let Some(_place) = fresh_place(server, "the_caller_is_asked_for") else { continue };
        let at = endpoint(server);
        let home = Home::new("");
        let mut check = home.pailfs();
        check.env("AWS_ACCESS_KEY_ID", &at.access).env("AWS_SECRET_ACCESS_KEY", &at.secret);
        let report = json(check.args(["sessions", "check", "--endpoint-url", &at.url]));
        if server == Server::Moto {
            assert!(report["caller"]["arn"].as_str().unwrap().starts_with("arn:aws:"), "{report:#}");
        } else {
            assert_eq!(report["caller_unknown"], "not offered by this endpoint", "{server:?}");
        }
    }
}

/// T28: credentials that expire in the middle of a copy are fetched anew, once and unnoticed, though their source takes
/// six seconds: the server takes only the fresh ones, so a request that is merely repeated fails.
#[test]
fn t28_an_expired_token_is_replaced_by_a_fresh_one() {
    let Some(place) = fresh_place(Server::Demo, "an_expired_token_is_replaced") else { return };
    let at = endpoint(Server::Demo);
    let home = Home::new("");
    let (script, calls, dir) = (home.at("provider"), home.at("calls"), home.at("mnt"));
    let text = format!(
        "#!/bin/sh\necho call >> {calls}\ntoken=old\n\
         [ $(wc -l < {calls}) = 1 ] || {{ token=fresh; sleep 6; }}\n\
         printf '{{\"Version\":1,\"AccessKeyId\":\"{}\",\"SecretAccessKey\":\"{}\",\"SessionToken\":\"%s\"}}' $token\n",
        at.access,
        at.secret,
        calls = calls.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let config = format!("[profile p]\nregion = us-east-1\ncredential_process = {}\n", script.display());
    fs::write(home.at("config"), config).unwrap();
    fs::create_dir(&dir).unwrap();
    let bucket = format!("s3://{}", place.bucket);
    let mut mount = home.pailfs();
    let (code, said) =
        run(mount.args(["mount", &bucket, "--profile", "p", "--endpoint-url", &at.url]).arg(&dir));
    assert_eq!(code, Some(0), "{said}");
    let _unmounted = Unmount(dir.clone());
    let asked = || fs::read_to_string(&calls).unwrap().lines().count();
    assert_eq!(asked(), 1);

    let bytes = vec![3; 30 << 20];
    let mut copy = fs::File::create(dir.join("f")).unwrap();
    copy.write_all(&bytes[..10 << 20]).unwrap();
    let rule = format!("bucket={},fault=expired-token:old", place.bucket);
    let _faults = crate::harness::server::faults(Server::Demo, &rule);
    copy.write_all(&bytes[10 << 20..]).unwrap();
    copy.sync_all().unwrap();
    drop(copy);
    assert!(block_on(place.get("f")).unwrap() == bytes);
    for n in 0..10 {
        fs::write(dir.join(format!("more-{n}")), b"y").unwrap();
    }
    assert_eq!(asked(), 2, "fetched once more, for all requests");
}

/// A closed port and a name that nobody knows are heard of by their names, also where time is short.
#[test]
fn an_endpoint_that_cannot_be_reached_says_why() {
    let home = Home::new("");
    fs::create_dir(home.at("mnt")).unwrap();
    for (url, why) in [("http://127.0.0.1:1", "refused"), ("http://no.such.host.invalid", "lookup")] {
        let mut mount = home.pailfs();
        mount.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b").env("NO_PROXY", "*");
        mount.args(["mount", "s3://bucket", "--timeout", "2s", "--endpoint-url", url]);
        let (code, said) = run(mount.arg(home.at("mnt")));
        assert!(code == Some(7) && said.contains(why), "{code:?} {said}");
        assert!(!said.contains("--timeout") && !said.contains("in time"), "{said}");
    }
}

/// What is refused with a HEAD has no words; nor has the message anything of the program's insides.
#[test]
fn a_refused_head_is_told_in_words() {
    let Some(place) = fresh_place(Server::Demo, "a_refused_head") else { return };
    let at = endpoint(Server::Demo);
    let rule = format!("bucket={},op=HeadBucket,fault=denied", place.bucket);
    let _faults = crate::harness::server::faults(Server::Demo, &rule);
    let home = Home::new("");
    let bucket = format!("s3://{}", place.bucket);
    let check = ["sessions", "check", &bucket, "--no-sign-request", "--endpoint-url", &at.url];
    let (code, said) = run(home.pailfs().args(check));
    assert!(code == Some(5) && said.contains("access denied"), "{code:?} {said}");
    assert!(!said.contains("unhandled") && !said.contains('{'), "{said}");

    // A key that nobody was given is another matter than a permission.
    let mut stranger = home.pailfs();
    stranger.env("AWS_ACCESS_KEY_ID", "AKIANOBODYNOBODYNOBO").env("AWS_SECRET_ACCESS_KEY", "s");
    fs::create_dir(home.at("mnt")).unwrap();
    let (code, said) = run(stranger.args(["mount", &bucket, "--endpoint-url", &at.url]).arg(home.at("mnt")));
    assert!(code == Some(4) && said.contains("InvalidAccessKeyId"), "{code:?} {said}");
}

/// Unmounts whatever became of the test.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new(env!("CARGO_BIN_EXE_pailfs")).arg("umount").arg(&self.0).output();
    }
}
