//! Compiles every `kernels/*.cu` with nvcc into one image for all architectures.
//!
//! Without nvcc the crate still builds: each image is then a name tag, which no driver takes but the software
//! driver of the tests, and loading the kernels on a GPU gives an error that says so.

// A build script has nobody to return errors to: what cannot happen may end it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::{env, fs, thread};

#[path = "build/resources.rs"]
mod resources;
#[path = "build/toolkit.rs"]
mod toolkit;

/// Architectures compiled where nvcc knows them and `NARROWS_CUDA_ARCHS` names no others. The oldest and the
/// newest are also kept as PTX, for those between and after them. 6.x is not among them: the matrix products want more
/// shared memory than the 48 KiB of a block there, and toolkits from 13 on do not know it.
const ARCHITECTURES: &[u32] = &[70, 75, 80, 86, 89, 90, 100, 120];

/// Every variable read here and not in `toolkit`.
///
/// - `NARROWS_REQUIRE_CUDA=1`: no nvcc is an error.
/// - `NARROWS_CUDA_STRICT=1`: a warning, and a kernel that keeps values in memory, is an error.
/// - `NARROWS_CUDA_ARCHS=75,90`: only these.
/// - `NARROWS_CUDA_LINEINFO=1`: for profilers. About doubles the images.
/// - `NARROWS_CUDA_COMPRESS=1`: images of about a fifth of the size, which the driver unpacks when it loads them;
///   from toolkit 13 on, whose drivers all can.
/// - `NVCC_CCBIN`: the host compiler for nvcc to use.
const VARIABLES: &[&str] = &[
    "NARROWS_REQUIRE_CUDA",
    "NARROWS_CUDA_STRICT",
    "NARROWS_CUDA_ARCHS",
    "NARROWS_CUDA_LINEINFO",
    "NARROWS_CUDA_COMPRESS",
    "NVCC_CCBIN",
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kernels_built)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/resources.rs");
    println!("cargo::rerun-if-changed=build/toolkit.rs");
    println!("cargo::rerun-if-changed=kernels"); // a folder: also notices new files
    for name in toolkit::VARIABLES.iter().chain(VARIABLES) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let sources = sources(&root.join("kernels"));

    match toolkit::find_nvcc(&root).unwrap_or_else(|error| fail(&error)) {
        Some(nvcc) => {
            let architectures = architectures(&nvcc);
            compile_all(&nvcc, &architectures, &sources, &out);
            write_table(&out, &sources, &architectures, toolkit_version(&nvcc), true);
            println!("cargo::rustc-cfg=kernels_built");
        }
        None if asked("NARROWS_REQUIRE_CUDA") => {
            fail(
                "nvcc not found, and NARROWS_REQUIRE_CUDA=1 forbids building without it; tools/get-nvcc gets one",
            );
        }
        None => {
            println!(
                "cargo::warning=nvcc not found: building without CUDA kernels (tools/get-nvcc gets one)"
            );
            write_table(&out, &sources, &[], 0, false);
        }
    }
}

fn asked(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value == "1")
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|p| p.extension().is_some_and(|x| x == "cu")).collect();
    found.sort();
    found
}

/// The architectures asked for, or those of the usual ones that this nvcc knows.
fn architectures(nvcc: &Path) -> Vec<u32> {
    let (listed, _) = run(Command::new(nvcc).arg("--list-gpu-code"));
    let known: BTreeSet<u32> =
        listed.lines().filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok()).collect();
    let Ok(asked) = env::var("NARROWS_CUDA_ARCHS") else {
        return ARCHITECTURES.iter().copied().filter(|arch| known.contains(arch)).collect();
    };
    let parse = |text: &str| match text.parse() {
        Ok(arch) if known.contains(&arch) => arch,
        _ => fail(&format!("NARROWS_CUDA_ARCHS: this nvcc cannot target {text:?}; it knows {known:?}")),
    };
    let mut found: Vec<u32> = asked.split([';', ',', ' ']).filter(|s| !s.is_empty()).map(parse).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The toolkit's version as the driver writes versions: 13000 is 13.0.
fn toolkit_version(nvcc: &Path) -> u32 {
    let (text, _) = run(Command::new(nvcc).arg("--version"));
    let parse = || {
        let (_, release) = text.split_once("release ")?;
        let (major, rest) = release.split_once('.')?;
        let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        Some(major.parse::<u32>().ok()? * 1000 + minor.parse::<u32>().ok()? * 10)
    };
    parse().unwrap_or_else(|| fail(&format!("{} --version gives no release: {text}", nvcc.display())))
}

fn compile_all(nvcc: &Path, architectures: &[u32], sources: &[PathBuf], out: &Path) {
    let (Some(oldest), Some(newest)) = (architectures.first(), architectures.last()) else {
        fail("no CUDA architecture to compile for")
    };
    let mut flags: Vec<String> =
        ["--fatbin", "-std=c++17", "-O3", "-m64", "--resource-usage"].map(String::from).to_vec();
    flags.extend(architectures.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")));
    for arch in BTreeSet::from([oldest, newest]) {
        flags.push(format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
    }
    let strict = asked("NARROWS_CUDA_STRICT");
    // Toolkits of 12.x warn that they are the last to know the oldest: that is why they are used.
    flags.push("-Wno-deprecated-gpu-targets".into());
    if strict {
        flags.push("-Werror=all-warnings".into());
    }
    if asked("NARROWS_CUDA_LINEINFO") {
        flags.push("-lineinfo".into());
    }
    if asked("NARROWS_CUDA_COMPRESS") && toolkit_version(nvcc) >= 13_000 {
        flags.push("--compress-mode=size".into());
    }
    if let Ok(host_compiler) = env::var("NVCC_CCBIN") {
        flags.extend(["-ccbin".into(), host_compiler]);
    }

    // A stamp of the whole command line, so that a change of flags compiles again.
    let stamp = format!("{} {flags:?}", nvcc.display());
    let stale: Vec<_> = sources.iter().filter(|source| !fresh(source, out, &stamp)).collect();
    let jobs: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let workers = jobs.min(stale.len());
    let threads = jobs / workers.max(1); // nvcc's own, one per architecture

    let queue = Mutex::new(stale.iter());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let Some(source) = queue.lock().unwrap().next() else { break };
                    let mut command = Command::new(nvcc);
                    command.args(&flags).arg(format!("--threads={threads}"));
                    command.arg("-MD").arg("-MF").arg(output(source, out, "d"));
                    command.arg("-o").arg(output(source, out, "fatbin")).arg(source);
                    let (_, resources) = run(&mut command);
                    report_spills(source, &resources, strict);
                    fs::write(output(source, out, "resources"), resources).unwrap();
                    fs::write(output(source, out, "stamp"), &stamp).unwrap();
                }
            });
        }
    });
}

/// Every kernel is to keep its values in registers: a spill, and an array whose indices are not known when it is
/// compiled, is memory traffic that no source line asks for.
fn report_spills(source: &Path, resources: &str, strict: bool) {
    for fault in resources::in_memory(resources) {
        let message = format!("{}: {fault}", source.display());
        if strict {
            fail(&message);
        }
        println!("cargo::warning={message}");
    }
}

fn output(source: &Path, out: &Path, extension: &str) -> PathBuf {
    out.join(source.file_name().unwrap()).with_extension(extension)
}

/// Whether the image is newer than all it was made from, by the dependency file that nvcc wrote.
fn fresh(source: &Path, out: &Path, stamp: &str) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified());
    let Ok(built) = modified(&output(source, out, "stamp")) else { return false };
    let depends = fs::read_to_string(output(source, out, "d")).unwrap_or_default().replace("\\\n", " ");
    let Some((_, inputs)) = depends.split_once(": ") else { return false };
    fs::read_to_string(output(source, out, "stamp")).is_ok_and(|old| old == stamp)
        && inputs.split_whitespace().all(|input| modified(Path::new(input)).is_ok_and(|time| time <= built))
}

/// Writes `images.rs`, the table that `kernels/image.rs` includes.
fn write_table(out: &Path, sources: &[PathBuf], architectures: &[u32], toolkit: u32, built: bool) {
    let mut table = format!(
        "pub(crate) static ARCHITECTURES: &[u32] = &{architectures:?};\npub(crate) static TOOLKIT: u32 = {toolkit};\n"
    );
    for source in sources {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let image = if built {
            format!("aligned!({:?})", output(source, out, "fatbin"))
        } else {
            format!("b\"narrows-softgpu-image {name}\\0\"")
        };
        table += &format!("pub(crate) static {}: &[u8] = {image};\n", name.to_uppercase());
    }
    fs::write(out.join("images.rs"), table).unwrap();
}

fn run(command: &mut Command) -> (String, String) {
    let result = command.output().unwrap_or_else(|e| fail(&format!("{command:?}: {e}")));
    let (stdout, stderr) = (String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    if !result.status.success() {
        fail(&format!("{command:?}\n{stdout}{stderr}"));
    }
    (stdout.into_owned(), stderr.into_owned())
}

/// Ends the build. Lines of `cargo::error` are shown without the backtrace of a panic.
fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    exit(1)
}
