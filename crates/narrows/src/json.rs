//! The JSON files beside the weights, read field by field.
//!
//! They are read by key rather than into one serde struct because their defaults depend on the model
//! family, `null` means "not given", and an error should name the file and the key.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Far above any real config or tokenizer (the largest known tokenizer.json has 33 MB).
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A JSON object and the file that it came from.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    path: PathBuf,
    /// Keys that lead to this object inside the file, as `rope_scaling.`.
    prefix: String,
    map: Map<String, Value>,
}

/// Reads a whole small file; `None` where it does not exist.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let len = std::fs::metadata(path)?.len();
        if len > MAX_FILE_BYTES {
            return Err(std::io::Error::new(ErrorKind::FileTooLarge, format!("{len} bytes")));
        }
        std::fs::read(path)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

impl Fields {
    /// Reads the object in `path`; `None` where there is no such file.
    pub(crate) fn read_optional(path: &Path) -> Result<Option<Self>> {
        read_optional(path)?.map(|bytes| Self::parse(path, &bytes)).transpose()
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_owned(), prefix: String::new(), map }),
            Ok(_) => Err(Error::invalid(path, "not a JSON object")),
            Err(e) => Err(Error::invalid(path, format!("not valid JSON: {e}"))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `key`, unless it is absent or `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn invalid(&self, key: &str, what: &str) -> Error {
        Error::invalid(&self.path, format!("{}{key}: {what}", self.prefix))
    }

    pub(crate) fn unsupported(&self, key: &str, what: &str) -> Error {
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

    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number of zero or more", |v| usize::try_from(v.as_u64()?).ok())
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        Ok(self.typed(key, "an object", Value::as_object)?.map(|map| Self {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            map: map.clone(),
        }))
    }

    /// One token id or a list of them, as `eos_token_id` is written.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| u32::try_from(v.as_u64()?).ok();
        let ids = self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => Some(vec![id(one)?]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}

/// A value as an error message shows it.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
