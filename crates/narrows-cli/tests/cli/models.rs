//! What MODEL and PROMPT may be, and what else is answered with.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::{Ran, args, checkpoint, copy_dir, demo, narrows, run, save_ids};

fn first_token(ran: Ran) -> serde_json::Value {
    ran.ok().json()["tokens"][0][0].clone()
}

fn ask(model: &Path, flags: &[&str]) -> Ran {
    let all = args!["run", model, "-n", "1", "--greedy", "--raw", "--json", "--speeds", "assumed"];
    run(all.into_iter().chain(flags.iter().map(Into::into)))
}

#[test]
fn a_file_stands_for_its_directory() {
    let token = first_token(ask(&demo(), &["-p", "In the"]));
    assert_eq!(first_token(ask(&demo().join("model.safetensors"), &["-p", "In the"])), token);
    assert_eq!(first_token(ask(&demo().join("config.json"), &["-p", "In the"])), token);
}

#[test]
fn names_are_looked_up_in_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let repository = home.path().join("hub/models--some--demo");
    copy_dir(&demo(), &repository.join("snapshots/abc"));
    let asked = |name: &str| {
        let mut command = narrows();
        command.env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE").env("HF_HOME", home.path());
        command
            .args(["run", name, "In the", "-n", "1", "--greedy", "--raw", "--json", "--speeds", "assumed"]);
        Ran::of(&command.output().unwrap())
    };
    let token = first_token(ask(&demo(), &["-p", "In the"]));
    // The only snapshot, and the one that `main` names.
    assert_eq!(first_token(asked("some/demo")), token);
    fs::create_dir_all(repository.join("snapshots/other")).unwrap();
    asked("some/demo").refused(3, "some/demo");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "abc\n").unwrap();
    assert_eq!(first_token(asked("some/demo")), token);
    assert_eq!(first_token(asked("https://huggingface.co/some/demo/tree/main")), token);
    // A reference that leads out of the repository is none.
    fs::write(repository.join("refs/main"), "../../../..").unwrap();
    asked("some/demo").refused(3, "some/demo");
    let ran = asked("some/thing");
    ran.refused(3, "some/thing");
    assert!(ran.err.contains("hf download some/thing"), "{}", ran.err);
    assert_eq!(ran.json()["error"]["kind"], "not_found");
    // A directory of that name goes before the cache.
    asked(demo().to_str().unwrap()).ok();
}

#[test]
fn other_things_than_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str, files: &[(&str, &str)]| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            fs::write(path.join(file), text).unwrap();
        }
        path
    };
    let gguf = with("gguf", &[("x-Q4_K_M.gguf", "GGUF")]);
    ask(&gguf, &["-p", "a"]).refused(4, "GGUF");
    ask(&gguf.join("x-Q4_K_M.gguf"), &["-p", "a"]).refused(4, "GGUF");
    for pickled in ["pytorch_model.bin", "consolidated.00.pth"] {
        let path = with(pickled, &[(pickled, "PK"), ("config.json", "{}")]);
        let ran = ask(&path, &["-p", "a"]);
        ran.refused(4, "pickled");
        assert!(ran.err.contains("hint: python3"), "{}", ran.err);
        ask(&path.join(pickled), &["-p", "a"]).refused(4, "pickled");
    }
    let base = r#"{"base_model_name_or_path": "org/\u001b[31mbase"}"#;
    let adapter = with("adapter", &[("adapter_config.json", base), ("adapter_model.safetensors", "")]);
    let ran = ask(&adapter, &["-p", "a"]);
    ran.refused(4, "LoRA adapter");
    assert!(ran.err.contains("of org/") && !ran.err.contains('\u{1b}'), "{}", ran.err);
    let stray = with("stray", &[("model.safetensors", ""), ("notes.txt", "")]);
    ask(&stray.join("model.safetensors"), &["-p", "a"]).refused(4, "config.json");
    ask(&stray.join("notes.txt"), &["-p", "a"]).refused(4, "a model is a directory");
    // The name of a shape that `plan` knows.
    let ran = run(["run", "llama-8b", "-p", "a"]);
    ran.refused(3, "llama-8b");
    assert!(ran.err.contains("narrows plan llama-8b"), "{}", ran.err);
}

/// MODEL is the same for every command that takes one.
#[test]
fn every_command_finds_models_alike() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    copy_dir(&demo(), &path("hub/models--some--demo/snapshots/abc"));
    fs::write(path("text"), "And the king said unto them, and they went out.".repeat(9)).unwrap();
    save_ids(&path("ids"), &[&[5, 6, 7]]);
    for (name, file, text) in [
        ("gguf", "x.gguf", "GGUF"),
        ("pickled", "pytorch_model.bin", "PK"),
        ("adapter", "adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#),
    ] {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join(file), text).unwrap();
    }
    fs::create_dir(path("pointer")).unwrap();
    fs::write(path("pointer/config.json"), fs::read(demo().join("config.json")).unwrap()).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 4976698672\n";
    fs::write(path("pointer/model.safetensors"), pointer).unwrap();

    // Each writes to a place of its own.
    let commands: [(&str, &[&str]); 9] = [
        ("run", &["-p", "a", "-n", "1", "--raw", "--speeds", "assumed"]),
        ("plan", &["--speeds", "assumed"]),
        ("pack", &["-o", "OUT"]),
        ("inspect", &[]),
        ("inspect", &["--error=MODEL"]),
        ("verify", &[]),
        ("logits", &["--ids", "IDS", "--out", "OUT", "--speeds", "assumed"]),
        ("eval", &["-f", "TEXT", "--window", "32", "--speeds", "assumed"]),
        ("bench", &["run", "MODEL", "-p", "0", "-n", "1", "-r", "1"]),
    ];
    let mut count = 0;
    for (name, flags) in commands {
        let mut ask = |model: &str| {
            count += 1;
            let word = |flag: &&str| {
                let flag = flag.replace("OUT", path(&format!("out-{count}")).to_str().unwrap());
                let flag = flag.replace("IDS", path("ids").to_str().unwrap());
                flag.replace("TEXT", path("text").to_str().unwrap()).replace("MODEL", model)
            };
            let mut command = narrows();
            command.env("HF_HUB_CACHE", path("hub")).env("NO_COLOR", "1").arg(name);
            if name != "bench" {
                command.arg(model);
            }
            Ran::of(&command.args(flags.iter().map(word)).output().unwrap())
        };
        let demo = demo();
        for good in [
            demo.join("model.safetensors").to_str().unwrap(),
            "some/demo",
            "https://huggingface.co/some/demo",
            path("hub/models--some--demo").to_str().unwrap(),
        ] {
            let ran = ask(good);
            assert_eq!(ran.code, Some(0), "{name} {good}: {}", ran.err);
        }
        let missing = ask("some/thing");
        missing.refused(3, "some/thing: no such model");
        assert!(missing.err.contains("hf download some/thing"), "{name}: {}", missing.err);
        for (bad, word) in [
            ("gguf", "GGUF file is not supported"),
            ("gguf/x.gguf", "GGUF file is not supported"),
            ("pickled", "pickled weights"),
            ("pickled/pytorch_model.bin", "pickled weights"),
            ("adapter", "a LoRA adapter (adapter_config.json) of org/base"),
            ("pointer", "git-lfs pointer"),
        ] {
            let ran = ask(path(bad).to_str().unwrap());
            ran.refused(4, word);
            assert!(ran.err.contains("hint: "), "{name} {bad}: {}", ran.err);
        }
        // A shape is a model to those that need no files of it.
        if !matches!(name, "plan" | "bench") {
            let shape = ask("llama-8b");
            shape.refused(3, "llama-8b");
            assert!(shape.err.contains("narrows plan llama-8b"), "{name}: {}", shape.err);
        }
    }
    let mut doctor = narrows();
    doctor.env("HF_HUB_CACHE", path("hub")).args(["doctor", "some/demo", "--json"]);
    let found = Ran::of(&doctor.output().unwrap()).ok().json();
    assert!(found["disk"]["path"].as_str().unwrap().ends_with("snapshots/abc"), "{found}");
}

/// What is left of a source that is consumed is no model, and the pack of it goes on all the same.
#[test]
fn a_consumed_source_is_still_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    copy_dir(&demo(), &source);
    fs::write(source.join("pytorch_model.bin"), "PK").unwrap();
    let named = source.join("model.safetensors");
    run(args!["pack", &named, "-o", &out, "--consume-source"]).ok();
    assert!(!named.exists());
    for model in [&source, &named] {
        let again = run(args!["pack", model, "-o", &out, "--consume-source"]);
        assert!(again.ok().out.contains("already packed"));
    }
    run(args!["pack", &source, "-o", dir.path().join("other")]).refused(4, "pickled");
}

#[test]
fn a_tokenizer_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&checkpoint("llama"), dir.path());
    let ran = ask(dir.path(), &["-p", "a"]);
    ran.refused(4, "tokenizer.json: not found, and no tokenizer.model");
    assert!(ran.err.contains("hint: give token ids"), "{}", ran.err);
    fs::write(dir.path().join("tekken.json"), "{}").unwrap();
    let ran = ask(dir.path(), &["-p", "a"]);
    ran.refused(4, "only a tekken.json");
    assert!(ran.err.contains("hint: the model as it is published for transformers"), "{}", ran.err);
    fs::write(dir.path().join("tokenizer.model"), "").unwrap();
    ask(dir.path(), &["-p", "a"])
        .refused(4, "tokenizer.model: not a SentencePiece model: there is no unknown piece");
    fs::write(dir.path().join("tokenizer.model"), "IQ== 0\nIg== x\n").unwrap();
    ask(dir.path(), &["-p", "a"]).refused(4, "tokenizer.model: not a tiktoken table: entry 2");
}

#[test]
fn prompts_as_other_programs_take_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt");
    fs::write(&file, "In the\r\n").unwrap();
    let token = first_token(ask(&demo(), &["-p", "In the"]));
    assert_eq!(first_token(ask(&demo(), &["In the"])), token);
    assert_eq!(first_token(ask(&demo(), &["-p", &format!("@{}", file.display())])), token);
    ask(&demo(), &["-p", "@no-such-file"]).refused(2, "no-such-file");
    assert_ne!(first_token(ask(&demo(), &["-p", "@@In the"])), token);
    ask(&demo(), &["In the", "-p", "In the"]).refused(2, "cannot be used");
    ask(&demo(), &["-p", "a", "--temperature", "-1"]).refused(2, "");
}

#[test]
fn sizes_and_numbers() {
    let sized = |size: &str| run(args!["plan", demo(), "--speeds", "assumed", "--ram", size]);
    assert_eq!(sized("64m").ok().out, sized("64M").ok().out);
    sized("4096").refused(2, "4096M");
    sized("x").refused(2, "not a size");
    run(args!["run", demo(), "-p", "a", "--threads", "100000"]).refused(2, "1024");
    for (flag, value) in [("--temperature", "-1"), ("--min-p", "-1"), ("--repetition-penalty", "-2")] {
        run(args!["run", demo(), "-p", "a", flag, value]).refused(2, "must be");
    }
    let tuned =
        run(args!["plan", demo(), "--ram", "8M", "--slots", "30", "--tile", "1M", "--speeds", "assumed"]);
    tuned.refused(5, "RAM");
    assert!(tuned.err.contains("--slots and --tile"), "{}", tuned.err);
}

#[test]
fn commands_that_other_programs_have() {
    for (name, instead) in [
        ("pull", "hf download"),
        ("chat", "narrows run"),
        ("list", "directory"),
        ("serve", "--json"),
        ("version", "--version"),
    ] {
        let ran = run([name]);
        ran.refused(2, name);
        assert!(ran.err.contains(instead), "{name}: {}", ran.err);
    }
    for (line, instead) in [
        ("verify --quick DEMO", "reads every byte"),
        ("verify DEMO --quick", "narrows inspect"),
        ("run --pull org/name", "hf download"),
        ("run -m DEMO", "first argument"),
        ("run DEMO --n-gpu-layers 9", "--vram"),
        ("run DEMO --ctx-size 9", "--ctx N"),
    ] {
        let ran = run(line.split(' ').map(|word| word.replace("DEMO", demo().to_str().unwrap())));
        ran.refused(2, "unexpected argument");
        let hint = ran.err.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
        assert!(hint.contains(instead) && !ran.err.contains("similar argument"), "{line}: {}", ran.err);
    }
    // What is a slip keeps the tip.
    assert!(run(["verify", "--quie"]).err.contains("'--quiet'"));
    let version = run(["--version"]).ok().out;
    assert!(version.starts_with("narrows 0.") && version.contains("kernels:"), "{version}");
    assert!(version.contains("portable"), "{version}");
}

#[test]
fn errors_are_documents_too() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids");
    save_ids(&ids, &[&[5; 40]]);
    let small = ask(&demo(), &["-p", "a", "--ram", "1M"]);
    small.refused(5, "RAM");
    let error = &small.json()["error"];
    assert_eq!((&error["code"], &error["kind"]), (&json!(5), &json!("does_not_fit")));
    assert!(error["minimum_bytes"].as_u64().unwrap() > 1 << 20 && error["hint"].is_string(), "{error}");
    for (ran, kind) in [
        (run(args!["run", "nowhere", "-p", "x", "--json"]), "not_found"),
        (run(args!["inspect", dir.path(), "--json"]), "not_found"),
        (run(args!["run", checkpoint("llama"), "--ids", &ids, "--ctx", "9", "--json"]), "prompt_too_long"),
        (run(args!["run", demo(), "--json", "--no-such-flag"]), "usage"),
        (run(args!["eval", demo(), "-f", "nowhere", "--json"]), "usage"),
        (run(args!["bench", "report", "nowhere.json", "-o", dir.path().join("x.svg"), "--json"]), "usage"),
        (run(args!["bench", "io", "nowhere", "--json"]), "usage"),
    ] {
        let error = ran.json()["error"].clone();
        assert_eq!((error["kind"].as_str(), error["code"].as_i64()), (Some(kind), ran.code.map(i64::from)));
    }
}

/// What clap says over several lines is one sentence in JSON.
#[test]
fn missing_arguments_are_named_in_the_document() {
    for (line, message) in [
        ("run --json", "the following required arguments were not provided: <MODEL>"),
        ("logits m --json", "the following required arguments were not provided: --ids <FILE>, --out <FILE>"),
        ("run m --json --greedy --seed 1", "the argument '--greedy' cannot be used with '--seed <N>'"),
        (
            "run m --json --greedy --seed 1 --top-k 2",
            "the argument '--greedy' cannot be used with: --seed <N>, --top-k <K>",
        ),
    ] {
        let ran = run(line.split(' '));
        assert_eq!(ran.json()["error"]["message"], message, "{}", ran.err);
    }
}

/// Where a prompt is too long both numbers are told, and a context in which it has room.
#[test]
fn a_prompt_that_is_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids");
    save_ids(&ids, &[&[5; 40]]);
    let ask =
        |ctx: &str| run(args!["run", demo(), "--ids", &ids, "--ctx", ctx, "-n", "1", "--speeds", "assumed"]);
    let ran = ask("9");
    ran.refused(7, "40");
    assert!(ran.err.lines().any(|line| line.starts_with("error: ") && line.contains('9')), "{}", ran.err);
    let room = ran.err.split("--ctx ").nth(1).unwrap().split(' ').next().unwrap();
    ask(room).ok();
}

#[test]
fn what_took_effect_is_in_the_document() {
    let json = ask(&demo(), &["-p", "a", "--ram", "32M", "--slots", "3", "--chunk", "7"]).ok().json();
    let settings = &json["settings"];
    assert_eq!(settings["ram_bytes"], 32 << 20);
    assert!(
        (1..=7).contains(&settings["chunk"].as_u64().unwrap()) && settings["device"] == "cpu",
        "{settings}"
    );
    assert_eq!(settings["kv_dtype"], "f32");
    assert!(json["sampling"]["seed"].is_null(), "nothing was drawn");
    let drawn = run(args!["run", demo(), "-p", "a", "-n", "1", "--temperature", "1", "--json"]).ok().json();
    assert!(drawn["sampling"]["seed"].as_u64().unwrap() < 1 << 32);
    let plan = run(args!["plan", demo(), "--json", "--speeds", "assumed"]).ok();
    assert!(plan.json()["tile_bytes"].is_null() && !plan.out.contains("18446744073709551615"));
}

#[test]
fn generation_config_is_done_or_named() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&demo(), dir.path());
    let file = dir.path().join("generation_config.json");
    fs::write(&file, r#"{"suppress_tokens": [5], "no_repeat_ngram_size": 2}"#).unwrap();
    let ran = ask(dir.path(), &["-p", "In"]).ok();
    assert!(ran.err.contains("suppress_tokens, no_repeat_ngram_size: not done"), "{}", ran.err);
    assert!(ran.json()["notes"][0].as_str().unwrap().contains("suppress_tokens"));
    fs::write(&file, r#"{"stop_strings": ["e"], "max_length": 9}"#).unwrap();
    let text =
        run(args!["run", dir.path(), "-p", "And the king said unto", "--greedy", "--json"]).ok().json();
    assert!(!text["text"].as_str().unwrap().contains('e'), "{text}");
    fs::write(&file, r#"{"max_length": 9}"#).unwrap();
    let text =
        run(args!["run", dir.path(), "-p", "And the king said unto", "--greedy", "--json"]).ok().json();
    let total =
        text["stats"]["prompt_tokens"].as_u64().unwrap() + text["stats"]["new_tokens"].as_u64().unwrap();
    assert_eq!(total, 9);
}

#[test]
fn a_table_is_a_tokenizer_and_belongs_to_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (model, pack) = (dir.path().join("model"), dir.path().join("pack"));
    copy_dir(&demo(), &model);
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let _ = fs::remove_file(model.join(name));
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tables");
    fs::copy(data.join("bpe-llama.model"), model.join("tokenizer.model")).unwrap();
    let ask = |model: &Path| {
        let all = args![
            "run",
            model,
            "-p",
            "the end of the",
            "-n",
            "8",
            "--greedy",
            "--json",
            "--speeds",
            "assumed"
        ];
        run(all).ok().json()
    };
    let answer = ask(&model);
    assert_eq!(answer["tokens"][0].as_array().unwrap().len(), 8);
    assert!(!answer["text"].as_str().unwrap_or_default().is_empty(), "{answer}");
    run(args!["pack", &model, "-o", &pack]).ok();
    assert_eq!(ask(&pack)["tokens"], answer["tokens"]);
    // What lies beside a pack is none of it, and a damaged table is named.
    fs::write(model.join("tokenizer.model"), b"\x0a\x7f").unwrap();
    let ran = run(args!["run", &model, "-p", "a", "-n", "1", "--speeds", "assumed"]);
    ran.refused(4, "tokenizer.model: not a SentencePiece model: a field goes beyond the end");
    for table in ["qwen.tiktoken", "tiktoken.model"] {
        fs::remove_file(model.join("tokenizer.model")).ok();
        fs::copy(data.join("ranks.tiktoken"), model.join(table)).unwrap();
        let ran = run(args!["run", &model, "-p", "a", "-n", "1", "--speeds", "assumed"]);
        ran.refused(4, "a tiktoken table of another family");
        assert!(ran.err.contains(table), "{}", ran.err);
        fs::remove_file(model.join(table)).unwrap();
    }
}
