//! Text that leaves as its tokens come: never half a character, never past a stop string.

use super::Text;
use crate::error::Result;

/// Turns tokens into text one by one.
///
/// A token's text can depend on its neighbours (leading spaces, characters of several tokens), so a window
/// of the last tokens is decoded with and without the new one and the difference is the new text.
#[derive(Debug)]
pub(crate) struct TextStream<'a> {
    text: &'a Text,
    ids: Vec<u32>,
    /// Tokens before this one are out of the window.
    window: usize,
    /// Where the window began before, which has text where tokens of the window may have none of their own.
    anchor: usize,
    /// Tokens before this one have been emitted.
    emitted: usize,
}

impl<'a> TextStream<'a> {
    /// A stream that continues `context`, whose own text is not emitted.
    pub(crate) fn new(text: &'a Text, context: &[u32]) -> Self {
        // Enough for any character: no tokenizer spreads one over more tokens than UTF-8 has bytes.
        const CONTEXT: usize = 8;
        let ids = context[context.len().saturating_sub(CONTEXT)..].to_vec();
        Self { text, emitted: ids.len(), window: 0, anchor: 0, ids }
    }

    /// The text that `id` completes, which may be empty.
    pub(crate) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, after) = self.texts()?;
        // U+FFFD at the end: the bytes of a character are still coming.
        if after.len() <= before.len() || after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.anchor = self.window;
        self.window = self.emitted;
        self.emitted = self.ids.len();
        Ok(after.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// What was held back, with U+FFFD for bytes that never became a character.
    pub(crate) fn finish(&mut self) -> Result<String> {
        let (before, after) = self.texts()?;
        self.emitted = self.ids.len();
        Ok(after.get(before.len()..).unwrap_or_default().to_owned())
    }

    fn texts(&mut self) -> Result<(String, String)> {
        let mut before = self.text.decode(&self.ids[self.window..self.emitted])?;
        if before.is_empty() && self.window > self.anchor {
            // Spaces alone, which are nothing where a text begins: what comes would lose its own, too.
            self.window = self.anchor;
            before = self.text.decode(&self.ids[self.window..self.emitted])?;
        }
        Ok((before, self.text.decode(&self.ids[self.window..])?))
    }
}

/// Cuts a text at the first of its stop strings, wherever the pieces it comes in break.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds a piece; returns the text that is certain, and whether a stop string ended it.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        // Hold back the longest end of the text that could still become a stop string.
        let keep = self
            .held
            .char_indices()
            .map(|(i, _)| i)
            .find(|&i| self.stops.iter().any(|stop| stop.starts_with(&self.held[i..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<_> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let (certain, stopped) = matcher.push(piece);
            text += &certain;
            if stopped {
                return (text, true);
            }
        }
        (text + &matcher.finish(), false)
    }

    #[test]
    fn stop_strings() {
        assert_eq!(run(&["</s>"], &["a<", "/s", "> b"]), ("a".to_owned(), true));
        assert_eq!(run(&["</s>"], &["a<", "/s", " b"]), ("a</s b".to_owned(), false));
        assert_eq!(run(&["</s>"], &["a</"]), ("a</".to_owned(), false));
        assert_eq!(run(&["bc", "b"], &["ab", "c"]), ("a".to_owned(), true));
        assert_eq!(run(&["\u{e9}"], &["caf", "\u{e9}s"]), ("caf".to_owned(), true));
        assert_eq!(run(&[""], &["a"]), ("a".to_owned(), false));
    }

    /// Every table with what its package makes of ids, those of texts and random ones.
    #[test]
    fn tokens_of_tables_are_the_same_text_one_by_one() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tables");
        let goldens = std::fs::read(data.join("goldens.json")).unwrap();
        let goldens: serde_json::Value = serde_json::from_slice(&goldens).unwrap();
        let mut checked = 0;
        for format in ["pieces", "ranks"] {
            for (name, golden) in goldens[format].as_object().unwrap() {
                let dir = tempfile::tempdir().unwrap();
                let table =
                    if format == "pieces" { format!("{name}.model") } else { "ranks.tiktoken".to_owned() };
                let file = golden["file"].as_str().unwrap_or("tokenizer.model");
                std::fs::copy(data.join(table), dir.path().join(file)).unwrap();
                let config = serde_json::json!({"model_type": golden["model_type"]});
                std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
                let text = Text::read(dir.path()).unwrap();
                let rows = ["shown", "decoded"].iter().flat_map(|key| golden[key].as_array().unwrap());
                for row in rows {
                    let (ids, want): (Vec<u32>, String) = serde_json::from_value(row.clone()).unwrap();
                    let mut stream = TextStream::new(&text, &[]);
                    let mut got: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
                    got += &stream.finish().unwrap();
                    assert_eq!(got, want, "{name} {ids:?}");
                    checked += 1;
                }
            }
        }
        assert!(checked > 900, "{checked}");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab]{0,12}", stop in "[ab]{1,4}", cuts in prop::collection::vec(0usize..12, 0..6)) {
            let mut cuts: Vec<_> = cuts.into_iter().filter(|&c| c <= text.len()).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let want = match text.find(&stop) {
                Some(end) => (text[..end].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(run(&[&stop], &pieces), want);
        }
    }
}
