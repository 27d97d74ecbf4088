"""Results in, a page out: medians, ratios, and each bar met or missed."""

import statistics
from dataclasses import dataclass

from programs import LOCAL, MEMORY_LIMIT, PROGRAMS
from rows import BYTES_PER_SECOND, DELAY_S, GIB, MIB, ROWS, Sizes

# Above it the load of a machine is more than the measurement's own.
BUSY = 4.5
FAMILY = {program.name: program.family for program in PROGRAMS}


@dataclass
class View:
    """One row's results, as bars ask for them. A figure of something that was not measured raises Missing."""

    results: dict
    row: str

    @property
    def sizes(self):
        return Sizes(self.results["meta"]["factor"])

    @property
    def runs(self):
        return self.results["rows"].get(self.row, {}).get("runs", {})

    def good(self, name):
        return [run for run in self.runs.get(name, []) if "error" not in run]

    def values(self, name, field):
        values = [run[field] for run in self.good(name) if run.get(field) is not None]
        if not values:
            raise Missing(f"{name} was not measured in {self.row}")
        return values

    def median(self, name, field):
        return statistics.median(self.values(name, field))

    def seconds(self, name="pailfs"):
        return self.median(name, "seconds")

    def bytes_per_second(self, name="pailfs"):
        return self.median(name, "asked") / self.seconds(name)

    def speed(self, name):
        """Higher is better: reads per second where they are counted, else runs per second."""
        try:
            return self.median(name, "rate")
        except Missing:
            return 1 / self.seconds(name)

    def best(self, family):
        """The fastest of a program's variants."""
        names = [name for name in self.runs if family_of(name) == family and self.good(name)]
        if not names:
            raise Missing(f"{family} was not measured in {self.row}")
        return max(names, key=self.speed)

    def speed_against(self, family):
        return self.speed("pailfs") / self.speed(self.best(family))

    def time_against(self, family):
        return 1 / self.speed_against(family)

    def ratio(self, family, field):
        return self.median("pailfs", field) / self.median(self.best(family), field)

    def memory_share(self):
        return max(self.values("pailfs", "rss")) / MEMORY_LIMIT

    def other(self, row):
        return View(self.results, row)


class Missing(Exception):
    pass


def family_of(name):
    """`raw/16` and `raw/32` are both the raw client."""
    return FAMILY.get(name, name.partition("/")[0])


def page(results, plots):
    """The section of one server, in Markdown."""
    meta = results["meta"]
    rows = [row for row in ROWS if row.name in results["rows"]]
    parts = [f"### {meta['server_title']}\n", *introduction(results), "", *bars(results, rows), "",
             *summary(results, rows), ""]
    for title, path in plots:
        parts += [f"![{title}]({path})", ""]
    parts += ["Every figure, medians with least and most:", "", *details(results, rows), ""]
    return "\n".join(parts)


def introduction(results):
    meta = results["meta"]
    yield (f"{meta['date']}, {meta['machine']}. pailfs {meta['commit']}. `{meta['command']}`: "
           f"{meta['rounds']} rounds, programs in turn within each. Far: {DELAY_S * 1000:.0f} ms before each answer and "
           f"{BYTES_PER_SECOND / 1e6:.0f} MB/s per connection; near: neither.")
    if meta["factor"] != 1:
        yield f"\n**Sizes are {meta['factor']:g} of what the rows say**, so these figures are a trial."
    dates = sorted(row["date"] for row in results["rows"].values())
    if dates[0][:10] != dates[-1][:10]:
        yield f"\nRows were measured from {dates[0]} to {dates[-1]}."
    busiest = max(row["load"] for row in results["rows"].values())
    if busiest > BUSY:
        yield f"\n**The machine was busy with something else**: its load was up to {busiest:.1f}, so times are too long."
    for note in meta["notes"]:
        yield f"\n{note}"
    yield "\n| program | version | options |\n|---|---|---|"
    for name, (version, options) in meta["programs"].items():
        yield f"| {name} | {version} | {f'`{options}`' if options else ''} |"
    more = {}
    for row in (row for row in ROWS if row.name in results["rows"]):
        for family, flags in row.flags.items():
            if family in map(family_of, meta["programs"]):
                more.setdefault((family, " ".join(flags)), []).append(row.name)
    if more:
        yield "\n| and in | program | options |\n|---|---|---|"
    for (family, flags), names in more.items():
        yield f"| {', '.join(names)} | {family} | `{flags}` |"


def bars(results, rows):
    yield "| row | bar | reached | |\n|---|---|---|---|"
    for row in rows:
        for bar in row.bars:
            yield f"| {row.name} | {bar.says} {bar.sense.replace('>=', '≥').replace('<=', '≤')} {bar.limit:g} | " \
                  f"{' | '.join(judged(bar, View(results, row.name)))} |"


def judged(bar, view):
    """What was reached, and the verdict."""
    try:
        figure = bar.figure(view)
    except Missing as why:
        return "", f"{why}"
    except ZeroDivisionError:
        return "", "too little to measure"
    verdict = "met" if bar.holds(figure) else "**missed**"
    by = f" by {abs(figure - bar.limit) / bar.limit:.0%}" if bar.limit else ""
    return f"{figure:.3g}", verdict + by


def summary(results, rows):
    """Seconds, or reads per second, of every program in every row."""
    names = names_in(results, rows)
    yield "| row | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for row in rows:
        view = View(results, row.name)
        yield f"| {row.title} | " + " | ".join(cell(view, name) for name in names) + " |"


def names_in(results, rows):
    """Families in a fixed order, for those that were measured."""
    measured = {family_of(name) for row in rows for name in View(results, row.name).runs}
    order = ["pailfs", "raw", LOCAL, "s3fs", "rclone", "mount-s3"]
    return [name for name in order if name in measured] + sorted(measured - set(order))


def cell(view, family):
    try:
        name = view.best(family)
    except Missing:
        return failure(view, family)
    # A slow peer has fewer rounds.
    rounds = len(view.good(name))
    fewer = f" ({rounds})" if rounds < view.results["meta"]["rounds"] else ""
    if any("rate" in run for run in view.good(name)):
        return f"{view.median(name, 'rate'):.0f}/s{fewer}"
    return seconds_of(view.seconds(name)) + in_s3_after(view, name) + fewer


def in_s3_after(view, name):
    """Where that is not what the row's seconds are."""
    later = [run["in_s3"] for run in view.good(name) if run.get("in_s3", 0) > run["seconds"]]
    return f", in S3 after {seconds_of(statistics.median(later))}" if later else ""


def seconds_of(seconds):
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def failure(view, family):
    errors = [run["error"] for name in view.runs if family_of(name) == family for run in view.runs[name]]
    return errors[0].split(":")[0][:40] if errors else ""


def details(results, rows):
    yield ("| row | program | n | seconds | returned | in S3 | per second | speed / raw | pailfs is faster by | CPU s | "
           "CPU s/GiB | machine busy | RSS MiB | requests | MB down | MB up |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        view = View(results, row.name)
        for name in sorted(view.runs, key=lambda name: (names_in(results, [row]).index(family_of(name)), name)):
            yield f"| {row.name} | {name} | " + " | ".join(detail(view, name)) + " |"


def detail(view, name):
    good = view.good(name)
    yield str(len(good))
    if not good:
        yield failure(view, family_of(name))
        yield from [""] * 13
        return
    seconds = view.values(name, "seconds")
    yield f"{statistics.median(seconds):.3g} ({min(seconds):.3g}-{max(seconds):.3g})"
    yield figure(lambda: f"{view.median(name, 'returned'):.3g}")
    yield figure(lambda: f"{view.median(name, 'in_s3'):.3g}")
    large = any(run.get("asked", 0) >= 16 * MIB for run in good)
    yield figure(lambda: f"{view.median(name, 'rate'):.0f}") or \
        figure(lambda: f"{view.bytes_per_second(name) / 1e6:.0f} MB" if large else "")
    yield figure(lambda: f"{view.speed(name) / view.speed(view.best('raw')):.2f}")
    yield "" if name == "pailfs" else figure(lambda: f"{view.speed('pailfs') / view.speed(name):.2f}")
    yield figure(lambda: f"{view.median(name, 'cpu_seconds'):.2f}")
    yield figure(lambda: f"{view.median(name, 'cpu_seconds') / view.median(name, 'asked') * GIB:.2f}"
                 if large else "")
    yield figure(lambda: f"{view.median(name, 'busy'):.0%}")
    yield figure(lambda: f"{view.median(name, 'rss') / MIB:.0f}")
    yield figure(lambda: f"{view.median(name, 'requests'):.0f}")
    yield figure(lambda: f"{view.median(name, 'bytes_down') / 1e6:.1f}")
    yield figure(lambda: f"{view.median(name, 'bytes_up') / 1e6:.1f}")


def figure(make):
    try:
        return make()
    except (Missing, ZeroDivisionError):
        return ""


def put_between(text, name, section):
    """The page with the section between its markers, at the end where it has none yet."""
    begin, finish = f"<!-- bench:{name} -->", f"<!-- bench:{name} end -->"
    block = f"{begin}\n{section}\n{finish}"
    before, found, rest = text.partition(begin)
    if not found:
        return f"{text.rstrip()}\n\n{block}\n"
    return before + block + rest.partition(finish)[2]
