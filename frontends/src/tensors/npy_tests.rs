//! Tests of the npy reader and writer.

use super::*;
use std::fs;

fn written(tensor: &Tensor) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.npy");
    write(&path, tensor).unwrap();
    fs::read(&path).unwrap()
}

fn parsed(bytes: &[u8]) -> Result<Tensor, TensorFileError> {
    let source = Source::file(Path::new("t.npy"));
    read_from(&source, &mut &bytes[..], bytes.len() as u64)
}

/// A version-1 file with this header text.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn every_element_type_and_rank_round_trips() {
    for dtype in DType::ALL {
        for dims in [&[][..], &[3], &[2, 0, 3], &[2, 3, 1, 2, 2]] {
            let ty = TensorType::new(dtype, dims.iter().copied());
            let bytes: Vec<u8> = (0..ty.bytes().0).map(|i| (i % 2) as u8).collect();
            let tensor = Tensor::from_bytes(ty, &bytes).unwrap();
            if dtype == DType::BF16 {
                let error = header(&Source::file(Path::new("x.npy")), tensor.ty()).unwrap_err().to_string();
                assert!(error.contains("x.npy") && error.contains("f32"), "{error}");
                continue;
            }
            let file = written(&tensor);
            assert_eq!((file.len() - bytes.len()) % 64, 0);
            assert_eq!(parsed(&file).unwrap(), tensor);
        }
    }
}

#[test]
fn writes_the_bytes_numpy_writes() {
    let file = written(&Tensor::from_f32([2, 3], &[0.0; 6]));
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    assert_eq!(&file[..10], b"\x93NUMPY\x01\x00\x76\x00");
    assert_eq!(std::str::from_utf8(&file[10..128]).unwrap(), format!("{header:117}\n"));
    let one = written(&Tensor::from_i64([3], &[1, 2, 3]));
    assert!(one.windows(4).any(|w| w == b"(3,)"));
}

#[test]
fn versions_two_and_three_and_odd_spacing_are_read() {
    let text = "{\"shape\":(2L,),'descr' : '<i4','fortran_order':False}";
    for version in [2, 3] {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        let tensor = parsed(&bytes).unwrap();
        assert_eq!(tensor.ty(), &TensorType::new(DType::I32, [2]));
        assert_eq!(tensor.bytes(), [1, 0, 0, 0, 2, 0, 0, 0]);
    }
}

#[test]
fn fortran_order_is_transposed() {
    // x[i,j,k] = 100 i + 10 j + k, stored with i fastest.
    let (a, b, c) = (2, 3, 4);
    let mut data = Vec::new();
    for k in 0..c {
        for j in 0..b {
            for i in 0..a {
                data.extend((100.0 * i as f32 + 10.0 * j as f32 + k as f32).to_le_bytes());
            }
        }
    }
    let bytes = file("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3, 4), }\n", &data);
    let tensor = parsed(&bytes).unwrap();
    let mut expected = Vec::new();
    for i in 0..a {
        for j in 0..b {
            for k in 0..c {
                expected.push(100.0 * i as f32 + 10.0 * j as f32 + k as f32);
            }
        }
    }
    assert_eq!(tensor, Tensor::from_f32([2, 3, 4], &expected));
    let empty = file("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 0), }\n", &[]);
    assert_eq!(parsed(&empty).unwrap().ty(), &TensorType::f32([2, 0]));
}

#[test]
fn unsupported_types_say_what_to_do() {
    for (descr, word) in [
        ("'>f4'", "newbyteorder"),
        ("'<c8'", "astype"),
        ("'<u2'", "astype"),
        ("'|O'", "astype"),
        ("'é4'", "astype"),
        ("[('a', '<f4'), ('b', '<i8')]", "astype"),
    ] {
        let bytes =
            file(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n"), &[0; 16]);
        let error = parsed(&bytes).unwrap_err().to_string();
        assert!(error.starts_with("t.npy") && error.contains(word), "{descr}: {error}");
    }
}

#[test]
fn damage_is_an_error_and_never_allocates_what_it_claims() {
    let good = written(&Tensor::from_f32([2, 3], &[1.0; 6]));
    for cut in 0..good.len() {
        assert!(parsed(&good[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(parsed(&longer).is_err());
    for shape in
        ["(99999999999,)", "(18446744073709551615, 2)", "(99999999999999999999,)", "(-1,)", "3", "(2"]
    {
        let bytes =
            file(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"), &[0; 8]);
        assert!(parsed(&bytes).is_err(), "{shape}");
    }
    for text in ["", "{", "{}", "{'descr': '<f4'}", "{'descr': '<f4', 'x': 1}", "{'descr", "nonsense"] {
        assert!(parsed(&file(text, &[])).is_err(), "{text}");
    }
}

#[test]
fn booleans_become_zero_or_one() {
    let bytes = file("{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }\n", &[0, 2, 1]);
    assert_eq!(parsed(&bytes).unwrap().bytes(), [0, 1, 1]);
}
