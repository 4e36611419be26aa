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

/// Asks for logits of three tokens.
fn logits(out: &Path, more: &[&str]) -> std::process::Command {
    let ids = out.parent().unwrap().join("ids.safetensors");
    save_ids(&ids, &[&[1, 5, 9]]);
    let mut command = narrows();
    command.args(args!["logits", checkpoint("llama"), "--ids", &ids, "--out", out]);
    command.args(["--device", "cpu", "--speeds", "assumed", "-q"]).args(more);
    command
}

fn kind(path: &Path) -> std::fs::FileType {
    path.symlink_metadata().unwrap().file_type()
}

#[test]
fn an_output_replaces_no_pipe_device_or_link() {
    use std::os::unix::fs::FileTypeExt;

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    Ran::of(&logits(&path("plain"), &[]).output().unwrap()).ok();
    let want = fs::read(path("plain")).unwrap();

    mkfifo(&path("pipe"));
    let reader = std::thread::spawn({
        let pipe = path("pipe");
        move || fs::read(pipe).unwrap()
    });
    Ran::of(&logits(&path("pipe"), &[]).output().unwrap()).ok();
    assert!(reader.join().unwrap() == want && kind(&path("pipe")).is_fifo());

    symlink("/dev/null", path("null")).unwrap();
    Ran::of(&logits(&path("null"), &[]).output().unwrap()).ok();
    assert!(kind(&path("null")).is_symlink() && kind(Path::new("/dev/null")).is_char_device());

    fs::write(path("old"), "old").unwrap();
    fs::create_dir(path("sub")).unwrap();
    for (link, target, file) in
        [("to-old", "old", "old"), ("to-new", "sub/new", "sub/new"), ("twice", "to-old", "old")]
    {
        symlink(target, path(link)).unwrap();
        Ran::of(&logits(&path(link), &[]).output().unwrap()).ok();
        assert!(kind(&path(link)).is_symlink(), "{link}");
        assert!(fs::read(path(file)).unwrap() == want, "{link}");
    }
    Ran::of(&logits(&path("sub"), &[]).output().unwrap()).refused(9, "sub");
    symlink("round", path("round")).unwrap();
    Ran::of(&logits(&path("round"), &[]).output().unwrap()).refused(9, "round");

    // A trace and a report go the same way.
    mkfifo(&path("trace"));
    let reader = std::thread::spawn({
        let pipe = path("trace");
        move || fs::read_to_string(pipe).unwrap()
    });
    Ran::of(&logits(&path("plain"), &["--trace", path("trace").to_str().unwrap()]).output().unwrap()).ok();
    assert!(reader.join().unwrap().contains("traceEvents") || kind(&path("trace")).is_fifo());
}

/// An output in the place of what is read, by whatever name, is refused before anything is computed.
#[test]
fn an_output_replaces_nothing_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (model, ids, link) = (dir.path().join("model"), dir.path().join("ids"), dir.path().join("link"));
    copy_dir(&checkpoint("llama"), &model);
    save_ids(&ids, &[&[1, 5, 9]]);
    symlink("model/model.safetensors", &link).unwrap();
    let before = crate::harness::tree(&model);
    for out in
        [model.join("model.safetensors"), model.join("../model/config.json"), link.clone(), ids.clone()]
    {
        run(args!["logits", &model, "--ids", &ids, "--out", &out]).refused(2, "would be replaced");
    }
    for trace in [model.join("config.json"), link] {
        run(args!["run", &model, "--ids", &ids, "--trace", &trace, "--device", "cpu"])
            .refused(2, "would be replaced");
    }
    assert!(crate::harness::tree(&model) == before && fs::metadata(&ids).unwrap().len() < 200);
    let picture = dir.path().join("results.svg");
    fs::write(&picture, "{}").unwrap();
    run(args!["bench", "report", &picture, "-o", &picture]).refused(2, "would be replaced");
    // Beside them there is room.
    run(args!["logits", &model, "--ids", &ids, "--out", model.join("logits")]).ok();
}

#[test]
fn outputs_have_the_permissions_of_new_files() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (umask, expected) in [("077", 0o600), ("022", 0o644), ("002", 0o664)] {
        let out = dir.path().join(umask);
        let plain = logits(&out, &[]);
        let synth = dir.path().join(format!("synth-{umask}"));
        for arguments in [
            plain.get_args().map(Into::into).collect::<Vec<OsString>>(),
            args!["synth", "llama-1.1b", "--layers", "1", "-o", &synth, "-q"].to_vec(),
        ] {
            let mut shell = std::process::Command::new("sh");
            shell.arg("-c").arg(format!("umask {umask}; exec \"$0\" \"$@\"")).arg(plain.get_program());
            assert!(shell.args(arguments).output().unwrap().status.success());
        }
        for path in [out, synth.join("model.safetensors"), synth.join("config.json")] {
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        fs::remove_dir_all(synth).unwrap();
    }
}

/// Ended by a signal at some moment, a command leaves nothing half done, and can be run again.
#[test]
fn a_signal_leaves_no_temporary_files() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids");
    save_ids(&ids, &[&[5; 500]]);
    for (i, (signal, twice)) in
        [("INT", false), ("TERM", false), ("INT", true), ("TERM", true)].iter().cycle().take(12).enumerate()
    {
        let (out, synth) = (dir.path().join(format!("out-{i}")), dir.path().join(format!("synth-{i}")));
        fs::create_dir(&out).unwrap();
        for arguments in [
            args![
                "logits",
                demo(),
                "--ids",
                &ids,
                "--out",
                out.join("l"),
                "--device",
                "cpu",
                "-q",
                "--ram",
                "60M"
            ]
            .to_vec(),
            args!["synth", "llama-1.1b", "--layers", "2", "-o", &synth, "-q"].to_vec(),
            args!["pack", demo(), "-o", out.join("pack"), "--quant", "nf4", "-q"].to_vec(),
        ] {
            let mut child = narrows()
                .args(arguments)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20 + 15 * i as u64));
            for _ in 0..=u8::from(*twice) {
                let kill = format!("kill -{signal} {} 2>/dev/null", child.id());
                let _ = std::process::Command::new("sh").args(["-c", &kill]).status().unwrap();
            }
            child.wait().unwrap();
        }
        let mut left: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "l" && name != "pack")
            .collect();
        if synth.exists() && !synth.join("config.json").exists() {
            left.extend(fs::read_dir(&synth).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()));
        }
        if out.join("pack").exists() {
            let names = fs::read_dir(out.join("pack")).unwrap();
            left.extend(
                names
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .filter(|name| name.ends_with(".partial") || name == "narrows.lock"),
            );
        }
        assert!(left.is_empty(), "SIG{signal}, twice {twice}: {left:?}");
        let _ = fs::remove_dir_all(&synth);
    }
}

#[test]
fn logits_as_json_say_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("o");
    let ran = Ran::of(&logits(&out, &["--json"]).output().unwrap()).ok();
    let json = ran.json();
    assert_eq!(json["path"], out.to_str().unwrap());
    assert_eq!((&json["shape"], &json["tokens"]), (&serde_json::json!([1, 3, 320]), &serde_json::json!(3)));
    assert!(json["stats"]["bytes_read"].as_u64().unwrap() > 0);
}

#[test]
fn a_pack_onto_its_own_source_is_an_impossible_request() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&demo(), &model);
    run(args!["pack", &model, "-o", &model]).refused(2, "overlaps");
}

/// A system that gives too few open files is named with the way out.
#[test]
fn too_few_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("pack");
    run(args!["pack", demo(), "-o", &pack]).ok();
    for io in ["direct", "buffered", "mmap"] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 8; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_narrows")]);
        command.args(args!["run", &pack, "-p", "a", "-n", "1", "--speeds", "assumed", "--device", "cpu"]);
        let ran = Ran::of(&command.args(["--io", io, "--ram", "8M"]).output().unwrap());
        ran.refused(9, "");
        assert!(ran.err.contains("hint: ") && ran.err.contains("ulimit -n"), "{io}: {}", ran.err);
    }
}

/// Figures that are no figures are none, whatever lies in their place.
#[test]
fn figures_that_are_no_file_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("narrows/figures.json");
    fs::create_dir(path.parent().unwrap()).unwrap();
    for make in [
        (|path: &Path| mkfifo(path)) as fn(&Path),
        |path| symlink("/dev/zero", path).unwrap(),
        |path| symlink("figures.json", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| fs::write(path, "[".repeat(100_000)).unwrap(),
        |path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
    ] {
        make(&path);
        let mut command = narrows();
        command.env("XDG_CACHE_HOME", dir.path()).args(["plan", "llama-1.1b", "--speeds", "remembered"]);
        Ran::of(&command.output().unwrap()).ok();
        fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
    }
}

/// Every file below a directory.
fn files_below(dir: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, into) } else { into.push(path.to_str().unwrap().to_owned()) }
    }
}

/// docs/PROMISES.md: a command writes where it was told to and nowhere else, but for the figures.
#[test]
fn nothing_is_written_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (work, home, cache, temporary, told) =
        (place("work"), place("home"), place("cache"), place("temporary"), place("told"));
    let model = place("model");
    copy_dir(&demo(), &model);
    save_ids(&model.join("ids"), &[&[1, 5, 9]]);
    fs::write(model.join("text"), "And the king said unto him").unwrap();
    let files = || {
        let mut files = Vec::new();
        files_below(dir.path(), &mut files);
        files.sort();
        files
    };
    let compute = ["--device", "cpu", "--speeds", "measured"];
    let quick = ["--runtime", "1ms", "--loops", "1"];
    let commands: Vec<(Vec<OsString>, &[&str], &[&str])> = vec![
        (args!["run", &model, "-p", "a", "-n", "2"].into(), &compute, &[]),
        (args!["run", &model, "-p", "a", "-n", "2", "--ram", "9M"].into(), &compute, &[]),
        (args!["run", &model, "-p", "a", "--trace", told.join("trace")].into(), &compute, &["told/trace"]),
        (args!["eval", &model, "-f", model.join("text")].into(), &compute, &[]),
        (
            args!["logits", &model, "--ids", model.join("ids"), "--out", told.join("logits")].into(),
            &compute,
            &["told/logits"],
        ),
        (args!["plan", &model].into(), &[], &[]),
        (args!["plan", "llama-8b"].into(), &[], &[]),
        (args!["inspect", &model, "--error"].into(), &[], &[]),
        (args!["verify", &model].into(), &[], &[]),
        (args!["doctor"].into(), &[], &[]),
        (args!["doctor", &model].into(), &[], &["cache/narrows/figures.json"]),
        (args!["completions", "bash"].into(), &[], &[]),
        (args!["schema", "run"].into(), &[], &[]),
        (args!["bench", "host", "--test", "read", "--size", "16M"].into(), &quick, &[]),
        (args!["bench", "io", &model, "--size", "32M", "--ioengine", "psync"].into(), &quick, &[]),
        (args!["bench", "run", &model, "-p", "4", "-n", "2", "-r", "1", "--json"].into(), &[], &[]),
        (args!["run", "nowhere", "-p", "a"].into(), &[], &[]),
        (args!["no-such-command"].into(), &[], &[]),
    ];
    let mut before = files();
    for (arguments, more, written) in commands {
        let mut command = narrows();
        command.current_dir(&work).env("HOME", &home).env("XDG_CACHE_HOME", &cache).env("TMPDIR", &temporary);
        let ran = Ran::of(&command.args(&arguments).args(more).output().unwrap());
        assert!(matches!(ran.code, Some(0 | 2 | 3)), "{arguments:?}: {}", ran.err);
        let expected: Vec<_> =
            written.iter().map(|name| dir.path().join(name).to_str().unwrap().to_owned()).collect();
        let after = files();
        let new: Vec<_> = after.iter().filter(|name| !before.contains(name)).cloned().collect();
        assert_eq!(new, expected, "{arguments:?}: {}", ran.err);
        before = after;
    }
    // A pack and the manual write their own directory only, and leave the model as it is.
    for (arguments, below) in [
        (args!["pack", &model, "-o", told.join("pack")].to_vec(), "told/pack/"),
        (args!["man", "-o", told.join("man")].to_vec(), "told/man/"),
    ] {
        let mut command = narrows();
        command.current_dir(&work).env("HOME", &home).env("XDG_CACHE_HOME", &cache).env("TMPDIR", &temporary);
        Ran::of(&command.args(&arguments).output().unwrap()).ok();
        let below = dir.path().join(below).to_str().unwrap().to_owned();
        let after = files();
        assert!(after.iter().all(|name| before.contains(name) || name.starts_with(&below)), "{after:?}");
        assert!(after.iter().all(|name| !name.ends_with(".partial") && !name.ends_with(".tmp")), "{after:?}");
        before = after;
    }
}

/// Figures that are kept behind a link stay there.
#[test]
fn figures_are_written_through_links() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, kept) = (dir.path().join("narrows"), dir.path().join("kept.json"));
    fs::create_dir(&cache).unwrap();
    symlink(&kept, cache.join("figures.json")).unwrap();
    for _ in 0..2 {
        let mut command = narrows();
        command.env("XDG_CACHE_HOME", dir.path());
        command.args(["bench", "host", "--test", "read", "--pages", "huge", "--threads", "1"]);
        let ran =
            Ran::of(&command.args(["--size", "16M", "--runtime", "1ms", "--loops", "1"]).output().unwrap());
        assert!(!ran.ok().err.contains("not kept"));
        assert!(fs::symlink_metadata(cache.join("figures.json")).unwrap().is_symlink());
        assert!(fs::read_to_string(&kept).unwrap().contains("narrows bench host"));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "nothing else is left");
    }
    run(["bench", "host", "--threads", "100000"]).refused(2, "1024");
}
