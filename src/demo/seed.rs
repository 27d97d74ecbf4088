//! A small tree to look at.

use bytes::Bytes;

use crate::error::Result;
use crate::s3::{Attributes, PutRequest, Store};

/// Fills a bucket with a few small objects, among them nested directories and a key with an empty part.
/// What has these keys already is replaced.
pub async fn seed_tree(store: &dyn Store, bucket: &str) -> Result<()> {
    for (key, content_type, body) in tree() {
        let attributes = Attributes { content_type: Some(content_type.to_owned()), ..Attributes::default() };
        let request =
            PutRequest { bucket: bucket.to_owned(), key, body, attributes, ..PutRequest::default() };
        store.put(request).await?;
    }
    Ok(())
}

fn tree() -> Vec<(String, &'static str, Bytes)> {
    let text = |key: &str, body: &str| (key.to_owned(), "text/plain", Bytes::from(body.to_owned()));
    let mut tree = vec![
        text("README.txt", README),
        text("docs/guide.txt", "Every file here is one object; its path is the object's key.\n"),
        text("docs/notes/today.txt", "- mount the bucket\n- edit this file\n- look at it with any S3 tool\n"),
        text("docs/notes/archive/2025/january.txt", "Directories can be as deep as you like.\n"),
        text("docs/with space & (signs).txt", "Names may hold almost any character.\n"),
        text("docs/zażółć-日本.txt", "And any script.\n"),
        text("odd//key", "Its key has an empty part between two slashes, which no path can have.\n"),
        ("docs/empty".to_owned(), "application/octet-stream", Bytes::new()),
        ("inbox/".to_owned(), "application/x-directory", Bytes::new()),
    ];
    for (number, name) in ["harbour", "mountain", "street"].into_iter().enumerate() {
        tree.push((format!("photos/2026/{name}.bmp"), "image/bmp", picture(number)));
    }
    for day in 1..=5 {
        let lines: String = (0..24)
            .map(|hour| format!("2026-03-{day:02}T{hour:02}:00:00Z info hour {hour} was quiet\n"))
            .collect();
        tree.push((format!("logs/2026/03/{day:02}.log"), "text/plain", lines.into()));
    }
    tree
}

const README: &str = "\
This bucket lives in a demo server on your own machine.

  docs/    text, in directories below directories
  photos/  small pictures
  logs/    one file a day: try  grep -r quiet logs | wc -l
  inbox/   an empty directory: put something in

What you write here lasts as long as the demo server, or its data directory, does.
";

/// A 64 by 64 gradient as an uncompressed 24-bit bitmap.
fn picture(number: usize) -> Bytes {
    const SIDE: u32 = 64;
    const HEADER: u32 = 54;
    let pixels = SIDE * SIDE * 3;
    let mut file = Vec::new();
    file.extend_from_slice(b"BM");
    for word in [HEADER + pixels, 0, HEADER, 40, SIDE, SIDE] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&1u16.to_le_bytes());
    file.extend_from_slice(&24u16.to_le_bytes());
    for word in [0, pixels, 2835, 2835, 0, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for y in 0..64u8 {
        for x in 0..64u8 {
            let mut colour = [x * 4, y * 4, 128];
            colour.rotate_left(number % 3);
            file.extend_from_slice(&colour);
        }
    }
    file.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_what_the_readme_promises() {
        let tree = tree();
        for name in ["docs/", "photos/", "logs/", "inbox/"] {
            assert!(tree.iter().any(|(key, ..)| key.starts_with(name)), "{name}");
        }
        let (_, _, picture) = tree.iter().find(|(key, ..)| key.ends_with(".bmp")).unwrap();
        assert_eq!(picture.len(), 54 + 64 * 64 * 3);
    }
}
