//! Packing in a process that is killed, on a real disk. The unit tests stop it at every step; this one finds out
//! whether those steps are all there is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use narrows_shard::{Dtype, Layout, PackOptions, ShardLayout, open_source, pack, verify};

use crate::common::{file_of, files, write};

/// Where the child finds the scene, and whether it consumes the source.
const SCENE: &str = "NARROWS_SHARD_TEST_SCENE";
const CONSUME: &str = "NARROWS_SHARD_TEST_CONSUME";

fn pack_scene(scene: &Path, consume_source: bool) {
    let shard = |i: usize| ShardLayout { name: format!("l{i}"), tensors: vec![format!("t{i}")] };
    let layout = Layout {
        architecture: "x".into(),
        shards: (0..6).map(shard).collect(),
        sidecars: vec!["config.json".into()],
    };
    let (source, out) = (scene.join("source"), scene.join("out"));
    let source = open_source(&source, &out).unwrap();
    pack(&source, &layout, &out, &PackOptions { consume_source }, &mut |_| {}).unwrap();
}

fn new_scene() -> tempfile::TempDir {
    let scene = tempfile::tempdir().unwrap();
    let source = scene.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut weight_map = serde_json::Map::new();
    for i in 0..6 {
        let (name, file) = (format!("t{i}"), format!("{i}.safetensors"));
        write(&source, &file, file_of(&[(&name, Dtype::U8, &[500_000], vec![i; 500_000])]));
        weight_map.insert(name, file.into());
    }
    write(
        &source,
        "model.safetensors.index.json",
        serde_json::json!({ "weight_map": weight_map }).to_string(),
    );
    write(&source, "config.json", "{}");
    scene
}

fn spawn(scene: &Path, consume: bool) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killing::child", "--ignored"])
        .env(SCENE, scene)
        .env(CONSUME, consume.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "run by the other test, as the process to kill"]
fn child() {
    let scene = PathBuf::from(std::env::var_os(SCENE).unwrap());
    pack_scene(&scene, std::env::var_os(CONSUME).unwrap() == "true");
}

#[test]
fn a_killed_pack_goes_on() {
    let undisturbed = new_scene();
    pack_scene(undisturbed.path(), false);
    let expected = files(&undisturbed.path().join("out"));
    for consume in [false, true] {
        for millis in [1, 3, 5, 8, 12, 17, 25] {
            let scene = new_scene();
            // Killed twice, the second time on the way of going on.
            for _ in 0..2 {
                let mut child = spawn(scene.path(), consume);
                sleep(Duration::from_millis(millis));
                child.kill().unwrap();
                child.wait().unwrap();
            }
            pack_scene(scene.path(), consume);
            let same = files(&scene.path().join("out")) == expected;
            assert!(same, "killed after {millis} ms, consume {consume}");
            verify(&scene.path().join("out"), &mut |_| {}).unwrap();
        }
    }
}
