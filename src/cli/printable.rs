//! Text of others, made harmless for a terminal. Pure.

/// An object's name may hold anything, and a terminal obeys control characters.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// The same of a text that has lines.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// JSON leaves some control characters as they are that terminals obey; they are in its strings alone, where they have another form.
pub fn printable_json(text: &str) -> String {
    let escaped = |c: char| match c {
        '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_terminal_obeys_what_is_shown() {
        let text = "a\nb\tc\x1b[2J\u{9b}2J\x7f\r";
        assert_eq!(printable_lines(text), "a\nb\\tc\\u{1b}[2J\\u{9b}2J\\u{7f}\\r");
        let json = printable_json(&serde_json::to_string(text).unwrap());
        assert!(!json.contains(char::is_control), "{json:?}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
