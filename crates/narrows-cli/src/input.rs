//! Texts from the command line, from files and from stdin.

use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::failure::{Failure, Result};

/// A text as a flag gives it: `-` is stdin, `@FILE` a file, `@@` the start of a text that begins with `@`.
pub(crate) fn text_of(flag: &str) -> Result<String> {
    match flag.strip_prefix('@') {
        _ if flag == "-" => read_stdin(),
        None | Some("") => Ok(flag.to_owned()),
        Some(rest) if rest.starts_with('@') => Ok(rest.to_owned()),
        Some(path) => match read_text(Path::new(path)) {
            Err(Failure::Input { path, what }) => {
                let what = format!("{what} (a text that begins with @ is written with @@)");
                Err(Failure::Input { path, what })
            }
            text => Ok(without_line_end(text?)),
        },
    }
}

/// All of stdin.
pub(crate) fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|source| refused(Path::new("stdin"), source))?;
    Ok(without_line_end(text))
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
pub(crate) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| refused(path, source))
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
        std::fs::write(&file, "a\r\nb\r\n").unwrap();
        assert_eq!(text_of(&format!("@{}", file.display())).unwrap(), "a\r\nb");
        for (flag, text) in [("a@b", "a@b"), ("@@a", "@a"), ("@", "@"), ("", "")] {
            assert_eq!(text_of(flag).unwrap(), text);
        }
        let failure = text_of("@no-such-file").unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("@@"));
        std::fs::write(&file, b"\xff").unwrap();
        assert_eq!(read_text(&file).unwrap_err().exit_code(), 2);
    }
}
