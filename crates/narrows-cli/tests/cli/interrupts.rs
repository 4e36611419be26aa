//! Signals while something is computed.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{args, demo, narrows};

/// A signal while a long prompt is computed ends the program between two steps, and is acknowledged.
#[test]
fn a_prompt_is_given_up() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut command = narrows();
        command.args(args!["run", demo(), "-p", "-", "--raw", "--greedy", "-n", "1", "--chunk", "1"]);
        command.args(["--ctx", "30000", "--speeds", "assumed"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all("and the king ".repeat(6_000).as_bytes()).unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut lines = String::new();
        // The plan is said before the first step.
        while !lines.contains("plan:") {
            assert_ne!(err.read_line(&mut lines).unwrap(), 0, "{lines}");
        }
        // The command listens from its first step on; before that a signal ends it at once, which is as good.
        std::thread::sleep(std::time::Duration::from_millis(500));
        kill_process(Pid::from_child(&child), signal).unwrap();
        while err.read_line(&mut lines).unwrap() > 0 {}
        assert_eq!(child.wait().unwrap().code(), Some(code), "{lines}");
        assert!(lines.contains("interrupted: stopping after this pass"), "{lines}");
    }
}
