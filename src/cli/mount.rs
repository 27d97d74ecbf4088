//! `pailfs mount`: from what was typed to a [`MountConfig`], and from there to the foreground or the background.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use super::args::{CacheArgs, MountArgs, SessionArgs};
use super::background::{self, Child};
use super::exit::{Code, Failure};
use super::logging::Log;
use super::progress::Progress;
use super::{logging, machine, mountpoint, running};
use crate::base::allocator;
use crate::config::{
    BucketDir, Cache, ConfigFile, DEFAULT_SESSION, MountConfig, ObjectSettings, S3Url, Site, Source,
    default_cache_limit, default_memory_limit,
};
use crate::control;
use crate::mount::{self, Heard, Stage};
use crate::s3::SessionConfig;

/// Mounts. In the background this is called twice: by the process that was started, and by the one that stays.
pub fn run(args: &MountArgs, background_child: bool) -> Result<(), Failure> {
    if !args.foreground && !background_child {
        return background::start(std::env::args_os().skip(1), Vec::new());
    }
    let live = Cell::new(false);
    let log = logging::start(&args.log, background_child);
    let outcome = match &log {
        Ok(log) => stay(args, background_child, log, &live),
        Err(failure) => Err(failure.clone()),
    };
    if let Err(failure) = &outcome {
        if background_child && !live.get() {
            background::report(failure);
        } else if log.as_ref().is_ok_and(Log::is_kept) {
            tracing::error!(code = failure.code.name(), "{}", failure.message);
        }
    }
    outcome
}

fn stay(args: &MountArgs, background_child: bool, log: &Log, live: &Cell<bool>) -> Result<(), Failure> {
    allocator::give_large_blocks_back();
    let config = configure(args)?;
    log.require_outside(&config.mountpoint)?;
    let child = background_child.then(Child::leave_directory).transpose()?;
    let what = format!("{} on {}", config.site.source.name(), config.mountpoint.display());
    let ready = || {
        child.map_or(Ok(()), |child| child.ready(log))?;
        live.set(true);
        machine::notifier().ready(&what);
        Ok(())
    };
    // In the background nobody looks on.
    let mut shown = (!background_child).then(shown);
    let mut notifier = machine::notifier();
    let heard = Box::new(move |heard: Heard<'_>| {
        match &heard {
            Heard::Left(unsaved) => notifier.left(unsaved),
            Heard::End { all } => notifier.end(*all),
        }
        if let Some(shown) = &mut shown {
            shown(heard);
        }
    });
    super::runtime()?.block_on(mount::run(config, ready, heard, log.of_mount())).map_err(failure_of)
}

/// Shows how far saving is to somebody who sits in front of it.
pub fn shown() -> Box<dyn FnMut(Heard<'_>) + Send> {
    let mut progress: Option<Progress> = None;
    Box::new(move |heard| match (heard, &mut progress) {
        (Heard::Left(unsaved), progress) => progress.get_or_insert_with(Progress::new).hear(unsaved),
        (Heard::End { all }, progress) => {
            if let Some(mut progress) = progress.take() {
                progress.end(all);
            }
        }
    })
}

/// What a failed mount means to who typed the command.
pub fn failure_of(failure: mount::Failure) -> Failure {
    use crate::error::Kind;
    let error = failure.error;
    let code = match failure.stage {
        Stage::Session if error.kind() == Kind::InvalidArgument => Code::Config,
        Stage::Machine if error.kind() == Kind::AlreadyExists => Code::Mountpoint,
        Stage::Session | Stage::FirstRequest | Stage::Machine => Code::of(error.kind()),
        Stage::Fuse => Code::Fuse,
        Stage::Interrupted => Code::Failed,
        Stage::Unsaved(unsaved) => {
            return Failure::new(Code::UnsavedData, running::name_files(&error.report(), &unsaved));
        }
    };
    Failure::coded(code, &error)
}

/// Everything a mount needs to know, with every path absolute: the process may leave its directory.
fn configure(args: &MountArgs) -> Result<MountConfig, Failure> {
    let (file, warnings) = machine::load_config(args.config.config.as_deref())?;
    for warning in warnings {
        eprintln!("pailfs: warning: {warning}");
    }
    let objects = args.objects.settings();
    let (source, sessions) = choose(&args.source, &args.session, &objects, &file)?;
    let state_dir = match &args.state_dir {
        Some(dir) => machine::absolute(dir)?,
        None => machine::default_state_dir()?,
    };
    let mountpoint = mountpoint::prepare(&args.dir, args.look.allow_other)?;
    let me = rustix::process::geteuid().as_raw();
    let control_socket =
        control::place_socket(&machine::runtime_dirs(me), &mountpoint::socket_of(&mountpoint))?;
    let config = MountConfig {
        mountpoint,
        site: Site {
            source,
            sessions,
            timeout: args.timeout,
            memory_limit: args
                .memory_limit
                .unwrap_or_else(|| default_memory_limit(machine::available_memory())),
            state_dir,
        },
        read_only: args.read_only,
        uid: args.look.uid.unwrap_or(me),
        gid: args.look.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        file_mode: args.look.file_mode & !args.look.umask,
        dir_mode: args.look.dir_mode & !args.look.umask,
        posix: args.posix,
        allow_other: args.look.allow_other,
        noexec: args.look.noexec,
        metadata_ttl: args.look.metadata_ttl,
        negative_ttl: args.look.negative_ttl,
        cache: cache_of(&args.cache)?,
        passthrough: args.cache.passthrough,
        state_reserve: args.state_reserve,
        durability: args.durability,
        upload_delay: args.upload_delay,
        staging: args.staging,
        exclusive: args.exclusive,
        on_conflict: args.on_conflict,
        trace_ops: args.trace_ops.as_deref().map(machine::absolute).transpose()?,
        control_socket,
        metrics_listen: args.metrics_listen,
        rates: file.rates,
    };
    config.check()?;
    Ok(config)
}

fn cache_of(args: &CacheArgs) -> Result<Option<Cache>, Failure> {
    let Some(dir) = &args.cache_dir else { return Ok(None) };
    let dir = machine::absolute(dir)?;
    let limit_bytes = args.cache_size.unwrap_or_else(|| default_cache_limit(machine::disk_bytes(&dir)));
    Ok(Some(Cache { dir, limit_bytes }))
}

/// What to mount, and the settings of the sessions that takes.
pub fn choose(
    source: &str,
    typed: &SessionArgs,
    objects: &ObjectSettings,
    file: &ConfigFile,
) -> Result<(Source, BTreeMap<String, SessionConfig>), Failure> {
    if let Some(name) = source.strip_prefix('@') {
        if !typed.is_empty() {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "the sessions of @{name} are those of the configuration; leave the session's flags away"
                ),
            ));
        }
        if *objects != ObjectSettings::default() {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "what new objects of @{name} get is said in the configuration; leave these flags away"
                ),
            ));
        }
        let dirs = file.mount(name).map_err(|error| Failure::coded(Code::Config, &error))?;
        let source = Source::Named { name: name.to_owned(), dirs: dirs.clone() };
        let sessions = source
            .sessions()
            .into_iter()
            .map(|name| Ok((name.to_owned(), file.session(name)?)))
            .collect::<crate::error::Result<_>>()
            .map_err(|error| Failure::coded(Code::Config, &error))?;
        return Ok((source, sessions));
    }
    let session = typed.name().to_owned();
    let settings = session_settings(&session, typed, file)?;
    let new_objects = objects.clone().check().map_err(|error| Failure::coded(Code::Usage, &error))?;
    let source = match S3Url::parse(source)? {
        S3Url::AllBuckets => Source::Buckets { session: session.clone(), new_objects },
        S3Url::Bucket { bucket, prefix } => Source::Bucket(BucketDir {
            bucket,
            prefix,
            session: session.clone(),
            read_only: false,
            new_objects,
        }),
    };
    Ok((source, BTreeMap::from([(session, settings)])))
}

/// A session of the configuration with what was typed laid over it.
pub fn session_settings(
    name: &str,
    typed: &SessionArgs,
    file: &ConfigFile,
) -> Result<SessionConfig, Failure> {
    let configured = file.session(name).map_err(|error| {
        let code = if name == DEFAULT_SESSION { Code::Config } else { Code::Usage };
        Failure::coded(code, &error)
    })?;
    let typed = typed.settings().map_err(|message| Failure::new(Code::Usage, message))?;
    let mut settings = configured.overridden_by(typed);
    settings.ca_bundle = settings.ca_bundle.as_deref().map(machine::absolute).transpose()?;
    let here = machine::absolute(Path::new("."))?;
    settings.sse_customer_key = settings.sse_customer_key.map(|place| place.below(&here));
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser;

    const FILE: &str = "
        [session.work]
        profile = 'w'
        region = 'eu-west-1'
        [mount.data]
        a = { bucket = 'x', session = 'work' }
        b = 's3://y/z'
    ";

    fn chosen(args: &[&str]) -> Result<(Source, BTreeMap<String, SessionConfig>), Failure> {
        let cli = Cli::try_parse_from([&["pailfs", "mount"], args, &["/mnt"]].concat()).unwrap();
        let Command::Mount(mount) = cli.command else { panic!("not a mount") };
        choose(&mount.source, &mount.session, &mount.objects.settings(), &ConfigFile::parse(FILE).unwrap())
    }

    #[test]
    fn a_bucket_is_mounted_by_one_session_with_what_was_typed_on_top() {
        let (source, sessions) = chosen(&["s3://b/p", "--session=work", "--region=us-west-2"]).unwrap();
        assert_eq!(source.name(), "s3://b/p/");
        assert_eq!(sessions["work"].profile.as_deref(), Some("w"));
        assert_eq!(sessions["work"].region.as_deref(), Some("us-west-2"));
        let (source, sessions) = chosen(&["s3://"]).unwrap();
        assert_eq!(
            source,
            Source::Buckets { session: DEFAULT_SESSION.into(), new_objects: Default::default() }
        );
        assert_eq!(sessions[DEFAULT_SESSION], SessionConfig::default());
    }

    #[test]
    fn a_named_mount_takes_its_sessions_from_the_configuration_alone() {
        let (source, sessions) = chosen(&["@data"]).unwrap();
        assert_eq!(source.name(), "@data");
        assert_eq!(sessions.keys().collect::<Vec<_>>(), [DEFAULT_SESSION, "work"]);
        assert_eq!(chosen(&["@data", "--region=x"]).unwrap_err().code, Code::Usage);
        assert_eq!(chosen(&["@other"]).unwrap_err().code, Code::Config);
    }

    #[test]
    fn what_is_no_location_or_session_is_a_wrong_command_line() {
        assert_eq!(chosen(&["bucket"]).unwrap_err().code, Code::Usage);
        assert_eq!(chosen(&["s3://a,b"]).unwrap_err().code, Code::Usage);
        let failure = chosen(&["s3://b", "--session=wrok"]).unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.message.contains("there are work"), "{}", failure.message);
    }
}
