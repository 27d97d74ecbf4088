//! A strict reader of the text format of Prometheus, version 0.0.4: what a lenient one would let pass fails a test.

use std::collections::{BTreeMap, BTreeSet};

/// A family of metrics.
#[derive(Debug)]
pub struct Family {
    pub kind: String,
    pub help: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    /// With the ending of a histogram's series.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Families by name.
#[derive(Debug)]
pub struct Exposition(pub BTreeMap<String, Family>);

impl Exposition {
    /// Reads a text, and panics at whatever is wrong with it.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut helps: BTreeMap<String, String> = BTreeMap::new();
        let mut current = String::new();
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            assert!(!line.is_empty() && line.trim() == line, "{line:?}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a HELP has a text");
                assert!(
                    helps.insert(name.to_owned(), unescape(help, false)).is_none(),
                    "two HELPs of {name}"
                );
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a TYPE has a kind");
                assert!(is_name(name), "{name:?}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{name}: {kind}");
                let help =
                    helps.get(name).unwrap_or_else(|| panic!("{name} has no HELP before its TYPE")).clone();
                let family = Family { kind: kind.to_owned(), help, samples: Vec::new() };
                assert!(families.insert(name.to_owned(), family).is_none(), "two TYPEs of {name}");
                name.clone_into(&mut current);
                continue;
            }
            assert!(!line.starts_with('#'), "{line:?}");
            let sample = parse_sample(line);
            let family = families.get_mut(&current).expect("a TYPE comes first");
            let ending = sample.name.strip_prefix(current.as_str());
            let fits = match family.kind.as_str() {
                "histogram" => matches!(ending, Some("_bucket" | "_sum" | "_count")),
                _ => ending == Some(""),
            };
            assert!(fits, "{line:?} stands among those of {current}, a {}", family.kind);
            assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line:?}");
            family.samples.push(sample);
        }
        assert!(helps.keys().all(|name| families.contains_key(name)), "a HELP without a TYPE");
        let all = Self(families);
        all.check_histograms();
        all
    }

    /// Buckets are cumulative, and the last is the count.
    fn check_histograms(&self) {
        for (name, family) in self.0.iter().filter(|(_, family)| family.kind == "histogram") {
            let mut series: BTreeMap<BTreeMap<String, String>, Vec<&Sample>> = BTreeMap::new();
            for sample in &family.samples {
                let mut labels = sample.labels.clone();
                labels.remove("le");
                series.entry(labels).or_default().push(sample);
            }
            for (labels, samples) in series {
                let of = |ending: &str| {
                    let wanted = format!("{name}{ending}");
                    samples.iter().filter(move |sample| sample.name == wanted).collect::<Vec<_>>()
                };
                let (buckets, sums, counts) = (of("_bucket"), of("_sum"), of("_count"));
                assert!(sums.len() == 1 && counts.len() == 1, "{name}{labels:?}");
                let bound = |sample: &&&Sample| match sample.labels["le"].as_str() {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().expect("a bound is a number"),
                };
                assert!(buckets.is_sorted_by(|a, b| bound(a) < bound(b)), "{name}{labels:?}: bounds");
                assert!(buckets.is_sorted_by(|a, b| a.value <= b.value), "{name}{labels:?}: not cumulative");
                let last = buckets.last().expect("there are buckets");
                assert!(bound(last).is_infinite() && last.value == counts[0].value, "{name}{labels:?}: +Inf");
            }
        }
    }

    /// The one sample of a series; `None` where there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
        let family = self.0.get(name).or_else(|| self.0.get(base?))?;
        let found = family.samples.iter().find(|sample| sample.name == name && sample.labels == labels)?;
        Some(found.value)
    }
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !name.is_empty() && name.chars().all(good) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn parse_sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).expect("a sample has a value");
    let name = &line[..name_end];
    assert!(is_name(name), "{line:?}");
    let mut labels = BTreeMap::new();
    let mut rest = &line[name_end..];
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inner.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
            assert!(is_name(label) && !label.contains(':'), "{line:?}");
            let end = closing_quote(after).unwrap_or_else(|| panic!("{line:?}"));
            let value = unescape(&after[..end], true);
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line:?}");
            let after = &after[end + 1..];
            match after.strip_prefix(',') {
                Some(more) => inner = more,
                None => {
                    rest = after.strip_prefix('}').unwrap_or_else(|| panic!("{line:?}"));
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line:?}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
    assert!(value.is_finite() && value >= 0.0, "{line:?}");
    Sample { name: name.to_owned(), labels, value }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let is_end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        is_end.then_some(at)
    })
}

fn unescape(text: &str, in_quotes: bool) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('"') if in_quotes => '"',
                other => panic!("{text:?} has the escape {other:?}"),
            },
            c => c,
        });
    }
    plain
}
