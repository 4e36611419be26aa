//! Runs the program and edits checkpoints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn demo() -> PathBuf {
    root().join("models/demo")
}

pub(crate) fn checkpoint(name: &str) -> PathBuf {
    root().join("tests/data/checkpoints").join(name)
}

pub(crate) fn narrows() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narrows"));
    // Tests need no GPU, and use none that is there.
    command.stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "");
    // Nor the figures that somebody keeps, which tests would change and depend on.
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    command
}

/// A finished run.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// Panics unless it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }

    /// Whether stdout is empty, or has the error as JSON.
    pub(crate) fn no_result(&self) -> bool {
        let code = || serde_json::from_str::<Value>(&self.out).ok()?["error"]["code"].as_i64();
        self.out.is_empty() || code() == self.code.map(i64::from)
    }

    /// Panics unless it was refused as documented: `code`, one error line that holds `word`, no result.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, word: &str) {
        let errors: Vec<_> = self.err.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(errors.len() == 1 && !self.err.contains("panicked") && self.no_result(), "{}", self.err);
        assert!(errors[0].contains(word), "{word:?} is not in {:?}", errors[0]);
    }
}

/// Runs the program to its end.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    Ran::of(&narrows().args(args).output().unwrap())
}

/// The arguments of a command line, for paths and words together.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { [$(std::ffi::OsString::from($arg)),*] };
}
pub(crate) use args;

/// A file of token ids.
pub(crate) fn save_ids(path: &Path, rows: &[&[i64]]) {
    let data: Vec<u8> = rows.iter().flat_map(|row| row.iter()).flat_map(|id| id.to_le_bytes()).collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![rows.len(), rows[0].len()], &data)
            .unwrap();
    fs::write(path, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Every file of a directory with its contents.
pub(crate) fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Changes the header of `model.safetensors`, leaving the data as it is.
pub(crate) fn edit_header(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*len)).unwrap());
    let mut header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    edit(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()).unwrap();
}

/// Changes `config.json`.
pub(crate) fn edit_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.insert(key.to_owned(), value);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}
