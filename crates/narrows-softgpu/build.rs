//! Compiles every `.cu` of the workspace for the host, under `simt/simt.h`: one small shared
//! library per file and architecture, embedded in the driver. Without a C++ compiler or CUDA's
//! headers the driver is built without kernels and says at run time why.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The architectures that kernels are compiled for: the oldest we support, and the oldest with everything that they ask
/// for, which newer ones take too.
const ARCHITECTURES: [u32; 2] = [75, 80];

const FLAGS: [&str; 12] = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-unused-but-set-variable",
    "-Wno-attributes",
];

/// Instrumentation of kernels; whole vectors must stay whole loads until it has seen them.
const INSTRUMENT: [&str; 7] = [
    "-g1",
    "-gdwarf-4",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-tree-sra",
    "-fno-gnu-unique",
    "-fno-ipa-reference",
];

struct Toolchain {
    compiler: PathBuf,
    headers: PathBuf,
    machine: Vec<String>,
    out: PathBuf,
    simt: PathBuf,
}

struct Library {
    name: String,
    architecture: u32,
    file: PathBuf,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=simt");
    for name in ["CXX", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-check-cfg=cfg(softgpu_kernels)");
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let workspace = manifest.join("../..");
    let toolchain = match find_toolchain(&workspace, &manifest, &out) {
        Ok(toolchain) => toolchain,
        Err(why) => {
            println!("cargo::warning=the software driver is built without kernels: {why}");
            let text = format!(
                "pub(crate) static IMAGES: &[Image] = &[];\npub(crate) static LACKING: Option<&str> = Some({why:?});\n"
            );
            write(&out.join("images.rs"), &text);
            return;
        }
    };
    let mut sources = Vec::new();
    for folder in [workspace.join("kernels"), manifest.join("tests/kernels")] {
        if folder.is_dir() {
            println!("cargo::rerun-if-changed={}", folder.display());
            sources.extend(sources_in(&folder));
        }
    }
    let support = toolchain.support();
    let libraries = toolchain.compile_all(&sources, &support);
    let mut text = String::from("pub(crate) static IMAGES: &[Image] = &[\n");
    for library in &libraries {
        let _ = writeln!(
            text,
            "    Image {{ name: {:?}, architecture: {}, bytes: include_bytes!({:?}) }},",
            library.name, library.architecture, library.file
        );
    }
    text.push_str("];\npub(crate) static LACKING: Option<&str> = None;\n");
    write(&out.join("images.rs"), &text);
}

fn find_toolchain(workspace: &Path, manifest: &Path, out: &Path) -> Result<Toolchain, String> {
    if variable("CARGO_CFG_TARGET_OS") != "linux" {
        return Err("it runs on Linux only".into());
    }
    if !["x86_64", "aarch64"].contains(&variable("CARGO_CFG_TARGET_ARCH").as_str()) {
        return Err("it runs on x86-64 and ARM64 only".into());
    }
    let compiler = PathBuf::from(std::env::var("CXX").unwrap_or_else(|_| "c++".into()));
    let version = Command::new(&compiler).arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        return Err(format!("no C++ compiler ({} does not run)", compiler.display()));
    }
    let headers = find_headers(workspace).ok_or(
        "CUDA's headers were not found (cuda_fp16.h in CUDA_HOME, CUDA_PATH, beside nvcc on PATH, or in \
         target/cuda after tools/get-nvcc)",
    )?;
    Ok(Toolchain {
        compiler,
        headers,
        machine: machine_flags(),
        out: out.to_path_buf(),
        simt: manifest.join("simt"),
    })
}

fn find_headers(workspace: &Path) -> Option<PathBuf> {
    let mut folders = Vec::new();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(root) = std::env::var_os(name) {
            folders.push(PathBuf::from(root).join("include"));
        }
    }
    for folder in std::env::var_os("PATH").iter().flat_map(std::env::split_paths) {
        if folder.join("nvcc").is_file() {
            folders.push(folder.join("../include"));
        }
    }
    let wheels = workspace.join("target/cuda/nvidia/cu13/include");
    println!("cargo::rerun-if-changed={}", wheels.join("cuda_fp16.h").display());
    folders.push(wheels);
    folders.push(PathBuf::from("/usr/local/cuda/include"));
    folders
        .into_iter()
        .find(|folder| folder.join("cuda_fp16.h").is_file() && folder.join("cuda_bf16.h").is_file())
}

/// What the host can run: a GPU has fused multiply-add, and a library call per product is slow.
fn machine_flags() -> Vec<String> {
    let capable = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        ["avx2", "fma", "f16c", "bmi2"].iter().all(|word| text.split_whitespace().any(|flag| flag == *word))
    });
    if capable && variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        vec!["-march=x86-64-v3".into()]
    } else {
        Vec::new()
    }
}

fn sources_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    files.sort();
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    files
}

impl Toolchain {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.compiler);
        command.args(FLAGS).args(&self.machine);
        command.arg("-isystem").arg(&self.headers).arg("-I").arg(&self.simt);
        command
    }

    /// The uninstrumented part of every library.
    fn support(&self) -> Vec<PathBuf> {
        ["device", "collectives"]
            .iter()
            .map(|name| {
                let object = self.out.join(format!("{name}.o"));
                let mut command = self.command();
                command.arg("-c").arg(self.simt.join(format!("{name}.cpp"))).arg("-o").arg(&object);
                run(&mut command);
                object
            })
            .collect()
    }

    fn compile_all(&self, sources: &[PathBuf], support: &[PathBuf]) -> Vec<Library> {
        let jobs: Vec<(&PathBuf, u32)> = sources
            .iter()
            .flat_map(|source| ARCHITECTURES.map(|architecture| (source, architecture)))
            .collect();
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let workers = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize);
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, jobs.len().max(1)) {
                scope.spawn(|| {
                    while let Some((source, architecture)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let library = self.compile(source, *architecture, support);
                        if let (Some(library), Ok(mut done)) = (library, done.lock()) {
                            done.push(library);
                        }
                    }
                });
            }
        });
        let mut libraries = done.into_inner().unwrap_or_default();
        libraries.sort_by(|a, b| (&a.name, a.architecture).cmp(&(&b.name, b.architecture)));
        libraries
    }

    fn compile(&self, source: &Path, architecture: u32, support: &[PathBuf]) -> Option<Library> {
        let name = source.file_stem()?.to_string_lossy().into_owned();
        let stem = self.out.join(format!("{name}-{architecture}"));
        let mut command = self.command();
        command.arg(format!("-DSOFTGPU_ARCH={architecture}"));
        command.arg("-include").arg(self.simt.join("simt.h"));
        let mut scan = Command::new(command.get_program());
        scan.args(command.get_args()).arg("-DSOFTGPU_SCAN").args(["-x", "c++", "-E", "-P"]).arg(source);
        let text = run(&mut scan);
        let kernels = find_kernels(&text);
        let mut wrapper = format!("#include {source:?}\n");
        let _ = writeln!(wrapper, "extern \"C\" __attribute__((visibility(\"default\")))");
        let _ = writeln!(wrapper, "const softgpu::Entry softgpu_entries[] = {{");
        for (kernel, threads) in &kernels {
            let _ = writeln!(
                wrapper,
                "    {{\"{kernel}\", softgpu::call<&{kernel}>, softgpu::param_bytes(&{kernel}), {threads}}},"
            );
        }
        wrapper.push_str("    {nullptr, nullptr, 0, 0}};\n");
        let file = stem.with_extension("cpp");
        write(&file, &wrapper);
        let object = stem.with_extension("so");
        command.args(INSTRUMENT).arg(&file);
        let mut link = self.command();
        // Naming libtsan is what -fsanitize at link time would do; the callbacks are ours.
        command.arg("-c").arg("-o").arg(stem.with_extension("o"));
        link.args(["-shared", "-Wl,--no-undefined", "-Wl,-Bsymbolic"]);
        link.arg(stem.with_extension("o")).args(support).arg("-lm").arg("-o").arg(&object);
        let stamp = stem.with_extension("stamp");
        let key = fingerprint(&text, &wrapper, &command, &link, support);
        if !(object.is_file() && fs::read_to_string(&stamp).is_ok_and(|old| old == key)) {
            run(&mut command);
            run(&mut link);
            write(&stamp, &key);
        }
        Some(Library { name, architecture, file: object })
    }
}

/// Names and launch bounds of the kernels in preprocessed text. Bounds that are not a plain number
/// are not known (0).
fn find_kernels(text: &str) -> Vec<(String, u32)> {
    let mut kernels: Vec<(String, u32)> = Vec::new();
    for piece in text.split("__softgpu_global__").skip(1) {
        let mut rest = piece;
        let mut threads = 0;
        while let Some(open) = rest.find('(') {
            let word: String = rest[..open]
                .trim_end()
                .chars()
                .rev()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            if word == "__softgpu_bounds__" || word == "__attribute__" {
                let inside: String = balanced(&rest[open..]);
                if word == "__softgpu_bounds__" {
                    let first = inside.trim_matches(['(', ')']).split(',').next().unwrap_or_default();
                    threads = first.trim().parse().unwrap_or(0);
                }
                rest = &rest[open + inside.len()..];
                continue;
            }
            // A template has no name of its own; its instances are declared elsewhere.
            let declared = piece.split(['{', ';']).next().unwrap_or_default();
            if !word.is_empty() && declared.contains(&word) && !kernels.iter().any(|(name, _)| *name == word)
            {
                kernels.push((word, threads));
            }
            break;
        }
    }
    kernels
}

fn balanced(text: &str) -> String {
    let mut depth = 0;
    let mut inside = String::new();
    for c in text.chars() {
        inside.push(c);
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    inside
}

fn fingerprint(text: &str, wrapper: &str, compile: &Command, link: &Command, support: &[PathBuf]) -> String {
    let mut hasher = DefaultHasher::new();
    (text, wrapper, format!("{compile:?}{link:?}")).hash(&mut hasher);
    for object in support {
        fs::read(object).unwrap_or_default().hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn run(command: &mut Command) -> String {
    match command.output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => fail(&format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => fail(&format!("{command:?}: {error}")),
    }
}

fn write(path: &Path, text: &str) {
    if let Err(error) = fs::write(path, text) {
        fail(&format!("{}: {error}", path.display()));
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

/// Ends the build; `cargo::error` lines are shown without a panic's backtrace.
fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    exit(1)
}
