//! What the demo model says, and where it is printed.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::harness::{args, checkpoint, demo, narrows, run, save_ids};

/// What transformers answers, from models/demo/README.md.
const KING: &str = " him, I have heard a voice of the LORD, and I have heard him: and, behold, the king of Israel \
                    hath said, The LORD hath given me a land, and hath given me a land. And I said, I will not \
                    go up into the land of Egypt, and I will bring them again";

#[test]
fn the_first_command() {
    let ran = run(args!["run", demo(), "-p", "And the king said unto", "--greedy"]).ok();
    assert_eq!(ran.out, format!("{KING}\n"));
    assert!(ran.err.contains("64 tokens") && ran.err.contains("tok/s"), "{}", ran.err);
    let quiet = run(args!["run", demo(), "-p", "And the king said unto", "--quiet"]).ok();
    assert_eq!((quiet.out, quiet.err), (ran.out, String::new()));
}

#[test]
fn perplexity_of_the_held_out_text() {
    // A sixth of the text keeps the test short; the whole is the acceptance of a release.
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let cut = text.len() / 6; // ASCII
    let file = dir.path().join("text");
    std::fs::write(&file, &text[..cut]).unwrap();
    let json =
        run(args!["eval", demo(), "-f", &file, "--window", "256", "--stride", "128", "--json"]).ok().json();
    let (perplexity, tokens) = (json["perplexity"].as_f64().unwrap(), json["tokens"].as_u64().unwrap());
    // transformers 5.23.0, float32, on the same characters: tools/perplexity.py.
    assert!((perplexity / HELDOUT_SIXTH.0 - 1.0).abs() < 1e-4, "{perplexity}");
    assert_eq!(tokens, HELDOUT_SIXTH.1);
}
const HELDOUT_SIXTH: (f64, u64) = (18.154_204, 4447);

#[test]
fn json_is_one_document() {
    let draw = || {
        let flags = args![
            "run",
            demo(),
            "-p",
            "In the beginning",
            "-n",
            "8",
            "--top-p",
            "0.9",
            "--seed",
            "3",
            "--json"
        ];
        run(flags).ok().json()
    };
    let json = draw();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["tokens"][0].as_array().unwrap().len(), 8);
    assert_eq!(json["finish"][0], "length");
    assert_eq!(json["sampling"]["temperature"], 1.0);
    assert!(json["stats"]["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(json["tokens"], draw()["tokens"], "a seed is a text");
}

#[test]
fn token_ids_need_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.safetensors");
    save_ids(&ids, &[&[5, 6, 7], &[8, 9, 10]]);
    let model = checkpoint("llama");
    let ran = run(args!["run", &model, "--ids", &ids, "-n", "4", "--greedy", "--ignore-eos", "--json"]).ok();
    assert_eq!(ran.json()["tokens"].as_array().unwrap().len(), 2);
    let plain = run(args!["run", &model, "--ids", &ids, "-n", "4", "--ignore-eos"]).ok().out;
    assert_eq!(plain.lines().count(), 2);
}

#[test]
fn experts_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.safetensors");
    save_ids(&ids, &[&[5, 6, 7]]);
    let model = checkpoint("mixtral");
    let ran = run(args!["run", &model, "--ids", &ids, "-n", "5", "--greedy", "--ignore-eos", "--json"]).ok();
    assert!(ran.err.contains("of 12 experts") && ran.err.contains("needed in memory"), "{}", ran.err);
    let experts = &ran.json()["stats"]["experts"];
    let number = |key: &str| experts[key].as_u64().unwrap();
    let expert = 3 * 96 * 64 * 2;
    // Four single tokens, each to 2 experts of 3 layers; the prompt goes to at most all 12.
    let (hits, misses) = (number("hits"), number("misses"));
    assert!((24..=24 + 12).contains(&(hits + misses)), "{experts}");
    assert!(misses <= 12 && number("bytes") == misses * expert, "{experts}");
    assert_eq!(number("routed_bytes"), (hits + misses) * expert);
    assert_eq!(number("dense_bytes"), 5 * 12 * expert);
    let plan = run(args!["plan", &model, "--json"]).ok().json();
    assert_eq!(
        (plan["experts"]["count"].as_u64(), plan["experts"]["staying"].as_u64()),
        (Some(12), Some(12))
    );
    let dense = run(args!["run", demo(), "-p", "In", "-n", "1", "--json"]).ok().json();
    assert!(dense["stats"].get("experts").is_none());
}

#[test]
fn stop_strings_and_stdin() {
    let mut child = narrows()
        .args([
            "run".as_ref(),
            demo().as_os_str(),
            "-p".as_ref(),
            "-".as_ref(),
            "--stop".as_ref(),
            "LORD".as_ref(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"And the king said unto\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), " him, I have heard a voice of the \n");
}

#[test]
fn a_closed_stdout_ends_quietly() {
    let mut child = narrows()
        .args([
            "run".as_ref(),
            demo().as_os_str(),
            "-p".as_ref(),
            "In".as_ref(),
            "-n".as_ref(),
            "400".as_ref(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !err.contains("error") && !err.contains("panicked"), "{err}");
}

#[test]
fn inspect() {
    let table = run(args!["inspect", demo(), "--tensors"]).ok().out;
    assert!(
        table.contains("5.18 million") && table.contains("model.layers.5.mlp.down_proj.weight"),
        "{table}"
    );
    let json = run(args!["inspect", demo(), "--json"]).ok().json();
    assert_eq!(json["parameters"], 5_180_672);
    assert_eq!(json["bytes"], 10_361_344);
}
