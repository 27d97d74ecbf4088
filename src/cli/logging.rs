//! Where the log goes and how much of it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::{LogArgs, LogFormat};
use super::exit::{Code, Failure};

/// Starts the log. Returns its file, where it has one.
pub fn start(args: &LogArgs) -> Result<Option<File>, Failure> {
    let filter = filter(&args.log_level)?;
    let Some(path) = &args.log_file else {
        install(filter, args.log_format, std::io::stderr);
        return Ok(None);
    };
    // A log tells names of objects, which are nobody else's business.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).and_then(|file| {
        let copy = file.try_clone()?;
        Ok((file, copy))
    });
    let (file, copy) = file.map_err(|error| {
        Failure::new(Code::Local, format!("cannot open the log {}: {error}", path.display()))
    })?;
    install(filter, args.log_format, Mutex::new(copy));
    Ok(Some(file))
}

/// A bare level is about pailfs itself: the libraries below it talk too much to be of use then.
fn filter(level: &str) -> Result<EnvFilter, Failure> {
    let plain =
        ["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str());
    let directives = match level {
        "off" => level.to_owned(),
        // What a library warns of is either handled or part of an error of ours: fuser of requests that a
        // file system may well leave out, the SDK of attempts that are tried again. s3s reports every 404.
        _ if plain => format!("error,s3s=off,pailfs={level}"),
        _ => level.to_owned(),
    };
    EnvFilter::try_new(directives)
        .map_err(|error| Failure::new(Code::Usage, format!("--log-level {level:?}: {error}")))
}

/// Whether an event may be shown, whoever asks: at its most talkative the SDK tells requests with all their headers, and
/// some of those are keys.
fn is_no_secret(event: &Metadata<'_>) -> bool {
    *event.level() != Level::TRACE || !event.target().starts_with("aws_")
}

fn install(
    filter: EnvFilter,
    format: LogFormat,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) {
    let registry = tracing_subscriber::registry().with(filter).with(FilterFn::new(is_no_secret));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    // It can only have been started before by a test in this process, whose log is as good.
    let _ = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_about_pailfs_and_a_filter_is_taken_as_it_is() {
        assert_eq!(filter("debug").unwrap().to_string(), "pailfs=debug,s3s=off,error");
        assert_eq!(filter("off").unwrap().to_string(), "off");
        assert_eq!(filter("hyper_util=trace").unwrap().to_string(), "hyper_util=trace");
        assert_eq!(filter("pailfs=loud").unwrap_err().code, Code::Usage);
    }
}
