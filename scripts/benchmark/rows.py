"""What is measured: the objects, the rows and their bars, as data.

A new row is one more `Row` in ROWS; a new set of objects is one more entry in `objects_of`. A row that writes has a bucket
of its own for each run, made by `there`, and says with `lands` what has to be in it at the end.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# The network that the far lane stands for; the near lane is the proxy without either.
DELAY_S = 0.020
BYTES_PER_SECOND = 90_000_000

WORK = str(Path(__file__).parent / "work.py")


@dataclass(frozen=True)
class Sizes:
    """How large everything is; a factor makes the whole run smaller."""

    factor: float = 1.0

    def bytes(self, full, least=1 * MIB):
        return max(least, int(full * self.factor) // MIB * MIB)

    def count(self, full, least=16):
        return max(least, round(full * self.factor))

    @property
    def big(self):
        return self.bytes(1 * GIB, least=16 * MIB)

    @property
    def small_dirs(self):
        return self.count(100, least=4)

    @property
    def small_files(self):
        return 20 * self.small_dirs

    @property
    def tree_branches(self):
        return self.count(100, least=2)

    @property
    def tree_directories(self):
        return 11 * self.tree_branches

    @property
    def tree_files(self):
        return 80 * self.tree_branches

    @property
    def random_seconds(self):
        """Reads at random stop after this long, however many were done."""
        return 10 if self.factor >= 1 else 2

    @property
    def known_names(self):
        return self.count(10_000)

    @property
    def incoming_files(self):
        return self.count(500, least=32)


def objects_of(name, sizes):
    """The keys and sizes of one set of objects; its directory is the set's name."""
    return {
        "big": lambda: [("big/file", sizes.big)],
        "four": lambda: [(f"four/{i}", sizes.bytes(256 * MIB, 4 * MIB)) for i in range(4)],
        "many": lambda: [(f"many/{i:02}", sizes.bytes(64 * MIB)) for i in range(32)],
        "small": lambda: [(f"small/{a:02}/{b:02}", 16 * KIB) for a in range(sizes.small_dirs) for b in range(20)],
        "tree": lambda: [(f"tree/{a:02}/{b}/{c}", 100) for a in range(sizes.tree_branches)
                         for b in range(10) for c in range(8)],
        "incoming": lambda: [(f"incoming/{i:03}", 16 * KIB) for i in range(sizes.incoming_files)],
        "names-20k": lambda: [(f"names-20k/name-{i:06}", 8) for i in range(sizes.count(20_000))],
        "names-100k": lambda: [(f"names-100k/name-{i:06}", 8) for i in range(sizes.count(100_000))],
    }[name]()


@dataclass(frozen=True)
class Bar:
    """What pailfs has to reach in a row. `figure` takes a report.View and may be None: nothing to compare with."""

    says: str
    figure: Callable
    sense: str
    limit: float

    def holds(self, figure):
        return figure >= self.limit if self.sense == ">=" else figure <= self.limit


def speed(against, factor, says=None):
    return Bar(says or f"speed / {against}", lambda view: view.speed_against(against), ">=", factor)


def time(against, factor, says=None):
    return Bar(says or f"time / {against}", lambda view: view.time_against(against), "<=", factor)


def within(says, figure, limit):
    return Bar(says, figure, "<=", limit)


# DESIGN.md promise 9: the budget and a tenth.
MEMORY = within("RSS / memory limit", lambda view: view.memory_share(), 1.1)


def random_bars(threads):
    return (
        Bar("reads per second x delay / threads",
            lambda view: view.median("pailfs", "rate") * DELAY_S / threads, ">=", 0.9),
        within("bytes / asked", lambda view: view.median("pailfs", "bytes_down") / view.median("pailfs", "asked"), 2),
    )


@dataclass(frozen=True)
class Row:
    """One workload. Commands are given the directory they read: a mount, or the local copy."""

    name: str
    title: str
    # The set of objects that has to be there; a row that writes has the same as local files, to write from.
    data: str
    work: Callable
    bars: tuple = ()
    # "far" or "near": which proxy.
    lane: str = "far"
    # Ways to ask the raw client for the same, as arguments of bench/ceiling.rs; the fastest is the ceiling.
    raw: Callable = lambda sizes: ()
    # Whether the local file system does it too.
    local: bool = False
    # What is run before, unmeasured, and what then: "cold" (a fresh mount, nothing is run), "warm" (the measured
    # run follows at once), "dropped" (the kernel's caches are dropped first), "remount" (a new mount of the same caches,
    # and the kernel's dropped).
    before: str = "cold"
    prepare: Callable = None
    # What is run after, unmeasured, on the same mount.
    after: Callable = None
    # Bytes that the work moves; without it, all of the row's objects.
    moves: Callable = None
    # Whether programs that were tuned for streaming take part.
    streams: bool = False
    # Flags that the row needs, by program; one that has not got its flag is left out.
    flags: dict = field(default_factory=dict)
    # What is wrong with the work's output, if anything: (output, sizes) -> text or None.
    wrong: Callable = lambda output, sizes: None
    # Whether the output's first word has to be what the local copy gives.
    same_answer: bool = False
    # The plot it belongs to; without one it is in the tables alone.
    plot: str = "throughput"
    # The programs that take part, where not all do.
    programs: tuple = ()

    # A row that writes: what its bucket holds at the end, as the key, the file with its bytes, and the offset of a byte
    # whose complement the object has instead (or None). That has to be so before the clock stops.
    lands: Callable = None
    # How the raw client puts into the bucket what has to be there at the start.
    there: Callable = lambda sizes: ()
    # The clock stops when the program returns, whatever is in S3 by then.
    until_returned: bool = False

    # Whether the row is worth a twin in the near lane, and whether it is one.
    has_twin: bool = True
    is_twin: bool = False

    @property
    def writes(self):
        return self.lands is not None

    def twin(self):
        """The row in the near lane. The bars on time are for the far one."""
        return replace(self, name=f"{self.name}-near", title=f"{self.title}; at 0 ms", lane="near", is_twin=True,
                       bars=tuple(bar for bar in self.bars if bar is MEMORY), plot="")

    def bytes_moved(self, sizes):
        return self.moves(sizes) if self.moves else sum(size for _, size in objects_of(self.data, sizes))


def dd(root, sizes):
    return ["dd", f"if={root}/big/file", "of=/dev/null", "bs=1M", "status=none"]


# Where it is not allowed the row shows the kernel's cache of what was read.
DROP_CACHES = ["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches || true"]


def read_and_verified(root, sizes):
    """The first read fetches; the second is answered by the disk cache, which looks at what it has."""
    return [dd(root, sizes), DROP_CACHES, dd(root, sizes)]


def work(name, path, *more):
    """A command of work.py on `path` below the directory."""
    def command(root, sizes):
        extra = [word(sizes) if callable(word) else word for word in more]
        return [sys.executable, WORK, name, f"{root}/{path}", *map(str, extra)]
    return command


def raw_get(data, in_flight=(16, 32)):
    return lambda sizes: [["get", "--prefix", f"{data}/", "--in-flight", str(n)] for n in in_flight]


def raw_random(reads, threads):
    return lambda sizes: [["get", "--prefix", "big/", "--part", "4K", "--random", str(reads(sizes)),
                           "--in-flight", str(threads)]]


def raw_put(path, prefix="", in_flight=(16, 32), parts=()):
    """A file, or those of a directory; with every number in flight, and every size of parts."""
    return lambda sizes: [["put", "--from", f"{{sources}}/{path}", "--prefix", prefix, "--in-flight", str(n),
                           *(["--part", part] if part else [])] for part in parts or [""] for n in in_flight]


def raw_list(prefix, *more):
    return lambda sizes: [["list", "--prefix", prefix, *more]]


def big_file(key="file", changed=None):
    """The large file as an object of the row's bucket."""
    return lambda sizes: [(key, "big/file", changed(sizes) if changed else None)]


def incoming(directory):
    """The small files as objects."""
    return lambda sizes: [(f"{directory}/{i:03}", f"incoming/{i:03}", None) for i in range(sizes.incoming_files)]


def middle(sizes):
    return sizes.big // 2 + 12_345


def few_reads(sizes):
    return sizes.count(200)


def many_reads(sizes):
    return sizes.count(6400, least=320)


def counts(expected):
    """The output has so many lines."""
    def wrong(output, sizes):
        lines = output.count("\n")
        if lines != expected(sizes):
            return f"{lines} lines instead of {expected(sizes)}"
    return wrong


def all_found(output, sizes):
    said = json.loads(output.splitlines()[-1])
    if (said["known"], said["absent"]) != (sizes.known_names, sizes.known_names):
        return f"found {said['known']} known and {said['absent']} absent names of {sizes.known_names} each"


LISTS_LONG = {
    "pailfs": ["--metadata-ttl", "10m", "--negative-ttl", "10m"],
    "s3fs": ["-o", "stat_cache_expire=600"],
    "rclone": ["--dir-cache-time", "10m"],
    "mount-s3": ["--metadata-ttl", "600"],
}
DISK_CACHE = {
    "pailfs": ["--cache-dir", "{home}/cache"],
    "s3fs": ["-o", "use_cache={home}/cache"],
    "rclone": ["--vfs-cache-mode", "full", "--cache-dir", "{home}/cache"],
    "mount-s3": ["--cache", "{home}/cache"],
}
DISK_CACHE_READ_ONLY = {
    "pailfs": [*DISK_CACHE["pailfs"], "--read-only"],
    "s3fs": [*DISK_CACHE["s3fs"], "-o", "ro"],
    "rclone": [*DISK_CACHE["rclone"], "--read-only"],
    "mount-s3": [*DISK_CACHE["mount-s3"], "--read-only"],
}
# Every program's own way to save at once: s3fs and mount-s3 do by themselves.
WRITES = {
    "s3fs": ["-o", "tmpdir={home}"],
    "rclone": ["--vfs-cache-mode", "writes", "--vfs-write-back", "0s", "--cache-dir", "{home}/cache", "--transfers", "16",
               "--s3-upload-concurrency", "16", "--s3-chunk-size", "16M"],
    "mount-s3": ["--allow-delete", "--allow-overwrite"],
}
# Without asking for the size of what it copied, rclone takes it for 0 and the copy for broken.
MOVES = {**WRITES, "rclone": [*WRITES["rclone"], "--s3-no-head-object=false"]}
# What every other program does: the last one to save wins, and O_EXCL is of one mount.
PLAIN = ["--exclusive", "mount", "--on-conflict", "overwrite"]
WRITES_PLAINLY = {**WRITES, "pailfs": PLAIN}
WRITES_BACK = {**WRITES, "pailfs": ["--durability", "journal", *PLAIN]}
stat_names = work("stat", "names-20k", lambda sizes: sizes.known_names)
stat_names_at_once = work("stat", "names-20k", lambda sizes: sizes.known_names, 32)

READING = [
    Row("dd", "`dd` of 1 GiB, bs=1M, cold", "big", dd, raw=raw_get("big"), streams=True,
        bars=(speed("raw", 0.85), speed("mount-s3", 1), speed("s3fs", 3), MEMORY)),
    Row("dd-near", "the same at 0 ms, unlimited", "big", dd, lane="near", raw=raw_get("big"), streams=True,
        bars=(within("CPU / raw client's", lambda view: view.ratio("raw", "cpu_seconds"), 1.3),)),
    Row("four", "4 files of 256 MiB at once", "four", work("each", "four"), raw=raw_get("four"), streams=True,
        bars=(speed("raw", 0.85), MEMORY)),
    Row("many", "32 files of 64 MiB at once", "many", work("each", "many"), raw=raw_get("many"), streams=True,
        bars=(speed("raw", 0.85), MEMORY)),
    Row("again", "`dd` of 1 GiB again: the kernel's cache", "big", dd, local=True, before="warm", has_twin=False,
        prepare=lambda root, sizes: [dd(root, sizes)], bars=(speed("local", 0.9),)),
    Row("again-whole", "the same of a read-only mount, once the file is whole and verified in the disk cache", "big", dd, local=True,
        before="warm", prepare=lambda root, sizes: [*read_and_verified(root, sizes), dd(root, sizes)], flags=DISK_CACHE_READ_ONLY,
        has_twin=False, bars=(speed("local", 0.9),)),
    Row("disk-cache", "the same, and after drop_caches: the disk cache", "big", dd, local=True,
        before="dropped", prepare=lambda root, sizes: read_and_verified(root, sizes), flags=DISK_CACHE_READ_ONLY, has_twin=False,
        bars=(speed("local", 0.7),)),
    Row("disk-cache-remount", "`dd` of 1 GiB again: the disk cache, after a remount and drop_caches", "big", dd, local=True,
        before="remount", prepare=lambda root, sizes: [dd(root, sizes)], flags=DISK_CACHE, has_twin=False),
    Row("random-1", "random 4 KiB of 1 GiB, 1 thread, cold", "big",
        work("random", "big/file", 1, few_reads, lambda sizes: sizes.random_seconds), raw=raw_random(few_reads, 1),
        bars=random_bars(1), plot="random"),
    Row("random-32", "random 4 KiB of 1 GiB, 32 threads, cold", "big",
        work("random", "big/file", 32, many_reads, lambda sizes: sizes.random_seconds), raw=raw_random(many_reads, 32),
        bars=random_bars(32), plot="random"),
    Row("skip", "read 4 MiB, skip 4 MiB, through 1 GiB", "big", work("skip", "big/file"),
        bars=(Bar("bytes per second / dd's",
                  lambda view: view.bytes_per_second() / view.other("dd").bytes_per_second(), ">=", 0.5),)),
    Row("mmap", "mmap scan of 1 GiB (Python)", "big", work("mmap", "big/file"), local=True,
        bars=(within("time / dd's", lambda view: view.seconds() / view.other("dd").seconds(), 1.3),)),
    Row("sha256sum", "`sha256sum` of 1 GiB", "big", lambda root, sizes: ["sha256sum", f"{root}/big/file"], local=True,
        same_answer=True,
        bars=(within("time / dd's", lambda view: view.seconds() / view.other("dd").seconds(), 1.3),
              within("time / the slower of dd and a local sha256sum",
                     lambda view: view.seconds() / max(view.other("dd").seconds(), view.seconds("local")), 1.3))),
    Row("cp", "`cp -r` out of 2,000 x 16 KiB in 100 directories", "small",
        lambda root, sizes: ["cp", "-r", f"{root}/small", "{scratch}/out"], raw=raw_get("small", (32,)), plot="names",
        bars=(Bar("one round trip per file / time",
                  lambda view: view.sizes.small_files * DELAY_S / view.seconds(), ">=", 10),)),
    Row("find", "`find` over 8,000 objects in 1,100 directories", "tree",
        lambda root, sizes: ["find", f"{root}/tree"], raw=raw_list("tree/"), plot="names",
        wrong=counts(lambda sizes: sizes.tree_files + sizes.tree_directories + 1),
        bars=(time("raw", 1.5, "time / raw recursive LIST"),)),
    Row("ls-20k", "`ls -l` of 20,000 names", "names-20k", lambda root, sizes: ["ls", "-l", f"{root}/names-20k"],
        raw=raw_list("names-20k/", "--delimiter", "/"), plot="names",
        wrong=counts(lambda sizes: sizes.count(20_000) + 1), bars=(time("raw", 1.3, "time / raw serial LIST"),)),
    Row("ls-100k", "`ls -l` of 100,000 names", "names-100k", lambda root, sizes: ["ls", "-l", f"{root}/names-100k"],
        raw=raw_list("names-100k/", "--delimiter", "/"), plot="names",
        wrong=counts(lambda sizes: sizes.count(100_000) + 1), bars=(time("raw", 0.5, "time / raw serial LIST"),)),
    Row("stat", "`stat` of 10,000 known and 10,000 absent names, warm", "names-20k", stat_names, before="warm",
        prepare=lambda root, sizes: [["ls", "-l", f"{root}/names-20k"], stat_names_at_once(root, sizes)],
        flags=LISTS_LONG, wrong=all_found, plot="names",
        bars=(within("requests", lambda view: view.median("pailfs", "requests"), 0),)),

]


def requests(limit):
    return within("requests", lambda view: view.median("pailfs", "requests"), limit)


def on_the_wire(mebibytes):
    """In both directions, heads included."""
    return within("MiB on the wire", lambda view: (view.median("pailfs", "bytes_up")
                                                   + view.median("pailfs", "bytes_down")) / MIB, mebibytes)


def serial_puts(view):
    """One PUT per file, one after the other, as the raw client does it."""
    serial = view.other("cp-in")
    return serial.seconds(serial.best("raw"))


WRITING = [
    Row("dd-in", "`dd` of 1 GiB in, bs=1M, conv=fsync", "big",
        lambda root, sizes: ["dd", "if={sources}/big/file", f"of={root}/file", "bs=1M", "conv=fsync", "status=none"],
        lands=big_file(), raw=raw_put("big/file", parts=("8M", "16M")), flags=WRITES, streams=True, plot="writing",
        bars=(speed("raw", 0.8), speed("s3fs", 1), speed("rclone", 1), speed("mount-s3", 1), MEMORY)),
    Row("cp-in", "`cp -r` in of 500 x 16 KiB", "incoming",
        lambda root, sizes: ["cp", "-r", "{sources}/incoming", f"{root}/incoming"],
        lands=incoming("incoming"), raw=raw_put("incoming", "incoming/", in_flight=(1,)), flags=WRITES_PLAINLY, plot="writing",
        bars=(speed("raw", 0.9, "speed / one PUT after the other"), MEMORY)),
    Row("cp-in-16", "the same by 16 `cp` at once", "incoming",
        work("copies", "incoming", lambda sizes: "{sources}/incoming", 16),
        lands=incoming("incoming"), raw=raw_put("incoming", "incoming/", in_flight=(16,)), flags=WRITES_PLAINLY, plot="writing",
        bars=(Bar("speed / one PUT after the other", lambda view: serial_puts(view) / view.seconds(), ">=", 10), MEMORY)),
    Row("cp-in-safe", "the first again, with pailfs's own promises: nobody is overwritten, O_EXCL holds among hosts", "incoming",
        lambda root, sizes: ["cp", "-r", "{sources}/incoming", f"{root}/incoming"],
        lands=incoming("incoming"), flags=WRITES, programs=("pailfs",), plot="writing", bars=(MEMORY,)),
    Row("write-back", "`cp -r` in of 500 x 16 KiB, write-back: until `cp` returns", "incoming",
        lambda root, sizes: ["cp", "-r", "{sources}/incoming", f"{root}/incoming"],
        lands=incoming("incoming"), until_returned=True, flags=WRITES_BACK, programs=("pailfs", "rclone"), plot="writing",
        bars=(Bar("speed / cp-in's", lambda view: view.other("cp-in").seconds() / view.seconds(), ">=", 20), MEMORY)),
    Row("edit", "one byte of 1 GiB changed, with fsync", "big",
        work("edit", "file", lambda sizes: "{sources}/big/file", middle),
        there=raw_put("big/file", in_flight=(16,)), lands=big_file(changed=middle), moves=lambda sizes: 1, flags=WRITES,
        streams=True, plot="writing",
        bars=(on_the_wire(64), speed("s3fs", 5), speed("rclone", 5), MEMORY)),
    Row("rm", "`rm -rf` of a directory of 500 files", "incoming", lambda root, sizes: ["rm", "-rf", f"{root}/dir"],
        there=raw_put("incoming", "dir/", in_flight=(16,)), lands=lambda sizes: [], moves=lambda sizes: 0, flags=WRITES,
        plot="writing", bars=(requests(15), MEMORY)),
    Row("mv", "`mv` of a directory of 500 files", "incoming", lambda root, sizes: ["mv", f"{root}/from", f"{root}/to"],
        there=raw_put("incoming", "from/", in_flight=(16,)), lands=incoming("to"), moves=lambda sizes: 0, flags=MOVES,
        plot="writing",
        bars=(Bar("a copy and a delete per file, one after the other / time",
                  lambda view: 2 * view.sizes.incoming_files * DELAY_S / view.seconds(), ">=", 20), MEMORY)),
    Row("cp-inside", "`cp` of 1 GiB to another name on the mount", "big",
        lambda root, sizes: ["cp", f"{root}/file", f"{root}/copy"], there=raw_put("big/file", in_flight=(16,)),
        lands=lambda sizes: [*big_file()(sizes), *big_file("copy")(sizes)], flags=WRITES, streams=True, plot="writing",
        bars=(on_the_wire(1), MEMORY)),
]

FAR = READING + WRITING
ROWS = FAR + [row.twin() for row in FAR if row.has_twin and row.lane == "far"
              and f"{row.name}-near" not in {other.name for other in FAR}]
