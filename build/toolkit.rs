// Finds the CUDA toolkit. Included by every build script that needs it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The variables that say where the toolkit is. `PATH` is read too, but does not cause a new build: an editor
/// and a shell rarely agree on it.
pub(crate) const VARIABLES: &[&str] = &["NVCC", "CUDA_HOME", "CUDA_PATH"];

/// Finds nvcc: by variable, on the path, in a Python environment, where `tools/get-nvcc` puts it, or where
/// installers do. A variable that is set but wrong is an error, not a reason to look elsewhere: a mix of
/// versions would be worse.
pub(crate) fn find_nvcc(workspace: &Path) -> Result<Option<PathBuf>, String> {
    let exe = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);

    if let Some(path) = variable("NVCC") {
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(format!("NVCC={} is not a file", path.display()))
        };
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(root) = variable(name) {
            let path = root.join("bin").join(&exe);
            let missing = || format!("{name}={} has no bin/{exe}", root.display());
            return if path.is_file() { Ok(Some(path)) } else { Err(missing()) };
        }
    }
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        for python in fs::read_dir(root.join("lib")).into_iter().flatten().flatten() {
            folders.push(python.path().join("site-packages/nvidia/cu13/bin"));
        }
    }
    folders.push(workspace.join("target/cuda/nvidia/cu13/bin"));
    folders.extend(["/usr/local/cuda/bin", "/opt/cuda/bin"].map(PathBuf::from));
    Ok(folders.into_iter().map(|folder| folder.join(&exe)).find(|path| path.is_file()))
}
