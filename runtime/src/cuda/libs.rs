//! Finding and loading the CUDA libraries, without ever linking to them.

use super::alias;
use super::error::CudaError;
use cudarc::{cublaslt, cudnn, driver, nvrtc};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A library this backend calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// The driver's user-space half, `libcuda`.
    Driver,
    /// The run-time compiler.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Convolutions.
    Cudnn,
}

impl Library {
    /// Every library, in loading order: cuDNN needs cuBLASLt and NVRTC.
    pub const ALL: [Self; 4] = [Self::Driver, Self::Nvrtc, Self::CublasLt, Self::Cudnn];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "NVIDIA driver",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
            Self::Cudnn => "cuDNN",
        }
    }

    /// The stem of its file name.
    fn stem(self) -> &'static str {
        match self {
            Self::Driver => "cuda",
            Self::Nvrtc => "nvrtc",
            Self::CublasLt => "cublasLt",
            Self::Cudnn => "cudnn",
        }
    }

    /// File name with the major version whose interface we use.
    pub fn soname(self) -> String {
        let major = match self {
            Self::Driver => 1,
            Self::Cudnn => 9,
            Self::Nvrtc | Self::CublasLt => 13,
        };
        format!("lib{}.so.{major}", self.stem())
    }

    /// Files of the same folder that must be loaded with it: those before it, and those
    /// after it. Libraries open them by bare name, which would find another version if the
    /// loader's path holds one.
    fn companions(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Nvrtc => (&["libnvrtc-builtins.so.13"], &[]),
            // cuDNN also calls cuBLAS.
            Self::CublasLt => (&[], &["libcublas.so.13"]),
            Self::Cudnn => (
                &[],
                &[
                    "libcudnn_graph.so.9",
                    "libcudnn_ops.so.9",
                    "libcudnn_heuristic.so.9",
                    "libcudnn_engines_runtime_compiled.so.9",
                    "libcudnn_engines_precompiled.so.9",
                    "libcudnn_cnn.so.9",
                ],
            ),
            Self::Driver => (&[], &[]),
        }
    }
}

/// Where to look before the loader's own path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibrarySearch {
    /// Folders in order, each with what it is for people.
    folders: Vec<(PathBuf, &'static str)>,
}

impl LibrarySearch {
    /// The folders named by the user (each may be a library folder, its parent, or a
    /// `site-packages/nvidia`), then those of an active Python environment, then the
    /// toolkit's. `variable` reads the environment.
    pub fn new(explicit: &[PathBuf], variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let mut folders = Vec::new();
        for dir in explicit {
            let below = ["lib", "lib64"].map(|s| dir.join(s));
            let all = std::iter::once(dir.clone()).chain(below).chain(library_folders_below(dir));
            folders.extend(all.map(|f| (f, "--cuda-libs")));
        }
        for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            let Some(root) = variable(name) else { continue };
            for python in entries(&root.join("lib"), |n| n.starts_with("python3")) {
                let nvidia = python.join("site-packages").join("nvidia");
                folders.extend(library_folders_below(&nvidia).into_iter().map(|f| (f, "Python environment")));
            }
            if name == "CONDA_PREFIX" {
                folders.push((root.join("lib"), "Conda environment"));
            }
        }
        if let Some(root) = variable("CUDA_PATH") {
            folders.push((root.join("lib64"), "CUDA_PATH"));
        }
        folders.retain(|(f, _)| f.is_dir());
        Self { folders }
    }

    /// [`Self::new`] with this process's environment.
    pub fn from_environment(explicit: &[PathBuf]) -> Self {
        Self::new(explicit, |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    /// The first file of a library, if one of the folders has it.
    pub fn find(&self, library: Library) -> Option<PathBuf> {
        self.folders.iter().find_map(|(dir, _)| file_in(dir, &library.soname()))
    }

    /// Where a library was looked for, for messages.
    fn tried(&self, library: Library) -> Vec<String> {
        let mut all: Vec<String> =
            self.folders.iter().map(|(f, what)| format!("{} ({what})", f.display())).collect();
        all.push(format!("the loader's path ({})", library.soname()));
        all
    }
}

/// `DIR/*/lib`, sorted, as the `nvidia` folder of Python packages is laid out.
fn library_folders_below(dir: &Path) -> Vec<PathBuf> {
    entries(dir, |_| true).into_iter().map(|d| d.join("lib")).filter(|d| d.is_dir()).collect()
}

/// Entries of a folder whose names pass, sorted; none if it cannot be read.
fn entries(dir: &Path, pass: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(read) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        read.flatten().filter(|e| pass(&e.file_name().to_string_lossy())).map(|e| e.path()).collect();
    found.sort();
    found
}

/// `name` or the highest `name.*` in a folder, as an absolute path.
fn file_in(dir: &Path, name: &str) -> Option<PathBuf> {
    let exact = dir.join(name);
    let file = if exact.is_file() {
        exact
    } else {
        let dotted = format!("{name}.");
        entries(dir, |n| n.starts_with(&dotted)).into_iter().rfind(|p| p.is_file())?
    };
    std::path::absolute(file).ok()
}

/// A loaded library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Which.
    pub library: Library,
    /// The file its functions come from, if the system tells.
    pub path: Option<PathBuf>,
    /// As the library itself reports it.
    pub version: String,
}

/// Loads one library. The first success in a process counts; later searches change nothing.
///
/// # Errors
/// [`CudaError::MissingLibrary`] if it is nowhere or cannot be loaded.
pub fn load(library: Library, search: &LibrarySearch) -> Result<Loaded, CudaError> {
    static LOADED: Mutex<BTreeMap<Library, Loaded>> = Mutex::new(BTreeMap::new());
    // A panic while it was held left the map as it was.
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = loaded.get(&library) {
        return Ok(before.clone());
    }
    let now = load_first(library, search)?;
    loaded.insert(library, now.clone());
    Ok(now)
}

fn load_first(library: Library, search: &LibrarySearch) -> Result<Loaded, CudaError> {
    let missing = |tried| CudaError::MissingLibrary {
        library: format!("{} ({})", library.name(), library.soname()),
        tried,
    };
    match search.find(library) {
        // Never quietly another version than the one that was found first.
        Some(file) => preload(library, &file)
            .map_err(|why| missing(vec![format!("{}, which cannot be loaded: {why}", file.display())]))?,
        None => preload_by_name(library),
    }
    if !present(library) {
        return Err(missing(search.tried(library)));
    }
    Ok(Loaded { library, path: origin(library), version: version(library)? })
}

/// Loads every library in order.
///
/// # Errors
/// The first that is missing.
pub fn load_all(search: &LibrarySearch) -> Result<Vec<Loaded>, CudaError> {
    Library::ALL.into_iter().map(|l| load(l, search)).collect()
}

/// Loads a file with its companions and makes cudarc's name for it mean this file.
#[cfg(unix)]
fn preload(library: Library, file: &Path) -> Result<(), String> {
    let (before, after) = library.companions();
    let folder = file.parent().unwrap_or(Path::new("/"));
    for name in before {
        if let Some(companion) = file_in(folder, name) {
            open(&companion)?;
        }
    }
    open(file)?;
    for name in after {
        // Absent in other versions of the library, which then do not need it.
        if let Some(companion) = file_in(folder, name) {
            open(&companion)?;
        }
    }
    // Without the alias the library still works wherever no other copy is in the way.
    let _ = make_alias(library, file);
    Ok(())
}

#[cfg(not(unix))]
fn preload(_library: Library, _file: &Path) -> Result<(), String> {
    Err("explicit library folders are supported on Unix only".to_owned())
}

/// Loads a library from the loader's path by its versioned name, which is the interface we
/// use; an unversioned name there may be another version's.
#[cfg(unix)]
fn preload_by_name(library: Library) {
    let name = PathBuf::from(library.soname());
    if open(&name).is_ok() {
        let _ = make_alias(library, &name);
    }
}

#[cfg(not(unix))]
fn preload_by_name(_library: Library) {}

#[cfg(unix)]
#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn open(file: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: a CUDA library's initialisers only register its own state; it is never
    // unloaded, so no function pointer of it dangles.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())?;
    std::mem::forget(library);
    Ok(())
}

/// Makes the loader answer `libX.so` with `file`; see [`alias`].
#[cfg(unix)]
fn make_alias(library: Library, file: &Path) -> Result<(), String> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let name = format!("lib{}.so", library.stem());
    let needed = file.to_str().ok_or("the path is not UTF-8")?;
    let image = alias::image(&name, needed).ok_or("no aliases on this system")?;
    let path = std::env::temp_dir().join(format!("vdnnc-{}-{name}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut f| f.write_all(&image));
    let done = written.map_err(|e| e.to_string()).and_then(|()| open(&path));
    let _ = std::fs::remove_file(&path);
    done
}

/// True if cudarc will find the library; asking otherwise would panic.
#[expect(unsafe_code, reason = "probing opens the library")]
fn present(library: Library) -> bool {
    // SAFETY: as in `open`; the probe may close its handle, but cudarc opens the library
    // again before any function is called.
    unsafe {
        match library {
            Library::Driver => driver::sys::is_culib_present(),
            Library::Nvrtc => nvrtc::sys::is_culib_present(),
            Library::CublasLt => cublaslt::sys::is_culib_present(),
            Library::Cudnn => cudnn::sys::is_culib_present(),
        }
    }
}

/// The file that holds a loaded library's version function.
#[expect(unsafe_code, reason = "looks a symbol up")]
fn origin(library: Library) -> Option<PathBuf> {
    type Function = unsafe extern "C" fn();
    // SAFETY: the library is present; the symbols are functions, and only their address is
    // used.
    let address = unsafe {
        let (lib, symbol) = match library {
            Library::Driver => (driver::sys::culib(), "cuDriverGetVersion\0"),
            Library::Nvrtc => (nvrtc::sys::culib(), "nvrtcVersion\0"),
            Library::CublasLt => (cublaslt::sys::culib(), "cublasLtGetVersion\0"),
            Library::Cudnn => (cudnn::sys::culib(), "cudnnGetVersion\0"),
        };
        *lib.get::<Function>(symbol.as_bytes()).ok()? as usize
    };
    mapped_file(&std::fs::read_to_string("/proc/self/maps").ok()?, address)
}

/// The file mapped at an address, from the text of `/proc/self/maps`.
fn mapped_file(maps: &str, address: usize) -> Option<PathBuf> {
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let parse = |s| usize::from_str_radix(s, 16).ok();
        let inside = (parse(start)?..parse(end)?).contains(&address);
        let path = rest.find('/').map(|at| PathBuf::from(&rest[at..]));
        path.filter(|_| inside)
    })
}

#[expect(unsafe_code, reason = "calls the libraries' version functions")]
fn version(library: Library) -> Result<String, CudaError> {
    // SAFETY: the library is present; the functions only write to the given integers.
    unsafe {
        Ok(match library {
            Library::Driver => {
                let v = driver_version()?;
                format!("CUDA {}.{}", v / 1000, v % 1000 / 10)
            }
            Library::Nvrtc => {
                let (mut major, mut minor) = (0, 0);
                let status = nvrtc::sys::nvrtcVersion(&mut major, &mut minor);
                if status != nvrtc::sys::nvrtcResult::NVRTC_SUCCESS {
                    return Err(CudaError::Driver { call: "nvrtcVersion", text: format!("{status:?}") });
                }
                format!("{major}.{minor}")
            }
            // 1_00_00 × major + 100 × minor + patch, for both.
            Library::CublasLt => triple(cublaslt::sys::cublasLtGetVersion()),
            Library::Cudnn => triple(cudnn::sys::cudnnGetVersion()),
        })
    }
}

fn triple(v: usize) -> String {
    format!("{}.{}.{}", v / 10_000, v % 10_000 / 100, v % 100)
}

/// Newest CUDA version the driver supports: 1000 × major + 10 × minor. The driver is present.
#[expect(unsafe_code, reason = "calls the driver")]
pub(crate) fn driver_version() -> Result<i32, CudaError> {
    let mut v = 0;
    // SAFETY: writes one integer; needs no initialised driver.
    CudaError::check("cuDriverGetVersion", unsafe { driver::sys::cuDriverGetVersion(&mut v) })?;
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a writable folder");
        std::fs::write(path, b"not a library").expect("a writable folder");
    }

    fn nothing(_: &str) -> Option<PathBuf> {
        None
    }

    /// A fresh folder below the system's temporary one, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("vdnn-libs-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).expect("a writable folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn explicit_folders_come_before_python_and_the_toolkit() {
        let root = Folder::new("order");
        let explicit = root.0.join("explicit");
        let venv = root.0.join("venv");
        let cuda = root.0.join("cuda");
        let python = venv.join("lib/python3.12/site-packages/nvidia/cudnn/lib/libcudnn.so.9");
        touch(&python);
        touch(&cuda.join("lib64/libcudnn.so.9"));
        touch(&cuda.join("lib64/libnvrtc.so.13"));
        let variable = |name: &str| match name {
            "VIRTUAL_ENV" => Some(venv.clone()),
            "CUDA_PATH" => Some(cuda.clone()),
            _ => None,
        };
        let search = LibrarySearch::new(&[], variable);
        assert_eq!(search.find(Library::Cudnn), Some(python));
        assert_eq!(search.find(Library::Nvrtc), Some(cuda.join("lib64/libnvrtc.so.13")));
        assert_eq!(search.find(Library::CublasLt), None);
        // The folder of a package tree, as well as a plain one.
        touch(&explicit.join("cudnn/lib/libcudnn.so.9"));
        touch(&explicit.join("libcublasLt.so.13"));
        let search = LibrarySearch::new(std::slice::from_ref(&explicit), variable);
        assert_eq!(search.find(Library::Cudnn), Some(explicit.join("cudnn/lib/libcudnn.so.9")));
        assert_eq!(search.find(Library::CublasLt), Some(explicit.join("libcublasLt.so.13")));
    }

    #[test]
    fn other_major_versions_and_unversioned_names_are_not_taken() {
        let root = Folder::new("versions");
        touch(&root.0.join("libcudnn.so.8"));
        touch(&root.0.join("libcudnn.so"));
        touch(&root.0.join("libnvrtc.so.130"));
        let search = LibrarySearch::new(std::slice::from_ref(&root.0), nothing);
        assert_eq!(search.find(Library::Cudnn), None);
        assert_eq!(search.find(Library::Nvrtc), None);
        touch(&root.0.join("libcudnn.so.9.1.0"));
        touch(&root.0.join("libcudnn.so.9.2.0"));
        assert_eq!(search.find(Library::Cudnn), Some(root.0.join("libcudnn.so.9.2.0")));
        touch(&root.0.join("libcudnn.so.9"));
        assert_eq!(search.find(Library::Cudnn), Some(root.0.join("libcudnn.so.9")));
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_and_not_a_panic() {
        let root = Folder::new("broken");
        touch(&root.0.join("libcudnn.so.9"));
        let search = LibrarySearch::new(std::slice::from_ref(&root.0), nothing);
        let text = load_first(Library::Cudnn, &search).expect_err("two words are no library").to_string();
        assert!(text.contains("cuDNN (libcudnn.so.9) was not found"), "{text}");
        assert!(text.contains("libcudnn.so.9, which cannot be loaded"), "{text}");
    }

    #[test]
    fn a_missing_library_is_reported_with_every_place() {
        let root = Folder::new("places");
        let search = LibrarySearch::new(std::slice::from_ref(&root.0), nothing);
        let tried = search.tried(Library::Nvrtc);
        assert!(tried[0].contains("places") && tried[0].ends_with("(--cuda-libs)"), "{tried:?}");
        assert_eq!(tried.last().map(String::as_str), Some("the loader's path (libnvrtc.so.13)"));
    }

    #[test]
    fn maps_tell_the_file_of_an_address() {
        let maps = "1000-2000 r--p 00000000 08:01 7    /lib/a b.so\n2000-3000 rw-p 00000000 00:00 0 \n";
        assert_eq!(mapped_file(maps, 0x1fff), Some(PathBuf::from("/lib/a b.so")));
        assert_eq!(mapped_file(maps, 0x2000), None);
        assert_eq!(mapped_file(maps, 0x9000), None);
    }

    #[test]
    fn versions_are_read_as_the_libraries_count_them() {
        assert_eq!(triple(91_900), "9.19.0");
        assert_eq!(triple(130_100), "13.1.0");
    }
}
