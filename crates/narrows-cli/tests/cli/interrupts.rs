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

/// A stderr that is read no longer takes neither lines nor the acknowledgement of a signal; signals are heard all the same.
#[cfg(target_os = "linux")]
#[test]
fn a_stuck_stderr_keeps_no_signal_from_being_heard() {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = narrows();
    command.args(args!["run", demo(), "-p", "-", "--raw", "--greedy", "-n", "1", "--chunk", "1"]);
    command.args(["--ctx", "30000", "--speeds", "assumed"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(writer.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all("and the king ".repeat(6_000).as_bytes()).unwrap();
    let (mut err, mut lines) = (BufReader::new(&reader), String::new());
    while !lines.contains("plan:") {
        assert_ne!(err.read_line(&mut lines).unwrap(), 0, "{lines}");
    }
    // Opened anew, since a flag of an open file holds for all who have it.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let mut filler = std::fs::File::options().write(true).custom_flags(nonblocking).open(path).unwrap();
    for len in [4096, 1] {
        while filler.write(&vec![b' '; len]).is_ok() {}
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1000));
    // The work has ended by then, and its last line is stuck.
    let _ = kill_process(pid, Signal::TERM);
    let mut code = None;
    for _ in 0..1000 {
        code = child.try_wait().unwrap();
        if code.is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if code.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(code.and_then(|status| status.code()), Some(143));
}

/// Two signals, the second while the first is being obeyed: the pack ends wherever it is, leaves no file that is only
/// there for the time of packing, and goes on with another call to the same bytes.
#[cfg(target_os = "linux")]
#[test]
fn a_pack_is_given_up_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let names = |out: &std::path::Path| {
        let entries = std::fs::read_dir(out).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let unfinished = |name: &String| name.ends_with(".partial") || name == "narrows.lock";
    let pack = |out: &std::path::Path| {
        let mut command = narrows();
        command.args(args!["pack", demo(), "-o", out]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut ended = 0;
    for round in 0..20 {
        let out = dir.path().join(round.to_string());
        let mut child = pack(&out);
        let pid = Pid::from_child(&child);
        // At another place each time: when so many files are there, partial ones among them.
        while names(&out).len() <= round % 5 && child.try_wait().unwrap().is_none() {}
        // Stopped, it finds both signals when it goes on.
        for signal in [Signal::STOP, Signal::INT, Signal::TERM, Signal::CONT] {
            let _ = kill_process(pid, signal);
        }
        let code = child.wait().unwrap().code();
        assert!(matches!(code, Some(0 | 130 | 143)), "{code:?}");
        ended += usize::from(code != Some(0));
        let left: Vec<_> = names(&out).into_iter().filter(unfinished).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(pack(&out).wait().unwrap().code(), Some(0));
        crate::harness::run(args!["verify", &out, "-q"]).ok();
    }
    assert!(ended > 0);
}
