//! A JSON object of a file beside the weights, read field by field.
//!
//! It is read by key rather than into one serde struct because defaults depend on the model family, `null` means
//! "not given", and an error should name the file and the key. Which keys were read is noted: see [`Fields::unread`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A JSON object and the file that it came from.
#[derive(Clone, Debug)]
pub struct Fields {
    path: PathBuf,
    /// Keys that lead to this object inside the file, as `rope_scaling.`.
    prefix: String,
    map: Map<String, Value>,
    /// Keys that were asked for, with what leads to them; of all objects of the file together.
    read: Rc<RefCell<BTreeSet<String>>>,
}

impl Fields {
    /// Parses an object, naming it `path` in errors. `NaN`, `Infinity` and numbers that overflow, as Python's json reads
    /// and writes them, become strings.
    ///
    /// # Errors
    /// The bytes are not a JSON object.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let parsed = serde_json::from_slice(bytes).or_else(|error| match without_infinities(bytes) {
            Some(text) => serde_json::from_slice(&text),
            None => Err(error),
        });
        match parsed {
            Ok(Value::Object(map)) => {
                Ok(Self { path: path.to_owned(), prefix: String::new(), map, read: Rc::default() })
            }
            Ok(_) => Err(Error::invalid(path, "not a JSON object")),
            Err(e) => Err(Error::invalid(path, format!("not valid JSON: {e}"))),
        }
    }

    /// The object itself, nulls included.
    #[must_use]
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `key`, unless it is absent or `null`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.note(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is there and `null`, which is not the same as absent where an absent key has a default.
    #[must_use]
    pub fn is_null(&self, key: &str) -> bool {
        self.note(key);
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// An error about the value of `key`.
    #[must_use]
    pub fn invalid(&self, key: &str, what: &str) -> Error {
        Error::invalid(&self.path, format!("{}{key}: {what}", self.prefix))
    }

    /// An error about a value of `key` that is not supported.
    #[must_use]
    pub fn unsupported(&self, key: &str, what: &str) -> Error {
        Error::unsupported(&self.path, format!("{}{key} {what}", self.prefix))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.invalid(key, &format!("{} is not {want}", brief(value))))
    }

    /// A whole number; `None` where the key is absent or `null`.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number of zero or more", |v| usize::try_from(v.as_u64()?).ok())
    }

    /// A number; `None` where the key is absent or `null`.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A truth value; `None` where the key is absent or `null`.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string; `None` where the key is absent or `null`.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list; `None` where the key is absent or `null`.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn array(&self, key: &str) -> Result<Option<&Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    /// An object; `None` where the key is absent or `null`.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        if object.is_some() {
            // What is in it is asked for key by key.
            self.read.borrow_mut().insert(prefix.clone());
        }
        Ok(object.map(|map| Self {
            path: self.path.clone(),
            prefix,
            map: map.clone(),
            read: Rc::clone(&self.read),
        }))
    }

    /// The object with some keys of the one around it: those of `winning` instead of its own, of `keys` where it lacks them.
    #[must_use]
    pub(crate) fn with_outer(mut self, outer: &Self, winning: &[&str], keys: &[&str]) -> Self {
        for key in winning.iter().chain(keys) {
            let lacks = winning.contains(key) || !self.map.contains_key(*key);
            if let (true, Some(value)) = (lacks, outer.map.get(*key)) {
                self.map.insert((*key).to_owned(), value.clone());
            }
        }
        self
    }

    /// Notes that `key` needs no reading.
    pub fn note(&self, key: &str) {
        self.read.borrow_mut().insert(format!("{}{key}", self.prefix));
    }

    /// Keys whose values were not asked for, with those of objects that were opened.
    #[must_use]
    pub fn unread(&self) -> Vec<(String, Value)> {
        fn walk(
            map: &Map<String, Value>,
            prefix: &str,
            read: &BTreeSet<String>,
            out: &mut Vec<(String, Value)>,
        ) {
            for (key, value) in map {
                let name = format!("{prefix}{key}");
                let inside = format!("{name}.");
                match value {
                    Value::Object(map) if read.contains(&inside) => walk(map, &inside, read, out),
                    _ if read.contains(&name) => {}
                    value => out.push((name, value.clone())),
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.map, &self.prefix, &self.read.borrow(), &mut out);
        out
    }

    /// One token id or a list of them, as `eos_token_id` is written.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| u32::try_from(v.as_u64()?).ok();
        let ids = self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => Some(vec![id(one)?]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

/// The text with the numbers that Python's json reads and writes and JSON has not (`NaN`, `Infinity`, `1e999`) as strings;
/// `None` if it has none. Reading such a key is then still an error, which names it.
fn without_infinities(bytes: &[u8]) -> Option<Vec<u8>> {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
    let mut out = Vec::with_capacity(bytes.len());
    let (mut rest, mut found) = (bytes, false);
    while let Some(&first) = rest.first() {
        let len = match first {
            b'"' => {
                let mut escaped = false;
                let end = rest[1..].iter().position(|&b| {
                    let ends = b == b'"' && !escaped;
                    escaped = b == b'\\' && !escaped;
                    ends
                });
                end.map_or(rest.len(), |end| end + 2)
            }
            b if is_word(&b) => rest.iter().take_while(|b| is_word(b)).count(),
            _ => 1,
        };
        let (token, after) = rest.split_at(len);
        let text = std::str::from_utf8(token).unwrap_or_default();
        let infinite = match first {
            b'N' | b'I' => text == "NaN" || text == "Infinity",
            b'-' if text == "-Infinity" => true,
            b'-' | b'0'..=b'9' => text.parse().is_ok_and(f64::is_infinite),
            _ => false,
        };
        if infinite {
            out.push(b'"');
        }
        out.extend_from_slice(token);
        if infinite {
            out.push(b'"');
        }
        found |= infinite;
        rest = after;
    }
    found.then_some(out)
}

/// A value as an error message shows it.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Fields> {
        Fields::parse(Path::new("config.json"), text.as_bytes())
    }

    #[test]
    fn numbers_that_only_python_reads_harm_nobody_who_does_not_read_them() {
        let text = r#"{"a": [0.0, Infinity, -Infinity,NaN], "b": {"c":-1e999}, "\"NaN": "say \"NaN\", Infinity", "d": 7}"#;
        let fields = parse(text).unwrap();
        assert_eq!(fields.usize("d").unwrap(), Some(7));
        assert_eq!(fields.str("\"NaN").unwrap(), Some("say \"NaN\", Infinity"));
        let refused = fields.object("b").unwrap().unwrap().f64("c").unwrap_err().to_string();
        assert!(refused.contains("b.c") && refused.contains("-1e999"), "{refused}");
        assert!(parse(r#"{"rms_norm_eps": NaN}"#).unwrap().f64("rms_norm_eps").is_err());
        for text in
            [r#"{"a": NaNN}"#, r#"{"a": nan}"#, r#"{"a": +Infinity}"#, r#"{"a": NaN"#, r#"{"a": "NaN}"#]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
