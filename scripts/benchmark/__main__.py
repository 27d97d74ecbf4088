"""Runs the rows and writes the results; scripts/bench says how to call it."""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import machine
import plots
import report
from machine import Failed, TookTooLong
from programs import LOCAL, PAILFS, PROGRAMS, RAW, RELEASE, ROOT, Place, install_missing
from rows import BYTES_PER_SECOND, DELAY_S, ROWS, Sizes, objects_of

BUCKET = "bench"
# A measurement that takes longer has failed.
PATIENCE_S = 180
# A peer whose measured work has taken this long in one row, over all rounds so far, is not asked again; the tables say how
# often it was.
PEER_BUDGET_S = 40
ROUNDS, QUICK_ROUNDS, QUICK_FACTOR = 5, 1, 1 / 64
TITLES = {"garage": "Garage", "seaweedfs": "SeaweedFS", "demo": "the demo server"}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=TITLES, default="garage")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} without it")
    parser.add_argument("--only", type=words(row.name for row in ROWS), help="rows, with commas")
    parser.add_argument("--lane", choices=("far", "near", "both"), default="far",
                        help="near: the same rows without delay and limits, each named ROW-near; far without it")
    parser.add_argument("--program", type=words([program.name for program in PROGRAMS] + [RAW, LOCAL]),
                        help="programs, with commas; raw is the S3 client without a file system")
    parser.add_argument("--size-factor", type=float, help="makes all objects smaller or fewer")
    parser.add_argument("--quick", action="store_true", help="one round of everything, tiny")
    parser.add_argument("--out", type=Path, help="write everything here instead of into docs/")
    parser.add_argument("--report", type=Path, metavar="JSON", help="measure nothing, write the page anew")
    args = parser.parse_args()
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.size_factor = args.size_factor or (QUICK_FACTOR if args.quick else 1)
    # The documents hold whole results alone.
    if args.out is None and (args.size_factor != 1 or args.program):
        args.out = ROOT / "target/bench"
    return args


def words(known):
    known = list(known)

    def parse(text):
        found = text.split(",")
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return found
    return parse


def say(*text):
    print("bench:", *text, file=sys.stderr, flush=True)


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.report:
        return write(json.loads(args.report.read_text()), args.out)
    began = time.monotonic()
    install_missing()
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "pailfs", "--example", "ceiling",
                    "--example", "proxy"], cwd=ROOT, check=True)
    rows = [row for row in ROWS if row.name in (args.only or names_of(args.lane))]
    wanted = args.program or [program.name for program in PROGRAMS] + [RAW, LOCAL]
    results = described(args, rows, wanted)
    try:
        with Bench(args, rows) as bench:
            for row in rows:
                measure_row(bench, row, wanted, args.rounds, results)
    finally:
        # What was measured before an interruption is kept.
        if results["rows"]:
            write(beside_the_others(results, args), args.out)
    say(f"took {(time.monotonic() - began) / 60:.1f} min")


def names_of(lane):
    return {row.name for row in ROWS if lane == "both" or (not row.is_twin if lane == "far" else row.lane == "near")}


def beside_the_others(results, args):
    """The rows that an earlier run of the same size measured stay, where this one was not of them."""
    earlier = figures_of(args.out, args.server)
    if (args.only or args.lane == "near") and earlier.exists():
        old = json.loads(earlier.read_text())
        if old["meta"]["factor"] == args.size_factor:
            results["rows"] = {**old["rows"], **results["rows"]}
    return results


def figures_of(out, server):
    return (out or ROOT / "docs") / f"performance/{server}.json"


def described(args, rows, wanted):
    """Results without figures: what was run, where and how."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    programs, notes = {}, []
    for program in PROGRAMS:
        if program.name not in wanted:
            continue
        if not program.path():
            notes.append(f"{program.name} is not on this machine.")
        elif not any(program.can(row) for row in rows):
            notes.append(f"{program.name} is left out: {program.said_version()} has no {' '.join(program.needs_flags)}.")
        else:
            programs[program.name] = (program.said_version(), " ".join(program.options))
    return {"meta": {"server": args.server, "server_title": TITLES[args.server], "rounds": args.rounds,
                     "factor": args.size_factor, "date": time.strftime("%Y-%m-%d"), "machine": machine.described(),
                     "commit": commit.stdout.strip(), "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
                     "programs": programs, "notes": notes},
            "rows": {}}


class Bench:
    """The server with its objects, the two proxies, and a place for everything else; gone at the end."""

    def __init__(self, args, rows):
        self.args, self.rows, self.sizes = args, rows, Sizes(args.size_factor)
        self.answers = {}
        self.buckets = 0
        self.stack = ExitStack()

    def __enter__(self):
        with ExitStack() as stack:
            # On the disk of this checkout: the local copy and the disk caches belong on a real file system.
            target = ROOT / "target"
            self.home = stack.enter_context(machine.temporary_directory(target))
            room = machine.room_for_server(self.bytes_needed()) or self.home
            self.scratch = stack.enter_context(machine.temporary_directory(room))
            say(f"starting {self.args.server}, data in {self.scratch}")
            self.server = stack.enter_context(machine.server(self.args.server, self.scratch))
            self.lanes = {"far": stack.enter_context(machine.proxy(self.server[0], DELAY_S, BYTES_PER_SECOND)),
                          "near": stack.enter_context(machine.proxy(self.server[0], 0, 0))}
            self.fill()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *why):
        # A second Ctrl-C must not leave a mount behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return self.stack.__exit__(*why)

    def data(self, writing):
        """The sets that rows read, or those that rows write from."""
        return sorted({row.data for row in self.rows if row.writes == writing})

    def bytes_needed(self):
        size = lambda name: sum(size for _, size in objects_of(name, self.sizes))
        written = [size(name) for name in self.data(writing=True)]
        # What is written from as files, and a bucket with at most two of the largest.
        return sum(map(size, {row.data for row in self.rows})) + sum(written) + 2 * max(written, default=0)

    @property
    def sources(self):
        """Beside the server's data, so that reading them costs everybody as little as it can."""
        return self.scratch / "sources"

    def place(self, url, home, bucket=BUCKET):
        _, access, secret, region = self.server
        return Place(url, region, access, secret, bucket, home / "mnt", home)

    def start_ceiling(self, url, *command, **more):
        """The raw client; it ends when we do."""
        env = {**self.place(url, self.home).aws(), "AWS_ENDPOINT_URL": url, "HOME": str(self.home)}
        command = [word.replace("{sources}", str(self.sources)) for word in command]
        return machine.start([RELEASE / "examples/ceiling", *command], env=env, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, **more)

    def ceiling(self, url, *command):
        """Runs the raw client: what it printed."""
        process = self.start_ceiling(url, *command, stdin=subprocess.DEVNULL)
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
        if process.returncode != 0:
            raise Failed(f"ceiling {' '.join(command)}: {err.strip()[-500:]}")
        return json.loads(out) if out else None

    def fill(self):
        """Puts the rows' objects straight into the server, and copies of some into local directories."""
        reading, writing = self.data(writing=False), self.data(writing=True)
        # What rows write from too: a server that keeps equal bytes once (Garage) would serve whoever comes first worse.
        for name in sorted({*reading, *writing}):
            objects = self.home / "objects.json"
            objects.write_text(json.dumps(objects_of(name, self.sizes)))
            did = self.ceiling(self.server[0], "fill", "--objects", str(objects))
            say(f"{name}: {did['objects']} objects, {did['bytes'] / 1e6:.0f} MB in {did['seconds']:.1f} s")
            copies = [self.home / "local"] if any(row.local and row.data == name for row in self.rows) else []
            copies += [self.sources] if name in writing else []
            for directory in copies:
                self.ceiling(self.server[0], "fill", "--objects", str(objects), "--local", str(directory))

    @contextmanager
    def bucket(self, row):
        """The bucket of one run of a row: the one that all read, or a new one with what the row wants there."""
        if not row.writes:
            yield BUCKET
            return
        self.buckets += 1
        name = f"{BUCKET}-{self.buckets}"
        direct = lambda *command: self.ceiling(self.server[0], *command, "--bucket", name)
        direct("make-bucket")
        try:
            for command in row.there(self.sizes):
                direct(*command)
            yield name
        finally:
            direct("drop-bucket")

    def keep_in_memory(self, row):
        """The kernel's caches were dropped, and the files that a row writes from are not what is measured."""
        for key, _ in objects_of(row.data, self.sizes):
            with open(self.sources / key, "rb") as file:
                while file.read(1 << 20):
                    pass

    def expectation(self, row):
        """What has to be in a row's bucket at the end, as the raw client reads it."""
        path = self.home / "expected.json"
        path.write_text(json.dumps([(key, str(self.sources / path), changed)
                                    for key, path, changed in row.lands(self.sizes)]))
        return "--expect", str(path)

    def check(self, row, bucket):
        """Fails where a row's bucket has other bytes than it should."""
        self.ceiling(self.server[0], "check", *self.expectation(row), "--bucket", bucket)


def measure_row(bench, row, wanted, rounds, results):
    """All rounds of one row, the programs in turn, each round beginning with another."""
    contestants = contestants_of(bench, row, wanted)
    runs = {name: [] for name, _ in contestants}
    spent = dict.fromkeys(runs, 0.0)
    results["rows"][row.name] = {"date": time.strftime("%Y-%m-%d %H:%M"), "load": os.getloadavg()[1], "runs": runs}
    for turn in range(rounds):
        at = turn % max(1, len(contestants))
        for name, measure in contestants[at:] + contestants[:at]:
            if name != "pailfs" and (spent[name] > PEER_BUDGET_S or any("error" in run for run in runs[name])):
                continue
            began = time.monotonic()
            try:
                run = measure(bench, row)
            except TookTooLong:
                run = {"error": f"> {PATIENCE_S} s"}
            except (Failed, OSError, subprocess.SubprocessError) as why:
                run = {"error": f"failed: {why}"}
            # What preparing and checking took is not the peer's.
            spent[name] += run.get("in_s3", run.get("seconds", time.monotonic() - began))
            runs[name].append(run)
            say(row.name, f"round {turn + 1}", name, run.get("error") or figures(run))


def figures(run):
    parts = [f"{run['seconds']:.3f} s"]
    parts += [f"{says} {run[end]:.3f} s" for end, says in (("returned", "returned after"), ("in_s3", "in S3 after"))
              if run.get(end, run["seconds"]) != run["seconds"]]
    parts += [f"{run['rate']:.0f}/s"] if "rate" in run else []
    parts += [f"CPU {run['cpu_seconds']:.2f} s"] if run.get("cpu_seconds") is not None else []
    parts += [f"RSS {run['rss'] >> 20} MiB"] if run.get("rss") else []
    parts += [f"{run['requests']} requests, {run['bytes_down'] / 1e6:.1f} MB down, {run['bytes_up'] / 1e6:.1f} MB up"] \
        if "bytes_down" in run else []
    return ", ".join(parts)


def contestants_of(bench, row, wanted):
    """Who takes part in a row: a name and a function that measures it once."""
    found = [(program.name, lambda bench, row, program=program: measure_mount(bench, row, program))
             for program in PROGRAMS
             if program.name in wanted and program.path() and program.can(row)
             and (row.streams or not program.streams_only) and program.family in (row.programs or [program.family])]
    if RAW in wanted:
        for command in row.raw(bench.sizes):
            found.append((raw_name(command), lambda bench, row, command=command: measure_raw(bench, row, command)))
        if row.lane == "near" and not row.writes and row.raw(bench.sizes):
            # What the proxy costs.
            found.append(("no proxy", lambda bench, row: measure_direct(bench, row.raw(bench.sizes)[-1])))
    if LOCAL in wanted and row.local:
        found.append((LOCAL, measure_local))
    return found


def raw_name(command):
    """`raw/16 x 8M`: so many in flight, of parts that large."""
    said = dict(zip(command, command[1:]))
    part = f" x {said['--part']}" if "--part" in said and command[0] == "put" else ""
    return f"raw/{said['--in-flight']}{part}" if "--in-flight" in said else "raw/serial"


def measure_raw(bench, row, command):
    lane = bench.lanes[row.lane]
    with bench.bucket(row) as bucket:
        lane.reset()
        run = measure_direct(bench, [*command, "--bucket", bucket], lane.url)
        # Finding the objects has passed as well.
        run = {**passed(lane), **run}
        if row.writes:
            run["in_s3"] = run["seconds"]
            bench.check(row, bucket)
    return run


def measure_direct(bench, command, url=None):
    """The raw client at the server itself, or through a proxy."""
    before, began = machine.busy_seconds(), time.monotonic()
    did = bench.ceiling(url or bench.server[0], *command)
    run = {"busy": busy_share(before, time.monotonic() - began), "seconds": did["seconds"], "cpu_seconds": did["cpu_seconds"], "asked": did["bytes"],
           "requests": did["requests"]}
    if "--random" in command:
        run["rate"] = did["objects"] / did["seconds"]
    return run


def passed(lane):
    """What went through a proxy since its reset."""
    counts = lane.counts()
    return {"requests": sum(counts["requests"].values()), "by_operation": counts["requests"],
            "bytes_down": counts["bytes_down"], "bytes_up": counts["bytes_up"], "proxy_cpu_seconds": counts["cpu_seconds"]}


def measure_local(bench, row):
    """The local file system, in the state that the row leaves the mount in."""
    root = bench.home / "local"
    for command in row.prepare(root, bench.sizes) if row.prepare else []:
        machine.run(command, PATIENCE_S)
    if row.before in ("remount", "dropped"):
        machine.drop_caches()
    elif row.before == "cold":
        # Cold for a mount means the network; here it is the least that the work can take.
        machine.run(row.work(root, bench.sizes), PATIENCE_S)
    return work(bench, row, root)


def measure_mount(bench, row, program):
    home = Path(tempfile.mkdtemp(prefix=f"{program.name}-", dir=bench.home))
    try:
        with bench.bucket(row) as bucket:
            return measure_in(bench, row, program, bench.place(bench.lanes[row.lane].url, home, bucket))
    finally:
        machine.remove(home)


def measure_in(bench, row, program, place):
    def unmeasured(commands):
        for command in commands(place.mountpoint, bench.sizes) if commands else []:
            machine.run(command, PATIENCE_S)

    remount = row.before == "remount" and program.keeps_cache
    if remount:
        with machine.mounted(program, place, row):
            unmeasured(row.prepare)
    if row.before != "warm":
        machine.drop_caches()
    with machine.mounted(program, place, row) as process:
        if not remount:
            unmeasured(row.prepare)
        if row.before in ("remount", "dropped") and not remount:
            machine.drop_caches()
        if row.writes:
            run = measured_until_in_s3(bench, row, place, process.pid)
            bench.check(row, place.bucket)
        else:
            run = measured(bench, row, process.pid, lambda: work(bench, row, place.mountpoint))
        unmeasured(row.after)
        return run


def measured(bench, row, pid, do):
    """Work on a mount, and what it cost its daemon."""
    lane = bench.lanes[row.lane]
    lane.settle()
    lane.reset()
    machine.forget_peak(pid)
    cpu = machine.cpu_seconds(pid)
    run = do()
    run["cpu_seconds"] = machine.cpu_seconds(pid) - cpu
    run["rss"] = machine.peak_rss(pid)
    run.update(passed(lane))
    return run


def measured_until_in_s3(bench, row, place, pid):
    """The same for work that writes. It is done when the server has what it should, as the raw client sees that, and what
    a program does after that is counted too, but for the time."""
    bench.keep_in_memory(row)
    with witness(bench, row, place.bucket) as late:
        def do():
            run = work(bench, row, place.mountpoint)
            run["returned"] = run["seconds"]
            run["in_s3"] = run["seconds"] + late(time.monotonic())
            run["seconds"] = run["returned" if row.until_returned else "in_s3"]
            bench.lanes[row.lane].settle()
            return run
        return measured(bench, row, pid, do)


@contextmanager
def witness(bench, row, bucket):
    """The raw client at the server itself, which has noted what the bucket holds and begins to look when it is asked:
    how long after a moment that has passed it found everything there. 0 where it did so at its first look."""
    process = bench.start_ceiling(bench.server[0], "wait", *bench.expectation(row), "--bucket", bucket, "--at-most",
                                  f"{PATIENCE_S}s", stdin=subprocess.PIPE)

    def late(since):
        out, err = process.communicate("now\n")
        if process.returncode != 0:
            raise Failed(f"not in S3: {err.strip()[-300:]}")
        found = json.loads(out)
        return 0 if found["looks"] == 1 else max(0, found["at"] - since)

    try:
        if process.stdout.readline() != "ready\n":
            raise Failed(f"no witness: {process.stderr.read()[-300:]}")
        yield late
    finally:
        process.kill()
        process.wait()


def work(bench, row, root):
    scratch = Path(tempfile.mkdtemp(prefix="work-", dir=bench.scratch))
    try:
        command = [word.replace("{scratch}", str(scratch)).replace("{sources}", str(bench.sources))
                   for word in row.work(root, bench.sizes)]
        before = machine.busy_seconds()
        output, seconds = machine.run(command, PATIENCE_S)
        busy = busy_share(before, seconds)
        wrong = row.wrong(output, bench.sizes) or miscopied(row, scratch, bench.sizes) or differs(bench, row, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if wrong:
        raise Failed(f"wrong answer: {wrong}")
    run = {"seconds": seconds, "busy": busy}
    if output.startswith('{"seconds"'):
        run.update(json.loads(output))
    run.setdefault("asked", row.bytes_moved(bench.sizes))
    return run


def busy_share(before, seconds):
    """How much of the machine's processors the server, the proxy, the daemon and the program took together."""
    return (machine.busy_seconds() - before) / max(seconds, 0.01) / os.cpu_count()


def miscopied(row, scratch, sizes):
    """What a copy lacks."""
    copies = [path.stat().st_size for path in scratch.rglob("*") if path.is_file()]
    if copies and sorted(copies) != sorted(size for _, size in objects_of(row.data, sizes)):
        return f"{len(copies)} files of {sum(copies)} bytes were copied"


def differs(bench, row, output):
    """How the answer differs from that of the local copy."""
    if not row.same_answer:
        return None
    if row.name not in bench.answers:
        local, _ = machine.run(row.work(bench.home / "local", bench.sizes), PATIENCE_S)
        bench.answers[row.name] = local.split()[0]
    if output.split()[0] != bench.answers[row.name]:
        return f"{output.split()[0]} instead of {bench.answers[row.name]}"


# ---- Writing ----

def write(results, out):
    """Raw figures, plots and the page: into docs/, or below `out`."""
    server = results["meta"]["server"]
    docs = out or ROOT / "docs"
    figures = figures_of(out, server)
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(json.dumps(results, indent=1) + "\n")
    rows = [row for row in ROWS if row.name in results["rows"]]
    drawn = []
    for name, title in plots.PLOTS.items():
        svg = plots.plot(results, rows, name)
        if svg:
            figures.with_name(f"{server}-{name}.svg").write_text(svg)
            drawn.append((title, f"performance/{server}-{name}.svg"))
    page = docs / "PERFORMANCE.md"
    source = page if page.exists() else ROOT / "docs/PERFORMANCE.md"
    text = source.read_text() if source.exists() else "# Performance\n"
    page.write_text(report.put_between(text, server, report.page(results, drawn)))
    say(f"written: {page} and {figures}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as why:
        sys.exit(f"bench: {why}")
    except KeyboardInterrupt:
        sys.exit(130)
