//! README: what it shows happens, and the flags and commands that it and other documents name are there.
//!
//! trycmd runs each block of console lines in README but those with `ignore` after the name of their language, which need
//! a download, a GPU or minutes. It runs a copy, in a folder of its own, in which `...` stands for what a command prints
//! besides the lines that are shown.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::harness::{root, run};

/// Takes `> FILE` from the arguments, which only a shell would, and cuts short what measures.
const NARROWS: &str = r#"#!/bin/sh
left=$#
out=
while [ "$left" -gt 0 ]; do
    arg=$1
    shift
    left=$((left - 1))
    if [ "$arg" = ">" ]; then
        out=$1
        shift
        left=$((left - 1))
    else
        set -- "$@" "$arg"
    fi
done
case "$1 $2" in
"bench io" | "bench host" | "bench kernels") set -- "$@" --size 16M --runtime 10ms --loops 1 ;;
"bench run") set -- "$@" -p 8 -n 4 -r 1 ;;
esac
[ -z "$out" ] || exec > "$out"
exec "$NARROWS_BIN" "$@"
"#;

const CARGO: &str = r#"#!/bin/sh
[ "$1 $2 $3" = "run --release --" ] || exit 99
shift 3
exec "$(dirname "$0")/narrows" "$@"
"#;

/// A copy in which commands may print more than is shown of them.
fn with_elisions(readme: &str) -> String {
    let (mut copy, mut in_block, mut in_command) = (String::new(), false, false);
    for line in readme.lines() {
        let (fence, command) = (line.starts_with("```"), in_block && line.starts_with("$ "));
        if in_command && (fence || command) {
            copy += "...\n";
            in_command = false;
        }
        in_block ^= fence;
        copy += line;
        copy.push('\n');
        if command {
            copy += "...\n";
            in_command = true;
        }
    }
    copy.replace("...\n...\n", "...\n")
}

/// An executable script.
fn script(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}

#[test]
fn what_the_readme_shows() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let readme = document("README.md");
    assert!(
        !readme.contains("\n    narrows ") && !readme.contains("\n    cargo "),
        "commands stand in fences"
    );
    fs::write(path("README.md"), with_elisions(&readme)).unwrap();
    // Where commands run.
    for folder in ["README.in/DIR", "README.in/MODELS", "home"] {
        fs::create_dir_all(path(folder)).unwrap();
    }
    symlink(root().join("models"), path("README.in/models")).unwrap();
    let home = path("home").to_str().unwrap().to_owned();
    trycmd::TestCases::new()
        .register_bin("narrows", script(&path("narrows"), NARROWS))
        .register_bin("cargo", script(&path("cargo"), CARGO))
        .env("NARROWS_BIN", env!("CARGO_BIN_EXE_narrows"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("HOME", &home)
        .env("XDG_CACHE_HOME", &home)
        .case(path("README.md"))
        .run();
}

#[test]
fn elisions() {
    let shown = "a\n```console\n$ x\n$ y\nout\n...\n```\nb\n```console,ignore\n$ z\n```\n";
    let copy = "a\n```console\n$ x\n...\n$ y\n...\nout\n...\n```\nb\n```console,ignore\n$ z\n...\n```\n";
    assert_eq!(with_elisions(shown), copy);
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The names of long flags in a text.
fn flags(text: &str) -> BTreeSet<String> {
    let name = |word: &str| {
        let end =
            word.find(|c: char| !c.is_ascii_lowercase() && !matches!(c, '-' | '_')).unwrap_or(word.len());
        word[..end].to_owned()
    };
    let word = |at: usize| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-' && c != '\\')
    };
    let all = text.match_indices("--").filter(|(at, _)| word(*at)).map(|(at, _)| name(&text[at + 2..]));
    all.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

fn help(command: &[&str]) -> String {
    run(command.iter().copied().chain(["--help"])).ok().out
}

#[test]
fn flags_and_commands_of_the_documents() {
    let readme = document("README.md");
    let mut known = BTreeSet::new();
    for name in commands(&help(&[])) {
        assert!(readme.contains(&format!("`narrows {name}")), "README has no {name}");
        known.extend(flags(&help(&[&name])));
    }
    for name in commands(&help(&["bench"])) {
        let listed = [format!("bench {name}"), format!("|{name}")].iter().any(|text| readme.contains(text));
        assert!(listed, "README has no bench {name}");
        known.extend(flags(&help(&["bench", &name])));
    }
    // Of cargo, cp, fio and the tools and benches of this repository.
    let others = ["release", "bench", "reflink", "runs", "seconds"];
    for name in ["README.md", "docs/FORMAT.md", "docs/PROMISES.md", "docs/decisions/program.md"] {
        for flag in flags(&document(name)) {
            let there = known.contains(&flag) || others.contains(&flag.as_str());
            assert!(there, "{name} names --{flag}, which no command has");
        }
    }
    let named = flags(&readme);
    for command in ["run", "plan", "pack", "inspect", "logits", "synth"] {
        for flag in flags(&help(&[command])) {
            // These are named by their short forms.
            let short = ["help", "prompt", "max-new-tokens", "output", "seed"].contains(&flag.as_str());
            assert!(short || named.contains(&flag), "README has no --{flag} of {command}");
        }
    }
}
