//! The compiled kernels: libraries embedded in this one, opened when a module is loaded.

use std::ffi::{CStr, CString, c_void};
use std::ops::Range;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use super::fault;
use super::machine::{Cell, Entry, Machine};
use super::memory::reserve;

/// One `.cu`, compiled for one architecture.
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) architecture: u32,
    pub(crate) bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// An opened library of kernels.
pub(crate) struct Library {
    pub(crate) image: Range<usize>,
    pub(crate) shared: Range<usize>,
    pub(crate) cells: usize,
    /// Its open file.
    pub(crate) descriptor: i32,
    pub(crate) kernels: Vec<Arc<Kernel>>,
}

/// A kernel that can be launched.
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) call: unsafe extern "C" fn(*const c_void),
    pub(crate) param_bytes: usize,
    /// Most threads in a block.
    pub(crate) max_threads: u32,
    /// Which of the libraries it is in.
    pub(crate) library: usize,
}

/// Opens the libraries for a compute capability: those of the newest architecture not above it.
pub(crate) fn open(arch: (u32, u32), machine: *mut Machine) -> Vec<Arc<Library>> {
    let wanted = arch.0 * 10 + arch.1;
    let newest = IMAGES.iter().map(|i| i.architecture).filter(|a| *a <= wanted).max();
    let mut libraries = Vec::new();
    for image in IMAGES.iter().filter(|image| Some(image.architecture) == newest) {
        match open_one(image, machine, libraries.len()) {
            Ok(library) => libraries.push(Arc::new(library)),
            Err(error) => fault::say(&format!("cannot open the kernels of {}.cu: {error}", image.name)),
        }
    }
    libraries
}

fn open_one(image: &Image, machine: *mut Machine, index: usize) -> Result<Library, String> {
    let name = CString::new(image.name).map_err(|error| error.to_string())?;
    // SAFETY: a valid name; the descriptor is checked below.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    // SAFETY: a descriptor made above that nothing else owns.
    let mut file = unsafe { std::fs::File::from_raw_fd(descriptor) };
    std::io::Write::write_all(&mut file, image.bytes).map_err(|error| error.to_string())?;
    // Left open: the loader takes two libraries opened under one path for one.
    let descriptor = file.into_raw_fd();
    let path = CString::new(format!("/proc/self/fd/{descriptor}")).map_err(|e| e.to_string())?;
    // SAFETY: a library that this crate's build script made; it has no initialisers.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: dlerror gives a string after a failure.
        return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
    }
    // SAFETY: names that `simt/device.cpp` and the build script define.
    let (attach, entries) = unsafe {
        (libc::dlsym(handle, c"softgpu_attach".as_ptr()), libc::dlsym(handle, c"softgpu_entries".as_ptr()))
    };
    if attach.is_null() || entries.is_null() {
        return Err(String::from("it has no table of kernels"));
    }
    let mut bounds = [0usize; 3];
    // SAFETY: the signature that `simt/device.cpp` declares.
    unsafe {
        let attach: unsafe extern "C" fn(*mut Machine, *mut usize) = std::mem::transmute(attach);
        attach(machine, bounds.as_mut_ptr());
    }
    let mut kernels = Vec::new();
    let mut entry: *const Entry = entries.cast();
    loop {
        // SAFETY: the table ends with an entry without a name.
        let (current, next) = unsafe { (&*entry, entry.add(1)) };
        let (false, Some(call)) = (current.name.is_null(), current.call) else { break };
        // SAFETY: a string literal of the library.
        let name = unsafe { CStr::from_ptr(current.name) }.to_string_lossy().into_owned();
        kernels.push(Arc::new(Kernel {
            name,
            call,
            param_bytes: current.param_bytes as usize,
            max_threads: if current.max_threads == 0 { 1024 } else { current.max_threads.min(1024) },
            library: index,
        }));
        entry = next;
    }
    let start = bounds[1] & !15;
    let cells = reserve(((bounds[2] - start) / 4 + 1) * size_of::<Cell>())
        .ok_or("no room for what is known of it")?;
    Ok(Library { image: bounds[0]..bounds[2], shared: start..bounds[2], cells, descriptor, kernels })
}

impl Library {
    /// The source lines of a call, innermost first, as far as `addr2line` is there to tell.
    pub(crate) fn lines(&self, pc: usize) -> Option<String> {
        let offset = pc.checked_sub(self.image.start)?.checked_sub(1)?;
        if !self.image.contains(&pc) {
            return None;
        }
        let file = format!("/proc/{}/fd/{}", std::process::id(), self.descriptor);
        let output = std::process::Command::new("addr2line")
            .env_remove("LD_LIBRARY_PATH")
            .args(["-i", "-e", &file, &format!("{offset:#x}")])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text
            .lines()
            .filter_map(|line| line.rsplit('/').next()?.split(' ').next())
            .filter(|line| !line.starts_with("simt.h") && !line.starts_with('?'))
            .collect();
        (!lines.is_empty()).then(|| lines.join(" from "))
    }
}
