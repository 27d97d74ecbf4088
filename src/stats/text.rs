//! A snapshot of every metric, and its text: for Prometheus (version 0.0.4 of its format) and for the documentation.

use std::fmt::Write;

use super::histogram::Distribution;
use super::table::{
    COUNTERS, FUSE_OPERATIONS, FUSE_WAITS, GAUGES, INFO, Kind, MEMORY_USED, Metric, OPEN_HANDLES, S3_COST,
    S3_LATENCY, S3_REQUESTS, table,
};
use super::{Gauges, Stats};

/// What HTTP calls the text of a snapshot.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every metric at one time, in the table's order.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<(&'static Metric, Vec<Series>)>);

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the order of the metric's labels.
    pub labels: Vec<String>,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(u64),
    Real(f64),
    Histogram(Box<Distribution>),
}

fn one(value: u64) -> Vec<Series> {
    vec![Series { labels: Vec::new(), value: Value::Whole(value) }]
}

fn labelled<const N: usize>(labels: [&str; N], value: Value) -> Series {
    Series { labels: labels.map(str::to_owned).into(), value }
}

impl Stats {
    /// Everything that was counted, and what there is now.
    pub fn snapshot(&self, gauges: &Gauges) -> Snapshot {
        let mut all = Vec::new();
        for (metric, (_, _, value)) in COUNTERS.iter().zip(self.counters()) {
            all.push((metric, one(value)));
        }
        let requests = self.requests();
        let requests = requests
            .iter()
            .map(|((operation, outcome), count)| labelled([operation, outcome], Value::Whole(*count)));
        all.push((&S3_REQUESTS, requests.collect()));
        let costs = gauges.cost_dollars.iter();
        let costs = costs.map(|(tariff, dollars)| labelled([tariff.name()], Value::Real(*dollars)));
        all.push((&S3_COST, costs.collect()));
        let operations = self.operations();
        let asked = operations.iter().map(|of| labelled([of.operation], Value::Whole(of.count)));
        all.push((&FUSE_OPERATIONS, asked.collect()));
        for (metric, value) in GAUGES.iter().zip(gauges.values()) {
            all.push((metric, value.map(one).unwrap_or_default()));
        }
        for (metric, values) in
            [(&MEMORY_USED, &gauges.memory_used_bytes), (&OPEN_HANDLES, &gauges.open_handles)]
        {
            let series = values.iter().map(|(label, value)| labelled([*label], Value::Whole(*value)));
            all.push((metric, series.collect()));
        }
        let labels = [&*gauges.version, &gauges.source, &gauges.mountpoint];
        all.push((&INFO, vec![labelled(labels, Value::Whole(1))]));
        let latencies = self.latencies().into_iter();
        let latencies =
            latencies.map(|(operation, took)| labelled([operation], Value::Histogram(Box::new(took))));
        all.push((&S3_LATENCY, latencies.collect()));
        let waits = operations.into_iter().filter(|of| of.waits.count() > 0);
        let waits = waits.map(|of| labelled([of.operation], Value::Histogram(Box::new(of.waits))));
        all.push((&FUSE_WAITS, waits.collect()));
        Snapshot(all)
    }
}

impl Snapshot {
    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (metric, series) in &self.0 {
            let _ = writeln!(text, "# HELP {} {}", metric.name, escaped(metric.meaning, false));
            let _ = writeln!(text, "# TYPE {} {}", metric.name, metric.kind.name());
            for series in series {
                let labels: Vec<(&str, &str)> = metric
                    .labels
                    .iter()
                    .zip(&series.labels)
                    .map(|(label, value)| (*label, value.as_str()))
                    .collect();
                match &series.value {
                    Value::Whole(value) => line(&mut text, metric.name, "", &labels, value),
                    Value::Real(value) => line(&mut text, metric.name, "", &labels, value),
                    Value::Histogram(took) => {
                        let count = took.count();
                        let bounds = took.cumulative().map(|(bound, below)| (bound.to_string(), below));
                        for (bound, below) in bounds.chain([("+Inf".to_owned(), count)]) {
                            let mut labels = labels.clone();
                            labels.push(("le", &bound));
                            line(&mut text, metric.name, "_bucket", &labels, below);
                        }
                        line(&mut text, metric.name, "_sum", &labels, took.sum_seconds());
                        line(&mut text, metric.name, "_count", &labels, count);
                    }
                }
            }
        }
        text
    }
}

fn line(text: &mut String, name: &str, ending: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    text.push_str(name);
    text.push_str(ending);
    for (n, (label, value)) in labels.iter().enumerate() {
        let _ = write!(text, "{}{label}=\"{}\"", if n == 0 { '{' } else { ',' }, escaped(value, true));
    }
    let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

/// A mount's source may hold anything that a key may.
fn escaped(text: &str, in_quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if in_quotes { text.replace('"', "\\\"") } else { text }
}

/// The page of the documentation that lists every metric.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    for (kind, heading) in
        [(Kind::Counter, "Counters"), (Kind::Gauge, "Gauges"), (Kind::Histogram, "Histograms")]
    {
        let _ = write!(page, "\n## {heading}\n\n| metric | labels | unit | meaning |\n|---|---|---|---|\n");
        for metric in table().filter(|metric| metric.kind == kind) {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, unit, meaning) = (metric.name, metric.unit.name(), metric.meaning);
            let _ = writeln!(page, "| `{name}` | {} | {unit} | {meaning} |", labels.join(", "));
        }
    }
    page.push_str(TAIL);
    page
}

const HEAD: &str = "\
# Metrics

This page is made from the table in `src/stats/table.rs`; a test compares them, and rewrites the page with
`PAILFS_WRITE_DOCS=1 cargo test --test tidy`.

A mount tells its metrics in the text format of Prometheus, version 0.0.4:

- `pailfs status --prometheus DIR` prints them, for a cron job that writes a file for node_exporter's textfile collector;
- `pailfs mount --metrics-listen 127.0.0.1:9100 ...` serves them at `http://127.0.0.1:9100/metrics`. With port 0 the system
  chooses one, and `pailfs status` tells which. Nobody is asked who he is: an address other than loopback shows the
  figures, and the names of bucket and directory, to whoever can reach it. No figure names a file or holds a secret.

`pailfs status DIR` shows what matters of them to people. `pailfs status --json DIR` has counters without labels under their
names without `pailfs_` and `_total`, with the same meaning.

A name that was in a release keeps its meaning. Counters begin at 0 with the mount. A metric that a mount has no value for,
such as the size of a cache directory it does not have, is named without a value.
";

const TAIL: &str = "
## Reading them

- Share of reads that did not wait: `rate(pailfs_read_hits_total[5m]) / (rate(pailfs_read_hits_total[5m]) +
  rate(pailfs_read_waits_total[5m]))`. Reads that the kernel answered from its own pages come on top.
- Bytes that S3 lacks: `pailfs_pending_bytes - pailfs_pending_sent_bytes`. If it does not fall while nothing is written, look
  at `pailfs status` for the last error.
- The time that nine in ten GETs took to begin: `histogram_quantile(0.9,
  rate(pailfs_s3_request_duration_seconds_bucket{operation=\"GetObject\"}[5m]))`.
- Requests that failed: `rate(pailfs_s3_requests_total{outcome!~\"ok|not_found\"}[5m])`.
- Dollars a day: `sum(rate(pailfs_s3_cost_dollars_total[1h])) * 86400`; the rates are in the
  [configuration](CONFIG.md#cost).
- Worth an alarm: `pailfs_panics_total > 0`, `pailfs_disk_errors_total` or `pailfs_conflicts_total` that grow,
  `pailfs_staging_free_bytes == 0`.
";
