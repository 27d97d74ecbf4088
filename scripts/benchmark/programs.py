"""What is measured against what: the programs, how each mounts a bucket, and with which options."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent.parent
RELEASE = ROOT / "target/release"
PAILFS = RELEASE / "pailfs"
# Said rather than left to the machine, so that the bar on memory means the same everywhere.
MEMORY_LIMIT = 1 << 30


@dataclass(frozen=True)
class Place:
    """What to mount and where."""

    url: str
    region: str
    access: str
    secret: str
    bucket: str
    mountpoint: Path
    # A directory of this measurement's own: HOME, state, caches.
    home: Path

    def aws(self):
        """The environment of programs that read AWS's variables."""
        return {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": self.region,
                "AWS_DEFAULT_REGION": self.region, "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class Program:
    """A daemon that stays in the foreground until it is unmounted."""

    name: str
    binary: str
    command: Callable
    env: Callable
    version: tuple
    # Options that are a choice; they are shown in the report.
    options: tuple = ()
    # Whose flags of a row it takes, and which bars it counts for.
    kin: str = ""
    streams_only: bool = False
    # Whether its disk cache survives a remount.
    keeps_cache: bool = True
    needs_flags: tuple = field(default=())

    @property
    def family(self):
        return self.kin or self.name

    def argv(self, place, row):
        flags = [flag.format(home=place.home) for flag in row.flags.get(self.family, ())]
        return [*map(str, self.command(place)), *self.options, *flags]

    def path(self):
        return shutil.which(self.binary)

    def can(self, row):
        """Whether the program has the flags that the row needs."""
        wanted = [flag.partition("=")[0] for flag in row.flags.get(self.family, ()) if flag.startswith("--")]
        return all(flag in help_of(self.binary) for flag in wanted + list(self.needs_flags))

    def said_version(self):
        done = subprocess.run([self.path(), *self.version], capture_output=True, text=True, timeout=20)
        return (done.stdout or done.stderr).splitlines()[0].strip()


@cache
def help_of(binary):
    """The help on mounting; s3fs and mount-s3 have one page, the others one per command, and rclone another on S3."""
    pages = {"s3fs": [["--help"]], "mount-s3": [["--help"]], "rclone": [["mount", "--help"], ["help", "flags"]]}
    return "".join(subprocess.run([binary, *words], capture_output=True, text=True, timeout=20).stdout
                   for words in pages.get(Path(binary).name, [["mount", "--help"]]))


def pailfs(place):
    return [PAILFS, "mount", f"s3://{place.bucket}", place.mountpoint, "--foreground", "--endpoint-url", place.url,
            "--region", place.region, "--state-dir", place.home / "state"]


def s3fs(place):
    passwords = place.home / "passwd-s3fs"
    passwords.touch(mode=0o600)
    passwords.write_text(f"{place.access}:{place.secret}\n")
    return ["s3fs", place.bucket, place.mountpoint, "-f", "-o",
            f"url={place.url},use_path_request_style,endpoint={place.region},passwd_file={passwords}"]


def rclone(place):
    return ["rclone", "mount", f"bench:{place.bucket}", place.mountpoint, "--config", place.home / "rclone.conf"]


def rclone_env(place):
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": place.access, "REGION": place.region,
                "SECRET_ACCESS_KEY": place.secret, "ENDPOINT": place.url, "FORCE_PATH_STYLE": "true"}
    return {f"RCLONE_CONFIG_BENCH_{name}": value for name, value in settings.items()}


def mount_s3(place):
    return ["mount-s3", place.bucket, place.mountpoint, "--foreground", "--endpoint-url", place.url,
            "--region", place.region, "--force-path-style"]


# Without these s3fs forgets what it listed after 1,000 names and asks for every absent name.
S3FS_OPTIONS = ("-o", "max_stat_cache_size=200000,enable_noobj_cache,multireq_max=32")
# Without these rclone asks for every object's own time, and once more before each GET.
RCLONE_OPTIONS = ("--use-server-modtime", "--s3-no-head-object", "--s3-no-check-bucket", "--vfs-cache-mode", "off")

PROGRAMS = [
    Program("pailfs", str(PAILFS), pailfs, Place.aws, ("--version",), ("--memory-limit", str(MEMORY_LIMIT))),
    Program("s3fs", "s3fs", s3fs, lambda place: {}, ("--version",), S3FS_OPTIONS),
    Program("s3fs-tuned", "s3fs", s3fs, lambda place: {}, ("--version",),
            (*S3FS_OPTIONS, "-o", "parallel_count=32,multipart_size=8"), kin="s3fs", streams_only=True),
    Program("rclone", "rclone", rclone, rclone_env, ("version",), RCLONE_OPTIONS),
    Program("rclone-tuned", "rclone", rclone, rclone_env, ("version",),
            (*RCLONE_OPTIONS, "--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "8M", "--buffer-size", "64M"),
            kin="rclone", streams_only=True, needs_flags=("--vfs-read-chunk-streams",)),
    # It empties its cache when it starts.
    Program("mount-s3", "mount-s3", mount_s3, Place.aws, ("--version",), keeps_cache=False),
]

RAW, LOCAL = "raw", "local"


def install_missing():
    """Debian's packages of the peers."""
    packages = {"s3fs": "s3fs", "rclone": "rclone", "fusermount3": "fuse3"}
    missing = [package for binary, package in packages.items() if not shutil.which(binary)]
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    subprocess.run([*root, *apt, "update", "-qq"], check=True)
    subprocess.run([*root, *apt, "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)
