//! What is mounted where, read from the text of `/proc/self/mountinfo`. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The type of our mounts in the kernel's table.
pub const FS_TYPE: &str = "fuse.pailfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub mountpoint: PathBuf,
    pub fs_type: String,
    /// The file system's name, for ours the bucket.
    pub source: OsString,
    /// The user a FUSE mount belongs to.
    pub owner: Option<u32>,
}

impl Mount {
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// The mount that a path is the root of: the last one, because later mounts cover earlier ones.
pub fn mounted_at(table: &[u8], mountpoint: &Path) -> Option<Mount> {
    parse(table).filter(|mount| mount.mountpoint == mountpoint).last()
}

/// Every line that can be understood, in the kernel's order.
pub fn parse(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line)
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw`: some optional fields, a dash, and
/// three more.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mountpoint = fields.nth(4)?;
    let mut fields = fields.skip_while(|&field| field != b"-").skip(1);
    let fs_type = fields.next()?;
    let source = fields.next()?;
    let owner = fields.next().and_then(|options| {
        let options = std::str::from_utf8(options).ok()?;
        options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
    });
    Some(Mount {
        mountpoint: PathBuf::from(unescape(mountpoint)),
        fs_type: String::from_utf8_lossy(unescape(fs_type).as_bytes()).into_owned(),
        source: unescape(source),
        owner,
    })
}

/// The kernel writes space, tab, newline, `#` and backslash as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 0:20 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw
90 22 0:52 / /mnt/with\\040space\\134and\\011tab rw,nosuid - fuse.pailfs s3://b\\054c/ rw,user_id=0
91 22 0:53 / /mnt/plain rw - ext4 /dev/vdb rw
92 91 0:54 / /mnt/plain rw,nosuid shared:9 - fuse.pailfs s3://photos/ ro,user_id=1000

not a line
93 22 0:55 / /mnt/odd\\9\\77 rw - tmpfs none rw
";

    #[test]
    fn octal_escapes_are_undone() {
        let mount = mounted_at(TABLE, Path::new("/mnt/with space\\and\ttab")).unwrap();
        assert!(mount.is_ours());
        assert_eq!(mount.source, "s3://b,c/");
        assert!(mounted_at(TABLE, Path::new("/mnt/odd\\9\\77")).is_some());
    }

    #[test]
    fn the_mount_on_top_is_the_one_that_counts() {
        let mount = mounted_at(TABLE, Path::new("/mnt/plain")).unwrap();
        assert!(mount.is_ours());
        assert_eq!(mount.source, "s3://photos/");
        assert_eq!(mount.owner, Some(1000));
    }

    #[test]
    fn optional_fields_do_not_shift_the_others_and_odd_lines_are_passed_over() {
        let all: Vec<_> = parse(TABLE).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(all[0].fs_type, "ext4");
        assert!(!all[0].is_ours() && all[0].owner.is_none());
        assert!(mounted_at(TABLE, Path::new("/mnt")).is_none());
    }
}
