//! Patterns that cut a text, without the limits of a backtracking engine on long runs of white space.

use regex::Regex;
use tokenizers::Result;
use tokenizers::tokenizer::pattern::Pattern;
use tokenizers::utils::SysRegex;

/// How most patterns of tokenizers end: white space up to its last character, if a word follows it.
const BEFORE_A_WORD: &str = r"|\s+(?!\S)|\s+";

/// What the pre-tokenizer `ByteLevel` cuts with unless told otherwise (`pre_tokenizers/byte_level.rs`).
pub(super) const BYTE_LEVEL: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A pattern to cut a text with.
#[derive(Debug)]
pub(super) enum Cut {
    /// One that ends in [`BEFORE_A_WORD`]: a single pass finds the same pieces, since only the last alternative
    /// looks ahead, and only at what ends its own match. The backtracking engine remembers every character of a run
    /// and gives up after a million of them.
    Linear(Regex),
    /// Any other.
    Backtracking(SysRegex),
}

impl Cut {
    pub(super) fn new(pattern: &str) -> Result<Self> {
        if let Some(rest) = pattern.strip_suffix(BEFORE_A_WORD)
            && let Ok(regex) = Regex::new(&format!(r"{rest}|(?<space>\s+)"))
        {
            return Ok(Self::Linear(regex));
        }
        SysRegex::new(pattern).map(Self::Backtracking)
    }
}

impl Pattern for &Cut {
    fn find_matches(&self, inside: &str) -> Result<Vec<((usize, usize), bool)>> {
        let regex = match self {
            Cut::Linear(regex) => regex,
            Cut::Backtracking(regex) => return regex.find_matches(inside),
        };
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::new();
        let (mut at, mut covered) = (0, 0);
        let mut locations = regex.capture_locations();
        // The group is the last one.
        let space = regex.captures_len() - 1;
        while let Some(found) = regex.captures_read_at(&mut locations, inside, at) {
            let (start, mut end) = (found.start(), found.end());
            if locations.get(space).is_some() && end < inside.len() {
                let last = inside[start..end].chars().next_back().map_or(0, char::len_utf8);
                if end - last > start {
                    end -= last;
                }
            }
            if end == start {
                // Nothing was matched: go on behind the next character, as every engine does.
                let Some(next) = inside[start..].chars().next() else { break };
                at = start + next.len_utf8();
                continue;
            }
            if covered < start {
                pieces.push(((covered, start), false));
            }
            pieces.push(((start, end), true));
            (at, covered) = (end, end);
        }
        if covered < inside.len() {
            pieces.push(((covered, inside.len()), false));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const WITH_GROUPS: &str = r"('s|'t)|(?<word> ?\p{L}+)|\s+(?!\S)|\s+";

    proptest! {
        #[test]
        fn one_pass_finds_what_backtracking_finds(
            text in "[ab1 \\n\\r\\t'sT.,\u{3000}\u{e9}\u{a0}]{0,40}",
            pattern in prop::sample::select(vec![BYTE_LEVEL, LLAMA3, WITH_GROUPS]),
        ) {
            let cut = Cut::new(pattern).unwrap();
            prop_assert!(matches!(cut, Cut::Linear(_)));
            let slow = SysRegex::new(pattern).unwrap();
            prop_assert_eq!((&cut).find_matches(&text).unwrap(), (&slow).find_matches(&text).unwrap());
        }
    }

    #[test]
    fn runs_of_millions_are_one_piece() {
        for space in [" ", "\n", "\r\n", "\t \n", "\u{3000}"] {
            let run = space.repeat(1_200_000);
            let text = format!("a{run}word");
            let last = run.chars().next_back().unwrap().len_utf8();
            let cut = Cut::new(BYTE_LEVEL).unwrap();
            let pieces: Vec<_> =
                (&cut).find_matches(&text).unwrap().into_iter().map(|piece| piece.0).collect();
            let mut want = vec![(0, 1), (1, 1 + run.len() - last)];
            if space.ends_with(' ') {
                want.push((want[1].1, text.len()));
            } else {
                want.extend([(want[1].1, 1 + run.len()), (1 + run.len(), text.len())]);
            }
            assert_eq!(pieces, want, "{space:?}");
        }
    }

    #[test]
    fn other_patterns_are_kept() {
        assert!(matches!(Cut::new(r"(?=a)|\s+(?!\S)|\s+").unwrap(), Cut::Backtracking(_)));
        assert!(matches!(Cut::new(r"\d+|\s+").unwrap(), Cut::Backtracking(_)));
        assert!(Cut::new("(").is_err());
    }
}
