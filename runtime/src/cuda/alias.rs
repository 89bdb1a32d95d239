//! A shared object without code whose only content is its name and the library it needs.
//!
//! cudarc opens a library by its unversioned name first (`libcudnn.so`), so a copy of
//! another version in the loader's path would win over the file we chose, whose own name is
//! versioned (`libcudnn.so.9`). An alias with the unversioned name, already loaded and
//! needing the chosen file by its path, is what the loader then finds: it compares a
//! requested name with those of loaded objects before it searches, and looks a symbol up in
//! an object and in everything that it needs.
//!
//! Layout after the System V ABI (gABI 4.1, chapters 4 and 5): one loadable segment with
//! header, program headers, symbol table, hash table, strings and dynamic section.

/// Machine of the running program, or `None` where no alias can be made.
const MACHINE: Option<u16> = if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
    Some(62)
} else if cfg!(all(target_os = "linux", target_arch = "aarch64")) {
    Some(183)
} else {
    None
};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SYMBOL: usize = 24;
/// Largest page size in use; segment alignment.
const PAGE: u64 = 0x1_0000;

/// The bytes of a shared object named `name` that needs the library at `path`. `None` on
/// machines it cannot be made for, and for names with a NUL byte.
pub(super) fn image(name: &str, path: &str) -> Option<Vec<u8>> {
    let machine = MACHINE?;
    if name.contains('\0') || path.contains('\0') {
        return None;
    }
    let mut strings = vec![0u8];
    let mut string = |text: &str| {
        let at = strings.len() as u64;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let (soname, needed) = (string(name), string(path));
    let symbols_at = HEADER + 3 * PROGRAM_HEADER;
    let hash_at = symbols_at + SYMBOL;
    let strings_at = hash_at + 16;
    let dynamic_at = (strings_at + strings.len()).next_multiple_of(8);
    let dynamic: [(u64, u64); 8] = [
        (1, needed),                // DT_NEEDED
        (14, soname),               // DT_SONAME
        (4, hash_at as u64),        // DT_HASH
        (5, strings_at as u64),     // DT_STRTAB
        (6, symbols_at as u64),     // DT_SYMTAB
        (10, strings.len() as u64), // DT_STRSZ
        (11, SYMBOL as u64),        // DT_SYMENT
        (0, 0),                     // DT_NULL
    ];
    let dynamic_len = dynamic.len() * 16;
    let total = (dynamic_at + dynamic_len) as u64;

    let mut out = Vec::with_capacity(total as usize);
    // ELF header: 64-bit, little-endian, shared object.
    out.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend_from_slice(&3u16.to_le_bytes());
    out.extend_from_slice(&machine.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    for word in [0u64, HEADER as u64, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 3, 0, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    // PT_LOAD of everything, PT_DYNAMIC, and a stack that is not executable. Writable,
    // because loaders relocate the dynamic section in place.
    let mut segment = |kind: u32, start: u64, len: u64, align: u64| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&6u32.to_le_bytes());
        for word in [start, start, start, len, len, align] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    };
    segment(1, 0, total, PAGE);
    segment(2, dynamic_at as u64, dynamic_len as u64, 8);
    segment(0x6474_e551, 0, 0, 16);
    // The null symbol, and a hash table of one empty bucket.
    out.resize(out.len() + SYMBOL, 0);
    for word in [1u32, 1, 0, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&strings);
    out.resize(dynamic_at, 0);
    for (tag, value) in dynamic {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&value.to_le_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[expect(unsafe_code, reason = "loads a library")]
    fn a_loaded_alias_answers_to_its_name_with_the_symbols_of_the_other_library() {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
        // A library of the C runtime that every program has, by the path it was loaded from.
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let path = maps
            .lines()
            .filter_map(|l| l.split_whitespace().nth(5))
            .find(|p| p.contains("/libc.so") || p.contains("/libc-"))
            .expect("a C library")
            .to_owned();
        let image = image("libvdnn-alias-of-c.so", &path).expect("this machine has aliases");
        let file = std::env::temp_dir().join(format!("vdnn-alias-test-{}.so", std::process::id()));
        std::fs::write(&file, &image).expect("a writable folder");
        // SAFETY: the object has no code.
        let alias = unsafe { Library::open(Some(&file), RTLD_LAZY | RTLD_GLOBAL) };
        std::fs::remove_file(&file).expect("just written");
        let _alias = alias.expect("the loader takes the image");
        // SAFETY: already loaded, without code.
        let by_name =
            unsafe { libloading::Library::new("libvdnn-alias-of-c.so") }.expect("found by its name");
        // SAFETY: `abs` of C has this type.
        let abs = unsafe { by_name.get::<unsafe extern "C" fn(i32) -> i32>(b"abs\0") }.expect("libc has it");
        // SAFETY: any argument but the smallest is fine.
        assert_eq!(unsafe { abs(-7) }, 7);
        // SAFETY: nothing is loaded.
        assert!(unsafe { libloading::Library::new("libvdnn-alias-of-nothing.so") }.is_err());
    }
}
