//! NaN and infinity in what is computed: exit code 8, in every command that computes.

use std::fs;

use crate::harness::{args, checkpoint, copy_dir, demo, edit_header, run, save_ids};

#[test]
fn logits_that_are_no_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&demo(), &model);
    // Weights of another place are numbers no more: those of the last norm, all NaN.
    let mut at = (0, 0);
    edit_header(&model, |header| {
        let offsets = &header["model.norm.weight"]["data_offsets"];
        at = (offsets[0].as_u64().unwrap() as usize, offsets[1].as_u64().unwrap() as usize);
    });
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data + at.0..data + at.1].fill(0xff);
    fs::write(&file, bytes).unwrap();

    let ids = dir.path().join("ids.safetensors");
    save_ids(&ids, &[&[5, 6, 7]]);
    let out = dir.path().join("logits.safetensors");
    let text = dir.path().join("text.txt");
    fs::write(&text, "And the king said unto the people of the land").unwrap();
    for how in [
        args!["run", &model, "-p", "And", "-n", "4", "--greedy"].to_vec(),
        args!["run", &model, "-p", "And", "-n", "4", "--temperature", "0.8", "--seed", "1", "--json"]
            .to_vec(),
        args!["run", &model, "--ids", &ids, "-n", "4"].to_vec(),
        args!["eval", &model, "-f", &text].to_vec(),
        args!["logits", &model, "--ids", &ids, "--out", &out].to_vec(),
        args!["bench", "run", &model, "-p", "4", "-n", "2", "-r", "1"].to_vec(),
    ] {
        let ran = run(how);
        ran.refused(8, "the logits are not finite (NaN or infinity) at position");
        assert!(ran.err.contains("hint: the weights hold such values"), "{}", ran.err);
    }
    assert!(!out.exists());
    let help = run(args!["--help"]).ok().out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("8 NaN or infinity in what was computed"), "{help}");
    // The same command with weights that are numbers.
    run(args!["run", checkpoint("llama"), "--ids", &ids, "-n", "1"]).ok();
}
