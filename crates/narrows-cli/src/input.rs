//! Texts from the command line, from files and from stdin.
//!
//! A file may be a device or a pipe without an end, and a budget is there before a text is: none is read beyond its room.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use narrows::{Bytes, Text};

use crate::failure::{Failure, Result};

/// A text at most, whatever the budget: more than any context holds.
const MOST: Bytes = Bytes::mib(256);

/// How much text is read at most.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    bytes: Bytes,
    /// What it is for, where that is what bounds it.
    budget: Option<Bytes>,
}

impl Room {
    /// For texts that are encoded within `budget`; `None` is no cap.
    pub(crate) fn within(budget: Option<Bytes>) -> Self {
        match budget.map(Text::longest_encoded) {
            Some(bytes) if bytes < MOST => Self { bytes, budget },
            _ => Self { bytes: MOST, budget: None },
        }
    }

    /// The failure for a text of `path` that is longer, of so many bytes where that is known.
    fn refused(self, path: &Path, size: Option<Bytes>) -> Failure {
        let path = path.to_owned();
        match self.budget {
            Some(budget) => Failure::LongText { path, size, room: self.bytes, budget },
            None => Failure::Input { path, what: format!("more than {} of text", self.bytes) },
        }
    }
}

/// A text as a flag gives it: `-` is stdin, `@FILE` a file, `@@` the start of a text that begins with `@`.
pub(crate) fn text_of(flag: &str, room: Room) -> Result<String> {
    match flag.strip_prefix('@') {
        _ if flag == "-" => read_stdin(room),
        None | Some("") => Ok(flag.to_owned()),
        Some(rest) if rest.starts_with('@') => Ok(rest.to_owned()),
        Some(path) => match read_text(Path::new(path), room) {
            Err(Failure::Input { path, what }) => {
                let what = format!("{what} (a text that begins with @ is written with @@)");
                Err(Failure::Input { path, what })
            }
            text => Ok(without_line_end(text?)),
        },
    }
}

/// All of stdin.
pub(crate) fn read_stdin(room: Room) -> Result<String> {
    read_all(Path::new("stdin"), std::io::stdin().lock(), room).map(without_line_end)
}

/// The line end that a shell or an editor puts behind the last line is not part of a prompt.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// A file of text.
pub(crate) fn read_text(path: &Path, room: Room) -> Result<String> {
    let file = File::open(path).map_err(|source| refused(path, source))?;
    match file.metadata() {
        Ok(found) if found.is_file() && Bytes(found.len()) > room.bytes => {
            Err(room.refused(path, Some(Bytes(found.len()))))
        }
        _ => read_all(path, file, room),
    }
}

fn read_all(path: &Path, from: impl Read, room: Room) -> Result<String> {
    let mut text = Vec::new();
    // A byte more than there is room for tells a text that is longer.
    from.take(room.bytes.get() + 1).read_to_end(&mut text).map_err(|source| refused(path, source))?;
    if text.len() as u64 > room.bytes.get() {
        return Err(room.refused(path, None));
    }
    String::from_utf8(text).map_err(|_| refused(path, ErrorKind::InvalidData.into()))
}

/// A file that is not there, or holds something else than text, is a wrong command line; what the disk says is not.
fn refused(path: &Path, source: std::io::Error) -> Failure {
    let path = path.to_owned();
    let what = match source.kind() {
        ErrorKind::NotFound => "no such file",
        ErrorKind::IsADirectory => "a directory, not a file of text",
        ErrorKind::InvalidData => "not UTF-8",
        _ => return Failure::File { path, source },
    };
    Failure::Input { path, what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let any = Room::within(None);
        std::fs::write(&file, "a\r\nb\r\n").unwrap();
        assert_eq!(text_of(&format!("@{}", file.display()), any).unwrap(), "a\r\nb");
        for (flag, text) in [("a@b", "a@b"), ("@@a", "@a"), ("@", "@"), ("", "")] {
            assert_eq!(text_of(flag, any).unwrap(), text);
        }
        let failure = text_of("@no-such-file", any).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("@@"));
        std::fs::write(&file, b"\xff").unwrap();
        assert_eq!(read_text(&file, any).unwrap_err().exit_code(), 2);
    }

    /// Of a text that is longer than its room no more is read, whatever it comes from.
    #[test]
    fn texts_have_room() {
        let room = Room::within(Some(Bytes::mib(4)));
        assert_eq!(room.bytes, Bytes(16 << 10));
        let read = |bytes: Vec<u8>| read_all(Path::new("x"), &bytes[..], room);
        assert_eq!(read(vec![b'a'; 16 << 10]).unwrap().len(), 16 << 10);
        // Cut within a character it is no less a long one.
        let long = read("\u{e9}a".repeat(9 << 10).into_bytes()).unwrap_err();
        assert!(matches!(long, Failure::LongText { size: None, .. }), "{long}");
        assert_eq!(long.exit_code(), 5);
        let endless = read_all(Path::new("x"), std::io::repeat(b'a'), Room::within(None)).unwrap_err();
        assert_eq!(endless.exit_code(), 2, "{endless}");
        // Texts that take nothing count in nobody's budget.
        assert_eq!(Text::encoding_memory(Room::within(Some(Bytes(1))).bytes.get() as usize), Bytes(0));
    }
}
