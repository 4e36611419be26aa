//! The small files beside the weights: what they may be, what a pack has of them, and what becomes of paths.
#![cfg(unix)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::{Ran, args, checkpoint, copy_dir, demo, narrows, run, save_ids};

const SIDECARS: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

fn ask(model: &Path) -> Ran {
    run(args!["run", model, "-p", "x", "-n", "1", "--greedy", "--device", "cpu", "--speeds", "assumed", "-q"])
}

fn mkfifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in SIDECARS.iter().enumerate() {
        for (kind, make) in [
            ("fifo", (|path: &Path| mkfifo(path)) as fn(&Path)),
            ("device", |path| symlink("/dev/zero", path).unwrap()),
        ] {
            let model = dir.path().join(format!("{i}-{kind}"));
            copy_dir(&demo(), &model);
            let _ = fs::remove_file(model.join(name));
            make(&model.join(name));
            let ran = ask(&model);
            ran.refused(4, "is something special, not a file");
            assert!(ran.err.contains(name), "{}", ran.err);
        }
    }
    let ids = dir.path().join("ids");
    mkfifo(&ids);
    run(args!["run", demo(), "--ids", &ids, "-n", "1"]).refused(2, "is something special, not a file");
    for name in ["narrows.json", "model.safetensors.index.json"] {
        let model = dir.path().join(name);
        fs::create_dir(&model).unwrap();
        fs::copy(demo().join("config.json"), model.join("config.json")).unwrap();
        mkfifo(&model.join(name));
        run(args!["inspect", &model]).refused(4, "is something special, not a file");
    }
}

#[test]
fn a_git_lfs_pointer_is_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let model = dir.path().join(name);
        copy_dir(&demo(), &model);
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 4976698672\n";
        fs::write(model.join(name), pointer).unwrap();
        let ran = ask(&model);
        ran.refused(4, "git-lfs pointer");
        assert!(ran.err.contains("git lfs pull") && ran.err.contains(name), "{}", ran.err);
    }
}

#[test]
fn a_link_to_a_blob_that_is_not_there_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "tokenizer.json", "generation_config.json"] {
        let model = dir.path().join(name);
        copy_dir(&demo(), &model);
        fs::remove_file(model.join(name)).unwrap();
        symlink("../../blobs/none", model.join(name)).unwrap();
        ask(&model).refused(3, "the blob ../../blobs/none");
    }
}

/// What lies beside a pack and is not listed changes nothing; what is listed and has changed is an error.
#[test]
fn a_pack_obeys_the_files_that_it_lists() {
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("pack");
    run(args!["pack", demo(), "-o", &pack]).ok();
    let before = ask(&pack).ok().out;
    for (name, text) in [
        ("chat_template.jinja", "{{ 'other ' }}{{ messages[0].content }}"),
        ("added_tokens.json", "{"),
        ("special_tokens_map.json", "{"),
    ] {
        fs::write(pack.join(name), text).unwrap();
        assert_eq!(ask(&pack).ok().out, before);
        let ran = run(args!["verify", &pack]);
        ran.refused(4, "not listed in narrows.json");
        assert!(ran.err.contains(name), "{}", ran.err);
        fs::remove_file(pack.join(name)).unwrap();
    }
    fs::write(pack.join("README.md"), "mine").unwrap();
    let ran = run(args!["verify", &pack, "--json"]).ok();
    assert_eq!(ran.json()["unlisted"][0], "README.md");
    assert!(ran.err.contains("README.md"), "{}", ran.err);

    let config = fs::read_to_string(pack.join("config.json")).unwrap();
    let ids = dir.path().join("ids");
    save_ids(&ids, &[&[5, 6]]);
    for (text, code) in [(config.replace("10000", "10001"), 9), (format!("{config} "), 4)] {
        fs::write(pack.join("config.json"), text).unwrap();
        ask(&pack).refused(code, "config.json");
        run(args!["run", &pack, "--ids", &ids, "-n", "1"]).refused(code, "config.json");
    }
    fs::write(pack.join("config.json"), config).unwrap();
    fs::write(pack.join("tokenizer.json"), "{}").unwrap();
    run(args!["run", &pack, "--ids", &ids, "-n", "1"]).refused(4, "tokenizer.json");
}

#[test]
fn a_path_that_is_no_unicode_does_not_lose_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &[u8]| dir.path().join(OsString::from_vec(name.to_vec()));
    let pack = path(b"pack\xff");
    for args in [
        args!["pack", checkpoint("llama"), "-o", &pack, "--json"].to_vec(),
        args!["verify", &pack, "--json"].to_vec(),
        args!["inspect", &pack, "--json"].to_vec(),
        args!["synth", "llama-1.1b", "--layers", "1", "-o", path(b"synth\xff"), "--json"].to_vec(),
    ] {
        let ran = Ran::of(&narrows().args(args).output().unwrap()).ok();
        assert!(ran.json().is_object());
    }
}
