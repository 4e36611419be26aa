//! Where stdout and stderr go, and what may not go there.

use std::fs::File;
use std::process::Stdio;

use crate::harness::{args, checkpoint, copy_dir, demo, edit_config, narrows, run};

fn full() -> Option<File> {
    File::options().write(true).open("/dev/full").ok()
}

#[test]
fn a_stderr_that_takes_nothing_changes_nothing() {
    let right = run(args!["run", demo(), "-p", "In the", "-n", "3", "--greedy"]).ok().out;
    for progress in ["bar", "plain", "none"] {
        let Some(full) = full() else { return };
        let flags = args!["run", demo(), "-p", "In the", "-n", "3", "--greedy", "--progress", progress];
        let output = narrows().args(flags).stderr(full).output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), right.as_bytes()));
    }
    let Some(full) = full() else { return };
    let status = narrows().args(["inspect", "nowhere"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(3));
    // A reader of stderr that has gone.
    let mut child = narrows();
    child.args(args!["run", demo(), "-p", "In the", "-n", "20", "--greedy"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
fn a_full_stdout_is_an_error_and_one_line() {
    let Some(full) = full() else { return };
    let output = narrows().args(args!["plan", demo(), "--json"]).stdout(full).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{err}");
    assert!(err.lines().filter(|line| line.starts_with("error:")).count() == 1, "{err}");
}

/// A trace that cannot be written is an error, after the result that took the time.
#[test]
fn a_trace_that_cannot_be_written_costs_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let (ids, out, text) = (dir.path().join("ids"), dir.path().join("logits"), dir.path().join("text"));
    crate::harness::save_ids(&ids, &[&[1, 5, 9]]);
    std::fs::write(&text, "And the king said unto him").unwrap();
    let trace = dir.path().join("nowhere/trace");
    let flags = ["--device", "cpu", "--speeds", "assumed", "--trace", trace.to_str().unwrap()];
    let ask = |args: &[std::ffi::OsString]| {
        let ran = crate::harness::Ran::of(&narrows().args(args).args(flags).output().unwrap());
        assert!(ran.code == Some(9) && ran.err.contains("nowhere/trace"), "{:?} {}", ran.code, ran.err);
        ran.out
    };
    assert!(ask(&args!["run", demo(), "-p", "In the", "-n", "3", "--greedy"]).len() > 3);
    assert!(ask(&args!["eval", demo(), "-f", &text]).starts_with("perplexity "));
    ask(&args!["logits", checkpoint("llama"), "--ids", &ids, "--out", &out]);
    assert!(std::fs::metadata(&out).unwrap().len() > 3 * 320 * 4);
}

#[test]
fn nothing_from_a_file_reaches_a_terminal_raw() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&checkpoint("llama"), dir.path());
    for key in ["model_type", "hidden_act", "torch_dtype"] {
        copy_dir(&checkpoint("llama"), dir.path());
        edit_config(dir.path(), key, "x\u{1b}]0;y\u{7}\u{9b}1m\nerror: z".into());
        let ran = run(args!["inspect", dir.path()]);
        assert!(!ran.err.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{:?}", ran.err);
        assert!(ran.err.lines().filter(|line| line.starts_with("error:")).count() <= 1, "{:?}", ran.err);
    }
    let ran = run(["inspect", "no\u{1b}[31m"]);
    ran.refused(3, "no\\u{1b}");
    let ran = run(["no\u{1b}[31m"]);
    assert!(ran.code == Some(2) && !ran.err.contains('\u{1b}'), "{:?}", ran.err);
}
