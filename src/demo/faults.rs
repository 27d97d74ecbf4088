//! Faults by rule: what to do to which request. Pure: chance comes from a seed, and nothing waits here.
//!
//! A rule is one line of `name=value` pairs, such as `op=PutObject,percent=5,fault=slowdown`. Matchers: `op=`
//! (an API name), `bucket=`, `key=` (a prefix). When: `every=N` (each N-th match), `nth=K` (the K-th match
//! alone), `percent=P` (by chance), `times=T` (at most T times); several of them have to agree. `fault=` is
//! one of those of [`Fault`], as its documentation writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::operation::Operation;
use crate::base::{parse_bytes, parse_duration};

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// `latency:50ms`: the request waits before it is handled.
    Latency(Duration),
    /// `bandwidth:90MB`: the bodies of the connection move at most so many bytes a second (binary multiples).
    Bandwidth(u64),
    /// `slowdown`: 503 `SlowDown`.
    SlowDown,
    /// `error:500`: the status, with an S3 error of that class in the body.
    Error(u16),
    /// `reset`: the connection is reset without an answer.
    Reset,
    /// `truncate:BYTES`: the connection ends after so many bytes of the answer's body.
    Truncate(u64),
    /// `status:NNN`: the bare status, with an empty body.
    Status(u16),
    /// `stall`: half of the answer's body is sent, then nothing, and the connection stays. An answer without
    /// a body never comes.
    Stall,
    /// `expired-token`, or `expired-token:TOKEN` of requests with this session token alone: 400 `ExpiredToken`.
    ExpiredToken(Option<String>),
    /// `dated-tokens`: 400 `ExpiredToken` to a request whose session token is `until-SECONDS`, once that time since 1970
    /// has passed.
    DatedTokens,
    /// `skewed:10m`: the server's clock is that much ahead, up to 15 minutes. 403 `RequestTimeTooSkewed` to what was
    /// signed more than five minutes away from its time.
    Skewed(Duration),
    /// `denied`: 403 `AccessDenied`.
    Denied,
    /// `ignore-conditions`: handled as if it had no `If-Match`, `If-None-Match` or copy-source conditions.
    IgnoreConditions,
    /// `refuse-checksums`: 400 `InvalidRequest` to a request that carries `x-amz-checksum-*`.
    RefuseChecksums,
    /// `equal-parts`: 400 `InvalidPart` to a Complete whose parts but the last are not of one size.
    EqualParts,
    /// `lose-response`: the request takes effect, then the connection is reset.
    LoseResponse,
}

/// A line of the language above. `Display` gives back text that parses to the same rule.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultRule {
    pub operation: Option<String>,
    pub bucket: Option<String>,
    pub key_prefix: Option<String>,
    pub every: Option<u64>,
    pub nth: Option<u64>,
    /// Between 0 and 100.
    pub percent: Option<f64>,
    pub times: Option<u64>,
    pub fault: Fault,
}

impl FaultRule {
    /// Hits every request.
    pub fn new(fault: Fault) -> Self {
        Self {
            operation: None,
            bucket: None,
            key_prefix: None,
            every: None,
            nth: None,
            percent: None,
            times: None,
            fault,
        }
    }

    /// One rule a line; empty lines and lines that begin with `#` are skipped.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, String> {
        let mut rules = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            rules.push(line.parse().map_err(|error| format!("line {}: {error}", number + 1))?);
        }
        Ok(rules)
    }

    fn matches(&self, operation: &Operation) -> bool {
        self.operation.as_ref().is_none_or(|name| name == operation.name)
            && self.bucket.as_ref().is_none_or(|bucket| *bucket == operation.bucket)
            && self.key_prefix.as_ref().is_none_or(|prefix| operation.key.starts_with(prefix))
    }
}

impl FromStr for FaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rule = Self::new(Fault::Reset);
        let mut fault = None;
        for pair in text.split(',') {
            let Some((name, value)) = pair.trim().split_once('=') else {
                return Err(format!("{pair:?} is not name=value"));
            };
            match name {
                "op" => rule.operation = Some(value.to_owned()),
                "bucket" => rule.bucket = Some(value.to_owned()),
                "key" => rule.key_prefix = Some(value.to_owned()),
                "every" => rule.every = Some(count(name, value)?),
                "nth" => rule.nth = Some(count(name, value)?),
                "times" => rule.times = Some(count(name, value)?),
                "percent" => rule.percent = Some(percent(value)?),
                "fault" => fault = Some(value.parse()?),
                _ => {
                    return Err(format!(
                        "{name:?} is unknown; a rule has op, bucket, key, every, nth, percent, times and fault"
                    ));
                }
            }
        }
        rule.fault = fault.ok_or("a rule needs fault=, such as fault=slowdown")?;
        Ok(rule)
    }
}

fn count(name: &str, value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(0) | Err(_) => Err(format!("{name}={value} is not a number of 1 or more")),
        Ok(number) => Ok(number),
    }
}

fn percent(value: &str) -> Result<f64, String> {
    match value.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("percent={value} is not between 0 and 100")),
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once(':') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let needed = || value.ok_or_else(|| format!("fault={name} needs a value, as in {}", example(name)));
        let fault = match name {
            "latency" => Self::Latency(parse_duration(needed()?)?),
            "bandwidth" => match parse_bytes(needed()?)? {
                0 => return Err("a bandwidth of 0 would never end; use fault=stall".to_owned()),
                rate => Self::Bandwidth(rate),
            },
            "error" => Self::Error(status(needed()?, 400)?),
            "status" => Self::Status(status(needed()?, 200)?),
            "truncate" => Self::Truncate(parse_bytes(needed()?)?),
            "expired-token" => Self::ExpiredToken(value.map(str::to_owned)),
            "skewed" => Self::Skewed(parse_duration(needed()?)?),
            _ if value.is_some() => return Err(unknown(text)),
            "slowdown" => Self::SlowDown,
            "reset" => Self::Reset,
            "stall" => Self::Stall,
            "denied" => Self::Denied,
            "dated-tokens" => Self::DatedTokens,
            "ignore-conditions" => Self::IgnoreConditions,
            "refuse-checksums" => Self::RefuseChecksums,
            "equal-parts" => Self::EqualParts,
            "lose-response" => Self::LoseResponse,
            _ => return Err(unknown(text)),
        };
        Ok(fault)
    }
}

fn status(value: &str, least: u16) -> Result<u16, String> {
    match value.parse() {
        Ok(status) if (least..600).contains(&status) => Ok(status),
        _ => Err(format!("{value:?} is not a status between {least} and 599")),
    }
}

fn example(name: &str) -> &'static str {
    match name {
        "latency" => "latency:50ms",
        "bandwidth" => "bandwidth:90MB",
        "error" => "error:500",
        "status" => "status:429",
        "skewed" => "skewed:10m",
        _ => "truncate:1000",
    }
}

fn unknown(text: &str) -> String {
    format!(
        "fault={text} is unknown; faults are latency:50ms, bandwidth:90MB, slowdown, error:500, reset, \
         truncate:BYTES, status:NNN, stall, expired-token, dated-tokens, skewed:10m, denied, ignore-conditions, \
         refuse-checksums, equal-parts and lose-response"
    )
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latency(wait) => write!(f, "latency:{}ms", wait.as_secs_f64() * 1000.0),
            Self::Bandwidth(rate) => write!(f, "bandwidth:{rate}"),
            Self::SlowDown => f.write_str("slowdown"),
            Self::Error(status) => write!(f, "error:{status}"),
            Self::Reset => f.write_str("reset"),
            Self::Truncate(bytes) => write!(f, "truncate:{bytes}"),
            Self::Status(status) => write!(f, "status:{status}"),
            Self::Stall => f.write_str("stall"),
            Self::ExpiredToken(None) => f.write_str("expired-token"),
            Self::ExpiredToken(Some(token)) => write!(f, "expired-token:{token}"),
            Self::DatedTokens => f.write_str("dated-tokens"),
            Self::Skewed(ahead) => write!(f, "skewed:{}ms", ahead.as_secs_f64() * 1000.0),
            Self::Denied => f.write_str("denied"),
            Self::IgnoreConditions => f.write_str("ignore-conditions"),
            Self::RefuseChecksums => f.write_str("refuse-checksums"),
            Self::EqualParts => f.write_str("equal-parts"),
            Self::LoseResponse => f.write_str("lose-response"),
        }
    }
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pair = |name: &str, value: Option<&dyn fmt::Display>| match value {
            Some(value) => write!(f, "{name}={value},"),
            None => Ok(()),
        };
        pair("op", self.operation.as_ref().map(|value| value as _))?;
        pair("bucket", self.bucket.as_ref().map(|value| value as _))?;
        pair("key", self.key_prefix.as_ref().map(|value| value as _))?;
        pair("every", self.every.as_ref().map(|value| value as _))?;
        pair("nth", self.nth.as_ref().map(|value| value as _))?;
        pair("percent", self.percent.as_ref().map(|value| value as _))?;
        pair("times", self.times.as_ref().map(|value| value as _))?;
        write!(f, "fault={}", self.fault)
    }
}

/// The rules in force, with what they have seen so far.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<Active>,
    chance: StdRng,
}

#[derive(Debug)]
struct Active {
    rule: FaultRule,
    matched: u64,
    hit: u64,
}

impl Faults {
    pub(super) fn new(rules: Vec<FaultRule>, seed: u64) -> Self {
        let rules = rules.into_iter().map(|rule| Active { rule, matched: 0, hit: 0 }).collect();
        Self { rules, chance: StdRng::seed_from_u64(seed) }
    }

    /// Every fault that hits this request, in the order of the rules.
    pub(super) fn decide(&mut self, operation: &Operation) -> Vec<Fault> {
        let mut hits = Vec::new();
        for active in &mut self.rules {
            if active.hits(operation, &mut self.chance) {
                hits.push(active.rule.fault.clone());
            }
        }
        hits
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = &FaultRule> {
        self.rules.iter().map(|active| &active.rule)
    }
}

impl Active {
    fn hits(&mut self, operation: &Operation, chance: &mut StdRng) -> bool {
        let rule = &self.rule;
        if !rule.matches(operation) {
            return false;
        }
        self.matched += 1;
        // Drawn for every match, so that `times` and `nth` do not shift the chances of later requests.
        let lucky = rule.percent.is_none_or(|percent| chance.random_range(0.0..100.0) < percent);
        let hit = lucky
            && rule.every.is_none_or(|every| self.matched.is_multiple_of(every))
            && rule.nth.is_none_or(|nth| self.matched == nth)
            && rule.times.is_none_or(|times| self.hit < times);
        self.hit += u64::from(hit);
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &'static str, key: &str) -> Operation {
        Operation { name, bucket: "b".to_owned(), key: key.to_owned() }
    }

    fn hits(rule: &str, seed: u64, requests: usize) -> Vec<usize> {
        let mut faults = Faults::new(vec![rule.parse().unwrap()], seed);
        (1..=requests).filter(|_| !faults.decide(&request("PutObject", "logs/x")).is_empty()).collect()
    }

    #[test]
    fn rules_read_and_print_the_same() {
        for text in [
            "op=PutObject,percent=5,fault=slowdown",
            "bucket=b,key=logs/,every=3,times=2,fault=latency:50ms",
            "nth=4,fault=truncate:1000",
            "fault=error:500",
            "fault=status:429",
            "fault=bandwidth:94371840",
            "fault=reset",
            "fault=stall",
            "fault=expired-token",
            "fault=expired-token:old",
            "fault=dated-tokens",
            "fault=skewed:600000ms",
            "fault=denied",
            "fault=ignore-conditions",
            "fault=refuse-checksums",
            "fault=equal-parts",
            "fault=lose-response",
        ] {
            let rule: FaultRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        let rule: FaultRule = "fault=bandwidth:90MB".parse().unwrap();
        assert_eq!(rule.fault, Fault::Bandwidth(90 << 20));
    }

    #[test]
    fn mistakes_are_told_clearly() {
        for (text, part) in [
            ("slowdown", "not name=value"),
            ("op=PutObject", "needs fault="),
            ("fault=fire", "is unknown"),
            ("fault=reset:1", "is unknown"),
            ("fault=latency", "latency:50ms"),
            ("fault=latency:soon", "not a duration"),
            ("fault=error:200", "not a status"),
            ("every=0,fault=reset", "1 or more"),
            ("percent=101,fault=reset", "between 0 and 100"),
            ("when=now,fault=reset", "is unknown"),
            ("fault=bandwidth:0", "stall"),
        ] {
            let error = text.parse::<FaultRule>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = FaultRule::parse_lines("# all well\n\nfault=reset\nfault=fire\n").unwrap_err();
        assert!(error.starts_with("line 4: "), "{error}");
    }

    #[test]
    fn when_a_rule_hits() {
        assert_eq!(hits("every=3,fault=reset", 0, 10), [3, 6, 9]);
        assert_eq!(hits("nth=4,fault=reset", 0, 10), [4]);
        assert_eq!(hits("every=2,times=2,fault=reset", 0, 10), [2, 4]);
        assert_eq!(hits("op=GetObject,fault=reset", 0, 10), [] as [usize; 0]);
        assert_eq!(hits("op=PutObject,bucket=b,key=logs/,times=1,fault=reset", 0, 3), [1]);
        assert_eq!(hits("key=docs/,fault=reset", 0, 3), [] as [usize; 0]);
        assert_eq!(hits("percent=0,fault=reset", 0, 100), [] as [usize; 0]);
        assert_eq!(hits("percent=100,fault=reset", 0, 100).len(), 100);
    }

    #[test]
    fn chance_follows_the_seed() {
        let first = hits("percent=20,fault=reset", 7, 1000);
        assert_eq!(first, hits("percent=20,fault=reset", 7, 1000));
        assert_ne!(first, hits("percent=20,fault=reset", 8, 1000));
        assert!((150..250).contains(&first.len()), "{}", first.len());
    }
}
