//! Help texts, as they are: a change of a word is seen in a review (`INSTA_UPDATE=always cargo test -p narrows-cli help`).

use std::fmt::Write as _;

use crate::harness::{args, demo, run};

const COMMANDS: [&[&str]; 20] = [
    &[],
    &["run"],
    &["plan"],
    &["pack"],
    &["inspect"],
    &["verify"],
    &["logits"],
    &["eval"],
    &["synth"],
    &["bench"],
    &["bench", "io"],
    &["bench", "host"],
    &["bench", "pcie"],
    &["bench", "kernels"],
    &["bench", "run"],
    &["bench", "report"],
    &["doctor"],
    &["completions"],
    &["man"],
    &["schema"],
];

#[test]
fn help_texts() {
    for command in COMMANDS {
        let text = run(command.iter().copied().chain(["--help"])).ok().out;
        insta::assert_snapshot!(format!("help {}", command.join(" ")).trim_end().replace(' ', "-"), text);
    }
}

/// What each bad line of a command gets: exit code, message, hint.
#[test]
fn answers_to_bad_lines() {
    let lines = [
        "run",
        "run nowhere -p a",
        "run org/name -p a",
        "run https://huggingface.co/org/name -p a",
        "run llama-8b -p a",
        "run DEMO/tokenizer.json.gguf -p a",
        "run DEMO -p @nowhere",
        "run DEMO -p a --temperature -1",
        "run DEMO -p a --top-p 2",
        "run DEMO -p a --promt b",
        "run DEMO -p a --ram 4096",
        "run DEMO -p a --ram lots",
        "run DEMO -p a --ram 1M --speeds assumed",
        "run DEMO -p a --ram 8M --slots 30 --speeds assumed",
        "run DEMO -p a --vram 4G --device cpu",
        "run DEMO -p a --threads 100000",
        "run DEMO -p a --ctx many",
        "run DEMO -p a --device rocm",
        "run DEMO --json",
        "run DEMO -p a --greedy --temperature 1",
        "logits DEMO --ids nowhere --out o",
        "eval DEMO -f nowhere",
        "plan llama-9b",
        "plan DEMO --trace t",
        "synth gpt-7 -o d",
        "inspect DEMO/nowhere",
        "verify nowhere",
        "pack nowhere -o d",
        "pul org/name",
        "pull org/name",
        "serve",
        "list",
        "chat",
        "bench report",
    ];
    let mut all = String::new();
    for line in lines {
        let words = line.split(' ').map(|word| word.replace("DEMO", demo().to_str().unwrap()));
        let ran = run(words);
        let err = ran.err.replace(demo().to_str().unwrap(), "DEMO");
        // What computes differs from machine to machine.
        let err: String = err
            .lines()
            .filter(|line| !line.starts_with("device: cpu"))
            .fold(String::new(), |all, line| all + line + "\n");
        let _ = writeln!(all, "$ narrows {line}\n[{}]\n{err}", ran.code.unwrap());
    }
    insta::assert_snapshot!("bad-lines", all);
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(["completions", shell]).ok().out;
        assert!(script.contains("narrows") && script.contains("kv-dtype"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    run(args!["man", "-o", dir.path().join("man1")]).ok();
    let page = std::fs::read_to_string(dir.path().join("man1/narrows-run.1")).unwrap();
    assert!(page.contains("max\\-new\\-tokens"), "{page}");
}

/// The schemas in docs/schema are the code's (`NARROWS_UPDATE=1` writes them again), and say what documents hold.
#[test]
fn schemas() {
    let documents =
        ["bench", "doctor", "error", "eval", "inspect", "logits", "pack", "plan", "run", "synth", "verify"];
    for name in documents {
        let schema = run(["schema", name]).ok().out;
        let path = crate::harness::root().join(format!("docs/schema/{name}.json"));
        if std::env::var_os("NARROWS_UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &schema).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), schema, "docs/schema/{name}.json");
    }
    let held = |name: &str, document: &serde_json::Value| {
        let schema: serde_json::Value = serde_json::from_str(&run(["schema", name]).ok().out).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let keys = document.as_object().unwrap();
        assert!(keys.keys().all(|key| properties.contains_key(key)), "{name}: {document}");
        for key in schema["required"].as_array().unwrap() {
            assert!(keys.contains_key(key.as_str().unwrap()), "{name} lacks {key}");
        }
    };
    let ask =
        |args: &[&str]| run(args.iter().map(|arg| arg.replace("DEMO", demo().to_str().unwrap()))).json();
    held("run", &ask(&["run", "DEMO", "-p", "a", "-n", "1", "--json"]));
    held("plan", &ask(&["plan", "DEMO", "--json", "--speeds", "assumed"]));
    held("inspect", &ask(&["inspect", "DEMO", "--json"]));
    held("verify", &ask(&["verify", "DEMO", "--json"]));
    held("doctor", &ask(&["doctor", "--json"]));
    held("bench", &ask(&["bench", "host", "--size", "16M", "--runtime", "1ms", "--loops", "1", "--json"]));
    held("error", &ask(&["run", "nowhere", "-p", "a", "--json"]));
}
